/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The journal of bitmaps in qcow2 images, as pure functions over bytes: its header extension and its log. The
 * form and the rules are in docs/qcow2-bitmap-journal.md. No I/O here; everything that decodes checks.
 */
#pragma once

#include "base/endian.h"
#include "base/error.h"

#define QCOW2_JOURNAL_EXT_BYTES 24u

#define QCOW2_JOURNAL_VERSION 1u
#define QCOW2_JOURNAL_PAGE_BYTES 4096u
#define QCOW2_JOURNAL_BYTES                                                         \
    (2 * QCOW2_JOURNAL_PAGE_BYTES) /* a page with the head, a page with the intents \
                                    */
#define QCOW2_JOURNAL_REGIONS (8 * QCOW2_JOURNAL_PAGE_BYTES)
#define QCOW2_JOURNAL_AT_SLOTS 64u
#define QCOW2_JOURNAL_SLOTS ((QCOW2_JOURNAL_PAGE_BYTES - QCOW2_JOURNAL_AT_SLOTS) / 8)
#define QCOW2_JOURNAL_MIN_REGION_BITS 16u
#define QCOW2_JOURNAL_MAX_REGION_BITS 48u

/* Where the log is; 0 or -EINVAL. */
int qcow2_journal_ext_decode(
    const uint8_t *data, uint32_t bytes, unsigned cluster_bits, uint64_t *ret_offset) MUST_CHECK;
/* Writes QCOW2_JOURNAL_EXT_BYTES. */
void qcow2_journal_ext_encode(uint64_t offset, uint8_t *out);

/* Size of the regions: each costs a flush when it is written to first, and blocks that look changed after a
 * crash. */
unsigned qcow2_journal_region_bits(uint64_t disk_bytes);

typedef struct Qcow2JournalHead {
    unsigned region_bits;
    uint64_t disk_bytes;
    uint64_t slots[QCOW2_JOURNAL_SLOTS]; /* offsets of the tables of the bitmaps that are covered; 0: free */
} Qcow2JournalHead;

/* page: QCOW2_JOURNAL_PAGE_BYTES. -EINVAL: not a log, or not one of a disk of disk_bytes. */
int qcow2_journal_head_decode(
    const uint8_t *page, uint64_t disk_bytes, Qcow2JournalHead *ret_head) MUST_CHECK;
void qcow2_journal_head_encode(const Qcow2JournalHead *head, uint8_t *page);
