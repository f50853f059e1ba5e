/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Order between overlapping writes where that matters: a read-modify-write of a partial block must not run
 * beside any other write to that block. Writes to nodes whose requests can be unaligned register here; only
 * exclusive ones make others wait.
 *
 * A request waits only for requests that were registered before it, so no two wait for each other.
 */
#include "block/block-priv.h"

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
    Serialised *blocker;

    *request = (Serialised){.offset = offset, .bytes = bytes, .exclusive = exclusive};
    list_append(&node->private->serialised, &request->link);
    while ((blocker = find_blocker(node, request)))
        co_cond_wait_shielded(&blocker->done, NULL);
}

void serialise_end(Node *node, Serialised *request)
{
    list_remove(&request->link);
    co_cond_broadcast(&request->done);
}
