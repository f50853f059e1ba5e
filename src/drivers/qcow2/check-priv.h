/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The consistency check: what its files share.
 *
 * A pass has three parts. check-walk.c counts how often each host cluster is referred to. check-refcounts.c
 * compares that with what the image says, block by block, and corrects it; if the refcount structure itself
 * is damaged, check-rebuild.c makes a new one. check-copied.c compares the flags that say "exactly one
 * reference" with the refcounts.
 *
 * All is read from the image file, nothing from the engine's caches: what they hold was written before, and
 * nothing else uses the node meanwhile (block/check.c).
 *
 * ---- What a crash may find ----
 *
 * Each refcount moves to the value that was counted, and never past it; a flag changes after all refcounts
 * are durable. So an image whose repair ends in the middle is between what it was and what it should be. A
 * new refcount structure is written where nothing refers to, and then takes the old one's place at once.
 *
 * ---- Bounds ----
 *
 * Memory goes with what is referred to, up to LIMIT_CHECK_BYTES. A table that is referred to many times is
 * read once and counts as often: the work is bounded by the tables in the file, not by what they multiply to.
 */
#pragma once

#include "drivers/qcow2/qcow2-priv.h"
#include "proto/qcow2-snapshot.h"

/* ---- check-tally.c: how often each of very many numbers has come up ---- */

/* A hash table with open addressing: key + 1 (0: empty) and value. */
typedef struct TallySlot {
    uint64_t key, value;
} TallySlot;

typedef struct Tally {
    TallySlot *slots;
    uint64_t used, mask;
    size_t *budget; /* bytes that may still be taken; shared */
} Tally;

/* Adds weight to the value of key, up to UINT64_MAX. -ENOMEM, or -E2BIG when the budget is used up. */
int tally_add(Tally *tally, uint64_t key, uint64_t weight) MUST_CHECK;
/* The value's place until the next addition; NULL if there is none. */
uint64_t *tally_find(const Tally *tally, uint64_t key);
/* The keys in ascending order, tally->used of them; the caller frees them. */
int tally_keys(const Tally *tally, uint64_t **ret_keys) MUST_CHECK;
void tally_done(Tally *tally);

/* A counter for each host cluster, in pages, each as wide as its largest counter needs. */
typedef struct Counts {
    Tally pages; /* page number: pointer to it */
    unsigned page_bits;
} Counts;

/* Adds weight to the counter of a cluster, up to max; *ret_lost is how much was too much. */
int counts_add(
    Counts *counts, uint64_t cluster, uint64_t weight, uint64_t max, uint64_t *ret_lost) MUST_CHECK;
/* False if nothing was ever counted near the cluster. */
bool counts_get(const Counts *counts, uint64_t cluster, uint64_t *ret_count);
/* Of a cluster that was counted near; value is at most 3. */
void counts_set(Counts *counts, uint64_t cluster, uint64_t value);
void counts_done(Counts *counts);

/* ---- A pass ---- */

typedef struct Check {
    Qcow2 *q;
    Error *err;   /* may stay empty when a step fails */
    unsigned fix; /* CheckFix */
    CheckResult *result;
    size_t budget;
    Counts counts;     /* references; after the comparison: what the image counts, as check_stored() */
    uint64_t clusters; /* of the file; a reference behind the last one is not counted */
    uint64_t file_bytes;
    uint64_t beyond;     /* end of the furthest reference behind the end of the file */
    bool hidden;         /* there may be references that were not seen, so nothing is surely a leak */
    bool rebuild;        /* the refcount structure has to be replaced */
    uint64_t incomplete; /* snapshots whose entries lack what version 3 demands */
    Tally tables;        /* L2 tables of the walk that is going on, by offset / 512 */
    unsigned messages;   /* that were logged */
} Check;

/* A line about a problem in the daemon's log; the first ones only. */
void check_say(Check *c, const char *fmt, ...) PRINTF(2, 3);
/* Counts weight references to each cluster of a range. */
int check_count(Check *c, uint64_t offset, uint64_t bytes, uint64_t weight) MUST_CHECK;

/* check-walk.c */
int check_walk(Check *c) MUST_CHECK;
/* Counts an L1 table and collects its L2 tables in c->tables. */
int check_collect(Check *c, uint64_t offset, uint32_t entries, uint64_t weight) MUST_CHECK;
/* Calls fn for each L2 table that was collected, several at once, and forgets them. table: cluster_size
 * bytes. */
typedef int CheckTableFn(Check *c, uint64_t offset, uint64_t weight, uint8_t *table, void *arg);
int check_each_table(Check *c, CheckTableFn *fn, void *arg) MUST_CHECK;

/* check-refcounts.c: the refcount structure itself is counted and looked at. */
int check_blocks(Check *c) MUST_CHECK;
/* Compares, and corrects. */
int check_refcounts(Check *c) MUST_CHECK;
/* What the image counts for a cluster, after check_refcounts(). */
typedef enum CheckStored { STORED_NONE, STORED_ONE, STORED_MANY, STORED_UNKNOWN } CheckStored;
int check_stored(const Check *c, uint64_t cluster, CheckStored *ret_stored) MUST_CHECK;

/* check-copied.c */
int check_copied(Check *c) MUST_CHECK;

/* check-rebuild.c: writes a new refcount structure, from the counts of a walk without check_blocks(). */
int check_rebuild(Check *c) MUST_CHECK;
