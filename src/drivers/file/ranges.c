/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Holes: finding, making, and zeroing by the best method that there is.
 *
 * A method that the kernel or file system does not have is remembered and not tried again. A method that
 * refuses one range (EINVAL for odd boundaries on some file systems) counts as missing for this request only.
 * Whatever remains is -ENOTSUP, and the graph writes zeroes. Other errors (ENOSPC, EIO) are the request's.
 */
#include "drivers/file/file-priv.h"

#include "generated/trace.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* ---- Status ---- */

/* A uniform piece of the file that starts where it was asked for. */
typedef struct Extent {
    uint64_t end;
    bool data;
} Extent;

/* A stale or mixed pair of limits is harmless: it can only call a hole data. */
static bool cached_extent(FileState *s, uint64_t offset, Extent *ret_extent)
{
    uint64_t start = atomic_load_explicit(&s->data_start, memory_order_relaxed);
    uint64_t end = atomic_load_explicit(&s->data_end, memory_order_relaxed);

    if (offset < start || offset >= end)
        return false;
    *ret_extent = (Extent){.end = end, .data = true};
    return true;
}

static void remember_data(FileState *s, uint64_t start, uint64_t end)
{
    atomic_store_explicit(&s->data_start, start, memory_order_relaxed);
    atomic_store_explicit(&s->data_end, end, memory_order_relaxed);
}

/* Zeroes or a hole were made. */
static void forget_data(FileState *s, uint64_t offset, uint64_t bytes)
{
    if (offset < atomic_load_explicit(&s->data_end, memory_order_relaxed) &&
        offset + bytes > atomic_load_explicit(&s->data_start, memory_order_relaxed))
        atomic_store_explicit(&s->data_end, 0, memory_order_relaxed);
}

/* All is data when the file system cannot tell. */
static Extent find_extent(FileState *s, uint64_t offset, uint64_t node_size)
{
    off_t start = lseek(s->fd, (off_t)offset, SEEK_DATA), end;

    if (start < 0 && errno == ENXIO) /* nothing but a hole up to the end */
        return (Extent){.end = node_size};
    if (start < 0) {
        file_set_lacks(s, LACKS_HOLES);
        return (Extent){.end = node_size, .data = true};
    }
    if ((uint64_t)start > offset)
        return (Extent){.end = (uint64_t)start};
    end = lseek(s->fd, (off_t)offset, SEEK_HOLE);
    if (end <= 0 || (uint64_t)end <= offset) /* changed between the calls, or a broken file system */
        return (Extent){.end = node_size, .data = true};
    remember_data(s, offset, (uint64_t)end);
    return (Extent){.end = (uint64_t)end, .data = true};
}

int file_status(Node *node, uint64_t offset, uint64_t bytes, BlockStatus *ret_status)
{
    FileState *s = node->state;
    Extent extent = {.end = offset + bytes, .data = true};
    uint32_t align = node->limits.request_alignment;
    uint64_t length;

    if (s->type == S_IFREG && !cached_extent(s, offset, &extent) && !file_lacks(s, LACKS_HOLES))
        extent = find_extent(s, offset, node->size);
    length = MIN(bytes, extent.end - offset);
    if (length < bytes && !extent.data) { /* a block that is partly a hole counts as data */
        length = align_down(length, align);
        extent.data = length == 0;
    }
    if (extent.data)
        length = MIN(bytes, align_up(MAX(length, UINT64_C(1)), align));
    *ret_status = (BlockStatus){
        .bytes = length,
        .flags = BLOCK_STATUS_OFFSET | BLOCK_STATUS_ALLOCATED |
                 (extent.data ? BLOCK_STATUS_DATA : BLOCK_STATUS_ZERO),
        .map_offset = offset,
        .map_node = node,
    };
    return 0;
}

/* ---- Methods ---- */

static bool is_missing(int r)
{
    return r == -EOPNOTSUPP || r == -ENOSYS || r == -ENODEV || r == -ENOTTY;
}

/* Remembers what is missing; makes -ENOTSUP of all that says "not this way". */
static int method_result(FileState *s, FileLacks method, int r)
{
    if (is_missing(r)) {
        trace_file_method_missing(s->fd, method);
        file_set_lacks(s, method);
    }
    return is_missing(r) || r == -EINVAL ? -ENOTSUP : r;
}

static int try_fallocate(FileState *s, FileLacks method, int mode, uint64_t offset, uint64_t bytes)
{
    int r;

    if (file_lacks(s, method))
        return -ENOTSUP;
    r = io_fallocate(s->fd, mode, offset, bytes);
    return method_result(s, method, r);
}

static int punch(FileState *s, uint64_t offset, uint64_t bytes)
{
    return try_fallocate(s, LACKS_PUNCH, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, bytes);
}

typedef struct RangeIoctl {
    int fd;
    unsigned long request;
    uint64_t range[2];
} RangeIoctl;

static int do_range_ioctl(void *arg)
{
    RangeIoctl *call = arg;

    return ioctl(call->fd, call->request, call->range) < 0 ? -errno : 0;
}

static int try_ioctl(FileState *s, FileLacks method, unsigned long request, uint64_t offset, uint64_t bytes)
{
    RangeIoctl call = {.fd = s->fd, .request = request, .range = {offset, bytes}};
    int r;

    if (file_lacks(s, method))
        return -ENOTSUP;
    do {
        r = loop_work(do_range_ioctl, &call);
    } while (r == -EINTR);
    return method_result(s, method, r);
}

/* ---- Zeroing ---- */

static int zero_device(FileState *s, uint64_t offset, uint64_t bytes, unsigned flags)
{
    /* The kernel zeroes a device by punching only where the device does it itself, never by writing. */
    int r = flags & REQ_MAY_UNMAP ? punch(s, offset, bytes) : -ENOTSUP;

    if (r != -ENOTSUP || (flags & REQ_NO_FALLBACK))
        return r;
    return try_ioctl(s, LACKS_ZERO_IOCTL, BLKZEROOUT, offset, bytes);
}

static int zero_file(FileState *s, uint64_t offset, uint64_t bytes, unsigned flags)
{
    int r = flags & REQ_MAY_UNMAP ? punch(s, offset, bytes) : -ENOTSUP;

    if (r != -ENOTSUP)
        return r;
    r = try_fallocate(s, LACKS_ZERO_RANGE, FALLOC_FL_ZERO_RANGE, offset, bytes);
    if (r != -ENOTSUP)
        return r;
    /* The space shall stay reserved: a hole, filled with allocated blocks again. */
    if (file_lacks(s, LACKS_ALLOCATE))
        return -ENOTSUP;
    r = punch(s, offset, bytes);
    return r < 0 ? r : try_fallocate(s, LACKS_ALLOCATE, 0, offset, bytes);
}

int file_write_zeroes(Node *node, uint64_t offset, uint64_t bytes, unsigned flags)
{
    FileState *s = node->state;
    int r = s->type == S_IFREG   ? zero_file(s, offset, bytes, flags)
            : s->type == S_IFBLK ? zero_device(s, offset, bytes, flags)
                                 : -ENOTSUP;

    forget_data(s, offset, bytes);
    return r;
}

/* ---- Discarding ---- */

int file_discard(Node *node, uint64_t offset, uint64_t bytes)
{
    FileState *s = node->state;
    int r = s->type == S_IFREG   ? punch(s, offset, bytes)
            : s->type == S_IFBLK ? try_ioctl(s, LACKS_DISCARD_IOCTL, BLKDISCARD, offset, bytes)
                                 : -ENOTSUP;

    forget_data(s, offset, bytes);
    if (r < 0) {
        atomic_fetch_add_explicit(&s->discards_failed, 1, memory_order_relaxed);
        return r;
    }
    atomic_fetch_add_explicit(&s->discards_ok, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&s->discard_bytes, bytes, memory_order_relaxed);
    return 0;
}
