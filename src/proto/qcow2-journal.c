/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/qcow2-journal.h"

#include "base/limits.h"

static const char magic[8] = "GrnBmLog";

/* ---- Extension: version, bytes of the log, its offset, 8 reserved bytes ---- */

int qcow2_journal_ext_decode(const uint8_t *data, uint32_t bytes, unsigned cluster_bits, uint64_t *ret_offset)
{
    uint64_t offset;

    if (bytes != QCOW2_JOURNAL_EXT_BYTES || get_be32(data) != QCOW2_JOURNAL_VERSION ||
        get_be32(data + 4) != QCOW2_JOURNAL_BYTES || get_be64(data + 16))
        return -EINVAL;
    offset = get_be64(data + 8);
    if (!offset || !is_aligned(offset, UINT64_C(1) << cluster_bits) ||
        out_of_range(offset, QCOW2_JOURNAL_BYTES, LIMIT_NODE_BYTES))
        return -EINVAL;
    *ret_offset = offset;
    return 0;
}

void qcow2_journal_ext_encode(uint64_t offset, uint8_t *out)
{
    put_be32(out, QCOW2_JOURNAL_VERSION);
    put_be32(out + 4, QCOW2_JOURNAL_BYTES);
    put_be64(out + 8, offset);
    put_be64(out + 16, 0);
}

/* ---- Log ---- */

/* How many regions a disk has before they become larger, and how large they become for that. */
#define FEW_REGIONS 1024
#define MIDDLE_REGION_BITS 20

static uint64_t regions(uint64_t disk_bytes, unsigned bits)
{
    return div_round_up(disk_bytes, UINT64_C(1) << bits);
}

unsigned qcow2_journal_region_bits(uint64_t disk_bytes)
{
    unsigned bits = QCOW2_JOURNAL_MIN_REGION_BITS;

    while (regions(disk_bytes, bits) > (bits < MIDDLE_REGION_BITS ? FEW_REGIONS : QCOW2_JOURNAL_REGIONS))
        bits++;
    return bits;
}

int qcow2_journal_head_decode(const uint8_t *page, uint64_t disk_bytes, Qcow2JournalHead *ret_head)
{
    uint32_t bits = get_be32(page + 12);

    if (memcmp(page, magic, sizeof(magic)) != 0 || get_be32(page + 8) != QCOW2_JOURNAL_VERSION ||
        bits < QCOW2_JOURNAL_MIN_REGION_BITS || bits > QCOW2_JOURNAL_MAX_REGION_BITS ||
        get_be64(page + 16) != disk_bytes || regions(disk_bytes, bits) > QCOW2_JOURNAL_REGIONS)
        return -EINVAL;
    ret_head->region_bits = bits;
    ret_head->disk_bytes = disk_bytes;
    for (unsigned i = 0; i < QCOW2_JOURNAL_SLOTS; i++)
        ret_head->slots[i] = get_be64(page + QCOW2_JOURNAL_AT_SLOTS + (size_t)i * 8);
    return 0;
}

void qcow2_journal_head_encode(const Qcow2JournalHead *head, uint8_t *page)
{
    memset(page, 0, QCOW2_JOURNAL_AT_SLOTS);
    memcpy(page, magic, sizeof(magic));
    put_be32(page + 8, QCOW2_JOURNAL_VERSION);
    put_be32(page + 12, head->region_bits);
    put_be64(page + 16, head->disk_bytes);
    for (unsigned i = 0; i < QCOW2_JOURNAL_SLOTS; i++)
        put_be64(page + QCOW2_JOURNAL_AT_SLOTS + (size_t)i * 8, head->slots[i]);
}
