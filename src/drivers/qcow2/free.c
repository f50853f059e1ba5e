/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The way of a cluster from "nothing maps it any more" to "may be used again": see qcow2-priv.h. Ranges hold
 * one reference each; several ranges may name the same cluster (compressed data).
 */
#include "base/mem.h"
#include "drivers/qcow2/qcow2-priv.h"

void free_list_push(FreeList *list, FreeRange range)
{
    FreeRange *last = list->count ? &list->items[list->count - 1] : NULL;

    if (last && last->offset + last->bytes == range.offset && last->discard == range.discard) {
        last->bytes += range.bytes;
        return;
    }
    VEC_GROW(list->items, list->count, list->capacity);
    list->items[list->count++] = range;
}

void free_range(Qcow2 *q, FreeStage stage, uint64_t offset, uint64_t bytes, bool discard)
{
    free_list_push(&q->frees[stage], (FreeRange){.offset = offset, .bytes = bytes, .discard = discard});
}

void free_move(Qcow2 *q, FreeStage from, FreeStage to)
{
    FreeList *source = &q->frees[from], *target = &q->frees[to];

    if (!target->count) {
        FreeList empty = *target;

        *target = *source;
        *source = empty;
        return;
    }
    for (size_t i = 0; i < source->count; i++)
        free_list_push(target, source->items[i]);
    source->count = 0;
}

/* ---- Epochs: which requests may still use an old place ---- */

static void begin_epoch(Qcow2 *q)
{
    Away *away = atomic_load_explicit(&q->away, memory_order_relaxed);

    q->epoch ^= 1;
    if (away)
        atomic_store_explicit(&away->epoch, q->epoch, memory_order_relaxed);
}

/*
 * The other epoch is empty whenever one begins: of requests at home, because nothing was waiting for it; of
 * reads away it has to be looked at, as one may have been slow to count itself.
 */
static void advance(Qcow2 *q)
{
    while (q->frees[FREE_WAITING].count || q->frees[FREE_DURABLE].count) {
        unsigned other = q->epoch ^ 1;

        if (q->inflight[other] || away_in_flight(q, other))
            return;
        free_move(q, FREE_WAITING, FREE_READY);
        free_move(q, FREE_DURABLE, FREE_WAITING);
        if (q->frees[FREE_WAITING].count)
            begin_epoch(q);
    }
}

unsigned request_begin(Qcow2 *q)
{
    q->inflight[q->epoch]++;
    return q->epoch;
}

void request_end(Qcow2 *q, unsigned epoch)
{
    q->inflight[epoch]--;
    if (UNLIKELY(q->frees[FREE_WAITING].count || q->frees[FREE_DURABLE].count))
        advance(q);
}

void free_durable(Qcow2 *q)
{
    free_move(q, FREE_WRITING, FREE_DURABLE);
    advance(q);
}

/* ---- Decrements ---- */

static void cluster_freed(Qcow2 *q, uint64_t cluster)
{
    uint64_t offset = cluster << q->cluster_bits;

    if (metaset_kinds(&q->meta, cluster)) {
        metaset_remove(&q->meta, cluster, ~0U);
        cache_forget(&q->l2, offset, q->cluster_size);
        cache_forget(&q->refcounts, offset, q->cluster_size);
    }
    inflate_forget(q, cluster);
    q->free_hint = MIN(q->free_hint, cluster);
    if (q->compressed_at >> q->cluster_bits == cluster)
        q->compressed_at = 0;
}

static int decrement(Qcow2 *q, uint64_t cluster)
{
    uint64_t count;
    int r = refcount_add(q, cluster, -1, &count);

    if (r == 0 && count == 0)
        cluster_freed(q, cluster);
    return r;
}

/* Takes one reference from each cluster of a range; those whose last one it is and that want a discard go to
 * *last instead, still referenced. */
static int drop_range(Qcow2 *q, FreeRange range, FreeList *last, uint64_t *steps)
{
    for (uint64_t at = range.offset; at < range.offset + range.bytes; at += q->cluster_size) {
        uint64_t count = 0;
        int r = range.discard ? refcount_read(q, at >> q->cluster_bits, &count) : 0;

        if (r == 0 && count == 1)
            free_list_push(last, (FreeRange){.offset = at, .bytes = q->cluster_size, .discard = true});
        else if (r == 0)
            r = decrement(q, at >> q->cluster_bits);
        if (r < 0 && r != -ERANGE)
            return r; /* the rest is leaked, which is safe */
        refcount_breathe(steps, 8);
    }
    return 0;
}

static int drop_all(Qcow2 *q, FreeList *list, FreeList *last)
{
    uint64_t steps = 0;
    int result = 0;

    co_mutex_lock_shielded(&q->refcount_lock);
    for (size_t i = 0; i < list->count; i++) {
        int r = drop_range(q, list->items[i], last, &steps);

        result = result < 0 ? result : r;
    }
    co_mutex_unlock(&q->refcount_lock);
    return result;
}

void free_punch(Qcow2 *q, uint64_t offset, uint64_t bytes)
{
    uint64_t size = node_size(edge_node(q->file));

    if (offset < size)
        (void)!edge_discard(q->file, offset, MIN(bytes, size - offset)); /* only a hint */
}

int free_reclaim(Qcow2 *q)
{
    FreeList ready = q->frees[FREE_READY], last = {0}, none = {0};
    int r, r2;

    if (!ready.count || q->reclaiming)
        return 0;
    q->reclaiming = true;
    q->frees[FREE_READY] = (FreeList){0};
    r = drop_all(q, &ready, &last);
    /* Punch out while the clusters are still referenced, so that nobody can have got them meanwhile. */
    for (size_t i = 0; i < last.count; i++) {
        free_punch(q, last.items[i].offset, last.items[i].bytes);
        last.items[i].discard = false;
    }
    r2 = drop_all(q, &last, &none);
    free(ready.items);
    free(last.items);
    free(none.items);
    q->reclaiming = false;
    return r < 0 ? r : r2;
}
