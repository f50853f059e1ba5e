/* SPDX-License-Identifier: Apache-2.0 */
/* Header, features, extensions and entries from arbitrary bytes. */
#include "base/io-slice.h"
#include "base/mem.h"
#include "proto/qcow2.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void walk(const uint8_t *area, size_t bytes)
{
    AUTO_ERROR Error err = ERROR_INIT;
    Qcow2Extension extension;
    size_t offset = 0;

    while (qcow2_extension_next(area, bytes, &offset, &extension, &err) == 1)
        (void)buffer_is_zero(extension.data, extension.bytes);
}

static void entries(const Qcow2Header *header, const uint8_t *data, size_t size)
{
    for (size_t at = 0; at + 16 <= size; at += 16) {
        uint64_t entry = get_be64(data + at), again;
        Qcow2Compressed c = qcow2_compressed_decode(entry, header->cluster_bits);

        (void)qcow2_entry_type(entry, header->version > 2, false);
        (void)qcow2_subcluster_type(entry, get_be64(data + at + 8), at / 16 % QCOW2_SUBCLUSTERS, false);
        if ((entry & QCOW2_COMPRESSED) && c.offset < QCOW2_MAX_HOST_OFFSET)
            (void)!qcow2_compressed_encode(c.offset, c.bytes, header->cluster_bits, &again);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    AUTO_ERROR Error err = ERROR_INIT;
    uint8_t again[QCOW2_HEADER_BYTES];
    Qcow2Header header;

    if (qcow2_header_decode(data, size, &header, &err) < 0)
        return 0;
    (void)qcow2_header_encode(&header, again);
    (void)qcow2_l1_entries_for(&header, header.size);
    if (header.header_bytes < size) {
        AUTO_ERROR Error ignored = ERROR_INIT;

        walk(data + header.header_bytes, size - header.header_bytes);
        (void)!qcow2_features_check(
            &header, data + header.header_bytes, size - header.header_bytes, &ignored);
    }
    if (qcow2_header_check(&header, &err) == 0)
        entries(&header, data, size);
    return 0;
}
