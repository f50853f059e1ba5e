/* SPDX-License-Identifier: Apache-2.0 */
/* Stands in for the loop and the worker pool: see test-graph.h. */
#include "drivers/qcow2/test-graph.h"

#include <assert.h>

static uint64_t no_clock(void)
{
    return 0;
}

void test_run(void (*fn)(void *arg), void *arg)
{
    CoSched *sched = co_sched_new(no_clock);
    CoGroup group;

    co_sched_enter(sched);
    co_group_init(&group);
    co_start(&group, "test", fn, arg);
    while (co_sched_run(sched))
        ;
    assert(co_sched_count(sched) == 0);
    co_sched_enter(NULL);
    co_sched_free(sched);
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
    return 0;
}
