/* SPDX-License-Identifier: Apache-2.0 */
/* Trees of snapshots and of the image itself: see tree.h. Their L2 tables are read past the cache, one at a
 * time; nothing read from them is trusted. */
#include "drivers/qcow2/tree.h"

#include "base/mem.h"

void tree_done(Tree *tree)
{
    free(tree->l1);
    free(tree->table);
}

/* entries of them are read from offset; the tree has room for at least room. */
static int tree_init(Tree *tree, Shadow *s, uint64_t entries, uint64_t room)
{
    Qcow2 *q = s->q;

    *tree = (Tree){.s = s, .entries = MAX(entries, room)};
    if (!tree->entries)
        tree->entries = 1;
    tree->l1 = mem_try_zalloc(tree->entries, sizeof(*tree->l1));
    tree->table = mem_try_aligned(4096, MAX(q->cluster_size, UINT64_C(4096)));
    return tree->l1 && tree->table ? 0 : -ENOMEM;
}

int tree_read(Tree *tree, Shadow *s, uint64_t offset, uint64_t entries, uint64_t room)
{
    int r = tree_init(tree, s, entries, room);

    if (r == 0)
        r = child_pread(s->q->file, offset, tree->l1, entries * 8);
    for (uint64_t i = 0; r == 0 && i < entries; i++)
        tree->l1[i] = be64toh(tree->l1[i]);
    return r;
}

int tree_of_image(Tree *tree, Shadow *s)
{
    int r = tree_init(tree, s, s->q->l1_entries, 0);

    if (r == 0)
        memcpy(tree->l1, s->q->l1, s->q->l1_entries * sizeof(*tree->l1));
    return r;
}

static int tree_table(Tree *tree, uint64_t index, uint64_t *ret_offset)
{
    Qcow2 *q = tree->s->q;

    *ret_offset = tree->l1[index] & QCOW2_OFFSET_MASK;
    if (!*ret_offset)
        return 0;
    if (in_cluster(q, *ret_offset))
        return image_corrupt(q, false, -1, -1,
            "L2 table offset %#" PRIx64 " unaligned (L1 index: %#" PRIx64 ")", *ret_offset, index);
    return child_pread(q->file, *ret_offset, tree->table, q->cluster_size);
}

/* The clusters that an L2 entry refers to; 0: none. */
static int entry_clusters(Qcow2 *q, uint64_t entry, uint64_t *ret_offset, uint64_t *ret_bytes)
{
    *ret_offset = entry & QCOW2_OFFSET_MASK;
    *ret_bytes = *ret_offset ? q->cluster_size : 0;
    if (entry & QCOW2_COMPRESSED) {
        Qcow2Compressed c = qcow2_compressed_decode(entry, q->cluster_bits);

        *ret_offset = align_down(c.offset, q->cluster_size);
        *ret_bytes = align_up(c.offset + c.bytes, q->cluster_size) - *ret_offset;
    }
    if (*ret_bytes && in_cluster(q, *ret_offset))
        return image_corrupt(
            q, false, -1, -1, "Cluster allocation offset %#" PRIx64 " unaligned", *ret_offset);
    return 0;
}

static int change_clusters(Shadow *s, uint64_t offset, uint64_t bytes, TreeChange change)
{
    return change == TREE_REF ? shadow_ref(s, offset, bytes)
                              : shadow_unref(s, offset, bytes, s->q->pass_discard_snapshot);
}

/* Counts all that the tree reaches once more, or once less. */
int tree_change(Tree *tree, TreeChange change)
{
    Shadow *s = tree->s;
    Qcow2 *q = s->q;
    int r = 0;

    for (uint64_t i = 0; r == 0 && i < tree->entries; i++) {
        uint64_t table, offset, bytes;

        r = tree_table(tree, i, &table);
        if (!table)
            continue;
        for (uint32_t k = 0; r == 0 && k < 1U << q->l2_bits; k++) {
            r = entry_clusters(q, slice_entry(q, tree->table, k), &offset, &bytes);
            if (r == 0 && bytes)
                r = change_clusters(s, offset, bytes, change);
        }
        if (r == 0)
            r = change_clusters(s, table, q->cluster_size, change);
    }
    return r;
}

/* Sets the COPIED flags of the table that was read last to what the refcounts say. */
static int mark_entries(Tree *tree, bool *ret_changed)
{
    Qcow2 *q = tree->s->q;

    *ret_changed = false;
    for (uint32_t k = 0; k < 1U << q->l2_bits; k++) {
        uint64_t entry = slice_entry(q, tree->table, k), right, count;
        int r;

        if ((entry & QCOW2_COMPRESSED) || !(entry & QCOW2_OFFSET_MASK))
            continue;
        r = shadow_read(tree->s, (entry & QCOW2_OFFSET_MASK) >> q->cluster_bits, &count);
        if (r < 0)
            return r;
        right = (entry & ~QCOW2_COPIED) | (count == 1 ? QCOW2_COPIED : 0);
        if (right == entry)
            continue;
        put_be64(tree->table + (size_t)k * q->entry_bytes, right);
        *ret_changed = true;
    }
    return 0;
}

/* The table was changed in memory: writes it to a new place, for the twin as well. */
static int move_table(Tree *tree, Tree *twin, uint64_t index, uint64_t old)
{
    Shadow *s = tree->s;
    Qcow2 *q = s->q;
    uint64_t offset;
    int r = shadow_alloc(s, 1, META_L2, &offset);

    if (r == 0)
        r = edge_pwrite(q->file, offset, tree->table, q->cluster_size, 0);
    if (r == 0)
        r = shadow_unref(s, old, q->cluster_size, q->pass_discard_other);
    if (r == 0 && twin)
        r = shadow_unref(s, old, q->cluster_size, q->pass_discard_other);
    if (r < 0)
        return r;
    tree->l1[index] = offset | (twin ? 0 : QCOW2_COPIED);
    if (twin) {
        shadow_share(s, offset, q->cluster_size);
        twin->l1[index] = offset;
    }
    return 0;
}

/* Makes a tree what the image's own one has to be: with the right COPIED flags. Tables whose flags change
 * move. twin, if there is one, is the same tree and follows. */
int tree_mark(Tree *tree, Tree *twin)
{
    Shadow *s = tree->s;
    int r = 0;

    for (uint64_t i = 0; r == 0 && i < tree->entries; i++) {
        uint64_t table, count;
        bool changed;

        r = tree_table(tree, i, &table);
        if (r < 0 || !table)
            continue;
        r = mark_entries(tree, &changed);
        if (r == 0 && changed) {
            r = move_table(tree, twin, i, table);
            continue;
        }
        if (r == 0)
            r = shadow_read(s, table >> s->q->cluster_bits, &count);
        if (r == 0)
            tree->l1[i] = table | (count == 1 ? QCOW2_COPIED : 0);
        if (r == 0 && twin)
            twin->l1[i] = table;
        if (r == 0)
            r = metaset_add(&s->q->meta, table >> s->q->cluster_bits, META_L2);
    }
    return r;
}

/* Writes the L1 table to a new place. */
int tree_write(const Tree *tree, unsigned kind, uint64_t *ret_offset)
{
    Qcow2 *q = tree->s->q;
    int r = shadow_alloc(tree->s, div_round_up(tree->entries * 8, q->cluster_size), kind, ret_offset);

    return r < 0 ? r : shadow_write_table(tree->s, tree->l1, tree->entries, *ret_offset);
}

int tree_commit(Tree *active)
{
    Shadow *s = active->s;
    Qcow2 *q = s->q;
    AUTO_FREE uint8_t *dirty = mem_try_zalloc(active->entries / 64 + 1, 1);
    int r = dirty ? tree_write(active, META_L1, &s->header.l1_offset) : -ENOMEM;

    if (r < 0)
        return r;
    if (q->l1_entries)
        shadow_free(s, q->l1_offset, align_up(q->l1_entries * UINT64_C(8), q->cluster_size), false);
    s->header.l1_entries = (uint32_t)active->entries;
    r = shadow_commit(s);
    if (r < 0)
        return r;
    free(q->l1);
    free(q->l1_dirty);
    q->l1 = TAKE(active->l1);
    q->l1_dirty = TAKE(dirty);
    q->l1_entries = q->header.l1_entries;
    q->l1_offset = q->header.l1_offset;
    away_forget(q);
    return 0;
}
