/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bitmaps that survive power cuts. Coroutines write, zero, discard and flush, and one gives commands; at a
 * random moment the test takes what a disk might hold and opens that. Each bitmap must show every granule
 * that a write may have changed, and over all runs far from every granule. The next load begins on what the
 * cut has left, so crashes follow crashes.
 */
#include "base/mem.h"
#include "drivers/qcow2/stored.h"
#include "drivers/qcow2/test-bitmaps.h"
#include "generated/types.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

#define DISK_BYTES (8 * MIB)
#define GRANULE 4096
#define GRANULES (2 * DISK_BYTES / GRANULE) /* the disk may grow to twice its size */
#define MODELS 4
#define WORKERS 5
#define LIVES 4 /* of an image, from crash to crash */

extern const Driver driver_qcow2;

/* What a bitmap must show at least. */
typedef struct Model {
    bool exists;  /* a command that made it was answered, and none that removes it was given */
    bool changes; /* a command is under way: whether it exists is not known */
    bool counts;  /* it is enabled: writes are marked */
    uint8_t granules[GRANULES];
} Model;

typedef struct Load {
    Node *node;
    unsigned operations;
    unsigned busy; /* requests in flight */
    bool drained;  /* no new ones */
    bool resizing; /* a crash may lose all bitmaps */
    Model models[MODELS];
} Load;

/* Over all runs. */
static uint64_t shown, demanded, possible, lost, recovered;

static const char *name_of(unsigned i)
{
    static const char *const names[MODELS] = {"a", "bitmap-b", "c", "d"};

    return names[i];
}

/* ---- Requests ---- */

/* From here on the disk may hold a part of the write. */
static void demand(Load *load, uint64_t offset, uint64_t bytes)
{
    for (unsigned i = 0; i < MODELS; i++)
        for (uint64_t g = offset / GRANULE; load->models[i].counts && g <= (offset + bytes - 1) / GRANULE;
             g++)
            load->models[i].granules[g] = 1;
}

static int change_now(Load *load, uint64_t offset, uint64_t bytes, unsigned kind)
{
    AUTO_FREE uint8_t *data = mem_zalloc(bytes);
    struct iovec iov;

    memset(data, 1 + (int)test_random(255), bytes);
    if (kind == 0)
        return driver_qcow2.discard(load->node, align_down(offset, 65536),
            MIN(UINT64_C(65536), load->node->size - align_down(offset, 65536)));
    if (kind == 1)
        return driver_qcow2.write_zeroes(load->node, offset, bytes, REQ_MAY_UNMAP);
    return driver_qcow2.write(
        load->node, offset, io_slice_of(&iov, data, bytes), test_random(8) ? 0 : REQ_FUA);
}

static void change(Load *load)
{
    uint64_t offset = test_random(load->node->size / 512) * 512, bytes;
    unsigned kind = (unsigned)test_random(10);

    if (test_random(3)) /* mostly in a few places, so that regions come to rest */
        offset = offset % (256 * KIB);
    bytes = MIN((1 + test_random(test_random(10) ? 16 : 300)) * 512, load->node->size - offset);
    if (kind == 0) {
        offset = align_down(offset, 65536);
        bytes = MIN(UINT64_C(65536), load->node->size - offset);
    }
    assert_int_equal(test_change_begin(load->node, offset, bytes), 0);
    demand(load, offset, bytes);
    (void)!change_now(load, offset, bytes, kind); /* zeroing part of a cluster may be left to the graph */
    test_change_end(load->node, offset, bytes);
}

static void worker(void *arg)
{
    Load *load = arg;

    while (load->operations) {
        if (load->drained) {
            (void)!co_yield ();
            test_pause();
            continue;
        }
        load->operations--;
        load->busy++;
        if (test_random(6))
            change(load);
        else
            assert_int_equal(driver_qcow2.flush(load->node), 0);
        load->busy--;
        test_pause();
    }
}

/* ---- Commands ---- */

static const DriverBitmaps *hooks(void)
{
    return driver_qcow2.bitmaps;
}

static void add(Load *load, unsigned i)
{
    AUTO_ERROR Error err = ERROR_INIT;
    Model *m = &load->models[i];
    DirtyBitmap *bitmap;

    m->changes = true;
    memset(m->granules, 0, sizeof(m->granules));
    assert_int_equal(hooks()->can_add(load->node, name_of(i), GRANULE, &err), 0);
    assert_int_equal(dirty_bitmap_new(load->node, name_of(i), GRANULE, &bitmap, &err), 0);
    dirty_bitmap_set_persistent(bitmap, true);
    assert_int_equal(hooks()->added(load->node, bitmap, &err), 0);
    m->exists = m->counts = true;
    m->changes = false;
}

static void drop(Load *load, unsigned i, DirtyBitmap *bitmap)
{
    AUTO_ERROR Error err = ERROR_INIT;
    Model *m = &load->models[i];

    m->changes = true;
    m->exists = m->counts = false;
    assert_int_equal(hooks()->remove(load->node, bitmap, &err), 0);
    dirty_bitmap_free(bitmap);
    m->changes = false;
}

/* Bits that come by a command count from its answer on; those that go, from its beginning. */
static void alter(Load *load, unsigned i, DirtyBitmap *bitmap)
{
    AUTO_ERROR Error err = ERROR_INIT;
    Model *m = &load->models[i];
    uint64_t at = test_random(load->node->size / GRANULE) * GRANULE;
    unsigned kind = (unsigned)test_random(3);
    bool enabled = !dirty_bitmap_is_enabled(bitmap);

    if (kind == 0) {
        memset(m->granules, 0, sizeof(m->granules));
        dirty_bitmap_clear(bitmap);
    } else if (kind == 1) {
        dirty_bitmap_set(bitmap, at, GRANULE);
    } else {
        m->counts = false;
        dirty_bitmap_set_enabled(bitmap, enabled);
    }
    assert_int_equal(hooks()->changed(load->node, bitmap, &err), 0);
    if (kind == 1)
        m->granules[at / GRANULE] = 1;
    m->counts = dirty_bitmap_is_enabled(bitmap);
}

static void resize(Load *load)
{
    AUTO_ERROR Error err = ERROR_INIT;
    uint64_t size = DISK_BYTES / 2 + test_random(DISK_BYTES / 512) * 512;

    for (unsigned i = 0; i < MODELS; i++) {
        const DirtyBitmap *bitmap = dirty_bitmap_find(load->node, name_of(i));

        if (bitmap && dirty_bitmap_is_inconsistent(bitmap))
            return;
    }
    load->resizing = true;
    if (driver_qcow2.resize(load->node, size, false, PREALLOCATION_OFF, 0, &err) < 0)
        fail_msg("%s", err.message);
    for (unsigned i = 0; i < MODELS; i++)
        memset(load->models[i].granules + div_round_up(size, GRANULE), 0,
            GRANULES - div_round_up(size, GRANULE));
    test_bitmaps_resize(load->node, size);
    change(load); /* the journal begins again */
    load->resizing = false;
}

static void command(Load *load)
{
    unsigned i = (unsigned)test_random(MODELS);
    DirtyBitmap *bitmap = dirty_bitmap_find(load->node, name_of(i));

    if (!test_random(25))
        resize(load);
    else if (!bitmap)
        add(load, i);
    else if (dirty_bitmap_is_inconsistent(bitmap) || !test_random(6))
        drop(load, i, bitmap);
    else
        alter(load, i, bitmap);
}

static void commander(void *arg)
{
    Load *load = arg;

    while (load->operations) {
        for (uint64_t n = test_random(40); n && load->operations; n--)
            test_pause();
        load->drained = true;
        while (load->busy) {
            (void)!co_yield ();
            test_pause();
        }
        command(load);
        load->drained = false;
        (void)!co_yield ();
    }
}

/* ---- Checks ---- */

typedef struct Uses {
    Qcow2 *q;
    uint64_t clusters;
    uint8_t *counts;
} Uses;

static int use(void *arg, uint64_t offset, uint64_t bytes)
{
    Uses *u = arg;

    for (uint64_t c = offset >> u->q->cluster_bits; c <= (offset + bytes - 1) >> u->q->cluster_bits; c++) {
        uint64_t refs = 0;

        assert_true(c < u->clusters);
        assert_int_equal(u->counts[c]++, 0);
        assert_int_equal(refcount_read(u->q, c, &refs), 0);
        assert_true(refs >= 1);
    }
    return 0;
}

/* No cluster of the bitmaps is used by anything else, or counted as free. */
static void check_clusters(const MemFile *file, Qcow2 *q)
{
    Uses u = {.q = q, .clusters = div_round_up(file->size, q->cluster_size) + 64};

    u.counts = mem_zalloc(u.clusters);
    assert_int_equal(use(&u, 0, 1), 0);
    assert_int_equal(use(&u, q->l1_offset, q->l1_entries * UINT64_C(8)), 0);
    assert_int_equal(use(&u, q->rt_offset, q->header.rt_clusters * q->cluster_size), 0);
    for (uint64_t i = 0; i < q->rt_entries; i++)
        if (q->rt[i])
            assert_int_equal(use(&u, q->rt[i], 1), 0);
    for (uint64_t i = 0; i < q->l1_entries; i++) {
        uint64_t table = q->l1[i] & QCOW2_OFFSET_MASK;

        if (table)
            assert_int_equal(use(&u, table, 1), 0);
        for (uint32_t k = 0; table && k < 1U << q->l2_bits; k++) {
            uint64_t entry = slice_entry(q, file->data + table, k) & QCOW2_OFFSET_MASK;

            if (entry)
                assert_int_equal(use(&u, entry, 1), 0);
        }
    }
    assert_int_equal(image_walk_bitmaps(q, use, &u), 0);
    free(u.counts);
}

static void check_bitmap(const Load *load, Node *node, const Model *m, const DirtyBitmap *bitmap)
{
    uint64_t count = div_round_up(node->size, GRANULE);

    assert_non_null(bitmap);
    if (dirty_bitmap_is_inconsistent(bitmap)) {
        assert_true(load->resizing);
        lost++;
        return;
    }
    assert_int_equal(dirty_bitmap_is_enabled(bitmap) || !m->counts, 1);
    for (uint64_t g = 0; g < count; g++) {
        bool is_shown = dirty_bitmap_get(bitmap, g * GRANULE);

        assert_true(is_shown || !m->granules[g]);
        shown += is_shown;
        demanded += m->granules[g];
    }
    possible += count;
    recovered++;
}

static void check_bitmaps(const Load *load, Node *node)
{
    for (unsigned i = 0; i < MODELS; i++)
        if (load->models[i].exists && !load->models[i].changes)
            check_bitmap(load, node, &load->models[i], dirty_bitmap_find(node, name_of(i)));
}

/* Opens what is left of the image, read-only and to write, and looks. */
static void open_and_check(const Load *load, MemFile *cut)
{
    MemFile *live = mem_file, *copy = mem_file_new(cut->data, cut->size, false);

    mem_yields = false;
    for (unsigned writable = 0; writable < 2; writable++) {
        AUTO_ERROR Error err = ERROR_INIT;
        Node *node;

        mem_file = writable ? copy : cut;
        node = test_open(!writable, &err);
        assert_non_null(node);
        check_bitmaps(load, node);
        if (writable)
            check_clusters(copy, node->state);
        test_close(node);
        assert_true(writable || memcmp(cut->data, copy->data, cut->size) == 0);
    }
    mem_file = copy; /* has been opened to write and closed: everything is clean and known now */
    {
        AUTO_ERROR Error err = ERROR_INIT;
        Node *node = test_open(true, &err);
        const Qcow2 *q = node->state;

        check_bitmaps(load, node);
        for (size_t i = 0; i < q->stored->count; i++)
            assert_true(
                stored_is_usable(q->stored->items[i]) == !(q->stored->items[i]->flags & QCOW2_BITMAP_IN_USE));
        assert_int_equal(q->stored->log_offset, 0);
        test_close(node);
    }
    mem_file_free(copy);
    mem_file = live;
    mem_yields = true;
}

/* A program that does not know the journal has written to the image. */
static void check_foreign_write(const Load *load, const MemFile *cut)
{
    AUTO_ERROR Error err = ERROR_INIT;
    MemFile *live = mem_file;
    Node *node;

    mem_file = mem_file_new(cut->data, cut->size, false);
    put_be64(mem_file->data + QCOW2_AT_AUTOCLEAR,
        get_be64(mem_file->data + QCOW2_AT_AUTOCLEAR) & ~QCOW2_AUTOCLEAR_JOURNAL);
    mem_yields = false;
    node = test_open(true, &err);
    assert_non_null(node);
    for (size_t i = 0; i < ((Qcow2 *)node->state)->stored->count; i++) {
        const StoredBitmap *item = ((Qcow2 *)node->state)->stored->items[i];

        assert_int_equal(
            dirty_bitmap_is_inconsistent(item->bitmap), (item->flags & QCOW2_BITMAP_IN_USE) != 0);
    }
    test_close(node);
    mem_yields = true;
    mem_file_free(mem_file);
    mem_file = live;
}

/* ---- Lives ---- */

static BlockdevRef any_file = {.type = BLOCKDEV_REF_KIND_REFERENCE, .u.reference = (char *)"file"};

static void make_image(uint64_t cluster_size, bool backing)
{
    AUTO_ERROR Error err = ERROR_INIT;
    BlockdevCreateOptions options = {.u.qcow2 = {.file = &any_file,
                                         .backing_file = backing ? (char *)"a name" : NULL,
                                         .size = DISK_BYTES,
                                         .has_cluster_size = true,
                                         .cluster_size = cluster_size}};

    mem_file = mem_file_new(NULL, 0, false);
    assert_int_equal(driver_qcow2.create(&options, &err), 0);
}

static void record(void)
{
    MemFile *before = mem_file;

    mem_file = mem_file_new(before->data, before->size, true);
    mem_file_free(before);
}

/* A bitmap may be there or not if a command was under way; what is there is where the next life begins. */
static void settle(Load *load)
{
    for (unsigned i = 0; i < MODELS; i++) {
        DirtyBitmap *bitmap = dirty_bitmap_find(load->node, name_of(i));
        Model *m = &load->models[i];
        bool usable = bitmap && !dirty_bitmap_is_inconsistent(bitmap);

        if (!m->exists || m->changes)
            memset(m->granules, 0, sizeof(m->granules));
        m->exists = usable;
        m->changes = false;
        m->counts = usable && dirty_bitmap_is_enabled(bitmap);
        if (bitmap && !usable) /* nothing is known of it any more */
            memset(m->granules, 0, sizeof(m->granules));
    }
    load->resizing = load->drained = false;
    load->busy = 0;
}

/* Runs a load and cuts it off; *load is what was true at the cut, mem_file what the disk holds. */
static void live(Load *load, bool end_cleanly)
{
    AUTO_ERROR Error err = ERROR_INIT;
    AUTO_FREE Load *then = mem_zalloc(sizeof(*then));
    MemFile *cut = NULL;
    CoGroup group;

    record();
    load->node = test_open(false, &err);
    if (!load->node)
        fail_msg("%s", err.message);
    settle(load);
    load->operations = 150 + (unsigned)test_random(500);
    co_group_init(&group);
    for (unsigned i = 0; i < WORKERS; i++)
        co_start(&group, "load", worker, load);
    co_start(&group, "commands", commander, load);
    while (load->operations && !end_cleanly) {
        for (uint64_t n = test_random(400); n && load->operations; n--)
            test_pause();
        mem_file_free(cut);
        cut = mem_file_cut(mem_file);
        *then = *load;
        open_and_check(then, cut);
        check_foreign_write(then, cut);
        if (!test_random(6)) /* what happens after the cut is not looked at */
            load->operations = 0;
    }
    co_group_join(&group);
    test_close(load->node);
    if (cut) {
        mem_file_free(mem_file);
        mem_file = cut;
        *load = *then;
    }
}

typedef struct Shape {
    uint64_t cluster_size;
    bool backing;
} Shape;

static void run_lives(void *arg)
{
    const Shape *shape = arg;
    AUTO_FREE Load *load = mem_zalloc(sizeof(*load));

    mem_corruptions = 0;
    make_image(shape->cluster_size, shape->backing);
    mem_backing = shape->backing ? mem_file_new("backing", 8, false) : NULL;
    for (unsigned i = 0; i < LIVES; i++)
        live(load, test_random(4) == 0);
    open_and_check(load, mem_file);
    assert_int_equal(mem_corruptions, 0);
    mem_file_free(TAKE(mem_file));
    mem_file_free(TAKE(mem_backing));
}

static void test_power_cuts(void **state)
{
    static const Shape shapes[] = {{.cluster_size = 65536}, {.cluster_size = 512}, {.cluster_size = 4096},
        {.cluster_size = 16384, .backing = true}};

    for (uint64_t i = 0; i < ARRAY_SIZE(shapes) * 4; i++) {
        test_random_seed(i + 1);
        test_run(run_lives, (void *)&shapes[i % ARRAY_SIZE(shapes)]);
    }
    print_message("shown %llu, demanded %llu of %llu granules; bitmaps recovered %llu, lost %llu\n",
        (unsigned long long)shown, (unsigned long long)demanded, (unsigned long long)possible,
        (unsigned long long)recovered, (unsigned long long)lost);
    assert_true(shown - demanded < (possible - demanded) / 2);
    assert_true(recovered > 10 * lost);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_power_cuts)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
