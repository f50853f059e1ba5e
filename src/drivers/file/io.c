/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading, writing and making durable.
 *
 * How a request reaches the kernel, whatever the option `aio` says:
 * - files in memory (tmpfs, ramfs): a plain call. It copies pages and is done; io_uring would hand it to a
 * kernel thread, because these file systems cannot promise not to wait;
 * - everything else: the loop (io_uring, which completes what is cached at once; or its worker threads).
 * Where the loop has no io_uring, a read first tries whether the page cache has all of it (RWF_NOWAIT), which
 * spares two thread switches.
 */
#include "drivers/file/file-priv.h"

#include "generated/trace.h"

#include <errno.h>
#include <unistd.h>

/* Segments of one system call; a request with more takes several. */
#define IOV_BATCH 64
/* A longer copy would keep the loop's other requests waiting (some 100 us). */
#define PLAIN_BYTES (512 * KIB)

/* The first part of slice as iovecs, in whole blocks unless it is all. */
static size_t to_iov(const Node *node, IoSlice slice, struct iovec *iov, unsigned *ret_count)
{
    size_t bytes;

    *ret_count = io_slice_to_iov(slice, iov, IOV_BATCH, &bytes);
    if (UNLIKELY(bytes < slice.bytes) && node->limits.request_alignment > 1) {
        size_t whole = (size_t)align_down(bytes, node->limits.request_alignment);

        if (whole && whole != bytes)
            *ret_count = io_slice_to_iov(io_slice_part(slice, 0, whole), iov, IOV_BATCH, &bytes);
    }
    return bytes;
}

static ssize_t read_plain(int fd, const struct iovec *iov, unsigned count, uint64_t offset, int flags)
{
    ssize_t n;

    do {
        n = preadv2(fd, iov, (int)count, (off_t)offset, flags);
    } while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

static ssize_t read_some(
    const Node *node, const struct iovec *iov, unsigned count, uint64_t offset, size_t bytes)
{
    FileState *s = node->state;

    if (s->memory && bytes <= PLAIN_BYTES)
        return read_plain(s->fd, iov, count, offset, 0);
    if (!node->direct && !loop_is_io_uring(loop_current()) && !file_lacks(s, LACKS_NOWAIT)) {
        ssize_t n = read_plain(s->fd, iov, count, offset, RWF_NOWAIT);

        if (n > 0)
            return n;
        if (n == -EOPNOTSUPP || n == -ENOSYS || n == -EINVAL)
            file_set_lacks(s, LACKS_NOWAIT);
    }
    return io_preadv(s->fd, iov, count, offset);
}

int file_read(Node *node, uint64_t offset, IoSlice dst)
{
    while (dst.bytes) {
        struct iovec iov[IOV_BATCH];
        unsigned count;
        size_t bytes = to_iov(node, dst, iov, &count);
        ssize_t n = read_some(node, iov, count, offset, bytes);

        if (UNLIKELY(n < 0))
            return (int)n;
        offset += (size_t)n;
        dst = io_slice_part(dst, (size_t)n, dst.bytes - (size_t)n);
        /* Behind the end of the file (sizes are rounded, and another program may have truncated it). With
         * O_DIRECT, the last piece of an odd length ends within a block. */
        if (n == 0 || (dst.bytes && !is_aligned((uint64_t)n, node->limits.request_alignment))) {
            io_slice_fill(dst, 0);
            return 0;
        }
    }
    return 0;
}

static ssize_t write_some(
    FileState *s, const struct iovec *iov, unsigned count, uint64_t offset, size_t bytes, int flags)
{
    ssize_t n;

    if (!s->memory || bytes > PLAIN_BYTES)
        return io_pwritev(s->fd, iov, count, offset, flags);
    do {
        n = pwritev(s->fd, iov, (int)count, (off_t)offset);
    } while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

static int write_all(Node *node, uint64_t offset, IoSlice src, int flags)
{
    while (src.bytes) {
        struct iovec iov[IOV_BATCH];
        unsigned count;
        size_t bytes = to_iov(node, src, iov, &count);
        ssize_t n = write_some(node->state, iov, count, offset, bytes, flags);

        if (UNLIKELY(n <= 0))
            return n < 0 ? (int)n : -ENOSPC;
        offset += (size_t)n;
        src = io_slice_part(src, (size_t)n, src.bytes - (size_t)n);
    }
    return 0;
}

/* The kernel reports an error of writing back once, and may drop the data: no later flush can be believed. */
static int data_lost(Node *node, int r)
{
    FileState *s = node->state;
    int none = 0;

    trace_file_flush_fdatasync_failed(-r);
    if (!node->direct)
        atomic_compare_exchange_strong(&s->lost, &none, r);
    return r;
}

/*
 * A durable write has failed. If a plain write fails as well, nothing was reported about earlier writes; if
 * it succeeds, it was making data durable that failed.
 */
static int after_durable_failure(Node *node, uint64_t offset, IoSlice src, int r)
{
    int plain;

    if (r == -EOPNOTSUPP || r == -EINVAL) {
        plain = write_all(node, offset, src, 0);
        if (plain < 0)
            return plain;
        file_set_lacks(node->state, LACKS_DSYNC);
        return file_flush(node);
    }
    plain = write_all(node, offset, src, 0);
    return plain < 0 ? plain : data_lost(node, r);
}

int file_write(Node *node, uint64_t offset, IoSlice src, unsigned flags)
{
    FileState *s = node->state;
    int r;

    if (LIKELY(!(flags & REQ_FUA)) || s->memory || node->no_flush)
        return write_all(node, offset, src, 0);
    if (atomic_load_explicit(&s->lost, memory_order_relaxed))
        return atomic_load(&s->lost);
    if (file_lacks(s, LACKS_DSYNC)) {
        r = write_all(node, offset, src, 0);
        return r < 0 ? r : file_flush(node);
    }
    r = write_all(node, offset, src, RWF_DSYNC);
    return UNLIKELY(r < 0) ? after_durable_failure(node, offset, src, r) : 0;
}

int file_flush(Node *node)
{
    FileState *s = node->state;
    int r = atomic_load(&s->lost);

    if (r < 0 || s->memory || node->no_flush)
        return r;
    r = io_fsync(s->fd, true);
    if (r == -EINVAL && s->type == S_IFCHR) /* nothing to flush */
        return 0;
    return r < 0 ? data_lost(node, r) : 0;
}
