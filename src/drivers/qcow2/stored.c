/* SPDX-License-Identifier: Apache-2.0 */
/* Writing what the image keeps of its bitmaps: data, tables, directory. See stored.h for the order. */
#include "drivers/qcow2/stored.h"

#include "base/log.h"
#include "base/mem.h"

/* ---- Data ---- */

typedef struct Pass {
    uint8_t *buffer; /* a cluster */
    FreeList unused; /* data clusters that no table will name any more */
    bool tables;     /* some table has changed */
} Pass;

static void set_entry(StoredBitmap *item, uint32_t index, uint64_t entry, Pass *pass, uint64_t cluster_size)
{
    uint64_t old = item->table[index];

    if (old == entry)
        return;
    if (old & QCOW2_BITMAP_OFFSET_MASK) {
        VEC_GROW(pass->unused.items, pass->unused.count, pass->unused.capacity);
        pass->unused.items[pass->unused.count++] =
            (FreeRange){.offset = old & QCOW2_BITMAP_OFFSET_MASK, .bytes = cluster_size};
    }
    item->table[index] = entry;
    item->table_dirty = true;
}

/* The place of a data cluster: where it is, or a new one. */
static int place_cluster(Qcow2 *q, StoredBitmap *item, uint32_t index, Pass *pass, uint64_t *ret_offset)
{
    uint64_t offset = item->table[index] & QCOW2_BITMAP_OFFSET_MASK;
    ClusterRun run;
    int r;

    if (offset) {
        *ret_offset = offset;
        return write_overlap_check(q, offset, q->cluster_size, META_BITMAPS);
    }
    r = refcount_alloc(q, 1, &run);
    if (r == 0)
        r = image_protect(q, run.offset, q->cluster_size, META_BITMAPS);
    if (r < 0)
        return r;
    set_entry(item, index, run.offset, pass, q->cluster_size);
    *ret_offset = run.offset;
    return 0;
}

static int write_cluster(Qcow2 *q, StoredBitmap *item, uint32_t index, Pass *pass)
{
    const DirtyBitmap *bitmap = item->bitmap;
    uint64_t covered = q->cluster_size * 8 << item->granularity_bits, start = index * covered;
    uint64_t end = MIN(start + covered, dirty_bitmap_size(bitmap)), offset,
             at = (uint64_t)index << q->cluster_bits;
    uint64_t length = MIN(q->cluster_size, dirty_bitmap_stored_bytes(bitmap) - at), any;
    int r;

    if (!dirty_bitmap_next_dirty(bitmap, start, end, &any, &any)) {
        set_entry(item, index, 0, pass, q->cluster_size);
        return 0;
    }
    if (dirty_bitmap_next_clean(bitmap, start, end) == end) {
        set_entry(item, index, QCOW2_BITMAP_ENTRY_ONES, pass, q->cluster_size);
        return 0;
    }
    r = place_cluster(q, item, index, pass, &offset);
    if (r < 0)
        return r;
    /* The bits as they are after the last wait. */
    dirty_bitmap_to_bytes(bitmap, at, pass->buffer, length);
    memset(pass->buffer + length, 0, q->cluster_size - length);
    return edge_pwrite(q->file, offset, pass->buffer, q->cluster_size, 0);
}

static bool wants_cluster(const Qcow2 *q, const StoredBitmap *item, uint32_t index, const RegionSet *set)
{
    uint64_t covered = q->cluster_size * 8 << item->granularity_bits, start = index * covered;
    uint64_t end = MIN(start + covered, dirty_bitmap_size(item->bitmap));
    unsigned bits;

    if (!set || item->stale)
        return true;
    bits = q->stored->journal->head.region_bits;
    return region_set_any(set, start >> bits, (end - 1) >> bits);
}

static int write_data(Qcow2 *q, StoredBitmap *item, const RegionSet *set, Pass *pass)
{
    int r = 0;

    for (uint32_t i = 0; r == 0 && i < item->table_entries; i++)
        if (wants_cluster(q, item, i, set))
            r = write_cluster(q, item, i, pass);
    pass->tables |= item->table_dirty;
    return r;
}

/* ---- Tables ---- */

static int write_table(Qcow2 *q, StoredBitmap *item)
{
    AUTO_FREE uint64_t *raw = mem_try_zalloc(item->table_entries, sizeof(*raw));
    int r;

    if (!raw)
        return -ENOMEM;
    for (uint32_t i = 0; i < item->table_entries; i++)
        raw[i] = htobe64(item->table[i]);
    r = write_overlap_check(q, item->table_offset, item->table_entries * sizeof(*raw), META_BITMAPS);
    return r < 0 ? r : edge_pwrite(q->file, item->table_offset, raw, item->table_entries * sizeof(*raw), 0);
}

static int write_tables(Qcow2 *q)
{
    const StoredBitmaps *s = q->stored;
    int r = 0;

    for (size_t i = 0; r == 0 && i < s->count; i++)
        if (stored_is_usable(s->items[i]) && s->items[i]->table_dirty)
            r = write_table(q, s->items[i]);
    if (r == 0)
        r = edge_flush(q->file);
    for (size_t i = 0; r == 0 && i < s->count; i++)
        s->items[i]->table_dirty = false;
    return r;
}

static int run_pass(Qcow2 *q, const RegionSet *set, Pass *pass)
{
    const StoredBitmaps *s = q->stored;
    int r = pass->buffer ? 0 : -ENOMEM;

    for (size_t i = 0; r == 0 && i < s->count; i++)
        if (stored_is_usable(s->items[i]))
            r = write_data(q, s->items[i], set, pass);
    if (r == 0)
        r = sync_refcounts(q);
    if (r == 0)
        r = edge_flush(q->file);
    if (r == 0 && pass->tables)
        r = write_tables(q);
    for (size_t i = 0; r == 0 && i < s->count; i++)
        s->items[i]->stale = false;
    return r;
}

int stored_write_back(Qcow2 *q, const RegionSet *set)
{
    Pass pass = {.buffer = mem_try_aligned(4096, MAX(q->cluster_size, UINT64_C(4096)))};
    int r = run_pass(q, set, &pass);

    /* After a failure a table on disk may still name them: leaked. */
    for (size_t i = 0; r == 0 && i < pass.unused.count; i++)
        free_range(q, FREE_READY, pass.unused.items[i].offset, q->cluster_size, false);
    free(pass.unused.items);
    free(pass.buffer);
    return r;
}

int stored_new_table(Qcow2 *q, uint32_t entries, uint64_t *ret_offset)
{
    uint64_t clusters = div_round_up(entries * UINT64_C(8), q->cluster_size), offset;
    int r = refcount_alloc_exact(q, clusters, &offset);

    if (r < 0)
        return r;
    r = image_protect(q, offset, clusters << q->cluster_bits, META_BITMAPS);
    if (r == 0)
        r = child_write_zeroes(q->file, offset, clusters << q->cluster_bits);
    if (r == 0)
        *ret_offset = offset;
    else
        stored_free_table(q, offset, entries);
    return r;
}

void stored_free_table(Qcow2 *q, uint64_t offset, uint32_t entries)
{
    free_range(q, FREE_READY, offset, align_up(entries * UINT64_C(8), q->cluster_size), false);
}

/* ---- Directory ---- */

static uint64_t directory_bytes(const StoredBitmaps *s)
{
    uint64_t bytes = 0;

    for (size_t i = 0; i < s->count; i++)
        bytes += qcow2_bitmap_entry_bytes((uint32_t)strlen(s->items[i]->name), 0);
    return bytes;
}

/* In memory, padded to clusters. */
static uint8_t *directory_encode(const Qcow2 *q, uint64_t bytes)
{
    const StoredBitmaps *s = q->stored;
    uint8_t *data = mem_try_zalloc(1, align_up(bytes, q->cluster_size));
    size_t at = 0;

    for (size_t i = 0; data && i < s->count; i++) {
        const StoredBitmap *item = s->items[i];
        Qcow2BitmapEntry entry = {.table_offset = item->table_offset,
            .table_entries = item->table_entries,
            .flags = item->flags,
            .type = QCOW2_BITMAP_TYPE_DIRTY,
            .granularity_bits = (uint8_t)item->granularity_bits,
            .name_bytes = (uint16_t)strlen(item->name),
            .name = item->name};

        at += qcow2_bitmap_entry_encode(&entry, data + at);
    }
    return data;
}

int stored_update_directory(Qcow2 *q)
{
    const Qcow2BitmapsExt *ext = &q->stored->directory;
    AUTO_FREE uint8_t *data = directory_encode(q, ext->directory_bytes);
    int r =
        data ? write_overlap_check(q, ext->directory_offset, ext->directory_bytes, META_BITMAPS) : -ENOMEM;

    if (r == 0)
        r = child_write_durably(q->file, ext->directory_offset, data, ext->directory_bytes);
    q->stored->unsure |= r < 0;
    return r;
}

static int write_directory(Qcow2 *q, Qcow2BitmapsExt *ext)
{
    AUTO_FREE uint8_t *data = directory_encode(q, ext->directory_bytes);
    uint64_t bytes = align_up(ext->directory_bytes, q->cluster_size);
    int r = data ? refcount_alloc_exact(q, bytes >> q->cluster_bits, &ext->directory_offset) : -ENOMEM;

    if (r < 0)
        return r;
    r = image_protect(q, ext->directory_offset, bytes, META_BITMAPS);
    if (r == 0)
        r = edge_pwrite(q->file, ext->directory_offset, data, bytes, 0);
    if (r == 0)
        r = sync_refcounts(q);
    if (r == 0)
        r = edge_flush(q->file);
    if (r < 0)
        free_range(q, FREE_READY, ext->directory_offset, bytes, false);
    return r;
}

static int announce(Qcow2 *q, const Qcow2BitmapsExt *ext)
{
    uint8_t data[QCOW2_BITMAPS_EXT_BYTES];
    int r;

    qcow2_bitmaps_ext_encode(ext, data);
    r = header_put_extension(q, QCOW2_EXT_BITMAPS, data);
    return r < 0 ? r : header_write_autoclear(q, q->header.autoclear | QCOW2_AUTOCLEAR_BITMAPS);
}

static int withdraw(Qcow2 *q)
{
    int r = header_write_autoclear(q, q->header.autoclear & ~(uint64_t)QCOW2_AUTOCLEAR_BITMAPS);

    return r < 0 ? r : header_remove_extension(q, QCOW2_EXT_BITMAPS);
}

int stored_replace_directory(Qcow2 *q)
{
    StoredBitmaps *s = q->stored;
    Qcow2BitmapsExt old = s->directory,
                    ext = {.count = (uint32_t)s->count, .directory_bytes = directory_bytes(s)};
    int r = s->count ? write_directory(q, &ext) : 0;

    if (r == 0)
        r = s->count ? announce(q, &ext) : withdraw(q);
    if (r < 0) { /* what the header may name stays in use */
        s->unsure = true;
        return r;
    }
    s->directory = ext;
    q->has_bitmaps = s->count;
    if (old.count)
        free_range(
            q, FREE_READY, old.directory_offset, align_up(old.directory_bytes, q->cluster_size), false);
    return 0;
}

int stored_settle(Qcow2 *q)
{
    StoredBitmaps *s = q->stored;
    int r;

    if (LIKELY(!s->unsure))
        return 0;
    r = s->count ? announce(q, &s->directory) : withdraw(q);
    if (r < 0)
        return r;
    s->unsure = false;
    return s->count ? stored_update_directory(q) : 0;
}

/* ---- The first change ---- */

/* Makes tables fit that do not any more, since the disk has another size. */
static int fit_table(Qcow2 *q, StoredBitmap *item)
{
    uint64_t needed =
        qcow2_bitmap_entries_for(dirty_bitmap_size(item->bitmap), item->granularity_bits, q->cluster_bits);
    uint64_t offset, *table;
    int r;

    if (needed == item->table_entries)
        return 0;
    if (!needed || needed << q->cluster_bits > QCOW2_MAX_BITMAP_BYTES)
        return -EFBIG;
    table = mem_try_zalloc(needed, sizeof(*table));
    r = table ? stored_new_table(q, (uint32_t)needed, &offset) : -ENOMEM;
    if (r < 0) {
        free(table);
        return r;
    }
    /* The old structures stay as they are until the directory names the new ones. */
    if (!item->replaced) {
        item->replaced = item->table;
        item->replaced_offset = item->table_offset;
        item->replaced_entries = item->table_entries;
    } else { /* never named by a directory */
        free(item->table);
    }
    item->table = table;
    item->table_offset = offset;
    item->table_entries = (uint32_t)needed;
    item->stale = q->stored->moved = true;
    return 0;
}

static void free_replaced(Qcow2 *q, StoredBitmap *item)
{
    for (uint32_t i = 0; item->replaced && i < item->replaced_entries; i++)
        if (item->replaced[i] & QCOW2_BITMAP_OFFSET_MASK)
            free_range(q, FREE_READY, item->replaced[i] & QCOW2_BITMAP_OFFSET_MASK, q->cluster_size, false);
    if (item->replaced)
        stored_free_table(q, item->replaced_offset, item->replaced_entries);
    free(TAKE(item->replaced));
}

static int fit_tables(Qcow2 *q)
{
    StoredBitmaps *s = q->stored;
    int r = 0;

    for (size_t i = 0; r == 0 && i < s->count; i++)
        if (stored_is_usable(s->items[i]))
            r = fit_table(q, s->items[i]);
    if (r < 0 || !s->moved)
        return r;
    r = stored_replace_directory(q);
    for (size_t i = 0; r == 0 && i < s->count; i++)
        free_replaced(q, s->items[i]);
    s->moved = r < 0;
    return r;
}

static bool are_stale(const StoredBitmaps *s)
{
    for (size_t i = 0; i < s->count; i++)
        if (s->items[i]->stale)
            return true;
    return false;
}

int stored_write_all(Qcow2 *q)
{
    int r = fit_tables(q);

    return r < 0 ? r : stored_write_back(q, NULL);
}

static int protect(Qcow2 *q)
{
    int r = are_stale(q->stored) ? stored_write_all(q) : 0;

    return r < 0 ? r : journal_start(q);
}

/* Without a journal writing goes on, but the header must not name one that nobody keeps. */
static int try_to_protect(Qcow2 *q)
{
    int r = protect(q), settled = r < 0 ? header_write_autoclear(q, q->header.autoclear) : 0;

    if (settled < 0)
        return settled;
    q->stored->unprotected = r < 0;
    if (r < 0)
        log_warn("qcow2: the bitmaps of node '%s' are not journalled (%s): after a crash they would be "
                 "inconsistent",
            q->node->name, strerror(-r));
    return 0;
}

int stored_mark_in_use(Qcow2 *q)
{
    StoredBitmaps *s = q->stored;
    int r;

    for (size_t i = 0; i < s->count; i++)
        s->items[i]->flags |= QCOW2_BITMAP_IN_USE;
    r = stored_update_directory(q);
    if (r == 0)
        s->in_use = true;
    return r;
}

/* The journal comes first: a crash between the two finds bitmaps that are complete. */
int stored_activate_locked(Qcow2 *q)
{
    StoredBitmaps *s = q->stored;
    int r = stored_settle(q);

    if (r < 0)
        return r;
    if (!s->journal && !s->unprotected) {
        r = try_to_protect(q);
        if (r < 0)
            return r;
    }
    return s->in_use ? 0 : stored_mark_in_use(q);
}

int stored_activate(Qcow2 *q)
{
    int r;

    co_mutex_lock_shielded(&q->stored->lock);
    r = stored_activate_locked(q);
    co_mutex_unlock(&q->stored->lock);
    return r;
}
