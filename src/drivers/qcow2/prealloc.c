/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Growing a disk with clusters that are allocated in advance: space that reads as zeroes first, then the
 * mapping, as with every write. The header names the new size after that, so a crash leaves clusters behind
 * the end of the disk, which the next growth drops.
 */
#include "drivers/qcow2/qcow2-priv.h"

typedef struct Growth {
    Preallocation mode;
    uint64_t at, end;     /* guest clusters that have no mapping yet */
    uint64_t flags, subs; /* of their entries */
    uint64_t steps;
} Growth;

/*
 * Normal clusters, so that no write has to change a table. Entries say zero where the data cannot: with
 * encryption, and for a backing file in the way of which only metadata is put. Subclusters stay unallocated,
 * as reserving them is all that is wanted; but not over a backing file, nor in a raw data file, which is all
 * there is.
 */
static void choose_entries(const Qcow2 *q, Growth *g)
{
    bool hides = q->node->backing && node_size(edge_node(q->node->backing)) > q->node->size;
    bool metadata = g->mode == PREALLOCATION_METADATA || q->data_file;
    bool zero = q->has_zero && (q->crypt || (hides && metadata));

    g->flags = QCOW2_COPIED;
    if (q->extended)
        g->subs = zero ? QCOW2_SUB_ALL_ZERO : hides || q->data_raw ? QCOW2_SUB_ALL_ALLOCATED : 0;
    else if (zero)
        g->flags |= QCOW2_ZERO;
}

/* Makes a range of a child read as zeroes, with as much space for it as the mode says. */
static int reserve_space(
    Edge *edge, uint64_t offset, uint64_t bytes, bool fresh, Preallocation mode, Error *err)
{
    uint64_t size = node_size(edge_node(edge)), inside = offset < size ? MIN(bytes, size - offset) : 0;
    bool metadata = mode == PREALLOCATION_METADATA;
    int r = 0;

    if (inside && mode == PREALLOCATION_FULL)
        r = child_fill_zeroes(edge, offset, inside);
    else if (inside && !(fresh && metadata))
        r = edge_write_zeroes(edge, offset, inside, metadata ? REQ_MAY_UNMAP : 0);
    if (r < 0)
        return err_set_errno(err, r, "Could not preallocate new data");
    if (inside == bytes)
        return 0;
    r = edge_resize(edge, offset + bytes, false, metadata ? PREALLOCATION_OFF : mode, 0, err);
    return r < 0 ? err_prefix(err, r, "Could not resize underlying file") : 0;
}

static int link_run(Qcow2 *q, Growth *g, const ClusterRun *run, Error *err)
{
    CacheEntry *slice;
    uint32_t index;
    uint8_t *table;
    int r = map_for_write(q, g->at, &slice, &index);

    if (r < 0)
        return err_set_errno(err, r, "Could not map the new area");
    table = cache_modify(&q->l2, slice);
    q->unordered = true;
    for (uint32_t i = 0; i < run->count; i++, g->at += q->cluster_size)
        slice_set(
            q, g->at, table, index + i, (run->offset + ((uint64_t)i << q->cluster_bits)) | g->flags, g->subs);
    return 0;
}

/* Up to a slice of the tables. */
static int map_some(Qcow2 *q, Growth *g, Error *err)
{
    ClusterRun run = {.offset = g->at};
    CacheEntry *slice;
    uint32_t index;
    int r = map_for_write(q, g->at, &slice, &index);

    if (r == 0)
        run.count = MIN((g->end - g->at) >> q->cluster_bits, (UINT64_C(1) << q->slice_l2_bits) - index);
    if (r == 0 && !q->data_file)
        r = refcount_alloc(q, run.count, &run);
    if (r < 0)
        return err_set_errno(err, r, "Could not allocate clusters for the new area");
    if (!q->data_file)
        r = reserve_space(q->file, run.offset, run.count << q->cluster_bits, run.fresh, g->mode, err);
    if (r == 0)
        r = link_run(q, g, &run, err);
    if (r < 0 && !q->data_file)
        free_range(q, FREE_READY, run.offset, run.count << q->cluster_bits, true);
    refcount_breathe(&g->steps, run.count);
    return r;
}

/* The first bytes may lie in the old last cluster, which gets its place by being written. */
static int write_start(Qcow2 *q, uint64_t start, uint64_t end, Error *err)
{
    uint64_t old = q->node->size;
    int r;

    q->node->size = MAX(old, end);
    r = zero_data(q, start, end - start);
    q->node->size = old;
    return r < 0 ? err_set_errno(err, r, "Could not write zeros for preallocation") : 0;
}

static int map_area(Qcow2 *q, uint64_t size, Preallocation mode, Error *err)
{
    uint64_t old = q->node->size;
    Growth g = {.mode = mode, .at = align_up(old, q->cluster_size), .end = align_up(size, q->cluster_size)};
    int r;

    /* Version 2 has no word for zeroes, and nothing but a write makes encrypted ones. */
    r = write_start(q, old, q->crypt && !q->has_zero ? size : MIN(size, g.at), err);
    if (q->crypt && !q->has_zero)
        return r;
    choose_entries(q, &g);
    while (r == 0 && g.at < g.end)
        r = map_some(q, &g, err);
    return r;
}

static int reserve_data_file(Qcow2 *q, uint64_t size, Preallocation mode, Error *err)
{
    uint64_t old = q->node->size;

    if (!q->data_file)
        return 0;
    if (mode != PREALLOCATION_OFF)
        return reserve_space(q->data, old, size - old, false, mode, err);
    return node_size(edge_node(q->data)) < size ? edge_resize(q->data, size, false, PREALLOCATION_OFF, 0, err)
                                                : 0;
}

/* Gives the space back, so that the same can be tried again. */
static void undo(Qcow2 *q, uint64_t size, uint64_t data_bytes)
{
    AUTO_ERROR Error ignored = ERROR_INIT;

    (void)!discard_clusters(
        q, align_up(q->node->size, q->cluster_size), align_up(size, q->cluster_size), true, true);
    (void)!sync_flush(q);
    if (q->data_file && node_size(edge_node(q->data)) > data_bytes)
        (void)!edge_resize(q->data, data_bytes, false, PREALLOCATION_OFF, 0, &ignored);
}

int preallocate(Qcow2 *q, uint64_t size, Preallocation mode, Error *err)
{
    uint64_t data_bytes = node_size(edge_node(q->data));
    int r = reserve_data_file(q, size, mode, err);

    if (r == 0 && mode != PREALLOCATION_OFF)
        r = map_area(q, size, mode, err);
    if (r == 0) {
        r = sync_flush(q);
        if (r < 0)
            r = err_set_errno(err, r, "Could not write the tables of the new area");
    }
    if (r < 0)
        undo(q, size, data_bytes);
    q->preallocated_known = false;
    return r;
}
