/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Repairs that a power cut ends: what is found then has no more problems than before, holds the same data,
 * and can be repaired; and bounds of the check.
 */
#include "base/mem.h"
#include "drivers/qcow2/check-priv.h"
#include "drivers/qcow2/test-graph.h"
#include "generated/types.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

#define DISK_BYTES (256 * KIB)
#define RUNS 30
#define MAX_CUTS 60

extern const Driver driver_qcow2;

static BlockdevRef any_file = {.type = BLOCKDEV_REF_KIND_REFERENCE, .u.reference = (char *)"file"};

static void make_image(uint64_t cluster_size, int refcount_bits)
{
    AUTO_ERROR Error err = ERROR_INIT;
    BlockdevCreateOptions options = {.u.qcow2 = {.file = &any_file,
                                         .size = DISK_BYTES,
                                         .has_cluster_size = true,
                                         .cluster_size = cluster_size,
                                         .has_refcount_bits = true,
                                         .refcount_bits = refcount_bits}};

    mem_file = mem_file_new(NULL, 0, false);
    assert_int_equal(driver_qcow2.create(&options, &err), 0);
}

static void fill(uint8_t *disk)
{
    AUTO_ERROR Error err = ERROR_INIT;
    Node *node = test_open(false, &err);
    struct iovec iov;

    assert_non_null(node);
    for (unsigned i = 0; i < 40; i++) {
        uint64_t bytes = 512 * (1 + test_random(16)), at = 512 * test_random((DISK_BYTES - bytes) / 512);

        memset(disk + at, (int)i + 1, bytes);
        assert_int_equal(driver_qcow2.write(node, at, io_slice_of(&iov, disk + at, bytes), 0), 0);
    }
    test_close(node);
}

static void expect_contents(const uint8_t *disk)
{
    AUTO_ERROR Error err = ERROR_INIT;
    AUTO_FREE uint8_t *data = mem_zalloc(DISK_BYTES);
    Node *node = test_open(true, &err);
    struct iovec iov;

    assert_non_null(node);
    assert_int_equal(driver_qcow2.read(node, 0, io_slice_of(&iov, data, DISK_BYTES)), 0);
    assert_memory_equal(data, disk, DISK_BYTES);
    test_close(node);
}

/* What the image has that can be damaged. */
static void damage(void)
{
    uint64_t l1 = get_be64(mem_file->data + 40), table = get_be64(mem_file->data + QCOW2_AT_RT_OFFSET);
    uint64_t block = get_be64(mem_file->data + table), l2 = get_be64(mem_file->data + l1) & QCOW2_OFFSET_MASK;
    unsigned order = get_be32(mem_file->data + 96), bits = get_be32(mem_file->data + 20);
    uint64_t clusters = mem_file->size >> bits;

    for (unsigned i = 0; i < 6; i++) {
        uint64_t at = l2 + 8 * test_random((UINT64_C(1) << bits) / 8), cluster = test_random(clusters);

        if (test_random(3) && cluster < 8U << bits >> order)
            qcow2_refcount_set(mem_file->data + block, order, (uint32_t)cluster,
                test_random(qcow2_refcount_max(order) ? MIN(qcow2_refcount_max(order) + 1, UINT64_C(4)) : 1));
        else if (l2 && get_be64(mem_file->data + at))
            put_be64(mem_file->data + at, get_be64(mem_file->data + at) ^ QCOW2_COPIED);
    }
    if (test_random(3) == 0)
        put_be64(mem_file->data + table, test_random(2) ? 0 : block | 1);
}

static uint64_t run_check(unsigned fix)
{
    AUTO_ERROR Error err = ERROR_INIT;
    CheckResult result;
    Node *node = test_open_for_check(!fix, &err);

    assert_non_null(node);
    assert_int_equal(driver_qcow2.check(node, fix, &result, &err), 0);
    test_close(node);
    assert_int_equal(result.check_errors, 0);
    return result.leaks + result.corruptions;
}

typedef struct Repair {
    bool finished;
} Repair;

static void repairer(void *arg)
{
    Repair *repair = arg;

    assert_int_equal(run_check(CHECK_FIX_LEAKS | CHECK_FIX_ERRORS), 0);
    repair->finished = true;
}

/* What a power cut has left. */
static void check_cut(MemFile *cut, uint64_t problems, const uint8_t *disk)
{
    MemFile *live = mem_file;

    mem_file = cut;
    assert_true(run_check(0) <= problems);
    expect_contents(disk);
    assert_int_equal(run_check(CHECK_FIX_LEAKS | CHECK_FIX_ERRORS), 0);
    assert_int_equal(run_check(0), 0);
    expect_contents(disk);
    mem_file_free(cut);
    mem_file = live;
}

static void run_cuts(void *arg)
{
    static const struct {
        uint64_t cluster_size;
        int refcount_bits;
    } shapes[] = {{512, 16}, {512, 64}, {4096, 1}, {4096, 16}, {16384, 2}};
    AUTO_FREE uint8_t *disk = mem_zalloc(DISK_BYTES);
    unsigned shape = *(unsigned *)arg % ARRAY_SIZE(shapes);
    Repair repair = {0};
    uint64_t problems;
    MemFile *damaged, *cuts[MAX_CUTS];
    unsigned count = 0;
    CoGroup group;

    make_image(shapes[shape].cluster_size, shapes[shape].refcount_bits);
    fill(disk);
    damage();
    damaged = mem_file;
    mem_file = mem_file_new(damaged->data, damaged->size, true);
    mem_file_free(damaged);
    problems = run_check(0);
    co_group_init(&group);
    co_start(&group, "repair", repairer, &repair);
    /* They are looked at afterwards, because that would let the repair go on. */
    while (!repair.finished && count < MAX_CUTS) {
        cuts[count++] = mem_file_cut(mem_file);
        for (uint64_t n = 1 + test_random(3); n; n--)
            (void)!co_yield ();
    }
    co_group_join(&group);
    mem_yields = false;
    for (unsigned i = 0; i < count; i++)
        check_cut(cuts[i], problems, disk);
    mem_yields = true;
    expect_contents(disk);
    mem_file_free(TAKE(mem_file));
}

static void test_power_cuts(void **state)
{
    for (unsigned i = 0; i < RUNS; i++) {
        test_random_seed(i + 1);
        test_run(run_cuts, &i);
    }
}

/* ---- Bounds ---- */

static void test_counts(void **state)
{
    size_t budget = 64 * KIB;
    Counts counts = {.pages = {.budget = &budget}, .page_bits = 10};
    uint64_t lost, value, cluster = UINT64_C(1) << 50;

    assert_false(counts_get(&counts, 5, &value));
    assert_int_equal(counts_add(&counts, 5, 3, 15, &lost), 0);
    assert_int_equal(lost, 0);
    assert_int_equal(counts_add(&counts, 5, 14, 15, &lost), 0); /* a wider page; two are too many */
    assert_int_equal(lost, 2);
    assert_int_equal(counts_add(&counts, 6, UINT64_MAX, UINT64_MAX, &lost), 0);
    assert_int_equal(counts_add(&counts, cluster, 1, 15, &lost), 0);
    assert_true(counts_get(&counts, 5, &value) && value == 15);
    assert_true(counts_get(&counts, 6, &value) && value == UINT64_MAX);
    assert_true(counts_get(&counts, 7, &value) && value == 0);
    assert_true(counts_get(&counts, cluster, &value) && value == 1);
    while (counts_add(&counts, cluster += 1024, 1, 15, &lost) == 0) /* until the budget is used up */
        assert_true(cluster < UINT64_C(1) << 51);
    counts_done(&counts);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_power_cuts), cmocka_unit_test(test_counts)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
