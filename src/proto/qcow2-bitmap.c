/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/qcow2-bitmap.h"

#include "base/limits.h"

#include <inttypes.h>

/* ---- Extension ---- */

int qcow2_bitmaps_ext_decode(
    const uint8_t *data, uint32_t bytes, unsigned cluster_bits, Qcow2BitmapsExt *ret_ext, Error *err)
{
    Qcow2BitmapsExt ext;

    if (bytes != QCOW2_BITMAPS_EXT_BYTES)
        return err_set(err, -EINVAL, "bitmaps_ext: Invalid extension length");
    ext = (Qcow2BitmapsExt){.count = get_be32(data),
        .directory_bytes = get_be64(data + 8),
        .directory_offset = get_be64(data + 16)};
    if (get_be32(data + 4))
        return err_set(err, -EINVAL, "bitmaps_ext: Reserved field is not zero");
    if (ext.count > QCOW2_MAX_BITMAPS)
        return err_set(err, -EINVAL,
            "bitmaps_ext: Image has %" PRIu32 " bitmaps, exceeding the QEMU supported maximum of %u",
            ext.count, QCOW2_MAX_BITMAPS);
    if (ext.count == 0)
        return err_set(err, -EINVAL, "found bitmaps extension with zero bitmaps");
    if (!is_aligned(ext.directory_offset, UINT64_C(1) << cluster_bits) || ext.directory_offset == 0 ||
        ext.directory_offset > LIMIT_NODE_BYTES - QCOW2_MAX_BITMAP_DIRECTORY_BYTES)
        return err_set(err, -EINVAL, "bitmaps_ext: invalid bitmap directory offset");
    if (ext.directory_bytes > QCOW2_MAX_BITMAP_DIRECTORY_BYTES)
        return err_set(err, -EINVAL,
            "bitmaps_ext: bitmap directory size (%" PRIu64 ") exceeds the maximum supported size (%u)",
            ext.directory_bytes, QCOW2_MAX_BITMAP_DIRECTORY_BYTES);
    if (!ext.directory_bytes)
        return err_set(err, -EINVAL, "Requested bitmap directory size is zero");
    *ret_ext = ext;
    return 0;
}

void qcow2_bitmaps_ext_encode(const Qcow2BitmapsExt *ext, uint8_t *out)
{
    put_be32(out, ext->count);
    put_be32(out + 4, 0);
    put_be64(out + 8, ext->directory_bytes);
    put_be64(out + 16, ext->directory_offset);
}

/* ---- Directory ---- */

size_t qcow2_bitmap_entry_bytes(uint32_t name_bytes, uint32_t extra_bytes)
{
    return align_up((size_t)QCOW2_BITMAP_ENTRY_BYTES + extra_bytes + name_bytes, 8);
}

int qcow2_bitmap_entry_next(
    const uint8_t *directory, size_t bytes, size_t *offset, Qcow2BitmapEntry *ret_entry, Error *err)
{
    const uint8_t *at = directory + *offset;
    size_t room = bytes - *offset;
    Qcow2BitmapEntry entry;

    if (!room)
        return 0;
    if (room < QCOW2_BITMAP_ENTRY_BYTES)
        return err_set(err, -EINVAL, "Broken bitmap directory");
    entry = (Qcow2BitmapEntry){.table_offset = get_be64(at),
        .table_entries = get_be32(at + 8),
        .flags = get_be32(at + QCOW2_BITMAP_AT_FLAGS),
        .type = at[16],
        .granularity_bits = at[17],
        .name_bytes = get_be16(at + 18),
        .extra_bytes = get_be32(at + 20)};
    if (entry.extra_bytes > room || qcow2_bitmap_entry_bytes(entry.name_bytes, entry.extra_bytes) > room)
        return err_set(err, -EINVAL, "Broken bitmap directory");
    entry.name = (const char *)at + QCOW2_BITMAP_ENTRY_BYTES + entry.extra_bytes;
    *offset += qcow2_bitmap_entry_bytes(entry.name_bytes, entry.extra_bytes);
    *ret_entry = entry;
    return 1;
}

static bool is_sound(const Qcow2BitmapEntry *entry, unsigned cluster_bits, uint64_t disk_bytes)
{
    uint64_t data = (uint64_t)entry->table_entries << cluster_bits;

    if (!entry->table_entries || entry->table_entries > QCOW2_MAX_BITMAP_TABLE_ENTRIES ||
        !entry->table_offset || !is_aligned(entry->table_offset, UINT64_C(1) << cluster_bits) ||
        out_of_range(entry->table_offset, entry->table_entries * UINT64_C(8), LIMIT_NODE_BYTES))
        return false;
    if (entry->granularity_bits < QCOW2_MIN_BITMAP_GRANULARITY_BITS ||
        entry->granularity_bits > QCOW2_MAX_BITMAP_GRANULARITY_BITS)
        return false;
    if (!entry->name_bytes || entry->name_bytes > QCOW2_MAX_BITMAP_NAME_BYTES ||
        memchr(entry->name, 0, entry->name_bytes))
        return false;
    if ((entry->flags & ~(QCOW2_BITMAP_IN_USE | QCOW2_BITMAP_AUTO)) || entry->type != QCOW2_BITMAP_TYPE_DIRTY)
        return false;
    return data <= QCOW2_MAX_BITMAP_BYTES &&
           ((entry->flags & QCOW2_BITMAP_IN_USE) ||
               data >= qcow2_bitmap_bytes_for(disk_bytes, entry->granularity_bits));
}

int qcow2_bitmap_entry_check(
    const Qcow2BitmapEntry *entry, unsigned cluster_bits, uint64_t disk_bytes, Error *err)
{
    if (entry->extra_bytes)
        return err_set(err, -EINVAL, "Bitmap extra data is not supported");
    if (!is_sound(entry, cluster_bits, disk_bytes))
        return err_set(err, -EINVAL, "Bitmap '%.*s' doesn't satisfy the constraints",
            (int)MIN(entry->name_bytes, QCOW2_MAX_BITMAP_NAME_BYTES), entry->name);
    return 0;
}

size_t qcow2_bitmap_entry_encode(const Qcow2BitmapEntry *entry, uint8_t *out)
{
    size_t bytes = qcow2_bitmap_entry_bytes(entry->name_bytes, 0);

    memset(out, 0, bytes);
    put_be64(out, entry->table_offset);
    put_be32(out + 8, entry->table_entries);
    put_be32(out + QCOW2_BITMAP_AT_FLAGS, entry->flags);
    out[16] = entry->type;
    out[17] = entry->granularity_bits;
    put_be16(out + 18, entry->name_bytes);
    memcpy(out + QCOW2_BITMAP_ENTRY_BYTES, entry->name, entry->name_bytes);
    return bytes;
}

/* ---- Table ---- */

Qcow2BitmapCluster qcow2_bitmap_cluster(uint64_t entry, unsigned cluster_bits)
{
    uint64_t offset = entry & QCOW2_BITMAP_OFFSET_MASK, rest = entry & ~QCOW2_BITMAP_OFFSET_MASK;

    if (!offset)
        return rest == 0                         ? QCOW2_BITMAP_ZEROES
               : rest == QCOW2_BITMAP_ENTRY_ONES ? QCOW2_BITMAP_ONES
                                                 : QCOW2_BITMAP_INVALID;
    /* Bit 0 is reserved where there is an offset. */
    return rest || !is_aligned(offset, UINT64_C(1) << cluster_bits) ? QCOW2_BITMAP_INVALID
                                                                    : QCOW2_BITMAP_DATA;
}

uint64_t qcow2_bitmap_bytes_for(uint64_t disk_bytes, unsigned granularity_bits)
{
    return div_round_up(div_round_up(disk_bytes, UINT64_C(1) << granularity_bits), 8);
}

uint64_t qcow2_bitmap_entries_for(uint64_t disk_bytes, unsigned granularity_bits, unsigned cluster_bits)
{
    return div_round_up(qcow2_bitmap_bytes_for(disk_bytes, granularity_bits), UINT64_C(1) << cluster_bits);
}
