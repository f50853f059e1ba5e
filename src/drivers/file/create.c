/* SPDX-License-Identifier: Apache-2.0 */
/* blockdev-create for the driver file. */
#include "drivers/file/file-priv.h"

#include "base/log.h"
#include "base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* XFS takes extents of this size by default, so that large images do not fall into pieces. */
#define EXTENT_SIZE_HINT_DEFAULT (1 * MIB)

/* Keeps others from using the file while it is made. */
static int lock_new(int fd, FileLocks *held, const char *filename, Error *err)
{
    FileLocks wanted = {.used = PERM_WRITE | PERM_RESIZE, .unshared = PERM_RESIZE};
    int r;

    if (!file_locks_supported(fd))
        return 0;
    r = file_locks_take(fd, held, wanted, err);
    return r < 0 ? r : file_locks_check(fd, wanted, filename, err);
}

/* Only btrfs cares, and only while the file is empty; where it cannot be, the file is made without. */
static void set_nocow(int fd)
{
    int attributes;

    if (ioctl(fd, FS_IOC_GETFLAGS, &attributes) == 0) {
        attributes |= FS_NOCOW_FL;
        ioctl(fd, FS_IOC_SETFLAGS, &attributes);
    }
}

/* Only some file systems (XFS) have it. */
static void set_extent_size_hint(int fd, uint32_t bytes)
{
    struct fsxattr attributes;

    if (ioctl(fd, FS_IOC_FSGETXATTR, &attributes) < 0)
        return;
    attributes.fsx_xflags |= FS_XFLAG_EXTSIZE;
    attributes.fsx_extsize = bytes;
    if (ioctl(fd, FS_IOC_FSSETXATTR, &attributes) < 0 && errno != EOPNOTSUPP && errno != EINVAL)
        log_warn("Failed to set extent size hint: %s", strerror(errno));
}

static int make(int fd, const BlockdevCreateOptionsFile *o, uint64_t hint, Error *err)
{
    FileLocks held = {0};
    int r = lock_new(fd, &held, o->filename, err);

    if (r < 0)
        return r;
    r = file_truncate(fd, 0, PREALLOC_MODE_OFF, err);
    if (r < 0)
        return r;
    if (o->has_nocow && o->nocow)
        set_nocow(fd);
    if (hint)
        set_extent_size_hint(fd, (uint32_t)hint);
    return file_truncate(fd, o->size, o->has_preallocation ? o->preallocation : PREALLOC_MODE_OFF, err);
}

typedef struct MakeCall {
    int fd;
    const BlockdevCreateOptionsFile *options;
    uint64_t hint;
    Error *err;
} MakeCall;

static int do_make(void *arg)
{
    const MakeCall *call = arg;

    return make(call->fd, call->options, call->hint, call->err);
}

int file_create(const BlockdevCreateOptions *options, Error *err)
{
    const BlockdevCreateOptionsFile *o = &options->u.file;
    MakeCall call = {.options = o, .err = err};
    int r;

    call.hint = o->has_extent_size_hint ? o->extent_size_hint : EXTENT_SIZE_HINT_DEFAULT;
    if (call.hint > UINT32_MAX)
        return err_set(err, -EINVAL, "Extent size hint is too large");
    call.fd = file_open_path(o->filename, O_RDWR | O_CREAT | O_NONBLOCK, 0644);
    if (call.fd == -ENOSYS)
        return err_set(err, -ENOSYS, "%s", strerror(ENOSYS));
    if (call.fd < 0)
        return err_set_errno(err, call.fd, "Could not create '%s'", o->filename);
    r = loop_work(do_make, &call);
    fd_close(call.fd);
    return r;
}
