/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rebuilds refcounts that were not kept up to date (an image with lazy refcounts that was not closed
 * cleanly): counts what the active tables refer to, writes new refcount blocks and a new table behind the end
 * of the file, and switches to them. Nothing that is in use is overwritten, so a crash leaves the image as it
 * was.
 *
 * Images whose clusters are also used by snapshots or bitmaps are left to a check by another program.
 */
#include "base/mem.h"
#include "drivers/qcow2/qcow2-priv.h"

/* Clusters of the file that can be counted: 1 GiB of counters. */
#define MAX_COUNTED (UINT64_C(1) << 28)

typedef struct Rebuild {
    Qcow2 *q;
    uint32_t *counts;
    uint64_t clusters; /* that have a counter */
} Rebuild;

static int count_range(Rebuild *b, uint64_t offset, uint64_t bytes)
{
    uint64_t last = (offset + bytes - 1) >> b->q->cluster_bits;

    for (uint64_t cluster = offset >> b->q->cluster_bits; bytes && cluster <= last; cluster++) {
        if (cluster >= b->clusters || b->counts[cluster] == UINT32_MAX)
            return -EIO;
        b->counts[cluster]++;
    }
    return 0;
}

static int count_entry(Rebuild *b, uint64_t entry)
{
    const Qcow2 *q = b->q;

    if (entry & QCOW2_COMPRESSED) {
        Qcow2Compressed c = qcow2_compressed_decode(entry, q->cluster_bits);
        uint64_t end = b->clusters << q->cluster_bits;

        /* The last sector may reach beyond the end of the file. */
        return c.offset >= end ? -EIO : count_range(b, c.offset, MIN((uint64_t)c.bytes, end - c.offset));
    }
    entry &= QCOW2_OFFSET_MASK;
    return entry && !q->data_file ? count_range(b, entry, q->cluster_size) : 0;
}

static int count_table(Rebuild *b, uint64_t offset, uint8_t *table)
{
    Qcow2 *q = b->q;
    int r = count_range(b, offset, q->cluster_size);

    if (r == 0)
        r = child_pread(q->file, offset, table, q->cluster_size);
    for (uint32_t i = 0; r == 0 && i < 1U << q->l2_bits; i++)
        r = count_entry(b, slice_entry(q, table, i));
    return r;
}

/* All but the refcount structures, which are replaced. */
static int count_all(Rebuild *b)
{
    Qcow2 *q = b->q;
    AUTO_FREE uint8_t *table = mem_try_aligned(4096, MAX(q->cluster_size, UINT64_C(4096)));
    int r = table ? count_range(b, 0, 1) : -ENOMEM;

    if (r == 0)
        r = count_range(b, q->l1_offset, q->l1_entries * UINT64_C(8));
    for (uint32_t i = 0; r == 0 && i < q->l1_entries; i++)
        if (q->l1[i] & QCOW2_OFFSET_MASK)
            r = count_table(b, q->l1[i] & QCOW2_OFFSET_MASK, table);
    return r;
}

/* New structures at the end: clusters [start, start + blocks) are blocks, then the table. */
typedef struct NewRefcounts {
    uint64_t start, blocks, table_clusters, total;
} NewRefcounts;

static NewRefcounts plan(const Rebuild *b)
{
    const Qcow2 *q = b->q;
    NewRefcounts n = {.start = b->clusters, .total = b->clusters};
    uint64_t before;

    do {
        before = n.total;
        n.blocks = div_round_up(n.total, UINT64_C(1) << q->block_rc_bits);
        n.table_clusters = div_round_up(n.blocks * 8, q->cluster_size);
        n.total = n.start + n.blocks + n.table_clusters;
    } while (n.total != before);
    return n;
}

static int write_block(const Rebuild *b, const NewRefcounts *n, uint64_t index, uint8_t *block)
{
    Qcow2 *q = b->q;
    uint64_t entries = UINT64_C(1) << q->block_rc_bits, max = qcow2_refcount_max(q->refcount_order);

    memset(block, 0, q->cluster_size);
    for (uint64_t i = 0; i < entries && index * entries + i < n->total; i++) {
        uint64_t cluster = index * entries + i, count = cluster < n->start ? b->counts[cluster] : 1;

        if (count > max)
            return -EIO;
        qcow2_refcount_set(block, q->refcount_order, (uint32_t)i, count);
    }
    return edge_pwrite(q->file, (n->start + index) << q->cluster_bits, block, q->cluster_size, 0);
}

static int write_all(const Rebuild *b, const NewRefcounts *n)
{
    Qcow2 *q = b->q;
    AUTO_FREE uint8_t *block = mem_try_aligned(4096, q->cluster_size);
    AUTO_FREE uint8_t *table = mem_try_zalloc(n->table_clusters, q->cluster_size);
    uint8_t place[12];
    int r = block && table ? 0 : -ENOMEM;

    for (uint64_t i = 0; r == 0 && i < n->blocks; i++) {
        put_be64(table + i * 8, (n->start + i) << q->cluster_bits);
        r = write_block(b, n, i, block);
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
    q->header.rt_offset = q->rt_offset = get_be64(place);
    q->header.rt_clusters = (uint32_t)n->table_clusters;
    return r;
}

static int rebuild(Qcow2 *q)
{
    uint64_t size = node_size(edge_node(q->file));
    Rebuild b = {.q = q, .clusters = div_round_up(size, q->cluster_size)};
    AUTO_FREE uint32_t *counts =
        b.clusters <= MAX_COUNTED ? mem_try_zalloc(b.clusters, sizeof(*counts)) : NULL;
    NewRefcounts n;
    int r;

    if (!counts)
        return -ENOMEM;
    b.counts = counts;
    r = count_all(&b);
    if (r < 0)
        return r;
    n = plan(&b);
    return n.table_clusters << q->cluster_bits > QCOW2_MAX_REFTABLE_BYTES ? -EFBIG : write_all(&b, &n);
}

int image_rebuild_refcounts(Qcow2 *q, Error *err)
{
    int r;

    if (q->header.snapshots || q->has_bitmaps)
        return err_set(err, -ENOTSUP,
            "Image was not closed cleanly and has snapshots or bitmaps; repair it with 'qemu-img check -r "
            "all' first");
    r = rebuild(q);
    if (r < 0)
        return err_set_errno(err, r, "Could not repair dirty image");
    /* Start over with what is on disk now. */
    free(TAKE(q->rt));
    metaset_done(&q->meta);
    return image_prepare_writes(q, err);
}
