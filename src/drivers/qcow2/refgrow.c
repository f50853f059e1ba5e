/* SPDX-License-Identifier: Apache-2.0 */
/*
 * New refcount blocks and larger refcount tables.
 *
 * Where no block exists, every cluster that it would count is free. So a new block goes to the first cluster
 * that it counts itself: no allocation, no recursion. A larger table goes, with its first blocks, to the area
 * behind what the old table could describe, for the same reason. Each is written and flushed before anything
 * points to it.
 */
#include "base/mem.h"
#include "drivers/qcow2/qcow2-priv.h"

static uint64_t block_cluster(const Qcow2 *q, uint64_t table_index)
{
    return table_index << q->block_rc_bits;
}

/* Writes blocks for table entries first.. that count the clusters [start, start + count) as used once. */
static int write_blocks(
    Qcow2 *q, uint64_t first, uint64_t blocks, uint64_t at, uint64_t start, uint64_t count)
{
    AUTO_FREE uint8_t *block = mem_try_aligned(4096, q->cluster_size);
    uint64_t entries = UINT64_C(1) << q->block_rc_bits;
    int r = block ? 0 : -ENOMEM;

    for (uint64_t i = 0; r == 0 && i < blocks; i++) {
        uint64_t base = (first + i) << q->block_rc_bits;

        memset(block, 0, q->cluster_size);
        for (uint64_t c = MAX(base, start); c < MIN(base + entries, start + count); c++)
            qcow2_refcount_set(block, q->refcount_order, (uint32_t)(c - base), 1);
        r = edge_pwrite(q->file, at + (i << q->cluster_bits), block, q->cluster_size, 0);
    }
    return r;
}

static int write_table(Qcow2 *q, const uint64_t *table, uint64_t entries, uint64_t offset)
{
    size_t bytes = entries * 8;
    AUTO_FREE uint8_t *raw = mem_try_aligned(4096, bytes);

    if (!raw)
        return -ENOMEM;
    for (uint64_t i = 0; i < entries; i++)
        put_be64(raw + i * 8, table[i]);
    return edge_pwrite(q->file, offset, raw, bytes, 0);
}

/* Writes the place of the table into the header: 12 bytes within a sector, so that the file names either the
 * old one or the new one. */
static int write_place(Qcow2 *q, uint64_t offset, uint64_t clusters)
{
    uint8_t place[12];
    int r;

    put_be64(place, offset);
    put_be32(place + 8, (uint32_t)clusters);
    r = edge_pwrite(q->file, QCOW2_AT_RT_OFFSET, place, sizeof(place), 0);
    if (r < 0)
        q->rt_unsure = true;
    return r;
}

static int write_entries(Qcow2 *q, uint64_t first, uint64_t count, const uint8_t *raw)
{
    int r = edge_pwrite(q->file, q->rt_offset + first * 8, raw, count * 8, 0);

    if (r < 0)
        q->rt_unsure = true;
    return r;
}

int refcount_settle_table(Qcow2 *q)
{
    int r;

    if (LIKELY(!q->rt_unsure))
        return 0;
    r = write_table(q, q->rt, q->rt_entries, q->rt_offset);
    if (r == 0)
        r = edge_flush(q->file);
    if (r == 0)
        r = write_place(q, q->rt_offset, q->header.rt_clusters);
    if (r == 0)
        r = edge_flush(q->file);
    if (r == 0)
        q->rt_unsure = false;
    return r;
}

static int add_block(Qcow2 *q, uint64_t table_index)
{
    uint64_t cluster = block_cluster(q, table_index), offset = cluster << q->cluster_bits;
    uint8_t entry[8];
    int r;

    if (offset == 0)
        return image_corrupt(q, true, -1, -1, "Preventing invalid allocation of refcount block at offset 0");
    r = write_overlap_check(q, offset, q->cluster_size, 0);
    if (r == 0)
        r = metaset_add(&q->meta, cluster, META_REFBLOCK);
    if (r < 0)
        return r;
    q->fresh_offset = MAX(q->fresh_offset, offset + q->cluster_size);
    r = write_blocks(q, table_index, 1, offset, cluster, 1);
    if (r == 0)
        r = edge_flush(q->file);
    put_be64(entry, offset);
    if (r == 0)
        r = write_entries(q, table_index, 1, entry);
    if (r < 0) {
        metaset_remove(&q->meta, cluster, META_REFBLOCK);
        return r;
    }
    q->rt[table_index] = offset;
    return 0;
}

/* ---- A larger table ---- */

typedef struct TablePlan {
    uint64_t entries, clusters; /* of the new table */
    uint64_t start;             /* cluster of its place */
    uint64_t blocks;            /* for table entries from the old size on; they follow the table */
} TablePlan;

static int plan_table(const Qcow2 *q, uint64_t table_index, TablePlan *ret_plan)
{
    uint64_t per_cluster = q->cluster_size / 8, block_entries = UINT64_C(1) << q->block_rc_bits;
    TablePlan plan = {.start = block_cluster(q, q->rt_entries)};
    uint64_t needed = MAX(table_index + 1, (uint64_t)q->rt_entries + q->rt_entries / 2 + 1);

    /* The table must also describe itself and the blocks that describe it. */
    for (;;) {
        plan.clusters = div_round_up(needed, per_cluster);
        plan.entries = plan.clusters * per_cluster;
        plan.blocks = 1;
        while (plan.blocks * block_entries < plan.clusters + plan.blocks)
            plan.blocks++;
        if (plan.entries >= q->rt_entries + plan.blocks)
            break;
        needed = q->rt_entries + plan.blocks;
    }
    if (plan.entries * 8 > QCOW2_MAX_REFTABLE_BYTES)
        return -EFBIG;
    *ret_plan = plan;
    return 0;
}

static int protect(Qcow2 *q, const TablePlan *plan)
{
    int r = 0;

    for (uint64_t i = 0; r == 0 && i < plan->clusters + plan->blocks; i++)
        r = metaset_add(&q->meta, plan->start + i, i < plan->clusters ? META_REFTABLE : META_REFBLOCK);
    return r;
}

static void unprotect(Qcow2 *q, uint64_t start, uint64_t clusters)
{
    for (uint64_t i = 0; i < clusters; i++)
        metaset_remove(&q->meta, start + i, META_REFTABLE | META_REFBLOCK);
}

/* The old table may be used for something else once the new place is durable. */
static void adopt_table(Qcow2 *q, uint64_t *table, const TablePlan *plan)
{
    free(q->rt);
    q->rt = table;
    free_range(q, FREE_PENDING, q->rt_offset, q->header.rt_clusters * q->cluster_size, q->pass_discard_other);
    q->rt_offset = q->header.rt_offset = plan->start << q->cluster_bits;
    q->rt_entries = (uint32_t)plan->entries;
    q->header.rt_clusters = (uint32_t)plan->clusters;
}

static int grow_table(Qcow2 *q, uint64_t table_index)
{
    AUTO_FREE uint64_t *table = NULL;
    uint64_t total, offset;
    TablePlan plan;
    int r = plan_table(q, table_index, &plan);

    if (r < 0)
        return r;
    total = plan.clusters + plan.blocks;
    offset = plan.start << q->cluster_bits;
    table = mem_try_zalloc(plan.entries, sizeof(*table));
    if (!table)
        return -ENOMEM;
    memcpy(table, q->rt, q->rt_entries * sizeof(*table));
    for (uint64_t i = 0; i < plan.blocks; i++)
        table[q->rt_entries + i] = offset + ((plan.clusters + i) << q->cluster_bits);
    r = write_overlap_check(q, offset, total << q->cluster_bits, 0);
    if (r == 0)
        r = protect(q, &plan);
    if (r < 0)
        return r;
    q->fresh_offset = MAX(q->fresh_offset, offset + (total << q->cluster_bits));
    r = write_blocks(
        q, q->rt_entries, plan.blocks, offset + (plan.clusters << q->cluster_bits), plan.start, total);
    if (r == 0)
        r = write_table(q, table, plan.entries, offset);
    if (r == 0)
        r = edge_flush(q->file);
    if (r == 0)
        r = write_place(q, offset, plan.clusters);
    if (r < 0) {
        unprotect(q, plan.start, total); /* the next attempt goes to the same place */
        return r;
    }
    adopt_table(q, TAKE(table), &plan);
    r = edge_flush(q->file);
    if (r < 0)
        q->rt_unsure = true;
    return r;
}

/* ---- Large areas ---- */

/* The first table entry behind all that are in use. */
static uint64_t first_unused(const Qcow2 *q)
{
    uint64_t index = q->rt_entries;

    while (index && !q->rt[index - 1])
        index--;
    return index;
}

static int enter_blocks(Qcow2 *q, uint64_t first, uint64_t blocks, uint64_t at)
{
    AUTO_FREE uint8_t *entries = mem_try_zalloc(blocks, 8);
    int r = entries ? edge_flush(q->file) : -ENOMEM;

    for (uint64_t i = 0; r == 0 && i < blocks; i++) {
        put_be64(entries + i * 8, at + (i << q->cluster_bits));
        r = metaset_add(&q->meta, (at >> q->cluster_bits) + i, META_REFBLOCK);
    }
    if (r == 0)
        r = write_entries(q, first, blocks, entries);
    if (r < 0)
        unprotect(q, at >> q->cluster_bits, blocks);
    for (uint64_t i = 0; r == 0 && i < blocks; i++)
        q->rt[first + i] = at + (i << q->cluster_bits);
    return r;
}

int refcount_grow_area(Qcow2 *q, uint64_t count, uint64_t *ret_cluster)
{
    uint64_t entries = UINT64_C(1) << q->block_rc_bits, blocks = 1, first, start, at;
    int r = refcount_settle_table(q);

    if (r < 0)
        return r;
    while (blocks * entries < count + blocks)
        blocks++;
    while ((first = first_unused(q)) + blocks > q->rt_entries) {
        r = grow_table(q, first + blocks);
        if (r < 0)
            return r;
    }
    start = block_cluster(q, first);
    at = (start + count) << q->cluster_bits;
    r = write_overlap_check(q, start << q->cluster_bits, (count + blocks) << q->cluster_bits, 0);
    if (r < 0)
        return r;
    q->fresh_offset = MAX(q->fresh_offset, at + (blocks << q->cluster_bits));
    r = write_blocks(q, first, blocks, at, start, count + blocks);
    if (r == 0)
        r = enter_blocks(q, first, blocks, at);
    *ret_cluster = start;
    return r;
}

int refcount_grow(Qcow2 *q, uint64_t table_index)
{
    int r = refcount_settle_table(q);

    if (r < 0)
        return r;
    if (table_index >= q->rt_entries) {
        r = grow_table(q, table_index);
        if (r < 0)
            return r;
    }
    /* The growth itself may have made the block. */
    return q->rt[table_index] ? 0 : add_block(q, table_index);
}
