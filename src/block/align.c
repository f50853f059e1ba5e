/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests that a driver cannot take as they are, because its limits demand aligned offsets, lengths or
 * buffers (O_DIRECT, block devices): they go through a bounce buffer; writes of partial blocks read the block
 * first, while no other write to it is in flight.
 */
#include "block/block-priv.h"

#include "base/mem.h"

#include <errno.h>
#include <string.h>

/* Largest piece that is bounced at once, unless a single block is larger. */
#define BOUNCE_BYTES (1 * MIB)

static size_t buffer_alignment(const Node *node)
{
    return MAX(node->limits.memory_alignment, 512U);
}

static size_t bounce_capacity(const Node *node, size_t bytes)
{
    uint32_t align = node->limits.request_alignment;

    return MIN(MAX(BOUNCE_BYTES, (size_t)align), align_up(bytes, align) + align);
}

bool align_fits(const Node *node, uint64_t offset, IoSlice io)
{
    uint32_t align = node->limits.request_alignment;

    return is_aligned(offset, align) && is_aligned(io.bytes, align) &&
           (node->limits.memory_alignment <= 1 || io_slice_is_aligned(io, node->limits.memory_alignment));
}

static int read_block_range(Node *node, uint64_t start, void *buffer, size_t bytes)
{
    struct iovec iov;

    return node_read_aligned(node, start, io_slice_of(&iov, buffer, bytes));
}

int align_read(Node *node, uint64_t offset, IoSlice dst)
{
    uint32_t align = node->limits.request_alignment;
    size_t capacity = bounce_capacity(node, dst.bytes);
    AUTO_FREE uint8_t *buffer = mem_try_aligned(buffer_alignment(node), capacity);
    size_t done = 0;

    if (!buffer)
        return -ENOMEM;
    while (done < dst.bytes) {
        uint64_t at = offset + done, start = align_down(at, align);
        size_t head = (size_t)(at - start), bytes = MIN(dst.bytes - done, capacity - head);
        int r = read_block_range(node, start, buffer, (size_t)align_up(head + bytes, align));

        if (r < 0)
            return r;
        io_slice_copy_to(io_slice_part(dst, done, bytes), buffer + head, bytes);
        done += bytes;
    }
    return 0;
}

/* Fills the blocks at both ends of the padded range [start, start + padded) where the request does not cover
 * them. */
static int read_edges(Node *node, uint64_t start, uint8_t *buffer, size_t padded, size_t head, size_t bytes)
{
    uint32_t align = node->limits.request_alignment;
    size_t tail = padded - head - bytes;
    bool one_block = padded == align;
    int r = 0;

    if (head || (tail && one_block))
        r = read_block_range(node, start, buffer, align);
    if (r == 0 && tail && !one_block)
        r = read_block_range(node, start + padded - align, buffer + padded - align, align);
    return r;
}

/* One piece of at most `capacity` padded bytes. src.bytes 0: zeroes. */
static int bounce_write(Node *node, uint64_t offset, IoSlice src, uint8_t *buffer, unsigned flags)
{
    uint32_t align = node->limits.request_alignment;
    uint64_t start = align_down(offset, align);
    size_t head = (size_t)(offset - start), padded = (size_t)align_up(head + src.bytes, align);
    bool partial = padded != src.bytes;
    Serialised serialised;
    struct iovec iov;
    int r = 0;

    serialise_begin(node, &serialised, start, padded, partial);
    if (partial)
        r = read_edges(node, start, buffer, padded, head, src.bytes);
    if (r == 0) {
        io_slice_copy_from(src, buffer + head, src.bytes);
        r = node_write_aligned(node, start, io_slice_of(&iov, buffer, padded), flags);
    }
    serialise_end(node, &serialised);
    return r;
}

int align_write(Node *node, uint64_t offset, IoSlice src, unsigned flags)
{
    uint32_t align = node->limits.request_alignment;
    size_t capacity = bounce_capacity(node, src.bytes);
    AUTO_FREE uint8_t *buffer = mem_try_aligned(buffer_alignment(node), capacity);
    size_t done = 0;

    if (!buffer)
        return -ENOMEM;
    while (done < src.bytes) {
        size_t head = (size_t)((offset + done) & (align - 1)), bytes = MIN(src.bytes - done, capacity - head);
        int r = bounce_write(node, offset + done, io_slice_part(src, done, bytes), buffer, flags);

        if (r < 0)
            return r;
        done += bytes;
    }
    return 0;
}

/* Less than two blocks, as data. */
static int write_zero_edge(Node *node, uint64_t offset, uint64_t bytes, unsigned flags)
{
    AUTO_FREE struct iovec *iov = NULL;
    size_t count = (size_t)div_round_up(bytes, ZERO_BUFFER_BYTES);

    if (!bytes)
        return 0;
    if (flags & REQ_NO_FALLBACK)
        return -ENOTSUP;
    iov = mem_try_zalloc(count, sizeof(*iov));
    if (!iov)
        return -ENOMEM;
    for (size_t i = 0; i < count; i++)
        iov[i] = (struct iovec){.iov_base = (void *)zero_buffer, .iov_len = ZERO_BUFFER_BYTES};
    return align_write(
        node, offset, (IoSlice){.iov = iov, .bytes = (size_t)bytes}, flags & (REQ_FUA | REQ_OUTLIVES));
}

/* Whole blocks in the middle by the driver's method, partial ones at the ends by writing. */
int align_write_zeroes(Node *node, uint64_t offset, uint64_t bytes, unsigned flags)
{
    uint32_t align = node->limits.request_alignment;
    uint64_t end = offset + bytes, first = align_up(offset, align), last = align_down(end, align);
    int r;

    if (first >= last) /* no whole block */
        return write_zero_edge(node, offset, bytes, flags);
    r = write_zero_edge(node, offset, first - offset, flags);
    if (r == 0) {
        Serialised serialised;

        serialise_begin(node, &serialised, first, last - first, false);
        r = node_write_zeroes_aligned(node, first, last - first, flags);
        serialise_end(node, &serialised);
    }
    return r < 0 ? r : write_zero_edge(node, last, (size_t)(end - last), flags);
}
