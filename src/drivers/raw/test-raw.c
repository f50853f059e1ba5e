/* SPDX-License-Identifier: Apache-2.0 */
/* The drivers raw and null through the graph. */
#include "block/node.h"

#include "base/mem.h"
#include "generated/types.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static const EdgeUser user = {0};

static char *path;

static int add(BlockdevOptions options, Error *err)
{
    return node_add(&options, err);
}

static void add_file(int64_t bytes)
{
    AUTO_ERROR Error err = ERROR_INIT;

    assert_int_equal(truncate(path, bytes), 0);
    assert_int_equal(add((BlockdevOptions){.driver = BLOCKDEV_DRIVER_FILE,
                             .node_name = (char *)"f",
                             .u.file.filename = path},
                         &err),
        0);
}

static int add_raw(const char *name, int64_t offset, int64_t size, Error *err)
{
    BlockdevRef file = {.type = BLOCKDEV_REF_KIND_REFERENCE, .u.reference = (char *)"f"};

    return add((BlockdevOptions){.driver = BLOCKDEV_DRIVER_RAW,
                   .node_name = (char *)name,
                   .u.raw.file = &file,
                   .u.raw.has_offset = offset > 0,
                   .u.raw.offset = offset,
                   .u.raw.has_size = size >= 0,
                   .u.raw.size = size},
        err);
}

static void expect_refused(int64_t offset, int64_t size, const char *message)
{
    AUTO_ERROR Error err = ERROR_INIT;

    assert_true(add_raw("r", offset, size, &err) < 0);
    assert_string_equal(err.message, message);
    assert_null(node_find("r"));
}

static Edge *open_edge(const char *name, unsigned perm)
{
    AUTO_ERROR Error err = ERROR_INIT;
    Edge *edge;

    if (edge_open(node_find(name), &user, NULL, perm, PERM_ALL, &edge, &err) < 0)
        fail_msg("%s", err.message);
    return edge;
}

static int window(void *arg)
{
    AUTO_ERROR Error err = ERROR_INIT;
    uint8_t data[1024];
    Edge *file, *raw;

    add_file(65536);
    expect_refused(65537, -1, "Offset (65537) cannot be greater than size of the containing file (65536)");
    expect_refused(1024, 65536,
        "The sum of offset (1024) and size (65536) has to be smaller or equal to the  actual size of the "
        "containing file "
        "(65536)");
    expect_refused(0, 1000, "Specified size is not multiple of 512");
    assert_int_equal(add_raw("r", 1000, 1024, &err), 0);
    assert_int_equal(node_size(node_find("r")), 1024);
    raw = open_edge("r", PERM_CONSISTENT_READ | PERM_WRITE);
    file = open_edge("f", PERM_CONSISTENT_READ);
    memset(data, 0x66, sizeof(data));
    assert_int_equal(edge_pwrite(raw, 0, data, 1024, 0), 0);
    assert_true(edge_pwrite(raw, 1024, data, 1, 0) < 0);
    assert_int_equal(edge_pread(file, 999, data, 1), 0);
    assert_int_equal(data[0], 0);
    assert_int_equal(edge_pread(file, 2023, data, 2), 0);
    assert_int_equal(data[0], 0x66);
    assert_int_equal(data[1], 0);
    assert_int_equal(edge_flush(raw), 0);
    edge_close(raw);
    edge_close(file);
    node_close_all();
    return 0;
}

static int resize(void *arg)
{
    AUTO_ERROR Error err = ERROR_INIT;
    Edge *raw;

    add_file(65536);
    assert_int_equal(add_raw("whole", 0, -1, &err), 0);
    raw = open_edge("whole", PERM_RESIZE);
    assert_int_equal(edge_resize(raw, 131072, true, PREALLOCATION_OFF, 0, &err), 0);
    assert_int_equal(node_size(node_find("f")), 131072);
    assert_int_equal(node_size(node_find("whole")), 131072);
    edge_close(raw);
    assert_int_equal(add_raw("fixed", 0, 512, &err), 0);
    raw = open_edge("fixed", PERM_RESIZE);
    assert_true(edge_resize(raw, 1024, true, PREALLOCATION_OFF, 0, &err) < 0);
    assert_string_equal(err.message, "Cannot resize fixed-size raw disks");
    edge_close(raw);
    node_close_all();
    return 0;
}

static int nothing(void *arg)
{
    AUTO_ERROR Error err = ERROR_INIT;
    uint8_t data[512];
    BlockStatus status;
    Edge *edge;

    assert_int_equal(
        add((BlockdevOptions){.driver = BLOCKDEV_DRIVER_NULL_CO, .node_name = (char *)"n"}, &err), 0);
    assert_int_equal(add((BlockdevOptions){.driver = BLOCKDEV_DRIVER_NULL_AIO,
                             .node_name = (char *)"z",
                             .u.null_aio = {.has_size = true,
                                 .size = 4096,
                                 .has_read_zeroes = true,
                                 .read_zeroes = true,
                                 .has_latency_ns = true,
                                 .latency_ns = 1000}},
                         &err),
        0);
    assert_int_equal(node_size(node_find("n")), GIB);
    edge = open_edge("n", PERM_CONSISTENT_READ | PERM_WRITE);
    memset(data, 0x12, sizeof(data));
    assert_int_equal(edge_pread(edge, 0, data, sizeof(data)), 0);
    assert_true(buffer_is_zero(data, sizeof(data))); /* never what was in the buffer before */
    edge_close(edge);
    memset(data, 0x12, sizeof(data));
    edge = open_edge("z", PERM_CONSISTENT_READ | PERM_WRITE);
    assert_int_equal(edge_pwrite(edge, 0, data, sizeof(data), REQ_FUA), 0);
    assert_int_equal(edge_pread(edge, 0, data, sizeof(data)), 0);
    assert_true(buffer_is_zero(data, sizeof(data)));
    assert_int_equal(edge_status(edge, 0, 4096, &status), 0);
    assert_int_equal(status.bytes, 4096);
    assert_true(status.flags & BLOCK_STATUS_ZERO);
    edge_close(edge);
    node_close_all();
    return 0;
}

static void run(int (*fn)(void *arg))
{
    int fd;

    path = str_dup("/tmp/granary-test-raw-XXXXXX");
    fd = mkstemp(path);
    assert_true(fd >= 0);
    fd_close(fd);
    assert_int_equal(loop_run_main(LOOP_BACKEND_AUTO, &LOOP_OPTIONS_DEFAULT, fn, NULL), 0);
    unlink(path);
    free(path);
}

static void test_window(void **state)
{
    run(window);
}

static void test_resize(void **state)
{
    run(resize);
}

static void test_null(void **state)
{
    run(nothing);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_window),
        cmocka_unit_test(test_resize),
        cmocka_unit_test(test_null),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
