/* SPDX-License-Identifier: Apache-2.0 */
/* The virtio block device: configuration, every request in many layouts, errors and violations. */
#include "virtio/test-blk-driver.h"

/* ---- Configuration ---- */

LOOP_TEST(test_configuration)
{
    uint8_t space[64], wce;

    set_up(false, 4096);
    assert_true(virtio_blk_features(blk) == UINT64_C(0x531007e66));
    memset(space, 0xff, sizeof(space));
    virtio_blk_get_config(blk, 0, space, sizeof(space));
    assert_true(get_le64(space) == DISK_BYTES / 512);
    assert_int_equal(get_le32(space + 12), 126);
    assert_int_equal(get_le32(space + 20), 4096);
    assert_int_equal(space[32], 1);
    assert_int_equal(get_le16(space + 34), QUEUES);
    assert_int_equal(get_le32(space + 44), 8);
    assert_int_equal(get_le32(space + 60), 0);
    virtio_blk_get_config(blk, 100, space, 1);
    assert_int_equal(space[0], 0);
    wce = 0;
    assert_int_equal(virtio_blk_set_config(blk, 31, space, 1), -EINVAL);
    assert_int_equal(virtio_blk_set_config(blk, 32, space, 2), -EINVAL);
    assert_int_equal(virtio_blk_set_config(blk, 32, &wce, 1), 0);
    virtio_blk_get_config(blk, 32, &wce, 1);
    assert_int_equal(wce, 0);
    virtio_blk_resized(blk, MIB);
    virtio_blk_get_config(blk, 0, space, 8);
    assert_true(get_le64(space) == MIB / 512);
    tear_down();
    return 0;
}

/* ---- Requests ---- */

static void write_and_read(const Layout *layout, uint64_t sector, size_t bytes)
{
    static uint8_t written[65536], seen[65536], before[DISK_BYTES];
    size_t offset = sector * 512;

    memcpy(before, disk, sizeof(disk));
    for (size_t i = 0; i < bytes; i++)
        written[i] = (uint8_t)(i ^ (i >> 8) ^ sector);
    assert_int_equal(request(&rings[0], layout, (Call){1, sector, written, bytes, NULL, 0}), 0);
    memcpy(before + offset, written, bytes);
    assert_memory_equal(disk, before, sizeof(disk));
    assert_int_equal(request(&rings[0], layout, (Call){0, sector, NULL, 0, seen, bytes}), 0);
    assert_memory_equal(seen, written, bytes);
}

LOOP_TEST(test_layouts)
{
    static const size_t sizes[] = {0, 512, 4096, 8192, 20480, 65536};

    set_up(true, 512);
    start(&rings[0]);
    for (size_t i = 0; i < ARRAY_SIZE(layouts); i++) {
        for (size_t k = 0; k < ARRAY_SIZE(sizes); k++) {
            slowness = k % 3;
            write_and_read(&layouts[i], i * 100 + k, sizes[k]);
        }
    }
    tear_down();
    return 0;
}

LOOP_TEST(test_serial)
{
    char serial[24];

    set_up(true, 512);
    start(&rings[0]);
    for (size_t i = 0; i < ARRAY_SIZE(layouts); i++) {
        assert_int_equal(request(&rings[0], &layouts[i], (Call){8, 0, NULL, 0, serial, 20}), 0);
        assert_memory_equal(serial, "12345678901234567890", 20);
    }
    assert_int_equal(request(&rings[0], &layouts[0], (Call){8, 0, NULL, 0, serial, 24}), 0);
    assert_memory_equal(serial, "12345678901234567890\xee", 21);
    assert_int_equal(request(&rings[0], &layouts[0], (Call){8, 0, NULL, 0, serial, 5}), 0);
    assert_memory_equal(serial, "12345", 5);
    tear_down();
    return 0;
}

static int ranges(uint32_t type, unsigned count, uint64_t sector, uint32_t sectors, uint32_t flags)
{
    uint8_t wire[257 * 16];

    for (unsigned i = 0; i < count; i++) {
        put_le64(wire + i * 16, sector + i * 2 * sectors);
        put_le32(wire + i * 16 + 8, sectors);
        put_le32(wire + i * 16 + 12, flags);
    }
    return request(&rings[0], &layouts[3], (Call){type, 77, wire, count * 16, NULL, 0});
}

LOOP_TEST(test_discard_and_write_zeroes)
{
    static uint8_t expected[DISK_BYTES];

    set_up(true, 512);
    start(&rings[0]);
    memcpy(expected, disk, sizeof(disk));
    assert_int_equal(ranges(11, 256, 8, 4, 0), 0);
    assert_int_equal(discards, 256);
    assert_memory_equal(disk, expected, sizeof(disk));
    for (unsigned i = 0; i < 200; i++)
        memset(expected + (8 + i * 6) * 512, 0, 3 * 512);
    assert_int_equal(ranges(13, 200, 8, 3, 1), 0);
    assert_memory_equal(disk, expected, sizeof(disk));
    assert_int_equal(unmaps, 200);
    assert_int_equal(ranges(13, 1, 0, 8192, 0), 0);
    assert_int_equal(unmaps, 200);
    assert_true(buffer_is_zero(disk, sizeof(disk)));
    assert_int_equal(ranges(13, 257, 8, 1, 0), 2);
    assert_int_equal(ranges(11, 1, 8, 1, 1), 2);
    assert_int_equal(ranges(13, 1, 8, 1, 2), 2);
    assert_int_equal(ranges(13, 0, 8, 1, 0), 1);
    assert_int_equal(simple(13, 0, 15, 0), 1);
    assert_int_equal(ranges(13, 1, 1, 8192, 0), 1);
    assert_int_equal(ranges(11, 1, UINT64_MAX, 1, 0), 1);
    discards = 0;
    assert_int_equal(ranges(11, 100, 8000, 1, 0), 1); /* the last ones lie behind the end */
    assert_int_equal(discards, 0);
    tear_down();
    return 0;
}

LOOP_TEST(test_refused_requests)
{
    set_up(true, 4096);
    start(&rings[0]);
    assert_int_equal(simple(0, 8192, 0, 512), 1);
    assert_int_equal(simple(0, 8184, 0, 8192), 1);
    assert_int_equal(simple(0, UINT64_MAX / 512, 0, 512), 1);
    assert_int_equal(simple(0, 1, 0, 512), 1);
    assert_int_equal(simple(0, 8, 0, 513), 1);
    assert_int_equal(simple(1, 8, 100, 0), 1);
    assert_int_equal(simple(0, 8, 0, 512), 0);
    assert_int_equal(simple(2, 0, 512, 512), 2);
    assert_int_equal(simple(0x80000000, 8, 0, 512), 2);
    assert_int_equal(simple(0xffffffff, 0, 0, 0), 2);
    assert_int_equal(simple(1, 8, 512, 0), 0);
    failing = -EIO;
    assert_int_equal(simple(0, 8, 0, 512), 1);
    assert_int_equal(simple(1, 8, 512, 0), 1);
    assert_int_equal(simple(4, 0, 0, 0), 1);
    tear_down();
    set_up(false, 512);
    start(&rings[0]);
    assert_int_equal(simple(1, 8, 512, 0), 1);
    assert_int_equal(ranges(11, 1, 8, 1, 0), 1);
    assert_int_equal(ranges(13, 1, 8, 1, 0), 1);
    assert_int_equal(simple(0, 8, 0, 512), 0);
    assert_int_equal(simple(4, 0, 0, 0), 0);
    assert_int_equal(plain_writes + durable_writes + discards, 0);
    tear_down();
    return 0;
}

LOOP_TEST(test_write_cache)
{
    const uint8_t on = 1, off = 0;

    set_up(true, 512);
    start(&rings[0]);
    assert_int_equal(simple(1, 0, 512, 0), 0);
    assert_int_equal(durable_writes, 0);
    assert_int_equal(simple(4, 0, 0, 0), 0);
    assert_int_equal(flushes, 1);
    assert_int_equal(virtio_blk_set_config(blk, 32, &off, 1), 0);
    assert_int_equal(simple(1, 0, 512, 0), 0);
    assert_int_equal(ranges(13, 1, 0, 1, 0), 0);
    assert_int_equal(durable_writes, 2);
    assert_int_equal(virtio_blk_set_config(blk, 32, &on, 1), 0);
    assert_int_equal(simple(1, 0, 512, 0), 0);
    assert_int_equal(durable_writes, 2);
    virtio_blk_set_features(blk, 0); /* a driver that cannot flush */
    assert_int_equal(simple(1, 0, 512, 0), 0);
    assert_int_equal(durable_writes, 3);
    tear_down();
    return 0;
}

/* ---- Violations ---- */

LOOP_TEST(test_violations)
{
    set_up(true, 512);
    start(&rings[0]);
    describe(&rings[0], 0, OUT_AT, 15, false, true);
    describe(&rings[0], 1, IN_AT, 100, true, false);
    publish(&rings[0], 0);
    expect_failure("a request has no room for its header or its status");
    stop(&rings[0]);
    describe(&rings[1], 0, OUT_AT, 100, false, false);
    start(&rings[1]);
    publish(&rings[1], 0);
    expect_failure("a request has no room for its header or its status");
    stop(&rings[1]);
    start(&rings[2]);
    publish(&rings[2], RING_SIZE);
    wait_for_failure();
    free(TAKE(failure));
    tear_down();
    return 0;
}

LOOP_TEST(test_failure_is_not_told_after_the_end)
{
    set_up(true, 512);
    describe(&rings[0], 0, OUT_AT, 15, false, false);
    start(&rings[0]);
    publish(&rings[0], 0);
    assert_int_equal(co_yield (), 0);
    stop(&rings[0]);
    assert_int_equal(co_sleep_ns(1000000), 0);
    tear_down();
    return 0;
}

LOOP_TEST(test_only_eventfds)
{
    VirtioBlkQueueOptions options;
    VirtioBlkQueue *queue;
    Error err = ERROR_INIT;
    int pair[2];

    set_up(true, 512);
    assert_int_equal(pipe(pair), 0);
    options = queue_options(&rings[0]);
    options.kick_fd = pair[0];
    assert_int_equal(virtio_blk_queue_start(blk, 0, &options, &queue, &err), -EINVAL);
    expect_text(err.message, "kick: descriptor %d is not an eventfd", pair[0]);
    err_done(&err);
    options = queue_options(&rings[0]);
    options.call_fd = memory_fd;
    assert_int_equal(virtio_blk_queue_start(blk, 0, &options, &queue, &err), -EINVAL);
    expect_text(err.message, "call: descriptor %d is not an eventfd", memory_fd);
    err_done(&err);
    start(&rings[0]);
    virtio_blk_queue_set_call(rings[0].queue, pair[1]);
    wait_for_failure();
    expect_text(failure, "call: descriptor %d is not an eventfd", pair[1]);
    free(TAKE(failure));
    close(pair[0]);
    close(pair[1]);
    tear_down();
    return 0;
}

/* A blocking eventfd without room for another count does not hold anything up. */
LOOP_TEST(test_full_call_eventfd)
{
    const uint64_t full = UINT64_MAX - 1;

    set_up(true, 512);
    assert_int_equal(write(rings[0].call_fd, &full, sizeof(full)), sizeof(full));
    start(&rings[0]);
    describe(&rings[0], 0, OUT_AT, 16, false, true);
    describe(&rings[0], 1, IN_AT, 1, true, false);
    put_le32(at(OUT_AT), 4);
    at(IN_AT)[0] = 0xff;
    publish(&rings[0], 0);
    for (int i = 0; i < 10000 && shared_index(used(&rings[0])) == 0; i++)
        assert_int_equal(co_sleep_ns(1000000), 0);
    assert_int_equal(at(IN_AT)[0], 0);
    virtio_blk_queue_set_call(rings[0].queue, rings[0].call_fd);
    assert_int_equal(wait_for_used(&rings[0]), 0);
    tear_down();
    return 0;
}

LOOP_TEST(test_memory_that_shrinks)
{
    set_up(true, 512);
    start(&rings[0]);
    assert_int_equal(simple(0, 0, 0, 512), 0);
    assert_int_equal(ftruncate(memory_fd, (off_t)(3 * MIB)), 0);
    describe(&rings[0], 0, OUT_AT, 16, false, true);
    describe(&rings[0], 1, IN_AT, 513, true, false);
    put_le32(at(OUT_AT), 0);
    put_le64(at(OUT_AT) + 8, 0);
    publish(&rings[0], 0);
    expect_failure("the file behind the memory has become shorter");
    tear_down();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_configuration),
        cmocka_unit_test(test_layouts),
        cmocka_unit_test(test_serial),
        cmocka_unit_test(test_discard_and_write_zeroes),
        cmocka_unit_test(test_refused_requests),
        cmocka_unit_test(test_write_cache),
        cmocka_unit_test(test_violations),
        cmocka_unit_test(test_failure_is_not_told_after_the_end),
        cmocka_unit_test(test_only_eventfds),
        cmocka_unit_test(test_full_call_eventfd),
        cmocka_unit_test(test_memory_that_shrinks),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
