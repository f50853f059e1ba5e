/* SPDX-License-Identifier: Apache-2.0 */
/* Requests over one edge from several loops at once: where they run, drain, moving, read-modify-write,
 * statistics. */
#include "block/test-nodes.h"
#include "loop/iothread.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define DISK_BYTES 65536
#define THREADS 3
#define WRITERS 8 /* on each thread */
#define ROUNDS 40

/* ---- A disk in memory with blocks of 512 bytes ---- */

static uint8_t disk[DISK_BYTES];
static pthread_mutex_t disk_lock = PTHREAD_MUTEX_INITIALIZER; /* a block is read and written as a whole */
static Loop *expected;          /* where requests may run; NULL: anywhere */
static _Atomic unsigned busy;   /* requests inside */
static _Atomic unsigned served; /* requests ever */
static _Atomic bool must_rest;  /* drained: no request may be inside */

static void inside(Node *node)
{
    busy++;
    assert_false(must_rest);
    assert_true(!expected || loop_current() == expected);
    assert_true(co_yield () == 0);
    busy--;
    served++;
}

static int disk_read(Node *node, uint64_t offset, IoSlice dst)
{
    inside(node);
    pthread_mutex_lock(&disk_lock);
    io_slice_copy_to(dst, disk + offset, dst.bytes);
    pthread_mutex_unlock(&disk_lock);
    return 0;
}

static int disk_write(Node *node, uint64_t offset, IoSlice src, unsigned flags)
{
    inside(node);
    pthread_mutex_lock(&disk_lock);
    io_slice_copy_from(src, disk + offset, src.bytes);
    pthread_mutex_unlock(&disk_lock);
    return 0;
}

static Driver disk_driver = {.name = "disk", .read = disk_read, .write = disk_write};

static Object *threads[THREADS];

static Edge *set_up(unsigned driver_flags)
{
    Node *node;

    block_init();
    for (int i = 0; i < THREADS; i++) {
        char json[64];
        Error err = ERROR_INIT;
        ObjectOptions *options;

        snprintf(json, sizeof(json), "{'qom-type': 'iothread', 'id': 't%d'}", i);
        options = test_options(&schema_type_ObjectOptions, json);
        assert_int_equal(object_add(options, &err), 0);
        threads[i] = object_find(options->id);
        object_options_free(options);
    }
    node = test_add("{'driver': 'null-co', 'node-name': 'disk', 'size': 65536}");
    disk_driver.flags = DRIVER_PROTOCOL | driver_flags;
    node->driver = &disk_driver;
    node->write_flags = REQ_FUA;
    node->limits = (NodeLimits){.request_alignment = 512, .memory_alignment = 1};
    expected = NULL;
    must_rest = false;
    memset(disk, 0, sizeof(disk));
    return test_open_root(node, PERM_CONSISTENT_READ | PERM_WRITE);
}

static void tear_down(Edge *edge)
{
    edge_close(edge);
    node_close_all();
    object_del_all();
}

/* ---- Load: each writer owns some bytes of every block and counts in them ---- */

typedef struct Writer {
    Edge *edge;
    unsigned number;
    CoGroup *group; /* of its thread, for the first */
} Writer;

static void writer_body(void *arg)
{
    const Writer *w = arg;
    uint8_t data[8];

    for (unsigned i = 0; i < ROUNDS; i++) {
        uint64_t offset = (i * 7 + w->number) % 16 * 512 + w->number * sizeof(data);
        uint8_t read[sizeof(data)];

        memset(data, (int)(i + 1), sizeof(data));
        assert_int_equal(edge_pwrite(w->edge, offset, data, sizeof(data), 0), 0);
        assert_int_equal(edge_pread(w->edge, offset, read, sizeof(read)), 0);
        assert_memory_equal(read, data, sizeof(data));
    }
}

static int run_writers(void *arg)
{
    Writer writers[WRITERS], *first = arg;
    CoGroup group;

    co_group_init(&group);
    for (unsigned i = 0; i < WRITERS; i++) {
        writers[i] = *first;
        writers[i].number += i;
        co_start(&group, "writer", writer_body, &writers[i]);
    }
    co_group_join(&group);
    return 0;
}

typedef struct Load {
    Edge *edge;
    unsigned thread;
    bool done;
} Load;

static void load_body(void *arg)
{
    Load *load = arg;
    Writer first = {.edge = load->edge, .number = load->thread * WRITERS};

    assert_int_equal(loop_call(iothread_loop(threads[load->thread]), run_writers, &first), 0);
    load->done = true;
}

static void start_load(CoGroup *group, Edge *edge, Load *loads)
{
    co_group_init(group);
    for (unsigned i = 0; i < THREADS; i++) {
        loads[i] = (Load){.edge = edge, .thread = i};
        co_start(group, "load", load_body, &loads[i]);
    }
}

static bool is_over(const Load *loads)
{
    return loads[0].done && loads[1].done && loads[2].done;
}

static void check_statistics(Edge *edge)
{
    EdgeStats stats = {0};

    edge_stats_add(&stats, edge);
    assert_int_equal(stats.write_ops, THREADS * WRITERS * ROUNDS);
    assert_int_equal(stats.read_ops, THREADS * WRITERS * ROUNDS);
    assert_int_equal(stats.write_bytes, THREADS * WRITERS * ROUNDS * 8);
}

/* Partial writes of the same blocks from all threads at once: none may undo another. */
LOOP_TEST(test_writes_on_every_loop)
{
    Edge *edge = set_up(DRIVER_ANY_LOOP);
    Load loads[THREADS];
    CoGroup group;

    start_load(&group, edge, loads);
    co_group_join(&group);
    check_statistics(edge);
    tear_down(edge);
    return 0;
}

LOOP_TEST(test_others_are_served_at_home)
{
    Edge *edge = set_up(0);
    Load loads[THREADS];
    Error err = ERROR_INIT;
    CoGroup group;

    assert_int_equal(node_set_iothread(edge_node(edge), threads[1], &err), 0);
    expected = iothread_loop(threads[1]);
    assert_ptr_equal(node_home(edge_node(edge)), expected);
    start_load(&group, edge, loads);
    co_group_join(&group);
    check_statistics(edge);
    tear_down(edge);
    return 0;
}

LOOP_TEST(test_drain_stops_every_loop)
{
    Edge *edge = set_up(DRIVER_ANY_LOOP);
    Load loads[THREADS];
    CoGroup group;

    start_load(&group, edge, loads);
    while (!is_over(loads)) {
        node_drain_begin(edge_node(edge));
        assert_int_equal(busy, 0);
        must_rest = true;
        for (int i = 0; i < 5; i++)
            assert_int_equal(co_yield (), 0);
        must_rest = false;
        node_drain_end(edge_node(edge));
        assert_int_equal(co_yield (), 0);
    }
    co_group_join(&group);
    check_statistics(edge);
    tear_down(edge);
    return 0;
}

/* So that requests do not only follow the node from loop to loop. */
static void wait_for_progress(const Load *loads)
{
    unsigned before = served;

    while (served == before && !is_over(loads))
        assert_int_equal(co_yield (), 0);
}

static void move_about(unsigned driver_flags)
{
    Edge *edge = set_up(driver_flags);
    Load loads[THREADS];
    CoGroup group;

    start_load(&group, edge, loads);
    for (unsigned i = 0; !is_over(loads); i++) {
        Object *to = i % (THREADS + 1) == THREADS ? NULL : threads[i % (THREADS + 1)];
        Error err = ERROR_INIT;

        node_drain_begin(edge_node(edge));
        assert_int_equal(node_set_iothread(edge_node(edge), to, &err), 0);
        if (!(driver_flags & DRIVER_ANY_LOOP))
            expected = node_home(edge_node(edge));
        node_drain_end(edge_node(edge));
        wait_for_progress(loads);
    }
    co_group_join(&group);
    check_statistics(edge);
    tear_down(edge);
}

LOOP_TEST(test_moving_under_load)
{
    move_about(0);
    return 0;
}

LOOP_TEST(test_moving_what_runs_everywhere)
{
    move_about(DRIVER_ANY_LOOP);
    return 0;
}

LOOP_TEST(test_fixed_home)
{
    Edge *edge = set_up(DRIVER_ANY_LOOP);
    Error err = ERROR_INIT;

    assert_int_equal(node_set_iothread(edge_node(edge), threads[0], &err), 0);
    edge_fix_home(edge);
    assert_int_equal(node_set_iothread(edge_node(edge), threads[0], &err), 0);
    assert_int_equal(node_set_iothread(edge_node(edge), NULL, &err), -EBUSY);
    assert_string_equal(err.message, "Cannot change iothread of active block backend");
    err_done(&err);
    assert_ptr_equal(node_iothread(edge_node(edge)), threads[0]);
    tear_down(edge);
    return 0;
}

/* The thread of a deleted object runs until the node leaves it. */
LOOP_TEST(test_a_node_keeps_its_thread)
{
    Edge *edge = set_up(0);
    Error err = ERROR_INIT;
    uint8_t data[512];

    assert_int_equal(node_set_iothread(edge_node(edge), threads[2], &err), 0);
    assert_int_equal(object_del("t2", &err), 0);
    assert_int_equal(edge_pread(edge, 0, data, sizeof(data)), 0);
    assert_int_equal(node_set_iothread(edge_node(edge), NULL, &err), 0);
    assert_int_equal(edge_pread(edge, 0, data, sizeof(data)), 0);
    tear_down(edge);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_writes_on_every_loop),
        cmocka_unit_test(test_others_are_served_at_home),
        cmocka_unit_test(test_drain_stops_every_loop),
        cmocka_unit_test(test_moving_under_load),
        cmocka_unit_test(test_moving_what_runs_everywhere),
        cmocka_unit_test(test_fixed_home),
        cmocka_unit_test(test_a_node_keeps_its_thread),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
