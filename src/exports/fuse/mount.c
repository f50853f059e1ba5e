/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Mounting and unmounting; see mount.h. Of libfuse3 only the mounting is used: it knows when the system's
 * set-user-ID helper is needed, and how to talk to it.
 */
#include "exports/fuse/mount.h"

#include "base/mem.h"
#include "base/unmount.h"
#include "loop/loop.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define FUSE_USE_VERSION 31
#include <fuse_lowlevel.h>

#define DEVICE_CLONE _IOR(229, 0, uint32_t)

/* ---- Preparing ---- */

/* The attributes that the kernel remembers would hide that nobody answers any more. */
static int stat_now(const char *path, struct statx *ret_st)
{
    return statx(AT_FDCWD, path, AT_STATX_FORCE_SYNC, STATX_TYPE, ret_st) < 0 ? -errno : 0;
}

/* These may, and nobody need answer. */
static int stat_remembered(const char *path, struct statx *ret_st)
{
    return statx(AT_FDCWD, path, AT_STATX_DONT_SYNC, STATX_TYPE, ret_st) < 0 ? -errno : 0;
}

static dev_t device_of(const struct statx *st)
{
    return makedev(st->stx_dev_major, st->stx_dev_minor);
}

typedef struct PrepareCall {
    const char *path;
    char *real;
    struct statx st;
} PrepareCall;

static int do_prepare(void *arg)
{
    PrepareCall *call = arg;
    int r = stat_now(call->path, &call->st);

    for (unsigned i = 0; r < 0 && i < UNMOUNT_TRIES && unmount_if_dead(call->path, r); i++)
        r = stat_now(call->path, &call->st);
    if (r < 0)
        return r;
    call->real = realpath(call->path, NULL);
    return call->real ? 0 : -errno;
}

int fuse_mount_prepare(const char *path, char **ret_real, dev_t *ret_device, Error *err)
{
    PrepareCall call = {.path = path};
    int r = loop_work(do_prepare, &call);
    AUTO_FREE char *real = call.real;

    if (r < 0)
        return err_set_errno(err, r, "Failed to stat '%s'", path);
    if (!S_ISREG(call.st.stx_mode))
        return err_set(err, -EINVAL, "'%s' is not a regular file", path);
    *ret_real = TAKE(real);
    *ret_device = device_of(&call.st);
    return 0;
}

/* ---- Mounting ---- */

typedef struct MountCall {
    const char *real, *options;
    FuseMount *mount;
    int fd;
} MountCall;

/* One of our own: the library closes its own before it unmounts. */
static int copy_descriptor(FuseMount *mount, int *ret_fd)
{
    AUTO_CLOSE int fd = fcntl(fuse_session_fd(mount), F_DUPFD_CLOEXEC, 0);

    if (fd < 0 || fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) < 0)
        return -errno;
    *ret_fd = TAKE_FD(fd);
    return 0;
}

static int do_mount(void *arg)
{
    static const struct fuse_lowlevel_ops none;
    MountCall *call = arg;
    char *argv[] = {(char *)"", (char *)"-o", (char *)call->options, NULL};
    struct fuse_args args = FUSE_ARGS_INIT(3, argv);
    FuseMount *mount = fuse_session_new(&args, &none, sizeof(none), NULL);
    int r;

    fuse_opt_free_args(&args);
    if (!mount)
        return -EIO;
    r = fuse_session_mount(mount, call->real) < 0 ? -EIO : copy_descriptor(mount, &call->fd);
    if (r < 0) {
        fuse_session_unmount(mount);
        fuse_session_destroy(mount);
        return r;
    }
    call->mount = mount;
    return 0;
}

static int do_unmount(void *arg)
{
    FuseMount *mount = arg;

    fuse_session_unmount(mount);
    fuse_session_destroy(mount);
    return 0;
}

void fuse_mount_detach(FuseMount *take_mount)
{
    if (take_mount)
        (void)loop_work(do_unmount, take_mount);
}

/* As fusermount3 sees it, which would print what it has against it. */
bool fuse_mount_may_allow_other(void)
{
    static const char option[] = "user_allow_other";
    FILE *file = geteuid() == 0 ? NULL : fopen("/etc/fuse.conf", "re");
    bool found = geteuid() == 0;
    char line[256], word[sizeof(option) + 1];

    while (file && !found && fgets(line, sizeof(line), file))
        found = sscanf(line, " %17[^# \t\n]", word) == 1 && str_eq(word, option);
    if (file)
        fclose(file);
    return found;
}

/* What libfuse3 has to say is told with our error, or not at all. */
static void drop_message(enum fuse_log_level level, const char *format, va_list args)
{
}

int fuse_mount_open(const char *real, const char *source, size_t max_read, bool allow_other,
    FuseMount **ret_mount, int *ret_fd, Error *err)
{
    AUTO_FREE char *options = str_printf("default_permissions,max_read=%zu,subtype=granary,fsname=%s%s",
        max_read, source, allow_other ? ",allow_other" : "");
    MountCall call = {.real = real, .options = options, .fd = -1};
    int r;

    fuse_set_log_func(drop_message);
    r = loop_work(do_mount, &call);
    if (r < 0)
        return err_set(err, -EIO, "Failed to mount FUSE session to export");
    *ret_mount = call.mount;
    *ret_fd = call.fd;
    return 0;
}

int fuse_mount_clone(int fd, int *ret_fd)
{
    AUTO_CLOSE int clone = open("/dev/fuse", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    uint32_t original = (uint32_t)fd;

    if (clone < 0 || ioctl(clone, DEVICE_CLONE, &original) < 0)
        return -errno;
    *ret_fd = TAKE_FD(clone);
    return 0;
}

typedef struct DeviceCall {
    const char *path;
    dev_t device;
} DeviceCall;

static int do_stat(void *arg)
{
    DeviceCall *call = arg;
    struct statx st;
    int r = stat_remembered(call->path, &st);

    if (r == 0)
        call->device = device_of(&st);
    return r;
}

int fuse_mount_device(const char *path, dev_t *ret_device)
{
    DeviceCall call = {.path = path};
    int r = loop_work(do_stat, &call);

    if (r == 0)
        *ret_device = call.device;
    return r;
}

/* ---- Ending a connection ---- */

/* The control file system, mounted where nobody sees it: not every system has it in its place. */
static int open_control_root(void)
{
    AUTO_CLOSE int context = fsopen("fusectl", FSOPEN_CLOEXEC);
    int root;

    if (context < 0 || fsconfig(context, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0)
        return -errno;
    root = fsmount(context, FSMOUNT_CLOEXEC, 0);
    return root < 0 ? -errno : root;
}

int fuse_mount_control(dev_t device, int *ret_fd)
{
    AUTO_FREE char *name = str_printf("%u/abort", minor(device));
    AUTO_FREE char *path = str_printf("/sys/fs/fuse/connections/%s", name);
    AUTO_CLOSE int root = -1;
    int fd = open(path, O_WRONLY | O_CLOEXEC);

    if (fd < 0) {
        root = open_control_root();
        if (root < 0)
            return TAKE_FD(root);
        fd = openat(root, name, O_WRONLY | O_CLOEXEC);
    }
    if (fd < 0)
        return -errno;
    *ret_fd = fd;
    return 0;
}

void fuse_mount_abort(int control_fd)
{
    (void)!write(control_fd, "1", 1);
}
