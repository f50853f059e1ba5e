/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The virtio block device: feature negotiation and configuration space.
 *
 * What requests need of it on other loops is atomic; the rest belongs to the main loop.
 */
#include "virtio/blk-priv.h"

#include "base/limits.h"
#include "base/mem.h"
#include "block/driver.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

/*
 * Longest segment. This device has no bound, but it must offer the feature because the reference does: a
 * guest that comes from there insists on what it has accepted. The reference says 0, with which Linux falls
 * back to segments of at most 64 KiB, and Windows' driver, which multiplies it with seg_max, to its shortest
 * scatter list. This value is beyond any driver's largest request and a multiple of the page size, and the
 * product fits 32 bits even with the largest queue.
 */
#define SIZE_MAX_BYTES (4 * MIB)
/* Ranges of one DISCARD or WRITE_ZEROES: as many as Linux ever sends. */
#define RANGES_MAX LIMIT_VIRTIO_BLK_RANGES
/* One range: 1 GiB, the largest power of two whose length in bytes is a positive int in any driver, and a
 * multiple of every legal block size. */
#define RANGE_SECTORS_MAX (GIB / VIRTIO_BLK_SECTOR_BYTES)
/* min_io_size, which follows from it, has 16 bits. */
#define PHYSICAL_BLOCK_EXP_MAX 15

#define FEATURES                                                                                   \
    (VIRTIO_BLK_FEATURE_SIZE_MAX | VIRTIO_BLK_FEATURE_SEG_MAX | VIRTIO_BLK_FEATURE_BLK_SIZE |      \
        VIRTIO_BLK_FEATURE_FLUSH | VIRTIO_BLK_FEATURE_TOPOLOGY | VIRTIO_BLK_FEATURE_CONFIG_WCE |   \
        VIRTIO_BLK_FEATURE_MQ | VIRTIO_BLK_FEATURE_DISCARD | VIRTIO_BLK_FEATURE_WRITE_ZEROES |     \
        VIRTIO_FEATURE_NOTIFY_ON_EMPTY | VIRTIO_FEATURE_INDIRECT_DESC | VIRTIO_FEATURE_EVENT_IDX | \
        VIRTIO_FEATURE_VERSION_1 | VIRTIO_FEATURE_RING_PACKED)

static unsigned log2_of(uint64_t power_of_2)
{
    return (unsigned)__builtin_ctzll(power_of_2);
}

/* Physical blocks and the smallest good request are what the node would otherwise read, change and write
 * back. */
static void set_topology(VirtioBlkConfig *config, const Node *node)
{
    uint32_t blocks = MAX(node_request_alignment(node) / config->blk_size, 1U);

    config->physical_block_exp = (uint8_t)MIN(log2_of(blocks), (unsigned)PHYSICAL_BLOCK_EXP_MAX);
    config->min_io_size = (uint16_t)(1U << config->physical_block_exp);
    config->opt_io_size = node->limits.opt_transfer / config->blk_size;
}

VirtioBlk *virtio_blk_new(const VirtioBlkOptions *options)
{
    VirtioBlk *blk = mem_new(VirtioBlk);
    uint32_t block_bytes = options->logical_block_bytes;

    assert(options->queue_size_max > 2 && options->queue_count > 0);
    blk->edge = options->edge;
    blk->block_bytes = block_bytes;
    blk->writable = options->writable;
    blk->writethrough = options->writethrough;
    blk->config = (VirtioBlkConfig){
        .size_max = SIZE_MAX_BYTES,
        .seg_max = options->queue_size_max - 2,
        .blk_size = block_bytes,
        .wce = !options->writethrough,
        .num_queues = (uint16_t)options->queue_count,
        .max_discard_sectors = RANGE_SECTORS_MAX,
        .max_discard_seg = RANGES_MAX,
        .discard_sector_alignment = block_bytes / VIRTIO_BLK_SECTOR_BYTES,
        .max_write_zeroes_sectors = RANGE_SECTORS_MAX,
        .max_write_zeroes_seg = RANGES_MAX,
        .write_zeroes_may_unmap = true,
    };
    set_topology(&blk->config, edge_node(options->edge));
    memcpy(blk->serial, options->serial, strnlen(options->serial, VIRTIO_BLK_SERIAL_BYTES));
    virtio_blk_resized(blk, node_size(edge_node(options->edge)));
    virtio_blk_set_features(blk, 0);
    return blk;
}

void virtio_blk_free(VirtioBlk *blk)
{
    free(blk);
}

uint64_t virtio_blk_features(const VirtioBlk *blk)
{
    return FEATURES | (blk->writable ? 0 : VIRTIO_BLK_FEATURE_RO);
}

/*
 * A driver that cannot flush believes that every answered write is durable, and one that knows the write
 * cache byte can switch the cache off (5.2.6.2).
 */
static void update_durable(VirtioBlk *blk)
{
    bool can_flush = blk->features & VIRTIO_BLK_FEATURE_FLUSH;

    atomic_store_explicit(
        &blk->durable, blk->writethrough || !can_flush || !blk->config.wce, memory_order_relaxed);
}

void virtio_blk_set_features(VirtioBlk *blk, uint64_t features)
{
    blk->features = features;
    update_durable(blk);
}

void virtio_blk_get_config(const VirtioBlk *blk, size_t offset, void *ret_data, size_t bytes)
{
    uint8_t space[VIRTIO_BLK_CONFIG_BYTES];
    VirtioBlkConfig config = blk->config;

    config.capacity = atomic_load_explicit(&blk->capacity, memory_order_relaxed);
    virtio_blk_config_encode(&config, space);
    memset(ret_data, 0, bytes);
    if (offset < sizeof(space))
        memcpy(ret_data, space + offset, MIN(bytes, sizeof(space) - offset));
}

int virtio_blk_set_config(VirtioBlk *blk, size_t offset, const void *data, size_t bytes)
{
    if (offset != VIRTIO_BLK_CONFIG_WCE || bytes != 1)
        return -EINVAL;
    blk->config.wce = *(const uint8_t *)data != 0;
    update_durable(blk);
    return 0;
}

void virtio_blk_resized(VirtioBlk *blk, uint64_t bytes)
{
    atomic_store_explicit(&blk->capacity, bytes / VIRTIO_BLK_SECTOR_BYTES, memory_order_relaxed);
}
