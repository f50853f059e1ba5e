/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Power cuts under load. Several coroutines write, zero, discard and flush; at a random moment the test takes
 * what a disk might hold (all that was flushed, and any sectors of what was not) and demands of it: no
 * cluster is used twice or more often than it is counted, and every sector holds what was flushed last or
 * something that was written later.
 */
#include "base/mem.h"
#include "drivers/qcow2/test-graph.h"
#include "generated/types.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

#define DISK_BYTES (1 * MIB)
#define SECTORS (DISK_BYTES / 512)
#define BACKING_SECTORS (SECTORS / 4 * 3)
#define WORKERS 6
#define RUNS 16    /* of each shape */
#define MAX_IDS 24 /* values that a sector may hold before the test stops adding writes to it */

extern const Driver driver_qcow2;

/* Values that a sector may have after a cut; the first one is the last that was flushed. */
typedef struct Sector {
    uint64_t ids[MAX_IDS];
    unsigned count;
    uint64_t dropped; /* values before ids[0] */
    unsigned first;   /* of those that may be found */
    bool busy;
} Sector;

typedef struct Load {
    Node *node;
    Sector *sectors;
    uint64_t next_id, cluster_sectors;
    unsigned operations;
    unsigned flags; /* of writes */
    bool stopped;
} Load;

/* ---- Load ---- */

static bool claim(Load *load, uint64_t first, uint64_t count)
{
    for (uint64_t i = first; i < first + count; i++)
        if (load->sectors[i].busy || load->sectors[i].count == MAX_IDS)
            return false;
    for (uint64_t i = first; i < first + count; i++)
        load->sectors[i].busy = true;
    return true;
}

/* What a write puts into a sector: tells both which write and which sector; zeroing is number 0. */
static uint64_t value_of(uint64_t id, uint64_t sector)
{
    return id ? id * SECTORS + sector : 0;
}

static void add_value(Load *load, uint64_t first, uint64_t count, uint64_t id)
{
    for (uint64_t i = first; i < first + count; i++)
        load->sectors[i].ids[load->sectors[i].count++] = value_of(id, i);
}

static void change(Load *load)
{
    uint64_t first = test_random(SECTORS), count = 1 + test_random(MIN(SECTORS - first, UINT64_C(300))), id;
    unsigned kind = (unsigned)test_random(load->flags & REQ_OUTLIVES ? 8 : 9); /* a discard is forgotten */
    AUTO_FREE uint64_t *data = NULL;
    struct iovec iov;
    int r;

    if (kind == 8) { /* whole clusters, so that the outcome is known */
        first = align_down(first, load->cluster_sectors);
        count = align_up(count, load->cluster_sectors);
    }
    if (!claim(load, first, count)) {
        test_pause();
        return;
    }
    id = kind >= 6 ? 0 : ++load->next_id;
    add_value(load, first, count, id);
    data = mem_zalloc(count * 512);
    for (uint64_t i = 0; i < count * 64; i++)
        data[i] = value_of(id, first + i / 64);
    if (kind == 7)
        r = driver_qcow2.write_zeroes(load->node, first * 512, count * 512,
            load->flags | (test_random(2) ? (unsigned)REQ_MAY_UNMAP : 0));
    else if (kind == 8)
        r = driver_qcow2.discard(load->node, first * 512, count * 512);
    else
        r = driver_qcow2.write(load->node, first * 512, io_slice_of(&iov, data, count * 512), load->flags);
    if (r == -ENOTSUP)
        r = driver_qcow2.write(load->node, first * 512, io_slice_of(&iov, data, count * 512), load->flags);
    assert_int_equal(r, 0);
    for (uint64_t i = first; i < first + count; i++)
        load->sectors[i].busy = false;
}

/* What was complete before a flush began is the only value that is left after it. */
static void flush(Load *load)
{
    AUTO_FREE uint64_t *complete = mem_zalloc(SECTORS * sizeof(*complete));

    for (uint64_t i = 0; i < SECTORS; i++)
        complete[i] = load->sectors[i].busy ? 0 : load->sectors[i].dropped + load->sectors[i].count;
    assert_int_equal(driver_qcow2.flush(load->node), 0);
    for (uint64_t i = 0; i < SECTORS; i++) {
        Sector *s = &load->sectors[i];
        uint64_t old = complete[i] > s->dropped + 1 ? complete[i] - 1 - s->dropped : 0;

        memmove(s->ids, s->ids + old, (s->count - old) * sizeof(s->ids[0]));
        s->count -= (unsigned)old;
        s->dropped += old;
    }
}

/* A read that others overtake: whatever it sees, it must be something that was written here. */
static void read_anything(Load *load)
{
    uint64_t at = test_random(SECTORS), data[64];
    struct iovec iov;

    assert_int_equal(driver_qcow2.read(load->node, at * 512, io_slice_of(&iov, data, 512)), 0);
    assert_true(data[0] == 0 || data[0] % SECTORS == at);
}

static void worker(void *arg)
{
    Load *load = arg;

    while (load->operations && !load->stopped) {
        load->operations--;
        if (test_random(12) == 0)
            flush(load);
        else if (test_random(3) == 0)
            read_anything(load);
        else
            change(load);
    }
}

/* ---- Checks ---- */

static bool may_hold(const Sector *s, uint64_t id)
{
    for (unsigned k = s->first; k < s->count; k++)
        if (s->ids[k] == id)
            return true;
    return false;
}

static void refer(uint8_t *uses, uint64_t clusters, uint64_t cluster)
{
    assert_true(cluster < clusters);
    assert_int_equal(uses[cluster], 0);
    uses[cluster] = 1;
}

static void check_references(MemFile *file, Qcow2 *q)
{
    uint64_t clusters = div_round_up(file->size, q->cluster_size);
    AUTO_FREE uint8_t *uses = mem_zalloc(clusters);

    mem_yields = false;
    refer(uses, clusters, 0);
    for (uint64_t i = 0; i < div_round_up(q->l1_entries * UINT64_C(8), q->cluster_size); i++)
        refer(uses, clusters, (q->l1_offset >> q->cluster_bits) + i);
    for (uint64_t i = 0; i < q->header.rt_clusters; i++)
        refer(uses, clusters, (q->rt_offset >> q->cluster_bits) + i);
    for (uint64_t i = 0; i < q->rt_entries; i++)
        if (q->rt[i])
            refer(uses, clusters, q->rt[i] >> q->cluster_bits);
    for (uint64_t i = 0; i < q->l1_entries; i++) {
        uint64_t table = q->l1[i] & QCOW2_OFFSET_MASK;

        if (!table)
            continue;
        refer(uses, clusters, table >> q->cluster_bits);
        for (uint32_t k = 0; k < 1U << q->l2_bits; k++) {
            uint64_t entry = slice_entry(q, file->data + table, k) & QCOW2_OFFSET_MASK;

            if (entry && !q->data_file)
                refer(uses, clusters + 4096, entry >> q->cluster_bits);
        }
    }
    for (uint64_t i = 0; i < clusters; i++) {
        uint64_t refs = 0;

        assert_int_equal(refcount_read(q, i, &refs), 0);
        assert_true(refs >= uses[i]);
    }
    mem_yields = true;
}

static void check_contents(Node *node, const Sector *sectors)
{
    uint64_t data[64];
    struct iovec iov;

    for (uint64_t i = 0; i < SECTORS; i++) {
        assert_int_equal(driver_qcow2.read(node, i * 512, io_slice_of(&iov, data, 512)), 0);
        assert_true(may_hold(&sectors[i], data[0]));
        for (unsigned k = 1; k < 64; k++)
            assert_true(data[k] == data[0]);
    }
}

typedef struct Shape {
    uint64_t cluster_size;
    int refcount_bits;
    bool extended, backing, data_file;
    bool tiny; /* caches that hold next to nothing */
    bool lazy;
} Shape;

static BlockdevRef any_file = {.type = BLOCKDEV_REF_KIND_REFERENCE, .u.reference = (char *)"file"};

static void make_image(const Shape *shape, uint64_t size)
{
    AUTO_ERROR Error err = ERROR_INIT;
    BlockdevCreateOptions options = {.u.qcow2 = {.file = &any_file,
                                         .data_file = shape->data_file ? &any_file : NULL,
                                         .backing_file = shape->backing ? (char *)"backing" : NULL,
                                         .size = size,
                                         .has_cluster_size = true,
                                         .cluster_size = shape->cluster_size,
                                         .has_refcount_bits = true,
                                         .refcount_bits = shape->refcount_bits,
                                         .has_lazy_refcounts = true,
                                         .lazy_refcounts = shape->lazy,
                                         .has_extended_l2 = true,
                                         .extended_l2 = shape->extended}};
    MemFile *made;

    mem_file = mem_file_new(NULL, 0, false);
    assert_int_equal(driver_qcow2.create(&options, &err), 0);
    made = mem_file;
    mem_file = mem_file_new(made->data, made->size, true);
    mem_file_free(made);
    mem_data_file = shape->data_file ? mem_file_new(NULL, 0, true) : NULL;
    mem_options = (BlockdevOptionsQcow2){.data_file = shape->data_file ? &any_file : NULL};
    if (shape->tiny) {
        mem_options.has_l2_cache_size = mem_options.has_refcount_cache_size = true;
        mem_options.has_l2_cache_entry_size = true;
        mem_options.l2_cache_entry_size = 512;
    }
}

static void free_files(void)
{
    mem_file_free(TAKE(mem_file));
    mem_file_free(TAKE(mem_data_file));
    mem_file_free(TAKE(mem_backing));
    mem_options = (BlockdevOptionsQcow2){0};
}

/* The first write to every sector of the backing file, as it were. */
static void make_backing(Load *load)
{
    AUTO_FREE uint64_t *data = mem_zalloc(BACKING_SECTORS * 512);

    load->next_id = 1;
    for (uint64_t i = 0; i < BACKING_SECTORS; i++)
        load->sectors[i].ids[0] = value_of(1, i);
    for (uint64_t i = 0; i < BACKING_SECTORS * 64; i++)
        data[i] = value_of(1, i / 64);
    mem_backing = mem_file_new(data, BACKING_SECTORS * 512, false);
}

/* What the kernel has. */
static MemFile *copy_file(const MemFile *file)
{
    return mem_file_new(file->data, file->size, false);
}

/* Every write that was answered is there. */
static void expect_answered(Sector *sectors)
{
    for (uint64_t i = 0; i < SECTORS; i++)
        if (sectors[i].count)
            sectors[i].first = sectors[i].count - 1 - (sectors[i].busy && sectors[i].count > 1);
}

/* Cuts the power, or only ends the process, now and looks at what is left. */
static void cut_and_check(const Load *load, bool power)
{
    AUTO_ERROR Error err = ERROR_INIT;
    MemFile *live = mem_file, *cut = power ? mem_file_cut(live) : copy_file(live), *live_data = mem_data_file;
    AUTO_FREE Sector *then = mem_zalloc(SECTORS * sizeof(*then));
    Node *node;

    memcpy(then, load->sectors, SECTORS * sizeof(*then));
    if (!power)
        expect_answered(then);
    mem_yields = false;
    mem_file = cut;
    mem_data_file = !live_data ? NULL : power ? mem_file_cut(live_data) : copy_file(live_data);
    node = test_open(false, &err);
    assert_non_null(node);
    check_references(cut, node->state);
    mem_yields = false;
    check_contents(node, then);
    test_close(node);
    mem_file_free(cut);
    mem_file_free(mem_data_file);
    mem_file = live;
    mem_data_file = live_data;
    mem_yields = true;
}

typedef struct Run {
    const Shape *shape;
    unsigned operations, cuts;
    unsigned flags; /* of writes */
} Run;

static void run_load(void *arg)
{
    const Run *run = arg;
    const Shape *shape = run->shape;
    AUTO_ERROR Error err = ERROR_INIT;
    Load load = {.sectors = mem_zalloc(SECTORS * sizeof(Sector)),
        .operations = run->operations,
        .flags = run->flags,
        .cluster_sectors = shape->cluster_size / 512};
    CoGroup group;

    mem_corruptions = 0;
    make_image(shape, DISK_BYTES);
    for (uint64_t i = 0; i < SECTORS; i++)
        load.sectors[i].count = 1;
    if (shape->backing)
        make_backing(&load);
    load.node = test_open(false, &err);
    assert_non_null(load.node);
    co_group_init(&group);
    for (unsigned i = 0; i < WORKERS; i++)
        co_start(&group, "load", worker, &load);
    for (unsigned cuts = 0; cuts < run->cuts && load.operations; cuts++) {
        for (uint64_t n = test_random(150); n; n--)
            test_pause();
        cut_and_check(&load, !(run->flags & REQ_OUTLIVES) || test_random(2));
    }
    co_group_join(&group);
    flush(&load);
    check_contents(load.node, load.sectors);
    test_close(load.node);
    assert_int_equal(mem_corruptions, 0);
    free_files();
    free(load.sectors);
}

static void test_power_cuts(void **state)
{
    static const Shape shapes[] = {
        {.cluster_size = 512, .refcount_bits = 16},
        {.cluster_size = 512, .refcount_bits = 64},
        {.cluster_size = 4096, .refcount_bits = 1},
        {.cluster_size = 4096, .refcount_bits = 16},
        {.cluster_size = 65536, .refcount_bits = 16},
        {.cluster_size = 16384, .refcount_bits = 8, .extended = true},
        {.cluster_size = 65536, .refcount_bits = 16, .extended = true},
        {.cluster_size = 512, .refcount_bits = 16, .tiny = true},
        {.cluster_size = 4096, .refcount_bits = 16, .backing = true},
        {.cluster_size = 4096, .refcount_bits = 16, .lazy = true},
        {.cluster_size = 512, .refcount_bits = 64, .lazy = true, .tiny = true},
        {.cluster_size = 4096, .refcount_bits = 16, .data_file = true},
        {.cluster_size = 512, .refcount_bits = 64, .backing = true, .tiny = true},
        {.cluster_size = 16384, .refcount_bits = 16, .extended = true, .backing = true, .tiny = true},
        {.cluster_size = 16384, .refcount_bits = 16, .extended = true, .data_file = true},
    };

    for (uint64_t i = 0; i < ARRAY_SIZE(shapes) * RUNS; i++) {
        bool longer = i < ARRAY_SIZE(shapes);
        Run run = {.shape = &shapes[i % ARRAY_SIZE(shapes)],
            .operations = longer ? 800 : 120,
            .cuts = longer ? 40 : 5,
            .flags = i / ARRAY_SIZE(shapes) % 2 ? REQ_OUTLIVES : 0};

        test_random_seed(i + 1);
        test_run(run_load, &run);
    }
}

/* ---- Growing ---- */

#define SMALL_BYTES (100 * KIB) /* ends within a cluster */
#define OLD_BYTE 0x5a

typedef struct Growth {
    Node *node;
    bool finished;
} Growth;

static void grow_worker(void *arg)
{
    AUTO_ERROR Error err = ERROR_INIT;
    Growth *growth = arg;

    assert_int_equal(driver_qcow2.resize(growth->node, DISK_BYTES, false, PREALLOCATION_OFF, 0, &err), 0);
    growth->finished = true;
}

static void expect_bytes(Node *node, uint64_t from, uint64_t to, uint8_t value)
{
    uint8_t data[512];
    struct iovec iov;

    for (uint64_t at = from; at < to; at += sizeof(data)) {
        assert_int_equal(driver_qcow2.read(node, at, io_slice_of(&iov, data, sizeof(data))), 0);
        for (unsigned i = 0; i < sizeof(data); i++)
            assert_int_equal(data[i], value);
    }
}

/* Either size may be found; where the disk has grown there are zeroes. */
static void cut_and_check_size(void)
{
    AUTO_ERROR Error err = ERROR_INIT;
    MemFile *live = mem_file, *live_data = mem_data_file;
    Node *node;

    mem_yields = false;
    mem_file = mem_file_cut(live);
    mem_data_file = live_data ? mem_file_cut(live_data) : NULL;
    node = test_open(false, &err);
    assert_non_null(node);
    assert_true(node->size == SMALL_BYTES || node->size == DISK_BYTES);
    expect_bytes(node, 0, SMALL_BYTES, OLD_BYTE);
    expect_bytes(node, SMALL_BYTES, node->size, 0);
    test_close(node);
    mem_file_free(mem_file);
    mem_file_free(mem_data_file);
    mem_file = live;
    mem_data_file = live_data;
    mem_yields = true;
}

/* Old data behind the end: in the backing file, in the last cluster, in the data file. */
static void run_growth(void *arg)
{
    const Shape *shape = arg;
    AUTO_ERROR Error err = ERROR_INIT;
    AUTO_FREE uint8_t *old = mem_zalloc(DISK_BYTES);
    Growth growth = {0};
    CoGroup group;
    struct iovec iov;

    memset(old, OLD_BYTE, DISK_BYTES);
    make_image(shape, DISK_BYTES);
    mem_backing = shape->backing ? mem_file_new(old, DISK_BYTES, false) : NULL;
    growth.node = test_open(false, &err);
    assert_non_null(growth.node);
    if (!shape->backing)
        assert_int_equal(driver_qcow2.write(growth.node, 0, io_slice_of(&iov, old, DISK_BYTES), 0), 0);
    assert_int_equal(driver_qcow2.resize(growth.node, SMALL_BYTES, false, PREALLOCATION_OFF, 0, &err), 0);
    co_group_init(&group);
    co_start(&group, "grow", grow_worker, &growth);
    while (!growth.finished) {
        for (uint64_t n = 1 + test_random(8); n; n--)
            test_pause();
        cut_and_check_size();
    }
    co_group_join(&group);
    expect_bytes(growth.node, SMALL_BYTES, DISK_BYTES, 0);
    test_close(growth.node);
    free_files();
}

static void test_growth(void **state)
{
    static const Shape shapes[] = {
        {.cluster_size = 65536, .refcount_bits = 16},
        {.cluster_size = 16384, .refcount_bits = 16, .backing = true},
        {.cluster_size = 16384, .refcount_bits = 16, .backing = true, .extended = true},
        {.cluster_size = 65536, .refcount_bits = 16, .data_file = true},
    };

    for (uint64_t i = 0; i < ARRAY_SIZE(shapes) * 4; i++) {
        test_random_seed(i + 1);
        test_run(run_growth, (void *)&shapes[i % ARRAY_SIZE(shapes)]);
    }
}

/* A data file may be a device of just the disk's size. */
static void fill_last_cluster(void *arg)
{
    static const Shape shape = {.cluster_size = 65536, .refcount_bits = 16, .data_file = true};
    AUTO_ERROR Error err = ERROR_INIT;
    uint8_t data[512] = {1};
    struct iovec iov;
    Node *node;

    mem_yields = false;
    make_image(&shape, SMALL_BYTES);
    node = test_open(false, &err);
    assert_non_null(node);
    assert_int_equal(driver_qcow2.write(node, 80 * KIB, io_slice_of(&iov, data, sizeof(data)), 0), 0);
    assert_true(mem_data_file->size <= SMALL_BYTES);
    expect_bytes(node, 81 * KIB, SMALL_BYTES, 0);
    test_close(node);
    free_files();
    mem_yields = true;
}

static void test_end_of_data_file(void **state)
{
    test_run(fill_last_cluster, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_power_cuts), cmocka_unit_test(test_growth),
        cmocka_unit_test(test_end_of_data_file)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
