/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The walk over everything in an image that refers to clusters, but for the refcount structure. What counts
 * as a corruption, and how often, is as in the reference's check.
 */
#include "base/mem.h"
#include "drivers/qcow2/check-priv.h"

/* Tables that are read at the same time. */
#define WORKERS 8
#define L1_PIECE_ENTRIES 8192
/* Reading this much takes longer than asking whether it is a hole. */
#define WORTH_ASKING (64 * KIB)

#define L1_RESERVED UINT64_C(0x7f000000000001ff)
#define L2_RESERVED UINT64_C(0x3f000000000001fe)

/* ---- Counting ---- */

int check_count(Check *c, uint64_t offset, uint64_t bytes, uint64_t weight)
{
    const Qcow2 *q = c->q;
    uint64_t end = offset + bytes, lost, max = qcow2_refcount_max(q->refcount_order);

    if (!bytes)
        return 0;
    /* The last cluster of a file may be there in part only. */
    if (end >= c->file_bytes + q->cluster_size) {
        check_say(c, "the range of %" PRIu64 " bytes at %#" PRIx64 " lies beyond the end of the file", bytes,
            offset);
        c->result->corruptions += weight;
        c->beyond = MAX(c->beyond, end);
        return 0;
    }
    for (uint64_t cluster = offset >> q->cluster_bits; cluster <= (end - 1) >> q->cluster_bits; cluster++) {
        int r = counts_add(&c->counts, cluster, weight, max, &lost);

        if (r < 0)
            return r;
        if (lost)
            check_say(c, "the cluster at %#" PRIx64 " has more references than the image can count",
                cluster << q->cluster_bits);
        c->result->corruptions += lost;
        c->clusters = MAX(c->clusters, cluster + 1);
    }
    return 0;
}

/* ---- L2 ---- */

typedef struct TableWalk {
    bool active;   /* tables of the active L1 table: clusters are counted for the statistics */
    uint64_t next; /* where the next cluster would be if the disk were not fragmented; 0: anywhere */
    uint64_t weight;
} TableWalk;

static void count_allocated(Check *c, TableWalk *walk, uint64_t offset)
{
    if (!walk->active)
        return;
    c->result->allocated_clusters += walk->weight;
    if (walk->next && offset != walk->next)
        c->result->fragmented_clusters += walk->weight;
    walk->next = offset + c->q->cluster_size;
}

static int walk_compressed(Check *c, TableWalk *walk, uint64_t entry, uint64_t subs)
{
    const char *wrong = NULL;
    Qcow2Compressed compressed;

    if (entry & QCOW2_COPIED) {
        check_say(c, "compressed cluster with a flag that it must not have (L2 entry %#" PRIx64 ")", entry);
        c->result->corruptions += walk->weight;
        entry &= ~QCOW2_COPIED;
    }
    if (c->q->data_file)
        wrong = "compressed cluster in an image with an external data file";
    else if (subs)
        wrong = "compressed cluster with subclusters";
    if (wrong) {
        check_say(c, "%s (L2 entry %#" PRIx64 ")", wrong, entry);
        c->result->corruptions += walk->weight;
        return 0;
    }
    if (walk->active) {
        c->result->allocated_clusters += walk->weight;
        c->result->compressed_clusters += walk->weight;
        c->result->fragmented_clusters += walk->weight;
    }
    compressed = qcow2_compressed_decode(entry, c->q->cluster_bits);
    return check_count(c, compressed.offset, compressed.bytes, walk->weight);
}

static int walk_standard(Check *c, TableWalk *walk, uint64_t entry, uint64_t subs)
{
    const Qcow2 *q = c->q;
    uint64_t offset = entry & QCOW2_OFFSET_MASK;

    if ((subs >> 32) & subs) {
        check_say(c, "cluster at %#" PRIx64 " with a subcluster that is both data and zero", offset);
        c->result->corruptions += walk->weight;
        return 0;
    }
    if (in_cluster(q, offset)) {
        check_say(c, "cluster at %#" PRIx64 " is not aligned", offset);
        c->result->corruptions += walk->weight;
    }
    count_allocated(c, walk, offset);
    return q->data_file ? 0 : check_count(c, offset, q->cluster_size, walk->weight);
}

static int walk_entry(Check *c, TableWalk *walk, uint64_t entry, uint64_t subs)
{
    const Qcow2 *q = c->q;

    if (entry & QCOW2_COMPRESSED)
        return walk_compressed(c, walk, entry, subs);
    if (entry & L2_RESERVED) {
        check_say(c, "L2 entry %#" PRIx64 " has reserved bits set", entry);
        c->result->corruptions += walk->weight;
    }
    if ((entry & QCOW2_OFFSET_MASK) ||
        (q->data_file && (entry & QCOW2_COPIED) && (q->extended || !(entry & QCOW2_ZERO))))
        return walk_standard(c, walk, entry, subs);
    if (subs & QCOW2_SUB_ALL_ALLOCATED) {
        check_say(c, "cluster without a place has subclusters with data (L2 entry %#" PRIx64 ")", entry);
        c->result->corruptions += walk->weight;
    }
    return 0;
}

static int walk_table(Check *c, uint64_t offset, uint64_t weight, uint8_t *table, void *arg)
{
    TableWalk walk = {.active = arg, .weight = weight};
    int r = 0;

    for (uint32_t i = 0; r == 0 && i < 1U << c->q->l2_bits; i++) {
        uint64_t entry = slice_entry(c->q, table, i), subs = slice_subclusters(c->q, table, i);

        if (entry | subs)
            r = walk_entry(c, &walk, entry, c->q->extended ? subs : 0);
    }
    return r;
}

/* ---- Tables side by side ---- */

typedef struct TableRun {
    Check *c;
    CheckTableFn *fn;
    void *arg;
    const uint64_t *keys;
    size_t next, count;
    int result;
} TableRun;

/* The file has nothing where a table should be: a sparse file may be enormous. */
static bool is_empty(Check *c, uint64_t offset)
{
    BlockStatus status;

    if (offset >= c->file_bytes)
        return true;
    return c->q->cluster_size >= WORTH_ASKING && c->file_bytes - offset >= c->q->cluster_size &&
           edge_status(c->q->file, offset, c->q->cluster_size, &status) == 0 &&
           (status.flags & BLOCK_STATUS_ZERO) && status.bytes == c->q->cluster_size;
}

static int do_table(TableRun *run, uint64_t key, uint8_t *buffer)
{
    Check *c = run->c;
    uint64_t offset = key * 512;
    int r = co_interrupted();

    if (r < 0)
        return r;
    if (is_empty(c, offset))
        return 0;
    r = child_pread(c->q->file, offset, buffer, c->q->cluster_size);
    if (r < 0) {
        check_say(c, "the L2 table at %#" PRIx64 " cannot be read", offset);
        c->result->check_errors++;
        c->hidden = true;
        return 0;
    }
    r = run->fn(c, offset, *tally_find(&c->tables, key), buffer, run->arg);
    return r < 0 ? r : co_yield ();
}

static void do_tables(void *arg)
{
    TableRun *run = arg;
    AUTO_FREE uint8_t *buffer = mem_try_aligned(4096, MAX(run->c->q->cluster_size, UINT64_C(4096)));

    if (!buffer)
        run->result = -ENOMEM;
    while (run->result == 0 && run->next < run->count) {
        int r = do_table(run, run->keys[run->next++], buffer);

        if (r < 0 && run->result == 0)
            run->result = r;
    }
}

int check_each_table(Check *c, CheckTableFn *fn, void *arg)
{
    AUTO_FREE uint64_t *keys = NULL;
    TableRun run = {.c = c, .fn = fn, .arg = arg, .count = c->tables.used};
    CoGroup group;
    int r = tally_keys(&c->tables, &keys);

    if (r < 0)
        return r;
    run.keys = keys;
    co_group_init(&group);
    for (size_t i = 0; i < MIN((size_t)WORKERS, run.count); i++)
        co_start(&group, "check", do_tables, &run);
    r = co_group_wait(&group);
    if (r < 0) {
        run.result = r;
        co_group_join(&group);
    }
    tally_done(&c->tables);
    return run.result;
}

/* ---- L1 ---- */

static int collect_entry(Check *c, uint64_t entry, uint64_t weight)
{
    uint64_t offset = entry & QCOW2_OFFSET_MASK;
    int r;

    if (entry & L1_RESERVED) {
        check_say(c, "L1 entry %#" PRIx64 " has reserved bits set", entry);
        c->result->corruptions += weight;
    }
    if (!offset)
        return 0;
    if (in_cluster(c->q, offset)) {
        check_say(c, "the L2 table at %#" PRIx64 " is not aligned", offset);
        c->result->corruptions += weight;
        c->hidden = true; /* what it really refers to is unknown */
    }
    r = check_count(c, offset, c->q->cluster_size, weight);
    return r < 0 ? r : tally_add(&c->tables, offset / 512, weight);
}

int check_collect(Check *c, uint64_t offset, uint32_t entries, uint64_t weight)
{
    AUTO_FREE uint64_t *piece = NULL;
    int r = check_count(c, offset, entries * UINT64_C(8), weight);

    /* There is nothing beyond the end of the file. */
    entries = offset < c->file_bytes ? (uint32_t)MIN(entries, (c->file_bytes - offset + 7) / 8) : 0;
    if (r < 0 || !entries) /* there may be many thousand snapshots */
        return r;
    piece = mem_try_zalloc(MIN(entries, (uint32_t)L1_PIECE_ENTRIES), 8);
    if (!piece)
        return -ENOMEM;
    for (uint32_t done = 0; r == 0 && done < entries; done += L1_PIECE_ENTRIES) {
        uint32_t count = MIN(entries - done, (uint32_t)L1_PIECE_ENTRIES);

        r = child_pread(c->q->file, offset + done * UINT64_C(8), piece, count * 8);
        if (r < 0) {
            check_say(c, "the L1 table at %#" PRIx64 " cannot be read", offset);
            c->result->check_errors++;
            c->hidden = true;
            return 0;
        }
        for (uint32_t i = 0; r == 0 && i < count; i++)
            if (piece[i])
                r = collect_entry(c, be64toh(piece[i]), weight);
        if (r == 0)
            r = co_yield ();
    }
    return r;
}

/* ---- Snapshots ---- */

/* One entry of the snapshot table; *at moves behind it. */
static int walk_snapshot(Check *c, uint32_t number, uint64_t *at, uint64_t *l1_bytes)
{
    const Qcow2 *q = c->q;
    SnapshotPlace place;
    int r = snapshot_next(c->q, at, &place);

    if (r < 0)
        return err_set_errno(c->err, r, "Could not read the snapshot table");
    if (place.extra_bytes > LIMIT_SNAPSHOT_EXTRA_BYTES ||
        *at - q->header.snapshots_offset > LIMIT_SNAPSHOT_TABLE_BYTES)
        return err_set(c->err, -EFBIG,
            "The snapshot table is damaged: entry %" PRIu32
            " is too large, so that nothing is known about it and those that follow",
            number);
    if (q->header.version >= 3 && place.extra_bytes < QCOW2_SNAPSHOT_V3_EXTRA_BYTES) {
        check_say(c, "entry %" PRIu32 " of the snapshot table is incomplete", number);
        c->result->corruptions++;
        c->incomplete++;
    }
    if (!snapshot_l1_is_sound(q, place.l1_offset, place.l1_entries)) {
        check_say(c,
            "the L1 table of snapshot %" PRIu32 " cannot be: offset %#" PRIx64 ", %" PRIu32 " entries",
            number, place.l1_offset, place.l1_entries);
        c->result->corruptions++;
        c->hidden = true;
        return 0;
    }
    *l1_bytes += place.l1_entries * UINT64_C(8);
    if (*l1_bytes > LIMIT_CHECK_L1_BYTES)
        return err_set(c->err, -E2BIG,
            "The L1 tables of the snapshots have more than %" PRIu64
            " bytes in all; such an image is not checked",
            LIMIT_CHECK_L1_BYTES);
    return check_collect(c, place.l1_offset, place.l1_entries, 1);
}

static int walk_snapshots(Check *c)
{
    const Qcow2Header *h = &c->q->header;
    uint64_t at = h->snapshots_offset, l1_bytes = 0;
    int r = 0;

    if (h->snapshots && c->q->data_file) {
        check_say(c, "snapshots in an image with an external data file");
        c->result->corruptions++;
    }
    for (uint32_t i = 0; r == 0 && i < h->snapshots; i++)
        r = walk_snapshot(c, i, &at, &l1_bytes);
    if (r == 0)
        r = check_count(c, h->snapshots_offset, at - h->snapshots_offset, 1);
    return r < 0 ? r : check_each_table(c, walk_table, NULL);
}

/* ---- Bitmaps and their journal ---- */

static int count_bitmap_range(void *arg, uint64_t offset, uint64_t bytes)
{
    return check_count(arg, offset, bytes, 1);
}

static int walk_bitmaps(Check *c)
{
    int r = image_walk_bitmaps(c->q, count_bitmap_range, c);

    if (r != -EINVAL && r != -EIO)
        return r;
    check_say(c, "the bitmap directory or a bitmap's table is damaged");
    c->result->check_errors++;
    c->hidden = true;
    return 0;
}

/* ---- Everything ---- */

int check_walk(Check *c)
{
    const Qcow2 *q = c->q;
    bool active = true;
    int r = check_count(c, 0, q->cluster_size, 1);

    if (r == 0 && q->crypt_bytes)
        r = check_count(c, q->crypt_offset, q->crypt_bytes, 1);
    if (r == 0)
        r = check_collect(c, q->l1_offset, q->l1_entries, 1);
    if (r == 0)
        r = check_each_table(c, walk_table, &active);
    if (r == 0)
        r = walk_bitmaps(c);
    return r < 0 ? r : walk_snapshots(c);
}
