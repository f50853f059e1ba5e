/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a descriptor is, from fstat and /sys alone. A device is only used when it is known to be a whole
 * one: through the descriptor of a partition or of a slice of a disk the kernel reserves the whole disk, as
 * far as the caller is privileged, and the caller of this is.
 */
#include "pr-device/pr-device-priv.h"

#include "base/mem.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

enum { ATTRIBUTE_BYTES = 256 }; /* longest that is looked at; a device-mapper name or uuid has at most 128 */

static void refuse(PrDevice *device, const char *fmt, ...) PRINTF(2, 3);

static void refuse(PrDevice *device, const char *fmt, ...)
{
    va_list args;

    device->kind = PR_DEVICE_REFUSED;
    va_start(args, fmt);
    vsnprintf(device->reason, sizeof(device->reason), fmt, args);
    va_end(args);
}

/* Names end up in log lines. */
static void make_printable(char *text)
{
    for (; *text; text++) {
        if (!isprint((unsigned char)*text))
            *text = '?';
    }
}

/* ---- Entries of /sys ---- */

static bool exists(int dir, const char *path)
{
    return faccessat(dir, path, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

bool pr_sys_read(int dir, const char *path, char *ret_text, size_t size)
{
    AUTO_CLOSE int fd = openat(dir, path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    ssize_t bytes = fd < 0 ? -1 : read(fd, ret_text, size - 1);

    if (bytes < 0)
        return false;
    ret_text[bytes] = '\0';
    ret_text[strcspn(ret_text, "\n")] = '\0';
    return true;
}

/* The last part of what a link points to, made printable and cut to size; false if it is not a link. */
static bool read_link_name(int dir, const char *path, char *ret_name, size_t size)
{
    char target[PATH_MAX];
    ssize_t bytes = readlinkat(dir, path, target, sizeof(target) - 1);
    const char *name;
    size_t length;

    if (bytes < 0)
        return false;
    target[bytes] = '\0';
    name = strrchr(target, '/');
    name = name ? name + 1 : target;
    length = strnlen(name, size - 1);
    memcpy(ret_name, name, length);
    ret_name[length] = '\0';
    make_printable(ret_name);
    return true;
}

/* Opens /sys/dev/{block,char}/MAJ:MIN and takes the device's name from it; -1 if it is not there. */
static int open_entry(const char *sys, const char *class, PrDevice *device)
{
    char path[PATH_MAX], name[PR_DEVICE_NAME];

    if (snprintf(path, sizeof(path), "%s/dev/%s/%u:%u", sys, class, major(device->number),
            minor(device->number)) >= (int)sizeof(path))
        return -1;
    if (read_link_name(AT_FDCWD, path, name, sizeof(name)))
        memcpy(device->name, name, sizeof(name));
    return open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
}

/* ---- Device mapper ---- */

/* The only name in a directory; false if there is none or more than one. */
static bool only_entry(int dir, const char *path, char ret_name[NAME_MAX + 1])
{
    int fd = openat(dir, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *list = fd < 0 ? NULL : fdopendir(fd);
    unsigned count = 0;

    if (!list) {
        fd_close(fd);
        return false;
    }
    for (struct dirent *entry; (entry = readdir(list));) {
        if (str_eq(entry->d_name, ".") || str_eq(entry->d_name, ".."))
            continue;
        if (count++ == 0)
            snprintf(ret_name, NAME_MAX + 1, "%s", entry->d_name);
    }
    closedir(list);
    return count == 1;
}

/* NULL if the map is nothing but one whole SCSI disk by another name, else why that is not so. */
static const char *why_not_whole_disk(int map, dev_t number, PrTargetType *target_type)
{
    char name[NAME_MAX + 1], path[NAME_MAX + 16], size[ATTRIBUTE_BYTES], disk_size[ATTRIBUTE_BYTES];
    char subsystem[PR_DEVICE_NAME], type[DM_MAX_TYPE_NAME];
    AUTO_CLOSE int disk = -1;
    int r;

    if (!only_entry(map, "slaves", name))
        return "it does not consist of exactly one device";
    snprintf(path, sizeof(path), "slaves/%s", name);
    disk = openat(map, path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (disk < 0 || exists(disk, "partition") || exists(disk, "dm") ||
        !read_link_name(disk, "device/subsystem", subsystem, sizeof(subsystem)) || !str_eq(subsystem, "scsi"))
        return "what it consists of is not a SCSI disk";
    if (!pr_sys_read(map, "size", size, sizeof(size)) ||
        !pr_sys_read(disk, "size", disk_size, sizeof(disk_size)) || !*size || !str_eq(size, disk_size))
        return "it is not as large as its disk";
    r = target_type(number, type);
    if (r < 0)
        return "its table cannot be read, which takes CAP_SYS_ADMIN and /dev/mapper/control";
    return str_eq(type, "linear") ? NULL : "its table is not linear";
}

static void classify_map(
    int entry, const PrDeviceOptions *options, PrTargetType *target_type, PrDevice *device)
{
    char uuid[ATTRIBUTE_BYTES] = "", map_name[ATTRIBUTE_BYTES] = "";
    const char *why;
    size_t length = strlen(device->name);

    if (!pr_sys_read(entry, "dm/uuid", uuid, sizeof(uuid)))
        return refuse(device, "a device-mapper device of unknown kind");
    if (pr_sys_read(entry, "dm/name", map_name, sizeof(map_name))) {
        make_printable(map_name);
        snprintf(device->name + length, sizeof(device->name) - length, " (%s)", map_name);
    }
    if (str_starts(uuid, "mpath-")) {
        device->kind = PR_DEVICE_MULTIPATH;
        return;
    }
    if (!options->allow_dm_linear)
        return refuse(device, "a device-mapper device that is not a multipath map; a reservation would be on "
                              "the whole disk beneath");
    why = why_not_whole_disk(entry, device->number, target_type);
    if (why)
        return refuse(device, "a device-mapper device that cannot stand for its disk: %s", why);
    device->kind = PR_DEVICE_SCSI;
}

/* ---- Kinds ---- */

static void classify_block(const PrDeviceOptions *options, PrTargetType *target_type, PrDevice *device)
{
    AUTO_CLOSE int entry = open_entry(options->sys ? options->sys : "/sys", "block", device);
    char subsystem[PR_DEVICE_NAME];

    if (entry < 0)
        return refuse(device, "a block device that is not in /sys, so nothing is known of it");
    if (exists(entry, "partition"))
        return refuse(device, "a partition; a reservation would be on the whole disk");
    if (exists(entry, "dm"))
        return classify_map(entry, options, target_type, device);
    if (read_link_name(entry, "device/subsystem", subsystem, sizeof(subsystem)) &&
        (str_eq(subsystem, "nvme") || str_eq(subsystem, "nvme-subsystem"))) {
        device->kind = PR_DEVICE_NVME;
        return;
    }
    /* Whether it is one, SG_IO finds out. */
    device->kind = PR_DEVICE_SCSI;
}

static void classify_char(const PrDeviceOptions *options, PrDevice *device)
{
    AUTO_CLOSE int entry = open_entry(options->sys ? options->sys : "/sys", "char", device);
    char subsystem[PR_DEVICE_NAME];

    if (entry < 0)
        return refuse(device, "a character device that is not in /sys, so nothing is known of it");
    if (!read_link_name(entry, "subsystem", subsystem, sizeof(subsystem)))
        return refuse(device, "a character device of unknown kind");
    if (!str_eq(subsystem, "scsi_generic"))
        return refuse(
            device, "a character device of the kind '%s', not a SCSI generic (sg) device", subsystem);
    device->kind = PR_DEVICE_SG;
}

static const char *file_kind(mode_t mode)
{
    switch (mode & S_IFMT) {
    case S_IFREG:
        return "regular file";
    case S_IFDIR:
        return "directory";
    case S_IFIFO:
        return "pipe";
    case S_IFSOCK:
        return "socket";
    case S_IFLNK:
        return "symbolic link";
    default:
        return "descriptor that is no file";
    }
}

void pr_device_classify(
    mode_t mode, dev_t number, const PrDeviceOptions *options, PrTargetType *target_type, PrDevice *device)
{
    if (!S_ISBLK(mode) && !S_ISCHR(mode)) {
        snprintf(device->name, sizeof(device->name), "%s", file_kind(mode));
        return refuse(device, "a %s, not a disk", file_kind(mode));
    }
    device->number = number;
    snprintf(device->name, sizeof(device->name), "%u:%u", major(number), minor(number));
    if (S_ISBLK(mode))
        classify_block(options, target_type, device);
    else
        classify_char(options, device);
    if (device->kind != PR_DEVICE_REFUSED && !device->readable && !device->writable)
        refuse(device, "a descriptor that is open neither for reading nor for writing");
}

void pr_device_inspect(int fd, const PrDeviceOptions *options, PrDevice *ret_device)
{
    int flags = fcntl(fd, F_GETFL);
    struct stat status;

    memset(ret_device, 0, sizeof(*ret_device));
    snprintf(ret_device->name, sizeof(ret_device->name), "descriptor");
    if (flags < 0 || fstat(fd, &status) < 0)
        return refuse(ret_device, "a descriptor that cannot be looked at: %s", strerror(errno));
    if (!(flags & O_PATH)) {
        ret_device->readable = (flags & O_ACCMODE) == O_RDONLY || (flags & O_ACCMODE) == O_RDWR;
        ret_device->writable = (flags & O_ACCMODE) == O_WRONLY || (flags & O_ACCMODE) == O_RDWR;
    }
    pr_device_classify(status.st_mode, status.st_rdev, options, pr_dm_target_type, ret_device);
}
