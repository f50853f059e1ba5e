/* SPDX-License-Identifier: Apache-2.0 */
/* The check of refcounts: stored ones against those that were counted. */
#include "base/mem.h"
#include "drivers/qcow2/check-priv.h"

/* ---- The refcount structure ---- */

static uint64_t block_of(const Qcow2 *q, uint64_t index)
{
    return index < q->rt_entries ? q->rt[index] & QCOW2_RT_OFFSET_MASK : 0;
}

static void bad_block(Check *c, uint64_t index, const char *what)
{
    check_say(c, "refcount block %" PRIu64 " %s (entry %#" PRIx64 ")", index, what, c->q->rt[index]);
    c->result->corruptions++;
    c->rebuild = true;
}

static int check_block(Check *c, uint64_t index)
{
    const Qcow2 *q = c->q;
    uint64_t block = block_of(q, index), before = 0, count = 0;
    int r;

    if (q->rt[index] & ~QCOW2_RT_OFFSET_MASK) {
        bad_block(c, index, "has reserved bits set");
        return 0;
    }
    if (!block)
        return 0;
    if (in_cluster(q, block)) {
        bad_block(c, index, "is not aligned");
        return 0;
    }
    if (block >> q->cluster_bits >= c->clusters) {
        bad_block(c, index, "lies beyond the end of the file");
        return 0;
    }
    (void)counts_get(&c->counts, block >> q->cluster_bits, &before);
    r = check_count(c, block, q->cluster_size, 1);
    c->rebuild |= before != 0; /* also where refcounts cannot say two */
    if (r == 0 && counts_get(&c->counts, block >> q->cluster_bits, &count) && count != 1)
        bad_block(c, index, "is used for something else, too");
    return r;
}

/* Clusters in use need a block that counts them. */
static int find_uncounted(Check *c)
{
    const Qcow2 *q = c->q;
    AUTO_FREE uint64_t *pages = NULL;
    int r = tally_keys(&c->counts.pages, &pages);

    for (uint64_t i = 0; r == 0 && i < c->counts.pages.used; i++)
        if (!block_of(q, pages[i] >> (q->block_rc_bits - c->counts.page_bits)))
            c->rebuild = true;
    return r;
}

int check_blocks(Check *c)
{
    const Qcow2 *q = c->q;
    int r = check_count(c, q->rt_offset, q->rt_entries * UINT64_C(8), 1);

    for (uint32_t i = 0; r == 0 && i < q->rt_entries; i++)
        if (q->rt[i])
            r = check_block(c, i);
    return r < 0 ? r : find_uncounted(c);
}

/* ---- Comparison ---- */

typedef struct BlockRun {
    uint8_t *table;                  /* NULL: there is no such block */
    uint64_t first;                  /* cluster that it begins with */
    uint32_t dirty_start, dirty_end; /* counters that were changed */
} BlockRun;

static bool may_fix(const Check *c, unsigned kind)
{
    return (c->fix & kind) && !c->rebuild;
}

/* Reports, or corrects, a counter; returns what is in the image then. */
static uint64_t judge(Check *c, BlockRun *run, uint64_t cluster, uint64_t stored, uint64_t counted)
{
    bool leak = stored > counted;
    uint32_t index = (uint32_t)(cluster - run->first);

    check_say(c,
        "the cluster at %#" PRIx64 " has %" PRIu64 " references, but is counted as having %" PRIu64 "%s",
        cluster << c->q->cluster_bits, counted, stored, leak ? " (leaked)" : "");
    if (!may_fix(c, leak ? CHECK_FIX_LEAKS : CHECK_FIX_ERRORS) || (leak && c->hidden)) {
        c->result->leaks += leak;
        c->result->corruptions += !leak;
        return stored;
    }
    c->result->leaks_fixed += leak;
    c->result->corruptions_fixed += !leak;
    qcow2_refcount_set(run->table, c->q->refcount_order, index, counted);
    run->dirty_start = MIN(run->dirty_start, index);
    run->dirty_end = MAX(run->dirty_end, index + 1);
    return counted;
}

/*
 * Clusters to compare: those of the file. A power cut may have left it shorter than its refcounts say; these
 * leaks would show when it grows again, so a repair goes on to the end of the blocks. Not where something
 * refers to what lies there.
 */
static uint64_t compared_clusters(const Check *c)
{
    return may_fix(c, CHECK_FIX_LEAKS) && !c->hidden && !c->beyond ? UINT64_MAX : c->clusters;
}

static void compare_cluster(Check *c, BlockRun *run, uint64_t cluster)
{
    uint64_t stored = 0, counted = 0;
    bool known = counts_get(&c->counts, cluster, &counted);

    if (run->table)
        stored = qcow2_refcount_get(run->table, c->q->refcount_order, (uint32_t)(cluster - run->first));
    if ((stored | counted) && cluster < c->clusters)
        c->result->image_end_offset = (cluster + 1) << c->q->cluster_bits;
    if (stored != counted)
        stored = judge(c, run, cluster, stored, counted);
    if (known)
        counts_set(&c->counts, cluster, MIN(stored, (uint64_t)STORED_MANY));
}

static void unknown_block(Check *c, uint64_t first, uint64_t end)
{
    uint64_t ignored;

    check_say(
        c, "the refcounts of the clusters from %#" PRIx64 " on cannot be read", first << c->q->cluster_bits);
    c->result->check_errors += end - first;
    for (uint64_t cluster = first; cluster < end; cluster++)
        if (counts_get(&c->counts, cluster, &ignored))
            counts_set(&c->counts, cluster, STORED_UNKNOWN);
}

static int write_block(Check *c, const BlockRun *run, uint64_t block)
{
    unsigned order = c->q->refcount_order;
    uint64_t start, end;

    if (run->dirty_start >= run->dirty_end)
        return 0;
    /* Whole sectors, as far as the block reaches. */
    start = align_down(((uint64_t)run->dirty_start << order) / 8, 512);
    end = align_up((((uint64_t)run->dirty_end << order) + 7) / 8, 512);
    return edge_pwrite(c->q->file, block + start, run->table + start, end - start, 0);
}

/* A page of clusters that nothing refers to and nothing counts. */
static bool is_unused(const Check *c, const BlockRun *run, uint64_t cluster)
{
    size_t bytes = ((size_t)1 << c->counts.page_bits << c->q->refcount_order) / 8;
    const uint8_t *counters;
    uint64_t ignored;

    if (counts_get(&c->counts, cluster, &ignored))
        return false;
    if (!run->table)
        return true;
    counters = run->table + ((cluster - run->first) << c->q->refcount_order) / 8;
    return !counters[0] && memcmp(counters, counters + 1, bytes - 1) == 0;
}

static int compare_block(Check *c, uint64_t index, uint8_t *buffer)
{
    const Qcow2 *q = c->q;
    uint64_t block = block_of(q, index), first = index << q->block_rc_bits;
    uint64_t end = MIN((index + 1) << q->block_rc_bits, compared_clusters(c)), steps = 0;
    BlockRun run = {.table = block ? buffer : NULL, .first = first, .dirty_start = UINT32_MAX};

    if (block && (in_cluster(q, block) || child_pread(q->file, block, buffer, q->cluster_size) < 0)) {
        unknown_block(c, first, end);
        return 0;
    }
    for (uint64_t cluster = first; cluster < end;) {
        uint64_t page_end = MIN(end, cluster + (UINT64_C(1) << c->counts.page_bits));

        refcount_breathe(&steps, 64);
        if (is_unused(c, &run, cluster)) {
            cluster = page_end;
            continue;
        }
        for (; cluster < page_end; cluster++)
            compare_cluster(c, &run, cluster);
        refcount_breathe(&steps, 4096);
    }
    return write_block(c, &run, block);
}

/* All blocks that exist or should, in ascending order. */
static int compare_blocks(Check *c, const uint64_t *pages, uint8_t *buffer)
{
    const Qcow2 *q = c->q;
    unsigned shift = q->block_rc_bits - c->counts.page_bits;
    uint64_t page = 0, index = 0;
    int r = 0;

    while (r == 0) {
        uint64_t by_page, by_table = index;

        while (page < c->counts.pages.used && pages[page] >> shift < index)
            page++;
        by_page = page < c->counts.pages.used ? pages[page] >> shift : UINT64_MAX;
        while (by_table < q->rt_entries && !block_of(q, by_table))
            by_table++;
        index = MIN(by_page, by_table < q->rt_entries ? by_table : UINT64_MAX);
        if (index == UINT64_MAX || index > (compared_clusters(c) - 1) >> q->block_rc_bits)
            break;
        r = compare_block(c, index++, buffer);
        if (r == 0)
            r = co_interrupted();
    }
    return r;
}

int check_refcounts(Check *c)
{
    AUTO_FREE uint8_t *buffer = mem_try_aligned(4096, MAX(c->q->cluster_size, UINT64_C(4096)));
    AUTO_FREE uint64_t *pages = NULL;
    int r = buffer ? tally_keys(&c->counts.pages, &pages) : -ENOMEM;

    c->result->image_end_offset = c->q->cluster_size;
    if (r == 0)
        r = compare_blocks(c, pages, buffer);
    if (r == 0 && c->result->leaks_fixed + c->result->corruptions_fixed)
        r = edge_flush(c->q->file);
    return r;
}

/* ---- What is in the image ---- */

int check_stored(const Check *c, uint64_t cluster, CheckStored *ret_stored)
{
    const Qcow2 *q = c->q;
    uint64_t block = block_of(q, cluster >> q->block_rc_bits), known, at;
    uint32_t index = (uint32_t)(cluster & ((UINT64_C(1) << q->block_rc_bits) - 1));
    uint32_t in_piece = index & ((512 * 8 >> q->refcount_order) - 1);
    uint8_t piece[512];

    if (cluster < c->clusters && counts_get(&c->counts, cluster, &known)) {
        *ret_stored = (CheckStored)known;
        return 0;
    }
    if (!block) {
        *ret_stored = STORED_NONE;
        return 0;
    }
    at = block + align_down(((uint64_t)index << q->refcount_order) / 8, sizeof(piece));
    if (in_cluster(q, block) || child_pread(q->file, at, piece, sizeof(piece)) < 0)
        *ret_stored = STORED_UNKNOWN;
    else
        *ret_stored =
            (CheckStored)MIN(qcow2_refcount_get(piece, q->refcount_order, in_piece), (uint64_t)STORED_MANY);
    return 0;
}
