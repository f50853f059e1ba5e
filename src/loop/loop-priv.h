/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside of a loop. A back end knows how to wait for operations; everything else (coroutines, calls between
 * loops, worker threads, polling) is the same for all. A simulated back end plugs in at the same seam.
 */
#pragma once

#include "loop/loop.h"

#include <pthread.h>
#include <stdatomic.h>

typedef enum IoKind {
    IO_POLL, /* the only kind every back end has; for others see LoopBackend.has_all_kinds */
    IO_READV,
    IO_WRITEV,
    IO_FSYNC,
    IO_FALLOCATE,
    IO_RECV,
    IO_RECVMSG,
    IO_ACCEPT,
    IO_CONNECT,
    IO_COMMAND,
} IoKind;

/* One operation; lives on the stack of the coroutine that waits for it. */
typedef struct IoOp {
    IoKind kind;
    int fd;
    int flags; /* RWF_*, MSG_*, poll events, fallocate mode, fsync: datasync */
    uint64_t offset;
    uint64_t bytes;
    const void *data; /* iovec array, buffer, msghdr, sockaddr, IoCommand */
    unsigned count;   /* of iovecs */
    CoWait wait;      /* completed with the result, or -errno */
    List link;        /* epoll: on the descriptor's list */
} IoOp;

typedef struct LoopBackend {
    const char *name;
    /* False: only IO_POLL; the callers of the others make do with non-blocking calls, IO_POLL and worker
     * threads. */
    bool has_all_kinds;
    int (*init)(Loop *loop);
    void (*done)(Loop *loop);
    /* Takes the operation on; co_wake(&op->wait, result) follows from turn(). */
    void (*submit)(Loop *loop, IoOp *op);
    /* Asks for an early end (-ECANCELED); op->wait is still completed, by turn(). */
    void (*cancel)(Loop *loop, IoOp *op);
    /* Submits what is queued and completes what is ready; waits for at most timeout_ns (0: not at all,
     * UINT64_MAX: for ever) if nothing is. */
    void (*turn)(Loop *loop, uint64_t timeout_ns);
    /* True if turn(0) would complete something; cheap, may miss things. */
    bool (*has_completions)(Loop *loop);
    bool (*has_commands)(Loop *loop); /* NULL: no */
} LoopBackend;

extern const LoopBackend loop_backend_uring, loop_backend_epoll;

/* Something to run on the loop's thread outside of any coroutine; must not block. Embedded in its owner. */
typedef struct LoopPost {
    struct LoopPost *next;
    void (*run)(struct LoopPost *post);
} LoopPost;

typedef struct WorkerPool WorkerPool;

struct Loop {
    char name[16];
    unsigned index; /* in the table of loops */
    pid_t thread_id;
    CoSched *sched;
    const LoopBackend *backend;
    void *backend_state;
    CoGroup group;
    pthread_t thread;
    bool stopping;

    uint64_t now_ns;
    LoopOptions options;
    uint64_t poll_ns; /* how long the next wait polls first; adapts up to options.poll_max_ns */
    List pollers;     /* the active ones */

    /* From other threads: posts to run, and whether the loop must be woken for them. */
    _Atomic(LoopPost *) posts;
    atomic_bool asleep;
    int wake_fd;

    WorkerPool *workers;
};

/* Queues a post; from any thread. */
void loop_add_post(Loop *loop, LoopPost *post);
/* The back end saw wake_fd readable. */
void loop_drain_wake_fd(Loop *loop);
/* Submits op and waits; interruptible operations end early with -ECANCELED or -ETIMEDOUT. */
int loop_run_op(IoOp *op, bool interruptible);

WorkerPool *worker_pool_new(Loop *loop);
/* All work must have completed. */
void worker_pool_free(WorkerPool *pool);
/* Lets waiting threads notice changed limits. */
void worker_pool_set_limits(WorkerPool *pool, unsigned min, unsigned max);
