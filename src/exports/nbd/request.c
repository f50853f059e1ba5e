/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One request, from the moment that all of it was received to the reply in the sender's queue.
 *
 * Reads of a client with structured replies report holes as the status of the range has them. Asking costs
 * more than it saves for short reads, so these are answered with the data only, which the protocol leaves to
 * the server.
 */
#include "exports/nbd/transmission-priv.h"

#include "base/limits.h"
#include "base/mem.h"
#include "generated/trace.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#define HOLES_MIN_BYTES ((uint64_t)64 * 1024)
/* A cache request reads through a buffer of this size. */
#define CACHE_STEP_BYTES ((uint64_t)256 * 1024)

/* ---- Life ---- */

Request *request_new(Transmission *t, const NbdRequest *wire, size_t cost)
{
    List *link = list_pop(&t->idle_requests);
    Request *request = link ? LIST_ENTRY(link, Request, link) : mem_new(Request);

    request->transmission = t;
    request->wire = *wire;
    request->cost = cost;
    request->payload = (IoSlice){0};
    request->payload_iov[0].iov_base = NULL;
    t->active++;
    t->active_bytes += cost;
    return request;
}

void request_release(Request *request)
{
    Transmission *t = request->transmission;

    if (request->payload.bytes) {
        rx_unref(t, TAKE(request->payload_rx[0]));
        rx_unref(t, TAKE(request->payload_rx[1]));
    }
    if (request->buffer)
        buffer_free(t->pool, TAKE(request->buffer), request->buffer_bytes);
    if (request->pieces)
        buffer_free(t->pool, TAKE(request->pieces), request->pieces_bytes);
    t->active--;
    t->active_bytes -= request->cost;
    list_prepend(&t->idle_requests, &request->link);
    if (t->throttled)
        co_wake(TAKE(t->throttled), 0);
}

bool request_alloc_buffer(Request *request, size_t bytes)
{
    request->buffer = buffer_alloc(request->transmission->pool, bytes);
    request->buffer_bytes = bytes;
    return request->buffer;
}

/* Extents in the reply to a block status request, for each context. */
static unsigned max_extents(const NbdRequest *wire, NbdContexts contexts)
{
    unsigned count = (unsigned)__builtin_popcountll(contexts);

    if (wire->flags & NBD_CMD_FLAG_REQ_ONE)
        return 1;
    return count > 2 ? LIMIT_NBD_STATUS_EXTENTS / count : LIMIT_NBD_EXTENTS;
}

static size_t extents_bytes(const NbdRequest *wire, NbdContexts contexts)
{
    size_t context_bytes = NBD_STATUS_CHUNK_BYTES + (size_t)max_extents(wire, contexts) * NBD_EXTENT_BYTES;

    return (unsigned)__builtin_popcountll(contexts) * context_bytes;
}

size_t request_cost(const NbdRequest *wire, const NbdRequestRules *rules)
{
    switch (wire->type) {
    case NBD_CMD_READ:
    case NBD_CMD_WRITE:
        return (size_t)MIN(wire->bytes, rules->max_bytes);
    case NBD_CMD_CACHE:
        return CACHE_STEP_BYTES;
    case NBD_CMD_BLOCK_STATUS:
        return extents_bytes(wire, rules->contexts);
    default:
        return 0;
    }
}

/* ---- Replies ---- */

static void reply_header_only(Request *request, size_t bytes)
{
    request->own_iov[0] = (struct iovec){request->header, bytes};
    request->reply_iov = request->own_iov;
    request->reply_count = 1;
    request->reply_bytes = bytes;
    send_queue(request);
}

static void reply_ok(Request *request)
{
    const NbdRequest *wire = &request->wire;
    NbdMode mode = request->transmission->rules.mode;

    if (mode == NBD_MODE_EXTENDED || (mode == NBD_MODE_STRUCTURED && wire->type == NBD_CMD_READ))
        reply_header_only(request, nbd_chunk_encode(request->header, mode, NBD_CHUNK_FLAG_DONE,
                                       NBD_CHUNK_NONE, wire->cookie, wire->offset, 0));
    else
        reply_header_only(request, nbd_simple_reply_encode(request->header, NBD_OK, wire->cookie));
}

void request_refuse(Request *request, uint32_t error, const char *text)
{
    NbdMode mode = request->transmission->rules.mode;

    trace_nbd_refused(request->transmission->options.fd, request->wire.cookie, error, text);
    size_t bytes = mode == NBD_MODE_SIMPLE
                       ? nbd_simple_reply_encode(request->header, error, request->wire.cookie)
                       : nbd_error_chunk_encode(request->header, &request->wire, mode, error, text);

    reply_header_only(request, bytes);
}

static void reply_failed(Request *request, int error, const char *text)
{
    request_refuse(request, nbd_error_from_errno(error), text);
}

static void reply_result(Request *request, int r, const char *text)
{
    if (r < 0)
        reply_failed(request, r, text);
    else
        reply_ok(request);
}

/* ---- Reading ---- */

/* All of the buffer in one piece. */
static void reply_data(Request *request)
{
    const NbdRequest *wire = &request->wire;
    NbdMode mode = request->transmission->rules.mode;
    size_t header = mode == NBD_MODE_SIMPLE ? nbd_simple_reply_encode(request->header, NBD_OK, wire->cookie)
                                            : nbd_data_chunk_encode(request->header, wire, mode,
                                                  NBD_CHUNK_FLAG_DONE, wire->offset, wire->bytes);

    request->own_iov[0] = (struct iovec){request->header, header};
    request->own_iov[1] = (struct iovec){request->buffer, (size_t)wire->bytes};
    request->reply_iov = request->own_iov;
    request->reply_count = 2;
    request->reply_bytes = header + (size_t)wire->bytes;
    send_queue(request);
}

static int read_piece(Request *request, uint64_t at, uint64_t bytes)
{
    struct iovec iov;
    IoSlice slice = io_slice_of(&iov, (uint8_t *)request->buffer + at, (size_t)bytes);

    return edge_read(request->transmission->options.edge, request->wire.offset + at, slice);
}

/* A reply that grows piece by piece; lies in request->pieces. */
typedef struct Pieces {
    struct iovec iov[LIMIT_NBD_READ_CHUNKS * 2];
    uint8_t headers[LIMIT_NBD_READ_CHUNKS][NBD_HOLE_CHUNK_BYTES];
    unsigned count, iov_count;
    uint64_t done; /* bytes of the request that the pieces cover */
} Pieces;

static void add_piece(Request *request, Pieces *pieces, uint64_t bytes, bool hole)
{
    uint64_t offset = request->wire.offset + pieces->done;
    bool last = pieces->done + bytes == request->wire.bytes;
    uint16_t flags = last ? NBD_CHUNK_FLAG_DONE : 0;
    NbdMode mode = request->transmission->rules.mode;
    uint8_t *header = pieces->headers[pieces->count++];
    size_t header_bytes =
        hole ? nbd_hole_chunk_encode(header, &request->wire, mode, flags, offset, (uint32_t)bytes)
             : nbd_data_chunk_encode(header, &request->wire, mode, flags, offset, bytes);

    pieces->iov[pieces->iov_count++] = (struct iovec){header, header_bytes};
    request->reply_bytes += header_bytes;
    if (!hole) {
        pieces->iov[pieces->iov_count++] =
            (struct iovec){(uint8_t *)request->buffer + pieces->done, (size_t)bytes};
        request->reply_bytes += (size_t)bytes;
    }
    pieces->done += bytes;
}

/* How far from `at` all is alike, and whether it reads as zeroes. */
static int find_piece(Request *request, uint64_t at, uint64_t *ret_bytes, bool *ret_hole)
{
    uint64_t done = 0, left = request->wire.bytes - at;
    Edge *edge = request->transmission->options.edge;
    bool hole = false;

    while (done < left) {
        BlockStatus status;
        int r = edge_status_above(edge, request->wire.offset + at + done, left - done, &status);

        if (r < 0)
            return r;
        if (done && hole != !!(status.flags & BLOCK_STATUS_ZERO))
            break;
        hole = status.flags & BLOCK_STATUS_ZERO;
        done += status.bytes ? MIN(status.bytes, left - done) : left - done;
    }
    *ret_bytes = done;
    *ret_hole = hole;
    return 0;
}

static void reply_holes_failed(Request *request, int r)
{
    char text[NBD_ERROR_TEXT_BYTES];

    snprintf(text, sizeof(text), "unable to check for holes: %s", strerror(-r));
    reply_failed(request, r, text);
}

/* bytes, hole: the first piece, which does not cover the whole request. */
static void read_pieces(Request *request, uint64_t bytes, bool hole)
{
    Pieces *pieces = buffer_alloc(request->transmission->pool, sizeof(Pieces));
    int r = 0;

    if (!pieces) {
        reply_failed(request, -ENOMEM, "No memory");
        return;
    }
    request->pieces = pieces;
    request->pieces_bytes = sizeof(Pieces);
    request->reply_bytes = 0;
    pieces->count = pieces->iov_count = 0;
    pieces->done = 0;
    for (;;) {
        if (!hole)
            r = read_piece(request, pieces->done, bytes);
        if (r < 0) {
            reply_failed(request, r, "reading from file failed");
            return;
        }
        add_piece(request, pieces, bytes, hole);
        if (pieces->done == request->wire.bytes)
            break;
        if (pieces->count == LIMIT_NBD_READ_CHUNKS - 1) {
            bytes = request->wire.bytes - pieces->done;
            hole = false;
            continue;
        }
        r = find_piece(request, pieces->done, &bytes, &hole);
        if (r < 0) {
            reply_holes_failed(request, r);
            return;
        }
    }
    request->reply_iov = pieces->iov;
    request->reply_count = pieces->iov_count;
    send_queue(request);
}

static void read_sparse(Request *request)
{
    const NbdRequest *wire = &request->wire;
    uint64_t bytes;
    bool hole;
    int r = find_piece(request, 0, &bytes, &hole);

    if (r < 0) {
        reply_holes_failed(request, r);
    } else if (bytes < wire->bytes) {
        read_pieces(request, bytes, hole);
    } else if (hole) {
        reply_header_only(
            request, nbd_hole_chunk_encode(request->header, wire, request->transmission->rules.mode,
                         NBD_CHUNK_FLAG_DONE, wire->offset, (uint32_t)wire->bytes));
    } else {
        r = read_piece(request, 0, bytes);
        if (r < 0)
            reply_failed(request, r, "reading from file failed");
        else
            reply_data(request);
    }
}

static void handle_read(Request *request)
{
    const Transmission *t = request->transmission;
    const NbdRequest *wire = &request->wire;
    int r;

    if (wire->flags & NBD_CMD_FLAG_FUA) {
        r = edge_flush(t->options.edge);
        if (r < 0) {
            reply_failed(request, r, "flush failed");
            return;
        }
    }
    if (!wire->bytes) {
        reply_ok(request);
        return;
    }
    if (!request_alloc_buffer(request, (size_t)wire->bytes)) {
        reply_failed(request, -ENOMEM, "No memory");
        return;
    }
    if (t->rules.mode != NBD_MODE_SIMPLE && !(wire->flags & NBD_CMD_FLAG_DF) &&
        wire->bytes >= HOLES_MIN_BYTES) {
        read_sparse(request);
        return;
    }
    r = read_piece(request, 0, wire->bytes);
    if (r < 0)
        reply_failed(request, r, "reading from file failed");
    else
        reply_data(request);
}

/* ---- Block status ---- */

/* Extents of one context, as they are collected. */
typedef struct Extents {
    uint8_t *out;
    size_t out_bytes;
    NbdMode mode;
    uint32_t count, max;
    uint64_t bytes, flags; /* the last one, which may still grow; none if bytes is 0 */
} Extents;

static void extents_finish_last(Extents *extents)
{
    if (!extents->bytes)
        return;
    extents->out_bytes +=
        nbd_extent_encode(extents->out + extents->out_bytes, extents->mode, extents->bytes, extents->flags);
    extents->count++;
    extents->bytes = 0;
}

/* False if there is no room for another one. */
static bool extents_add(Extents *extents, uint64_t bytes, uint64_t flags)
{
    if (extents->bytes && extents->flags == flags) {
        extents->bytes += bytes;
        return true;
    }
    extents_finish_last(extents);
    if (extents->count == extents->max)
        return false;
    extents->bytes = bytes;
    extents->flags = flags;
    return true;
}

static uint64_t context_flags(unsigned context, const BlockStatus *status)
{
    if (context == NBD_CONTEXT_DEPTH)
        return status->depth;
    return (status->flags & BLOCK_STATUS_DATA ? 0 : NBD_STATE_HOLE) |
           (status->flags & BLOCK_STATUS_ZERO ? NBD_STATE_ZERO : 0);
}

static int collect_status(Request *request, unsigned context, Extents *extents)
{
    uint64_t at = 0, left = request->wire.bytes;

    while (left) {
        BlockStatus status;
        uint64_t bytes;
        int r =
            edge_status_above(request->transmission->options.edge, request->wire.offset + at, left, &status);

        if (r < 0)
            return r;
        bytes = status.bytes ? MIN(status.bytes, left) : left;
        if (!extents_add(extents, bytes, context_flags(context, &status)))
            return 0;
        at += bytes;
        left -= bytes;
    }
    extents_finish_last(extents);
    return 0;
}

static void collect_dirty(const Request *request, const DirtyBitmap *bitmap, Extents *extents)
{
    uint64_t at = request->wire.offset, end = at + request->wire.bytes;

    while (at < end) {
        uint64_t dirty = end, bytes = 0;

        (void)dirty_bitmap_next_dirty(bitmap, at, end, &dirty, &bytes);
        if (dirty > at && !extents_add(extents, dirty - at, 0))
            return;
        if (bytes && !extents_add(extents, bytes, NBD_STATE_DIRTY))
            return;
        at = dirty + bytes;
    }
    extents_finish_last(extents);
}

/* A chunk for one context: a header and the extents behind it. */
static int add_context(Request *request, unsigned context, uint8_t *out, bool last, size_t *ret_bytes)
{
    const TransmissionOptions *options = &request->transmission->options;
    uint16_t flags = last ? NBD_CHUNK_FLAG_DONE : 0;
    Extents extents = {.mode = options->mode, .max = max_extents(&request->wire, request->contexts)};
    size_t header_bytes = nbd_status_chunk_encode(out, &request->wire, options->mode, flags, context, 0);
    int r = 0;

    extents.out = out + header_bytes;
    if (context < NBD_CONTEXT_BITMAPS)
        r = collect_status(request, context, &extents);
    else
        collect_dirty(request, options->bitmaps[context - NBD_CONTEXT_BITMAPS], &extents);
    if (r < 0)
        return r;
    nbd_status_chunk_encode(out, &request->wire, options->mode, flags, context, extents.count);
    *ret_bytes = header_bytes + extents.out_bytes;
    return 0;
}

static void reply_status(Request *request)
{
    uint8_t *out = request->buffer;
    NbdContexts left = request->contexts;

    while (left) {
        unsigned context = (unsigned)__builtin_ctzll(left);
        size_t bytes;
        int r;

        left &= left - 1;
        r = add_context(request, context, out, !left, &bytes);
        if (r < 0) {
            reply_failed(request, r, "can't get block status");
            return;
        }
        out += bytes;
    }
    request->reply_bytes = (size_t)(out - (uint8_t *)request->buffer);
    request->own_iov[0] = (struct iovec){request->buffer, request->reply_bytes};
    request->reply_iov = request->own_iov;
    request->reply_count = 1;
    send_queue(request);
}

static void handle_block_status(Request *request)
{
    if (!request->contexts)
        request_refuse(request, NBD_EINVAL, "CMD_BLOCK_STATUS payload not valid");
    else if (!request->wire.bytes)
        request_refuse(request, NBD_EINVAL, "need non-zero length");
    else if (!request_alloc_buffer(request, extents_bytes(&request->wire, request->contexts)))
        reply_failed(request, -ENOMEM, "No memory");
    else
        reply_status(request);
}

/* ---- The others ---- */

static unsigned write_flags(const Request *request)
{
    bool fua = request->wire.flags & NBD_CMD_FLAG_FUA || request->transmission->options.writethrough;

    return fua ? REQ_FUA : 0;
}

static void handle_write(Request *request)
{
    int r = 0;

    if (request->wire.bytes)
        r = edge_write(request->transmission->options.edge, request->wire.offset, request->payload,
            write_flags(request));
    reply_result(request, r, "writing to file failed");
}

static void handle_write_zeroes(Request *request)
{
    unsigned flags = write_flags(request);
    int r = 0;

    if (!(request->wire.flags & NBD_CMD_FLAG_NO_HOLE))
        flags |= REQ_MAY_UNMAP;
    if (request->wire.flags & NBD_CMD_FLAG_FAST_ZERO)
        flags |= REQ_NO_FALLBACK;
    if (request->wire.bytes)
        r = edge_write_zeroes(
            request->transmission->options.edge, request->wire.offset, request->wire.bytes, flags);
    reply_result(request, r, "writing to file failed");
}

static void handle_trim(Request *request)
{
    Edge *edge = request->transmission->options.edge;
    int r = 0;

    if (request->wire.bytes)
        r = edge_discard(edge, request->wire.offset, request->wire.bytes);
    if (r >= 0 && request->wire.flags & NBD_CMD_FLAG_FUA)
        r = edge_flush(edge);
    reply_result(request, r, "discard failed");
}

/* Brings the range into the host's cache by reading it. */
static int cache_range(Request *request)
{
    uint64_t step = MIN(request->wire.bytes, CACHE_STEP_BYTES);

    if (!step)
        return 0;
    if (!request_alloc_buffer(request, (size_t)step))
        return -ENOMEM;
    for (uint64_t at = 0; at < request->wire.bytes; at += step) {
        struct iovec iov;
        uint64_t bytes = MIN(step, request->wire.bytes - at);
        IoSlice slice = io_slice_of(&iov, request->buffer, (size_t)bytes);
        int r = edge_read(request->transmission->options.edge, request->wire.offset + at, slice);

        if (r < 0)
            return r;
    }
    return 0;
}

static void request_main(void *arg)
{
    Request *request = arg;
    const NbdRequest *wire = &request->wire;

    trace_nbd_request(request->transmission->options.fd, wire->cookie, nbd_command_name(wire->type),
        wire->flags, wire->offset, wire->bytes);
    switch (wire->type) {
    case NBD_CMD_READ:
        handle_read(request);
        break;
    case NBD_CMD_WRITE:
        handle_write(request);
        break;
    case NBD_CMD_FLUSH:
        reply_result(request, edge_flush(request->transmission->options.edge), "flush failed");
        break;
    case NBD_CMD_TRIM:
        handle_trim(request);
        break;
    case NBD_CMD_CACHE:
        reply_result(request, cache_range(request), "caching data failed");
        break;
    case NBD_CMD_WRITE_ZEROES:
        handle_write_zeroes(request);
        break;
    default: /* nbd_request_check() lets nothing else pass */
        handle_block_status(request);
        break;
    }
}

void request_start(Request *request)
{
    co_start(&request->transmission->requests, "nbd-request", request_main, request);
}
