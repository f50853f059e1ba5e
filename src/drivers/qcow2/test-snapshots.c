/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Power cuts and failures while internal snapshots are made, deleted and applied. After a cut the image is
 * the one from before or the one from after, with all its snapshots; refcounts count too many at worst, and
 * the COPIED flags agree with them exactly. After a failure, writes or no room, it is the one from before.
 */
#include "base/mem.h"
#include "drivers/qcow2/snapshot.h"
#include "drivers/qcow2/test-graph.h"
#include "generated/types.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

#define DISK_BYTES (256 * KIB)
#define SECTORS (DISK_BYTES / 512)
#define MAX_SNAPSHOTS 6
#define STEPS 16
#define RUNS 2 /* of each shape */

extern const Driver driver_qcow2;

typedef struct Shape {
    uint64_t cluster_size;
    int refcount_bits;
    bool extended, backing;
    bool tiny; /* caches that hold next to nothing */
    unsigned snapshots;
} Shape;

/* What a disk holds: a number for each sector. */
typedef struct Contents {
    uint64_t sectors[SECTORS];
} Contents;

typedef struct Model {
    Node *node;
    Contents disk;
    Contents snapshots[MAX_SNAPSHOTS];
    unsigned names[MAX_SNAPSHOTS]; /* 0: none in this place */
    unsigned count, next_name;
    uint64_t next_value;
} Model;

/* ---- The image ---- */

static BlockdevRef any_file = {.type = BLOCKDEV_REF_KIND_REFERENCE, .u.reference = (char *)"file"};

static void make_image(const Shape *shape, Model *model)
{
    AUTO_ERROR Error err = ERROR_INIT;
    BlockdevCreateOptions options = {.u.qcow2 = {.file = &any_file,
                                         .backing_file = shape->backing ? (char *)"backing" : NULL,
                                         .size = DISK_BYTES,
                                         .has_cluster_size = true,
                                         .cluster_size = shape->cluster_size,
                                         .has_refcount_bits = true,
                                         .refcount_bits = shape->refcount_bits,
                                         .has_extended_l2 = true,
                                         .extended_l2 = shape->extended}};
    AUTO_FREE uint64_t *data = mem_zalloc(DISK_BYTES / 2);
    MemFile *made;

    mem_file = mem_file_new(NULL, 0, false);
    assert_int_equal(driver_qcow2.create(&options, &err), 0);
    made = mem_file;
    mem_file = mem_file_new(made->data, made->size, true);
    mem_file_free(made);
    mem_options = (BlockdevOptionsQcow2){0};
    if (shape->tiny) {
        mem_options.has_l2_cache_size = mem_options.has_refcount_cache_size = true;
        mem_options.has_l2_cache_entry_size = true;
        mem_options.l2_cache_entry_size = 512;
    }
    if (!shape->backing)
        return;
    for (uint64_t i = 0; i < DISK_BYTES / 16; i++)
        data[i] = model->disk.sectors[i / 64] = 1 + i / 64;
    model->next_value = 1;
    mem_backing = mem_file_new(data, DISK_BYTES / 2, false);
}

static void free_files(void)
{
    mem_file_free(TAKE(mem_file));
    mem_file_free(TAKE(mem_backing));
    mem_options = (BlockdevOptionsQcow2){0};
}

/* ---- Requests ---- */

static void write_something(Model *model)
{
    uint64_t first = test_random(SECTORS), count = 1 + test_random(MIN(SECTORS - first, UINT64_C(80)));
    uint64_t value = test_random(4) ? ++model->next_value * SECTORS : 0;
    AUTO_FREE uint64_t *data = mem_zalloc(count * 512);
    struct iovec iov;
    int r;

    for (uint64_t i = 0; i < count * 64; i++)
        data[i] = value ? value + first + i / 64 : 0;
    if (value || test_random(2))
        r = driver_qcow2.write(model->node, first * 512, io_slice_of(&iov, data, count * 512), 0);
    else
        r = driver_qcow2.write_zeroes(
            model->node, first * 512, count * 512, test_random(2) ? (unsigned)REQ_MAY_UNMAP : 0);
    assert_int_equal(r, 0);
    for (uint64_t i = first; i < first + count; i++)
        model->disk.sectors[i] = value ? value + i : 0;
}

static bool holds(Node *node, const Contents *contents)
{
    AUTO_FREE uint64_t *data = mem_zalloc(DISK_BYTES);
    struct iovec iov;
    uint64_t same = 0;

    assert_int_equal(node->size, DISK_BYTES);
    assert_int_equal(driver_qcow2.read(node, 0, io_slice_of(&iov, data, DISK_BYTES)), 0);
    for (uint64_t i = 0; i < SECTORS * 64; i++)
        same += data[i] == contents->sectors[i / 64];
    return same == SECTORS * 64;
}

/* ---- References ---- */

typedef struct References {
    Qcow2 *q;
    uint64_t clusters;
    uint32_t *uses;
} References;

static void refer(References *refs, uint64_t offset, uint64_t bytes)
{
    for (uint64_t at = offset; at < offset + bytes; at += refs->q->cluster_size) {
        assert_true(at >> refs->q->cluster_bits < refs->clusters);
        refs->uses[at >> refs->q->cluster_bits]++;
    }
}

static uint64_t count_of(Qcow2 *q, uint64_t offset)
{
    uint64_t count;

    assert_int_equal(refcount_read(q, offset >> q->cluster_bits, &count), 0);
    return count;
}

static void refer_tree(References *refs, const uint64_t *l1, uint64_t entries, bool active)
{
    Qcow2 *q = refs->q;

    for (uint64_t i = 0; i < entries; i++) {
        uint64_t table = l1[i] & QCOW2_OFFSET_MASK;

        if (!table)
            continue;
        refer(refs, table, q->cluster_size);
        if (active)
            assert_int_equal(!!(l1[i] & QCOW2_COPIED), count_of(q, table) == 1);
        for (uint32_t k = 0; k < 1U << q->l2_bits; k++) {
            uint64_t entry = slice_entry(q, mem_file->data + table, k), host = entry & QCOW2_OFFSET_MASK;

            if (!host)
                continue;
            refer(refs, host, q->cluster_size);
            if (active)
                assert_int_equal(!!(entry & QCOW2_COPIED), count_of(q, host) == 1);
        }
    }
}

static void refer_snapshots(References *refs)
{
    AUTO_ERROR Error err = ERROR_INIT;
    SnapshotTable table;

    assert_int_equal(snapshot_table_read(refs->q, &table, &err), 0);
    refer(refs, refs->q->header.snapshots_offset, table.stored_bytes);
    for (size_t i = 0; i < table.count; i++) {
        const Qcow2Snapshot *s = &table.items[i].s;
        uint64_t l1[SECTORS];

        assert_true(s->l1_entries <= SECTORS);
        for (uint32_t k = 0; k < s->l1_entries; k++)
            l1[k] = get_be64(mem_file->data + s->l1_offset + k * UINT64_C(8));
        refer(refs, s->l1_offset, s->l1_entries * UINT64_C(8));
        refer_tree(refs, l1, s->l1_entries, false);
    }
    snapshot_table_done(&table);
}

/* Of an image that was just opened: what the file says is all there is. */
static void check_references(Qcow2 *q)
{
    References refs = {.q = q, .clusters = div_round_up(mem_file->size, q->cluster_size) + 64};
    AUTO_FREE uint32_t *uses = refs.uses = mem_zalloc(refs.clusters * sizeof(*uses));

    assert_int_equal(image_load_reftable(q), 0);
    refer(&refs, 0, 1);
    refer(&refs, q->l1_offset, q->l1_entries * UINT64_C(8));
    refer(&refs, q->rt_offset, q->header.rt_clusters * q->cluster_size);
    for (uint64_t i = 0; i < q->rt_entries; i++)
        if (q->rt[i])
            refer(&refs, q->rt[i], q->cluster_size);
    refer_tree(&refs, q->l1, q->l1_entries, true);
    refer_snapshots(&refs);
    for (uint64_t i = 0; i < refs.clusters; i++)
        assert_true(count_of(q, i << q->cluster_bits) >= refs.uses[i]);
}

/* ---- Snapshots ---- */

typedef struct Step {
    Model *model;
    enum { CREATE, REMOVE, APPLY } kind;
    unsigned place; /* of the snapshot in the model */
    unsigned name;
    int result;
    bool finished;
} Step;

static void name_of(unsigned number, char name[16])
{
    snprintf(name, 16, "s%u", number);
}

static int carry_out(Node *node, const Step *step, Error *err)
{
    char name[16];
    SnapshotInfo info = {.name = name, .date_sec = step->name};

    name_of(step->name, name);
    switch (step->kind) {
    case CREATE:
        return driver_qcow2.snapshots->create(node, &info, err);
    case REMOVE:
        return driver_qcow2.snapshots->remove(node, NULL, name, err);
    default:
        return driver_qcow2.snapshots->apply(node, NULL, name, err);
    }
}

static void run_step(void *arg)
{
    AUTO_ERROR Error err = ERROR_INIT;
    Step *step = arg;

    step->result = carry_out(step->model->node, step, &err);
    assert_int_equal(step->result < 0, err_is_set(&err));
    step->finished = true;
}

static Step choose(Model *model, const Shape *shape)
{
    Step step = {.model = model};
    unsigned used[MAX_SNAPSHOTS], count = 0, chosen = MAX_SNAPSHOTS;

    for (unsigned i = 0; i < shape->snapshots; i++) {
        if (model->names[i])
            used[count++] = i;
        else
            chosen = i;
    }
    if (chosen < MAX_SNAPSHOTS && (!count || test_random(2))) {
        step.kind = CREATE;
        step.place = chosen;
        step.name = ++model->next_name;
        return step;
    }
    step.kind = test_random(2) ? REMOVE : APPLY;
    step.place = used[test_random(count)];
    step.name = model->names[step.place];
    return step;
}

/* The model after the step. */
static void follow(Model *model, const Step *step)
{
    switch (step->kind) {
    case CREATE:
        model->names[step->place] = step->name;
        model->snapshots[step->place] = model->disk;
        break;
    case REMOVE:
        model->names[step->place] = 0;
        break;
    case APPLY:
        model->disk = model->snapshots[step->place];
        break;
    }
}

static bool has_all(Node *node, const Model *model)
{
    AUTO_ERROR Error err = ERROR_INIT;
    CLEANUP(snapshot_info_list_done) SnapshotInfoList list = {0};
    size_t wanted = 0, found = 0;
    char name[16];

    assert_int_equal(driver_qcow2.snapshots->list(node, &list, &err), 0);
    for (unsigned i = 0; i < MAX_SNAPSHOTS; i++) {
        name_of(model->names[i], name);
        wanted += model->names[i] != 0;
        for (size_t k = 0; model->names[i] && k < list.count; k++)
            found += str_eq(list.items[k]->name, name);
    }
    return found == wanted && list.count == wanted;
}

/* All snapshots of the model and their contents are there: each is gone back to. */
static void check_snapshots(Node *node, const Model *model)
{
    assert_true(has_all(node, model));
    for (unsigned i = 0; i < MAX_SNAPSHOTS; i++) {
        AUTO_ERROR Error err = ERROR_INIT;
        Step step = {.kind = APPLY, .name = model->names[i]};

        if (!model->names[i])
            continue;
        assert_int_equal(carry_out(node, &step, &err), 0);
        assert_true(holds(node, &model->snapshots[i]));
    }
}

/* Opens what a power cut leaves, which is `before` or `after`. */
static void cut_and_check(const Model *before, const Model *after)
{
    AUTO_ERROR Error err = ERROR_INIT;
    MemFile *live = mem_file;
    const Model *found;
    Node *node;

    mem_yields = false;
    mem_file = mem_file_cut(live);
    node = test_open(false, &err);
    assert_non_null(node);
    check_references(node->state);
    found = has_all(node, before) && holds(node, &before->disk) ? before : after;
    assert_true(holds(node, &found->disk));
    check_snapshots(node, found);
    test_close(node);
    node = test_open(true, &err);
    assert_non_null(node);
    check_references(node->state);
    test_close(node);
    mem_file_free(mem_file);
    mem_file = live;
    mem_yields = true;
}

/* ---- Power cuts ---- */

static void step_with_cuts(Model *model, const Shape *shape)
{
    AUTO_FREE Model *after = mem_zalloc(sizeof(*after));
    Step step = choose(model, shape);
    CoGroup group;

    *after = *model;
    follow(after, &step);
    co_group_init(&group);
    co_start(&group, "step", run_step, &step);
    while (!step.finished) {
        for (uint64_t n = 1 + test_random(400); n && !step.finished; n--)
            (void)!co_yield ();
        cut_and_check(model, after);
    }
    co_group_join(&group);
    assert_int_equal(step.result, 0);
    *model = *after;
    cut_and_check(model, model);
    assert_true(holds(model->node, &model->disk));
}

static void run_cuts(void *arg)
{
    const Shape *shape = arg;
    AUTO_FREE Model *model = mem_zalloc(sizeof(*model));
    AUTO_ERROR Error err = ERROR_INIT;

    mem_corruptions = 0;
    make_image(shape, model);
    model->node = test_open(false, &err);
    assert_non_null(model->node);
    for (unsigned i = 0; i < STEPS; i++) {
        for (uint64_t n = test_random(6); n; n--)
            write_something(model);
        assert_int_equal(driver_qcow2.flush(model->node), 0);
        step_with_cuts(model, shape);
    }
    test_close(model->node);
    assert_int_equal(mem_corruptions, 0);
    free_files();
}

static const Shape shapes[] = {
    {.cluster_size = 512, .refcount_bits = 16, .snapshots = 6},
    {.cluster_size = 512, .refcount_bits = 64, .snapshots = 4, .tiny = true},
    {.cluster_size = 4096, .refcount_bits = 4, .snapshots = 4},
    {.cluster_size = 4096, .refcount_bits = 16, .snapshots = 4, .backing = true},
    {.cluster_size = 65536, .refcount_bits = 16, .snapshots = 4},
    {.cluster_size = 16384, .refcount_bits = 8, .snapshots = 4, .extended = true, .backing = true},
};

static void test_power_cuts(void **state)
{
    for (uint64_t i = 0; i < ARRAY_SIZE(shapes) * RUNS; i++) {
        test_random_seed(i + 1);
        test_run(run_cuts, (void *)&shapes[i % ARRAY_SIZE(shapes)]);
    }
}

/* ---- Failures ---- */

/* Nothing has happened, in memory and in the file. */
static void expect_unchanged(Model *model)
{
    AUTO_ERROR Error err = ERROR_INIT;
    const Qcow2 *q = model->node->state;

    assert_false(q->corrupt);
    assert_true(has_all(model->node, model));
    assert_true(holds(model->node, &model->disk));
    test_close(model->node);
    model->node = test_open(false, &err);
    assert_non_null(model->node);
    check_references(model->node->state);
    assert_true(has_all(model->node, model));
    assert_true(holds(model->node, &model->disk));
}

/* Until it succeeds, writes fail more and more seldom, or the file may grow more and more. */
static void step_with_failures(Model *model, const Shape *shape, bool full)
{
    Step step = choose(model, shape);
    unsigned faults = 300;

    mem_limit = full ? mem_file->size : UINT64_C(1) << 30;
    for (;;) {
        mem_faults = full ? 0 : faults;
        run_step(&step);
        mem_faults = 0;
        if (step.result == 0)
            break;
        if (((Qcow2 *)model->node->state)->corrupt) { /* the header could be either one */
            AUTO_ERROR Error err = ERROR_INIT;

            test_close(model->node);
            model->node = test_open(false, &err);
            assert_non_null(model->node);
            if (!has_all(model->node, model) || !holds(model->node, &model->disk))
                break;
        }
        expect_unchanged(model);
        faults = faults * 2 / 3;
        mem_limit += full ? shape->cluster_size : 0;
    }
    mem_limit = UINT64_C(1) << 30;
    follow(model, &step);
    expect_unchanged(model);
}

static void run_failures(void *arg)
{
    const Shape *shape = arg;
    AUTO_FREE Model *model = mem_zalloc(sizeof(*model));
    AUTO_ERROR Error err = ERROR_INIT;

    mem_corruptions = 0;
    mem_yields = false;
    make_image(shape, model);
    model->node = test_open(false, &err);
    assert_non_null(model->node);
    for (unsigned i = 0; i < STEPS; i++) {
        for (uint64_t n = test_random(6); n; n--)
            write_something(model);
        step_with_failures(model, shape, i % 2);
    }
    check_snapshots(model->node, model);
    test_close(model->node);
    assert_int_equal(mem_corruptions, 0);
    free_files();
    mem_yields = true;
}

static void test_failures(void **state)
{
    for (uint64_t i = 0; i < ARRAY_SIZE(shapes) * RUNS; i++) {
        test_random_seed(i + 1);
        test_run(run_failures, (void *)&shapes[i % ARRAY_SIZE(shapes)]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_power_cuts), cmocka_unit_test(test_failures)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
