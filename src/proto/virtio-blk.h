/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The virtio block device on the wire (virtio 1.2, 5.2): feature bits, configuration space, request headers
 * and ranges, and which requests a device accepts. Pure functions over bytes; all numbers are little-endian.
 */
#pragma once

#include "base/macros.h"

#define VIRTIO_BLK_SECTOR_BYTES 512
#define VIRTIO_BLK_SERIAL_BYTES 20
#define VIRTIO_BLK_HEADER_BYTES 16
#define VIRTIO_BLK_RANGE_BYTES 16
/* struct virtio_blk_config up to and including the write-zeroes fields. */
#define VIRTIO_BLK_CONFIG_BYTES 60
/* The write cache byte in it. */
#define VIRTIO_BLK_CONFIG_WCE 32

/* Feature bits of the device (5.2.3) and of its rings (6). */
#define VIRTIO_BLK_FEATURE_SIZE_MAX (UINT64_C(1) << 1)
#define VIRTIO_BLK_FEATURE_SEG_MAX (UINT64_C(1) << 2)
#define VIRTIO_BLK_FEATURE_RO (UINT64_C(1) << 5)
#define VIRTIO_BLK_FEATURE_BLK_SIZE (UINT64_C(1) << 6)
#define VIRTIO_BLK_FEATURE_FLUSH (UINT64_C(1) << 9)
#define VIRTIO_BLK_FEATURE_TOPOLOGY (UINT64_C(1) << 10)
#define VIRTIO_BLK_FEATURE_CONFIG_WCE (UINT64_C(1) << 11)
#define VIRTIO_BLK_FEATURE_MQ (UINT64_C(1) << 12)
#define VIRTIO_BLK_FEATURE_DISCARD (UINT64_C(1) << 13)
#define VIRTIO_BLK_FEATURE_WRITE_ZEROES (UINT64_C(1) << 14)
#define VIRTIO_FEATURE_NOTIFY_ON_EMPTY (UINT64_C(1) << 24)
#define VIRTIO_FEATURE_INDIRECT_DESC (UINT64_C(1) << 28)
#define VIRTIO_FEATURE_EVENT_IDX (UINT64_C(1) << 29)
#define VIRTIO_FEATURE_VERSION_1 (UINT64_C(1) << 32)
#define VIRTIO_FEATURE_RING_PACKED (UINT64_C(1) << 34)

/* Configuration space (5.2.4). Sizes are in the units of the wire: sectors of 512 bytes, or logical blocks.
 */
typedef struct VirtioBlkConfig {
    uint64_t capacity; /* sectors */
    uint32_t size_max; /* bytes of one segment */
    uint32_t seg_max;
    uint32_t blk_size;          /* bytes of a logical block */
    uint8_t physical_block_exp; /* a physical block has 2^n logical ones */
    uint16_t min_io_size;       /* logical blocks */
    uint32_t opt_io_size;       /* logical blocks; 0: none is better than others */
    bool wce;
    uint16_t num_queues;
    uint32_t max_discard_sectors, max_discard_seg, discard_sector_alignment;
    uint32_t max_write_zeroes_sectors, max_write_zeroes_seg;
    bool write_zeroes_may_unmap;
} VirtioBlkConfig;

void virtio_blk_config_encode(const VirtioBlkConfig *config, uint8_t out[VIRTIO_BLK_CONFIG_BYTES]);

typedef enum VirtioBlkType {
    VIRTIO_BLK_TYPE_IN = 0,
    VIRTIO_BLK_TYPE_OUT = 1,
    VIRTIO_BLK_TYPE_FLUSH = 4,
    VIRTIO_BLK_TYPE_GET_ID = 8,
    VIRTIO_BLK_TYPE_DISCARD = 11,
    VIRTIO_BLK_TYPE_WRITE_ZEROES = 13,
} VirtioBlkType;

typedef enum VirtioBlkStatus {
    VIRTIO_BLK_STATUS_OK = 0,
    VIRTIO_BLK_STATUS_IOERR = 1,
    VIRTIO_BLK_STATUS_UNSUPP = 2,
} VirtioBlkStatus;

/* The header of a request (5.2.6). */
typedef struct VirtioBlkHeader {
    uint32_t type; /* VirtioBlkType, or one that is not supported */
    uint64_t sector;
} VirtioBlkHeader;

VirtioBlkHeader virtio_blk_header_decode(const uint8_t in[VIRTIO_BLK_HEADER_BYTES]);
/* "IN"; "unknown" for types that are not listed above. */
const char *virtio_blk_type_name(uint32_t type);

/* What the device is like to whom requests go. */
typedef struct VirtioBlkRules {
    uint64_t capacity; /* sectors */
    uint32_t block_bytes;
    bool writable;
} VirtioBlkRules;

/* A read or write of `bytes` at a sector: OK with the offset in bytes, or what to answer. */
VirtioBlkStatus virtio_blk_check_io(
    const VirtioBlkRules *rules, const VirtioBlkHeader *header, uint64_t bytes, uint64_t *ret_offset);

/* One of the ranges of DISCARD and WRITE_ZEROES, in bytes. */
typedef struct VirtioBlkRange {
    uint64_t offset, bytes;
    bool unmap;
} VirtioBlkRange;

/* OK with the range, or what to answer. */
VirtioBlkStatus virtio_blk_range_decode(const VirtioBlkRules *rules, uint32_t type,
    const uint8_t in[VIRTIO_BLK_RANGE_BYTES], VirtioBlkRange *ret_range);
