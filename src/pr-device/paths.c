/* SPDX-License-Identifier: Apache-2.0 */
/* A command over the paths of a multipath map, one after the other. */
#include "pr-device/pr-device-priv.h"

#include "base/mem.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

/* Opens /dev/NAME if it is the block device that /sys means and its state is "running"; -1 if not. */
static int open_path(int slaves, const char *name)
{
    char path[NAME_MAX + 32], state[16], number[32];
    unsigned major_number, minor_number;
    AUTO_CLOSE int fd = -1;
    struct stat status;

    snprintf(path, sizeof(path), "%s/device/state", name);
    if (!pr_sys_read(slaves, path, state, sizeof(state)) || !str_eq(state, "running"))
        return -1;
    snprintf(path, sizeof(path), "%s/dev", name);
    if (!pr_sys_read(slaves, path, number, sizeof(number)) ||
        sscanf(number, "%u:%u", &major_number, &minor_number) != 2)
        return -1;
    snprintf(path, sizeof(path), "/dev/%s", name);
    fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    if (fd < 0 || fstat(fd, &status) < 0 || !S_ISBLK(status.st_mode) ||
        status.st_rdev != makedev(major_number, minor_number))
        return -1;
    return TAKE_FD(fd);
}

unsigned pr_paths_execute(dev_t map, const PrRequest *request, unsigned timeout_ms, PrReply *reply)
{
    char directory[64];
    DIR *slaves;
    unsigned done = 0;

    snprintf(directory, sizeof(directory), "/sys/dev/block/%u:%u/slaves", major(map), minor(map));
    slaves = opendir(directory);
    if (!slaves)
        return 0;
    for (struct dirent *entry; (entry = readdir(slaves));) {
        AUTO_CLOSE int fd = entry->d_name[0] == '.' ? -1 : open_path(dirfd(slaves), entry->d_name);

        if (fd < 0)
            continue;
        pr_sg_execute(fd, request, timeout_ms, reply);
        done++;
    }
    closedir(slaves);
    return done;
}
