/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Dirty bitmaps that are kept in the image, and their journal (docs/qcow2-bitmap-journal.md).
 *
 * On disk a bitmap is as it was stored until the first change after opening: a write, or a command. Before
 * that the flag "in use" is set for all (stored_activate), and the journal begins. From then on holds, at
 * each moment, for each bitmap that the journal covers:
 *
 *   what the table and the data clusters on disk say, and all of each region with an intent, is a superset of
 * the truth.
 *
 * - A write begins when the intents of its regions are durable, and ends after it has been marked in the
 * bitmaps.
 * - Data clusters are written in place, then flushed; then table entries that have changed, and flushed; only
 * then are intents taken back, of regions that no write has touched since before the bits were looked at.
 * - A change by a command is written in full before the command is answered.
 * - In close(), everything is written and flushed, then "in use" is cleared and flushed, then the journal
 * ends.
 *
 * Without a journal (no room for it) a crash leaves bitmaps that are in use: nobody trusts them. That is what
 * other programs see in any case.
 *
 * All on the home loop.
 */
#pragma once

#include "block/bitmap.h"
#include "drivers/qcow2/qcow2-priv.h"
#include "proto/qcow2-bitmap.h"
#include "proto/qcow2-journal.h"

#define JOURNAL_WORDS (QCOW2_JOURNAL_PAGE_BYTES / 8)

/* A set of regions. */
typedef struct RegionSet {
    uint64_t words[JOURNAL_WORDS];
} RegionSet;

/* State of a region; above these, the number of writes in flight. */
#define REGION_DURABLE 1u /* its intent is on disk */
#define REGION_TOUCHED 2u /* a write began or ended since the bitmaps were written back last */
#define REGION_ONE 4u

typedef struct Journal {
    uint64_t offset; /* of the log */
    Qcow2JournalHead head;
    uint32_t regions;
    uint32_t *state;
    RegionSet wanted;  /* the page of intents, as it is to be */
    RegionSet durable; /* those with REGION_DURABLE */
    CoMutex lock;      /* one write of the page at a time */
    SharedRun run;
    uint64_t interval_ns, next_ns; /* of writing bitmaps back */
} Journal;

typedef struct StoredBitmap {
    char *name;
    DirtyBitmap *bitmap;
    uint32_t flags;       /* on disk */
    uint32_t shown_flags; /* when the image was opened */
    bool added;           /* since the image was opened */
    unsigned granularity_bits;
    uint64_t table_offset;
    uint32_t table_entries;
    uint64_t *table; /* host order; NULL: not loaded, the bitmap is inconsistent */
    bool table_dirty;
    uint64_t
        *replaced; /* the table that the directory on disk still names, after the disk was resized; or NULL */
    uint64_t replaced_offset;
    uint32_t replaced_entries;
    bool stale; /* in use, and something else than writes has changed it: all of it has to be written */
} StoredBitmap;

typedef struct StoredBitmaps {
    CoMutex lock; /* one change of what is on disk at a time */
    StoredBitmap **items;
    size_t count, capacity;
    Qcow2BitmapsExt directory; /* count 0: there is none */
    uint64_t log_offset;       /* the header names a journal; 0: it does not */
    bool in_use;               /* on disk, all that are not inconsistent say so */
    bool moved;                /* the directory on disk does not name all tables yet */
    bool unprotected;          /* there can be no journal */
    bool unsure;               /* what the file says of them may be something else than memory does */
    Journal *journal;
} StoredBitmaps;

/* ---- stored-load.c ---- */

/* Makes the image's bitmaps. The header names a directory. */
int stored_load(Qcow2 *q, Error *err) MUST_CHECK;
bool stored_is_usable(const StoredBitmap *item);
/* Reads and checks the table of a bitmap. */
int stored_read_table(Qcow2 *q, const StoredBitmap *item, uint64_t **ret_table) MUST_CHECK;
void stored_item_free(StoredBitmap *item);

/* ---- stored.c ---- */

/* Before the first change. -errno: nothing may be changed. */
int stored_activate(Qcow2 *q) MUST_CHECK;
int stored_activate_locked(Qcow2 *q) MUST_CHECK;
/* With the lock: others must not trust them from now on. */
int stored_mark_in_use(Qcow2 *q) MUST_CHECK;
/* With the lock: writes data and tables of what has changed in the regions of set (NULL: everything). */
int stored_write_back(Qcow2 *q, const RegionSet *set) MUST_CHECK;
/* With the lock: everything, also if the disk has another size now. */
int stored_write_all(Qcow2 *q) MUST_CHECK;
/* With the lock: the directory as it is in memory, in its place (only flags have changed), or in a new one.
 */
int stored_update_directory(Qcow2 *q) MUST_CHECK;
int stored_replace_directory(Qcow2 *q) MUST_CHECK;
/* With the lock: the file says of the bitmaps what memory does, durably. Before anything is built on that. */
int stored_settle(Qcow2 *q) MUST_CHECK;
/* A new table, all zeroes, for a bitmap of so many entries. */
int stored_new_table(Qcow2 *q, uint32_t entries, uint64_t *ret_offset) MUST_CHECK;
void stored_free_table(Qcow2 *q, uint64_t offset, uint32_t entries);

/* ---- journal.c ---- */

/* Reads the log that the header names; a log that is not sound is as none. */
int journal_load(Qcow2 *q) MUST_CHECK;
bool journal_covers(const Journal *j, uint64_t table_offset);
/* With the lock: what is on disk is up to date. */
int journal_start(Qcow2 *q) MUST_CHECK;
int journal_stop(Qcow2 *q) MUST_CHECK;
/* With the lock: a bitmap more or less. */
int journal_cover(Qcow2 *q, uint64_t table_offset) MUST_CHECK;
void journal_uncover(Qcow2 *q, uint64_t table_offset);
int journal_begin(Qcow2 *q, uint64_t offset, uint64_t bytes) MUST_CHECK;
void journal_end(Qcow2 *q, uint64_t offset, uint64_t bytes);
/* Regions whose intents may be taken back when the bitmaps have been written; then, those that still may. */
void journal_collect(Journal *j, RegionSet *ret_set);
void journal_clear(Qcow2 *q, const RegionSet *set);
void journal_free(Journal *j);
bool region_set_any(const RegionSet *set, uint64_t first, uint64_t last);

static inline bool region_set_has(const RegionSet *set, uint64_t region)
{
    return set->words[region / 64] >> region % 64 & 1;
}
