/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Internal snapshots: the table, and making, deleting and applying one. A snapshot is an L1 table of its own;
 * what it reaches is counted once more. Each change is one shadow (shadow.c), so that a crash finds the image
 * as it was before or after it.
 *
 * The table is read when it is needed. Entries are kept as bytes, so that what others have put into one
 * survives.
 */
#include "drivers/qcow2/snapshot.h"

#include "base/mem.h"
#include "drivers/qcow2/tree.h"
#include "generated/types.h"

#include <stdio.h>

/* ---- Reading the table ---- */

int snapshot_next(Qcow2 *q, uint64_t *at, SnapshotPlace *ret_place)
{
    uint8_t fixed[QCOW2_SNAPSHOT_BYTES];
    uint64_t start = align_up(*at, 8);
    int r = child_pread(q->file, start, fixed, sizeof(fixed));

    if (r < 0)
        return r;
    *ret_place = (SnapshotPlace){
        .l1_offset = get_be64(fixed), .l1_entries = get_be32(fixed + 8), .extra_bytes = get_be32(fixed + 36)};
    *at = start + qcow2_snapshot_bytes(fixed);
    return 0;
}

int snapshot_table_space(Qcow2 *q, uint64_t *ret_bytes)
{
    uint64_t start = q->header.snapshots_offset, at = start;
    SnapshotPlace ignored;
    int r = 0;

    for (uint32_t i = 0; r == 0 && i < q->header.snapshots && at - start < LIMIT_SNAPSHOT_TABLE_BYTES; i++)
        r = snapshot_next(q, &at, &ignored);
    *ret_bytes = MIN(at - start, (uint64_t)LIMIT_SNAPSHOT_TABLE_BYTES);
    return r;
}

void snapshot_table_done(SnapshotTable *table)
{
    for (size_t i = 0; i < table->count; i++)
        free(table->items[i].raw);
    free(table->items);
    *table = (SnapshotTable){0};
}

bool snapshot_l1_is_sound(const Qcow2 *q, uint64_t offset, uint32_t entries)
{
    return !in_cluster(q, offset) && entries <= QCOW2_MAX_L1_BYTES / 8 &&
           !out_of_range(offset, entries * UINT64_C(8), LIMIT_NODE_BYTES);
}

/* Reads the entry at *at, or with table NULL only looks at it, and moves on. */
static int read_entry(Qcow2 *q, SnapshotTable *table, size_t number, uint64_t *at, Error *err)
{
    uint8_t fixed[QCOW2_SNAPSHOT_BYTES];
    SnapshotEntry *entry;
    uint64_t bytes;
    int r = child_pread(q->file, *at, fixed, sizeof(fixed));

    if (r < 0)
        return err_set_errno(err, r, "Failed to read snapshot table");
    if (get_be32(fixed + 36) > LIMIT_SNAPSHOT_EXTRA_BYTES)
        return err_set(err, -EINVAL, "Too much extra metadata in snapshot table entry %zu", number);
    bytes = qcow2_snapshot_bytes(fixed);
    if (*at + bytes - q->header.snapshots_offset > LIMIT_SNAPSHOT_TABLE_BYTES)
        return err_set(err, -EFBIG, "Snapshot table is too big");
    if (table) {
        entry = &table->items[table->count];
        entry->raw = mem_try_zalloc(1, bytes);
        if (!entry->raw)
            return err_set(err, -ENOMEM, "Out of memory");
        table->count++;
        r = child_pread(q->file, *at, entry->raw, bytes);
        if (r < 0)
            return err_set_errno(err, r, "Failed to read snapshot table");
        /* Its length is the one that was checked, whatever the file says by now. */
        memcpy(entry->raw, fixed, sizeof(fixed));
        entry->bytes = bytes;
        entry->s = qcow2_snapshot_decode(entry->raw);
    }
    *at += bytes;
    return 0;
}

static int walk_table(Qcow2 *q, SnapshotTable *table, Error *err)
{
    uint64_t at = q->header.snapshots_offset;
    int r = 0;

    for (size_t i = 0; r == 0 && i < q->header.snapshots; i++) {
        at = align_up(at, 8);
        r = read_entry(q, table, i, &at, err);
    }
    if (table)
        table->stored_bytes = at - q->header.snapshots_offset;
    return r;
}

int image_check_snapshots(Qcow2 *q, Error *err)
{
    return walk_table(q, NULL, err);
}

int snapshot_table_read(Qcow2 *q, SnapshotTable *table, Error *err)
{
    /* Room for one more. */
    *table = (SnapshotTable){.items = mem_try_zalloc(q->header.snapshots + (size_t)1, sizeof(*table->items))};
    if (!table->items)
        return err_set(err, -ENOMEM, "Out of memory");
    return walk_table(q, table, err);
}

static bool text_is(const char *text, size_t bytes, const char *wanted)
{
    return strlen(wanted) == bytes && memcmp(text, wanted, bytes) == 0;
}

/* id and name must both match where they are given; NULL: none does. */
static const SnapshotEntry *find(const SnapshotTable *table, const char *id, const char *name)
{
    for (size_t i = 0; i < table->count; i++) {
        const Qcow2Snapshot *s = &table->items[i].s;

        if ((!id || text_is(s->id, s->id_bytes, id)) && (!name || text_is(s->name, s->name_bytes, name)))
            return &table->items[i];
    }
    return NULL;
}

/* ---- Writing the table ---- */

static uint64_t table_bytes(const SnapshotTable *table)
{
    uint64_t bytes = 0;

    for (size_t i = 0; i < table->count; i++)
        bytes = align_up(bytes, 8) + table->items[i].bytes;
    return bytes;
}

static void put_entry(SnapshotEntry *entry, const Qcow2Snapshot *s)
{
    size_t bytes = qcow2_snapshot_encode(s, NULL);
    uint8_t *raw = mem_zalloc(bytes);

    (void)qcow2_snapshot_encode(s, raw); /* its texts may be in the old bytes */
    free(entry->raw);
    *entry = (SnapshotEntry){.raw = raw, .bytes = bytes, .s = qcow2_snapshot_decode(raw)};
}

/* Writes the table to a new place, which the shadow's header names then. */
static int table_to_shadow(Shadow *s, const SnapshotTable *table)
{
    Qcow2 *q = s->q;
    uint64_t bytes = table_bytes(table), space = align_up(bytes, q->cluster_size), at = 0;
    AUTO_FREE uint8_t *raw = NULL;
    int r;

    if (table->count > QCOW2_MAX_SNAPSHOTS || bytes > LIMIT_SNAPSHOT_TABLE_BYTES)
        return -EFBIG;
    if (q->header.snapshots)
        shadow_free(s, q->header.snapshots_offset, align_up(table->stored_bytes, q->cluster_size),
            q->pass_discard_snapshot);
    s->header.snapshots = (uint32_t)table->count;
    s->header.snapshots_offset = 0;
    if (!bytes)
        return 0;
    raw = mem_try_zalloc(1, space);
    r = raw ? shadow_alloc(s, space >> q->cluster_bits, META_SNAPSHOTS, &s->header.snapshots_offset)
            : -ENOMEM;
    if (r < 0)
        return r;
    for (size_t i = 0; i < table->count; i++) {
        at = align_up(at, 8);
        memcpy(raw + at, table->items[i].raw, table->items[i].bytes);
        at += table->items[i].bytes;
    }
    return edge_pwrite(q->file, s->header.snapshots_offset, raw, space, 0);
}

int snapshot_complete_entries(Qcow2 *q, Error *err)
{
    SnapshotTable table;
    Shadow s = {0};
    int r = snapshot_table_read(q, &table, err);

    if (r == 0)
        r = shadow_begin(q, &s);
    for (size_t i = 0; r == 0 && i < table.count; i++) {
        Qcow2Snapshot snapshot = table.items[i].s;

        if (snapshot.has_disk_bytes)
            continue;
        snapshot.has_disk_bytes = true;
        snapshot.disk_bytes = q->header.size;
        put_entry(&table.items[i], &snapshot);
    }
    if (r == 0)
        r = table_to_shadow(&s, &table);
    if (r == 0)
        r = shadow_commit(&s);
    if (s.q)
        shadow_end(&s);
    snapshot_table_done(&table);
    return r < 0 && !err_is_set(err) ? err_set_errno(err, r, "Could not complete the snapshot table") : r;
}

/* ---- Changes ---- */

typedef struct Change {
    Shadow s;
    SnapshotTable table;
    Tree active, other; /* the image's own tree, and that of a snapshot */
} Change;

static int change_begin(Qcow2 *q, Change *c, Error *err)
{
    int r;

    *c = (Change){0};
    co_mutex_lock_shielded(&q->change_lock);
    r = q->corrupt ? err_set(err, -EIO, "Image is corrupt") : snapshot_table_read(q, &c->table, err);
    for (size_t i = 0; r == 0 && i < c->table.count; i++)
        if (!snapshot_l1_is_sound(q, c->table.items[i].s.l1_offset, c->table.items[i].s.l1_entries))
            r = c->table.items[i].s.l1_entries > QCOW2_MAX_L1_BYTES / 8
                    ? err_set(err, -EFBIG, "Snapshot L1 table too large")
                    : err_set(err, -EINVAL, "Snapshot L1 table offset invalid");
    return r < 0 ? r : shadow_begin(q, &c->s);
}

static int change_end(Qcow2 *q, Change *c, int r, Error *err)
{
    tree_done(&c->active);
    tree_done(&c->other);
    if (c->s.q)
        shadow_end(&c->s);
    snapshot_table_done(&c->table);
    co_mutex_unlock(&q->change_lock);
    if (r == -ERANGE)
        return err_set(err, -EINVAL,
            "%s: refcounts of %u bits cannot count one more user of a cluster; delete another snapshot first",
            strerror(EINVAL), 1U << q->refcount_order);
    return r < 0 && !err_is_set(err) ? err_set(err, r, "%s", strerror(-r)) : r;
}

/* ---- Making one ---- */

/* One more than the largest number that is an id. */
static void new_id(const SnapshotTable *table, char *ret_id, size_t room)
{
    uint64_t largest = 0;

    for (size_t i = 0; i < table->count; i++) {
        const Qcow2Snapshot *s = &table->items[i].s;
        uint64_t number = 0;

        for (uint16_t k = 0; k < s->id_bytes && k < 18 && s->id[k] >= '0' && s->id[k] <= '9'; k++)
            number = number * 10 + (uint64_t)(s->id[k] - '0');
        largest = MAX(largest, number);
    }
    snprintf(ret_id, room, "%" PRIu64, largest + 1);
}

static int add_entry(Change *c, const SnapshotInfo *info)
{
    Qcow2 *q = c->s.q;
    SnapshotEntry *entry = &c->table.items[c->table.count];
    Qcow2Snapshot s = {
        .l1_entries = (uint32_t)c->other.entries,
        .date_sec = (uint32_t)info->date_sec,
        .date_nsec = (uint32_t)info->date_nsec,
        .vm_clock_ns = (uint64_t)info->vm_clock_sec * 1000000000 + (uint64_t)info->vm_clock_nsec,
        .has_disk_bytes = true,
        .disk_bytes = q->header.size,
        .icount = QCOW2_NO_ICOUNT,
        .name = info->name,
        .name_bytes = (uint16_t)strlen(info->name),
    };
    char id[32];
    int r = tree_write(&c->other, 0, &s.l1_offset);

    if (r < 0)
        return r;
    new_id(&c->table, id, sizeof(id));
    s.id = id;
    s.id_bytes = (uint16_t)strlen(id);
    put_entry(entry, &s);
    c->table.count++;
    return 0;
}

/* The image's tree is counted once more, for the snapshot. */
static int create_steps(Change *c, const SnapshotInfo *info)
{
    int r = tree_of_image(&c->active, &c->s);

    if (r == 0)
        r = tree_of_image(&c->other, &c->s);
    if (r == 0)
        r = tree_change(&c->active, TREE_REF);
    if (r == 0)
        r = tree_mark(&c->active, &c->other);
    if (r == 0)
        r = add_entry(c, info);
    if (r == 0)
        r = table_to_shadow(&c->s, &c->table);
    return r < 0 ? r : tree_commit(&c->active);
}

static int snapshot_create(Node *node, const SnapshotInfo *info, Error *err)
{
    Qcow2 *q = node->state;
    Change c;
    int r = change_begin(q, &c, err);

    if (r == 0)
        r = create_steps(&c, info);
    return change_end(q, &c, r, err);
}

/* ---- Deleting, applying ---- */

static int delete_steps(Change *c, const SnapshotEntry *entry)
{
    Qcow2 *q = c->s.q;
    Qcow2Snapshot s = entry->s;
    size_t index = (size_t)(entry - c->table.items);
    int r = tree_read(&c->other, &c->s, s.l1_offset, s.l1_entries, 0);

    if (r == 0)
        r = tree_of_image(&c->active, &c->s);
    if (r == 0)
        r = tree_change(&c->other, TREE_UNREF);
    if (r < 0)
        return r;
    if (s.l1_entries)
        shadow_free(&c->s, s.l1_offset, align_up(s.l1_entries * UINT64_C(8), q->cluster_size),
            q->pass_discard_snapshot);
    free(entry->raw);
    c->table.count--;
    memmove(&c->table.items[index], &c->table.items[index + 1],
        (c->table.count - index) * sizeof(*c->table.items));
    r = tree_mark(&c->active, NULL);
    if (r == 0)
        r = table_to_shadow(&c->s, &c->table);
    return r < 0 ? r : tree_commit(&c->active);
}

/* The image's own tree goes, and the snapshot's is counted once more. In this order, so that narrow refcounts
 * suffice for what both share. What lies behind the end of the disk, the state of a machine, stays with the
 * snapshot alone. */
static int apply_steps(Change *c, const SnapshotEntry *entry)
{
    Qcow2 *q = c->s.q;
    uint64_t size = entry->s.has_disk_bytes ? entry->s.disk_bytes : q->header.size, needed;
    int r;

    needed = size > LIMIT_NODE_BYTES ? UINT64_MAX : qcow2_l1_entries_for(&q->header, size);
    if (needed > QCOW2_MAX_L1_BYTES / 8)
        return -EFBIG;
    c->s.header.size = size;
    r = tree_of_image(&c->active, &c->s);
    if (r == 0)
        r = tree_read(&c->other, &c->s, entry->s.l1_offset, MIN(entry->s.l1_entries, needed), needed);
    if (r == 0)
        r = tree_change(&c->active, TREE_UNREF);
    if (r == 0)
        r = tree_change(&c->other, TREE_REF);
    if (r == 0)
        r = tree_mark(&c->other, NULL);
    return r < 0 ? r : tree_commit(&c->other);
}

static int on_entry(Node *node, const char *id, const char *name,
    int (*steps)(Change *c, const SnapshotEntry *entry), Error *err)
{
    Qcow2 *q = node->state;
    const SnapshotEntry *entry;
    Change c;
    int r = change_begin(q, &c, err);

    entry = r == 0 ? find(&c.table, id, name) : NULL;
    if (r == 0)
        r = entry ? steps(&c, entry) : -ENOENT;
    node->size = align_down(q->header.size, 512);
    return change_end(q, &c, r, err);
}

static int snapshot_delete(Node *node, const char *id, const char *name, Error *err)
{
    return on_entry(node, id, name, delete_steps, err);
}

static int snapshot_apply(Node *node, const char *id, const char *name, Error *err)
{
    return on_entry(node, id, name, apply_steps, err);
}

/* ---- Listing ---- */

static SnapshotInfo *describe(const Qcow2Snapshot *s)
{
    SnapshotInfo *info = mem_new(SnapshotInfo);

    info->id = str_ndup(s->id, strnlen(s->id, s->id_bytes));
    info->name = str_ndup(s->name, strnlen(s->name, s->name_bytes));
    info->vm_state_size = (int64_t)s->vm_state_bytes;
    info->date_sec = s->date_sec;
    info->date_nsec = s->date_nsec;
    info->vm_clock_sec = (int64_t)(s->vm_clock_ns / 1000000000);
    info->vm_clock_nsec = (int64_t)(s->vm_clock_ns % 1000000000);
    info->has_icount = s->icount != QCOW2_NO_ICOUNT;
    info->icount = (int64_t)s->icount;
    return info;
}

static int snapshot_list(Node *node, SnapshotInfoList *ret_list, Error *err)
{
    Qcow2 *q = node->state;
    SnapshotTable table = {0};
    int r;

    if (q->data_file)
        return err_set(err, -ENOTSUP, "%s", strerror(ENOTSUP));
    co_mutex_lock_shielded(&q->change_lock);
    r = snapshot_table_read(q, &table, err);
    co_mutex_unlock(&q->change_lock);
    for (size_t i = 0; r == 0 && i < table.count; i++)
        snapshot_info_list_append(ret_list, describe(&table.items[i].s));
    snapshot_table_done(&table);
    return r;
}

const DriverSnapshots qcow2_snapshots = {
    .list = snapshot_list,
    .create = snapshot_create,
    .remove = snapshot_delete,
    .apply = snapshot_apply,
};
