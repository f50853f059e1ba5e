/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Refcounts and allocation. Refcounts change in the cache only; when they reach the disk is the business of
 * sync.c. A cluster whose refcount block does not exist has refcount zero.
 */
#include "drivers/qcow2/qcow2-priv.h"

/* Descriptors have room for 56 bits of host offset. */
static uint64_t max_clusters(const Qcow2 *q)
{
    return QCOW2_MAX_HOST_OFFSET >> q->cluster_bits;
}

/* ---- Access ---- */

/* Refcounts that are looked at between two turns of the others: well under a millisecond. */
#define BREATH_REFCOUNTS 65536
/* Searching a slice as a whole takes as long as looking at so many refcounts one by one. */
#define SLICE_STEPS 512

void refcount_breathe(uint64_t *steps, uint64_t worth)
{
    *steps += worth;
    if (LIKELY(*steps < BREATH_REFCOUNTS))
        return;
    *steps = 0;
    co_shield_begin();
    (void)!co_yield ();
    co_shield_end();
}

static int check_block(Qcow2 *q, uint64_t table_index, uint64_t block)
{
    if (in_cluster(q, block))
        return image_corrupt(q, true, -1, -1,
            "Refblock offset %#" PRIx64 " unaligned (reftable index: %#" PRIx64 ")", block, table_index);
    return write_overlap_check(q, block, q->cluster_size, META_REFBLOCK);
}

int refcount_slice_of(Qcow2 *q, uint64_t block, uint64_t cluster, CacheEntry **ret_slice, uint32_t *ret_index)
{
    uint64_t slice;
    int r = check_block(q, cluster >> q->block_rc_bits, block);

    if (r < 0)
        return r;
    slice = cluster >> q->slice_rc_bits & ((UINT64_C(1) << (q->block_rc_bits - q->slice_rc_bits)) - 1);
    r = cache_get(&q->refcounts, block + (slice << q->refcounts.slice_bits), ret_slice);
    if (r < 0)
        return r;
    *ret_index = (uint32_t)cluster & ((1U << q->slice_rc_bits) - 1);
    return 0;
}

int refcount_slice(Qcow2 *q, uint64_t cluster, bool create, CacheEntry **ret_slice, uint32_t *ret_index)
{
    uint64_t table_index = cluster >> q->block_rc_bits, block;
    int r;

    block = table_index < q->rt_entries ? q->rt[table_index] & QCOW2_RT_OFFSET_MASK : 0;
    if (!block && !create) {
        *ret_slice = NULL;
        return 0;
    }
    if (!block) {
        r = refcount_grow(q, table_index);
        if (r < 0)
            return r;
        block = q->rt[table_index];
    }
    return refcount_slice_of(q, block, cluster, ret_slice, ret_index);
}

int refcount_read(Qcow2 *q, uint64_t cluster, uint64_t *ret_count)
{
    CacheEntry *slice;
    uint32_t index;
    int r = refcount_slice(q, cluster, false, &slice, &index);

    if (r < 0)
        return r;
    *ret_count = slice ? qcow2_refcount_get(slice->table, q->refcount_order, index) : 0;
    return 0;
}

int refcount_add(Qcow2 *q, uint64_t cluster, int delta, uint64_t *ret_new)
{
    uint64_t count, max = qcow2_refcount_max(q->refcount_order);
    CacheEntry *slice;
    uint32_t index;
    int r = refcount_slice(q, cluster, delta > 0, &slice, &index);

    if (r < 0)
        return r;
    count = slice ? qcow2_refcount_get(slice->table, q->refcount_order, index) : 0;
    if (delta < 0 ? count == 0 : count == max)
        return -ERANGE;
    count += (uint64_t)(int64_t)delta;
    qcow2_refcount_set(cache_modify(&q->refcounts, slice), q->refcount_order, index, count);
    *ret_new = count;
    return 0;
}

/* ---- Allocation ---- */

/* Free clusters of one slice from *cluster on: 0 with *cluster moved past the slice, or their number. */
static int64_t take_from_slice(Qcow2 *q, uint64_t *cluster, uint64_t want)
{
    uint32_t index, first, end, entries = 1U << q->slice_rc_bits;
    CacheEntry *slice;
    uint8_t *table;
    int r = refcount_slice(q, *cluster, true, &slice, &index);

    if (r < 0)
        return r;
    first = qcow2_refcount_find_free(slice->table, q->refcount_order, index, entries);
    *cluster += first - index;
    q->free_hint = MAX(q->free_hint, *cluster);
    if (first == entries)
        return 0;
    end = first;
    while (end < entries && end - first < want && !qcow2_refcount_get(slice->table, q->refcount_order, end))
        end++;
    table = cache_modify(&q->refcounts, slice);
    for (uint32_t i = first; i < end; i++)
        qcow2_refcount_set(table, q->refcount_order, i, 1);
    q->free_hint = *cluster + (end - first);
    return end - first;
}

/*
 * Before an allocation. Refcounts that are kept lazily are written when the image is closed; the dirty bit
 * tells whoever finds the image before that not to trust them.
 */
static int prepare_alloc(Qcow2 *q)
{
    int r;

    if (!q->lazy_refcounts || q->refcounts_lag)
        return 0;
    r = image_change_incompatible(q, QCOW2_INCOMPATIBLE_DIRTY, 0);
    if (r == 0)
        q->refcounts_lag = true;
    return r;
}

int refcount_check_table(Qcow2 *q)
{
    if (UNLIKELY(q->rt_twice))
        return image_corrupt(
            q, true, -1, -1, "Refcount block at %#" PRIx64 " is used more than once", q->rt_twice);
    return 0;
}

static int alloc_locked(Qcow2 *q, uint64_t want, ClusterRun *ret_run)
{
    uint64_t cluster = q->free_hint, steps = 0;
    int64_t count;
    int r;

    r = refcount_check_table(q);
    if (r < 0)
        return r;
    do {
        if (cluster >= max_clusters(q))
            return -EFBIG;
        count = take_from_slice(q, &cluster, want);
        if (count < 0)
            return (int)count;
        refcount_breathe(&steps, SLICE_STEPS);
    } while (count == 0);
    *ret_run = (ClusterRun){.offset = cluster << q->cluster_bits, .count = (uint64_t)count};
    r = write_overlap_check(q, ret_run->offset, ret_run->count << q->cluster_bits, 0);
    if (r < 0)
        return r;
    ret_run->fresh = ret_run->offset >= q->fresh_offset && ret_run->offset >= node_size(edge_node(q->file));
    q->fresh_offset = MAX(q->fresh_offset, ret_run->offset + (ret_run->count << q->cluster_bits));
    return 0;
}

/* ---- Clusters that are allocated ahead ---- */

#define RESERVE_BYTES (8 * MIB)

void refcount_release_reserve(Qcow2 *q)
{
    if (q->reserve.count)
        free_range(q, FREE_READY, q->reserve.offset, q->reserve.count << q->cluster_bits, false);
    q->reserve = (ClusterRun){0};
}

/* A mapping may become durable before the data does, but not before the file reaches so far: an entry beyond
 * the end of the file is corruption for those who check it. */
static int reach_reserve(Qcow2 *q)
{
    static const uint8_t zeroes[512];
    uint64_t end = q->reserve.offset + (q->reserve.count << q->cluster_bits);

    if (end <= node_size(edge_node(q->file)))
        return 0;
    return edge_pwrite(q->file, end - sizeof(zeroes), zeroes, sizeof(zeroes), 0);
}

static int fill_reserve(Qcow2 *q)
{
    uint64_t bytes = MIN(RESERVE_BYTES, q->header.size); /* a small disk never needs so much */
    int r = alloc_locked(q, MAX(bytes >> q->cluster_bits, UINT64_C(1)), &q->reserve);

    if (r < 0)
        return r;
    r = reach_reserve(q);
    if (r == 0)
        r = sync_refcounts(q);
    if (r == 0)
        r = edge_flush(q->file);
    if (r < 0)
        refcount_release_reserve(q);
    return r;
}

static int take_from_reserve(Qcow2 *q, uint64_t want, ClusterRun *ret_run)
{
    ClusterRun *reserve = &q->reserve;
    int r = reserve->count ? 0 : fill_reserve(q);

    if (r < 0)
        return r;
    *ret_run = (ClusterRun){.offset = reserve->offset,
        .count = MIN(want, reserve->count),
        .fresh = reserve->fresh,
        .durable = true};
    reserve->offset += ret_run->count << q->cluster_bits;
    reserve->count -= ret_run->count;
    return 0;
}

int refcount_alloc(Qcow2 *q, uint64_t want, ClusterRun *ret_run)
{
    int r;

    if (q->frees[FREE_READY].count)
        (void)!free_reclaim(q);
    co_mutex_lock_shielded(&q->refcount_lock);
    r = prepare_alloc(q);
    if (r == 0)
        r = q->reserves ? take_from_reserve(q, want, ret_run) : alloc_locked(q, want, ret_run);
    co_mutex_unlock(&q->refcount_lock);
    return r;
}

/* Clusters from start on that are free, at most count. */
static int count_free(Qcow2 *q, uint64_t start, uint64_t count, uint64_t *steps, uint64_t *ret_free)
{
    for (uint64_t i = 0; i < count; i++) {
        uint64_t refs;
        int r = refcount_read(q, start + i, &refs);

        if (r < 0)
            return r;
        if (refs) {
            *ret_free = i;
            return 0;
        }
        refcount_breathe(steps, 1);
    }
    *ret_free = count;
    return 0;
}

static int alloc_exact_locked(Qcow2 *q, uint64_t count, uint64_t *ret_offset)
{
    uint64_t start = q->free_hint, got = 0, steps = 0, refs;
    int r;

    r = refcount_check_table(q);
    if (r < 0)
        return r;
    if (count >> q->block_rc_bits) { /* would always meet a block that has to be made */
        r = refcount_grow_area(q, count, &start);
        *ret_offset = start << q->cluster_bits;
        return r;
    }
    for (;;) {
        if (start + count > max_clusters(q))
            return -EFBIG;
        refcount_breathe(&steps, 1);
        r = count_free(q, start, count, &steps, &got);
        if (r < 0)
            return r;
        if (got == count) {
            uint64_t i = 0;

            /* Making a refcount block may take one of the clusters that were free. */
            while (i < count && (r = refcount_add(q, start + i, 1, &refs)) == 0 && refs == 1)
                i++;
            if (i == count)
                break;
            for (uint64_t undo = r == 0 ? i + 1 : i; undo-- > 0;)
                (void)!refcount_add(q, start + undo, -1, &refs);
            if (r < 0 && r != -ERANGE) /* a block was made there, and one bit cannot count to two */
                return r;
            got = i;
        }
        start += got + 1;
    }
    *ret_offset = start << q->cluster_bits;
    q->fresh_offset = MAX(q->fresh_offset, (start + count) << q->cluster_bits);
    return write_overlap_check(q, *ret_offset, count << q->cluster_bits, 0);
}

int refcount_alloc_exact(Qcow2 *q, uint64_t count, uint64_t *ret_offset)
{
    int r;

    co_mutex_lock_shielded(&q->refcount_lock);
    r = prepare_alloc(q);
    if (r == 0)
        r = alloc_exact_locked(q, count, ret_offset);
    co_mutex_unlock(&q->refcount_lock);
    return r;
}

/* ---- Compressed clusters: any byte offset, several in a cluster, one reference each ---- */

/* Room behind the last compressed cluster, in that cluster and if need be in the next one. */
static int extend_compressed(Qcow2 *q, uint32_t bytes, uint64_t *ret_offset)
{
    uint64_t cluster = q->compressed_at >> q->cluster_bits, refs;
    uint64_t last = (q->compressed_at + bytes - 1) >> q->cluster_bits;
    int r;

    if (!q->compressed_at)
        return -ENOSPC;
    r = refcount_read(q, cluster, &refs);
    if (r < 0)
        return r;
    if (refs == 0 || refs == qcow2_refcount_max(q->refcount_order))
        return -ENOSPC;
    if (last != cluster) {
        uint64_t next_refs;

        r = refcount_read(q, last, &next_refs);
        if (r < 0)
            return r;
        if (next_refs)
            return -ENOSPC;
        r = write_overlap_check(q, last << q->cluster_bits, q->cluster_size, 0);
        if (r == 0)
            r = refcount_add(q, last, 1, &next_refs);
        if (r < 0)
            return r;
        if (next_refs != 1) { /* became a refcount block */
            r = refcount_add(q, last, -1, &next_refs);
            return r < 0 ? r : -ENOSPC;
        }
        q->fresh_offset = MAX(q->fresh_offset, (last + 1) << q->cluster_bits);
    }
    r = refcount_add(q, cluster, 1, &refs);
    if (r < 0)
        return r;
    *ret_offset = q->compressed_at;
    return 0;
}

int refcount_alloc_bytes(Qcow2 *q, uint32_t bytes, uint64_t *ret_offset)
{
    ClusterRun run;
    int r;

    co_mutex_lock_shielded(&q->refcount_lock);
    r = prepare_alloc(q);
    if (r == 0)
        r = extend_compressed(q, bytes, ret_offset);
    if (r == -ENOSPC) {
        r = alloc_locked(q, 1, &run);
        if (r == 0)
            *ret_offset = run.offset;
    }
    if (r == 0) {
        q->compressed_at = *ret_offset + bytes;
        if (!in_cluster(q, q->compressed_at))
            q->compressed_at = 0;
    }
    co_mutex_unlock(&q->refcount_lock);
    return r;
}
