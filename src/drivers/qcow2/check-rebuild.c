/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A new refcount structure: blocks for all clusters that were counted and for themselves, and a table,
 * written behind everything that is in use. Then the header is made to point there. The clusters of the old
 * structure are free afterwards.
 */
#include "base/mem.h"
#include "drivers/qcow2/check-priv.h"

/* Clusters [start, start + blocks) become blocks, then comes the table. */
typedef struct NewRefcounts {
    uint64_t start, blocks, table_clusters, total;
    uint64_t *indexes; /* of the blocks in the table, ascending */
    const uint64_t *pages;
} NewRefcounts;

/* The blocks that it takes to count the pages and the clusters from start to total; their number. */
static uint64_t list_blocks(const Check *c, NewRefcounts *n)
{
    unsigned shift = c->q->block_rc_bits - c->counts.page_bits;
    uint64_t count = 0;

    for (uint64_t i = 0; i < c->counts.pages.used; i++)
        if (!count || n->indexes[count - 1] != n->pages[i] >> shift)
            n->indexes[count++] = n->pages[i] >> shift;
    for (uint64_t i = n->start >> c->q->block_rc_bits; i <= (n->total - 1) >> c->q->block_rc_bits; i++)
        if (!count || n->indexes[count - 1] < i)
            n->indexes[count++] = i;
    return count;
}

static int plan(Check *c, NewRefcounts *n)
{
    const Qcow2 *q = c->q;
    uint64_t before, most = QCOW2_MAX_REFTABLE_BYTES / 8;

    n->start = n->total = MAX(c->clusters, div_round_up(c->beyond, q->cluster_size));
    n->blocks = n->table_clusters = 1;
    n->indexes = mem_try_zalloc(c->counts.pages.used + most + 1, sizeof(*n->indexes));
    if (!n->indexes)
        return -ENOMEM;
    do {
        before = n->total;
        n->total = n->start + n->blocks + n->table_clusters;
        if ((n->total >> q->block_rc_bits) >= most || n->blocks > most)
            return err_set(c->err, -EFBIG,
                "The image is too large for a new refcount table: clusters are in use up to %#" PRIx64,
                n->start << q->cluster_bits);
        n->blocks = list_blocks(c, n);
        n->table_clusters = div_round_up((n->indexes[n->blocks - 1] + 1) * 8, q->cluster_size);
        n->total = n->start + n->blocks + n->table_clusters;
    } while (n->total != before);
    return 0;
}

static int write_block(const Check *c, const NewRefcounts *n, uint64_t number, uint8_t *block)
{
    Qcow2 *q = c->q;
    uint64_t entries = UINT64_C(1) << q->block_rc_bits, first = n->indexes[number] * entries, steps = 0;

    memset(block, 0, q->cluster_size);
    for (uint64_t i = 0; i < entries && first + i < n->total; i++) {
        uint64_t count = 0;

        if (first + i >= n->start)
            count = 1;
        else
            (void)counts_get(&c->counts, first + i, &count);
        qcow2_refcount_set(block, q->refcount_order, (uint32_t)i, count);
        refcount_breathe(&steps, 4);
    }
    return edge_pwrite(q->file, (n->start + number) << q->cluster_bits, block, q->cluster_size, 0);
}

static int write_all(const Check *c, const NewRefcounts *n)
{
    Qcow2 *q = c->q;
    AUTO_FREE uint8_t *block = mem_try_aligned(4096, MAX(q->cluster_size, UINT64_C(4096)));
    AUTO_FREE uint8_t *table = mem_try_zalloc(n->table_clusters, q->cluster_size);
    uint8_t place[12];
    int r = block && table ? 0 : -ENOMEM;

    for (uint64_t i = 0; r == 0 && i < n->blocks; i++) {
        put_be64(table + n->indexes[i] * 8, (n->start + i) << q->cluster_bits);
        r = write_block(c, n, i, block);
    }
    if (r < 0)
        return r;
    put_be64(place, (n->start + n->blocks) << q->cluster_bits);
    put_be32(place + 8, (uint32_t)n->table_clusters);
    r = edge_pwrite(q->file, get_be64(place), table, n->table_clusters << q->cluster_bits, 0);
    if (r == 0)
        r = edge_flush(q->file);
    if (r == 0)
        r = edge_pwrite(q->file, QCOW2_AT_RT_OFFSET, place, sizeof(place), 0);
    if (r == 0)
        r = edge_flush(q->file);
    if (r < 0)
        return r;
    q->header.rt_offset = q->rt_offset = get_be64(place);
    q->header.rt_clusters = (uint32_t)n->table_clusters;
    return 0;
}

int check_rebuild(Check *c)
{
    AUTO_FREE uint64_t *pages = NULL;
    NewRefcounts n = {0};
    int r = tally_keys(&c->counts.pages, &pages);

    n.pages = pages;
    if (r == 0)
        r = plan(c, &n);
    if (r == 0)
        r = write_all(c, &n);
    free(n.indexes);
    return r;
}
