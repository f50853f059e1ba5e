/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One request of a virtio block driver: taken apart however it is spread over descriptors
 * (virtio 1.2, 2.7.4), checked, and carried out.
 *
 * The driver can change its memory while the request runs. Header and ranges are copied once; the payload of
 * reads and writes goes straight between guest memory and the node, and what it contains is nobody's business
 * here. Memory that has gone makes the system call fail (-EFAULT), which is answered like any other error.
 */
#include "virtio/blk-priv.h"

#include "base/limits.h"
#include "base/mem.h"

#include <errno.h>
#include <string.h>

/* ---- Taking apart ---- */

/* Room for count iovecs that stays while the request runs; NULL: no memory, or too many. */
static struct iovec *iov_storage(BlkRequest *request, BlkIovBuffer **spare, size_t count)
{
    BlkIovBuffer *buffer;

    if (LIKELY(count <= BLK_INLINE_IOV))
        return request->inline_iov;
    if (count > LIMIT_VIRTIO_BLK_SEGMENTS)
        return NULL;
    buffer = *spare;
    if (buffer)
        *spare = buffer->next;
    if (!buffer || buffer->capacity < count) {
        free(buffer);
        buffer = mem_try_zalloc(1, sizeof(*buffer) + count * sizeof(struct iovec));
        if (!buffer)
            return NULL;
        buffer->capacity = count;
    }
    request->iov_buffer = buffer;
    return buffer->iov;
}

/* Keeps `bytes` bytes of the iovecs, from `skip` on, as the payload. */
static int keep_payload(BlkRequest *request, BlkIovBuffer **spare, const struct iovec *iov, unsigned count,
    size_t skip, size_t bytes)
{
    struct iovec *own;

    request->payload = (IoSlice){0};
    if (!bytes)
        return 0;
    while (skip >= iov->iov_len) {
        skip -= iov->iov_len;
        iov++;
        count--;
    }
    own = iov_storage(request, spare, count);
    if (!own)
        return -ENOMEM;
    request->payload = (IoSlice){.iov = own, .skip = skip, .bytes = bytes};
    for (size_t left = skip + bytes; left; own++, iov++) {
        *own = *iov;
        left -= MIN(left, iov->iov_len);
    }
    return 0;
}

/* The last writable byte; there is one. */
static uint8_t *last_byte(const struct iovec *in, unsigned count)
{
    const struct iovec *last = &in[count - 1];

    while (last->iov_len == 0)
        last--;
    return (uint8_t *)last->iov_base + last->iov_len - 1;
}

static VirtioBlkHeader read_header(const struct iovec *out)
{
    uint8_t bytes[VIRTIO_BLK_HEADER_BYTES];

    if (LIKELY(out->iov_len >= sizeof(bytes)))
        memcpy(bytes, out->iov_base, sizeof(bytes));
    else
        io_slice_copy_from((IoSlice){.iov = out, .bytes = sizeof(bytes)}, bytes, sizeof(bytes));
    return virtio_blk_header_decode(bytes);
}

int blk_request_parse(BlkRequest *request, BlkIovBuffer **spare)
{
    const VirtElement *e = &request->element;
    const struct iovec *out = e->iov, *in = e->iov + e->out_count;

    request->iov_buffer = NULL;
    if (UNLIKELY(e->out_bytes < VIRTIO_BLK_HEADER_BYTES || e->in_bytes < 1))
        return -EPROTO;
    request->header = read_header(out);
    request->status = last_byte(in, e->in_count);
    switch (request->header.type) {
    case VIRTIO_BLK_TYPE_IN:
    case VIRTIO_BLK_TYPE_GET_ID:
        return keep_payload(request, spare, in, e->in_count, 0, e->in_bytes - 1);
    default:
        return keep_payload(request, spare, out, e->out_count, VIRTIO_BLK_HEADER_BYTES,
            e->out_bytes - VIRTIO_BLK_HEADER_BYTES);
    }
}

/* ---- Carrying out ---- */

static VirtioBlkStatus status_of(int r)
{
    return LIKELY(r >= 0) ? VIRTIO_BLK_STATUS_OK : VIRTIO_BLK_STATUS_IOERR;
}

static VirtioBlkRules rules_of(const VirtioBlk *blk)
{
    return (VirtioBlkRules){.capacity = atomic_load_explicit(&blk->capacity, memory_order_relaxed),
        .block_bytes = blk->block_bytes,
        .writable = blk->writable};
}

static unsigned write_flags(const VirtioBlk *blk)
{
    return (atomic_load_explicit(&blk->durable, memory_order_relaxed) ? REQ_FUA : 0) |
           (atomic_load_explicit(&blk->outlives, memory_order_relaxed) ? REQ_OUTLIVES : 0);
}

static int read_or_write(const VirtioBlk *blk, uint32_t type, uint64_t offset, IoSlice io)
{
    return type == VIRTIO_BLK_TYPE_IN ? edge_read(blk->edge, offset, io)
                                      : edge_write(blk->edge, offset, io, write_flags(blk));
}

static VirtioBlkStatus serve_io(const VirtioBlk *blk, const BlkRequest *request)
{
    VirtioBlkRules rules = rules_of(blk);
    size_t bytes = request->payload.bytes;
    uint64_t offset;
    VirtioBlkStatus status = virtio_blk_check_io(&rules, &request->header, bytes, &offset);

    if (UNLIKELY(status != VIRTIO_BLK_STATUS_OK || !bytes))
        return status;
    if (LIKELY(bytes <= LIMIT_REQUEST_BYTES))
        return status_of(read_or_write(blk, request->header.type, offset, request->payload));
    for (size_t done = 0; done < bytes && status == VIRTIO_BLK_STATUS_OK;) {
        size_t piece = MIN(bytes - done, (size_t)LIMIT_REQUEST_BYTES);

        status = status_of(read_or_write(
            blk, request->header.type, offset + done, io_slice_part(request->payload, done, piece)));
        done += piece;
    }
    return status;
}

static VirtioBlkStatus serve_get_id(const VirtioBlk *blk, const BlkRequest *request)
{
    io_slice_copy_to(request->payload, blk->serial, MIN(request->payload.bytes, sizeof(blk->serial)));
    return VIRTIO_BLK_STATUS_OK;
}

static int serve_range(const VirtioBlk *blk, uint32_t type, const VirtioBlkRange *range)
{
    if (!range->bytes)
        return 0;
    if (type == VIRTIO_BLK_TYPE_DISCARD)
        return edge_discard(blk->edge, range->offset, range->bytes);
    return edge_write_zeroes(blk->edge, range->offset, range->bytes,
        write_flags(blk) | (range->unmap ? (unsigned)REQ_MAY_UNMAP : 0));
}

/* All ranges are checked before the first one is touched. */
static VirtioBlkStatus serve_ranges(const VirtioBlk *blk, const BlkRequest *request)
{
    uint8_t wire[LIMIT_VIRTIO_BLK_RANGES * VIRTIO_BLK_RANGE_BYTES];
    VirtioBlkRules rules = rules_of(blk);
    size_t bytes = request->payload.bytes;
    VirtioBlkStatus status = VIRTIO_BLK_STATUS_OK;
    VirtioBlkRange range;

    if (!bytes || bytes % VIRTIO_BLK_RANGE_BYTES)
        return VIRTIO_BLK_STATUS_IOERR;
    if (bytes > sizeof(wire))
        return VIRTIO_BLK_STATUS_UNSUPP;
    io_slice_copy_from(request->payload, wire, bytes);
    for (size_t at = 0; at < bytes && status == VIRTIO_BLK_STATUS_OK; at += VIRTIO_BLK_RANGE_BYTES)
        status = virtio_blk_range_decode(&rules, request->header.type, wire + at, &range);
    for (size_t at = 0; at < bytes && status == VIRTIO_BLK_STATUS_OK; at += VIRTIO_BLK_RANGE_BYTES) {
        (void)virtio_blk_range_decode(&rules, request->header.type, wire + at, &range);
        status = status_of(serve_range(blk, request->header.type, &range));
    }
    return status;
}

static VirtioBlkStatus serve(const VirtioBlk *blk, const BlkRequest *request)
{
    switch (request->header.type) {
    case VIRTIO_BLK_TYPE_IN:
    case VIRTIO_BLK_TYPE_OUT:
        return serve_io(blk, request);
    case VIRTIO_BLK_TYPE_FLUSH:
        return status_of(edge_flush(blk->edge));
    case VIRTIO_BLK_TYPE_GET_ID:
        return serve_get_id(blk, request);
    case VIRTIO_BLK_TYPE_DISCARD:
    case VIRTIO_BLK_TYPE_WRITE_ZEROES:
        return serve_ranges(blk, request);
    default:
        return VIRTIO_BLK_STATUS_UNSUPP;
    }
}

/* What a read may have written, also if it failed half way. */
static void log_payload(const VirtioMemory *memory, const IoSlice *payload)
{
    const struct iovec *iov = payload->iov;

    for (size_t left = payload->bytes; left; iov++) {
        size_t bytes = MIN(left, iov->iov_len);

        virtio_memory_written(memory, iov->iov_base, bytes);
        left -= bytes;
    }
}

void blk_request_answer(const VirtioMemory *memory, const BlkRequest *request, VirtioBlkStatus status)
{
    *(volatile uint8_t *)request->status = (uint8_t)status;
    virtio_memory_written(memory, request->status, 1);
}

VirtioBlkStatus blk_request_serve(const VirtioBlk *blk, const VirtioMemory *memory, const BlkRequest *request)
{
    VirtioBlkStatus status = serve(blk, request);

    if (request->header.type == VIRTIO_BLK_TYPE_IN || request->header.type == VIRTIO_BLK_TYPE_GET_ID)
        log_payload(memory, &request->payload);
    blk_request_answer(memory, request, status);
    return status;
}
