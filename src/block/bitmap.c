/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Dirty bitmaps (bitmap.h).
 *
 * A node's bitmaps share a lock. Requests, which may run on several loops, mark with it held for reading:
 * marking is atomic (bits.h), so they do not wait for each other. Looking takes it for reading, too; the
 * list, a bitmap's state and everything that takes bits away is changed with it held for writing, on the main
 * loop, which may therefore read list and state without it. The lock is held for copying memory at most,
 * never while waiting.
 *
 * A node without enabled bitmaps has no flag set in `tracking`, and its requests see nothing of all this.
 */
#include "block/bitmap.h"

#include "base/endian.h"
#include "base/mem.h"
#include "block/bits.h"
#include "block/block-priv.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

struct DirtyBitmap {
    Node *node;
    List link; /* in NodePrivate.bitmaps */
    char *name;
    unsigned shift; /* log2 of the granularity */
    Bits bits;
    unsigned holders;
    bool persistent, read_only;
    /* These may also change when a write makes the node larger, on any loop. */
    _Atomic uint64_t size; /* bytes of the node */
    _Atomic bool enabled, inconsistent;
};

struct DirtyBitmapSaved {
    Bits bits;
};

static void lock_for_reading(const Node *node)
{
    pthread_rwlock_rdlock(&node->private->bitmaps_lock);
}

static void lock_for_writing(const Node *node)
{
    pthread_rwlock_wrlock(&node->private->bitmaps_lock);
}

static void unlock(const Node *node)
{
    pthread_rwlock_unlock(&node->private->bitmaps_lock);
}

/* ---- Making and finding ---- */

void bitmaps_init(NodePrivate *p)
{
    pthread_rwlockattr_t attributes;

    /* Else requests that follow each other closely would keep a change out for ever. */
    pthread_rwlockattr_init(&attributes);
    pthread_rwlockattr_setkind_np(&attributes, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(&p->bitmaps_lock, &attributes);
    pthread_rwlockattr_destroy(&attributes);
    list_init(&p->bitmaps);
}

void bitmaps_done(NodePrivate *p)
{
    while (!list_empty(&p->bitmaps))
        dirty_bitmap_free(LIST_ENTRY(p->bitmaps.next, DirtyBitmap, link));
    pthread_rwlock_destroy(&p->bitmaps_lock);
}

uint32_t dirty_bitmap_default_granularity(Node *node)
{
    uint64_t cluster_size = node_cluster_size(node);

    return cluster_size ? (uint32_t)MIN(MAX(cluster_size, 4 * KIB), 64 * KIB) : 64 * KIB;
}

/* With the lock. */
static void refresh_tracking(Node *node)
{
    NodePrivate *p = node->private;
    bool enabled = false;

    LIST_FOREACH (link, &p->bitmaps) {
        const DirtyBitmap *bitmap = LIST_ENTRY(link, DirtyBitmap, link);

        enabled |= bitmap->enabled && !bitmap->inconsistent;
    }
    if (enabled)
        atomic_fetch_or(&p->tracking, TRACK_BITMAPS);
    else
        atomic_fetch_and(&p->tracking, ~(unsigned)TRACK_BITMAPS);
}

static int check_new(const Node *node, const char *name, Error *err)
{
    if (name && dirty_bitmap_find(node, name))
        return err_set(err, -EEXIST, "Bitmap already exists: %s", name);
    if (name && strlen(name) > LIMIT_DIRTY_BITMAP_NAME)
        return err_set(err, -EINVAL, "Bitmap name too long: %s", name);
    return 0;
}

static uint64_t bits_for(uint64_t size, unsigned shift)
{
    return div_round_up(size, UINT64_C(1) << shift);
}

static int allocate(DirtyBitmap *bitmap, Error *err)
{
    uint64_t count = bits_for(bitmap->size, bitmap->shift);

    if (count / 8 > LIMIT_DIRTY_BITMAP_BYTES)
        return err_set(err, -EFBIG,
            "A bitmap of node '%s' with a granularity of %" PRIu64 " bytes would take %" PRIu64
            " bytes of memory, more than %" PRIu64 ": choose a larger granularity",
            bitmap->node->name, UINT64_C(1) << bitmap->shift, count / 8, LIMIT_DIRTY_BITMAP_BYTES);
    if (bits_init(&bitmap->bits, count) < 0)
        return err_set(err, -ENOMEM, "Not enough memory for a bitmap of %" PRIu64 " bytes of node '%s'",
            count / 8, bitmap->node->name);
    return 0;
}

int dirty_bitmap_new(Node *node, const char *name, uint32_t granularity, DirtyBitmap **ret_bitmap, Error *err)
{
    DirtyBitmap *bitmap;
    int r = check_new(node, name, err);

    if (r < 0)
        return r;
    assert(is_power_of_2(granularity) && granularity >= DIRTY_BITMAP_GRANULARITY_MIN);
    bitmap = mem_new(DirtyBitmap);
    *bitmap = (DirtyBitmap){
        .node = node, .shift = (unsigned)__builtin_ctz(granularity), .size = node->size, .enabled = true};
    r = allocate(bitmap, err);
    if (r < 0) {
        free(bitmap);
        return r;
    }
    bitmap->name = str_dup(name);
    lock_for_writing(node);
    list_prepend(&node->private->bitmaps, &bitmap->link);
    refresh_tracking(node);
    unlock(node);
    *ret_bitmap = bitmap;
    return 0;
}

void dirty_bitmap_free(DirtyBitmap *bitmap)
{
    if (!bitmap)
        return;
    assert(!bitmap->holders);
    lock_for_writing(bitmap->node);
    list_remove(&bitmap->link);
    refresh_tracking(bitmap->node);
    unlock(bitmap->node);
    bits_done(&bitmap->bits);
    free(bitmap->name);
    free(bitmap);
}

DirtyBitmap *dirty_bitmap_find(const Node *node, const char *name)
{
    LIST_FOREACH (link, &node->private->bitmaps) {
        DirtyBitmap *bitmap = LIST_ENTRY(link, DirtyBitmap, link);

        if (bitmap->name && str_eq(bitmap->name, name))
            return bitmap;
    }
    return NULL;
}

int dirty_bitmap_lookup(const char *node_name, const char *name, DirtyBitmap **ret_bitmap, Error *err)
{
    Node *node = node_find(node_name);
    DirtyBitmap *bitmap;

    if (!node)
        return err_set(err, -ENOENT, "Node '%s' not found", node_name);
    bitmap = dirty_bitmap_find(node, name);
    if (!bitmap)
        return err_set(err, -ENOENT, "Dirty bitmap '%s' not found", name);
    *ret_bitmap = bitmap;
    return 0;
}

DirtyBitmap *dirty_bitmap_find_in_chain(const Node *node, const char *name)
{
    DirtyBitmap *found = NULL;

    while (node && !(found = dirty_bitmap_find(node, name))) {
        const Edge *below = node->driver->flags & DRIVER_FILTER ? node->file : node->backing;

        node = below ? below->node : NULL;
    }
    return found;
}

DirtyBitmap *dirty_bitmap_next(const Node *node, const DirtyBitmap *after)
{
    const List *link = after ? after->link.next : node->private->bitmaps.next;

    return link == &node->private->bitmaps ? NULL : LIST_ENTRY(link, DirtyBitmap, link);
}

/* ---- What it is ---- */

const char *dirty_bitmap_name(const DirtyBitmap *bitmap)
{
    return bitmap->name;
}

Node *dirty_bitmap_node(const DirtyBitmap *bitmap)
{
    return bitmap->node;
}

uint32_t dirty_bitmap_granularity(const DirtyBitmap *bitmap)
{
    return UINT32_C(1) << bitmap->shift;
}

uint64_t dirty_bitmap_size(const DirtyBitmap *bitmap)
{
    return bitmap->size;
}

bool dirty_bitmap_is_enabled(const DirtyBitmap *bitmap)
{
    return bitmap->enabled;
}

void dirty_bitmap_set_enabled(DirtyBitmap *bitmap, bool enabled)
{
    lock_for_writing(bitmap->node);
    bitmap->enabled = enabled;
    refresh_tracking(bitmap->node);
    unlock(bitmap->node);
}

bool dirty_bitmap_is_busy(const DirtyBitmap *bitmap)
{
    return bitmap->holders;
}

void dirty_bitmap_hold(DirtyBitmap *bitmap)
{
    bitmap->holders++;
}

void dirty_bitmap_release(DirtyBitmap *bitmap)
{
    assert(bitmap->holders);
    bitmap->holders--;
}

bool dirty_bitmap_is_persistent(const DirtyBitmap *bitmap)
{
    return bitmap->persistent;
}

void dirty_bitmap_set_persistent(DirtyBitmap *bitmap, bool persistent)
{
    bitmap->persistent = persistent;
}

bool dirty_bitmap_is_inconsistent(const DirtyBitmap *bitmap)
{
    return bitmap->inconsistent;
}

/* With the lock for writing. */
static void give_up(DirtyBitmap *bitmap)
{
    bitmap->inconsistent = true;
    bitmap->enabled = false;
    bits_done(&bitmap->bits);
    refresh_tracking(bitmap->node);
}

void dirty_bitmap_set_inconsistent(DirtyBitmap *bitmap)
{
    lock_for_writing(bitmap->node);
    give_up(bitmap);
    unlock(bitmap->node);
}

bool dirty_bitmap_is_read_only(const DirtyBitmap *bitmap)
{
    return bitmap->read_only;
}

void dirty_bitmap_set_read_only(DirtyBitmap *bitmap, bool read_only)
{
    bitmap->read_only = read_only;
}

int dirty_bitmap_check(const DirtyBitmap *bitmap, unsigned checks, Error *err)
{
    if ((checks & DIRTY_BITMAP_BUSY) && bitmap->holders)
        return err_set(err, -EBUSY, "Bitmap '%s' is currently in use by another operation and cannot be used",
            bitmap->name);
    if ((checks & DIRTY_BITMAP_READ_ONLY) && bitmap->read_only)
        return err_set(err, -EROFS, "Bitmap '%s' is readonly and cannot be modified", bitmap->name);
    if ((checks & DIRTY_BITMAP_INCONSISTENT) && bitmap->inconsistent) {
        err_set(err, -EINVAL, "Bitmap '%s' is inconsistent and cannot be used", bitmap->name);
        err_hint(err, "Try block-dirty-bitmap-remove to delete this bitmap from disk");
        return -EINVAL;
    }
    return 0;
}

/* ---- Bits ---- */

/* The granules that [offset, offset + bytes) touches. */
static void mark(DirtyBitmap *bitmap, uint64_t offset, uint64_t bytes)
{
    assert(!out_of_range(offset, bytes, bitmap->size));
    if (bytes)
        bits_set(&bitmap->bits, offset >> bitmap->shift, bits_for(offset + bytes, bitmap->shift));
}

void dirty_bitmap_set(DirtyBitmap *bitmap, uint64_t offset, uint64_t bytes)
{
    lock_for_reading(bitmap->node);
    if (!bitmap->inconsistent)
        mark(bitmap, offset, bytes);
    unlock(bitmap->node);
}

void dirty_bitmap_reset(DirtyBitmap *bitmap, uint64_t offset, uint64_t bytes)
{
    uint64_t end = offset + bytes;

    lock_for_writing(bitmap->node);
    bits_reset(&bitmap->bits, bits_for(offset, bitmap->shift),
        end >= bitmap->size ? bitmap->bits.size : end >> bitmap->shift);
    unlock(bitmap->node);
}

void dirty_bitmap_clear(DirtyBitmap *bitmap)
{
    dirty_bitmap_reset(bitmap, 0, bitmap->size);
}

uint64_t dirty_bitmap_count(const DirtyBitmap *bitmap)
{
    uint64_t count;

    lock_for_reading(bitmap->node);
    count = atomic_load(&bitmap->bits.count) << bitmap->shift;
    unlock(bitmap->node);
    return count;
}

bool dirty_bitmap_get(const DirtyBitmap *bitmap, uint64_t offset)
{
    return dirty_bitmap_next_clean(bitmap, offset, offset + 1) != offset;
}

/* With the lock: the first set (clear) granule of [offset, end) in bytes, or end. An inconsistent bitmap
 * counts as dirty all over. */
static uint64_t next_set(const DirtyBitmap *bitmap, uint64_t offset, uint64_t end)
{
    uint64_t granule = bitmap->inconsistent ? offset >> bitmap->shift
                                            : bits_next_set(&bitmap->bits, offset >> bitmap->shift,
                                                  bits_for(end, bitmap->shift));

    return MAX(MIN(granule << bitmap->shift, end), offset);
}

static uint64_t next_clear(const DirtyBitmap *bitmap, uint64_t offset, uint64_t end)
{
    uint64_t granule = bitmap->inconsistent ? bits_for(end, bitmap->shift)
                                            : bits_next_clear(&bitmap->bits, offset >> bitmap->shift,
                                                  bits_for(end, bitmap->shift));

    return MAX(MIN(granule << bitmap->shift, end), offset);
}

/* Whoever looks from another loop may not know yet that the node has shrunk. */
bool dirty_bitmap_next_dirty(
    const DirtyBitmap *bitmap, uint64_t offset, uint64_t end, uint64_t *ret_offset, uint64_t *ret_bytes)
{
    uint64_t dirty, clean;

    lock_for_reading(bitmap->node);
    end = MIN(end, bitmap->size);
    dirty = offset < end ? next_set(bitmap, offset, end) : end;
    clean = dirty < end ? next_clear(bitmap, dirty, end) : end;
    unlock(bitmap->node);
    if (dirty >= end)
        return false;
    *ret_offset = dirty;
    *ret_bytes = clean - dirty;
    return true;
}

uint64_t dirty_bitmap_next_clean(const DirtyBitmap *bitmap, uint64_t offset, uint64_t end)
{
    uint64_t covered, clean;

    lock_for_reading(bitmap->node);
    covered = MIN(end, bitmap->size);
    clean = offset < covered ? next_clear(bitmap, offset, covered) : offset;
    unlock(bitmap->node);
    return clean;
}

/* ---- Whole contents ---- */

/* Target and source may belong to different nodes: their locks are taken one after the other. */
int dirty_bitmap_merge(DirtyBitmap *target, const DirtyBitmap *source, Error *err)
{
    uint64_t offset = 0, bytes;

    if (target->size != source->size)
        return err_set(err, -EINVAL,
            "Bitmaps are of different sizes (destination size is %" PRIu64 ", source size is %" PRIu64
            ") and can't be merged",
            target->size, source->size);
    while (dirty_bitmap_next_dirty(source, offset, source->size, &offset, &bytes)) {
        dirty_bitmap_set(target, offset, bytes);
        offset += bytes;
    }
    return 0;
}

int dirty_bitmap_save(const DirtyBitmap *bitmap, DirtyBitmapSaved **ret_saved, Error *err)
{
    DirtyBitmapSaved *saved = mem_new(DirtyBitmapSaved);
    int r;

    lock_for_writing(bitmap->node);
    r = bits_copy(&saved->bits, &bitmap->bits);
    unlock(bitmap->node);
    if (r < 0) {
        free(saved);
        return err_set(err, r, "Not enough memory to keep what bitmap '%s' contains", bitmap->name);
    }
    *ret_saved = saved;
    return 0;
}

void dirty_bitmap_restore(DirtyBitmap *bitmap, DirtyBitmapSaved *take_saved)
{
    lock_for_writing(bitmap->node);
    if (bitmap->bits.size == take_saved->bits.size) { /* else it has become inconsistent */
        Bits now = bitmap->bits;

        bitmap->bits = take_saved->bits;
        take_saved->bits = now;
    }
    unlock(bitmap->node);
    dirty_bitmap_drop(take_saved);
}

void dirty_bitmap_drop(DirtyBitmapSaved *take_saved)
{
    if (!take_saved)
        return;
    bits_done(&take_saved->bits);
    free(take_saved);
}

uint64_t dirty_bitmap_stored_bytes(const DirtyBitmap *bitmap)
{
    return div_round_up(bits_for(bitmap->size, bitmap->shift), 8);
}

void dirty_bitmap_to_bytes(const DirtyBitmap *bitmap, uint64_t at, uint8_t *dst, size_t length)
{
    assert(at % 8 == 0);
    lock_for_reading(bitmap->node);
    for (size_t i = 0; i < length; i += 8) {
        uint64_t index = (at + i) / 8;
        uint8_t word[8];

        put_le64(word, index < bits_words(&bitmap->bits) ? bits_word(&bitmap->bits, index) : 0);
        memcpy(dst + i, word, MIN(length - i, (size_t)8));
    }
    unlock(bitmap->node);
}

void dirty_bitmap_from_bytes(DirtyBitmap *bitmap, uint64_t at, const uint8_t *src, size_t length)
{
    assert(at % 8 == 0);
    lock_for_writing(bitmap->node);
    for (size_t i = 0; i < length && (at + i) / 8 < bits_words(&bitmap->bits); i += 8) {
        uint8_t word[8] = {0};

        memcpy(word, src + i, MIN(length - i, (size_t)8));
        bits_put_word(&bitmap->bits, (at + i) / 8, get_le64(word));
    }
    unlock(bitmap->node);
}

/* ---- Size ---- */

/* With the lock for writing. What cannot be recorded any more makes the bitmap worthless. */
static void resize(DirtyBitmap *bitmap, uint64_t size)
{
    uint64_t count = bits_for(size, bitmap->shift);

    bitmap->size = size;
    if (bitmap->inconsistent || count == bitmap->bits.size)
        return;
    if (count / 8 > LIMIT_DIRTY_BITMAP_BYTES || bits_resize(&bitmap->bits, count) < 0)
        give_up(bitmap);
}

void bitmaps_resize(Node *node, uint64_t size)
{
    lock_for_writing(node);
    LIST_FOREACH (link, &node->private->bitmaps)
        resize(LIST_ENTRY(link, DirtyBitmap, link), size);
    unlock(node);
}

/* ---- The request path ---- */

void node_journal_writes(Node *node, bool on)
{
    if (on)
        atomic_fetch_or(&node->private->tracking, TRACK_JOURNAL);
    else
        atomic_fetch_and(&node->private->tracking, ~(unsigned)TRACK_JOURNAL);
}

/* False: the node has grown by this write, and its bitmaps have not yet. */
static bool try_mark(Node *node, uint64_t offset, uint64_t bytes)
{
    bool fits = true;

    lock_for_reading(node);
    LIST_FOREACH (link, &node->private->bitmaps) {
        DirtyBitmap *bitmap = LIST_ENTRY(link, DirtyBitmap, link);

        if (!bitmap->enabled)
            continue;
        if (UNLIKELY(out_of_range(offset, bytes, bitmap->size)))
            fits = false;
        else
            mark(bitmap, offset, bytes);
    }
    unlock(node);
    return fits;
}

static void mark_in_all(Node *node, uint64_t offset, uint64_t bytes)
{
    if (LIKELY(try_mark(node, offset, bytes)))
        return;
    lock_for_writing(node);
    LIST_FOREACH (link, &node->private->bitmaps) {
        DirtyBitmap *bitmap = LIST_ENTRY(link, DirtyBitmap, link);

        resize(bitmap, MAX(bitmap->size, node->size));
        if (bitmap->enabled && offset < bitmap->size)
            mark(bitmap, offset, MIN(bytes, bitmap->size - offset));
    }
    unlock(node);
}

int tracked_write_begin(Node *node, uint64_t offset, uint64_t bytes)
{
    int r;

    if (!(node->private->tracking & TRACK_JOURNAL))
        return 0;
    r = node->driver->bitmaps->write_begin(node, offset, bytes);
    return r < 0 ? r : 1;
}

void tracked_write_end(Node *node, uint64_t offset, uint64_t bytes, bool journalled)
{
    if (node->private->tracking & TRACK_BITMAPS)
        mark_in_all(node, offset, bytes);
    if (journalled)
        node->driver->bitmaps->write_end(node, offset, bytes);
}
