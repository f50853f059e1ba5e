/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Workers take turns in receiving: one waits for the next request; when it has got one, it passes the turn on
 * and carries the request out. So a request needs no handing over, and as many are in flight as there are
 * workers. The idle one that was busy last goes next, because its buffer is in the cache.
 *
 * A buffer's data starts at a page. The kernel's header and the header of a write end there, so that the data
 * of a write is received in its place, and so does the header of a reply, which is sent in one piece with its
 * data. The memory is touched only as far as requests are long.
 */
#include "exports/fuse/queue.h"

#include "base/limits.h"
#include "base/mem.h"
#include "generated/trace.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE_BYTES 4096
#define WORKER_BYTES (PAGE_BYTES + FUSE_PAYLOAD_BYTES)
#define BREAK_AFTER 16
#define BACKOFF_MAX 15U
#define HEADERS_BYTES (FUSE_IN_BYTES + FUSE_WRITE_IN_BYTES)

typedef struct FuseWorker {
    FuseQueue *queue;
    uint8_t *payload; /* behind a page for headers */
    List link;        /* in FuseQueue.idle */
    CoWait turn;
} FuseWorker;

struct FuseQueue {
    FuseSession *session;
    int fd;
    CoGroup group;
    int end;     /* why it ends, or 0 */
    bool taken;  /* a worker has the turn */
    bool called; /* a worker was woken to take it, and has not run yet */
    List idle;
    unsigned count; /* of workers */
    unsigned served;
    unsigned in_vain, backoff; /* see receive() */
    uint8_t *memory;
    FuseWorker workers[LIMIT_FUSE_REQUESTS];
};

FuseQueue *fuse_queue_new(FuseSession *session, int fd)
{
    FuseQueue *queue = mem_new(FuseQueue);

    queue->memory = mmap(NULL, LIMIT_FUSE_REQUESTS * (size_t)WORKER_BYTES, PROT_READ | PROT_WRITE,
        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (queue->memory == MAP_FAILED) {
        free(queue);
        return NULL;
    }
    /* With huge pages a few small requests would make all of it real memory. */
    (void)madvise(queue->memory, LIMIT_FUSE_REQUESTS * (size_t)WORKER_BYTES, MADV_NOHUGEPAGE);
    queue->session = session;
    queue->fd = fd;
    list_init(&queue->idle);
    co_group_init(&queue->group);
    return queue;
}

void fuse_queue_free(FuseQueue *queue)
{
    if (!queue)
        return;
    munmap(queue->memory, LIMIT_FUSE_REQUESTS * (size_t)WORKER_BYTES);
    free(queue);
}

/* ---- Receiving ---- */

static void worker_main(void *arg);

static void add_worker(FuseQueue *queue)
{
    FuseWorker *worker = &queue->workers[queue->count];

    worker->queue = queue;
    worker->payload = queue->memory + queue->count * (size_t)WORKER_BYTES + PAGE_BYTES;
    queue->count++;
    co_start(&queue->group, "fuse-request", worker_main, worker);
}

/* Whoever comes first takes it: the worker that passes it on may be back already. Without idle workers the
 * requests wait in the kernel until one is done. */
static void pass_turn(FuseQueue *queue)
{
    List *next;

    queue->taken = false;
    if (queue->called)
        return;
    next = list_pop(&queue->idle);
    queue->called = next || queue->count < LIMIT_FUSE_REQUESTS;
    if (next)
        co_wake(&LIST_ENTRY(next, FuseWorker, link)->turn, 0);
    else if (queue->called)
        add_worker(queue);
}

/* 0, or -ECANCELED. */
static int wait_for_turn(FuseWorker *worker)
{
    FuseQueue *queue = worker->queue;

    while (queue->taken) {
        int r;

        worker->turn = (CoWait){0};
        list_prepend(&queue->idle, &worker->link);
        r = co_wait(&worker->turn);
        list_remove(&worker->link);
        if (r < 0)
            return r;
        queue->called = false;
    }
    queue->taken = true;
    return 0;
}

static bool is_nothing_yet(ssize_t n)
{
    return n == -EAGAIN || n == -ENOENT; /* none, or taken back by a user who was interrupted */
}

static ssize_t read_request(FuseWorker *worker)
{
    return io_read_now(
        worker->queue->fd, worker->payload - HEADERS_BYTES, HEADERS_BYTES + FUSE_PAYLOAD_BYTES);
}

/* Several requests may have come together. Where they never do, a second one is looked for only now and then.
 */
static ssize_t read_another(FuseWorker *worker)
{
    FuseQueue *queue = worker->queue;
    ssize_t n;

    if (queue->backoff) {
        queue->backoff--;
        return -EAGAIN;
    }
    n = read_request(worker);
    queue->in_vain = is_nothing_yet(n) ? MIN(queue->in_vain * 2 + 1, BACKOFF_MAX) : 0;
    queue->backoff = queue->in_vain;
    return n;
}

static ssize_t receive(FuseWorker *worker)
{
    FuseQueue *queue = worker->queue;
    ssize_t n = read_another(worker);

    while (is_nothing_yet(n)) {
        int r = io_poll(queue->fd, POLLIN);

        n = r < 0 ? r : read_request(worker);
    }
    return n == 0 ? -ENODEV : n;
}

/* ---- Answering ---- */

/* The kernel refuses the reply if nobody waits for it any more, which is no error. */
static void reply(FuseWorker *worker, uint64_t unique, ssize_t result)
{
    FuseOutHeader header = {
        .bytes = FUSE_OUT_BYTES + (result > 0 ? (uint32_t)result : 0),
        .error = result < 0 ? (int32_t)result : 0,
        .unique = unique,
    };
    uint8_t *at = worker->payload - FUSE_OUT_BYTES;

    memcpy(at, &header, sizeof(header));
    (void)!io_write_now(worker->queue->fd, at, header.bytes);
}

static void serve(FuseWorker *worker, size_t bytes)
{
    FuseQueue *queue = worker->queue;
    const uint8_t *data = worker->payload - HEADERS_BYTES;
    size_t body_bytes = bytes - MIN(bytes, (size_t)FUSE_IN_BYTES), payload_bytes = 0;
    FuseHeader header;
    FuseRequest request;
    ssize_t r;

    if (fuse_header_decode(data, bytes, &header) < 0)
        return;
    trace_fuse_request("device", queue->fd, header.unique, fuse_opcode_name(header.opcode));
    if (header.opcode == FUSE_OP_WRITE) {
        payload_bytes = body_bytes - MIN(body_bytes, (size_t)FUSE_WRITE_IN_BYTES);
        body_bytes -= payload_bytes;
    }
    r = fuse_request_decode(&header, data + FUSE_IN_BYTES, body_bytes, payload_bytes, &request);
    if (r == 0)
        r = fuse_session_execute(queue->session, &request, worker->payload);
    if (fuse_wants_reply(header.opcode))
        reply(worker, header.unique, r);
}

/* Every connection has at least one capability. */
int fuse_queue_handshake(FuseQueue *queue)
{
    FuseWorker worker = {.queue = queue, .payload = queue->memory + PAGE_BYTES};

    while (!atomic_load(&queue->session->agreed)) {
        ssize_t n = queue->session->refused ? -EPROTO : receive(&worker);

        if (n < 0)
            return (int)n;
        serve(&worker, (size_t)n);
    }
    return 0;
}

static void end(FuseQueue *queue, int reason)
{
    if (queue->end)
        return;
    queue->end = reason;
    co_group_cancel(&queue->group);
}

/* Requests that need not wait are answered without letting others run, but not for ever. */
static void take_a_break(FuseQueue *queue)
{
    if (++queue->served % BREAK_AFTER == 0)
        co_yield ();
}

static void worker_main(void *arg)
{
    FuseWorker *worker = arg;
    FuseQueue *queue = worker->queue;

    queue->called = false;
    while (!queue->end && wait_for_turn(worker) == 0) {
        ssize_t n = receive(worker);

        if (n < 0) {
            end(queue, (int)n);
            break;
        }
        pass_turn(queue);
        serve(worker, (size_t)n);
        take_a_break(queue);
    }
}

int fuse_queue_run(void *arg)
{
    FuseQueue *queue = arg;

    if (!queue->end)
        add_worker(queue);
    co_group_join(&queue->group);
    return queue->end;
}

int fuse_queue_stop(void *arg)
{
    end(arg, -ECANCELED);
    return 0;
}
