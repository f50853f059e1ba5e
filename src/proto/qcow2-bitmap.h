/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bitmaps stored in qcow2 images, as pure functions over bytes: the header extension, the entries of the
 * directory, the entries of a bitmap's table. Source: QEMU docs/interop/qcow2.txt, "Bitmaps extension",
 * "Bitmaps". No I/O here, and no assumption about the bytes: everything that decodes checks.
 */
#pragma once

#include "base/endian.h"
#include "base/error.h"

#define QCOW2_BITMAPS_EXT_BYTES 24u
#define QCOW2_MAX_BITMAPS 65535u
#define QCOW2_MAX_BITMAP_DIRECTORY_BYTES (1024u * QCOW2_MAX_BITMAPS) /* just below 64 MiB */
#define QCOW2_MAX_BITMAP_TABLE_ENTRIES 0x8000000u
#define QCOW2_MAX_BITMAP_BYTES (512u << 20) /* of one bitmap's data (the reference's limit) */
#define QCOW2_MIN_BITMAP_GRANULARITY_BITS 9u
#define QCOW2_MAX_BITMAP_GRANULARITY_BITS 31u
#define QCOW2_MAX_BITMAP_NAME_BYTES 1023u
#define QCOW2_BITMAP_ENTRY_BYTES 24u /* without extra data and name */
#define QCOW2_BITMAP_AT_FLAGS 12u    /* within an entry */

#define QCOW2_BITMAP_IN_USE (1u << 0)
#define QCOW2_BITMAP_AUTO (1u << 1)
#define QCOW2_BITMAP_EXTRA_COMPATIBLE (1u << 2)
#define QCOW2_BITMAP_TYPE_DIRTY 1u

/* ---- "Bitmaps extension" ---- */

typedef struct Qcow2BitmapsExt {
    uint32_t count;
    uint64_t directory_bytes, directory_offset;
} Qcow2BitmapsExt;

int qcow2_bitmaps_ext_decode(const uint8_t *data, uint32_t bytes, unsigned cluster_bits,
    Qcow2BitmapsExt *ret_ext, Error *err) MUST_CHECK;
/* Writes QCOW2_BITMAPS_EXT_BYTES. */
void qcow2_bitmaps_ext_encode(const Qcow2BitmapsExt *ext, uint8_t *out);

/* ---- "Bitmap directory" ---- */

typedef struct Qcow2BitmapEntry {
    uint64_t table_offset;
    uint32_t table_entries;
    uint32_t flags;
    uint8_t type, granularity_bits;
    uint16_t name_bytes;
    uint32_t extra_bytes;
    const char *name; /* not terminated; within the directory */
} Qcow2BitmapEntry;

/* Bytes of an entry with its padding. */
size_t qcow2_bitmap_entry_bytes(uint32_t name_bytes, uint32_t extra_bytes);
/*
 * Walks a directory: 1 with *ret_entry set and *offset moved on, 0 at the end, -EINVAL when an entry overruns
 * it. The fields are not judged.
 */
int qcow2_bitmap_entry_next(const uint8_t *directory, size_t bytes, size_t *offset,
    Qcow2BitmapEntry *ret_entry, Error *err) MUST_CHECK;
/* Judges the fields against the image. disk_bytes: what the bitmap must cover at least, unless it is in use.
 */
int qcow2_bitmap_entry_check(
    const Qcow2BitmapEntry *entry, unsigned cluster_bits, uint64_t disk_bytes, Error *err) MUST_CHECK;
/* Writes an entry without extra data; returns qcow2_bitmap_entry_bytes(). */
size_t qcow2_bitmap_entry_encode(const Qcow2BitmapEntry *entry, uint8_t *out);

/* ---- "Bitmap table" ---- */

typedef enum Qcow2BitmapCluster {
    QCOW2_BITMAP_ZEROES, /* no data: all bits are clear */
    QCOW2_BITMAP_ONES,   /* no data: all bits are set */
    QCOW2_BITMAP_DATA,
    QCOW2_BITMAP_INVALID,
} Qcow2BitmapCluster;

#define QCOW2_BITMAP_ENTRY_ONES UINT64_C(1)
#define QCOW2_BITMAP_OFFSET_MASK UINT64_C(0x00fffffffffffe00)

Qcow2BitmapCluster qcow2_bitmap_cluster(uint64_t entry, unsigned cluster_bits);
/* Bytes that the bits of a disk take, and table entries (clusters) for them. */
uint64_t qcow2_bitmap_bytes_for(uint64_t disk_bytes, unsigned granularity_bits);
uint64_t qcow2_bitmap_entries_for(uint64_t disk_bytes, unsigned granularity_bits, unsigned cluster_bits);
