/* SPDX-License-Identifier: Apache-2.0 */
/* Dirty bitmaps of nodes: what requests mark, from several loops, too; searching, merging, saving, bytes;
 * sizes that change; a driver that keeps a journal. */
#include "block/test-nodes.h"

#include "base/mem.h"
#include "block/bitmap.h"
#include "loop/iothread.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define NODE_BYTES (1 * MIB)
#define GRANULARITY 4096

/* ---- A disk that forgets what is written, grows when it is written to, and has a journal ---- */

static unsigned begun, ended;
static uint64_t marked_at_end; /* dirty bytes of `watched` when write_end came */
static DirtyBitmap *watched;
static int begin_result, write_result;

static int disk_write(Node *node, uint64_t offset, IoSlice src, unsigned flags)
{
    assert_true(co_yield () == 0);
    return write_result;
}

static int disk_discard(Node *node, uint64_t offset, uint64_t bytes)
{
    return 0;
}

static int disk_resize(
    Node *node, uint64_t size, bool exact, Preallocation prealloc, unsigned flags, Error *err)
{
    node->size = size;
    return 0;
}

static int write_begin(Node *node, uint64_t offset, uint64_t bytes)
{
    begun++;
    return begin_result;
}

static void write_end(Node *node, uint64_t offset, uint64_t bytes)
{
    ended++;
    marked_at_end = watched ? dirty_bitmap_count(watched) : 0;
}

static const DriverBitmaps disk_bitmaps = {.write_begin = write_begin, .write_end = write_end};

static const Driver disk_driver = {.name = "disk",
    .flags = DRIVER_ANY_LOOP,
    .write = disk_write,
    .discard = disk_discard,
    .resize = disk_resize,
    .bitmaps = &disk_bitmaps};

static Node *new_node(Edge **ret_edge)
{
    char json[100];
    Node *node;

    block_init();
    snprintf(json, sizeof(json), "{'driver': 'null-co', 'node-name': 'n', 'size': %u}", (unsigned)NODE_BYTES);
    node = test_add(json);
    node->driver = &disk_driver;
    node->discard_unmap = true;
    *ret_edge = test_open_root(node, PERM_WRITE | PERM_RESIZE);
    return node;
}

static DirtyBitmap *new_bitmap(Node *node, const char *name, uint32_t granularity)
{
    Error err = ERROR_INIT;
    DirtyBitmap *bitmap;

    if (dirty_bitmap_new(node, name, granularity, &bitmap, &err) < 0)
        fail_msg("%s", err.message);
    return bitmap;
}

static void done(Edge *edge)
{
    edge_close(edge);
    node_close_all();
    object_del_all();
}

static int write_at(Edge *edge, uint64_t offset, size_t bytes)
{
    static uint8_t data[256 * KIB];

    return edge_pwrite(edge, offset, data, bytes, 0);
}

static void assert_next(const DirtyBitmap *bitmap, uint64_t from, uint64_t offset, uint64_t bytes)
{
    uint64_t found_offset, found_bytes;

    assert_true(
        dirty_bitmap_next_dirty(bitmap, from, dirty_bitmap_size(bitmap), &found_offset, &found_bytes));
    assert_int_equal(found_offset, offset);
    assert_int_equal(found_bytes, bytes);
}

LOOP_TEST(requests_mark_what_they_touch)
{
    Edge *edge;
    Node *node = new_node(&edge);
    DirtyBitmap *bitmap = new_bitmap(node, "b", GRANULARITY);

    assert_int_equal(write_at(edge, 4095, 2), 0);
    assert_next(bitmap, 0, 0, 8192);
    dirty_bitmap_clear(bitmap);
    assert_int_equal(edge_write_zeroes(edge, 65536, 4096, 0), 0);
    assert_int_equal(edge_discard(edge, 131072, 1), 0);
    assert_next(bitmap, 0, 65536, 4096);
    assert_next(bitmap, 69632, 131072, 4096);
    assert_int_equal(dirty_bitmap_count(bitmap), 8192);
    assert_true(dirty_bitmap_get(bitmap, 131073));
    assert_false(dirty_bitmap_get(bitmap, 135168));
    done(edge);
    return 0;
}

LOOP_TEST(failed_writes_mark_and_refused_ones_do_not)
{
    Edge *edge;
    Node *node = new_node(&edge);
    DirtyBitmap *bitmap = new_bitmap(node, "b", GRANULARITY);

    assert_int_equal(write_at(edge, NODE_BYTES - 1, 2), -EIO);
    assert_int_equal(dirty_bitmap_count(bitmap), 0);
    write_result = -ENOSPC;
    assert_int_equal(write_at(edge, 0, 1), -ENOSPC);
    write_result = 0;
    assert_int_equal(dirty_bitmap_count(bitmap), 4096);
    done(edge);
    return 0;
}

LOOP_TEST(disabled_bitmaps_stay_as_they_are)
{
    Edge *edge;
    Node *node = new_node(&edge);
    DirtyBitmap *off = new_bitmap(node, "off", GRANULARITY), *on;

    dirty_bitmap_set_enabled(off, false);
    assert_int_equal(node->private->tracking, 0);
    on = new_bitmap(node, NULL, 65536);
    assert_int_equal(write_at(edge, 0, 1), 0);
    assert_int_equal(dirty_bitmap_count(off), 0);
    assert_int_equal(dirty_bitmap_count(on), 65536);
    dirty_bitmap_free(on);
    assert_int_equal(node->private->tracking, 0);
    dirty_bitmap_set_enabled(off, true);
    assert_int_equal(write_at(edge, 0, 1), 0);
    assert_int_equal(dirty_bitmap_count(off), 4096);
    done(edge);
    return 0;
}

LOOP_TEST(a_write_is_marked_before_the_journal_hears_of_its_end)
{
    Edge *edge;
    Node *node = new_node(&edge);

    begun = ended = 0;
    watched = new_bitmap(node, "b", GRANULARITY);
    assert_int_equal(write_at(edge, 0, 1), 0);
    assert_int_equal(begun, 0);
    node_journal_writes(node, true);
    assert_int_equal(write_at(edge, 8192, 1), 0);
    assert_int_equal(begun, 1);
    assert_int_equal(ended, 1);
    assert_int_equal(marked_at_end, 8192);
    begin_result = -EIO; /* the write is not carried out */
    assert_int_equal(write_at(edge, 16384, 1), -EIO);
    begin_result = 0;
    assert_int_equal(ended, 1);
    assert_int_equal(dirty_bitmap_count(watched), 8192);
    watched = NULL;
    done(edge);
    return 0;
}

LOOP_TEST(bitmaps_follow_the_size_of_the_node)
{
    Edge *edge;
    Node *node = new_node(&edge);
    DirtyBitmap *bitmap = new_bitmap(node, "b", GRANULARITY);
    Error err = ERROR_INIT;

    assert_int_equal(write_at(edge, NODE_BYTES - 1, 1), 0);
    assert_int_equal(edge_resize(edge, 2 * NODE_BYTES + 1, false, PREALLOCATION_OFF, 0, &err), 0);
    assert_int_equal(dirty_bitmap_size(bitmap), 2 * NODE_BYTES + 1);
    assert_int_equal(write_at(edge, 2 * NODE_BYTES, 1), 0);
    assert_next(bitmap, NODE_BYTES, 2 * NODE_BYTES, 1);
    assert_int_equal(dirty_bitmap_count(bitmap), 2 * 4096);
    assert_int_equal(edge_resize(edge, NODE_BYTES / 2, false, PREALLOCATION_OFF, 0, &err), 0);
    assert_int_equal(dirty_bitmap_count(bitmap), 0);
    done(edge);
    return 0;
}

/* As the file below an image does. */
LOOP_TEST(a_node_that_grows_by_writing)
{
    Edge *edge;
    Node *node = new_node(&edge);
    DirtyBitmap *bitmap = new_bitmap(node, "b", GRANULARITY);

    edge->parent = node; /* what is allowed to write behind the end */
    assert_int_equal(write_at(edge, 3 * NODE_BYTES, 4096), 0);
    edge->parent = NULL;
    assert_int_equal(dirty_bitmap_size(bitmap), 3 * NODE_BYTES + 4096);
    assert_next(bitmap, 0, 3 * NODE_BYTES, 4096);
    done(edge);
    return 0;
}

LOOP_TEST(behind_the_end_everything_is_clean)
{
    Edge *edge;
    Node *node = new_node(&edge);
    DirtyBitmap *bitmap = new_bitmap(node, "b", 65536);
    uint64_t offset, bytes;

    dirty_bitmap_set(bitmap, NODE_BYTES - 1, 1);
    assert_true(dirty_bitmap_next_dirty(bitmap, 0, 10 * NODE_BYTES, &offset, &bytes));
    assert_int_equal(offset, NODE_BYTES - 65536);
    assert_int_equal(bytes, 65536);
    assert_false(dirty_bitmap_next_dirty(bitmap, NODE_BYTES, 10 * NODE_BYTES, &offset, &bytes));
    assert_false(dirty_bitmap_next_dirty(bitmap, 9 * NODE_BYTES + 1, 9 * NODE_BYTES + 2, &offset, &bytes));
    assert_int_equal(dirty_bitmap_next_clean(bitmap, NODE_BYTES - 1, 10 * NODE_BYTES), NODE_BYTES);
    assert_int_equal(
        dirty_bitmap_next_clean(bitmap, 5 * NODE_BYTES + 1, 10 * NODE_BYTES), 5 * NODE_BYTES + 1);
    done(edge);
    return 0;
}

LOOP_TEST(resetting_keeps_what_is_covered_in_part)
{
    Edge *edge;
    Node *node = new_node(&edge);
    DirtyBitmap *bitmap = new_bitmap(node, "b", GRANULARITY);

    dirty_bitmap_set(bitmap, 0, NODE_BYTES);
    dirty_bitmap_reset(bitmap, 1, 8192);
    assert_int_equal(dirty_bitmap_next_clean(bitmap, 0, NODE_BYTES), 4096);
    assert_next(bitmap, 4096, 8192, NODE_BYTES - 8192);
    dirty_bitmap_reset(bitmap, 8192, 100);
    assert_true(dirty_bitmap_get(bitmap, 8192));
    dirty_bitmap_clear(bitmap);
    assert_int_equal(dirty_bitmap_count(bitmap), 0);
    done(edge);
    return 0;
}

LOOP_TEST(merging_different_granularities)
{
    Edge *edge;
    Node *node = new_node(&edge);
    DirtyBitmap *fine = new_bitmap(node, "fine", 512), *coarse = new_bitmap(node, "coarse", 65536);
    Error err = ERROR_INIT;

    dirty_bitmap_set(fine, 65535, 2);
    assert_int_equal(dirty_bitmap_merge(coarse, fine, &err), 0);
    assert_next(coarse, 0, 0, 131072);
    dirty_bitmap_clear(fine);
    assert_int_equal(dirty_bitmap_merge(fine, coarse, &err), 0);
    assert_int_equal(dirty_bitmap_count(fine), 131072);
    done(edge);
    return 0;
}

LOOP_TEST(what_is_saved_comes_back)
{
    Edge *edge;
    Node *node = new_node(&edge);
    DirtyBitmap *bitmap = new_bitmap(node, "b", GRANULARITY);
    DirtyBitmapSaved *saved;
    Error err = ERROR_INIT;

    dirty_bitmap_set(bitmap, 0, 4096);
    assert_int_equal(dirty_bitmap_save(bitmap, &saved, &err), 0);
    assert_int_equal(dirty_bitmap_count(bitmap), 4096);
    dirty_bitmap_clear(bitmap);
    dirty_bitmap_set(bitmap, NODE_BYTES - 4096, 4096);
    dirty_bitmap_restore(bitmap, saved);
    assert_int_equal(dirty_bitmap_count(bitmap), 4096);
    assert_next(bitmap, 0, 0, 4096);
    done(edge);
    return 0;
}

LOOP_TEST(bytes_are_the_format_of_images)
{
    Edge *edge;
    Node *node = new_node(&edge);
    DirtyBitmap *from = new_bitmap(node, "from", GRANULARITY), *to = new_bitmap(node, "to", GRANULARITY);
    uint8_t bytes[64];

    dirty_bitmap_set(from, 0, 1);
    dirty_bitmap_set(from, 9 * GRANULARITY, 1);
    dirty_bitmap_set(from, NODE_BYTES - 1, 1);
    assert_int_equal(dirty_bitmap_stored_bytes(from), 32);
    memset(bytes, 0xff, sizeof(bytes));
    dirty_bitmap_to_bytes(from, 0, bytes, 33);
    assert_int_equal(bytes[0], 1);
    assert_int_equal(bytes[1], 2);
    assert_int_equal(bytes[31], 0x80);
    assert_int_equal(bytes[32], 0);
    assert_int_equal(bytes[33], 0xff);
    memset(bytes + 32, 0xff, 32); /* behind the end: ignored */
    dirty_bitmap_from_bytes(to, 0, bytes, 8);
    dirty_bitmap_from_bytes(to, 8, bytes + 8, 56);
    assert_int_equal(dirty_bitmap_count(to), 3 * GRANULARITY);
    assert_next(to, 1, 1, GRANULARITY - 1);
    assert_next(to, GRANULARITY, 9 * GRANULARITY, GRANULARITY);
    done(edge);
    return 0;
}

LOOP_TEST(what_is_refused)
{
    Edge *edge;
    Node *node = new_node(&edge);
    DirtyBitmap *bitmap = new_bitmap(node, "b", GRANULARITY), *other;
    char name[1030];
    Error err = ERROR_INIT;

    assert_int_equal(dirty_bitmap_new(node, "b", 512, &other, &err), -EEXIST);
    err_done(&err);
    memset(name, 'n', sizeof(name));
    name[1024] = '\0';
    assert_int_equal(dirty_bitmap_new(node, name, 512, &other, &err), -EINVAL);
    err_done(&err);
    name[1023] = '\0';
    dirty_bitmap_free(new_bitmap(node, name, 512));
    node->size = LIMIT_NODE_BYTES;
    assert_int_equal(dirty_bitmap_new(node, "big", 65536, &other, &err), -EFBIG);
    err_done(&err);
    node_size_changed(node); /* the one that exists cannot grow as far */
    assert_true(dirty_bitmap_is_inconsistent(bitmap));
    assert_int_equal(node->private->tracking, 0);
    assert_int_equal(dirty_bitmap_check(bitmap, DIRTY_BITMAP_LOOK, &err), -EINVAL);
    err_done(&err);
    done(edge);
    return 0;
}

/* ---- Several loops ---- */

#define LOOPS 3
#define WRITES 200

static Edge *shared_edge;

static int write_much(void *arg)
{
    uint64_t first = (uintptr_t)arg;

    for (uint64_t i = 0; i < WRITES; i++)
        assert_int_equal(edge_write_zeroes(shared_edge, (first + i * LOOPS) * 512, 512, 0), 0);
    return 0;
}

static void write_on(void *arg)
{
    uintptr_t number = (uintptr_t)arg;
    char id[8];

    snprintf(id, sizeof(id), "t%u", (unsigned)number);
    assert_int_equal(loop_call(iothread_loop(object_find(id)), write_much, arg), 0);
}

LOOP_TEST(several_loops_mark_while_bitmaps_come_and_go)
{
    DirtyBitmap *bitmap, *other;
    Error err = ERROR_INIT;
    CoGroup group;
    Node *node = new_node(&shared_edge);

    co_group_init(&group);
    bitmap = new_bitmap(node, "b", 512);
    for (unsigned i = 0; i < LOOPS; i++) {
        char json[64];

        snprintf(json, sizeof(json), "{'qom-type': 'iothread', 'id': 't%u'}", i);
        ObjectOptions *options = test_options(&schema_type_ObjectOptions, json);
        assert_int_equal(object_add(options, &err), 0);
        object_options_free(options);
    }
    for (uintptr_t i = 0; i < LOOPS; i++)
        co_start(&group, "writer", write_on, (void *)i);
    for (unsigned i = 0; i < 20; i++) {
        other = new_bitmap(node, "other", 65536);
        assert_true(co_yield () == 0);
        dirty_bitmap_clear(other);
        assert_int_equal(dirty_bitmap_merge(other, bitmap, &err), 0);
        dirty_bitmap_free(other);
    }
    co_group_join(&group);
    assert_int_equal(dirty_bitmap_count(bitmap), LOOPS * WRITES * 512);
    assert_next(bitmap, 0, 0, LOOPS * WRITES * 512);
    done(shared_edge);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(requests_mark_what_they_touch),
        cmocka_unit_test(failed_writes_mark_and_refused_ones_do_not),
        cmocka_unit_test(disabled_bitmaps_stay_as_they_are),
        cmocka_unit_test(a_write_is_marked_before_the_journal_hears_of_its_end),
        cmocka_unit_test(bitmaps_follow_the_size_of_the_node),
        cmocka_unit_test(a_node_that_grows_by_writing),
        cmocka_unit_test(behind_the_end_everything_is_clean),
        cmocka_unit_test(resetting_keeps_what_is_covered_in_part),
        cmocka_unit_test(merging_different_granularities),
        cmocka_unit_test(what_is_saved_comes_back),
        cmocka_unit_test(bytes_are_the_format_of_images),
        cmocka_unit_test(what_is_refused),
        cmocka_unit_test(several_loops_mark_while_bitmaps_come_and_go),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
