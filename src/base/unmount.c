/* SPDX-License-Identifier: Apache-2.0 */
/* Taking mounts away; see unmount.h. */
#include "base/unmount.h"

#include "base/mem.h"

#include <errno.h>
#include <spawn.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

static int run_helper(const char *path)
{
    char *const args[] = {
        (char *)"fusermount3", (char *)"-u", (char *)"-z", (char *)"-q", (char *)"--", (char *)path, NULL};
    pid_t pid;
    int status, r = -posix_spawnp(&pid, args[0], NULL, NULL, args, environ);

    if (r < 0)
        return r;
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return -errno;
    return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -EPERM;
}

int unmount_lazily(const char *path)
{
    if (umount2(path, MNT_DETACH) == 0)
        return 0;
    return errno == EPERM ? run_helper(path) : -errno;
}

/* The path of what is mounted there, although nobody answers for it: only its folder can be resolved. */
static char *resolve_folder(const char *path)
{
    const char *name = strrchr(path, '/');
    AUTO_FREE char *folder = name ? str_ndup(path, MAX((size_t)(name - path), (size_t)1)) : str_dup(".");
    AUTO_FREE char *real = realpath(folder, NULL);

    return real ? str_printf("%s/%s", str_eq(real, "/") ? "" : real, name ? name + 1 : path) : NULL;
}

bool unmount_if_dead(const char *path, int r)
{
    AUTO_FREE char *real = NULL;
    int error = errno;
    bool removed;

    if (r != -ENOTCONN)
        return r == -ECONNABORTED || r == -ECANCELED;
    real = resolve_folder(path);
    removed = real && unmount_lazily(real) == 0;
    errno = error;
    return removed;
}
