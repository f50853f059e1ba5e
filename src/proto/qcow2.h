/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The qcow2 disk format, versions 2 and 3, as pure functions over bytes: header, header extensions, L1/L2 and
 * refcount entries, compressed cluster descriptors. Source: QEMU docs/interop/qcow2.txt (section names
 * below). No I/O here, and no assumption about the bytes: everything that decodes checks.
 */
#pragma once

#include "base/endian.h"
#include "base/error.h"

#define QCOW2_MAGIC 0x514649fbu /* "QFI\xfb" */
#define QCOW2_HEADER_V2_BYTES 72u
#define QCOW2_HEADER_V3_BYTES 104u
#define QCOW2_HEADER_BYTES 112u /* what this program writes: with the compression type, padded */

#define QCOW2_MIN_CLUSTER_BITS 9u
#define QCOW2_MAX_CLUSTER_BITS 21u
#define QCOW2_MIN_EXTENDED_CLUSTER_BITS 14u
#define QCOW2_MAX_REFCOUNT_ORDER 6u
#define QCOW2_MAX_L1_BYTES (32u << 20)
#define QCOW2_MAX_REFTABLE_BYTES (8u << 20)
#define QCOW2_MAX_SNAPSHOTS 65536u
#define QCOW2_MAX_NAME_BYTES 1023u /* backing and data file names */
#define QCOW2_MAX_FORMAT_BYTES 15u
#define QCOW2_SUBCLUSTERS 32u /* per cluster, with extended L2 entries */

/* "Header", offset of fields that are rewritten in place. */
#define QCOW2_AT_BACKING_OFFSET 8u /* followed by its length, 4 bytes */
#define QCOW2_AT_SIZE 24u
#define QCOW2_AT_L1_ENTRIES 36u /* followed by the table's offset, 8 bytes */
#define QCOW2_AT_RT_OFFSET 48u  /* followed by the table's clusters, 4 bytes */
#define QCOW2_AT_INCOMPATIBLE 72u
#define QCOW2_AT_AUTOCLEAR 88u

#define QCOW2_INCOMPATIBLE_DIRTY (1u << 0)
#define QCOW2_INCOMPATIBLE_CORRUPT (1u << 1)
#define QCOW2_INCOMPATIBLE_DATA_FILE (1u << 2)
#define QCOW2_INCOMPATIBLE_COMPRESSION (1u << 3)
#define QCOW2_INCOMPATIBLE_EXTENDED_L2 (1u << 4)
#define QCOW2_INCOMPATIBLE_KNOWN 0x1fu
#define QCOW2_COMPATIBLE_LAZY_REFCOUNTS (1u << 0)
#define QCOW2_AUTOCLEAR_BITMAPS (1u << 0)
#define QCOW2_AUTOCLEAR_DATA_FILE_RAW (1u << 1)
#define QCOW2_AUTOCLEAR_JOURNAL (UINT64_C(1) << 55) /* ours: docs/qcow2-bitmap-journal.md */

#define QCOW2_CRYPT_AES 1u
#define QCOW2_CRYPT_LUKS 2u

#define QCOW2_COMPRESSION_ZLIB 0u
#define QCOW2_COMPRESSION_ZSTD 1u

#define QCOW2_EXT_END 0u
#define QCOW2_EXT_BACKING_FORMAT 0xe2792acau
#define QCOW2_EXT_FEATURE_NAMES 0x6803f857u
#define QCOW2_EXT_CRYPTO 0x0537be77u
#define QCOW2_EXT_BITMAPS 0x23852875u
#define QCOW2_EXT_DATA_FILE 0x44415441u
#define QCOW2_EXT_JOURNAL 0x47724a6cu /* ours: "GrJl" */
#define QCOW2_EXT_RETIRED 0x47724a30u /* ours: "GrJ0", room that an extension has left behind */

/* "Header": host order; version 2 images get the values that version 3 defaults to. */
typedef struct Qcow2Header {
    uint32_t version;
    uint64_t backing_offset; /* 0: none */
    uint32_t backing_bytes;
    uint32_t cluster_bits;
    uint64_t size; /* of the virtual disk, bytes */
    uint32_t crypt_method;
    uint32_t l1_entries;
    uint64_t l1_offset;
    uint64_t rt_offset; /* refcount table */
    uint32_t rt_clusters;
    uint32_t snapshots;
    uint64_t snapshots_offset;
    uint64_t incompatible, compatible, autoclear;
    uint32_t refcount_order; /* refcounts are 1 << order bits wide */
    uint32_t header_bytes;
    uint8_t compression_type;
} Qcow2Header;

/*
 * Decodes the fixed part of a header from the first `bytes` bytes of an image (at least QCOW2_HEADER_BYTES
 * unless the file is shorter) and checks every field that can be checked alone, with the texts that users of
 * QEMU know. Features are not judged here, see qcow2_header_check.
 */
int qcow2_header_decode(const uint8_t *data, size_t bytes, Qcow2Header *ret_header, Error *err) MUST_CHECK;
/* Checks what concerns tables: their sizes and places, and the size of the disk against the L1 table. */
int qcow2_header_check(const Qcow2Header *header, Error *err) MUST_CHECK;
/* Refuses unknown incompatible features by name; extensions (the bytes between the header and the end of the
 * first cluster) may hold a feature name table. */
int qcow2_features_check(
    const Qcow2Header *header, const uint8_t *extensions, size_t bytes, Error *err) MUST_CHECK;
/* Writes QCOW2_HEADER_BYTES (version 3) or QCOW2_HEADER_V2_BYTES bytes; returns how many. */
size_t qcow2_header_encode(const Qcow2Header *header, uint8_t *out);
/* L1 entries that a disk of size bytes needs. */
uint64_t qcow2_l1_entries_for(const Qcow2Header *header, uint64_t size);

/* ---- "Header extensions" ---- */

typedef struct Qcow2Extension {
    uint32_t magic;
    uint32_t bytes;
    const uint8_t *data;
} Qcow2Extension;

/* Walks the extensions in an area: 1 with *ret set and *offset moved on, 0 at the end, -EINVAL when one
 * overruns it. */
int qcow2_extension_next(
    const uint8_t *area, size_t area_bytes, size_t *offset, Qcow2Extension *ret, Error *err) MUST_CHECK;
/* Appends an extension with padding; returns the bytes used, 0 if it does not fit. */
size_t qcow2_extension_encode(uint8_t *out, size_t room, uint32_t magic, const void *data, uint32_t bytes);
/* The feature name table that this program writes into new images; returns its bytes (room for 512 is
 * enough). */
size_t qcow2_feature_names_encode(uint8_t *out);

/* ---- "Host cluster management": refcounts, 1 << order bits wide, in a block of bytes ---- */

uint64_t qcow2_refcount_get(const uint8_t *block, unsigned order, uint32_t index);
/* value must fit: see qcow2_refcount_max. */
void qcow2_refcount_set(uint8_t *block, unsigned order, uint32_t index, uint64_t value);
static inline uint64_t qcow2_refcount_max(unsigned order)
{
    return order == 6 ? UINT64_MAX : (UINT64_C(1) << (1u << order)) - 1;
}
/* First index in [from, to) with refcount zero, or to. */
uint32_t qcow2_refcount_find_free(const uint8_t *block, unsigned order, uint32_t from, uint32_t to);

/* ---- "L1 table entry", "L2 table entry", "Standard Cluster Descriptor", "Compressed Clusters Descriptor"
 * ---- */

#define QCOW2_COPIED (UINT64_C(1) << 63) /* refcount is exactly one */
#define QCOW2_COMPRESSED (UINT64_C(1) << 62)
#define QCOW2_ZERO (UINT64_C(1) << 0) /* version 3, not with extended entries */
#define QCOW2_OFFSET_MASK UINT64_C(0x00fffffffffffe00)
#define QCOW2_RT_OFFSET_MASK UINT64_C(0xfffffffffffffe00)
#define QCOW2_MAX_HOST_OFFSET (UINT64_C(1) << 56)

/* "Extended L2 Entries": in the second word, bit i: subcluster i is allocated; bit 32 + i: it reads as
 * zeroes. */
#define QCOW2_SUB_ALLOCATED(index) (UINT64_C(1) << (index))
#define QCOW2_SUB_ZERO(index) (UINT64_C(1) << (32 + (index)))
#define QCOW2_SUB_ALL_ALLOCATED UINT64_C(0x00000000ffffffff)
#define QCOW2_SUB_ALL_ZERO UINT64_C(0xffffffff00000000)

/* What a cluster, or with extended entries a subcluster, is. */
typedef enum Qcow2Type {
    QCOW2_TYPE_UNALLOCATED,      /* reads from the backing file, or zeroes */
    QCOW2_TYPE_UNALLOCATED_HOST, /* the same, with a host cluster reserved for it */
    QCOW2_TYPE_ZERO,             /* reads as zeroes */
    QCOW2_TYPE_ZERO_HOST,        /* the same, with a host cluster reserved for it */
    QCOW2_TYPE_NORMAL,           /* data in the host cluster */
    QCOW2_TYPE_COMPRESSED,       /* the whole cluster, compressed */
    QCOW2_TYPE_INVALID,
} Qcow2Type;

/* subclusters is the bitmap of an extended entry; index that of a subcluster. has_zero: version 3. */
Qcow2Type qcow2_entry_type(uint64_t entry, bool has_zero, bool data_file);
Qcow2Type qcow2_subcluster_type(uint64_t entry, uint64_t subclusters, unsigned index, bool data_file);

typedef struct Qcow2Compressed {
    uint64_t offset; /* in the image file, any byte */
    uint32_t bytes;  /* upper bound: up to the end of the last sector */
} Qcow2Compressed;

Qcow2Compressed qcow2_compressed_decode(uint64_t entry, unsigned cluster_bits);
/* bytes > 0; -ERANGE if the descriptor has no room for them. */
int qcow2_compressed_encode(
    uint64_t offset, uint32_t bytes, unsigned cluster_bits, uint64_t *ret_entry) MUST_CHECK;
