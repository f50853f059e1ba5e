/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An entry of a qcow2 image's snapshot table as pure functions over bytes. Source: QEMU
 * docs/interop/qcow2.txt, "Snapshots". Entries follow each other, each aligned to 8 bytes. An entry's extra
 * data may be longer than what is known here: whoever rewrites a table copies entries as bytes.
 */
#pragma once

#include "base/endian.h"

#define QCOW2_SNAPSHOT_BYTES 40u /* the fixed part; extra data, id and name follow */
#define QCOW2_SNAPSHOT_EXTRA_BYTES 24u
#define QCOW2_SNAPSHOT_V3_EXTRA_BYTES 16u /* that an entry of version 3 must have: up to the disk's size */
#define QCOW2_NO_ICOUNT UINT64_MAX

typedef struct Qcow2Snapshot {
    uint64_t l1_offset;
    uint32_t l1_entries;
    uint32_t date_sec, date_nsec;
    uint64_t vm_clock_ns;
    uint64_t vm_state_bytes;
    bool has_disk_bytes;
    uint64_t disk_bytes; /* size of the disk then */
    uint64_t icount;     /* QCOW2_NO_ICOUNT: not recorded */
    const char *id, *name;
    uint16_t id_bytes, name_bytes;
} Qcow2Snapshot;

/* Bytes of the whole entry, without padding, from its fixed part. */
static inline uint64_t qcow2_snapshot_bytes(const uint8_t *fixed)
{
    return (uint64_t)QCOW2_SNAPSHOT_BYTES + get_be32(fixed + 36) + get_be16(fixed + 12) +
           get_be16(fixed + 14);
}

/* entry has qcow2_snapshot_bytes() bytes; what is decoded points into it. */
Qcow2Snapshot qcow2_snapshot_decode(const uint8_t *entry);
/* Writes an entry with all extra data that is known here; returns its bytes. With out NULL only that. */
size_t qcow2_snapshot_encode(const Qcow2Snapshot *snapshot, uint8_t *out);
