/* SPDX-License-Identifier: Apache-2.0 */
/* The graph over null and raw nodes, and the request path over a driver whose limits and answers the test
 * chooses. */
#include "block/test-nodes.h"

#include "base/mem.h"

#include <errno.h>
#include <string.h>

#define DISK_BYTES 65536

/* ---- A disk in memory with strict limits, put under a node in place of its real driver ---- */

static uint8_t disk[DISK_BYTES], model[DISK_BYTES];
static unsigned writes_in_flight, most_in_flight, zero_calls;
static bool zeroes_supported;

static int disk_read(Node *node, uint64_t offset, IoSlice dst)
{
    assert_true(align_fits(node, offset, dst));
    assert_true(co_yield () == 0);
    io_slice_copy_to(dst, disk + offset, dst.bytes);
    return 0;
}

static int disk_write(Node *node, uint64_t offset, IoSlice src, unsigned flags)
{
    assert_true(align_fits(node, offset, src));
    assert_true(!node->limits.max_transfer || src.bytes <= node->limits.max_transfer);
    writes_in_flight++;
    most_in_flight = MAX(most_in_flight, writes_in_flight);
    assert_true(co_yield () == 0);
    io_slice_copy_from(src, disk + offset, src.bytes);
    writes_in_flight--;
    return 0;
}

static int disk_write_zeroes(Node *node, uint64_t offset, uint64_t bytes, unsigned flags)
{
    if (!zeroes_supported)
        return -ENOTSUP;
    assert_true(is_aligned(offset, node->limits.request_alignment) &&
                is_aligned(bytes, node->limits.request_alignment));
    zero_calls++;
    memset(disk + offset, 0, bytes);
    return 0;
}

static const Driver strict_driver = {
    .name = "strict",
    .flags = DRIVER_PROTOCOL,
    .read = disk_read,
    .write = disk_write,
    .write_zeroes = disk_write_zeroes,
};

static void expect_add_error(const char *json, const char *message)
{
    BlockdevOptions *options = test_options(&schema_type_BlockdevOptions, json);
    Error err = ERROR_INIT;

    assert_true(node_add(options, &err) < 0);
    assert_string_equal(err.message, message);
    err_done(&err);
    blockdev_options_free(options);
}

static Edge *open_strict(uint32_t alignment, uint32_t max_transfer)
{
    Node *node = test_add("{'driver': 'null-co', 'node-name': 'strict', 'size': 65536}");

    node->driver = &strict_driver;
    node->write_flags = node->zeroes_flags = 0;
    node->discard_unmap = true;
    node->limits = (NodeLimits){.request_alignment = alignment,
        .memory_alignment = MIN(alignment, 512U),
        .max_transfer = max_transfer};
    memset(disk, 0xaa, sizeof(disk));
    memset(model, 0xaa, sizeof(model));
    most_in_flight = zero_calls = 0;
    return test_open_root(node, PERM_CONSISTENT_READ | PERM_WRITE);
}

static void close_all(Edge *edge)
{
    edge_close(edge);
    node_close_all();
    assert_null(node_find("strict"));
}

/* ---- Request path ---- */

static unsigned random_state = 1;

static unsigned next_random(unsigned below)
{
    random_state = random_state * 1103515245 + 12345;
    return (random_state >> 8) % below;
}

static void random_request(Edge *edge)
{
    static uint8_t buffer[DISK_BYTES];
    uint64_t offset = next_random(DISK_BYTES - 1),
             bytes = 1 + next_random(MIN(9000U, (unsigned)(DISK_BYTES - offset)));
    uint8_t byte = (uint8_t)next_random(256);

    switch (next_random(3)) {
    case 0:
        memset(buffer, byte, bytes);
        memset(model + offset, byte, bytes);
        assert_int_equal(edge_pwrite(edge, offset, buffer, bytes, next_random(2) ? REQ_FUA : 0), 0);
        break;
    case 1:
        memset(model + offset, 0, bytes);
        assert_int_equal(edge_write_zeroes(edge, offset, bytes, REQ_MAY_UNMAP), 0);
        break;
    default:
        assert_int_equal(edge_pread(edge, offset, buffer, bytes), 0);
        assert_memory_equal(buffer, model + offset, bytes);
    }
}

LOOP_TEST(test_unaligned_requests_keep_their_neighbours)
{
    static const uint32_t alignments[] = {1, 512, 4096};

    for (size_t i = 0; i < ARRAY_SIZE(alignments); i++) {
        Edge *edge;

        block_init();
        edge = open_strict(alignments[i], 8192);
        for (int n = 0; n < 2000; n++) {
            zeroes_supported = next_random(2);
            random_request(edge);
        }
        assert_memory_equal(disk, model, DISK_BYTES);
        close_all(edge);
    }
    return 0;
}

typedef struct Writer {
    Edge *edge;
    uint64_t offset;
    uint8_t byte;
    size_t bytes;
} Writer;

static void writer_body(void *arg)
{
    Writer *w = arg;
    uint8_t data[1024];

    memset(data, w->byte, w->bytes);
    assert_int_equal(edge_pwrite(w->edge, w->offset, data, w->bytes, 0), 0);
}

/* Many partial writes to one block at once: each keeps the others' bytes. */
LOOP_TEST(test_partial_writes_of_one_block_are_serialised)
{
    Writer writers[64];
    CoGroup group;
    Edge *edge;

    block_init();
    edge = open_strict(4096, 0);
    co_group_init(&group);
    for (unsigned i = 0; i < ARRAY_SIZE(writers); i++) {
        writers[i] = (Writer){edge, 4096 + i * 64, (uint8_t)i, 64};
        memset(model + writers[i].offset, (int)i, 64);
        co_start(&group, "writer", writer_body, &writers[i]);
    }
    co_group_join(&group);
    assert_memory_equal(disk, model, DISK_BYTES);
    assert_int_equal(most_in_flight, 1);
    close_all(edge);
    return 0;
}

LOOP_TEST(test_no_fallback_does_not_write_zeroes)
{
    Edge *edge;

    block_init();
    edge = open_strict(512, 0);
    zeroes_supported = false;
    assert_int_equal(edge_write_zeroes(edge, 0, 4096, REQ_NO_FALLBACK), -ENOTSUP);
    assert_memory_equal(disk, model, DISK_BYTES);
    close_all(edge);
    return 0;
}

LOOP_TEST(test_requests_are_checked)
{
    uint8_t data[512] = {0};
    Edge *edge, *reader;

    block_init();
    edge = open_strict(512, 0);
    reader = test_open_root(edge_node(edge), PERM_CONSISTENT_READ);
    assert_int_equal(edge_pread(edge, DISK_BYTES, data, 1), -EIO);
    assert_int_equal(edge_pread(edge, UINT64_MAX - 10, data, 512), -EIO);
    assert_int_equal(edge_pwrite(edge, DISK_BYTES - 1, data, 2, 0), -EIO);
    assert_int_equal(edge_pwrite(reader, 0, data, 512, 0), -EPERM);
    assert_int_equal(edge_discard(reader, 0, 512), -EPERM);
    assert_memory_equal(disk, model, DISK_BYTES);
    edge_close(reader);
    close_all(edge);
    return 0;
}

static void reader_body(void *arg)
{
    Writer *w = arg;
    uint8_t data[16];

    assert_int_equal(edge_pread(w->edge, w->offset, data, sizeof(data)), 0);
    w->byte = 1;
}

LOOP_TEST(test_drain_holds_requests_and_waits_for_those_inside)
{
    Writer inside, held;
    CoGroup group;
    Edge *edge;

    block_init();
    edge = open_strict(1, 0);
    inside = held = (Writer){.edge = edge};
    co_group_init(&group);
    co_start(&group, "inside", reader_body, &inside);
    assert_int_equal(co_yield (), 0);
    node_drain_begin(edge_node(edge));
    co_start(&group, "held", reader_body, &held);
    for (int i = 0; i < 10; i++)
        assert_int_equal(co_yield (), 0);
    assert_int_equal(inside.byte, 1);
    assert_int_equal(held.byte, 0);
    node_drain_end(edge_node(edge));
    co_group_join(&group);
    assert_int_equal(held.byte, 1);
    close_all(edge);
    return 0;
}

/* Also an edge that came meanwhile is held, to its node or to one above. */
LOOP_TEST(test_drain_holds_new_edges)
{
    Edge *edge, *late, *above;
    Writer held[2];
    CoGroup group;

    block_init();
    edge = open_strict(1, 0);
    node_drain_begin(edge_node(edge));
    late = test_open_root(edge_node(edge), PERM_CONSISTENT_READ);
    above = test_open_root(
        test_add("{'driver': 'raw', 'node-name': 'above', 'file': 'strict'}"), PERM_CONSISTENT_READ);
    held[0] = (Writer){.edge = late};
    held[1] = (Writer){.edge = above};
    co_group_init(&group);
    co_start(&group, "late", reader_body, &held[0]);
    co_start(&group, "above", reader_body, &held[1]);
    for (int i = 0; i < 10; i++)
        assert_int_equal(co_yield (), 0);
    assert_true(!held[0].byte && !held[1].byte);
    node_drain_end(edge_node(edge));
    co_group_join(&group);
    assert_true(held[0].byte && held[1].byte);
    edge_close(late);
    edge_close(above);
    close_all(edge);
    return 0;
}

static bool resizing;

static int disk_resize(
    Node *node, uint64_t size, bool exact, Preallocation prealloc, unsigned flags, Error *err)
{
    assert_true(!resizing && !writes_in_flight);
    resizing = true;
    for (int i = 0; i < 10; i++)
        assert_true(co_yield () == 0);
    assert_true(!writes_in_flight);
    resizing = false;
    return 0;
}

static void write_many(void *arg)
{
    uint8_t data[512] = {0};

    for (int i = 0; i < 100; i++)
        assert_int_equal(edge_pwrite(arg, 0, data, sizeof(data), 0), 0);
}

static void resize_some(void *arg)
{
    AUTO_ERROR Error err = ERROR_INIT;

    for (int i = 0; i < 10; i++)
        assert_int_equal(edge_resize(arg, DISK_BYTES, false, PREALLOCATION_OFF, 0, &err), 0);
}

/* Directly, and through a filter. */
LOOP_TEST(test_resizing_is_alone)
{
    Driver resizable = strict_driver;
    Edge *edge, *root, *above;
    CoGroup group;

    block_init();
    resizable.resize = disk_resize;
    edge = open_strict(1, 0);
    edge_node(edge)->driver = &resizable;
    root = test_open_root(edge_node(edge), PERM_RESIZE);
    above =
        test_open_root(test_add("{'driver': 'raw', 'node-name': 'above', 'file': 'strict'}"), PERM_RESIZE);
    co_group_init(&group);
    co_start(&group, "write", write_many, edge);
    co_start(&group, "resize", resize_some, root);
    co_start(&group, "resize", resize_some, above);
    co_group_join(&group);
    edge_close(root);
    edge_close(above);
    close_all(edge);
    return 0;
}

/* ---- Graph ---- */

LOOP_TEST(test_names_and_ownership)
{
    Error err = ERROR_INIT;

    block_init();
    expect_add_error("{'driver': 'null-co'}", "'node-name' must be specified for the root node");
    expect_add_error("{'driver': 'null-co', 'node-name': '1'}", "Invalid node-name: '1'");
    expect_add_error("{'driver': 'raw', 'node-name': 'r', 'file': 'nope'}",
        "Cannot find device='nope' nor node-name='nope'");
    test_add("{'driver': 'raw', 'node-name': 'r', 'file': {'driver': 'null-co', 'node-name': 'n'}}");
    expect_add_error("{'driver': 'null-co', 'node-name': 'n'}", "Duplicate nodes with node-name='n'");
    assert_true(node_del("n", &err) < 0);
    assert_string_equal(err.message, "Node n is not owned by the monitor");
    err_done(&err);
    assert_int_equal(node_del("r", &err), 0);
    assert_null(node_find("n"));
    return 0;
}

LOOP_TEST(test_permission_conflicts)
{
    Error err = ERROR_INIT;
    Edge *edge, *other;
    Node *node;

    block_init();
    node = test_add("{'driver': 'null-co', 'node-name': 'n'}");
    edge = test_open_root(node, PERM_WRITE);
    assert_true(edge_open(node, &test_user, NULL, 0, PERM_CONSISTENT_READ, &other, &err) < 0);
    assert_string_equal(err.message,
        "Permission conflict on node 'n': permissions 'write' are both required by an unnamed block device "
        "(uses "
        "node 'n' as 'root' child) and unshared by an unnamed block device (uses node 'n' as 'root' child).");
    err_done(&err);
    assert_int_equal(edge_set_permissions(edge, 0, PERM_ALL, &err), 0);
    assert_int_equal(edge_open(node, &test_user, NULL, 0, PERM_CONSISTENT_READ, &other, &err), 0);
    assert_true(edge_set_permissions(edge, PERM_WRITE, PERM_ALL, &err) < 0);
    err_done(&err);
    edge_close(edge);
    edge_close(other);
    assert_int_equal(node_del("n", &err), 0);
    return 0;
}

LOOP_TEST(test_read_only)
{
    Error err = ERROR_INIT;
    Edge *edge;
    Node *node;

    block_init();
    node = test_add("{'driver': 'null-co', 'node-name': 'n', 'read-only': true}");
    assert_true(edge_open(node, &test_user, NULL, PERM_WRITE, PERM_ALL, &edge, &err) < 0);
    assert_string_equal(err.message, "Block node is read-only");
    err_done(&err);
    assert_int_equal(node_del("n", &err), 0);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_unaligned_requests_keep_their_neighbours),
        cmocka_unit_test(test_partial_writes_of_one_block_are_serialised),
        cmocka_unit_test(test_no_fallback_does_not_write_zeroes),
        cmocka_unit_test(test_requests_are_checked),
        cmocka_unit_test(test_drain_holds_requests_and_waits_for_those_inside),
        cmocka_unit_test(test_drain_holds_new_edges),
        cmocka_unit_test(test_resizing_is_alone),
        cmocka_unit_test(test_names_and_ownership),
        cmocka_unit_test(test_permission_conflicts),
        cmocka_unit_test(test_read_only),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
