/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Zeroing and discarding. Both only change the mapping, synchronously once the table is at hand and nobody
 * else is changing it; the host clusters follow the way of free.c. An external data file that must stay
 * readable as a raw image is zeroed itself.
 */
#include "drivers/qcow2/qcow2-priv.h"

#include <stdlib.h>

/* Freed ranges that may wait for somebody's flush. */
#define MAX_PENDING 1024

/* ---- New entries ---- */

typedef struct NewEntry {
    uint64_t entry, subs;
} NewEntry;

static NewEntry zeroed(const Qcow2 *q, uint64_t old, bool unmap)
{
    bool host = !(old & QCOW2_COMPRESSED) && ((old & QCOW2_OFFSET_MASK) || q->data_file);
    uint64_t entry = (old & QCOW2_COMPRESSED) || (unmap && host) ? 0 : old;

    if (q->extended)
        return (NewEntry){.entry = entry, .subs = QCOW2_SUB_ALL_ZERO};
    return (NewEntry){.entry = entry | QCOW2_ZERO};
}

/* full: as if it had never been written; else the guest must read zeroes afterwards where it can be had. */
static NewEntry discarded(const Qcow2 *q, uint64_t old, uint64_t subs, bool full, bool keep)
{
    bool stored = (old & (QCOW2_OFFSET_MASK | QCOW2_COMPRESSED)) || (q->data_file && (old & QCOW2_COPIED));

    if (full)
        return (NewEntry){0};
    if (keep && stored && !(old & QCOW2_COMPRESSED))
        return zeroed(q, old, false);
    if (!stored && !q->node->backing)
        return (NewEntry){.entry = old, .subs = subs};
    if (q->extended)
        return (NewEntry){.subs = QCOW2_SUB_ALL_ZERO};
    return (NewEntry){.entry = q->has_zero ? QCOW2_ZERO : 0};
}

/* ---- Whole clusters ---- */

typedef enum ChangeKind { CHANGE_ZERO, CHANGE_ZERO_UNMAP, CHANGE_DISCARD, CHANGE_DROP } ChangeKind;

/* The mapping of a cluster has changed from old to new: what becomes of the space that was behind it. A
 * cluster that stays mapped for later goes to *kept, if it is nobody else's. */
static void release_space(Qcow2 *q, uint64_t old, uint64_t new, bool pass, FreeList *kept)
{
    uint64_t host = old & QCOW2_OFFSET_MASK;

    if ((new ^ old) & (QCOW2_OFFSET_MASK | QCOW2_COMPRESSED))
        map_release(q, old, pass);
    else if (pass && !q->data_file && (old & QCOW2_COPIED) && host && !in_cluster(q, host) &&
             !metaset_kinds(&q->meta, host >> q->cluster_bits))
        free_list_push(kept, (FreeRange){.offset = host, .bytes = q->cluster_size});
}

/* count clusters of a slice; the first one has the guest address offset and lies at index. */
static void change_slice(Qcow2 *q, CacheEntry *slice, uint64_t offset, uint32_t index, uint64_t count,
    ChangeKind kind, bool pass, FreeList *kept)
{
    uint8_t *table = NULL;

    for (uint32_t i = index; i < index + count; i++, offset += q->cluster_size) {
        const uint8_t *now = table ? table : slice->table;
        uint64_t old = slice_entry(q, now, i), subs = slice_subclusters(q, now, i);
        NewEntry new = kind == CHANGE_DISCARD || kind == CHANGE_DROP
                           ? discarded(q, old, subs, kind == CHANGE_DROP, q->discard_no_unref)
                           : zeroed(q, old, kind == CHANGE_ZERO_UNMAP);

        if (new.entry == old &&new.subs == subs)
            continue;
        if (!table)
            table = cache_modify(&q->l2, slice);
        slice_set(q, offset, table, i, new.entry, new.subs);
        release_space(q, old, new.entry, pass, kept);
    }
}

/*
 * Where guest clusters keep their place, a new write to them goes to the same one: it waits until the holes
 * are made. Under an old mapping, which a read may have found before and which a crash may bring back, a hole
 * reads as zeroes; so none are made in what would be decrypted.
 */
static void make_holes(Qcow2 *q, uint64_t offset, uint64_t end, const FreeList *kept)
{
    uint64_t size = q->data_file ? node_size(edge_node(q->data)) : 0, disk_end = MIN(end, q->node->size);
    uint64_t stop = MIN(disk_end, size);
    AllocRange range;

    alloc_begin(q, &range, offset, end);
    if (offset < stop)
        (void)!edge_discard(q->data, offset, stop - offset);
    for (size_t i = 0; i < kept->count; i++)
        free_punch(q, kept->items[i].offset, kept->items[i].bytes);
    alloc_end(&range);
}

/* Clusters of one slice from offset on; moves *offset. */
static int change_some(Qcow2 *q, uint64_t *offset, uint64_t end, ChangeKind kind, bool pass)
{
    FreeList kept = {0};
    CacheEntry *slice;
    uint32_t index;
    uint64_t count, stop;
    int r = 0;

    do {
        r = map_for_write(q, *offset, &slice, &index);
        if (r < 0)
            return r;
        count = MIN((end - *offset) >> q->cluster_bits, (UINT64_C(1) << q->slice_l2_bits) - index);
    } while (alloc_wait(q, *offset, *offset + (count << q->cluster_bits)));
    stop = *offset + (count << q->cluster_bits);
    pass = pass && kind != CHANGE_ZERO;
    change_slice(q, slice, *offset, index, count, kind, pass, &kept);
    if (!q->crypt && (kept.count || (q->data_file && !q->data_raw && pass)))
        make_holes(q, *offset, stop, &kept);
    free(kept.items);
    *offset = stop;
    return 0;
}

/* An L2 table that does not exist needs no change when it would stay empty. */
static bool table_missing(const Qcow2 *q, uint64_t *offset, uint64_t end)
{
    unsigned shift = q->cluster_bits + q->l2_bits;
    uint64_t index = *offset >> shift;

    if (index < q->l1_entries && (q->l1[index] & QCOW2_OFFSET_MASK))
        return false;
    *offset = MIN(end, (index + 1) << shift);
    return true;
}

int zero_clusters(Qcow2 *q, uint64_t offset, uint64_t end, bool unmap)
{
    int r = 0;

    if (!q->has_zero) /* and no backing file: what is not mapped reads as zeroes */
        return discard_clusters(q, offset, end, false, q->pass_discard_request);

    while (r == 0 && offset < end)
        r = change_some(
            q, &offset, end, unmap ? CHANGE_ZERO_UNMAP : CHANGE_ZERO, unmap && q->pass_discard_request);
    return r;
}

int discard_clusters(Qcow2 *q, uint64_t offset, uint64_t end, bool full, bool pass)
{
    int r = 0;

    while (r == 0 && offset < end) {
        if ((full || !q->node->backing) && table_missing(q, &offset, end))
            continue;
        r = change_some(q, &offset, end, full ? CHANGE_DROP : CHANGE_DISCARD, pass);
    }
    return r;
}

/* ---- Parts of clusters ---- */

/* Zeroes whole subclusters of one cluster (extended entries). */
static int zero_subclusters(Qcow2 *q, uint64_t offset, uint64_t end)
{
    uint64_t cluster = align_down(offset, q->cluster_size), old, bits;
    unsigned from = (unsigned)((offset - cluster) >> q->sub_bits),
             to = (unsigned)((end - cluster) >> q->sub_bits);
    CacheEntry *slice;
    uint32_t index;
    int r;

    do {
        r = map_for_write(q, offset, &slice, &index);
        if (r < 0)
            return r;
    } while (alloc_wait(q, cluster, cluster + q->cluster_size));
    old = slice_entry(q, slice->table, index);
    if (old & QCOW2_COMPRESSED)
        return -ENOTSUP;
    bits = ((UINT64_C(1) << to) - 1) & ~((UINT64_C(1) << from) - 1);
    bits = (slice_subclusters(q, slice->table, index) | bits << 32) & ~bits;
    slice_set(q, cluster, cache_modify(&q->l2, slice), index, old, bits);
    return 0;
}

int zero_data(Qcow2 *q, uint64_t offset, uint64_t bytes)
{
    static const uint8_t zeroes[4096];
    Kept kept;
    int r;

    for (uint64_t done = 0; done < bytes;) {
        struct iovec iov[64];
        /* Ends between sectors, which others may write meanwhile as a whole. */
        uint64_t room = sizeof(zeroes) * ARRAY_SIZE(iov) - (offset + done) % sizeof(zeroes);
        uint64_t piece = MIN(bytes - done, room);

        for (unsigned i = 0; i < ARRAY_SIZE(iov); i++)
            iov[i] = (struct iovec){.iov_base = (void *)zeroes, .iov_len = sizeof(zeroes)};
        r = write_range(q, offset + done, (IoSlice){.iov = iov, .bytes = piece}, 0, &kept);
        if (r < 0)
            return r;
        done += piece;
    }
    return 0;
}

int zero_by_writing(Qcow2 *q, uint64_t offset, uint64_t bytes, unsigned flags)
{
    int r = read_is_zero(q, offset, bytes);

    if (r != 0)
        return MIN(r, 0);
    return flags & REQ_NO_FALLBACK ? -ENOTSUP : zero_data(q, offset, bytes);
}

/* Whole subclusters, within one cluster if they are not whole clusters. */
static int zero_aligned(Qcow2 *q, uint64_t offset, uint64_t end, bool unmap, unsigned flags)
{
    while (offset < end) {
        uint64_t next = align_down(offset, q->cluster_size) + q->cluster_size;
        int r;

        if (!in_cluster(q, offset) && end - offset >= q->cluster_size) {
            next = align_down(end, q->cluster_size);
            r = zero_clusters(q, offset, next, unmap);
        } else {
            next = MIN(next, end);
            r = zero_subclusters(q, offset, next);
            if (r == -ENOTSUP)
                r = zero_by_writing(q, offset, next - offset, flags);
        }
        if (r < 0)
            return r;
        offset = next;
    }
    return 0;
}

static int zero_range(Qcow2 *q, uint64_t offset, uint64_t bytes, unsigned flags)
{
    uint64_t end = offset + bytes, first, last;
    bool unmap = flags & REQ_MAY_UNMAP;
    int r;

    if (q->data_raw && !q->crypt) {
        r = edge_write_zeroes(q->data, offset, bytes, flags & (REQ_MAY_UNMAP | REQ_NO_FALLBACK));
        if (r < 0)
            return r;
        unmap = false;
    }
    first = align_up(offset, q->sub_size);
    last = end == q->node->size ? align_up(end, q->sub_size) : align_down(end, q->sub_size);
    if (end == q->node->size && !q->extended)
        last = align_up(end, q->cluster_size);
    if (first >= last) /* within one subcluster, or over the border of two */
        return zero_by_writing(q, offset, bytes, flags);
    r = zero_by_writing(q, offset, first - offset, flags);
    if (r == 0)
        r = zero_aligned(q, first, last, unmap, flags);
    if (r == 0 && last < end)
        r = zero_by_writing(q, last, end - last, flags);
    return r;
}

/* Frees make progress even if nobody flushes. */
static void drain_pending(Qcow2 *q)
{
    if (q->frees[FREE_PENDING].count > MAX_PENDING)
        (void)!sync_flush(q);
}

int image_write_zeroes(Node *node, uint64_t offset, uint64_t bytes, unsigned flags)
{
    Qcow2 *q = node->state;
    unsigned epoch;
    int r;

    if (UNLIKELY(q->corrupt))
        return -ENOMEDIUM; /* unusable from now on, reads included */
    if (!q->has_zero && node->backing)
        return -ENOTSUP; /* version 2 cannot say "zero" */
    epoch = request_begin(q);
    r = zero_range(q, offset, bytes, flags);
    request_end(q, epoch);
    drain_pending(q);
    return r == 0 && (flags & REQ_OUTLIVES) ? sync_publish(q) : r;
}

int image_discard(Node *node, uint64_t offset, uint64_t bytes)
{
    Qcow2 *q = node->state;
    uint64_t first = align_up(offset, q->cluster_size), end = align_down(offset + bytes, q->cluster_size);
    unsigned epoch;
    int r = 0;

    if (UNLIKELY(q->corrupt))
        return -ENOMEDIUM; /* unusable from now on, reads included */
    if (!q->has_zero && node->backing)
        return -ENOTSUP; /* old data of the backing file would show */
    if (offset + bytes == node->size)
        end = align_up(node->size, q->cluster_size);
    if (first >= end)
        return 0;
    epoch = request_begin(q);
    if (q->data_raw && !q->crypt) /* zeroes of an encrypted file are no zeroes of the disk */
        r = edge_write_zeroes(q->data, first, MIN(end, node->size) - first, REQ_MAY_UNMAP);
    else
        r = discard_clusters(q, first, end, false, q->pass_discard_request);
    request_end(q, epoch);
    drain_pending(q);
    return r;
}
