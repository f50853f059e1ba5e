/* SPDX-License-Identifier: Apache-2.0 */
#include "base/pidfile.h"

#include "base/mem.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

/* Times that the file may be removed by an ending instance while it is being locked. */
#define ATTEMPTS 16

static bool same_file(int fd, const char *path)
{
    struct stat opened, named;

    return fstat(fd, &opened) == 0 && stat(path, &named) == 0 && opened.st_dev == named.st_dev &&
           opened.st_ino == named.st_ino;
}

static int lock_whole(int fd)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

    return fcntl(fd, F_SETLK, &lock) < 0 ? -errno : 0;
}

/* A locked file that is still the one at path. */
static int open_locked(const char *path, int *ret_fd, Error *err)
{
    for (unsigned i = 0; i < ATTEMPTS; i++) {
        AUTO_CLOSE int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOCTTY, 0600);
        int r;

        if (fd < 0)
            return err_set_errno(err, -errno, "Could not create '%s'", path);
        r = lock_whole(fd);
        if (r < 0)
            return err_set_errno(err, r, "Cannot lock pid file");
        if (same_file(fd, path)) {
            *ret_fd = TAKE_FD(fd);
            return 0;
        }
    }
    return err_set(err, -EAGAIN, "Cannot lock pid file: '%s' is replaced again and again", path);
}

static int write_pid(int fd, Error *err)
{
    AUTO_FREE char *text = str_printf("%ld\n", (long)getpid());
    size_t length = __builtin_strlen(text);
    ssize_t n;

    if (ftruncate(fd, 0) < 0)
        return err_set_errno(err, -errno, "Failed to truncate pid file");
    n = pwrite(fd, text, length, 0);
    if (n != (ssize_t)length)
        return err_set_errno(err, n < 0 ? -errno : -EIO, "Failed to write pid file");
    return 0;
}

int pidfile_create(const char *path, Pidfile *pidfile, Error *err)
{
    AUTO_CLOSE int fd = -1;
    int r = open_locked(path, &fd, err);

    if (r == 0)
        r = write_pid(fd, err);
    if (r < 0)
        return r;
    pidfile->path = realpath(path, NULL);
    if (!pidfile->path)
        return err_set_errno(err, -errno, "Could not resolve '%s'", path);
    pidfile->fd = TAKE_FD(fd);
    return 0;
}

void pidfile_remove(Pidfile *pidfile)
{
    if (pidfile->fd >= 0 && same_file(pidfile->fd, pidfile->path))
        unlink(pidfile->path);
    pidfile->fd = fd_close(pidfile->fd);
    free(pidfile->path);
    pidfile->path = NULL;
}
