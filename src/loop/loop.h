/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A loop: one thread, its coroutines, and its awaitable I/O (io_uring, or epoll and worker threads where
 * io_uring is refused). Every function below is called from a coroutine of the loop unless it says otherwise;
 * "waits" means that the calling coroutine waits and the thread goes on with others.
 *
 * Results: >= 0, or -errno. Socket and pipe operations are interruptible (-ECANCELED, -ETIMEDOUT); an
 * interrupted operation has ended in the kernel when the call returns. File operations are not interruptible.
 */
#pragma once

#include "base/error.h"
#include "base/io-slice.h"
#include "co/co.h"

#include <sys/socket.h>

typedef struct Loop Loop;

typedef enum LoopBackendKind {
    LOOP_BACKEND_AUTO, /* io_uring if the kernel allows it; GRANARY_LOOP=epoll|io_uring in the environment
                          overrides */
    LOOP_BACKEND_IO_URING,
    LOOP_BACKEND_EPOLL,
} LoopBackendKind;

/* Settings of a loop, all changeable while it runs (loop_set_options). Names and units as the `iothread`
 * object. */
typedef struct LoopOptions {
    uint64_t poll_max_ns;   /* 0: never poll */
    uint64_t poll_grow;     /* 0: a default factor */
    uint64_t poll_shrink;   /* 0: back to zero at once */
    unsigned aio_max_batch; /* most requests queued before they are submitted; 0: a default */
    unsigned thread_pool_min;
    unsigned thread_pool_max; /* worker threads for blocking work of this loop */
} LoopOptions;

/* Polls as an `iothread` object does by default: it costs less than going to sleep for a moment, and ends by
 * itself. */
#define LOOP_OPTIONS_DEFAULT ((LoopOptions){.poll_max_ns = 32768, .thread_pool_max = 64})

/* Runs a loop on the calling thread until the coroutine main_fn(arg) has returned; returns its result. */
int loop_run_main(LoopBackendKind kind, const LoopOptions *options, int (*main_fn)(void *arg), void *arg);
/* Starts a loop on a new thread. Waits until it runs. */
int loop_new(const char *name, LoopBackendKind kind, const LoopOptions *options, Loop **ret_loop,
    Error *err) MUST_CHECK;
/* Ends the loop (all its coroutines must have ended) and its thread. NULL is fine. */
void loop_free(Loop *loop);
void loop_set_options(Loop *loop, const LoopOptions *options); /* from any thread */

/* The loop of the calling thread, or NULL. Any thread. */
Loop *loop_current(void);
const char *loop_name(const Loop *loop);
/* A number below LIMIT_LOOPS that no other loop has now. Any thread. */
unsigned loop_index(const Loop *loop);
/* Of its thread, as gettid(2) tells. */
int64_t loop_thread_id(const Loop *loop);
/* The loop that has the number, or NULL. Only where loops are made and freed (the main loop). */
Loop *loop_at(unsigned index);
bool loop_is_io_uring(const Loop *loop);
/* Monotonic time; cheap (read once per turn of the loop). */
uint64_t loop_now_ns(void);
/* Monotonic time now. Any thread. */
uint64_t clock_monotonic_ns(void);
/* Root group of the loop: for coroutines that nobody else owns; the loop ends only when it is empty. */
CoGroup *loop_group(Loop *loop);

/* Runs fn(arg) in a coroutine of target and returns its result; plain call when target is the current loop.
 * Not interruptible. */
int loop_call(Loop *target, int (*fn)(void *arg), void *arg);
/* Posts fn(arg) to be started in a coroutine of target (in its root group). From any thread; does not wait.
 */
void loop_post(Loop *target, const char *name, void (*fn)(void *arg), void *arg);
/* Runs fn(arg) on a worker thread: for system calls that block and for heavy computation. Not interruptible.
 */
int loop_work(int (*fn)(void *arg), void *arg);

/* ---- Files ---- */

/* Read or write at offset; short counts as the system calls do. flags: RWF_DSYNC and the like. */
ssize_t io_preadv(int fd, const struct iovec *iov, unsigned count, uint64_t offset);
ssize_t io_pwritev(int fd, const struct iovec *iov, unsigned count, uint64_t offset, int flags);
int io_fsync(int fd, bool datasync);
int io_fallocate(int fd, int mode, uint64_t offset, uint64_t bytes);

/* ---- Commands of the file's own (IORING_OP_URING_CMD) ---- */

typedef struct IoCommand {
    uint32_t op;
    const struct iovec *iov; /* or NULL */
    unsigned iov_count;
    uint8_t bytes[80]; /* what the command defines */
} IoCommand;

/* False: the kernel, or the back end, has none. Any thread. */
bool loop_has_commands(Loop *loop);
/* Not interruptible: whoever sends a command knows how the file ends it. */
int io_command(int fd, const IoCommand *command);

/* ---- Sockets, pipes, terminals ---- */

/* The descriptor may be blocking or not: waiting never blocks the thread. */
ssize_t io_read(int fd, void *data, size_t bytes);
ssize_t io_write(int fd, const void *data, size_t bytes);
/* What a non-blocking descriptor allows at once, without waiting: -EAGAIN if that is nothing. */
ssize_t io_read_now(int fd, void *data, size_t bytes);
ssize_t io_write_now(int fd, const void *data, size_t bytes);
/* Writes everything; 0 or -errno. */
int io_write_all(int fd, const void *data, size_t bytes);
ssize_t io_recv(int fd, void *data, size_t bytes);
ssize_t io_recvmsg(int fd, struct msghdr *message, int flags);
/* Sends with MSG_NOSIGNAL. May send less than asked. */
ssize_t io_sendmsg(int fd, const struct msghdr *message, int flags);
/* A connected, close-on-exec descriptor. */
int io_accept(int fd);
int io_connect(int fd, const struct sockaddr *address, socklen_t length);
/* Waits for poll events (POLLIN, ...); returns the events that are set. */
int io_poll(int fd, short events);
/* Waits until somebody has written to an eventfd, and sets its count back. 0 or -errno. */
int io_eventfd_wait(int fd);

/* 0, or -EINVAL if the descriptor is something else than an eventfd. Any thread. */
int eventfd_check(int fd, Error *err) MUST_CHECK;

/*
 * For signalling an eventfd that somebody else has made: never blocks, whatever its owner does to its count and flags.
 * fd is borrowed until the signal is freed. send: any thread, one at a time.
 */
typedef struct EventSignal EventSignal;
int event_signal_new(int fd, EventSignal **ret_signal, Error *err) MUST_CHECK;
/* Adds 1 to the count, if there is room. */
void event_signal_send(EventSignal *signal);
/* NULL is fine. */
void event_signal_free(EventSignal *signal);

/* ---- Pollers: work that another thread or process leaves in memory ---- */

/*
 * Something that a loop looks at by itself as long as it is awake, so that who brings the work need not wake it. Before
 * the loop sleeps each poller is told to have itself woken, and is active no longer. Embedded in its owner; zeroed
 * means inactive. Both functions run outside of any coroutine and must not wait.
 */
typedef struct LoopPoller {
    /* Called often. True if it has found work and made a coroutine ready for it. */
    bool (*look)(struct LoopPoller *poller);
    /* From now on new work must wake the loop. True if there is some already, as look(); then it stays active. */
    bool (*sleep)(struct LoopPoller *poller);
    List link;
} LoopPoller;

/* Makes a poller of the current loop active; nothing happens if it is. Also outside of coroutines. */
void loop_poller_start(LoopPoller *poller);
/* Without sleep(). Nothing happens if it is not active. */
void loop_poller_stop(LoopPoller *poller);
