/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A change of many tables that becomes true all at once: with one write to the header, whose fields for the
 * L1 table, the refcount table and the snapshot table lie in one sector.
 *
 * Until then nothing that the file refers to is touched. New tables, and copies of the refcount blocks that
 * change, are written to clusters that are free by the old refcounts; a crash or a failure leaves the old
 * image, and not even leaks. Afterwards the old places are freed as usual, so that a crash leaks them at
 * worst.
 *
 * For the length of it nothing else may run on the image: the node is drained.
 *
 * Traps: refcounts of taken clusters enter the new blocks only in shadow_commit(); shadow_alloc() asks the
 * old blocks and never goes back, so that it gives nothing out twice. A last reference is never dropped here
 * but put on the list of what is freed afterwards.
 */
#include "drivers/qcow2/shadow.h"

#include "base/mem.h"

/* The part of the header that is written: from the size of the disk to the place of the snapshot table. */
#define HEADER_END 72u

static bool is_new_block(const Shadow *s, uint64_t index)
{
    uint64_t old = index < s->q->rt_entries ? s->q->rt[index] : 0;

    return s->rt[index] != old;
}

int shadow_begin(Qcow2 *q, Shadow *s)
{
    int r;

    *s = (Shadow){.q = q};
    r = refcount_check_table(q);
    if (r == 0)
        r = sync_close(q);
    if (r == 0)
        r = refcount_settle_table(q);
    if (r < 0)
        return r;
    s->header = q->header; /* which the steps before may have changed */
    s->rt_entries = s->rt_capacity = q->rt_entries;
    s->rt = mem_try_zalloc(MAX(s->rt_entries, 1U), sizeof(*s->rt));
    if (!s->rt)
        return -ENOMEM;
    memcpy(s->rt, q->rt, s->rt_entries * sizeof(*s->rt));
    s->next = q->free_hint;
    return 0;
}

/* ---- Clusters ---- */

/* Contiguous clusters that are free in the image as the file has it. */
static int find_free(Shadow *s, uint64_t count, uint64_t *ret_start)
{
    Qcow2 *q = s->q;
    uint64_t start = s->next, found = 0, refs;

    while (found < count) {
        int r;

        if (start + count > QCOW2_MAX_HOST_OFFSET >> q->cluster_bits)
            return -EFBIG;
        r = refcount_read(q, start + found, &refs);
        if (r < 0)
            return r;
        start = refs ? start + found + 1 : start;
        found = refs ? 0 : found + 1;
        refcount_breathe(&s->steps, 1);
    }
    *ret_start = start;
    return 0;
}

void shadow_share(Shadow *s, uint64_t offset, uint64_t bytes)
{
    free_list_push(&s->taken, (FreeRange){.offset = offset, .bytes = bytes});
}

int shadow_alloc(Shadow *s, uint64_t count, unsigned kind, uint64_t *ret_offset)
{
    Qcow2 *q = s->q;
    uint64_t start;
    int r = find_free(s, count, &start);

    if (r == 0)
        r = write_overlap_check(q, start << q->cluster_bits, count << q->cluster_bits, 0);
    if (r < 0)
        return r;
    s->next = start + count;
    shadow_share(s, start << q->cluster_bits, count << q->cluster_bits);
    for (uint64_t i = 0; kind && r == 0 && i < count; i++)
        r = metaset_add(&q->meta, start + i, kind);
    q->fresh_offset = MAX(q->fresh_offset, (start + count) << q->cluster_bits);
    *ret_offset = start << q->cluster_bits;
    return r;
}

/* ---- Refcounts ---- */

static int extend_table(Shadow *s, uint64_t entries)
{
    uint64_t capacity = align_up(entries, s->q->cluster_size / 8), *rt;

    if (entries <= s->rt_entries)
        return 0;
    if (capacity * 8 > QCOW2_MAX_REFTABLE_BYTES)
        return -EFBIG;
    if (capacity > s->rt_capacity) {
        rt = mem_try_zalloc(capacity, sizeof(*rt));
        if (!rt)
            return -ENOMEM;
        memcpy(rt, s->rt, s->rt_entries * sizeof(*rt));
        free(s->rt);
        s->rt = rt;
        s->rt_capacity = (uint32_t)capacity;
    }
    s->rt_entries = (uint32_t)entries;
    return 0;
}

/* A copy of the refcount block, which may be changed. */
static int own_block(Shadow *s, uint64_t index)
{
    Qcow2 *q = s->q;
    AUTO_FREE uint8_t *block = NULL;
    uint64_t old, offset;
    int r = extend_table(s, index + 1);

    if (r < 0 || is_new_block(s, index))
        return r;
    block = mem_try_aligned(4096, MAX(q->cluster_size, UINT64_C(4096)));
    if (!block)
        return -ENOMEM;
    old = s->rt[index] & QCOW2_RT_OFFSET_MASK;
    memset(block, 0, q->cluster_size);
    r = in_cluster(q, old) ? -EIO : shadow_alloc(s, 1, META_REFBLOCK, &offset);
    if (r == 0 && old)
        r = child_pread(q->file, old, block, q->cluster_size);
    if (r == 0)
        r = edge_pwrite(q->file, offset, block, q->cluster_size, 0);
    if (r < 0)
        return r;
    if (old)
        shadow_free(s, old, q->cluster_size, q->pass_discard_other);
    s->rt[index] = offset;
    return 0;
}

int shadow_read(Shadow *s, uint64_t cluster, uint64_t *ret_count)
{
    Qcow2 *q = s->q;
    uint64_t table_index = cluster >> q->block_rc_bits, block;
    CacheEntry *slice;
    uint32_t index;
    int r;

    refcount_breathe(&s->steps, 1);
    block = table_index < s->rt_entries ? s->rt[table_index] & QCOW2_RT_OFFSET_MASK : 0;
    *ret_count = 0;
    if (!block)
        return 0;
    r = refcount_slice_of(q, block, cluster, &slice, &index);
    if (r == 0)
        *ret_count = qcow2_refcount_get(slice->table, q->refcount_order, index);
    return r;
}

/* Adds delta; the count must be above zero afterwards. */
static int add(Shadow *s, uint64_t cluster, int delta)
{
    Qcow2 *q = s->q;
    CacheEntry *slice;
    uint32_t index;
    uint64_t count;
    int r = own_block(s, cluster >> q->block_rc_bits);

    if (r == 0)
        r = refcount_slice_of(q, s->rt[cluster >> q->block_rc_bits], cluster, &slice, &index);
    if (r < 0)
        return r;
    count = qcow2_refcount_get(slice->table, q->refcount_order, index);
    if (delta > 0 && count == qcow2_refcount_max(q->refcount_order))
        return -ERANGE;
    qcow2_refcount_set(
        cache_modify(&q->refcounts, slice), q->refcount_order, index, count + (uint64_t)(int64_t)delta);
    refcount_breathe(&s->steps, 1);
    return 0;
}

/* The count of a cluster that something refers to. */
static int read_used(Shadow *s, uint64_t offset, uint64_t *ret_count)
{
    int r = shadow_read(s, offset >> s->q->cluster_bits, ret_count);

    if (r == 0 && *ret_count == 0)
        r = image_corrupt(s->q, false, (int64_t)offset, (int64_t)s->q->cluster_size,
            "Cluster %#" PRIx64 " is in use, but counted as free", offset);
    return r;
}

int shadow_ref(Shadow *s, uint64_t offset, uint64_t bytes)
{
    uint64_t count;
    int r = 0;

    for (uint64_t at = offset; r == 0 && at < offset + bytes; at += s->q->cluster_size) {
        r = read_used(s, at, &count);
        if (r == 0)
            r = add(s, at >> s->q->cluster_bits, 1);
    }
    return r;
}

int shadow_unref(Shadow *s, uint64_t offset, uint64_t bytes, bool discard)
{
    uint64_t count;
    int r = 0;

    for (uint64_t at = offset; r == 0 && at < offset + bytes; at += s->q->cluster_size) {
        r = read_used(s, at, &count);
        if (r == 0 && count == 1)
            shadow_free(s, at, s->q->cluster_size, discard);
        else if (r == 0)
            r = add(s, at >> s->q->cluster_bits, -1);
    }
    return r;
}

void shadow_free(Shadow *s, uint64_t offset, uint64_t bytes, bool discard)
{
    free_list_push(&s->dropped, (FreeRange){.offset = offset, .bytes = bytes, .discard = discard});
}

/* ---- Commit ---- */

/* Counts what was taken and is not counted yet. Copying a block for it takes a cluster more, so the list may
 * grow, and its last item, too. */
static int count_taken(Shadow *s)
{
    int r = 0;

    while (r == 0 && s->counted < s->taken.count) {
        const FreeRange *range = &s->taken.items[s->counted];

        if (s->counted_bytes < range->bytes) {
            uint64_t at = range->offset + s->counted_bytes;

            s->counted_bytes += s->q->cluster_size;
            r = add(s, at >> s->q->cluster_bits, 1);
        } else if (s->counted + 1 < s->taken.count) {
            s->counted++;
            s->counted_bytes = 0;
        } else {
            break;
        }
    }
    return r;
}

/* A place for the refcount table, itself counted. */
static int place_table(Shadow *s)
{
    Qcow2 *q = s->q;
    uint64_t entries = 0, clusters;
    int r = count_taken(s);

    while (r == 0 && entries < s->rt_entries) {
        if (entries)
            shadow_free(s, s->header.rt_offset, (uint64_t)s->header.rt_clusters << q->cluster_bits, false);
        clusters = div_round_up(s->rt_entries * UINT64_C(8), q->cluster_size);
        r = shadow_alloc(s, clusters, META_REFTABLE, &s->header.rt_offset);
        s->header.rt_clusters = (uint32_t)clusters;
        entries = clusters << q->cluster_bits >> 3;
        if (r == 0)
            r = count_taken(s);
    }
    return r < 0 ? r : extend_table(s, entries);
}

int shadow_write_table(Shadow *s, const uint64_t *table, uint64_t entries, uint64_t offset)
{
    size_t bytes = align_up(MAX(entries, UINT64_C(1)) * 8, s->q->cluster_size);
    AUTO_FREE uint8_t *raw = mem_try_zalloc(1, bytes);

    if (!raw)
        return -ENOMEM;
    for (uint64_t i = 0; i < entries; i++)
        put_be64(raw + i * 8, table[i]);
    return edge_pwrite(s->q->file, offset, raw, bytes, 0);
}

static int switch_header(Shadow *s)
{
    uint8_t new[QCOW2_HEADER_BYTES], old[QCOW2_HEADER_BYTES];

    (void)qcow2_header_encode(&s->header, new);
    (void)qcow2_header_encode(&s->q->header, old);
    return header_switch(
        s->q, QCOW2_AT_SIZE, new + QCOW2_AT_SIZE, old + QCOW2_AT_SIZE, HEADER_END - QCOW2_AT_SIZE);
}

int shadow_commit(Shadow *s)
{
    Qcow2 *q = s->q;
    int r = place_table(s);

    if (r == 0)
        r = sync_refcounts(q);
    if (r == 0)
        r = shadow_write_table(s, s->rt, s->rt_entries, s->header.rt_offset);
    if (r == 0)
        r = edge_flush(q->file);
    if (r == 0)
        r = switch_header(s);
    if (r < 0)
        return r;
    shadow_free(s, q->rt_offset, (uint64_t)q->header.rt_clusters << q->cluster_bits, false);
    free(q->rt);
    q->rt = TAKE(s->rt);
    q->rt_entries = s->rt_entries;
    q->rt_offset = s->header.rt_offset;
    q->header = s->header;
    for (size_t i = 0; i < s->dropped.count; i++)
        free_list_push(&q->frees[FREE_READY], s->dropped.items[i]);
    s->taken.count = 0;
    (void)!free_reclaim(q); /* what is not freed now is only leaked for a while */
    overlap_snapshots_changed(q);
    return 0;
}

void shadow_end(Shadow *s)
{
    Qcow2 *q = s->q;

    for (size_t i = 0; i < s->taken.count; i++) { /* there was no commit */
        const FreeRange *range = &s->taken.items[i];

        cache_forget(&q->refcounts, range->offset, range->bytes);
        for (uint64_t at = 0; at < range->bytes; at += q->cluster_size)
            metaset_remove(&q->meta, (range->offset + at) >> q->cluster_bits, ~0U);
    }
    free(s->rt);
    free(s->taken.items);
    free(s->dropped.items);
    *s = (Shadow){0};
}
