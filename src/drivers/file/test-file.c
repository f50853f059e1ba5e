/* SPDX-License-Identifier: Apache-2.0 */
/* The driver file through the graph, on both back ends of the loop, on disk and in memory. */
#include "block/node.h"
#include "drivers/file/locks.h"

#include "base/mem.h"
#include "generated/types.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define CHUNK 65536
#define RW (PERM_CONSISTENT_READ | PERM_WRITE | PERM_RESIZE)

static const char *folder; /* where the file lies */
static char *path;
static bool direct;

static const EdgeUser user = {0};

static Node *open_node(const char *name, bool read_only, bool auto_read_only)
{
    BlockdevCacheOptions cache = {.has_direct = true, .direct = direct};
    BlockdevOptions o = {.driver = BLOCKDEV_DRIVER_FILE,
        .cache = &cache,
        .node_name = (char *)name,
        .has_read_only = true,
        .read_only = read_only,
        .has_auto_read_only = true,
        .auto_read_only = auto_read_only,
        .has_discard = true,
        .discard = BLOCKDEV_DISCARD_OPTIONS_UNMAP,
        .u.file.filename = path};
    AUTO_ERROR Error err = ERROR_INIT;

    if (node_add(&o, &err) < 0)
        fail_msg("%s", err.message);
    return node_find(name);
}

static Edge *open_edge(Node *node, unsigned perm, unsigned shared)
{
    AUTO_ERROR Error err = ERROR_INIT;
    Edge *edge;

    if (edge_open(node, &user, NULL, perm, shared, &edge, &err) < 0)
        fail_msg("%s", err.message);
    return edge;
}

static void delete_node(const char *name)
{
    AUTO_ERROR Error err = ERROR_INIT;

    if (node_del(name, &err) < 0)
        fail_msg("%s", err.message);
}

static void expect_bytes(Edge *edge, uint64_t offset, size_t bytes, uint8_t byte)
{
    AUTO_FREE uint8_t *data = mem_zalloc(bytes);

    memset(data, 0x77, bytes);
    assert_int_equal(edge_pread(edge, offset, data, bytes), 0);
    for (size_t i = 0; i < bytes; i++)
        assert_int_equal(data[i], byte);
}

static void fill(Edge *edge, uint64_t offset, size_t bytes, uint8_t byte, unsigned flags)
{
    AUTO_FREE uint8_t *data = mem_zalloc(bytes);

    memset(data, byte, bytes);
    assert_int_equal(edge_pwrite(edge, offset, data, bytes, flags), 0);
}

static BlockStatus status_at(Edge *edge, uint64_t offset, uint64_t bytes)
{
    BlockStatus status;

    assert_int_equal(edge_status(edge, offset, bytes, &status), 0);
    return status;
}

/* ---- Tests; each starts with a hole of 16 chunks ---- */

static int data_path(void *arg)
{
    Edge *edge = open_edge(open_node("a", false, false), RW, PERM_ALL);
    struct iovec iov[100];
    uint8_t *data = mem_zalloc(100 * 100);

    assert_int_equal(node_size(edge_node(edge)), 16 * CHUNK);
    expect_bytes(edge, 0, 16 * CHUNK, 0);
    fill(edge, 5, 3, 0x11, REQ_FUA);
    expect_bytes(edge, 0, 5, 0);
    expect_bytes(edge, 5, 3, 0x11);
    /* More segments than one system call takes. */
    for (unsigned i = 0; i < 100; i++)
        iov[i] = (struct iovec){.iov_base = data + (99 - i) * 100, .iov_len = 100};
    memset(data, 0x22, 100 * 100);
    assert_int_equal(edge_write(edge, CHUNK, (IoSlice){.iov = iov, .skip = 50, .bytes = 9000}, 0), 0);
    memset(data, 0, 100 * 100);
    assert_int_equal(edge_read(edge, CHUNK, (IoSlice){.iov = iov, .bytes = 9001}), 0);
    for (unsigned i = 0; i < 9000; i++)
        assert_int_equal(data[(99 - i / 100) * 100 + i % 100], 0x22);
    assert_int_equal(data[9 * 100 + 1], 0);
    assert_int_equal(edge_flush(edge), 0);
    free(data);
    edge_close(edge);
    delete_node("a");
    return 0;
}

static int holes(void *arg)
{
    Edge *edge = open_edge(open_node("a", false, false), RW, PERM_ALL);
    BlockStatus status = status_at(edge, 0, 16 * CHUNK);

    assert_int_equal(status.bytes, 16 * CHUNK);
    assert_true(status.flags & BLOCK_STATUS_ZERO);
    assert_true(status.flags & BLOCK_STATUS_EOF);
    fill(edge, 4 * CHUNK, 4 * CHUNK, 0x33, 0);
    status = status_at(edge, 0, 16 * CHUNK);
    assert_int_equal(status.bytes, 4 * CHUNK);
    status = status_at(edge, 4 * CHUNK, 12 * CHUNK);
    assert_int_equal(status.bytes, 4 * CHUNK);
    assert_true((status.flags & BLOCK_STATUS_DATA) && !(status.flags & BLOCK_STATUS_ZERO));
    assert_int_equal(status.map_offset, 4 * CHUNK);

    assert_int_equal(edge_discard(edge, 5 * CHUNK, CHUNK), 0);
    expect_bytes(edge, 5 * CHUNK, CHUNK, 0);
    expect_bytes(edge, 4 * CHUNK, CHUNK, 0x33);
    status = status_at(edge, 5 * CHUNK, 3 * CHUNK);
    assert_int_equal(status.bytes, CHUNK);
    assert_true(status.flags & BLOCK_STATUS_ZERO);

    assert_int_equal(edge_write_zeroes(edge, 6 * CHUNK, CHUNK, REQ_MAY_UNMAP | REQ_NO_FALLBACK), 0);
    assert_int_equal(edge_write_zeroes(edge, 7 * CHUNK + 1, CHUNK - 2, 0), 0);
    expect_bytes(edge, 6 * CHUNK, CHUNK, 0);
    expect_bytes(edge, 7 * CHUNK, 1, 0x33);
    expect_bytes(edge, 7 * CHUNK + 1, CHUNK - 2, 0);
    expect_bytes(edge, 8 * CHUNK - 1, 1, 0x33);
    edge_close(edge);
    delete_node("a");
    return 0;
}

static int resizes(void *arg)
{
    Edge *edge = open_edge(open_node("a", false, false), RW, PERM_ALL);
    AUTO_ERROR Error err = ERROR_INIT;
    struct stat st;

    assert_int_equal(edge_resize(edge, 20 * CHUNK, true, PREALLOCATION_FULL, 0, &err), 0);
    assert_int_equal(node_size(edge_node(edge)), 20 * CHUNK);
    assert_true(edge_resize(edge, CHUNK, true, PREALLOCATION_FALLOC, 0, &err) < 0);
    assert_string_equal(err.message, "Cannot use preallocation for shrinking files");
    err_done(&err);
    assert_int_equal(edge_resize(edge, 1000, true, PREALLOCATION_OFF, 0, &err), 0);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_size, 1000);
    /* Whole sectors: what is behind the end of the file reads as zeroes. */
    assert_int_equal(node_size(edge_node(edge)), 1024);
    fill(edge, 0, 1000, 0x44, 0);
    expect_bytes(edge, 1000, 24, 0);
    edge_close(edge);
    delete_node("a");
    return 0;
}

static int locking(void *arg)
{
    Node *a = open_node("a", false, false), *b = open_node("b", false, false);
    AUTO_ERROR Error err = ERROR_INIT;
    Edge *first = open_edge(a, RW, PERM_ALL & ~(unsigned)PERM_WRITE), *second;

    assert_true(edge_open(b, &user, NULL, RW, PERM_ALL, &second, &err) < 0);
    assert_string_equal(err.message, "Failed to get \"write\" lock");
    assert_non_null(strstr(err.hint, path));
    err_done(&err);
    /* The failed attempt has left nothing behind. */
    assert_int_equal(edge_set_permissions(first, RW, 0, &err), 0);
    assert_int_equal(edge_set_permissions(first, RW, PERM_ALL, &err), 0);
    second = open_edge(b, RW, PERM_ALL);
    assert_true(edge_set_permissions(first, RW, PERM_CONSISTENT_READ, &err) < 0);
    assert_string_equal(err.message, "Failed to get shared \"write\" lock");
    edge_close(first);
    edge_close(second);
    delete_node("a");
    delete_node("b");
    return 0;
}

static int writable_fd_count(void)
{
    int count = 0;
    struct stat st, file;

    assert_int_equal(stat(path, &file), 0);
    for (int fd = 3; fd < 256; fd++)
        if (fstat(fd, &st) == 0 && st.st_ino == file.st_ino && st.st_dev == file.st_dev &&
            (fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDWR)
            count++;
    return count;
}

static int reopening(void *arg)
{
    AUTO_ERROR Error err = ERROR_INIT;
    Edge *edge = open_edge(open_node("a", false, true), PERM_CONSISTENT_READ, PERM_ALL);

    assert_int_equal(writable_fd_count(), 0);
    assert_int_equal(edge_set_permissions(edge, RW, PERM_CONSISTENT_READ, &err), 0);
    assert_int_equal(writable_fd_count(), 1);
    fill(edge, 0, 512, 0x55, 0);
    expect_bytes(edge, 0, 512, 0x55);
    /* The locks have moved to the new description. */
    {
        AUTO_CLOSE int fd = open(path, O_RDWR | O_CLOEXEC);

        assert_true(file_locks_check(fd, (FileLocks){.used = PERM_WRITE}, path, &err) < 0);
        err_done(&err);
    }
    assert_int_equal(edge_set_permissions(edge, PERM_CONSISTENT_READ, PERM_ALL, &err), 0);
    assert_int_equal(writable_fd_count(), 0);
    edge_close(edge);
    delete_node("a");
    return 0;
}

/* ---- Running them ---- */

static void run(LoopBackendKind kind, int (*fn)(void *arg))
{
    int fd;

    path = str_printf("%s/granary-test-file-XXXXXX", folder);
    fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, 16 * CHUNK), 0);
    fd_close(fd);
    assert_int_equal(loop_run_main(kind, &LOOP_OPTIONS_DEFAULT, fn, NULL), 0);
    unlink(path);
    free(path);
}

static bool can_be_direct(void)
{
    AUTO_FREE char *name = str_printf("%s/granary-test-direct", folder);
    AUTO_CLOSE int fd = open(name, O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0600);

    unlink(name);
    return fd >= 0;
}

static void run_everywhere(int (*fn)(void *arg))
{
    static const char *const folders[] = {"/var/tmp", "/dev/shm"};

    for (unsigned i = 0; i < ARRAY_SIZE(folders) * 2; i++) {
        folder = folders[i / 2];
        direct = i % 2;
        if (access(folder, W_OK) < 0 || (direct && !can_be_direct()))
            continue;
        run(LOOP_BACKEND_AUTO, fn);
        run(LOOP_BACKEND_EPOLL, fn);
    }
}

static void test_data_path(void **state)
{
    run_everywhere(data_path);
}

static void test_holes(void **state)
{
    run_everywhere(holes);
}

static void test_resize(void **state)
{
    run_everywhere(resizes);
}

static void test_locking(void **state)
{
    run_everywhere(locking);
}

static void test_reopening(void **state)
{
    run_everywhere(reopening);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_data_path),
        cmocka_unit_test(test_holes),
        cmocka_unit_test(test_resize),
        cmocka_unit_test(test_locking),
        cmocka_unit_test(test_reopening),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
