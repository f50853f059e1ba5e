/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Order between overlapping writes where that matters: a read-modify-write of a partial block must not run
 * beside any other write to that block. Writes to nodes whose requests can be unaligned register here; only
 * exclusive ones make others wait.
 *
 * A request waits only for requests that were registered before it, so no two wait for each other. They may
 * come in on several loops: the list has a lock, and who waits is woken on the loop where it waits.
 */
#include "block/block-priv.h"

typedef struct Waiter {
    List link; /* in Serialised.waiters */
    Loop *loop;
    CoWait wait;
} Waiter;

static bool overlaps(const Serialised *a, const Serialised *b)
{
    return a->offset < b->offset + b->bytes && b->offset < a->offset + a->bytes;
}

static Serialised *find_blocker(Node *node, Serialised *request)
{
    LIST_FOREACH (link, &node->private->serialised) {
        Serialised *other = LIST_ENTRY(link, Serialised, link);

        if (other == request)
            return NULL;
        if ((other->exclusive || request->exclusive) && overlaps(other, request))
            return other;
    }
    return NULL;
}

void serialise_begin(Node *node, Serialised *request, uint64_t offset, uint64_t bytes, bool exclusive)
{
    pthread_mutex_t *lock = &node->private->serialise_lock;
    Serialised *blocker;

    *request = (Serialised){.offset = offset, .bytes = bytes, .exclusive = exclusive};
    list_init(&request->waiters);
    pthread_mutex_lock(lock);
    list_append(&node->private->serialised, &request->link);
    while ((blocker = find_blocker(node, request))) {
        Waiter waiter = {.loop = loop_current()};

        list_append(&blocker->waiters, &waiter.link);
        pthread_mutex_unlock(lock);
        co_wait_shielded(&waiter.wait);
        pthread_mutex_lock(lock);
    }
    pthread_mutex_unlock(lock);
}

static void wake(void *arg)
{
    Waiter *waiter = arg;

    co_wake(&waiter->wait, 0);
}

void serialise_end(Node *node, Serialised *request)
{
    pthread_mutex_t *lock = &node->private->serialise_lock;
    List *link;

    pthread_mutex_lock(lock);
    list_remove(&request->link);
    while ((link = list_pop(&request->waiters))) {
        Waiter *waiter = LIST_ENTRY(link, Waiter, link);

        if (waiter->loop == loop_current())
            wake(waiter);
        else
            loop_post(waiter->loop, "serialise", wake, waiter);
    }
    pthread_mutex_unlock(lock);
}
