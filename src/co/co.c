/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scheduler, waits, deadlines and groups.
 *
 * A coroutine runs only from co_sched_run(), on the scheduler's thread. It is queued at most once, however
 * many reasons there are to run it; when it continues it looks at its CoWait first (the result is never lost)
 * and at its interruptions second. Interruptions are state (cancelled, deadline->expired), never messages, so
 * none can be overwritten or leak into a later wait.
 */
#include "co/co-priv.h"

#include "base/mem.h"

#include <assert.h>
#include <errno.h>

#if CO_ASAN
#include <pthread.h>
#endif
#if CO_TSAN
#include <sanitizer/tsan_interface.h>
#endif

/* Idle stacks kept for reuse. */
#define POOL_MAX 256
#define NOT_IN_HEAP UINT32_MAX

struct CoSched {
    List ready;   /* to run in the next pass */
    List running; /* the rest of the current pass */
    List all;
    List pool;
    unsigned pool_count, count;
    Co *current;
    Co *finished; /* has just returned and is to be recycled */
    CoContext main_context;
    uint64_t (*clock_ns)(void);
    CoDeadline **heap;
    unsigned heap_count, heap_capacity;
};

static __thread CoSched *current_sched;

/* ---- Deadline heap: the earliest is heap[0] ---- */

static void heap_place(CoSched *sched, unsigned index, CoDeadline *deadline)
{
    sched->heap[index] = deadline;
    deadline->heap_index = index;
}

static void heap_sift_up(CoSched *sched, unsigned index, CoDeadline *deadline)
{
    while (index) {
        unsigned parent = (index - 1) / 2;

        if (sched->heap[parent]->at_ns <= deadline->at_ns)
            break;
        heap_place(sched, index, sched->heap[parent]);
        index = parent;
    }
    heap_place(sched, index, deadline);
}

static void heap_sift_down(CoSched *sched, unsigned index, CoDeadline *deadline)
{
    for (;;) {
        unsigned child = index * 2 + 1;

        if (child >= sched->heap_count)
            break;
        if (child + 1 < sched->heap_count && sched->heap[child + 1]->at_ns < sched->heap[child]->at_ns)
            child++;
        if (deadline->at_ns <= sched->heap[child]->at_ns)
            break;
        heap_place(sched, index, sched->heap[child]);
        index = child;
    }
    heap_place(sched, index, deadline);
}

static void heap_add(CoSched *sched, CoDeadline *deadline)
{
    VEC_GROW(sched->heap, sched->heap_count, sched->heap_capacity);
    heap_sift_up(sched, sched->heap_count++, deadline);
}

static void heap_remove(CoSched *sched, CoDeadline *deadline)
{
    unsigned index = deadline->heap_index;
    CoDeadline *last;

    if (index == NOT_IN_HEAP)
        return;
    deadline->heap_index = NOT_IN_HEAP;
    last = sched->heap[--sched->heap_count];
    if (last == deadline)
        return;
    if (index && sched->heap[(index - 1) / 2]->at_ns > last->at_ns)
        heap_sift_up(sched, index, last);
    else
        heap_sift_down(sched, index, last);
}

/* ---- Running ---- */

static void make_ready(Co *co)
{
    if (co->queued)
        return;
    co->queued = true;
    list_append(&co->sched->ready, &co->ready_link);
}

static void suspend(Co *co)
{
    CoSched *sched = co->sched;

    sched->current = NULL;
    co_context_switch(&co->context, &sched->main_context);
}

static void finish(Co *co)
{
    CoGroup *group = co->group;

    assert(!co->deadlines && !co->shield_depth && !co->wait);
    list_remove(&co->group_link);
    list_remove(&co->all_link);
    co->group = NULL;
    if (--group->count == 0 && group->joiner)
        co_wake(TAKE(group->joiner), 0);
    co->sched->finished = co;
}

/* The bottom of every coroutine stack: runs one coroutine after another for as long as the stack is reused.
 */
static void co_main(Co *co)
{
    co_context_entered(&co->context);
    for (;;) {
        co->fn(co->arg);
        finish(co);
        suspend(co);
    }
}

static void recycle(CoSched *sched, Co *co)
{
    sched->count--;
    if (sched->pool_count >= POOL_MAX) {
        co_stack_free(co);
        return;
    }
    sched->pool_count++;
    list_prepend(&sched->pool, &co->all_link);
}

static void run_one(CoSched *sched, Co *co)
{
    co->queued = false;
    sched->current = co;
    co_context_switch(&sched->main_context, &co->context);
    if (sched->finished)
        recycle(sched, TAKE(sched->finished));
}

static void expire(CoSched *sched, CoDeadline *deadline)
{
    Co *co = deadline->co;

    heap_remove(sched, deadline);
    deadline->expired = true;
    if (deadline->sleeper)
        co_wake(deadline->sleeper, 0);
    else if (co->wait && co->interruptible)
        make_ready(co);
}

bool co_sched_run(CoSched *sched)
{
    List *link;

    assert(!sched->current);
    if (sched->heap_count) {
        uint64_t now_ns = sched->clock_ns();

        while (sched->heap_count && sched->heap[0]->at_ns <= now_ns)
            expire(sched, sched->heap[0]);
    }
    if (!list_empty(&sched->ready)) {
        sched->running = sched->ready;
        sched->running.next->prev = sched->running.prev->next = &sched->running;
        list_init(&sched->ready);
    }
    while ((link = list_pop(&sched->running)))
        run_one(sched, LIST_ENTRY(link, Co, ready_link));
    return !list_empty(&sched->ready);
}

bool co_sched_has_ready(const CoSched *sched)
{
    return !list_empty(&sched->ready);
}

uint64_t co_sched_next_deadline_ns(const CoSched *sched)
{
    return sched->heap_count ? sched->heap[0]->at_ns : UINT64_MAX;
}

CoSched *co_sched_new(uint64_t (*clock_ns)(void))
{
    CoSched *sched = mem_new(CoSched);

    list_init(&sched->ready);
    list_init(&sched->running);
    list_init(&sched->all);
    list_init(&sched->pool);
    sched->clock_ns = clock_ns;
    return sched;
}

void co_sched_free(CoSched *sched)
{
    List *link;

    assert(list_empty(&sched->all));
    while ((link = list_pop(&sched->pool)))
        co_stack_free(LIST_ENTRY(link, Co, all_link));
    free(sched->heap);
    free(sched);
}

void co_sched_enter(CoSched *sched)
{
    current_sched = sched;
    if (!sched)
        return;
#if CO_ASAN
    pthread_attr_t attr;
    void *bottom;

    pthread_getattr_np(pthread_self(), &attr);
    pthread_attr_getstack(&attr, &bottom, &sched->main_context.stack_size);
    sched->main_context.stack_bottom = bottom;
    pthread_attr_destroy(&attr);
#endif
#if CO_TSAN
    sched->main_context.tsan_fiber = __tsan_get_current_fiber();
#endif
}

void co_sched_foreach(CoSched *sched, void (*fn)(Co *co, void *arg), void *arg)
{
    LIST_FOREACH (link, &sched->all)
        fn(LIST_ENTRY(link, Co, all_link), arg);
}

unsigned co_sched_count(const CoSched *sched)
{
    return sched->count;
}

/* ---- The running coroutine ---- */

Co *co_self(void)
{
    return current_sched ? current_sched->current : NULL;
}

const char *co_name(const Co *co)
{
    return co->name;
}

int co_interrupted(void)
{
    Co *co = co_self();

    if (co->shield_depth)
        return 0;
    if (co->cancelled)
        return -ECANCELED;
    for (CoDeadline *d = co->deadlines; d; d = d->outer)
        if (d->expired)
            return -ETIMEDOUT;
    return 0;
}

static int wait_for(CoWait *w, bool interruptible)
{
    Co *co = co_self();

    assert(co);
    if (w->done)
        return w->result;
    w->co = co;
    co->wait = w;
    co->interruptible = interruptible;
    suspend(co);
    w->co = NULL;
    co->wait = NULL;
    return w->done ? w->result : co_interrupted();
}

int co_wait(CoWait *w)
{
    Co *co = co_self();
    int r = w->done ? 0 : co_interrupted();

    return r < 0 ? r : wait_for(w, co->shield_depth == 0);
}

int co_wait_shielded(CoWait *w)
{
    return wait_for(w, false);
}

void co_wake(CoWait *w, int result)
{
    assert(!w->done);
    w->done = true;
    w->result = result;
    if (w->co)
        make_ready(w->co);
}

int co_yield (void)
{
    Co *co = co_self();

    make_ready(co);
    suspend(co);
    return co_interrupted();
}

void co_shield_begin(void)
{
    co_self()->shield_depth++;
}

void co_shield_end(void)
{
    assert(co_self()->shield_depth);
    co_self()->shield_depth--;
}

void co_cancel(Co *co)
{
    co->cancelled = true;
    if (co->wait && co->interruptible)
        make_ready(co);
}

/* ---- Time ---- */

static uint64_t time_after(CoSched *sched, uint64_t duration_ns)
{
    uint64_t now_ns = sched->clock_ns();

    return duration_ns > UINT64_MAX - 1 - now_ns ? UINT64_MAX - 1 : now_ns + duration_ns;
}

void co_deadline_begin(CoDeadline *deadline, uint64_t timeout_ns)
{
    Co *co = co_self();

    *deadline = (CoDeadline){.co = co, .outer = co->deadlines, .at_ns = time_after(co->sched, timeout_ns)};
    co->deadlines = deadline;
    heap_add(co->sched, deadline);
}

void co_deadline_end(CoDeadline *deadline)
{
    assert(deadline->co == co_self() && deadline->co->deadlines == deadline);
    heap_remove(deadline->co->sched, deadline);
    deadline->co->deadlines = deadline->outer;
}

int co_sleep_ns(uint64_t duration_ns)
{
    Co *co = co_self();
    CoWait w = {0};
    CoDeadline alarm = {.co = co, .at_ns = time_after(co->sched, duration_ns), .sleeper = &w};
    int r;

    heap_add(co->sched, &alarm);
    r = co_wait(&w);
    heap_remove(co->sched, &alarm);
    return w.done ? 0 : r;
}

/* ---- Groups ---- */

void co_group_init(CoGroup *group)
{
    *group = (CoGroup){0};
    list_init(&group->children);
}

void co_start(CoGroup *group, const char *name, void (*fn)(void *arg), void *arg)
{
    CoSched *sched = current_sched;
    List *link = list_pop(&sched->pool);
    Co *co = link ? LIST_ENTRY(link, Co, all_link) : co_stack_new(co_main);

    sched->pool_count -= link != NULL;
    sched->count++;
    co->sched = sched;
    co->group = group;
    co->name = name;
    co->fn = fn;
    co->arg = arg;
    co->cancelled = group->cancelled;
    list_append(&sched->all, &co->all_link);
    list_append(&group->children, &co->group_link);
    group->count++;
    make_ready(co);
}

void co_group_cancel(CoGroup *group)
{
    group->cancelled = true;
    LIST_FOREACH (link, &group->children)
        co_cancel(LIST_ENTRY(link, Co, group_link));
}

static int group_wait(CoGroup *group, bool interruptible)
{
    while (group->count) {
        CoWait w = {0};
        int r;

        assert(!group->joiner);
        group->joiner = &w;
        r = interruptible ? co_wait(&w) : co_wait_shielded(&w);
        group->joiner = NULL;
        if (!w.done)
            return r;
    }
    return 0;
}

int co_group_wait(CoGroup *group)
{
    return group_wait(group, true);
}

void co_group_join(CoGroup *group)
{
    (void)group_wait(group, false);
}
