/* SPDX-License-Identifier: Apache-2.0 */
#include "base/mem.h"
#include "proto/qcow2.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

/* A header that every check accepts. */
static Qcow2Header sound_header(void)
{
    return (Qcow2Header){.version = 3,
        .cluster_bits = 16,
        .size = 1 << 30,
        .l1_entries = 2,
        .l1_offset = 0x30000,
        .rt_offset = 0x10000,
        .rt_clusters = 1,
        .refcount_order = 4};
}

static void assert_refused(const Qcow2Header *header, const char *text)
{
    AUTO_ERROR Error err = ERROR_INIT;
    uint8_t bytes[QCOW2_HEADER_BYTES];
    Qcow2Header decoded;
    size_t length = qcow2_header_encode(header, bytes);
    int r = qcow2_header_decode(bytes, length, &decoded, &err);

    if (r == 0)
        r = qcow2_header_check(&decoded, &err);
    assert_true(r < 0);
    assert_string_equal(err.message, text);
}

/* Field by field: what is between the fields is undefined. */
static void assert_same_header(const Qcow2Header *a, const Qcow2Header *b)
{
    assert_int_equal(a->version, b->version);
    assert_int_equal(a->backing_offset, b->backing_offset);
    assert_int_equal(a->backing_bytes, b->backing_bytes);
    assert_int_equal(a->cluster_bits, b->cluster_bits);
    assert_int_equal(a->size, b->size);
    assert_int_equal(a->crypt_method, b->crypt_method);
    assert_int_equal(a->l1_entries, b->l1_entries);
    assert_int_equal(a->l1_offset, b->l1_offset);
    assert_int_equal(a->rt_offset, b->rt_offset);
    assert_int_equal(a->rt_clusters, b->rt_clusters);
    assert_int_equal(a->snapshots, b->snapshots);
    assert_int_equal(a->snapshots_offset, b->snapshots_offset);
    assert_int_equal(a->incompatible, b->incompatible);
    assert_int_equal(a->compatible, b->compatible);
    assert_int_equal(a->autoclear, b->autoclear);
    assert_int_equal(a->refcount_order, b->refcount_order);
    assert_int_equal(a->header_bytes, b->header_bytes);
    assert_int_equal(a->compression_type, b->compression_type);
}

static void test_header_round_trip(void **state)
{
    AUTO_ERROR Error err = ERROR_INIT;
    Qcow2Header header = sound_header(), decoded;
    uint8_t bytes[QCOW2_HEADER_BYTES];

    header.incompatible = QCOW2_INCOMPATIBLE_COMPRESSION | QCOW2_INCOMPATIBLE_EXTENDED_L2;
    header.compression_type = QCOW2_COMPRESSION_ZSTD;
    header.l1_entries = 4;
    header.header_bytes = QCOW2_HEADER_BYTES;
    assert_int_equal(qcow2_header_encode(&header, bytes), QCOW2_HEADER_BYTES);
    assert_int_equal(qcow2_header_decode(bytes, sizeof(bytes), &decoded, &err), 0);
    assert_same_header(&header, &decoded);
    assert_int_equal(qcow2_header_check(&decoded, &err), 0);
}

static void test_header_refusals(void **state)
{
    Qcow2Header h;

#define REFUSED(change, text)     \
    do {                          \
        h = sound_header();       \
        change;                   \
        assert_refused(&h, text); \
    } while (0)
    REFUSED(h.cluster_bits = 8, "Unsupported cluster size: 2^8");
    REFUSED(h.cluster_bits = 22, "Unsupported cluster size: 2^22");
    REFUSED(h.cluster_bits = UINT32_MAX, "Unsupported cluster size: 2^4294967295");
    REFUSED(h.refcount_order = 7, "Reference count entry width too large; may not exceed 64 bits");
    REFUSED(h.rt_clusters = 0, "Image does not contain a reference count table");
    REFUSED(h.rt_clusters = UINT32_MAX, "Reference count table too large");
    REFUSED(h.rt_offset = 0x10001, "Reference count table offset invalid");
    REFUSED(h.rt_offset = UINT64_MAX & ~0xffffULL, "Reference count table offset invalid");
    REFUSED(h.l1_entries = 1, "L1 table is too small");
    REFUSED(h.l1_entries = UINT32_MAX, "Active L1 table too large");
    REFUSED(h.l1_offset = 0x30200, "Active L1 table offset invalid");
    REFUSED(h.snapshots = QCOW2_MAX_SNAPSHOTS + 1, "Snapshot table too large");
    REFUSED(h.backing_offset = 0x10001, "Invalid backing file offset");
    REFUSED((h.backing_offset = 1024, h.backing_bytes = 1024), "Backing file name too long");
    REFUSED(h.size = UINT64_MAX, "Image is too big");
    REFUSED(h.compression_type = 1, "qcow2: Compression type incompatible feature bit must be set");
#undef REFUSED
}

static void test_short_headers(void **state)
{
    Qcow2Header header = sound_header(), decoded;
    uint8_t bytes[QCOW2_HEADER_BYTES];

    qcow2_header_encode(&header, bytes);
    for (size_t length = 0; length < QCOW2_HEADER_V3_BYTES; length++) {
        AUTO_ERROR Error err = ERROR_INIT;

        assert_true(qcow2_header_decode(bytes, length, &decoded, &err) < 0);
    }
}

static void test_features(void **state)
{
    AUTO_ERROR Error err = ERROR_INIT;
    uint8_t area[128] = {0}, entry[48] = {0, 40};
    Qcow2Header header = sound_header();

    strcpy((char *)entry + 2, "spline reticulation");
    assert_true(
        qcow2_extension_encode(area, sizeof(area), QCOW2_EXT_FEATURE_NAMES, entry, sizeof(entry)) > 0);
    header.incompatible = 0x1f;
    assert_int_equal(qcow2_features_check(&header, area, sizeof(area), &err), 0);
    header.incompatible |= UINT64_C(1) << 40 | UINT64_C(1) << 63;
    assert_true(qcow2_features_check(&header, area, sizeof(area), &err) < 0);
    assert_string_equal(err.message,
        "Unsupported qcow2 feature(s): spline reticulation, Unknown incompatible feature: 8000000000000000");
}

static void test_extension_overrun(void **state)
{
    AUTO_ERROR Error err = ERROR_INIT;
    uint8_t area[64] = {0};
    Qcow2Extension extension;
    size_t offset = 0;

    put_be32(area, QCOW2_EXT_BACKING_FORMAT);
    put_be32(area + 4, 57);
    assert_int_equal(qcow2_extension_next(area, sizeof(area), &offset, &extension, &err), -EINVAL);
    assert_string_equal(err.message, "Header extension too large");
}

/* Every width: each index holds its own value, neighbours are not touched. */
static void test_refcount_widths(void **state)
{
    for (unsigned order = 0; order <= 6; order++) {
        uint8_t block[512] = {0};
        uint32_t entries = 512 * 8 >> order;
        uint64_t max = qcow2_refcount_max(order);

        assert_int_equal(qcow2_refcount_find_free(block, order, 3, entries), 3);
        for (uint32_t i = 0; i < entries; i++)
            qcow2_refcount_set(block, order, i, (i * 7 + 1) & max);
        for (uint32_t i = 0; i < entries; i++)
            assert_true(qcow2_refcount_get(block, order, i) == ((i * 7 + 1) & max));
        memset(block, 0xff, sizeof(block));
        qcow2_refcount_set(block, order, entries / 2 + 1, 0);
        assert_true(qcow2_refcount_get(block, order, entries / 2) == max);
        assert_true(qcow2_refcount_get(block, order, entries / 2 + 2) == max);
        assert_int_equal(qcow2_refcount_find_free(block, order, 0, entries), entries / 2 + 1);
    }
}

static void test_refcount_bit_order(void **state)
{
    uint8_t block[2] = {0};

    qcow2_refcount_set(
        block, 0, 0, 1); /* "refcount_bits < 8: bit 0 is the least significant bit of byte 0" */
    qcow2_refcount_set(block, 2, 3, 0xa);
    assert_int_equal(block[0], 0x01);
    assert_int_equal(block[1], 0xa0);
}

static void test_entry_types(void **state)
{
    assert_int_equal(qcow2_entry_type(0, true, false), QCOW2_TYPE_UNALLOCATED);
    assert_int_equal(qcow2_entry_type(QCOW2_ZERO, true, false), QCOW2_TYPE_ZERO);
    assert_int_equal(qcow2_entry_type(QCOW2_ZERO, false, false), QCOW2_TYPE_INVALID);
    assert_int_equal(qcow2_entry_type(0x10000 | QCOW2_ZERO, true, false), QCOW2_TYPE_ZERO_HOST);
    assert_int_equal(qcow2_entry_type(0x10000 | QCOW2_COPIED, true, false), QCOW2_TYPE_NORMAL);
    assert_int_equal(qcow2_entry_type(QCOW2_COPIED, true, true), QCOW2_TYPE_NORMAL);
    assert_int_equal(qcow2_entry_type(QCOW2_COMPRESSED | 1, true, false), QCOW2_TYPE_COMPRESSED);
    assert_int_equal(qcow2_subcluster_type(0x10000, QCOW2_SUB_ALLOCATED(5), 5, false), QCOW2_TYPE_NORMAL);
    assert_int_equal(
        qcow2_subcluster_type(0x10000, QCOW2_SUB_ALLOCATED(5), 6, false), QCOW2_TYPE_UNALLOCATED_HOST);
    assert_int_equal(qcow2_subcluster_type(0, QCOW2_SUB_ALLOCATED(5), 5, false), QCOW2_TYPE_INVALID);
    assert_int_equal(qcow2_subcluster_type(0, QCOW2_SUB_ZERO(31), 31, false), QCOW2_TYPE_ZERO);
    assert_int_equal(qcow2_subcluster_type(0x10000, QCOW2_SUB_ZERO(1) | QCOW2_SUB_ALLOCATED(1), 1, false),
        QCOW2_TYPE_INVALID);
}

static void test_compressed_descriptors(void **state)
{
    for (unsigned bits = QCOW2_MIN_CLUSTER_BITS; bits <= QCOW2_MAX_CLUSTER_BITS; bits++) {
        for (uint32_t bytes = 1; bytes <= 1u << bits; bytes = bytes * 3 + 1) {
            uint64_t offset = 0x123456789 + bytes, entry;
            Qcow2Compressed c;

            assert_int_equal(qcow2_compressed_encode(offset, bytes, bits, &entry), 0);
            c = qcow2_compressed_decode(entry, bits);
            assert_true(c.offset == offset && c.bytes >= bytes && c.bytes < bytes + 512);
            assert_int_equal((c.offset + c.bytes) % 512, 0);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_header_round_trip),
        cmocka_unit_test(test_header_refusals),
        cmocka_unit_test(test_short_headers),
        cmocka_unit_test(test_features),
        cmocka_unit_test(test_extension_overrun),
        cmocka_unit_test(test_refcount_widths),
        cmocka_unit_test(test_refcount_bit_order),
        cmocka_unit_test(test_entry_types),
        cmocka_unit_test(test_compressed_descriptors),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
