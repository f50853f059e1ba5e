/* SPDX-License-Identifier: Apache-2.0 */
/* The table of internal snapshots, for those who walk it. */
#pragma once

#include "drivers/qcow2/qcow2-priv.h"
#include "proto/qcow2-snapshot.h"

typedef struct SnapshotEntry {
    uint8_t *raw; /* as stored */
    uint64_t bytes;
    Qcow2Snapshot s; /* points into raw */
} SnapshotEntry;

typedef struct SnapshotTable {
    SnapshotEntry *items;
    size_t count;
    uint64_t stored_bytes; /* in the image */
} SnapshotTable;

int snapshot_table_read(Qcow2 *q, SnapshotTable *table, Error *err) MUST_CHECK;
/* Entries that lack what version 3 demands get it: old programs did not note the size of the disk, which is
 * taken to be the size that it has now. change_lock is held, and the refcounts are right. */
int snapshot_complete_entries(Qcow2 *q, Error *err) MUST_CHECK;
void snapshot_table_done(SnapshotTable *table);
