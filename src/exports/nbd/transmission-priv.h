/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The parts of a transmission: the receiver (receive.c) cuts requests out of large receive buffers and starts
 * a coroutine for each; request.c executes it and queues the reply; the sender (send.c) sends all queued
 * replies with one call.
 *
 * A Request is counted in `active` and `active_bytes` from its header's reception until its reply is sent,
 * and the receiver stops reading at the limits: a client that does not take replies stops only itself.
 * Requests, receive buffers and payload buffers are reused, so that a warm connection allocates nothing.
 */
#pragma once

#include "base/list.h"
#include "loop/buffer-pool.h"
#include "exports/nbd/transmission.h"

#define RX_BYTES ((size_t)256 * 1024)
/* From this size on a payload that has not arrived yet gets a buffer of its own. */
#define LARGE_PAYLOAD_BYTES ((size_t)128 * 1024)
/* Reads that are started in one go. */
#define TURN_BYTES ((size_t)256 * 1024)
/* Most iovecs in one call. */
#define SEND_IOVS 512

/* What was received. Requests whose payload lies inside hold references; without any the buffer is used
 * again. */
typedef struct RxBuffer {
    struct RxBuffer *next; /* while idle */
    unsigned refs;
    size_t filled;
    uint8_t *data; /* RX_BYTES */
} RxBuffer;

typedef struct Transmission {
    TransmissionOptions options; /* first: what the receiver looks at all the time */
    NbdRequestRules rules;
    BufferPool *pool;
    bool direct;   /* the node wants aligned buffers */
    bool violated; /* the client broke the protocol so that nothing more can be received from it */
    bool broken;   /* replies cannot be sent any more */
    bool ending;   /* no reply will be queued any more */

    size_t started_bytes; /* of reads, since others last ran */
    RxBuffer *rx;
    size_t rx_at; /* first byte that is not consumed */
    RxBuffer *idle_rx;
    unsigned idle_rx_count;

    List idle_requests;
    unsigned active;
    size_t active_bytes;
    CoWait *throttled; /* the receiver waits for active or active_bytes to fall */
    CoGroup requests;

    List out;        /* Requests whose reply is to be sent */
    size_t out_sent; /* bytes of the first that are sent already */
    CoWait *sender_idle;
    CoGroup sender;
    struct iovec send_iov[SEND_IOVS];
} Transmission;

typedef struct Request {
    List link; /* in Transmission.out or idle_requests */
    Transmission *transmission;
    NbdRequest wire;
    NbdContexts contexts; /* of a block status request */
    size_t cost;          /* counted in active_bytes */

    IoSlice payload; /* of a write */
    struct iovec payload_iov[2];
    RxBuffer *payload_rx[2];
    void *buffer; /* own payload: of a large write, a read, extents */
    size_t buffer_bytes;
    void *pieces; /* headers and iovecs of a reply in many chunks */
    size_t pieces_bytes;

    struct iovec *reply_iov; /* own_iov, or in pieces */
    unsigned reply_count;
    size_t reply_bytes;
    struct iovec own_iov[2];
    uint8_t header[NBD_ERROR_CHUNK_BYTES];
} Request;

/* ---- request.c ---- */

Request *request_new(Transmission *t, const NbdRequest *wire, size_t cost);
/* Its reply is sent, or will never be. */
void request_release(Request *request);
/* Starts executing. */
void request_start(Request *request);
/* Queues an error reply instead. */
void request_refuse(Request *request, uint32_t error, const char *text);
/* A buffer of its own for the request; false if there is no memory. */
bool request_alloc_buffer(Request *request, size_t bytes) MUST_CHECK;
/* What a request will need besides its payload's bytes. */
size_t request_cost(const NbdRequest *wire, const NbdRequestRules *rules);

/* ---- receive.c ---- */

/* Returns when no more requests can be received. */
void receive_all(Transmission *t);
/* Until the client closes, or the caller's deadline. */
void receive_and_discard(Transmission *t);
void rx_unref(Transmission *t, RxBuffer *rx);
void rx_free_idle(Transmission *t);

/* ---- send.c ---- */

void send_main(void *arg);
/* The request's reply_iov is complete. */
void send_queue(Request *request);
void send_wake(Transmission *t);
