/* SPDX-License-Identifier: Apache-2.0 */
/* The virtio block device on the wire: encoding, decoding, and checks of requests. */
#include "proto/virtio-blk.h"

#include "base/endian.h"

#define RANGE_FLAG_UNMAP 1

void virtio_blk_config_encode(const VirtioBlkConfig *config, uint8_t out[VIRTIO_BLK_CONFIG_BYTES])
{
    memset(out, 0, VIRTIO_BLK_CONFIG_BYTES);
    put_le64(out, config->capacity);
    put_le32(out + 8, config->size_max);
    put_le32(out + 12, config->seg_max);
    put_le32(out + 20, config->blk_size);
    out[24] = config->physical_block_exp;
    put_le16(out + 26, config->min_io_size);
    put_le32(out + 28, config->opt_io_size);
    out[VIRTIO_BLK_CONFIG_WCE] = config->wce;
    put_le16(out + 34, config->num_queues);
    put_le32(out + 36, config->max_discard_sectors);
    put_le32(out + 40, config->max_discard_seg);
    put_le32(out + 44, config->discard_sector_alignment);
    put_le32(out + 48, config->max_write_zeroes_sectors);
    put_le32(out + 52, config->max_write_zeroes_seg);
    out[56] = config->write_zeroes_may_unmap;
}

VirtioBlkHeader virtio_blk_header_decode(const uint8_t in[VIRTIO_BLK_HEADER_BYTES])
{
    return (VirtioBlkHeader){.type = get_le32(in), .sector = get_le64(in + 8)};
}

const char *virtio_blk_type_name(uint32_t type)
{
    switch (type) {
    case VIRTIO_BLK_TYPE_IN:
        return "IN";
    case VIRTIO_BLK_TYPE_OUT:
        return "OUT";
    case VIRTIO_BLK_TYPE_FLUSH:
        return "FLUSH";
    case VIRTIO_BLK_TYPE_GET_ID:
        return "GET_ID";
    case VIRTIO_BLK_TYPE_DISCARD:
        return "DISCARD";
    case VIRTIO_BLK_TYPE_WRITE_ZEROES:
        return "WRITE_ZEROES";
    }
    return "unknown";
}

/* Whole sectors that exist and begin where a logical block does. */
static bool is_within(const VirtioBlkRules *rules, uint64_t sector, uint64_t bytes)
{
    return is_aligned(bytes, VIRTIO_BLK_SECTOR_BYTES) &&
           is_aligned(sector, rules->block_bytes / VIRTIO_BLK_SECTOR_BYTES) &&
           !out_of_range(sector, bytes / VIRTIO_BLK_SECTOR_BYTES, rules->capacity);
}

VirtioBlkStatus virtio_blk_check_io(
    const VirtioBlkRules *rules, const VirtioBlkHeader *header, uint64_t bytes, uint64_t *ret_offset)
{
    if (UNLIKELY(header->type == VIRTIO_BLK_TYPE_OUT && !rules->writable))
        return VIRTIO_BLK_STATUS_IOERR;
    if (UNLIKELY(!is_within(rules, header->sector, bytes)))
        return VIRTIO_BLK_STATUS_IOERR;
    *ret_offset = header->sector * VIRTIO_BLK_SECTOR_BYTES;
    return VIRTIO_BLK_STATUS_OK;
}

VirtioBlkStatus virtio_blk_range_decode(const VirtioBlkRules *rules, uint32_t type,
    const uint8_t in[VIRTIO_BLK_RANGE_BYTES], VirtioBlkRange *ret_range)
{
    uint64_t sector = get_le64(in), bytes = (uint64_t)get_le32(in + 8) * VIRTIO_BLK_SECTOR_BYTES;
    uint32_t flags = get_le32(in + 12);

    if (!rules->writable)
        return VIRTIO_BLK_STATUS_IOERR;
    /* A discard with the flag, too, is to be answered so (5.2.6.2). */
    if (flags & ~(type == VIRTIO_BLK_TYPE_WRITE_ZEROES ? (uint32_t)RANGE_FLAG_UNMAP : 0))
        return VIRTIO_BLK_STATUS_UNSUPP;
    if (!is_within(rules, sector, bytes))
        return VIRTIO_BLK_STATUS_IOERR;
    *ret_range = (VirtioBlkRange){
        .offset = sector * VIRTIO_BLK_SECTOR_BYTES, .bytes = bytes, .unmap = flags & RANGE_FLAG_UNMAP};
    return VIRTIO_BLK_STATUS_OK;
}
