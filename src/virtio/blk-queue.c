/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A queue of a virtio block device at work on its loop.
 *
 * Servers are coroutines that take a request, carry it out, put it into the used ring, take the next one, and
 * end when there is none. Before a server carries a request out while there are more, it starts another one,
 * which runs only if the first has to wait. So requests that need no waiting are served by a single coroutine
 * one after the other, and others side by side; there are never more than the ring has entries.
 *
 * With an event index the driver says from which request on it wants to be called, and says so again only
 * when it has seen all of them: so it is called at once, and wakes up while further requests end. Without, it
 * is called once for all requests that end together: a server only notes that a call is due, and the loop
 * makes it when nothing is ready to run any more (look()), or a server does after a batch.
 *
 * While the loop is awake, it looks at the ring (LoopPoller) and the driver is told not to kick. Before the
 * loop sleeps, kicks are asked for. A pending read of the kick eventfd costs nothing meanwhile.
 *
 * Descriptors are shared with a front end that may do anything with them. Only eventfds are accepted.
 */
#include "virtio/blk-priv.h"

#include "base/mem.h"
#include "generated/trace.h"

#include <errno.h>

/* Requests that are taken before others on the loop have a turn, and the driver is called. */
#define BATCH 32
/* A queue without kicks is looked at this often: from shortly after a request to long after. */
#define POLL_MIN_NS UINT64_C(50000)
#define POLL_MAX_NS UINT64_C(1000000)

/* The smallest page there is. */
#define TOUCH_BYTES 4096

struct VirtioBlkQueue {
    VirtioBlk *blk;
    VirtQueue *ring;
    const VirtioMemory *memory;
    unsigned index;
    Loop *loop, *main;
    int kick_fd;
    EventSignal *call_signal; /* or NULL */
    void (*call)(void *opaque, unsigned index);
    void (*failed)(void *opaque, unsigned index, const char *text);
    void *opaque;

    /* On the loop. */
    LoopPoller poller;
    CoGroup servers, kicks;
    bool awake;           /* the loop looks at the ring, kicks are not wanted */
    bool server_is_ready; /* one has been started and has not run yet */
    bool stopping, has_failed;
    bool touches; /* the memory of requests, before anybody else does */
    bool call_is_due;
    bool calls_at_once; /* a call is never due */
    bool notify_on_empty;
    unsigned batch; /* requests taken since the driver was called last */
    BlkIovBuffer *spare;

    /* What has failed; written on the loop before it is posted to the main loop. */
    char *failure;

    /* On the main loop. */
    bool stopped;        /* failed() must not be called any more */
    bool failure_is_out; /* or was not to be told */
    CoWait failure_told;
};

/* ---- Calls ---- */

static void call_driver(VirtioBlkQueue *queue)
{
    if (queue->call_signal)
        event_signal_send(queue->call_signal);
    else if (queue->call)
        queue->call(queue->opaque, queue->index);
}

/* Legacy drivers may want a call when the last request has ended, whatever they say otherwise. */
static bool wants_call(const VirtioBlkQueue *queue)
{
    if (virtqueue_wants_call(queue->ring))
        return true;
    return UNLIKELY(queue->notify_on_empty) && !virtqueue_in_flight(queue->ring) &&
           !virtqueue_has_more(queue->ring);
}

static void make_due_call(VirtioBlkQueue *queue)
{
    queue->batch = 0;
    if (!queue->call_is_due)
        return;
    queue->call_is_due = false;
    if (wants_call(queue))
        call_driver(queue);
}

/* ---- Failure ---- */

/* On the main loop. */
static void tell_failure(void *arg)
{
    VirtioBlkQueue *queue = arg;
    AUTO_FREE char *text = queue->failure;

    queue->failure_is_out = true;
    if (queue->stopped)
        co_wake(&queue->failure_told, 0);
    else
        queue->failed(queue->opaque, queue->index, text); /* may stop, and so free, the queue */
}

static void fail(VirtioBlkQueue *queue, const char *text)
{
    if (queue->has_failed)
        return;
    queue->has_failed = true;
    queue->failure = str_dup(text);
    trace_virtio_blk_failed(queue->index, text);
    loop_post(queue->main, "virtio-blk-failure", tell_failure, queue);
}

static inline bool takes_requests(const VirtioBlkQueue *queue)
{
    return LIKELY(!queue->stopping && !queue->has_failed);
}

/* ---- Servers ---- */

static void server_main(void *arg);

static void start_server(VirtioBlkQueue *queue)
{
    queue->server_is_ready = true;
    co_start(&queue->servers, "virtio-blk", server_main, queue);
}

static void wake_up(VirtioBlkQueue *queue)
{
    if (queue->awake)
        return;
    queue->awake = true;
    loop_poller_start(&queue->poller);
    virtqueue_ask_for_kicks(queue->ring, false);
}

/* True: *ret_request is the next one, alone or with others behind it. */
static bool take_request(VirtioBlkQueue *queue, BlkRequest *ret_request)
{
    int r;

    if (UNLIKELY(queue->batch >= BATCH)) {
        make_due_call(queue);
        co_yield ();
    }
    if (!takes_requests(queue))
        return false;
    r = virtqueue_pop(queue->ring, &ret_request->element);
    if (r <= 0) {
        if (r < 0)
            fail(queue, virtqueue_fault(queue->ring));
        return false;
    }
    queue->batch++;
    return true;
}

static void finish_request(VirtioBlkQueue *queue, BlkRequest *request)
{
    if (UNLIKELY(request->iov_buffer)) {
        request->iov_buffer->next = queue->spare;
        queue->spare = request->iov_buffer;
    }
    /* The status byte is the last of them, whatever else was written. */
    virtqueue_push(queue->ring, &request->element, (uint32_t)request->element.in_bytes);
    if (!queue->calls_at_once)
        queue->call_is_due = true;
    else if (wants_call(queue))
        call_driver(queue);
    wake_up(queue);
}

/* Reads a byte of each page. */
static void touch(const IoSlice *payload)
{
    const struct iovec *iov = payload->iov;

    for (size_t left = payload->skip + payload->bytes; left; iov++) {
        const volatile char *at = iov->iov_base;
        size_t bytes = MIN(left, iov->iov_len);

        for (size_t i = 0; i < bytes; i += TOUCH_BYTES)
            (void)at[i];
        if (bytes)
            (void)at[bytes - 1];
        left -= bytes;
    }
}

static bool serve_next(VirtioBlkQueue *queue)
{
    VirtioBlkStatus status = VIRTIO_BLK_STATUS_IOERR;
    BlkRequest request;
    int r;

    if (!take_request(queue, &request))
        return false;
    r = blk_request_parse(&request, &queue->spare);
    if (UNLIKELY(r == -EPROTO)) {
        fail(queue, "a request has no room for its header or its status");
        return false;
    }
    if (!queue->server_is_ready && virtqueue_has_more(queue->ring))
        start_server(queue);
    if (UNLIKELY(queue->touches && r == 0))
        touch(&request.payload);
    if (LIKELY(r == 0))
        status = blk_request_serve(queue->blk, queue->memory, &request);
    else
        blk_request_answer(queue->memory, &request, status);
    trace_virtio_blk_request(queue->index, virtio_blk_type_name(request.header.type), request.header.sector,
        request.payload.bytes, status);
    finish_request(queue, &request);
    return true;
}

static void server_main(void *arg)
{
    VirtioBlkQueue *queue = arg;

    queue->server_is_ready = false;
    while (serve_next(queue))
        ;
}

/* ---- What the loop calls ---- */

static bool look_for_requests(VirtioBlkQueue *queue)
{
    if (queue->server_is_ready || !takes_requests(queue) || !virtqueue_has_more(queue->ring))
        return false;
    start_server(queue);
    return true;
}

static bool look(LoopPoller *poller)
{
    VirtioBlkQueue *queue = CONTAINER_OF(poller, VirtioBlkQueue, poller);

    make_due_call(queue);
    if (UNLIKELY(virtio_memory_is_lost(queue->memory)))
        fail(queue, "the file behind the memory has become shorter");
    return look_for_requests(queue);
}

static bool go_to_sleep(LoopPoller *poller)
{
    VirtioBlkQueue *queue = CONTAINER_OF(poller, VirtioBlkQueue, poller);

    if (takes_requests(queue) && queue->kick_fd >= 0 && virtqueue_ask_for_kicks(queue->ring, true) &&
        look_for_requests(queue)) {
        virtqueue_ask_for_kicks(queue->ring, false);
        return true;
    }
    queue->awake = false;
    return false;
}

/* ---- Kicks ---- */

static void kick_main(void *arg)
{
    VirtioBlkQueue *queue = arg;
    int r;

    while ((r = io_eventfd_wait(queue->kick_fd)) == 0) {
        wake_up(queue);
        look_for_requests(queue);
    }
    if (r != -ECANCELED)
        fail(queue, "cannot wait for kicks");
}

/* For a front end that does not kick. */
static void poll_main(void *arg)
{
    VirtioBlkQueue *queue = arg;
    uint64_t interval_ns = POLL_MIN_NS;

    while (co_sleep_ns(interval_ns) == 0) {
        bool found = look_for_requests(queue) || virtqueue_in_flight(queue->ring);

        interval_ns = found ? POLL_MIN_NS : MIN(interval_ns * 2, POLL_MAX_NS);
    }
}

/* ---- Start and stop ---- */

/* Of -1: nothing. */
static int open_call(int call_fd, EventSignal **ret_signal, Error *err)
{
    int r = 0;

    if (call_fd < 0)
        *ret_signal = NULL;
    else
        r = event_signal_new(call_fd, ret_signal, err);
    return r < 0 ? err_prefix(err, r, "call") : 0;
}

static int start_on_loop(void *arg)
{
    VirtioBlkQueue *queue = arg;

    co_group_init(&queue->servers);
    co_group_init(&queue->kicks);
    co_start(&queue->kicks, "virtio-blk-kicks", queue->kick_fd >= 0 ? kick_main : poll_main, queue);
    wake_up(queue);
    start_server(queue);
    return 0;
}

typedef struct RingCall {
    const VirtioBlkQueueOptions *options;
    VirtQueue **ret_ring;
    Error *err;
} RingCall;

/* On the queue's loop, because memory may have to be waited for. */
static int make_ring(void *arg)
{
    const RingCall *call = arg;
    const VirtioBlkQueueOptions *options = call->options;

    return virtqueue_new(&options->config, options->memory, options->inflight, call->ret_ring, call->err);
}

int virtio_blk_queue_start(VirtioBlk *blk, unsigned index, const VirtioBlkQueueOptions *options,
    VirtioBlkQueue **ret_queue, Error *err)
{
    VirtioBlkQueue *queue;
    EventSignal *signal;
    VirtQueue *ring;
    int r = options->kick_fd < 0 ? 0 : eventfd_check(options->kick_fd, err);

    if (r < 0)
        return err_prefix(err, r, "kick");
    r = open_call(options->call_fd, &signal, err);
    if (r < 0)
        return r;
    r = loop_call(options->loop, make_ring, &(RingCall){options, &ring, err});
    if (r < 0) {
        event_signal_free(signal);
        return r;
    }
    queue = mem_new(VirtioBlkQueue);
    queue->blk = blk;
    if (options->inflight) /* whoever keeps it continues with the next process */
        atomic_store(&blk->outlives, true);
    queue->ring = ring;
    queue->call_signal = signal;
    queue->memory = options->memory;
    queue->index = index;
    queue->loop = options->loop;
    queue->calls_at_once = options->config.event_idx;
    queue->notify_on_empty = blk->features & VIRTIO_FEATURE_NOTIFY_ON_EMPTY;
    queue->main = loop_current();
    queue->kick_fd = options->kick_fd;
    queue->touches = options->touches;
    queue->call = options->call;
    queue->failed = options->failed;
    queue->opaque = options->opaque;
    queue->poller = (LoopPoller){.look = look, .sleep = go_to_sleep};
    loop_call(queue->loop, start_on_loop, queue);
    *ret_queue = queue;
    return 0;
}

static int stop_on_loop(void *arg)
{
    VirtioBlkQueue *queue = arg;

    queue->stopping = true;
    co_group_cancel(&queue->kicks);
    co_group_join(&queue->kicks);
    co_group_join(&queue->servers);
    make_due_call(queue);
    loop_poller_stop(&queue->poller);
    /* Whoever serves the ring next may begin with a kick only. */
    if (!queue->has_failed)
        (void)virtqueue_ask_for_kicks(queue->ring, true);
    return 0;
}

uint32_t virtio_blk_queue_stop(VirtioBlkQueue *queue)
{
    uint32_t base;

    queue->stopped = true;
    loop_call(queue->loop, stop_on_loop, queue);
    if (queue->has_failed && !queue->failure_is_out)
        co_wait_shielded(&queue->failure_told);
    base = virtqueue_base(queue->ring);
    virtqueue_free(queue->ring);
    event_signal_free(queue->call_signal);
    while (queue->spare) {
        BlkIovBuffer *buffer = queue->spare;

        queue->spare = buffer->next;
        free(buffer);
    }
    free(queue);
    return base;
}

typedef struct CallChange {
    VirtioBlkQueue *queue;
    EventSignal *signal; /* the new one, then the old one */
    Error err;
} CallChange;

static int set_call_on_loop(void *arg)
{
    CallChange *change = arg;
    VirtioBlkQueue *queue = change->queue;
    EventSignal *old = queue->call_signal;

    queue->call_signal = change->signal;
    change->signal = old;
    if (change->err.code)
        fail(queue, change->err.message);
    else
        call_driver(queue);
    return 0;
}

void virtio_blk_queue_set_call(VirtioBlkQueue *queue, int call_fd)
{
    CallChange change = {.queue = queue, .err = ERROR_INIT};

    (void)!open_call(call_fd, &change.signal, &change.err);
    loop_call(queue->loop, set_call_on_loop, &change);
    event_signal_free(change.signal);
    err_done(&change.err);
}
