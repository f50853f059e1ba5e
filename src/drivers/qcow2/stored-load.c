/* SPDX-License-Identifier: Apache-2.0 */
/* Bitmaps of the image as they are found when it is opened, and what there is to say about them: see
 * stored.h. */
#include "base/log.h"
#include "base/mem.h"
#include "drivers/qcow2/stored.h"
#include "generated/types.h"

#include <stdio.h>

/* ---- Tables and data ---- */

int stored_read_table(Qcow2 *q, const StoredBitmap *item, uint64_t **ret_table)
{
    AUTO_FREE uint64_t *table = mem_try_zalloc(item->table_entries, sizeof(*table));
    int r = table ? child_pread(q->file, item->table_offset, table, item->table_entries * sizeof(*table))
                  : -ENOMEM;

    for (uint32_t i = 0; r == 0 && i < item->table_entries; i++) {
        table[i] = be64toh(table[i]);
        if (qcow2_bitmap_cluster(table[i], q->cluster_bits) == QCOW2_BITMAP_INVALID)
            r = -EINVAL;
    }
    if (r == 0)
        *ret_table = TAKE(table);
    return r;
}

static void set_cluster(const Qcow2 *q, DirtyBitmap *bitmap, uint32_t index)
{
    uint64_t covered = q->cluster_size * 8 * dirty_bitmap_granularity(bitmap), start = index * covered;

    dirty_bitmap_set(bitmap, start, MIN(covered, dirty_bitmap_size(bitmap) - start));
}

static int load_cluster(Qcow2 *q, const StoredBitmap *item, uint32_t index, uint8_t *buffer)
{
    uint64_t at = (uint64_t)index << q->cluster_bits, total = dirty_bitmap_stored_bytes(item->bitmap);
    uint64_t entry = item->table[index];
    int r;

    switch (qcow2_bitmap_cluster(entry, q->cluster_bits)) {
    case QCOW2_BITMAP_ZEROES:
        return 0;
    case QCOW2_BITMAP_ONES:
        set_cluster(q, item->bitmap, index);
        return 0;
    default:
        r = edge_pread(q->file, entry & QCOW2_BITMAP_OFFSET_MASK, buffer, q->cluster_size);
        if (r == 0)
            dirty_bitmap_from_bytes(item->bitmap, at, buffer, MIN(q->cluster_size, total - at));
        return r;
    }
}

static int load_bits(Qcow2 *q, StoredBitmap *item, Error *err)
{
    AUTO_FREE uint8_t *buffer = mem_try_aligned(4096, MAX(q->cluster_size, UINT64_C(4096)));
    uint64_t needed = qcow2_bitmap_entries_for(q->node->size, item->granularity_bits, q->cluster_bits);
    int r = buffer ? 0 : -ENOMEM;

    if (r == 0)
        r = stored_read_table(q, item, &item->table);
    if (r < 0)
        return err_set_errno(
            err, r, "Could not read bitmap_table table from image for bitmap '%s'", item->name);
    if (item->table_entries != needed)
        r = -EINVAL;
    for (uint32_t i = 0; r == 0 && i < item->table_entries; i++)
        r = load_cluster(q, item, i, buffer);
    return r < 0 ? err_set_errno(err, r, "Could not read bitmap '%s' from image", item->name) : 0;
}

/* What was written in the last session, as far as the journal knows: whole regions. */
static void add_intents(Qcow2 *q, const StoredBitmap *item)
{
    const Journal *j = q->stored->journal;

    for (uint32_t region = 0; region < j->regions; region++) {
        uint64_t start = (uint64_t)region << j->head.region_bits;

        if (region_set_has(&j->wanted, region) && start < q->node->size)
            dirty_bitmap_set(
                item->bitmap, start, MIN(UINT64_C(1) << j->head.region_bits, q->node->size - start));
    }
}

/* ---- Directory ---- */

bool stored_is_usable(const StoredBitmap *item)
{
    return item->table && !dirty_bitmap_is_inconsistent(item->bitmap);
}

void stored_item_free(StoredBitmap *item)
{
    free(item->name);
    free(item->table);
    free(item->replaced);
    free(item);
}

static int make_bitmap(Qcow2 *q, StoredBitmap *item, Error *err)
{
    bool in_use = item->flags & QCOW2_BITMAP_IN_USE, is_auto = item->flags & QCOW2_BITMAP_AUTO;
    int r = dirty_bitmap_new(q->node, item->name, UINT32_C(1) << item->granularity_bits, &item->bitmap, err);

    if (r < 0)
        return r;
    dirty_bitmap_set_persistent(item->bitmap, true);
    dirty_bitmap_set_read_only(item->bitmap, q->node->read_only);
    if (in_use && !journal_covers(q->stored->journal, item->table_offset)) {
        dirty_bitmap_set_inconsistent(item->bitmap);
        return 0;
    }
    dirty_bitmap_set_enabled(item->bitmap, is_auto);
    r = load_bits(q, item, err);
    if (r == 0 && in_use && is_auto)
        add_intents(q, item);
    return r;
}

static int load_entry(Qcow2 *q, const Qcow2BitmapEntry *entry, uint64_t *bytes, Error *err)
{
    StoredBitmaps *s = q->stored;
    StoredBitmap *item;
    int r = qcow2_bitmap_entry_check(entry, q->cluster_bits, q->node->size, err);

    if (r < 0)
        return r;
    *bytes += qcow2_bitmap_bytes_for(q->node->size, entry->granularity_bits);
    if (s->count == LIMIT_IMAGE_BITMAPS || *bytes > LIMIT_IMAGE_BITMAP_BYTES)
        return err_set(err, -EFBIG,
            "The bitmaps of the image would take too much memory (%zu so far, %" PRIu64 " bytes)", s->count,
            *bytes);
    item = mem_new(StoredBitmap);
    *item = (StoredBitmap){.name = str_ndup(entry->name, entry->name_bytes),
        .flags = entry->flags,
        .shown_flags = entry->flags,
        .granularity_bits = entry->granularity_bits,
        .table_offset = entry->table_offset,
        .table_entries = entry->table_entries};
    VEC_GROW(s->items, s->count, s->capacity);
    s->items[s->count++] = item;
    return make_bitmap(q, item, err);
}

static int load_entries(Qcow2 *q, const uint8_t *directory, Error *err)
{
    const Qcow2BitmapsExt *ext = &q->stored->directory;
    uint64_t bytes = 0;
    uint32_t count = 0;
    size_t at = 0;
    Qcow2BitmapEntry entry;
    int r;

    while ((r = qcow2_bitmap_entry_next(directory, ext->directory_bytes, &at, &entry, err)) == 1) {
        if (count++ == ext->count)
            return err_set(err, -EINVAL, "More bitmaps found than specified in header extension");
        r = load_entry(q, &entry, &bytes, err);
        if (r < 0)
            return r;
    }
    if (r == 0 && count < ext->count)
        return err_set(err, -EINVAL, "Less bitmaps found than specified in header extension");
    return r;
}

static bool are_in_use(const StoredBitmaps *s)
{
    for (size_t i = 0; i < s->count; i++)
        if (stored_is_usable(s->items[i]) && !(s->items[i]->flags & QCOW2_BITMAP_IN_USE))
            return false;
    return true;
}

int stored_load(Qcow2 *q, Error *err)
{
    StoredBitmaps *s = q->stored;
    AUTO_FREE uint8_t *directory = mem_try_zalloc(1, s->directory.directory_bytes);
    int r = directory
                ? child_pread(q->file, s->directory.directory_offset, directory, s->directory.directory_bytes)
                : -ENOMEM;

    if (r < 0)
        return err_set_errno(err, r, "Failed to read bitmap directory");
    if (s->log_offset) {
        r = journal_load(q);
        if (r < 0)
            return err_set_errno(err, r, "Could not read the journal of the bitmaps");
    }
    r = load_entries(q, directory, err);
    s->in_use = are_in_use(s);
    return r;
}

/* ---- What the header says ---- */

/* Decodes an extension of the header into what stored_load() needs. */
int image_take_bitmaps_extension(Qcow2 *q, const uint8_t *data, uint32_t bytes, Error *err)
{
    StoredBitmaps *s = q->stored;

    if (q->header.autoclear & QCOW2_AUTOCLEAR_BITMAPS) {
        q->has_bitmaps = true;
        return qcow2_bitmaps_ext_decode(data, bytes, q->header.cluster_bits, &s->directory, err);
    }
    log_warn(
        "%s", q->header.version < 3
                  ? "This qcow2 v2 image contains bitmaps, but they may have been modified by software "
                    "without persistent bitmap support; so now these bitmaps are all considered inconsistent"
                  : "a program lacking bitmap support modified this file, so all bitmaps are now "
                    "considered inconsistent");
    fprintf(stderr, "Some clusters may be leaked, run 'qemu-img check -r' on the image file to fix.\n");
    return 0;
}

void image_take_journal_extension(Qcow2 *q, const uint8_t *data, uint32_t bytes)
{
    const uint64_t needed = QCOW2_AUTOCLEAR_BITMAPS | QCOW2_AUTOCLEAR_JOURNAL;

    /* One that is not sound is as none: the bitmaps are in use, and nobody trusts them. */
    if ((q->header.autoclear & needed) == needed &&
        qcow2_journal_ext_decode(data, bytes, q->header.cluster_bits, &q->stored->log_offset) < 0)
        q->stored->log_offset = 0;
}

/* ---- Other parts of the engine ask ---- */

static int walk_entry(Qcow2 *q, const Qcow2BitmapEntry *entry, BitmapWalkFn *fn, void *arg)
{
    StoredBitmap item = {.table_offset = entry->table_offset, .table_entries = entry->table_entries};
    AUTO_FREE uint64_t *table = NULL;
    int r = stored_read_table(q, &item, &table);

    if (r == 0)
        r = fn(arg, entry->table_offset, entry->table_entries * UINT64_C(8));
    for (uint32_t i = 0; r == 0 && i < entry->table_entries; i++)
        if (table[i] & QCOW2_BITMAP_OFFSET_MASK)
            r = fn(arg, table[i] & QCOW2_BITMAP_OFFSET_MASK, q->cluster_size);
    return r;
}

/* Those that are in use may be of another size: nobody looks at their bits. */
static bool fits_disk(const Qcow2 *q, const Qcow2BitmapEntry *entry)
{
    return (entry->flags & QCOW2_BITMAP_IN_USE) ||
           entry->table_entries ==
               qcow2_bitmap_entries_for(q->node->size, entry->granularity_bits, q->cluster_bits);
}

static int walk_entries(Qcow2 *q, const uint8_t *directory, BitmapWalkFn *fn, void *arg)
{
    AUTO_ERROR Error ignored = ERROR_INIT;
    const Qcow2BitmapsExt *ext = &q->stored->directory;
    Qcow2BitmapEntry entry;
    uint32_t count = 0;
    size_t at = 0;
    int r;

    while ((r = qcow2_bitmap_entry_next(directory, ext->directory_bytes, &at, &entry, &ignored)) == 1) {
        r = qcow2_bitmap_entry_check(&entry, q->cluster_bits, q->node->size, &ignored);
        if (r == 0 && !fits_disk(q, &entry))
            r = -EINVAL;
        if (r == 0)
            r = walk_entry(q, &entry, fn, arg);
        if (r < 0)
            return r;
        count++;
    }
    return r < 0 ? r : count == ext->count ? 0 : -EINVAL;
}

int image_walk_bitmaps(Qcow2 *q, BitmapWalkFn *fn, void *arg)
{
    const StoredBitmaps *s = q->stored;
    AUTO_FREE uint8_t *directory = NULL;
    int r;

    if (!s->directory.count)
        return 0;
    directory = mem_try_zalloc(1, s->directory.directory_bytes);
    if (!directory)
        return -ENOMEM;
    r = child_pread(q->file, s->directory.directory_offset, directory, s->directory.directory_bytes);
    if (r == 0)
        r = fn(arg, s->directory.directory_offset, s->directory.directory_bytes);
    if (r == 0 && s->log_offset)
        r = fn(arg, s->log_offset, QCOW2_JOURNAL_BYTES);
    return r < 0 ? r : walk_entries(q, directory, fn, arg);
}

static Qcow2BitmapInfo *item_info(const Qcow2 *q, const StoredBitmap *item)
{
    Qcow2BitmapInfo *info = mem_new(Qcow2BitmapInfo);

    info->name = str_dup(item->name);
    info->granularity = UINT32_C(1) << item->granularity_bits;
    if (q->writable || (item->shown_flags & QCOW2_BITMAP_IN_USE))
        qcow2_bitmap_info_flags_list_append(&info->flags, QCOW2_BITMAP_INFO_FLAGS_IN_USE);
    if (item->shown_flags & QCOW2_BITMAP_AUTO)
        qcow2_bitmap_info_flags_list_append(&info->flags, QCOW2_BITMAP_INFO_FLAGS_AUTO);
    return info;
}

void image_bitmaps_info(const Qcow2 *q, ImageInfoSpecificQCow2 *info)
{
    const StoredBitmaps *s = q->stored;

    for (size_t i = 0; i < s->count; i++) {
        if (s->items[i]->added) /* is not told before it has been stored, as users know it */
            continue;
        info->has_bitmaps = true;
        qcow2_bitmap_info_list_append(&info->bitmaps, item_info(q, s->items[i]));
    }
}
