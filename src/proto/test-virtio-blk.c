/* SPDX-License-Identifier: Apache-2.0 */
/* The virtio block device on the wire, against bytes written down by hand. */
#include "proto/virtio-blk.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static void test_config(void **state)
{
    static const uint8_t expected[VIRTIO_BLK_CONFIG_BYTES] = {8, 7, 6, 5, 4, 3, 2, 1, /* capacity */
        0x11, 0x12, 0x13, 0x14, 0x21, 0x22, 0x23, 0x24,                               /* size_max, seg_max */
        0, 0, 0, 0,                                                                   /* geometry */
        0, 0x10, 0, 0, 3, 0, 0x31, 0x32, 0x41, 0x42, 0x43, 0x44,                      /* block, topology */
        1, 0, 0x51, 0x52,                                                             /* wce, num_queues */
        1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3,                                           /* discard */
        4, 4, 4, 4, 5, 5, 5, 5, 1};
    const VirtioBlkConfig config = {
        .capacity = UINT64_C(0x0102030405060708),
        .size_max = 0x14131211,
        .seg_max = 0x24232221,
        .blk_size = 4096,
        .physical_block_exp = 3,
        .min_io_size = 0x3231,
        .opt_io_size = 0x44434241,
        .wce = true,
        .num_queues = 0x5251,
        .max_discard_sectors = 0x01010101,
        .max_discard_seg = 0x02020202,
        .discard_sector_alignment = 0x03030303,
        .max_write_zeroes_sectors = 0x04040404,
        .max_write_zeroes_seg = 0x05050505,
        .write_zeroes_may_unmap = true,
    };
    uint8_t out[VIRTIO_BLK_CONFIG_BYTES];

    memset(out, 0xff, sizeof(out));
    virtio_blk_config_encode(&config, out);
    assert_memory_equal(out, expected, sizeof(out));
    assert_int_equal(out[VIRTIO_BLK_CONFIG_WCE], 1);
}

static void test_header(void **state)
{
    static const uint8_t bytes[VIRTIO_BLK_HEADER_BYTES] = {
        4, 3, 2, 1, 0xff, 0xff, 0xff, 0xff, 8, 7, 6, 5, 4, 3, 2, 1};
    VirtioBlkHeader header = virtio_blk_header_decode(bytes);

    assert_int_equal(header.type, 0x01020304);
    assert_true(header.sector == UINT64_C(0x0102030405060708));
    assert_string_equal(virtio_blk_type_name(VIRTIO_BLK_TYPE_WRITE_ZEROES), "WRITE_ZEROES");
    assert_string_equal(virtio_blk_type_name(header.type), "unknown");
}

static VirtioBlkStatus check(VirtioBlkRules rules, uint32_t type, uint64_t sector, uint64_t bytes)
{
    const VirtioBlkHeader header = {.type = type, .sector = sector};
    uint64_t offset = 1;
    VirtioBlkStatus status = virtio_blk_check_io(&rules, &header, bytes, &offset);

    assert_true(offset == (status == VIRTIO_BLK_STATUS_OK ? sector * 512 : 1));
    return status;
}

static void test_reads_and_writes(void **state)
{
    VirtioBlkRules rules = {.capacity = 1001, .block_bytes = 4096, .writable = true};

    assert_int_equal(check(rules, VIRTIO_BLK_TYPE_IN, 0, 1001 * 512), VIRTIO_BLK_STATUS_OK);
    assert_int_equal(check(rules, VIRTIO_BLK_TYPE_IN, 1000, 512), VIRTIO_BLK_STATUS_OK);
    assert_int_equal(check(rules, VIRTIO_BLK_TYPE_IN, 1000, 0), VIRTIO_BLK_STATUS_OK);
    assert_int_equal(check(rules, VIRTIO_BLK_TYPE_IN, 1000, 1024), VIRTIO_BLK_STATUS_IOERR);
    assert_int_equal(check(rules, VIRTIO_BLK_TYPE_IN, 1008, 0), VIRTIO_BLK_STATUS_IOERR);
    assert_int_equal(check(rules, VIRTIO_BLK_TYPE_IN, 4, 512), VIRTIO_BLK_STATUS_IOERR);
    assert_int_equal(check(rules, VIRTIO_BLK_TYPE_IN, 0, 511), VIRTIO_BLK_STATUS_IOERR);
    assert_int_equal(check(rules, VIRTIO_BLK_TYPE_IN, UINT64_MAX - 7, 4096), VIRTIO_BLK_STATUS_IOERR);
    assert_int_equal(check(rules, VIRTIO_BLK_TYPE_IN, UINT64_C(1) << 55, 4096), VIRTIO_BLK_STATUS_IOERR);
    assert_int_equal(check(rules, VIRTIO_BLK_TYPE_IN, 0, UINT64_MAX - 511), VIRTIO_BLK_STATUS_IOERR);
    assert_int_equal(check(rules, VIRTIO_BLK_TYPE_OUT, 8, 512), VIRTIO_BLK_STATUS_OK);
    rules.writable = false;
    assert_int_equal(check(rules, VIRTIO_BLK_TYPE_OUT, 8, 512), VIRTIO_BLK_STATUS_IOERR);
    assert_int_equal(check(rules, VIRTIO_BLK_TYPE_IN, 8, 512), VIRTIO_BLK_STATUS_OK);
}

static void test_ranges(void **state)
{
    VirtioBlkRules rules = {.capacity = UINT64_C(1) << 40, .block_bytes = 512, .writable = true};
    uint8_t bytes[VIRTIO_BLK_RANGE_BYTES] = {3, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 1};
    VirtioBlkRange range;

    assert_int_equal(
        virtio_blk_range_decode(&rules, VIRTIO_BLK_TYPE_WRITE_ZEROES, bytes, &range), VIRTIO_BLK_STATUS_OK);
    assert_true(range.offset == 3 * 512 && range.bytes == UINT32_MAX * UINT64_C(512) && range.unmap);
    assert_int_equal(
        virtio_blk_range_decode(&rules, VIRTIO_BLK_TYPE_DISCARD, bytes, &range), VIRTIO_BLK_STATUS_UNSUPP);
    bytes[12] = 0;
    assert_int_equal(
        virtio_blk_range_decode(&rules, VIRTIO_BLK_TYPE_DISCARD, bytes, &range), VIRTIO_BLK_STATUS_OK);
    assert_false(range.unmap);
    bytes[15] = 0x80;
    assert_int_equal(virtio_blk_range_decode(&rules, VIRTIO_BLK_TYPE_WRITE_ZEROES, bytes, &range),
        VIRTIO_BLK_STATUS_UNSUPP);
    bytes[15] = 0;
    bytes[5] = 1; /* beyond the end */
    assert_int_equal(
        virtio_blk_range_decode(&rules, VIRTIO_BLK_TYPE_DISCARD, bytes, &range), VIRTIO_BLK_STATUS_IOERR);
    bytes[5] = 0;
    rules.block_bytes = 4096;
    assert_int_equal(
        virtio_blk_range_decode(&rules, VIRTIO_BLK_TYPE_DISCARD, bytes, &range), VIRTIO_BLK_STATUS_IOERR);
    bytes[0] = 8;
    rules.writable = false;
    assert_int_equal(
        virtio_blk_range_decode(&rules, VIRTIO_BLK_TYPE_DISCARD, bytes, &range), VIRTIO_BLK_STATUS_IOERR);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_config),
        cmocka_unit_test(test_header),
        cmocka_unit_test(test_reads_and_writes),
        cmocka_unit_test(test_ranges),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
