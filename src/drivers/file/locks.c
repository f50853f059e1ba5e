/* SPDX-License-Identifier: Apache-2.0 */
/* See locks.h. A lock is always a read lock, so any number of programs hold the same byte; only tests ask for
 * more. */
#include "drivers/file/locks.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#define LOCK_BITS 64

static const char *const permission_words[LOCK_PERMISSIONS] = {
    "consistent read", "write", "write unchanged", "resize"};

/* One byte: type is F_RDLCK or F_UNLCK. */
static int set_lock(int fd, unsigned bit, short type)
{
    struct flock lock = {
        .l_whence = SEEK_SET, .l_start = (off_t)file_lock_byte(bit), .l_len = 1, .l_type = type};
    int r;

    do {
        r = fcntl(fd, F_OFD_SETLK, &lock);
    } while (r < 0 && errno == EINTR);
    return r < 0 ? -errno : 0;
}

/* -EAGAIN if another description holds the byte. */
static int test_lock(int fd, unsigned bit)
{
    struct flock lock = {
        .l_whence = SEEK_SET, .l_start = (off_t)file_lock_byte(bit), .l_len = 1, .l_type = F_WRLCK};

    if (fcntl(fd, F_OFD_GETLK, &lock) < 0)
        return -errno;
    return lock.l_type == F_UNLCK ? 0 : -EAGAIN;
}

bool file_locks_supported(int fd)
{
    int r = test_lock(fd, 0);

    return r == 0 || r == -EAGAIN;
}

static void note(FileLocks *held, unsigned bit, bool on)
{
    unsigned *mask = bit < 32 ? &held->used : &held->unshared;
    unsigned flag = 1U << (bit % 32);

    *mask = on ? *mask | flag : *mask & ~flag;
}

int file_locks_take(int fd, FileLocks *held, FileLocks wanted, Error *err)
{
    uint64_t missing = file_locks_mask(wanted) & ~file_locks_mask(*held);

    for (unsigned bit = 0; bit < LOCK_BITS; bit++) {
        int r;

        if (!(missing >> bit & 1))
            continue;
        r = set_lock(fd, bit, F_RDLCK);
        if (r < 0)
            return err_set_errno(err, r, "Failed to lock byte %d", (int)file_lock_byte(bit));
        note(held, bit, true);
    }
    return 0;
}

void file_locks_drop(int fd, FileLocks *held, FileLocks kept)
{
    uint64_t extra = file_locks_mask(*held) & ~file_locks_mask(kept);

    for (unsigned bit = 0; bit < LOCK_BITS; bit++) {
        if (!(extra >> bit & 1))
            continue;
        /* Cannot fail for a lock that is held; a file system that manages it all the same keeps too much, not
         * too little. */
        set_lock(fd, bit, F_UNLCK);
        note(held, bit, false);
    }
}

static int refuse(int r, const char *kind, unsigned bit, const char *filename, Error *err)
{
    if (r == -EAGAIN)
        err_set(err, r, "Failed to get %s\"%s\" lock", kind, permission_words[bit % 32]);
    else
        err_set_errno(err, r, "Failed to get %s\"%s\" lock", kind, permission_words[bit % 32]);
    err_hint(err, "Is another process using the image [%s]?", filename);
    return r;
}

int file_locks_check(int fd, FileLocks wanted, const char *filename, Error *err)
{
    for (unsigned n = 0; n < LOCK_PERMISSIONS; n++) {
        int r;

        if (!(wanted.used >> n & 1))
            continue;
        r = test_lock(fd, 32 + n);
        if (r < 0)
            return refuse(r, "", n, filename, err);
    }
    for (unsigned n = 0; n < LOCK_PERMISSIONS; n++) {
        int r;

        if (!(wanted.unshared >> n & 1))
            continue;
        r = test_lock(fd, n);
        if (r < 0)
            return refuse(r, "shared ", n, filename, err);
    }
    return 0;
}
