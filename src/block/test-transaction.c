/* SPDX-License-Identifier: Apache-2.0 */
/* Transactions over bitmaps that a driver keeps in the image: what it hears, in which order, and what is
 * undone. */
#include "block/test-nodes.h"

#include "base/mem.h"
#include "block/bitmap.h"
#include "generated/commands.h"

#include <errno.h>
#include <string.h>

/* ---- A disk with stored bitmaps ---- */

static StrBuf heard;
static const char *failing; /* what fails: "can_add", ... */
static unsigned in_flight;

static int hear(const char *what, const char *name, Error *err)
{
    assert_int_equal(in_flight, 0);
    strbuf_printf(&heard, "%s(%s) ", what, name);
    return str_eq(what, failing) ? err_set(err, -ENOSPC, "no room") : 0;
}

static int can_add(Node *node, const char *name, uint32_t granularity, Error *err)
{
    return hear("can_add", name, err);
}

static int added(Node *node, DirtyBitmap *bitmap, Error *err)
{
    return hear("added", dirty_bitmap_name(bitmap), err);
}

static int removed(Node *node, DirtyBitmap *bitmap, Error *err)
{
    return hear("removed", dirty_bitmap_name(bitmap), err);
}

static int changed(Node *node, DirtyBitmap *bitmap, Error *err)
{
    return hear(dirty_bitmap_is_enabled(bitmap) ? "changed" : "changed-off", dirty_bitmap_name(bitmap), err);
}

static int disk_write(Node *node, uint64_t offset, IoSlice src, unsigned flags)
{
    in_flight++;
    for (int i = 0; i < 10; i++)
        assert_true(co_yield () == 0);
    in_flight--;
    return 0;
}

static const DriverBitmaps disk_bitmaps = {
    .can_add = can_add, .added = added, .remove = removed, .changed = changed};

static const Driver disk_driver = {.name = "disk", .write = disk_write, .bitmaps = &disk_bitmaps};

static Node *new_node(void)
{
    Node *node;

    block_init();
    node = test_add("{'driver': 'null-co', 'node-name': 'n', 'size': 1048576}");
    node->driver = &disk_driver;
    failing = NULL;
    return node;
}

static void done(void)
{
    node_close_all();
    strbuf_done(&heard);
}

/* Runs the actions; the result, or the text of the failure. */
static void run(const char *actions, const char *expected)
{
    AUTO_FREE char *json = str_printf("{'actions': [%s]}", actions);
    TransactionArg *arg = test_options(&schema_type_TransactionArg, json);
    AUTO_ERROR Error err = ERROR_INIT;
    int r = qmp_transaction(arg, &err);

    schema_free(&schema_type_TransactionArg, arg);
    assert_string_equal(r < 0 ? err.message : "", expected);
}

static void assert_heard(const char *expected)
{
    AUTO_FREE char *text = strbuf_take(&heard);

    assert_string_equal(text, expected);
}

#define ACTION(kind, more) "{'type': 'block-dirty-bitmap-" kind "', 'data': {'node': 'n', " more "}}"
#define ADD ACTION("add", "'name': 'b', 'persistent': true")
#define REMOVE ACTION("remove", "'name': 'b'")
#define CLEAR ACTION("clear", "'name': 'b'")
#define DISABLE ACTION("disable", "'name': 'b'")
#define MERGE ACTION("merge", "'target': 'b', 'bitmaps': ['other']")
#define ABORT "{'type': 'abort', 'data': {}}"
#define ABORTED "Transaction aborted using Abort action"

LOOP_TEST(drivers_hear_of_persistent_bitmaps_only)
{
    Node *node = new_node();

    run(ACTION("add", "'name': 'other'"), "");
    assert_heard("");
    run(ADD "," CLEAR "," DISABLE "," MERGE "," REMOVE, "");
    assert_heard("can_add(b) added(b) changed(b) changed-off(b) changed-off(b) removed(b) ");
    assert_null(dirty_bitmap_find(node, "b"));
    done();
    return 0;
}

LOOP_TEST(a_driver_may_refuse_a_bitmap)
{
    Node *node = new_node();

    failing = "can_add";
    run(ADD, "no room");
    failing = "added";
    run(ADD, "no room");
    assert_heard("can_add(b) can_add(b) added(b) ");
    assert_null(dirty_bitmap_find(node, "b"));
    done();
    return 0;
}

LOOP_TEST(what_was_added_goes_again)
{
    Node *node = new_node();

    run(ADD "," ABORT, ABORTED);
    assert_heard("can_add(b) added(b) removed(b) ");
    assert_null(dirty_bitmap_find(node, "b"));
    done();
    return 0;
}

LOOP_TEST(what_was_removed_is_stored_again)
{
    Node *node = new_node();

    run(ADD, "");
    assert_heard("can_add(b) added(b) ");
    run(REMOVE "," ABORT, ABORTED);
    assert_heard("removed(b) added(b) ");
    assert_false(dirty_bitmap_is_busy(dirty_bitmap_find(node, "b")));
    failing = "removed";
    run(REMOVE, "no room");
    assert_false(dirty_bitmap_is_busy(dirty_bitmap_find(node, "b")));
    done();
    return 0;
}

LOOP_TEST(contents_and_state_come_back)
{
    Node *node = new_node();
    DirtyBitmap *b, *other;

    run(ADD "," ACTION("add", "'name': 'other'"), "");
    b = dirty_bitmap_find(node, "b");
    other = dirty_bitmap_find(node, "other");
    dirty_bitmap_set(b, 0, 1);
    dirty_bitmap_set(other, 500000, 1);
    run(MERGE "," CLEAR "," DISABLE "," ABORT, ABORTED);
    assert_heard(
        "can_add(b) added(b) changed(b) changed(b) changed-off(b) changed(b) changed(b) changed(b) ");
    assert_true(dirty_bitmap_is_enabled(b));
    assert_true(dirty_bitmap_get(b, 0));
    assert_false(dirty_bitmap_get(b, 500000));
    run(MERGE, "");
    assert_true(dirty_bitmap_get(b, 0) && dirty_bitmap_get(b, 500000));
    failing = "changed";
    run(CLEAR, "no room");
    assert_true(dirty_bitmap_get(b, 0) && dirty_bitmap_get(b, 500000));
    failing = "changed-off";
    run(DISABLE, "no room");
    assert_true(dirty_bitmap_is_enabled(b));
    done();
    return 0;
}

/* ---- Requests ---- */

static void writer(void *arg)
{
    uint8_t byte = 0;

    for (uint64_t i = 0; i < 8; i++)
        assert_int_equal(edge_pwrite(arg, i * 65536, &byte, 1, 0), 0);
}

LOOP_TEST(a_command_alone_does_not_wait_for_requests)
{
    Node *node = new_node();
    Edge *edge = test_open_root(node, PERM_WRITE);
    CoGroup group;

    co_group_init(&group);
    co_start(&group, "writer", writer, edge);
    run(ACTION("add", "'name': 'b'"), "");
    assert_true(co_yield () == 0);
    assert_int_equal(in_flight, 1);
    run(CLEAR, "");
    run(DISABLE, "");
    run(REMOVE, "");
    assert_int_equal(in_flight, 1);
    run(ACTION("add", "'name': 'b'") "," DISABLE, "");
    assert_int_equal(in_flight, 0);
    co_group_join(&group);
    edge_close(edge);
    done();
    return 0;
}

/* hear() checks that none is in flight while the driver is called. */
LOOP_TEST(requests_wait_meanwhile)
{
    Node *node = new_node();
    Edge *edge = test_open_root(node, PERM_WRITE);
    CoGroup group;

    co_group_init(&group);
    run(ADD, "");
    co_start(&group, "writer", writer, edge);
    for (int i = 0; i < 5; i++) {
        assert_true(co_yield () == 0);
        run(CLEAR "," DISABLE "," ACTION("enable", "'name': 'b'"), "");
    }
    co_group_join(&group);
    assert_true(dirty_bitmap_count(dirty_bitmap_find(node, "b")) > 0);
    edge_close(edge);
    done();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(drivers_hear_of_persistent_bitmaps_only),
        cmocka_unit_test(a_driver_may_refuse_a_bitmap),
        cmocka_unit_test(what_was_added_goes_again),
        cmocka_unit_test(what_was_removed_is_stored_again),
        cmocka_unit_test(contents_and_state_come_back),
        cmocka_unit_test(a_command_alone_does_not_wait_for_requests),
        cmocka_unit_test(requests_wait_meanwhile),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
