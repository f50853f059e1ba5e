/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The back end for kernels and containers that refuse io_uring. It only knows how to wait for readiness
 * (IO_POLL); files go to worker threads and sockets through non-blocking calls, see io.c.
 *
 * Several operations may wait on one descriptor, but epoll knows a descriptor once: a Watch gathers them. A
 * descriptor is registered exactly while somebody waits on it, so closing one that nobody waits on needs no
 * care.
 */
#include "loop/loop-priv.h"

#include "base/mem.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>

#define EVENTS_PER_TURN 64

typedef struct Watch {
    List ops;
    uint32_t armed; /* registered events, 0: not registered */
} Watch;

typedef struct Epoll {
    int epoll_fd;
    Watch **watches; /* by descriptor */
    size_t watch_count;
    List immediate; /* operations on descriptors that epoll refuses (regular files): always ready */
} Epoll;

static int epoll_init(Loop *loop)
{
    Epoll *ep = mem_new(Epoll);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = loop->wake_fd};

    ep->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (ep->epoll_fd < 0 || epoll_ctl(ep->epoll_fd, EPOLL_CTL_ADD, loop->wake_fd, &event) < 0) {
        int r = -errno;

        fd_close(ep->epoll_fd);
        free(ep);
        return r;
    }
    list_init(&ep->immediate);
    loop->backend_state = ep;
    return 0;
}

static void epoll_done(Loop *loop)
{
    Epoll *ep = loop->backend_state;

    for (size_t i = 0; i < ep->watch_count; i++)
        free(ep->watches[i]);
    free(ep->watches);
    fd_close(ep->epoll_fd);
    free(ep);
}

static Watch *get_watch(Epoll *ep, int fd)
{
    size_t index = (size_t)fd;

    if (index >= ep->watch_count) {
        size_t count = MAX(index + 1, ep->watch_count * 2);

        ep->watches = mem_realloc(ep->watches, count * sizeof(*ep->watches));
        memset(ep->watches + ep->watch_count, 0, (count - ep->watch_count) * sizeof(*ep->watches));
        ep->watch_count = count;
    }
    if (!ep->watches[index]) {
        ep->watches[index] = mem_new(Watch);
        list_init(&ep->watches[index]->ops);
    }
    return ep->watches[index];
}

/* Makes the registration match the waiting operations. */
static int rearm(Epoll *ep, int fd, Watch *watch)
{
    struct epoll_event event = {.data.fd = fd};
    int op;

    LIST_FOREACH (link, &watch->ops)
        event.events |= (uint32_t)LIST_ENTRY(link, IoOp, link)->flags; /* POLLIN etc. have epoll's values */
    if (event.events == watch->armed)
        return 0;
    op = !watch->armed ? EPOLL_CTL_ADD : event.events ? EPOLL_CTL_MOD : EPOLL_CTL_DEL;
    watch->armed = event.events;
    return epoll_ctl(ep->epoll_fd, op, fd, &event) < 0 ? -errno : 0;
}

static void complete(IoOp *op, int result)
{
    list_remove(&op->link);
    co_wake(&op->wait, result);
}

static void epoll_submit(Loop *loop, IoOp *op)
{
    Epoll *ep = loop->backend_state;
    Watch *watch;
    int r;

    assert(op->kind == IO_POLL);
    if (op->fd < 0) {
        co_wake(&op->wait, -EBADF);
        return;
    }
    watch = get_watch(ep, op->fd);
    list_append(&watch->ops, &op->link);
    r = rearm(ep, op->fd, watch);
    if (r == 0)
        return;
    watch->armed = 0;
    list_remove(&op->link);
    if (r == -EPERM)
        list_append(&ep->immediate, &op->link);
    else
        co_wake(&op->wait, r);
}

static void epoll_cancel(Loop *loop, IoOp *op)
{
    Epoll *ep = loop->backend_state;
    int fd = op->fd;

    complete(op, -ECANCELED);
    if ((size_t)fd < ep->watch_count && ep->watches[fd])
        (void)rearm(ep, fd, ep->watches[fd]);
}

static void dispatch(Epoll *ep, int fd, uint32_t events)
{
    Watch *watch = ep->watches[fd];

    LIST_FOREACH_SAFE (link, &watch->ops) {
        IoOp *op = LIST_ENTRY(link, IoOp, link);
        uint32_t hit = events & ((uint32_t)op->flags | EPOLLERR | EPOLLHUP);

        if (hit)
            complete(op, (int)hit);
    }
    (void)rearm(ep, fd, watch);
}

static void complete_immediate(Epoll *ep)
{
    LIST_FOREACH_SAFE (link, &ep->immediate) {
        IoOp *op = LIST_ENTRY(link, IoOp, link);

        complete(op, op->flags);
    }
}

static void epoll_turn(Loop *loop, uint64_t timeout_ns)
{
    Epoll *ep = loop->backend_state;
    struct epoll_event events[EVENTS_PER_TURN];
    struct timespec ts = {
        .tv_sec = (time_t)(timeout_ns / 1000000000), .tv_nsec = (long)(timeout_ns % 1000000000)};
    int timeout_ms =
        timeout_ns == UINT64_MAX ? -1 : (int)MIN(div_round_up(timeout_ns, 1000000), (uint64_t)INT32_MAX);
    int count;

    if (!list_empty(&ep->immediate)) {
        complete_immediate(ep);
        timeout_ms = 0;
        ts = (struct timespec){0};
    }
    count = epoll_pwait2(ep->epoll_fd, events, EVENTS_PER_TURN, timeout_ms < 0 ? NULL : &ts, NULL);
    if (count < 0 && errno == ENOSYS)
        count = epoll_wait(ep->epoll_fd, events, EVENTS_PER_TURN, timeout_ms);
    for (int i = 0; i < count; i++) {
        if (events[i].data.fd == loop->wake_fd)
            loop_drain_wake_fd(loop);
        else
            dispatch(ep, events[i].data.fd, events[i].events);
    }
}

static bool epoll_has_completions(Loop *loop)
{
    Epoll *ep = loop->backend_state;

    epoll_turn(loop, 0);
    return !list_empty(&ep->immediate) || co_sched_has_ready(loop->sched);
}

const LoopBackend loop_backend_epoll = {
    .name = "epoll",
    .init = epoll_init,
    .done = epoll_done,
    .submit = epoll_submit,
    .cancel = epoll_cancel,
    .turn = epoll_turn,
    .has_completions = epoll_has_completions,
};
