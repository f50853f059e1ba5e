/* SPDX-License-Identifier: Apache-2.0 */
/* Changing the size of the disk: a larger L1 table if need be, then the size in the header. */
#include "base/mem.h"
#include "drivers/qcow2/qcow2-priv.h"

/* Writes a table of big-endian entries, padded with zeroes to whole clusters. */
static int write_l1(Qcow2 *q, uint64_t offset, uint64_t entries)
{
    size_t bytes = align_up(entries * 8, q->cluster_size);
    AUTO_FREE uint8_t *raw = mem_try_zalloc(1, bytes);

    if (!raw)
        return -ENOMEM;
    for (uint32_t i = 0; i < q->l1_entries; i++)
        put_be64(raw + (size_t)i * 8, q->l1[i]);
    return edge_pwrite(q->file, offset, raw, bytes, 0);
}

#define L1_PLACE_BYTES 12

/* Number of entries and offset, as the header has them. */
static void put_l1_place(uint8_t *place, uint64_t entries, uint64_t offset)
{
    put_be32(place, (uint32_t)entries);
    put_be64(place + 4, offset);
}

/* What the larger table needs in memory; had before the header names it, as nothing may fail afterwards. */
typedef struct LargerL1 {
    uint64_t *table;
    uint8_t *dirty;
    uint64_t offset, entries;
} LargerL1;

static void adopt_l1(Qcow2 *q, const LargerL1 *larger)
{
    memcpy(larger->table, q->l1, q->l1_entries * sizeof(*larger->table));
    memcpy(larger->dirty, q->l1_dirty, q->l1_entries / 64 + 1);
    free(q->l1);
    free(q->l1_dirty);
    q->l1 = larger->table;
    q->l1_dirty = larger->dirty;
    if (q->l1_entries)
        free_range(q, FREE_READY, q->l1_offset, align_up(q->l1_entries * UINT64_C(8), q->cluster_size),
            q->pass_discard_other);
    q->l1_entries = q->header.l1_entries = (uint32_t)larger->entries;
    q->l1_offset = q->header.l1_offset = larger->offset;
}

static int switch_l1(Qcow2 *q, const LargerL1 *larger)
{
    uint8_t new[L1_PLACE_BYTES], old[L1_PLACE_BYTES];

    put_l1_place(new, larger->entries, larger->offset);
    put_l1_place(old, q->l1_entries, q->l1_offset);
    return header_switch(q, QCOW2_AT_L1_ENTRIES, new, old, sizeof(new));
}

static int write_larger_l1(Qcow2 *q, const LargerL1 *larger, uint64_t clusters)
{
    int r = 0;

    for (uint64_t i = 0; r == 0 && i < clusters; i++)
        r = metaset_add(&q->meta, (larger->offset >> q->cluster_bits) + i, META_L1);
    if (r == 0)
        r = write_l1(q, larger->offset, larger->entries);
    if (r == 0)
        r = sync_refcounts(q);
    if (r == 0)
        r = edge_flush(q->file);
    return r < 0 ? r : switch_l1(q, larger);
}

/* The node is drained: nobody changes the L1 table meanwhile. */
static int grow_l1(Qcow2 *q, uint64_t entries)
{
    uint64_t clusters = div_round_up(entries * 8, q->cluster_size);
    LargerL1 larger = {.entries = entries,
        .table = mem_try_zalloc(entries, sizeof(*larger.table)),
        .dirty = mem_try_zalloc(entries / 64 + 1, 1)};
    int r = larger.table && larger.dirty ? sync_writeback(q)
                                         : -ENOMEM; /* what the old table holds in memory only */

    if (r == 0)
        r = refcount_alloc_exact(q, clusters, &larger.offset);
    if (r == 0) {
        r = write_larger_l1(q, &larger, clusters);
        /* No header names it; what was protected is released with the last reference. */
        if (r < 0 && !q->corrupt) {
            free_range(q, FREE_READY, larger.offset, clusters << q->cluster_bits, true);
            (void)!free_reclaim(q);
        }
    }
    if (r == 0) {
        adopt_l1(q, &larger);
    } else {
        free(larger.table);
        free(larger.dirty);
    }
    return r;
}

/* A header that may say less than the node would lose what is written beyond. */
static int switch_size(Qcow2 *q, uint64_t size)
{
    uint8_t new[8], old[8];
    int r;

    put_be64(new, size);
    put_be64(old, q->header.size);
    r = header_switch(q, QCOW2_AT_SIZE, new, old, sizeof(new));
    if (r == 0)
        q->header.size = size;
    return r;
}

/*
 * What lies behind the old end must not show through where the disk grows: a longer backing file, the rest of
 * the last cluster from a time when the disk was larger.
 */
static int zero_new_area(Qcow2 *q, uint64_t size)
{
    uint64_t old = q->node->size, backing = q->node->backing ? node_size(edge_node(q->node->backing)) : 0;
    uint64_t tail = MIN(size, align_up(old, q->cluster_size)), end = MIN(size, MAX(backing, tail));
    int r;

    if (end == old)
        return 0;
    q->node->size = size;
    r = zero_by_writing(q, old, tail - old, 0);
    if (r == 0 && end > tail)
        r = q->has_zero ? image_write_zeroes(q->node, tail, end - tail, 0)
                        : zero_by_writing(q, tail, end - tail, 0);
    q->node->size = old;
    return r;
}

/* Clusters are mapped there by a growth that failed or was cut short, by the state of a virtual machine that
 * came with a snapshot, or by who made the image. */
static int drop_behind_end(Qcow2 *q, uint64_t size)
{
    return discard_clusters(
        q, align_up(q->node->size, q->cluster_size), align_up(size, q->cluster_size), true, true);
}

static int grow(Qcow2 *q, uint64_t size, Preallocation prealloc, Error *err)
{
    uint64_t entries = qcow2_l1_entries_for(&q->header, size);
    int r;

    if (q->data_raw && prealloc == PREALLOCATION_OFF) /* every cluster has its place there */
        prealloc = PREALLOCATION_METADATA;
    if (entries * 8 > QCOW2_MAX_L1_BYTES)
        return err_set(err, -EFBIG, "Failed to grow the L1 table: %s", "File too large");
    if (entries > q->l1_entries) {
        r = grow_l1(q, entries);
        if (r < 0)
            return err_set_errno(err, r, "Failed to grow the L1 table");
    }
    r = drop_behind_end(q, size);
    if (r == 0 && prealloc == PREALLOCATION_OFF)
        r = zero_new_area(q, size);
    if (r < 0)
        return err_set_errno(err, r, "Failed to zero out the new area");
    return preallocate(q, size, prealloc, err);
}

static int shrink(Qcow2 *q, uint64_t size, Preallocation prealloc, Error *err)
{
    uint64_t start = align_up(size, q->cluster_size), end = align_up(q->node->size, q->cluster_size);
    int r;

    if (prealloc != PREALLOCATION_OFF)
        return err_set(err, -EINVAL, "Preallocation can't be used for shrinking an image");
    r = discard_clusters(q, start, end, true, true);
    if (r == 0)
        r = sync_flush(q);
    return r < 0 ? err_set_errno(err, r, "Failed to discard cropped clusters") : 0;
}

/* A raw data file ends where the disk does; once the header says so, as it may be longer but not shorter. */
static int cut_data_file(Qcow2 *q, uint64_t size, Error *err)
{
    if (!q->data_raw || node_size(edge_node(q->data)) <= size)
        return 0;
    return edge_resize(q->data, size, false, PREALLOCATION_OFF, 0, err);
}

static int resize_locked(Qcow2 *q, uint64_t size, Preallocation prealloc, Error *err)
{
    Node *node = q->node;
    int r;

    if (!is_aligned(size, 512))
        return err_set(err, -EINVAL, "The new size must be a multiple of 512");
    if (q->corrupt)
        return err_set(err, -EIO, "Image is corrupt");
    if (q->header.snapshots && q->header.version < 3)
        return err_set(err, -ENOTSUP, "Can't resize a v2 image which has snapshots");
    r = image_prepare_bitmaps_resize(q, err);
    if (r < 0)
        return r;
    r = size < node->size ? shrink(q, size, prealloc, err) : grow(q, size, prealloc, err);
    if (r < 0)
        return r;
    r = switch_size(q, size);
    if (r < 0)
        return err_set_errno(err, r, "Failed to update the image size");
    node->size = size;
    return cut_data_file(q, size, err);
}

int image_resize(Node *node, uint64_t size, bool exact, Preallocation prealloc, unsigned flags, Error *err)
{
    Qcow2 *q = node->state;
    int r;

    co_mutex_lock_shielded(&q->change_lock);
    r = resize_locked(q, size, prealloc, err);
    co_mutex_unlock(&q->change_lock);
    return r;
}
