/* SPDX-License-Identifier: Apache-2.0 */
/* Input: cluster bits, an extension's data, then a directory or a page of the journal. Whatever decodes must
 * encode to what decodes the same. */
#include "base/mem.h"
#include "proto/qcow2-bitmap.h"
#include "proto/qcow2-journal.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool condition)
{
    if (!condition)
        abort();
}

static void again(const Qcow2BitmapEntry *entry)
{
    AUTO_ERROR Error err = ERROR_INIT;
    size_t bytes = qcow2_bitmap_entry_bytes(entry->name_bytes, 0), offset = 0;
    AUTO_FREE uint8_t *out = mem_zalloc(bytes);
    Qcow2BitmapEntry decoded;

    check(qcow2_bitmap_entry_encode(entry, out) == bytes);
    check(qcow2_bitmap_entry_next(out, bytes, &offset, &decoded, &err) == 1 && offset == bytes);
    check(decoded.table_offset == entry->table_offset && decoded.flags == entry->flags);
    check(memcmp(decoded.name, entry->name, entry->name_bytes) == 0);
}

static void walk(const uint8_t *directory, size_t bytes, unsigned cluster_bits)
{
    AUTO_ERROR Error err = ERROR_INIT;
    Qcow2BitmapEntry entry;
    size_t offset = 0;

    while (qcow2_bitmap_entry_next(directory, bytes, &offset, &entry, &err) == 1) {
        AUTO_ERROR Error ignored = ERROR_INIT;

        if (qcow2_bitmap_entry_check(&entry, cluster_bits, 10 << 20, &ignored) == 0)
            again(&entry);
        (void)qcow2_bitmap_cluster(entry.table_offset, cluster_bits);
    }
}

static void journal(const uint8_t *data, const uint8_t *page, size_t bytes, unsigned cluster_bits)
{
    uint8_t out[QCOW2_JOURNAL_PAGE_BYTES];
    Qcow2JournalHead head;
    uint64_t offset;

    if (qcow2_journal_ext_decode(data, QCOW2_JOURNAL_EXT_BYTES, cluster_bits, &offset) == 0) {
        qcow2_journal_ext_encode(offset, out);
        check(memcmp(out, data, QCOW2_JOURNAL_EXT_BYTES) == 0);
    }
    if (bytes >= sizeof(out) && qcow2_journal_head_decode(page, get_be64(page + 16), &head) == 0) {
        qcow2_journal_head_encode(&head, out);
        check(memcmp(out + QCOW2_JOURNAL_AT_SLOTS, page + QCOW2_JOURNAL_AT_SLOTS,
                  sizeof(out) - QCOW2_JOURNAL_AT_SLOTS) == 0);
        check(head.disk_bytes == 0 || (head.disk_bytes - 1) >> head.region_bits < QCOW2_JOURNAL_REGIONS);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    AUTO_ERROR Error err = ERROR_INIT;
    uint8_t out[QCOW2_BITMAPS_EXT_BYTES];
    Qcow2BitmapsExt ext;
    unsigned cluster_bits;

    if (size < 1 + sizeof(out))
        return 0;
    cluster_bits = 9 + data[0] % 13;
    if (qcow2_bitmaps_ext_decode(data + 1, sizeof(out), cluster_bits, &ext, &err) == 0) {
        qcow2_bitmaps_ext_encode(&ext, out);
        check(memcmp(out, data + 1, sizeof(out)) == 0);
    }
    journal(data + 1, data + 1 + sizeof(out), size - 1 - sizeof(out), cluster_bits);
    walk(data + 1 + sizeof(out), size - 1 - sizeof(out), cluster_bits);
    return 0;
}
