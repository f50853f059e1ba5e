/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The turn of a loop: run what other threads posted, run ready coroutines until none is ready, then submit
 * and wait.
 *
 * Waking a sleeping loop: the loop sets `asleep`, then looks at `posts` once more and only then waits; a
 * poster pushes its post first and looks at `asleep` second. Whichever comes later sees the other, so no post
 * is missed and a busy loop costs a poster no system call.
 */
#include "loop/loop-priv.h"

#include "base/limits.h"
#include "base/log.h"
#include "base/mem.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

/* Passes over the ready coroutines before the kernel is asked again, so that I/O cannot starve. */
#define PASSES_PER_TURN 32
#define POLL_START_NS UINT64_C(4000)
#define POLL_GROW_DEFAULT UINT64_C(2)

static __thread Loop *current_loop;

static Loop *all_loops[LIMIT_LOOPS];

uint64_t clock_monotonic_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

Loop *loop_current(void)
{
    return current_loop;
}

const char *loop_name(const Loop *loop)
{
    return loop->name;
}

unsigned loop_index(const Loop *loop)
{
    return loop->index;
}

int64_t loop_thread_id(const Loop *loop)
{
    return loop->thread_id;
}

Loop *loop_at(unsigned index)
{
    return all_loops[index];
}

bool loop_is_io_uring(const Loop *loop)
{
    return loop->backend == &loop_backend_uring;
}

uint64_t loop_now_ns(void)
{
    return current_loop->now_ns;
}

CoGroup *loop_group(Loop *loop)
{
    return &loop->group;
}

/* ---- From other threads ---- */

static void wake(Loop *loop)
{
    uint64_t one = 1;

    while (write(loop->wake_fd, &one, sizeof(one)) < 0 && errno == EINTR)
        ;
}

void loop_drain_wake_fd(Loop *loop)
{
    uint64_t count;

    while (read(loop->wake_fd, &count, sizeof(count)) < 0 && errno == EINTR)
        ;
}

void loop_add_post(Loop *loop, LoopPost *post)
{
    LoopPost *head = atomic_load_explicit(&loop->posts, memory_order_relaxed);

    do
        post->next = head;
    while (!atomic_compare_exchange_weak(&loop->posts, &head, post));
    if (loop != current_loop && atomic_load(&loop->asleep) && atomic_exchange(&loop->asleep, false))
        wake(loop);
}

static void run_posts(Loop *loop)
{
    LoopPost *post, *in_order = NULL;

    if (!atomic_load_explicit(&loop->posts, memory_order_relaxed))
        return;
    post = atomic_exchange(&loop->posts, NULL);
    while (post) { /* newest first: turn round */
        LoopPost *next = post->next;

        post->next = in_order;
        in_order = post;
        post = next;
    }
    while (in_order) {
        post = in_order;
        in_order = post->next; /* run() may free the post */
        post->run(post);
    }
}

typedef struct StartPost {
    LoopPost post; /* first */
    Loop *target;
    const char *name;
    void (*fn)(void *arg);
    void *arg;
} StartPost;

static void run_start(LoopPost *post)
{
    StartPost *start = CONTAINER_OF(post, StartPost, post);

    co_start(&start->target->group, start->name, start->fn, start->arg);
    free(start);
}

void loop_post(Loop *target, const char *name, void (*fn)(void *arg), void *arg)
{
    StartPost *start = mem_new(StartPost);

    *start = (StartPost){.post.run = run_start, .target = target, .name = name, .fn = fn, .arg = arg};
    loop_add_post(target, &start->post);
}

typedef struct Call {
    LoopPost post; /* first; used there and back */
    Loop *caller, *target;
    int (*fn)(void *arg);
    void *arg;
    int result;
    CoWait wait;
} Call;

static void call_returned(LoopPost *post)
{
    Call *call = CONTAINER_OF(post, Call, post);

    co_wake(&call->wait, call->result);
}

static void call_body(void *arg)
{
    Call *call = arg;

    call->result = call->fn(call->arg);
    call->post.run = call_returned;
    loop_add_post(call->caller, &call->post);
}

static void call_arrived(LoopPost *post)
{
    Call *call = CONTAINER_OF(post, Call, post);

    co_start(&call->target->group, "call", call_body, call);
}

int loop_call(Loop *target, int (*fn)(void *arg), void *arg)
{
    Call call = {.post.run = call_arrived, .caller = current_loop, .target = target, .fn = fn, .arg = arg};

    if (target == current_loop)
        return fn(arg);
    loop_add_post(target, &call.post);
    return co_wait_shielded(&call.wait);
}

/* ---- Pollers ---- */

void loop_poller_start(LoopPoller *poller)
{
    if (!poller->link.next)
        list_append(&current_loop->pollers, &poller->link);
}

void loop_poller_stop(LoopPoller *poller)
{
    list_remove(&poller->link);
    poller->link = (List){0};
}

/* True if a poller has found work. */
static bool look_around(Loop *loop)
{
    bool found = false;

    LIST_FOREACH_SAFE (link, &loop->pollers) {
        LoopPoller *poller = LIST_ENTRY(link, LoopPoller, link);

        found |= poller->look(poller);
    }
    return found;
}

/* The loop is going to sleep; true if it must not. */
static bool put_pollers_to_sleep(Loop *loop)
{
    bool found = false;

    LIST_FOREACH_SAFE (link, &loop->pollers) {
        LoopPoller *poller = LIST_ENTRY(link, LoopPoller, link);

        if (poller->sleep(poller))
            found = true;
        else
            loop_poller_stop(poller);
    }
    return found;
}

/* ---- The turn ---- */

/* Spins for a while before sleeping; true if something came up. */
static bool poll_for_work(Loop *loop, uint64_t until_ns)
{
    while (clock_monotonic_ns() < until_ns) {
        if (atomic_load_explicit(&loop->posts, memory_order_relaxed) || look_around(loop) ||
            loop->backend->has_completions(loop))
            return true;
    }
    return false;
}

/* The wait took blocked_ns in all. Longer polling would have caught it, or was in vain. */
static void adapt_polling(Loop *loop, uint64_t blocked_ns)
{
    const LoopOptions *o = &loop->options;
    uint64_t grow = o->poll_grow ? o->poll_grow : POLL_GROW_DEFAULT;

    if (blocked_ns <= loop->poll_ns)
        return;
    if (blocked_ns > o->poll_max_ns)
        loop->poll_ns = o->poll_shrink ? loop->poll_ns / o->poll_shrink : 0;
    else if (loop->poll_ns < o->poll_max_ns)
        loop->poll_ns = MIN(loop->poll_ns ? loop->poll_ns * grow : POLL_START_NS, o->poll_max_ns);
}

static uint64_t time_until(uint64_t at_ns, uint64_t now_ns)
{
    return at_ns == UINT64_MAX ? UINT64_MAX : at_ns > now_ns ? at_ns - now_ns : 0;
}

static void wait_for_events(Loop *loop)
{
    uint64_t start_ns = clock_monotonic_ns();
    uint64_t timeout_ns = time_until(co_sched_next_deadline_ns(loop->sched), start_ns);
    bool polls = loop->options.poll_max_ns > 0;

    if (polls && loop->poll_ns && timeout_ns) {
        loop->backend->turn(loop, 0);
        if (co_sched_has_ready(loop->sched) || poll_for_work(loop, start_ns + MIN(loop->poll_ns, timeout_ns)))
            timeout_ns = 0;
    }
    if (timeout_ns) {
        atomic_store(&loop->asleep, true);
        if (put_pollers_to_sleep(loop) || atomic_load(&loop->posts))
            timeout_ns = 0;
    }
    loop->backend->turn(loop, timeout_ns);
    atomic_store_explicit(&loop->asleep, false, memory_order_relaxed);
    if (polls)
        adapt_polling(loop, clock_monotonic_ns() - start_ns);
}

static void turn(Loop *loop)
{
    bool more = true;

    loop->now_ns = clock_monotonic_ns();
    for (unsigned pass = 0; pass < PASSES_PER_TURN && more; pass++) {
        run_posts(loop);
        more = co_sched_run(loop->sched) || atomic_load_explicit(&loop->posts, memory_order_relaxed);
    }
    if (look_around(loop) || more)
        loop->backend->turn(loop, 0);
    else if (!loop->stopping || loop->group.count)
        wait_for_events(loop);
}

/* ---- Start and end ---- */

/* What the environment asks for instead of the automatic choice. */
static LoopBackendKind forced_kind(void)
{
    const char *name = getenv("GRANARY_LOOP");

    if (!name)
        return LOOP_BACKEND_AUTO;
    if (str_eq(name, "epoll"))
        return LOOP_BACKEND_EPOLL;
    if (str_eq(name, "io_uring"))
        return LOOP_BACKEND_IO_URING;
    log_warn(
        "GRANARY_LOOP: '%s' is neither 'epoll' nor 'io_uring'; choosing by what the kernel allows", name);
    return LOOP_BACKEND_AUTO;
}

static int open_backend(Loop *loop, LoopBackendKind kind)
{
    int r;

    if (kind == LOOP_BACKEND_AUTO)
        kind = forced_kind();
    loop->backend = kind == LOOP_BACKEND_EPOLL ? &loop_backend_epoll : &loop_backend_uring;
    r = loop->backend->init(loop);
    if (r < 0 && kind == LOOP_BACKEND_AUTO) {
        loop->backend = &loop_backend_epoll;
        r = loop->backend->init(loop);
    }
    return r;
}

/* NULL if there are too many. */
static Loop *loop_alloc(const char *name, const LoopOptions *options)
{
    unsigned index = 0;
    Loop *loop;

    while (index < LIMIT_LOOPS && all_loops[index])
        index++;
    if (index == LIMIT_LOOPS)
        return NULL;
    loop = all_loops[index] = mem_new(Loop);
    loop->index = index;
    snprintf(loop->name, sizeof(loop->name), "%s", name);
    loop->options = *options;
    loop->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    loop->sched = co_sched_new(clock_monotonic_ns);
    loop->workers = worker_pool_new(loop);
    co_group_init(&loop->group);
    list_init(&loop->pollers);
    return loop;
}

static void name_leftover(Co *co, void *arg)
{
    log_error("loop '%s': coroutine '%s' is still there at the end", ((Loop *)arg)->name, co_name(co));
}

static void loop_release(Loop *loop)
{
    co_sched_foreach(loop->sched, name_leftover, loop);
    worker_pool_free(loop->workers);
    co_sched_free(loop->sched);
    fd_close(loop->wake_fd);
    all_loops[loop->index] = NULL;
    free(loop);
}

/* Makes the calling thread the loop's. */
static int loop_enter(Loop *loop, LoopBackendKind kind)
{
    int r = loop->wake_fd < 0 ? -EMFILE : open_backend(loop, kind);

    if (r < 0)
        return r;
    current_loop = loop;
    loop->thread_id = gettid();
    loop->now_ns = clock_monotonic_ns();
    co_sched_enter(loop->sched);
    return 0;
}

static void loop_run(Loop *loop)
{
    while (!loop->stopping || loop->group.count)
        turn(loop);
    run_posts(loop);
    loop->backend->done(loop);
    co_sched_enter(NULL);
    current_loop = NULL;
}

typedef struct MainCall {
    Loop *loop;
    int (*fn)(void *arg);
    void *arg;
    int result;
} MainCall;

static void main_body(void *arg)
{
    MainCall *call = arg;

    call->result = call->fn(call->arg);
    call->loop->stopping = true;
}

int loop_run_main(LoopBackendKind kind, const LoopOptions *options, int (*main_fn)(void *arg), void *arg)
{
    Loop *loop = loop_alloc("main", options);
    MainCall call = {.loop = loop, .fn = main_fn, .arg = arg};
    int r = loop ? loop_enter(loop, kind) : -EAGAIN;

    if (!loop)
        return r;
    if (r == 0) {
        co_start(&loop->group, "main", main_body, &call);
        loop_run(loop);
        r = call.result;
    }
    loop_release(loop);
    return r;
}

typedef struct ThreadStart {
    Loop *loop;
    LoopBackendKind kind;
    int result;
    Loop *creator;
    LoopPost started;
    CoWait wait;
} ThreadStart;

static void thread_started(LoopPost *post)
{
    ThreadStart *start = CONTAINER_OF(post, ThreadStart, started);

    co_wake(&start->wait, start->result);
}

static void *thread_main(void *arg)
{
    ThreadStart *start = arg;
    Loop *loop = start->loop;
    int r = loop_enter(loop, start->kind);

    pthread_setname_np(pthread_self(), loop->name);
    start->result = r;
    loop_add_post(start->creator, &start->started);
    if (r == 0)
        loop_run(loop);
    return NULL;
}

int loop_new(const char *name, LoopBackendKind kind, const LoopOptions *options, Loop **ret_loop, Error *err)
{
    Loop *loop = loop_alloc(name, options);
    ThreadStart start = {.loop = loop, .kind = kind, .creator = current_loop, .started.run = thread_started};
    sigset_t all, old;
    int r;

    if (!loop)
        return err_set(
            err, -EAGAIN, "cannot start the thread of '%s': there are %d already", name, LIMIT_LOOPS);
    sigfillset(&all);
    sigdelset(&all, SIGBUS); /* blocked, a fault could not be handled (virtio/mapping.h) */
    pthread_sigmask(SIG_SETMASK, &all, &old);
    r = -pthread_create(&loop->thread, NULL, thread_main, &start);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (r == 0) {
        r = co_wait_shielded(&start.wait);
        if (r < 0)
            pthread_join(loop->thread, NULL);
    }
    if (r < 0) {
        loop_release(loop);
        return err_set_errno(err, r, "cannot start the thread of '%s'", name);
    }
    *ret_loop = loop;
    return 0;
}

static void stop_body(void *arg)
{
    Loop *loop = arg;

    loop->stopping = true;
}

static int join_thread(void *arg)
{
    Loop *loop = arg;

    return -pthread_join(loop->thread, NULL);
}

void loop_free(Loop *loop)
{
    if (!loop)
        return;
    loop_post(loop, "stop", stop_body, loop);
    loop_work(join_thread, loop);
    loop_release(loop);
}

typedef struct OptionsCall {
    Loop *loop;
    LoopOptions options;
} OptionsCall;

static void set_options_body(void *arg)
{
    OptionsCall *call = arg;

    call->loop->options = call->options;
    call->loop->poll_ns = MIN(call->loop->poll_ns, call->options.poll_max_ns);
    worker_pool_set_limits(call->loop->workers, call->options.thread_pool_min, call->options.thread_pool_max);
    free(call);
}

void loop_set_options(Loop *loop, const LoopOptions *options)
{
    OptionsCall *call = mem_new(OptionsCall);

    *call = (OptionsCall){.loop = loop, .options = *options};
    loop_post(loop, "set-options", set_options_body, call);
}
