/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The receiver: fills large buffers from the socket and cuts requests out of them. The payload of a write
 * stays where it was received: in one piece if it fits behind its header, else its end is received into the
 * next buffer, or, if it is large, into a buffer of its own.
 *
 * Functions that wait for bytes return 1 when they are there, 0 when the peer is gone, or -errno.
 */
#include "exports/nbd/transmission-priv.h"

#include "base/limits.h"
#include "base/mem.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define IDLE_RX_MAX 4

/* ---- Receive buffers ---- */

static RxBuffer *rx_get(Transmission *t)
{
    RxBuffer *rx = t->idle_rx;

    if (rx) {
        t->idle_rx = rx->next;
        t->idle_rx_count--;
    } else {
        rx = mem_new(RxBuffer);
        rx->data = buffer_alloc(t->pool, RX_BYTES);
        if (!rx->data) {
            free(rx);
            return NULL;
        }
    }
    rx->refs = 1;
    rx->filled = 0;
    return rx;
}

static void rx_free(Transmission *t, RxBuffer *rx)
{
    buffer_free(t->pool, rx->data, RX_BYTES);
    free(rx);
}

void rx_unref(Transmission *t, RxBuffer *rx)
{
    if (!rx || --rx->refs)
        return;
    if (t->idle_rx_count == IDLE_RX_MAX) {
        rx_free(t, rx);
        return;
    }
    rx->next = t->idle_rx;
    t->idle_rx = rx;
    t->idle_rx_count++;
}

void rx_free_idle(Transmission *t)
{
    while (t->idle_rx) {
        RxBuffer *rx = t->idle_rx;

        t->idle_rx = rx->next;
        rx_free(t, rx);
    }
    t->idle_rx_count = 0;
}

static size_t rx_available(const Transmission *t)
{
    return t->rx->filled - t->rx_at;
}

/* Goes on in another buffer, with the unconsumed bytes (few) at its start. */
static int rx_switch(Transmission *t)
{
    size_t tail = rx_available(t);
    RxBuffer *rx = rx_get(t);

    if (!rx)
        return -ENOMEM;
    memcpy(rx->data, t->rx->data + t->rx_at, tail);
    rx->filled = tail;
    rx_unref(t, t->rx);
    t->rx = rx;
    t->rx_at = 0;
    return 0;
}

/*
 * Between two requests: makes room for a good load of further ones. A buffer that no request uses starts
 * again at its beginning, which keeps it in the cache.
 */
static int rx_make_room(Transmission *t)
{
    if (t->rx->refs > 1)
        return t->rx->filled > RX_BYTES / 2 ? rx_switch(t) : 0;
    if (t->rx_at == 0)
        return 0;
    memmove(t->rx->data, t->rx->data + t->rx_at, rx_available(t));
    t->rx->filled = rx_available(t);
    t->rx_at = 0;
    return 0;
}

/* Receives what there is behind what was received already. */
static int rx_fill(Transmission *t)
{
    ssize_t n = io_recv(t->options.fd, t->rx->data + t->rx->filled, RX_BYTES - t->rx->filled);

    if (n <= 0)
        return (int)n;
    t->rx->filled += (size_t)n;
    return 1;
}

/* ---- Payload ---- */

static void add_segment(Request *request, RxBuffer *rx, void *data, size_t bytes)
{
    unsigned i = request->payload_iov[0].iov_base ? 1 : 0;

    if (rx) {
        rx->refs++;
        request->payload_rx[i] = rx;
    }
    request->payload_iov[i] = (struct iovec){data, bytes};
    request->payload.iov = request->payload_iov;
    request->payload.bytes += bytes;
}

/* The next bytes in the buffer become part of the payload. */
static void take_segment(Transmission *t, Request *request, size_t bytes)
{
    if (!bytes)
        return;
    add_segment(request, t->rx, t->rx->data + t->rx_at, bytes);
    t->rx_at += bytes;
}

static int receive_exactly(Transmission *t, uint8_t *data, size_t bytes)
{
    while (bytes) {
        ssize_t n = io_recv(t->options.fd, data, bytes);

        if (n <= 0)
            return (int)n;
        data += n;
        bytes -= (size_t)n;
    }
    return 1;
}

/* The rest of a large payload, straight into a buffer of its own; all of it if the node wants it aligned. */
static int receive_large(Transmission *t, Request *request, size_t bytes)
{
    size_t here = rx_available(t);
    uint8_t *data;

    if (!t->direct)
        take_segment(t, request, here);
    if (!request_alloc_buffer(request, t->direct ? bytes : bytes - here))
        return -ENOMEM;
    data = request->buffer;
    if (t->direct) {
        memcpy(data, t->rx->data + t->rx_at, here);
        t->rx_at += here;
    }
    add_segment(request, NULL, data, t->direct ? bytes : bytes - here);
    return receive_exactly(t, data + (t->direct ? here : 0), bytes - here);
}

static int receive_payload(Transmission *t, Request *request, size_t bytes)
{
    int r;

    if (bytes > rx_available(t) && bytes >= LARGE_PAYLOAD_BYTES)
        return receive_large(t, request, bytes);
    if (t->rx_at + bytes > RX_BYTES) {
        size_t here = rx_available(t);

        take_segment(t, request, here);
        bytes -= here;
        r = rx_switch(t);
        if (r < 0)
            return r;
    }
    while (rx_available(t) < bytes) {
        r = rx_fill(t);
        if (r <= 0)
            return r;
    }
    take_segment(t, request, bytes);
    return 1;
}

static int skip_payload(Transmission *t, uint64_t bytes)
{
    for (;;) {
        size_t here = (size_t)MIN((uint64_t)rx_available(t), bytes);
        int r;

        t->rx_at += here;
        bytes -= here;
        if (!bytes)
            return 1;
        r = t->rx->refs > 1 ? rx_switch(t) : rx_make_room(t);
        if (r == 0)
            r = rx_fill(t);
        if (r <= 0)
            return r;
    }
}

/* ---- Requests ---- */

/* The payload of a block status request says which range and contexts are meant. */
static int receive_status_payload(Transmission *t, Request *request)
{
    uint8_t data[8 + 4 * NBD_CONTEXT__COUNT];
    uint64_t bytes = request->wire.bytes;
    NbdStatusPayload payload = {0};
    int r = 1;

    if (bytes > sizeof(data)) {
        r = skip_payload(t, bytes);
    } else {
        size_t here = MIN(rx_available(t), (size_t)bytes);

        memcpy(data, t->rx->data + t->rx_at, here);
        t->rx_at += here;
        r = receive_exactly(t, data + here, (size_t)bytes - here);
        if (r > 0)
            nbd_status_payload_decode(data, (size_t)bytes, t->rules.contexts, &payload);
    }
    request->contexts = payload.contexts;
    request->wire.bytes = payload.bytes;
    return r;
}

/* True while a request of that cost must wait for others to end. One alone always passes. */
static bool must_wait(const Transmission *t, size_t cost)
{
    return t->active >= LIMIT_NBD_REQUESTS || (t->active && t->active_bytes + cost > LIMIT_NBD_REQUEST_BYTES);
}

static void throttle(Transmission *t, size_t cost)
{
    while (must_wait(t, cost)) {
        CoWait wait = {0};

        t->throttled = &wait;
        co_wait_shielded(&wait);
    }
}

/*
 * Lets the reads started so far run, and the replies of those that are done leave, before more are started:
 * what was just copied into their buffers is still in the cache then.
 */
static void let_others_run(Transmission *t, size_t bytes)
{
    t->started_bytes += bytes;
    if (t->started_bytes < TURN_BYTES)
        return;
    t->started_bytes = 0;
    co_yield (); /* the requests */
    co_yield (); /* the sender */
}

/* Receives what follows the header of a request that is not too long, then starts or refuses it. */
static int receive_body(Transmission *t, Request *request)
{
    uint64_t payload = nbd_request_payload_bytes(&request->wire, t->rules.mode);
    size_t reads =
        request->wire.type == NBD_CMD_READ ? request->cost : 0; /* it may be gone once it was started */
    char text[NBD_ERROR_TEXT_BYTES];
    uint32_t error;
    int r = 1;

    request->contexts = t->rules.contexts;
    if (payload && request->wire.type == NBD_CMD_WRITE)
        r = receive_payload(t, request, (size_t)payload);
    else if (request->wire.type == NBD_CMD_BLOCK_STATUS && request->wire.flags & NBD_CMD_FLAG_PAYLOAD_LEN &&
             t->rules.mode == NBD_MODE_EXTENDED)
        r = receive_status_payload(t, request);
    else if (payload)
        r = skip_payload(t, payload);
    if (r <= 0) {
        request_release(request);
        return r;
    }
    error = nbd_request_check(&request->wire, &t->rules, text);
    if (error)
        request_refuse(request, error, text);
    else
        request_start(request);
    let_others_run(t, reads);
    return 1;
}

static int receive_request(Transmission *t, const NbdRequest *wire)
{
    size_t cost = request_cost(wire, &t->rules);
    char text[NBD_ERROR_TEXT_BYTES];

    throttle(t, cost);
    if (nbd_request_too_long(wire, &t->rules, text)) {
        request_refuse(request_new(t, wire, 0), NBD_EINVAL, text);
        /* A payload of that length is not worth receiving only to get at the next request. */
        return nbd_request_payload_bytes(wire, t->rules.mode) ? -EMSGSIZE : 1;
    }
    return receive_body(t, request_new(t, wire, cost));
}

static int bad_magic(Transmission *t, const NbdRequest *wire, uint32_t magic)
{
    char text[NBD_ERROR_TEXT_BYTES];

    snprintf(text, sizeof(text), "invalid magic (got 0x%x, expected 0x%x)", magic,
        t->rules.mode == NBD_MODE_EXTENDED ? NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC);
    throttle(t, 0);
    request_refuse(request_new(t, wire, 0), NBD_EINVAL, text);
    return -EPROTO;
}

/* One request from the buffer, or more bytes into it. */
static int receive_step(Transmission *t)
{
    size_t header = nbd_request_header_bytes(t->rules.mode);
    NbdRequest wire;
    uint32_t magic;

    if (rx_available(t) < header) {
        int r = rx_make_room(t);

        return r < 0 ? r : rx_fill(t);
    }
    if (nbd_request_decode(t->rx->data + t->rx_at, t->rules.mode, &wire, &magic) < 0)
        return bad_magic(t, &wire, magic);
    t->rx_at += header;
    return wire.type == NBD_CMD_DISC ? 0 : receive_request(t, &wire);
}

void receive_all(Transmission *t)
{
    int r = 1;

    t->rx = rx_get(t);
    while (t->rx && r > 0 && !t->broken)
        r = receive_step(t);
    t->violated = r == -EPROTO || r == -EMSGSIZE;
    co_group_join(&t->requests);
}

void receive_and_discard(Transmission *t)
{
    while (t->rx && io_recv(t->options.fd, t->rx->data, RX_BYTES) > 0)
        ;
}
