/* SPDX-License-Identifier: Apache-2.0 */
/* When stored bitmaps are written: around writes, by commands, at flushes, when the node is resized and
 * closed. See stored.h. */
#include "base/log.h"
#include "base/mem.h"
#include "drivers/qcow2/stored.h"

static StoredBitmap *item_of(const StoredBitmaps *s, const DirtyBitmap *bitmap)
{
    for (size_t i = 0; i < s->count; i++)
        if (s->items[i]->bitmap == bitmap)
            return s->items[i];
    return NULL;
}

static bool any_usable(const StoredBitmaps *s)
{
    for (size_t i = 0; i < s->count; i++)
        if (stored_is_usable(s->items[i]))
            return true;
    return false;
}

/* ---- Around writes ---- */

static int write_begin(Node *node, uint64_t offset, uint64_t bytes)
{
    Qcow2 *q = node->state;
    StoredBitmaps *s = q->stored;

    if (UNLIKELY(!s->in_use || s->unsure || (!s->journal && !s->unprotected))) {
        int r = stored_activate(q);

        if (r < 0)
            return r;
    }
    return LIKELY(s->journal && bytes) ? journal_begin(q, offset, bytes) : 0;
}

/* The journal does not begin while a write is in flight that has not noticed it. */
static void write_end(Node *node, uint64_t offset, uint64_t bytes)
{
    Qcow2 *q = node->state;

    if (LIKELY(q->stored->journal && bytes))
        journal_end(q, offset, bytes);
}

static void flush_locked(Qcow2 *q)
{
    Journal *j = q->stored->journal;
    RegionSet set;

    journal_collect(j, &set);
    if (region_set_any(&set, 0, QCOW2_JOURNAL_REGIONS - 1) && stored_write_back(q, &set) == 0)
        journal_clear(q, &set); /* else the intents stay, and nothing is lost */
    j->next_ns = loop_now_ns() + j->interval_ns;
}

void image_flush_bitmaps(Qcow2 *q)
{
    StoredBitmaps *s = q->stored;

    if (LIKELY(!s->journal || loop_now_ns() < s->journal->next_ns))
        return;
    s->journal->next_ns = UINT64_MAX; /* others need not wait for it */
    co_mutex_lock_shielded(&s->lock);
    if (s->journal)
        flush_locked(q);
    co_mutex_unlock(&s->lock);
}

/* ---- Commands ---- */

static int check_room(const Qcow2 *q, const char *name, uint32_t granularity, Error *err)
{
    uint64_t bytes = qcow2_bitmap_bytes_for(q->node->size, (unsigned)__builtin_ctz(granularity));
    uint64_t directory = qcow2_bitmap_entry_bytes((uint32_t)strlen(name), 0);

    if (q->header.version < 3)
        return err_set(err, -ENOTSUP, "Cannot store dirty bitmaps in qcow2 v2 files");
    for (size_t i = 0; i < q->stored->count; i++)
        directory += qcow2_bitmap_entry_bytes((uint32_t)strlen(q->stored->items[i]->name), 0);
    if (q->stored->count >= LIMIT_IMAGE_BITMAPS)
        return err_set(err, -EINVAL, "Maximum number of persistent bitmaps is already reached");
    if (directory > QCOW2_MAX_BITMAP_DIRECTORY_BYTES)
        return err_set(err, -EINVAL, "Not enough space in the bitmap directory");
    if (align_up(bytes, q->cluster_size) > QCOW2_MAX_BITMAP_BYTES)
        return err_set(err, -EINVAL, "Too much space will be occupied by the bitmap. Use larger granularity");
    return 0;
}

static int can_add(Node *node, const char *name, uint32_t granularity, Error *err)
{
    int r = check_room(node->state, name, granularity, err);

    return r < 0 ? err_prefix(err, r, "Can't make bitmap '%s' persistent in '%s'", name, node->name) : 0;
}

/* Around commands, which other sessions' commands may meet although each has the node drained. */
static void change_begin(Qcow2 *q)
{
    co_mutex_lock_shielded(&q->change_lock);
    co_mutex_lock_shielded(&q->stored->lock);
}

static void change_end(Qcow2 *q)
{
    co_mutex_unlock(&q->stored->lock);
    co_mutex_unlock(&q->change_lock);
}

static void push_item(StoredBitmaps *s, StoredBitmap *item)
{
    VEC_GROW(s->items, s->count, s->capacity);
    s->items[s->count++] = item;
}

static void take_item_out(StoredBitmaps *s, const StoredBitmap *item)
{
    size_t at = 0;

    while (s->items[at] != item)
        at++;
    memmove(&s->items[at], &s->items[at + 1], (s->count - at - 1) * sizeof(*s->items));
    s->count--;
}

/* In the directory, in use and clean. */
static int add_item(Qcow2 *q, StoredBitmap *item)
{
    StoredBitmaps *s = q->stored;
    int r = s->count ? stored_activate_locked(q) : 0;

    item->table = r == 0 ? mem_try_zalloc(item->table_entries, sizeof(*item->table)) : NULL;
    if (r == 0)
        r = item->table ? stored_new_table(q, item->table_entries, &item->table_offset) : -ENOMEM;
    if (r < 0)
        return r;
    push_item(s, item);
    r = stored_replace_directory(q);
    if (r < 0) {
        take_item_out(s, item);
        return r;
    }
    item->stale = dirty_bitmap_count(item->bitmap) != 0;
    s->in_use = true;
    /* It is in the image now. Without a place in the journal a crash makes it inconsistent, and that is all.
     */
    (void)!(s->journal ? journal_cover(q, item->table_offset) : stored_activate_locked(q));
    return 0;
}

static int added(Node *node, DirtyBitmap *bitmap, Error *err)
{
    Qcow2 *q = node->state;
    StoredBitmap *item;
    unsigned granularity_bits = (unsigned)__builtin_ctz(dirty_bitmap_granularity(bitmap));
    uint64_t entries = qcow2_bitmap_entries_for(dirty_bitmap_size(bitmap), granularity_bits, q->cluster_bits);
    int r;

    if (!q->writable || !entries) /* cannot be stored, as users know it */
        return 0;
    item = mem_new(StoredBitmap);
    *item = (StoredBitmap){.name = str_dup(dirty_bitmap_name(bitmap)),
        .bitmap = bitmap,
        .flags = QCOW2_BITMAP_IN_USE | (dirty_bitmap_is_enabled(bitmap) ? QCOW2_BITMAP_AUTO : 0),
        .added = true,
        .granularity_bits = granularity_bits,
        .table_entries = (uint32_t)entries};
    change_begin(q);
    r = add_item(q, item);
    change_end(q);
    if (r < 0) {
        stored_item_free(item);
        return err_set_errno(
            err, r, "Could not store bitmap '%s' in node '%s'", dirty_bitmap_name(bitmap), node->name);
    }
    node_journal_writes(node, true);
    return 0;
}

static void free_clusters(Qcow2 *q, const StoredBitmap *item)
{
    AUTO_FREE uint64_t *loaded = NULL;
    const uint64_t *table = item->table;

    if (!table && stored_read_table(q, item, &loaded) == 0)
        table = loaded;
    for (uint32_t i = 0; table && i < item->table_entries; i++)
        if (table[i] & QCOW2_BITMAP_OFFSET_MASK)
            free_range(q, FREE_READY, table[i] & QCOW2_BITMAP_OFFSET_MASK, q->cluster_size, false);
    stored_free_table(q, item->table_offset, item->table_entries);
}

/* With the last one the directory goes, and nothing in the file tells that a killed process was at it: what
 * may come back then must be something that nobody trusts. */
static int distrust_last(Qcow2 *q)
{
    StoredBitmaps *s = q->stored;
    int r = stored_settle(q);

    if (r == 0 && !s->in_use)
        r = stored_mark_in_use(q);
    s->items[0]->stale = true; /* if it stays after all: what the intents have said is not written */
    return r < 0 || !s->journal ? r : journal_stop(q);
}

static int remove_item(Qcow2 *q, StoredBitmap *item)
{
    StoredBitmaps *s = q->stored;
    int r = s->count == 1 ? distrust_last(q) : 0;

    if (r < 0)
        return r;
    take_item_out(s, item);
    r = stored_replace_directory(q);
    if (r < 0) {
        push_item(s, item);
        return r;
    }
    free_clusters(q, item);
    if (s->journal)
        journal_uncover(q, item->table_offset);
    stored_item_free(item);
    return s->journal && !any_usable(s) ? journal_stop(q) : 0;
}

static int removed(Node *node, DirtyBitmap *bitmap, Error *err)
{
    Qcow2 *q = node->state;
    StoredBitmap *item = item_of(q->stored, bitmap);
    int r;

    if (!item)
        return 0;
    change_begin(q);
    r = remove_item(q, item);
    change_end(q);
    node_journal_writes(node, any_usable(q->stored));
    return r < 0 ? err_set_errno(err, r, "Failed to remove bitmap '%s' from node '%s'",
                       dirty_bitmap_name(bitmap), node->name)
                 : 0;
}

static int update_flags(Qcow2 *q, StoredBitmap *item, bool enabled)
{
    uint32_t flags = (item->flags & ~QCOW2_BITMAP_AUTO) | (enabled ? QCOW2_BITMAP_AUTO : 0);
    int r;

    if (item->flags == flags)
        return 0;
    item->flags = flags;
    r = stored_update_directory(q);
    if (r < 0)
        item->flags ^= QCOW2_BITMAP_AUTO; /* as the bitmap will be again */
    return r;
}

/* Writes count from when it is enabled on disk; intents do not any more from when it is not. */
static int store_change(Qcow2 *q, StoredBitmap *item)
{
    bool enabled = dirty_bitmap_is_enabled(item->bitmap);
    int r;

    r = stored_activate_locked(q);
    if (r < 0)
        return r;
    item->stale = true;
    if (enabled)
        r = update_flags(q, item, true);
    if (r == 0 && q->stored->journal)
        r = stored_write_back(q, &(RegionSet){0});
    return r < 0 || enabled ? r : update_flags(q, item, false);
}

static int changed(Node *node, DirtyBitmap *bitmap, Error *err)
{
    Qcow2 *q = node->state;
    StoredBitmap *item = item_of(q->stored, bitmap);
    int r = 0;

    if (!item || !stored_is_usable(item))
        return 0;
    change_begin(q);
    r = store_change(q, item);
    change_end(q);
    return r < 0 ? err_set_errno(err, r, "Could not store bitmap '%s' of node '%s'", item->name, node->name)
                 : 0;
}

const DriverBitmaps qcow2_bitmaps = {
    .can_add = can_add,
    .added = added,
    .remove = removed,
    .changed = changed,
    .write_begin = write_begin,
    .write_end = write_end,
};

/* ---- The life of the node ---- */

StoredBitmaps *image_new_bitmaps(void)
{
    return mem_new(StoredBitmaps);
}

int image_load_bitmaps(Qcow2 *q, Error *err)
{
    return q->stored->directory.count ? stored_load(q, err) : 0;
}

uint64_t image_bitmaps_autoclear(const Qcow2 *q)
{
    return (q->stored->directory.count ? QCOW2_AUTOCLEAR_BITMAPS : 0) |
           (q->stored->journal ? QCOW2_AUTOCLEAR_JOURNAL : 0);
}

int image_protect_bitmaps(Qcow2 *q)
{
    const StoredBitmaps *s = q->stored;
    int r = 0;

    if (s->directory.count)
        r = image_protect(q, s->directory.directory_offset, s->directory.directory_bytes, META_BITMAPS);
    if (r == 0 && s->journal)
        r = image_protect(q, s->journal->offset, QCOW2_JOURNAL_BYTES, META_BITMAPS);
    for (size_t i = 0; r == 0 && i < s->count; i++) {
        const StoredBitmap *item = s->items[i];

        r = image_protect(q, item->table_offset, item->table_entries * UINT64_C(8), META_BITMAPS);
        for (uint32_t k = 0; r == 0 && item->table && k < item->table_entries; k++)
            if (item->table[k] & QCOW2_BITMAP_OFFSET_MASK)
                r = image_protect(q, item->table[k] & QCOW2_BITMAP_OFFSET_MASK, 1, META_BITMAPS);
    }
    return r;
}

/* Who was killed has left to the kernel what the file says: that they are in use, intents, the end of a
 * journal. Writes that count on it, or on bitmaps being lost, must not get to the disk before it. */
int image_settle_found_bitmaps(Qcow2 *q)
{
    return q->stored->count && q->stored->in_use ? edge_flush(q->file) : 0;
}

void image_start_bitmaps(Qcow2 *q)
{
    const StoredBitmaps *s = q->stored;

    for (size_t i = 0; i < s->count; i++)
        dirty_bitmap_set_read_only(s->items[i]->bitmap, false);
    node_journal_writes(q->node, any_usable(s));
}

/* Before the header says another size. Until the next write the bitmaps on disk are in use and nothing more.
 */
int image_prepare_bitmaps_resize(Qcow2 *q, Error *err)
{
    StoredBitmaps *s = q->stored;
    int r = 0;

    for (size_t i = 0; r == 0 && i < s->count; i++)
        r = dirty_bitmap_check(s->items[i]->bitmap, DIRTY_BITMAP_LOOK, err);
    if (r < 0 || !s->count)
        return r;
    co_mutex_lock_shielded(&s->lock);
    r = s->in_use ? 0 : stored_mark_in_use(q);
    if (r == 0 && s->journal)
        r = journal_stop(q);
    for (size_t i = 0; i < s->count; i++)
        s->items[i]->stale = true;
    s->unprotected = false;
    co_mutex_unlock(&s->lock);
    return r < 0 ? err_set_errno(err, r, "Could not mark the bitmaps of node '%s' as in use", q->node->name)
                 : 0;
}

int image_settle_bitmaps(Qcow2 *q)
{
    StoredBitmaps *s = q->stored;
    int r;

    co_mutex_lock_shielded(&s->lock);
    r = stored_settle(q);
    if (r == 0 && s->in_use && any_usable(s))
        r = s->journal ? stored_write_back(q, &(RegionSet){0}) : stored_write_all(q);
    co_mutex_unlock(&s->lock);
    return r;
}

static int store_data(Qcow2 *q)
{
    const Journal *j = q->stored->journal;

    return j ? stored_write_back(q, &j->wanted) : stored_write_all(q);
}

/* The bitmaps are complete: others may trust them. */
static int mark_clean(Qcow2 *q)
{
    StoredBitmaps *s = q->stored;
    int r = stored_settle(q);

    if (r < 0)
        return r;
    for (size_t i = 0; i < s->count; i++)
        if (stored_is_usable(s->items[i]))
            s->items[i]->flags = dirty_bitmap_is_enabled(s->items[i]->bitmap) ? QCOW2_BITMAP_AUTO : 0;
    r = stored_update_directory(q);
    for (size_t i = 0; i < s->count; i++) {
        if (r < 0)
            s->items[i]->flags |= QCOW2_BITMAP_IN_USE;
        s->items[i]->shown_flags = s->items[i]->flags;
        s->items[i]->added = false;
    }
    s->in_use = r < 0;
    return r;
}

static int store(Qcow2 *q)
{
    int r = store_data(q);

    if (r == 0)
        r = mark_clean(q);
    return r < 0 || !q->stored->journal ? r : journal_stop(q);
}

void image_stop_bitmaps(Qcow2 *q)
{
    StoredBitmaps *s = q->stored;
    int r;

    node_journal_writes(q->node, false);
    for (size_t i = 0; i < s->count; i++)
        dirty_bitmap_set_read_only(s->items[i]->bitmap, true);
    co_mutex_lock_shielded(&s->lock);
    if (s->in_use && any_usable(s))
        r = store(q);
    else
        r = s->journal ? journal_stop(q) : 0; /* of a session that ended before it had changed anything */
    co_mutex_unlock(&s->lock);
    if (r < 0)
        log_warn("qcow2: the bitmaps of node '%s' could not be stored (%s): %s", q->node->name, strerror(-r),
            s->journal ? "the journal keeps what is known of them" : "they are inconsistent");
}

void image_free_bitmaps(Qcow2 *q)
{
    StoredBitmaps *s = q->stored;

    if (!s)
        return;
    for (size_t i = 0; i < s->count; i++)
        stored_item_free(s->items[i]);
    journal_free(s->journal);
    free(s->items);
    free(TAKE(q->stored));
}
