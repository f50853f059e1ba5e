/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Once in an interval, what nobody has asked for since the last time gives its memory back. That is a
 * coroutine on the node's home loop, which exists only while there is something to give back: a node that is
 * left alone wakes nobody once its caches are empty.
 */
#include "drivers/qcow2/qcow2-priv.h"

/* True if there is more for the next time. What is dirty is not: it starts the cleaner again when it is
 * clean. */
static bool clean(Qcow2 *q)
{
    bool l2 = cache_clean(&q->l2), refcounts = cache_clean(&q->refcounts), inflated = inflate_clean(q);

    return l2 || refcounts || inflated;
}

static void run(void *arg)
{
    Qcow2 *q = arg;

    while (q->clean_interval_ns && co_sleep_ns(q->clean_interval_ns) == 0 && clean(q))
        ;
    q->cleaning = false;
}

void clean_begin(Qcow2 *q)
{
    if (LIKELY(q->cleaning || !q->clean_interval_ns))
        return;
    q->cleaning = true;
    co_start(&q->cleaner, "qcow2-cleaner", run, q);
}

void clean_end(Qcow2 *q)
{
    co_group_cancel(&q->cleaner);
    co_group_join(&q->cleaner);
    co_group_init(&q->cleaner);
}
