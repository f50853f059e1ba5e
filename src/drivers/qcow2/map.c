/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guest offset to host place: L1, cached L2 slices, subclusters; and new L2 tables. Every entry is checked
 * here, when it is looked up, and never trusted again after a wait.
 */
#include "base/mem.h"
#include "drivers/qcow2/qcow2-priv.h"

#include <stdio.h>

/* ---- Entries of a slice ---- */

uint64_t slice_entry(const Qcow2 *q, const uint8_t *table, uint32_t index)
{
    return get_be64(table + (size_t)index * q->entry_bytes);
}

uint64_t slice_subclusters(const Qcow2 *q, const uint8_t *table, uint32_t index)
{
    return q->extended ? get_be64(table + (size_t)index * 16 + 8) : 0;
}

void slice_set(
    const Qcow2 *q, uint64_t guest, uint8_t *table, uint32_t index, uint64_t entry, uint64_t subclusters)
{
    uint8_t *at = table + (size_t)index * q->entry_bytes;
    Away *away = atomic_load_explicit(&q->away, memory_order_relaxed);

    put_be64(at, entry);
    if (q->extended)
        put_be64(at + 8, subclusters);
    if (away)
        away_update(q, away, guest, at);
}

/* Which subcluster of its cluster; 0 where there are none. */
static unsigned sub_index(const Qcow2 *q, uint64_t offset)
{
    return q->extended ? (unsigned)(in_cluster(q, offset) >> q->sub_bits) : 0;
}

static Qcow2Type type_at(const Qcow2 *q, const uint8_t *table, uint32_t index, unsigned sub)
{
    uint64_t entry = slice_entry(q, table, index);

    if (!q->extended)
        return qcow2_entry_type(entry, q->has_zero, q->data_file);
    return qcow2_subcluster_type(entry, slice_subclusters(q, table, index), sub, q->data_file);
}

/* ---- Places in the tables ---- */

static uint32_t l1_index(const Qcow2 *q, uint64_t offset)
{
    return (uint32_t)(offset >> (q->cluster_bits + q->l2_bits));
}

static uint32_t slice_index(const Qcow2 *q, uint64_t offset)
{
    return (uint32_t)(offset >> q->cluster_bits) & ((1U << q->slice_l2_bits) - 1);
}

/* Place of the slice for a guest offset, in bytes from the start of its L2 table. */
static uint64_t slice_offset(const Qcow2 *q, uint64_t offset)
{
    uint64_t in_table = offset >> q->cluster_bits & ((UINT64_C(1) << q->l2_bits) - 1);

    return (in_table >> q->slice_l2_bits << q->slice_l2_bits) * q->entry_bytes;
}

static int check_table(Qcow2 *q, uint32_t index, uint64_t table)
{
    if (UNLIKELY(in_cluster(q, table)))
        return image_corrupt(
            q, true, -1, -1, "L2 table offset %#" PRIx64 " unaligned (L1 index: %#" PRIx32 ")", table, index);
    return 0;
}

/* What map_entries() would not have: reports why. */
static int bad_entry(Qcow2 *q, const CacheEntry *slice, uint32_t index, uint64_t guest)
{
    uint64_t entry = slice_entry(q, slice->table, index), host = entry & QCOW2_OFFSET_MASK;
    Qcow2Type type = type_at(q, slice->table, index, sub_index(q, guest));
    char where[64];

    snprintf(where, sizeof(where), "(L2 offset: %#" PRIx64 ", L2 index: %#" PRIx32 ")", slice->offset, index);
    if (q->data_file && (entry & QCOW2_COMPRESSED))
        return image_corrupt(
            q, true, -1, -1, "Compressed cluster entry found in image with external data file %s", where);
    if (!q->extended && (entry & QCOW2_ZERO) && !q->has_zero)
        return image_corrupt(q, true, -1, -1, "Zero cluster entry found in pre-v3 image %s", where);
    if (in_cluster(q, host))
        return image_corrupt(
            q, true, -1, -1, "Cluster allocation offset %#" PRIx64 " unaligned %s", host, where);
    if (type == QCOW2_TYPE_INVALID)
        return image_corrupt(q, true, -1, -1, "Invalid cluster entry found %s", where);
    return image_corrupt(q, true, -1, -1,
        "External data file host cluster offset %#" PRIx64 " does not match guest cluster offset: %#" PRIx64
        ", L2 index: %#" PRIx32 ")",
        host, align_down(guest, q->cluster_size), index);
}

/* ---- Lookup ---- */

static bool has_host(Qcow2Type type)
{
    return type == QCOW2_TYPE_NORMAL || type == QCOW2_TYPE_ZERO_HOST || type == QCOW2_TYPE_UNALLOCATED_HOST;
}

/* Extends *map, which reaches to the end of a subcluster, over those that follow in the same table and are
 * stored alike. A bad entry only ends the run: it is reported when it is looked up itself. */
static void extend(const Qcow2 *q, const uint8_t *table, uint32_t index, uint32_t entries, uint64_t offset,
    uint64_t bytes, Map *map)
{
    unsigned sub = (unsigned)(in_cluster(q, offset) >> q->sub_bits);
    uint64_t covered = map->bytes, host = map->host - in_cluster(q, offset);

    while (covered < bytes) {
        uint64_t entry;

        if (++sub == q->subclusters) {
            sub = 0;
            index++;
            host += q->cluster_size;
        }
        if (index == entries)
            break;
        entry = slice_entry(q, table, index);
        if (type_at(q, table, index, sub) != map->type)
            break;
        if (has_host(map->type) &&
            ((entry & QCOW2_OFFSET_MASK) != host || !(entry & QCOW2_COPIED) != !map->copied))
            break;
        covered += q->sub_size;
    }
    map->bytes = MIN(covered, bytes);
}

static bool is_host_sound(const Qcow2 *q, uint64_t host, uint64_t guest)
{
    return !in_cluster(q, host) && (!q->data_file || host == align_down(guest, q->cluster_size));
}

/* map_entries(), inline for lookups in the cache. */
static inline __attribute__((always_inline)) bool lookup_in_table(const Qcow2 *q, const uint8_t *table,
    uint32_t index, uint32_t entries, uint64_t offset, uint64_t bytes, Map *ret_map)
{
    uint64_t entry = slice_entry(q, table, index), host = 0, unit;
    Qcow2Type type = type_at(q, table, index, sub_index(q, offset));

    if (UNLIKELY(type == QCOW2_TYPE_INVALID || (type == QCOW2_TYPE_COMPRESSED && q->data_file)))
        return false;
    if (has_host(type)) {
        host = entry & QCOW2_OFFSET_MASK;
        if (UNLIKELY(!is_host_sound(q, host, offset)))
            return false;
    }
    unit = type == QCOW2_TYPE_COMPRESSED ? q->cluster_size : q->sub_size;
    *ret_map = (Map){.type = type,
        .bytes = unit - (offset & (unit - 1)),
        .entry = entry,
        .host = host + in_cluster(q, offset),
        .copied = entry & QCOW2_COPIED};
    if (LIKELY(ret_map->bytes >= bytes))
        ret_map->bytes = bytes;
    else if (type != QCOW2_TYPE_COMPRESSED)
        extend(q, table, index, entries, offset, bytes, ret_map);
    return true;
}

bool map_entries(const Qcow2 *q, const uint8_t *table, uint32_t index, uint32_t entries, uint64_t offset,
    uint64_t bytes, Map *ret_map)
{
    return lookup_in_table(q, table, index, entries, offset, bytes, ret_map);
}

static int lookup_in_slice(Qcow2 *q, const CacheEntry *slice, uint64_t offset, uint64_t bytes, Map *ret_map)
{
    uint32_t index = slice_index(q, offset), entries = 1U << q->slice_l2_bits;

    if (UNLIKELY(!lookup_in_table(q, slice->table, index, entries, offset, bytes, ret_map)))
        return bad_entry(q, slice, index, offset);
    if (slice->dirty || slice->frozen || q->l1_dirty_count || q->l1_frozen_count)
        ret_map->kept = KEPT_IN_MEMORY;
    else
        ret_map->kept = q->mapping_unsynced ? KEPT_BY_KERNEL : KEPT_ON_DISK;
    return 0;
}

int map_lookup(Qcow2 *q, uint64_t offset, uint64_t bytes, Map *ret_map)
{
    uint32_t index = l1_index(q, offset);
    uint64_t table = index < q->l1_entries ? q->l1[index] & QCOW2_OFFSET_MASK : 0;
    CacheEntry *slice;
    int r;

    if (!table) {
        uint64_t span = UINT64_C(1) << (q->cluster_bits + q->l2_bits);

        *ret_map = (Map){.type = QCOW2_TYPE_UNALLOCATED, .bytes = MIN(bytes, span - (offset & (span - 1)))};
        return 0;
    }
    r = check_table(q, index, table);
    if (LIKELY(r == 0))
        r = cache_get(&q->l2, table + slice_offset(q, offset), &slice);
    if (UNLIKELY(r < 0))
        return r;
    return lookup_in_slice(q, slice, offset, bytes, ret_map);
}

bool map_cached_entries(Qcow2 *q, uint64_t offset, const uint8_t **ret_entries)
{
    uint32_t index = l1_index(q, offset);
    uint64_t table = index < q->l1_entries ? q->l1[index] & QCOW2_OFFSET_MASK : 0;
    const CacheEntry *slice = table ? cache_find(&q->l2, table + slice_offset(q, offset)) : NULL;
    bool loaded = slice && !slice->loading;

    *ret_entries = loaded ? slice->table + (size_t)slice_index(q, offset) * q->entry_bytes : NULL;
    return loaded || !table;
}

/* ---- L1 ---- */

void l1_set(Qcow2 *q, uint32_t index, uint64_t entry)
{
    uint32_t sector = index / 64;

    q->l1[index] = entry;
    if (!q->l1_dirty[sector]) {
        q->l1_dirty[sector] = 1;
        q->l1_dirty_count++;
    }
}

/* ---- New L2 tables ---- */

static int copy_table(Qcow2 *q, uint64_t from, uint64_t to)
{
    AUTO_FREE uint8_t *table = mem_try_aligned(4096, q->cluster_size);
    int r;

    if (!table)
        return -ENOMEM;
    r = child_pread(q->file, from, table, q->cluster_size);
    return r < 0 ? r : edge_pwrite(q->file, to, table, q->cluster_size, 0);
}

/* Gives an L1 entry a table of its own: an empty one, or a copy of one that a snapshot shares. Hold l2_lock.
 */
static int new_table(Qcow2 *q, uint32_t index)
{
    uint64_t old = q->l1[index] & QCOW2_OFFSET_MASK;
    ClusterRun run;
    int r = old ? check_table(q, index, old) : 0;

    if (r < 0)
        return r;
    r = refcount_alloc(q, 1, &run);
    if (r < 0)
        return r;
    r = old ? copy_table(q, old, run.offset) : child_write_zeroes(q->file, run.offset, q->cluster_size);
    if (r == 0)
        r = metaset_add(&q->meta, run.offset >> q->cluster_bits, META_L2);
    if (r < 0) {
        free_range(q, FREE_READY, run.offset, q->cluster_size, false);
        return r;
    }
    l1_set(q, index, run.offset | QCOW2_COPIED);
    if (old) {
        cache_forget(&q->l2, old, q->cluster_size);
        /* It stays in the set of metadata until its last reference has gone: a snapshot may still have it. */
        free_range(q, FREE_PENDING, old, q->cluster_size, q->pass_discard_other);
    }
    return 0;
}

static int own_table(Qcow2 *q, uint32_t index)
{
    int r = 0;

    co_mutex_lock_shielded(&q->l2_lock);
    if (!(q->l1[index] & QCOW2_COPIED) || !(q->l1[index] & QCOW2_OFFSET_MASK))
        r = new_table(q, index);
    co_mutex_unlock(&q->l2_lock);
    return r;
}

int map_for_write(Qcow2 *q, uint64_t offset, CacheEntry **ret_slice, uint32_t *ret_index)
{
    uint32_t index = l1_index(q, offset);
    uint64_t table;
    int r;

    if (index >= q->l1_entries)
        return -EIO;
    if (!(q->l1[index] & QCOW2_COPIED) || !(q->l1[index] & QCOW2_OFFSET_MASK)) {
        r = own_table(q, index);
        if (r < 0)
            return r;
    }
    table = q->l1[index] & QCOW2_OFFSET_MASK;
    r = check_table(q, index, table);
    if (r == 0)
        r = write_overlap_check(q, table, q->cluster_size, META_L2);
    if (r == 0)
        r = cache_get(&q->l2, table + slice_offset(q, offset), ret_slice);
    if (r < 0)
        return r;
    *ret_index = slice_index(q, offset);
    return 0;
}

/* ---- Dropping references ---- */

void map_release(Qcow2 *q, uint64_t entry, bool discard)
{
    uint64_t host = entry & QCOW2_OFFSET_MASK;

    if (entry & QCOW2_COMPRESSED) {
        Qcow2Compressed c = qcow2_compressed_decode(entry, q->cluster_bits);
        uint64_t start = align_down(c.offset, q->cluster_size);

        free_range(q, FREE_PENDING, start, align_up(c.offset + c.bytes, q->cluster_size) - start, false);
        return;
    }
    /* An unaligned entry never passed a lookup; the clusters of an external data file are not counted. */
    if (host && !in_cluster(q, host) && !q->data_file)
        free_range(q, FREE_PENDING, host, q->cluster_size, discard);
}

/* ---- Requests that change the mapping ---- */

static AllocRange *range_find(List *list, uint64_t start, uint64_t end)
{
    LIST_FOREACH (link, list) {
        AllocRange *range = LIST_ENTRY(link, AllocRange, link);

        if (range->start < end && start < range->end)
            return range;
    }
    return NULL;
}

bool alloc_wait(Qcow2 *q, uint64_t start, uint64_t end)
{
    AllocRange *range = range_find(&q->allocs, start, end);

    if (!range)
        return false;
    co_cond_wait_shielded(&range->done, NULL);
    return true;
}

uint64_t alloc_first(Qcow2 *q, uint64_t start, uint64_t end)
{
    LIST_FOREACH (link, &q->allocs) {
        AllocRange *range = LIST_ENTRY(link, AllocRange, link);

        if (range->start < end && start < range->end)
            end = MAX(range->start, start);
    }
    return end;
}

void alloc_begin(Qcow2 *q, AllocRange *range, uint64_t start, uint64_t end)
{
    *range = (AllocRange){.start = start, .end = end};
    list_append(&q->allocs, &range->link);
}

void in_place_begin(Qcow2 *q, AllocRange *range, uint64_t start, uint64_t end)
{
    *range = (AllocRange){.start = start, .end = end};
    list_append(&q->in_place, &range->link);
}

void in_place_wait(Qcow2 *q, uint64_t start, uint64_t end)
{
    AllocRange *range;

    while ((range = range_find(&q->in_place, start, end)))
        co_cond_wait_shielded(&range->done, NULL);
}

void alloc_end(AllocRange *range)
{
    list_remove(&range->link);
    co_cond_broadcast(&range->done);
}
