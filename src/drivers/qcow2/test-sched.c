/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stands in for the loop, the worker pool and the clock: see test-graph.h. Requests are parked; when nobody
 * else can run, and now and then before that, one of them goes on. Which one is left to chance, and a few are
 * slow.
 */
#include "drivers/qcow2/test-graph.h"

#include "base/mem.h"

#include <stdio.h>

#define MAX_IDLE_TURNS 1000000 /* without a step of the disk: somebody goes round in circles */

typedef struct Parked {
    CoWait wait;
    bool slow;
} Parked;

static Parked **parked;
static size_t parked_count, parked_capacity;
static uint64_t now_ns;

void (*test_on_step)(void);
uint64_t test_steps;

void test_pause(void)
{
    Parked self = {0};

    if (!mem_yields || !test_random(4))
        return;
    self.slow = !test_random(64);
    VEC_GROW(parked, parked_count, parked_capacity);
    parked[parked_count++] = &self;
    co_wait_shielded(&self.wait);
}

void test_pass_time(uint64_t ns)
{
    now_ns += ns;
}

static void step(void)
{
    size_t i = test_random(parked_count);

    if (parked[i]->slow && test_random(32))
        i = test_random(parked_count);
    now_ns += 1 + test_random(test_random(200) ? 200000 : UINT64_C(2000000000));
    test_steps++;
    if (test_on_step)
        test_on_step();
    co_wake(&parked[i]->wait, 0);
    parked[i] = parked[--parked_count];
}

static NORETURN void stuck(const char *how)
{
    fprintf(stderr, "stuck: %s\n", how);
    abort();
}

static uint64_t clock_ns(void)
{
    return now_ns;
}

static void run_all(CoSched *sched)
{
    unsigned idle = 0;

    while (co_sched_count(sched)) {
        bool ready = co_sched_run(sched);

        if (parked_count && (!ready || !test_random(2))) {
            step();
            idle = 0;
        } else if (!ready && co_sched_count(sched)) {
            if (co_sched_next_deadline_ns(sched) == UINT64_MAX)
                stuck("nothing is in flight, and yet somebody waits");
            now_ns = MAX(now_ns, co_sched_next_deadline_ns(sched));
        } else if (++idle == MAX_IDLE_TURNS) {
            stuck("somebody runs without ever waiting for the disk");
        }
    }
}

void test_run(void (*fn)(void *arg), void *arg)
{
    CoSched *sched = co_sched_new(clock_ns);
    CoGroup group;

    now_ns = test_steps = 0;
    co_sched_enter(sched);
    co_group_init(&group);
    co_start(&group, "test", fn, arg);
    run_all(sched);
    co_sched_enter(NULL);
    co_sched_free(sched);
    free(TAKE(parked));
    parked_capacity = 0;
}

int loop_work(int (*fn)(void *arg), void *arg)
{
    test_pause();
    return fn(arg);
}

int loop_call(Loop *target, int (*fn)(void *arg), void *arg)
{
    return fn(arg);
}

/* As the home of every node. */
Loop *loop_current(void)
{
    return NULL;
}

unsigned loop_index(const Loop *loop)
{
    return 0;
}

uint64_t loop_now_ns(void)
{
    return now_ns;
}
