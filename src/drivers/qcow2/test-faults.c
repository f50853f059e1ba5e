/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writes and flushes that fail while tables grow, and other things that go wrong. Whatever failed may be
 * tried again, and what a flush has covered is there when the image is opened the next time.
 */
#include "base/mem.h"
#include "drivers/qcow2/test-graph.h"
#include "generated/types.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#define PIECE (8 * KIB)
#define SEEDS 25

extern const Driver driver_qcow2;

static void make_image(uint64_t size, int refcount_bits)
{
    AUTO_ERROR Error err = ERROR_INIT;
    BlockdevRef file = {.type = BLOCKDEV_REF_KIND_REFERENCE, .u.reference = (char *)"file"};
    BlockdevCreateOptions options = {.u.qcow2 = {.file = &file,
                                         .size = size,
                                         .has_cluster_size = true,
                                         .cluster_size = 512,
                                         .has_refcount_bits = true,
                                         .refcount_bits = refcount_bits}};

    mem_faults = 0;
    mem_corruptions = 0;
    mem_yields = false;
    mem_file = mem_file_new(NULL, 0, false);
    assert_int_equal(driver_qcow2.create(&options, &err), 0);
}

static Node *reopen(Node *node)
{
    AUTO_ERROR Error err = ERROR_INIT;

    if (node)
        test_close(node);
    node = test_open(false, &err);
    assert_non_null(node);
    return node;
}

/* The file names the table that is in use, or a next step is known to have to see to it. */
static void expect_table(Node *node)
{
    const Qcow2 *q = node->state;

    if (!q->rt_unsure)
        assert_int_equal(get_be64(mem_file->data + QCOW2_AT_RT_OFFSET), q->rt_offset);
}

/* Writes a piece, flushes it, and tries both again until they succeed. */
static void store(Node *node, uint64_t at)
{
    uint64_t data[PIECE / 8];
    struct iovec iov;

    for (size_t i = 0; i < ARRAY_SIZE(data); i++)
        data[i] = at + i;
    while (driver_qcow2.write(node, at, io_slice_of(&iov, data, PIECE), 0) < 0) {
        assert_int_equal(mem_corruptions, 0);
        expect_table(node);
    }
    while (driver_qcow2.flush(node) < 0)
        assert_int_equal(mem_corruptions, 0);
}

static void expect(Node *node, uint64_t from, uint64_t to)
{
    uint64_t data[PIECE / 8];
    struct iovec iov;

    for (uint64_t at = from; at < to; at += PIECE) {
        assert_int_equal(driver_qcow2.read(node, at, io_slice_of(&iov, data, PIECE)), 0);
        for (size_t i = 0; i < ARRAY_SIZE(data); i++)
            assert_int_equal(data[i], at + i);
    }
}

/* With 64-bit refcounts, the first table of a 512-byte cluster describes 2 MiB. */
static void grow_refcounts(void *arg)
{
    Node *node;

    make_image(3 * MIB, 64);
    node = reopen(NULL);
    for (uint64_t at = 0; at < 3 * MIB; at += PIECE) {
        mem_faults = at > 3 * MIB / 2 ? 150 : 0;
        store(node, at);
    }
    mem_faults = 0;
    node = reopen(node);
    expect(node, 0, 3 * MIB);
    test_close(node);
    mem_file_free(TAKE(mem_file));
}

static void test_refcount_growth(void **state)
{
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        test_random_seed(seed);
        test_run(grow_refcounts, NULL);
    }
}

static void grow_disk(void *arg)
{
    AUTO_ERROR Error err = ERROR_INIT;
    Node *node;
    bool usable;

    make_image(256 * KIB, 16);
    node = reopen(NULL);
    store(node, 0);
    mem_faults = 250;
    (void)!driver_qcow2.resize(node, 4 * MIB, false, PREALLOCATION_OFF, 0, &err);
    mem_faults = 0;
    /* When not even the old state could be restored, nothing is written any more. */
    usable = driver_qcow2.flush(node) == 0;
    for (uint64_t at = PIECE; usable && at < 256 * KIB; at += PIECE)
        store(node, at);
    node = reopen(node);
    expect(node, 0, usable ? 256 * KIB : PIECE);
    assert_int_equal(mem_corruptions, 0);
    test_close(node);
    mem_file_free(TAKE(mem_file));
}

static void test_resize(void **state)
{
    for (uint64_t seed = 1; seed <= SEEDS * 4; seed++) {
        test_random_seed(seed);
        test_run(grow_disk, NULL);
    }
}

/* Whether shrinking has failed or not: the file says the size that the node goes on with. */
static void shrink_disk(void *arg)
{
    AUTO_ERROR Error err = ERROR_INIT;
    uint64_t size;
    Node *node;
    bool usable;

    make_image(256 * KIB, 16);
    node = reopen(NULL);
    store(node, 0);
    store(node, 128 * KIB);
    mem_faults = 250;
    (void)!driver_qcow2.resize(node, 64 * KIB, false, PREALLOCATION_OFF, 0, &err);
    mem_faults = 0;
    size = node->size;
    usable = driver_qcow2.flush(node) == 0;
    for (uint64_t at = PIECE; usable && at < size; at += PIECE)
        store(node, at);
    node = reopen(node);
    if (usable)
        assert_int_equal(node->size, size);
    expect(node, 0, usable ? size : PIECE);
    assert_int_equal(mem_corruptions, 0);
    test_close(node);
    mem_file_free(TAKE(mem_file));
}

static void test_shrink(void **state)
{
    for (uint64_t seed = 1; seed <= SEEDS * 4; seed++) {
        test_random_seed(seed);
        test_run(shrink_disk, NULL);
    }
}

/* ---- Hostile and concurrent ---- */

static int store_compressed(Node *node, uint64_t at)
{
    uint8_t data[512] = {0};
    struct iovec iov;

    for (unsigned i = 0; i < 300; i++)
        data[i] = (uint8_t)test_random(256);
    return driver_qcow2.write(node, at, io_slice_of(&iov, data, sizeof(data)), REQ_COMPRESSED);
}

/* Metadata in a cluster that counts as free, just where compressed data would go on. */
static void overlap_compressed(void *arg)
{
    Node *node;
    Qcow2 *q;

    make_image(256 * KIB, 16);
    node = reopen(NULL);
    q = node->state;
    assert_int_equal(store_compressed(node, 0), 0);
    assert_true(in_cluster(q, q->compressed_at));
    assert_int_equal(metaset_add(&q->meta, (q->compressed_at >> q->cluster_bits) + 1, META_L2), 0);
    assert_int_equal(store_compressed(node, 512), -EIO);
    assert_int_equal(mem_corruptions, 1);
    test_close(node);
    mem_file_free(TAKE(mem_file));
}

static void test_compressed_overlap(void **state)
{
    test_run(overlap_compressed, NULL);
}

static void load_worker(void *arg)
{
    Node *node = arg;
    Qcow2 *q = node->state;

    assert_int_equal(image_load_reftable(q), 0);
    assert_true(q->rt && q->rt_entries == 64 && q->rt[0]);
}

/* A sanitizer sees it when one of them forgets what it has read. */
static void load_twice(void *arg)
{
    AUTO_ERROR Error err = ERROR_INIT;
    CoGroup group;
    Node *node;

    make_image(256 * KIB, 16);
    node = test_open(true, &err);
    assert_non_null(node);
    mem_yields = true;
    co_group_init(&group);
    for (unsigned i = 0; i < 4; i++)
        co_start(&group, "load", load_worker, node);
    co_group_join(&group);
    test_close(node);
    mem_file_free(TAKE(mem_file));
}

static void test_concurrent_load(void **state)
{
    test_run(load_twice, NULL);
}

/* ---- The end of a data file ---- */

/* It may be a device of just the disk's size. */
static void fill_last_cluster(void *arg)
{
    AUTO_ERROR Error err = ERROR_INIT;
    BlockdevRef file = {.type = BLOCKDEV_REF_KIND_REFERENCE, .u.reference = (char *)"file"};
    BlockdevCreateOptions options = {.u.qcow2 = {.file = &file, .data_file = &file, .size = 100 * KIB}};
    uint8_t data[512] = {1};
    struct iovec iov;
    Node *node;

    mem_yields = false;
    mem_file = mem_file_new(NULL, 0, false);
    mem_data_file = mem_file_new(NULL, 0, false);
    assert_int_equal(driver_qcow2.create(&options, &err), 0);
    mem_options.data_file = &file;
    node = reopen(NULL);
    assert_int_equal(driver_qcow2.write(node, 80 * KIB, io_slice_of(&iov, data, sizeof(data)), 0), 0);
    assert_true(mem_data_file->size <= 100 * KIB);
    for (uint64_t at = 81 * KIB; at < 100 * KIB; at += 512) {
        assert_int_equal(driver_qcow2.read(node, at, io_slice_of(&iov, data, sizeof(data))), 0);
        assert_true(buffer_is_zero(data, sizeof(data)));
    }
    test_close(node);
    mem_options = (BlockdevOptionsQcow2){0};
    mem_file_free(TAKE(mem_file));
    mem_file_free(TAKE(mem_data_file));
}

static void test_end_of_data_file(void **state)
{
    test_run(fill_last_cluster, NULL);
}

/* ---- Killed, and side by side ---- */

static void record_file(void)
{
    MemFile *made = mem_file;

    mem_file = mem_file_new(made->data, made->size, true);
    mem_file_free(made);
}

/* The kernel keeps what has reached the file. */
static Node *kill_and_reopen(Node *node)
{
    mem_dead = true;
    test_close(node);
    mem_dead = false;
    for (size_t i = 0; i < mem_file->write_count; i++)
        mem_file->writes[i].completed = true;
    return reopen(NULL);
}

static int write_bytes(Node *node, uint64_t at, uint8_t value, uint64_t bytes, unsigned flags)
{
    uint8_t data[512];
    struct iovec iov;

    memset(data, value, sizeof(data));
    return driver_qcow2.write(node, at, io_slice_of(&iov, data, bytes), flags);
}

static uint8_t byte_at(Node *node, uint64_t at)
{
    uint8_t byte;
    struct iovec iov;

    assert_int_equal(driver_qcow2.read(node, at, io_slice_of(&iov, &byte, 1)), 0);
    return byte;
}

/* The mapping that a killed process has published is not on the disk yet: FUA has to see to that, too. */
static void fua_after_kill(void *arg)
{
    MemFile *live;
    Node *node;

    make_image(256 * KIB, 16);
    record_file();
    node = reopen(NULL);
    for (uint64_t at = 0; at < 2048; at += 512)
        assert_int_equal(write_bytes(node, at, 1, 512, REQ_OUTLIVES), 0);
    node = kill_and_reopen(node);
    for (uint64_t at = 0; at < 2048; at += 512)
        assert_int_equal(write_bytes(node, at, 2, 512, REQ_FUA), 0);
    live = mem_file;
    mem_file = mem_file_cut(live);
    mem_dead = true;
    test_close(node);
    mem_dead = false;
    node = reopen(NULL);
    for (uint64_t at = 0; at < 2048; at += 512)
        assert_int_equal(byte_at(node, at), 2);
    test_close(node);
    mem_file_free(TAKE(mem_file));
    mem_file_free(live);
}

static void test_fua_after_kill(void **state)
{
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        test_random_seed(seed);
        test_run(fua_after_kill, NULL);
    }
}

static void write_first_half(void *node)
{
    assert_int_equal(write_bytes(node, 0, 2, 256, 0), 0);
}

static void write_second_half(void *node)
{
    assert_int_equal(write_bytes(node, 256, 3, 256, 0), 0);
}

/* A write in place is under way while its cluster is zeroed and written again: it does not come back later.
 */
static void zero_under_write(void *arg)
{
    CoGroup first, second;
    uint8_t found;
    Node *node;

    make_image(256 * KIB, 16);
    node = reopen(NULL);
    assert_int_equal(write_bytes(node, 0, 1, 512, 0), 0);
    mem_yields = true;
    co_group_init(&first);
    co_group_init(&second);
    co_start(&first, "first", write_first_half, node);
    assert_int_equal(co_yield (), 0);
    assert_int_equal(driver_qcow2.write_zeroes(node, 0, 512, 0), 0);
    co_start(&second, "second", write_second_half, node);
    co_group_join(&first);
    found = byte_at(node, 0);
    co_group_join(&second);
    if (found == 0)
        assert_int_equal(byte_at(node, 0), 0);
    mem_yields = false;
    test_close(node);
    mem_file_free(TAKE(mem_file));
}

static void test_zero_under_write(void **state)
{
    for (uint64_t seed = 1; seed <= SEEDS * 8; seed++) {
        test_random_seed(seed);
        test_run(zero_under_write, NULL);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refcount_growth),
        cmocka_unit_test(test_resize),
        cmocka_unit_test(test_shrink),
        cmocka_unit_test(test_compressed_overlap),
        cmocka_unit_test(test_concurrent_load),
        cmocka_unit_test(test_end_of_data_file),
        cmocka_unit_test(test_fua_after_kill),
        cmocka_unit_test(test_zero_under_write),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
