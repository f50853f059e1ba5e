/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who may do what with the file: image locks, and opening for writing only while someone writes
 * (auto-read-only).
 *
 * A change of permissions goes check - commit or check - abort; within one change, check may come several
 * times with different wishes, of which the last counts. During a change more locks are held than needed, so
 * that no other program can slip in between.
 */
#include "drivers/file/file-priv.h"

#include "base/mem.h"
#include "base/unmount.h"
#include "generated/trace.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#define LOCK_GRACE_NS UINT64_C(200000000)
#define LOCK_RETRY_NS UINT64_C(5000000)

int file_open_path(const char *filename, int flags, mode_t mode)
{
    unsigned tries = 0;
    int fd;

    if (str_starts(filename, "/dev/fdset/")) /* sets of descriptors exist only in the emulator */
        return -ENOSYS;
    do { /* the file may lie below what a daemon that exported it over its own name has left behind */
        fd = open(filename, flags | O_CLOEXEC | O_NOCTTY, mode);
    } while (fd < 0 && (errno == EINTR || (tries++ < UNMOUNT_TRIES && unmount_if_dead(filename, -errno))));
    return fd < 0 ? -errno : fd;
}

/* The same inode with other flags, whatever has happened to its name meanwhile. */
static int open_again(const Node *node, int flags)
{
    FileState *s = node->state;
    AUTO_FREE char *path = str_printf("/proc/self/fd/%d", s->fd);
    AUTO_CLOSE int fd = file_open_path(path, flags, 0);
    struct stat old, new;

    if (fd == -ENOENT || fd == -ENOTDIR) { /* no /proc here */
        fd = file_open_path(node->filename, flags, 0);
        if (fd >= 0 && (fstat(s->fd, &old) < 0 || fstat(fd, &new) < 0 || old.st_dev != new.st_dev ||
                           old.st_ino != new.st_ino))
            return -ESTALE;
    }
    if (fd < 0) {
        int r = fd;

        fd = -1;
        return r;
    }
    return TAKE_FD(fd);
}

static int failed_to_open(const Node *node, int r, Error *err)
{
    FileState *s = node->state;

    if (r == -EINVAL && node->direct && !s->direct)
        return err_set(
            err, -EINVAL, "Could not open '%s': filesystem does not support O_DIRECT", node->filename);
    return err_set_errno(err, r == -EROFS ? -EACCES : r, "Could not open '%s'", node->filename);
}

static int prepare_reopen(Node *node, bool writes, Error *err)
{
    FileState *s = node->state;
    bool writable = !node->read_only && (writes || !node->auto_read_only);
    int fd;

    s->next_fd = fd_close(s->next_fd);
    s->next_held = (FileLocks){0};
    if (writable == s->writable && node->direct == s->direct)
        return 0;
    fd = open_again(node, (writable ? O_RDWR : O_RDONLY) | (node->direct ? O_DIRECT : 0));
    if (fd < 0 && !writable && node->direct == s->direct) /* keeps more than it needs */
        return 0;
    if (fd < 0)
        return failed_to_open(node, fd, err);
    s->next_fd = fd;
    s->next_writable = writable;
    s->next_direct = node->direct;
    trace_file_reopen(node->filename, writable ? "writing" : "reading");
    return node->direct == s->direct ? 0 : file_probe_limits(node, fd, &s->next_limits, err);
}

/*
 * After a SIGKILL the kernel may still be finishing what the dead daemon had submitted, and hold its locks
 * until then: a new daemon waits that out before it calls the image busy.
 */
static int check_locks(Node *node, int fd, FileLocks wanted, Error *err)
{
    uint64_t end_ns = clock_monotonic_ns() + LOCK_GRACE_NS;
    int r;

    co_shield_begin();
    while (
        (r = file_locks_check(fd, wanted, node->filename, err)) == -EAGAIN && clock_monotonic_ns() < end_ns) {
        err_done(err);
        r = co_sleep_ns(LOCK_RETRY_NS);
    }
    co_shield_end();
    return r;
}

static int prepare_locks(Node *node, FileLocks wanted, Error *err)
{
    FileState *s = node->state;
    bool more = (file_locks_mask(wanted) & ~file_locks_mask(s->granted)) != 0;
    int r;

    if (!s->use_locks)
        return 0;
    if (more) {
        r = file_locks_take(s->fd, &s->held, wanted, err);
        if (r == 0)
            r = check_locks(node, s->fd, wanted, err);
        if (r < 0)
            return r;
    }
    return s->next_fd < 0 ? 0 : file_locks_take(s->next_fd, &s->next_held, wanted, err);
}

static FileLocks locks_for(unsigned perm, unsigned shared)
{
    return (FileLocks){.used = perm & PERM_ALL, .unshared = ~shared & PERM_ALL};
}

int file_permissions_check(Node *node, unsigned perm, unsigned shared, Error *err)
{
    bool writes = perm & (PERM_WRITE | PERM_WRITE_UNCHANGED | PERM_RESIZE);
    FileState *s = node->state;
    int r = prepare_reopen(node, writes, err);

    s->wanted = locks_for(perm, shared);
    if (r == 0)
        r = prepare_locks(node, s->wanted, err);
    if (r < 0)
        file_permissions_abort(node);
    return r;
}

void file_permissions_commit(Node *node, unsigned perm, unsigned shared)
{
    FileState *s = node->state;

    if (s->next_fd >= 0) {
        dup3(s->next_fd, s->fd, O_CLOEXEC); /* cannot fail: both are open */
        s->next_fd = fd_close(s->next_fd);
        s->held = s->next_held;
        s->writable = s->next_writable;
        if (s->direct != s->next_direct) /* at rest: requests keep to the limits that they began with */
            node->limits = s->next_limits;
        s->direct = s->next_direct;
    }
    s->granted = s->wanted;
    if (s->use_locks)
        file_locks_drop(s->fd, &s->held, s->granted);
}

void file_permissions_abort(Node *node)
{
    FileState *s = node->state;

    s->next_fd = fd_close(s->next_fd);
    if (s->use_locks)
        file_locks_drop(s->fd, &s->held, s->granted);
}
