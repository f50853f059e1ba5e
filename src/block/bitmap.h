/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Dirty bitmaps: which parts of a node have been written to since some moment. A bitmap belongs to a node and
 * goes with it; it has a name, or none if it is a job's own.
 *
 * The request path marks every write, zeroing and discard when it has ended, before it is answered; failed
 * ones, too, as they may have changed something. Each node has bitmaps of its own: what a driver passes on to
 * a child is marked there if the child has bitmaps.
 *
 * Bitmaps are made, removed and changed on the main loop, but for what a driver does in open() and close().
 * Looking at one is possible from every loop, as long as something (busy, the node's life) keeps it from
 * being removed.
 */
#pragma once

#include "block/node.h"

typedef struct DirtyBitmap DirtyBitmap;

/* ---- Making and finding ---- */

/* Allowed: powers of two from 512 bytes to 2 GiB. */
#define DIRTY_BITMAP_GRANULARITY_MIN 512

/* By size of the node's clusters, 4 to 64 KiB. Main loop; waits. */
uint32_t dirty_bitmap_default_granularity(Node *node);
/*
 * A new bitmap of node, clean, enabled, not persistent. name NULL: anonymous. Refuses names that exist or are
 * too long, and sizes that would take too much memory.
 */
int dirty_bitmap_new(
    Node *node, const char *name, uint32_t granularity, DirtyBitmap **ret_bitmap, Error *err) MUST_CHECK;
/* Whoever uses it must have let go before. NULL is fine. */
void dirty_bitmap_free(DirtyBitmap *bitmap);
DirtyBitmap *dirty_bitmap_find(const Node *node, const char *name);
/* Of node or the nearest one below whose data show through it: through filters and backing files. */
DirtyBitmap *dirty_bitmap_find_in_chain(const Node *node, const char *name);
/* The bitmap that users name, with the texts that they know. */
int dirty_bitmap_lookup(
    const char *node_name, const char *name, DirtyBitmap **ret_bitmap, Error *err) MUST_CHECK;
/* Walks over the bitmaps of a node, newest first, anonymous ones among them; after NULL: the first. NULL at
 * the end. */
DirtyBitmap *dirty_bitmap_next(const Node *node, const DirtyBitmap *after);

/* ---- What it is ---- */

/* NULL: anonymous. */
const char *dirty_bitmap_name(const DirtyBitmap *bitmap);
Node *dirty_bitmap_node(const DirtyBitmap *bitmap);
uint32_t dirty_bitmap_granularity(const DirtyBitmap *bitmap);
/* Bytes of the node that it covers. */
uint64_t dirty_bitmap_size(const DirtyBitmap *bitmap);

/* Writes are marked. */
bool dirty_bitmap_is_enabled(const DirtyBitmap *bitmap);
void dirty_bitmap_set_enabled(DirtyBitmap *bitmap, bool enabled);
/* In use by an operation, for example an export; nests. */
bool dirty_bitmap_is_busy(const DirtyBitmap *bitmap);
void dirty_bitmap_hold(DirtyBitmap *bitmap);
void dirty_bitmap_release(DirtyBitmap *bitmap);
/* Is kept in the image. */
bool dirty_bitmap_is_persistent(const DirtyBitmap *bitmap);
void dirty_bitmap_set_persistent(DirtyBitmap *bitmap, bool persistent);
/* Nobody knows what it should contain: it can only be removed. Its bits are not looked at and take no memory.
 */
bool dirty_bitmap_is_inconsistent(const DirtyBitmap *bitmap);
void dirty_bitmap_set_inconsistent(DirtyBitmap *bitmap);
/* The image is read-only: the bitmap cannot be changed, and the first write to the node would make it wrong,
 * so the driver ends this before. */
bool dirty_bitmap_is_read_only(const DirtyBitmap *bitmap);
void dirty_bitmap_set_read_only(DirtyBitmap *bitmap, bool read_only);

typedef enum DirtyBitmapCheck {
    DIRTY_BITMAP_BUSY = 1 << 0,
    DIRTY_BITMAP_READ_ONLY = 1 << 1,
    DIRTY_BITMAP_INCONSISTENT = 1 << 2,
    DIRTY_BITMAP_CHANGE = DIRTY_BITMAP_BUSY | DIRTY_BITMAP_READ_ONLY | DIRTY_BITMAP_INCONSISTENT,
    DIRTY_BITMAP_LOOK = DIRTY_BITMAP_BUSY | DIRTY_BITMAP_INCONSISTENT,
} DirtyBitmapCheck;

/* Refuses a bitmap that is any of what checks name, with the texts that users know. */
int dirty_bitmap_check(const DirtyBitmap *bitmap, unsigned checks, Error *err) MUST_CHECK;

/* ---- Bits; ranges are bytes. Those that are changed lie within the bitmap's size; what lies behind is
 * clean. ---- */

/* Marks all that the range touches. */
void dirty_bitmap_set(DirtyBitmap *bitmap, uint64_t offset, uint64_t bytes);
/* Unmarks all that lies in the range; one that it covers in part only stays (the end of the bitmap covers its
 * last). */
void dirty_bitmap_reset(DirtyBitmap *bitmap, uint64_t offset, uint64_t bytes);
void dirty_bitmap_clear(DirtyBitmap *bitmap);
bool dirty_bitmap_get(const DirtyBitmap *bitmap, uint64_t offset);
/* Dirty bytes; a granule at the end counts as a whole. */
uint64_t dirty_bitmap_count(const DirtyBitmap *bitmap);
/* The next dirty range within [offset, end), no longer than needed; false: none. */
bool dirty_bitmap_next_dirty(
    const DirtyBitmap *bitmap, uint64_t offset, uint64_t end, uint64_t *ret_offset, uint64_t *ret_bytes);
/* The first clean byte in [offset, end), or end. */
uint64_t dirty_bitmap_next_clean(const DirtyBitmap *bitmap, uint64_t offset, uint64_t end);

/* Marks in target what is marked in source; granularities may differ, sizes may not. */
int dirty_bitmap_merge(DirtyBitmap *target, const DirtyBitmap *source, Error *err) MUST_CHECK;

/*
 * A copy of what a bitmap contains, for commands that can be undone. Restoring puts it back as it was,
 * without what has been marked since: the node's requests are drained from the one to the other.
 */
typedef struct DirtyBitmapSaved DirtyBitmapSaved;
int dirty_bitmap_save(const DirtyBitmap *bitmap, DirtyBitmapSaved **ret_saved, Error *err) MUST_CHECK;
void dirty_bitmap_restore(DirtyBitmap *bitmap, DirtyBitmapSaved *take_saved);
/* NULL is fine. */
void dirty_bitmap_drop(DirtyBitmapSaved *take_saved);

/*
 * As bytes: an array of bits, one for each granule, the least significant bit of a byte first (QEMU
 * docs/interop/qcow2, "Bitmap data"). at and length count bytes of it, at is a multiple of 8; so is length,
 * unless the range ends with the bitmap or behind: what lies behind reads as 0 and is ignored.
 */
uint64_t dirty_bitmap_stored_bytes(const DirtyBitmap *bitmap);
void dirty_bitmap_to_bytes(const DirtyBitmap *bitmap, uint64_t at, uint8_t *dst, size_t length);
void dirty_bitmap_from_bytes(DirtyBitmap *bitmap, uint64_t at, const uint8_t *src, size_t length);

/* ---- For drivers that keep bitmaps in the image ---- */

/*
 * All optional. Those of the control path are called on the node's home loop while the node's requests are
 * drained. Stored bitmaps are made by the driver itself in open() and stored in close(); they are freed after
 * that.
 */
typedef struct DriverBitmaps {
    /* May refuse a new persistent bitmap; NULL: never does. */
    int (*can_add)(Node *node, const char *name, uint32_t granularity, Error *err);
    /* The bitmap has been made and is persistent; on failure it is removed again. */
    int (*added)(Node *node, DirtyBitmap *bitmap, Error *err);
    /* Forget the stored form of a persistent bitmap, which is removed when this has succeeded; or, if a
     * transaction fails later, added() again. */
    int (*remove)(Node *node, DirtyBitmap *bitmap, Error *err);
    /*
     * A persistent bitmap has been changed other than by a write: merged into, cleared, enabled, disabled. If
     * this fails, the change is undone and refused; this is called again after undoing, then failures are
     * logged.
     */
    int (*changed)(Node *node, DirtyBitmap *bitmap, Error *err);
    /*
     * Around each write, zeroing and discard, from whatever loop it runs on, while node_journal_writes() is
     * on. write_begin may wait; if it fails (-errno), so does the write, and nothing is called for it any
     * more. write_end comes when the write has ended, well or not, and has been marked in all bitmaps.
     */
    int (*write_begin)(Node *node, uint64_t offset, uint64_t bytes);
    void (*write_end)(Node *node, uint64_t offset, uint64_t bytes);
} DriverBitmaps;

/* Switches write_begin and write_end on or off: in open(), or in one of the functions above that are called
 * drained. */
void node_journal_writes(Node *node, bool on);
