/* SPDX-License-Identifier: Apache-2.0 */
/* Guest memory: which tables are taken, where addresses lie, the log of written pages, and files that shrink
 * while they are in use. */
#include "base/limits.h"
#include "base/macros.h"
#include "virtio/memory.h"

#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define PAGE 4096
#define USER UINT64_C(0x7f1234000000)

static int make_file(uint64_t bytes)
{
    int fd = memfd_create("guest", MFD_CLOEXEC);

    assert_true(fd >= 0 && ftruncate(fd, (off_t)bytes) == 0);
    return fd;
}

static int try_add(VirtioMemory *memory, uint64_t guest, uint64_t user, uint64_t bytes, uint64_t offset,
    int fd, const char *text)
{
    VirtioRegion region = {.guest = guest, .user = user, .bytes = bytes, .file_offset = offset};
    Error err = ERROR_INIT;
    int r = virtio_memory_add(memory, &region, fd, &err);

    if (r < 0 && !strstr(err.message, text))
        fail_msg("'%s' does not say '%s'", err.message, text);
    err_done(&err);
    return r;
}

static void add(VirtioMemory *memory, uint64_t guest, uint64_t bytes, uint64_t offset, int fd)
{
    assert_int_equal(try_add(memory, guest, USER + guest, bytes, offset, fd, ""), 0);
}

/* A fault that has nothing to do with our mappings, in a process that has some. */
static void fault_elsewhere(void)
{
    VirtioMemory *memory = virtio_memory_new();
    int fd = make_file(PAGE);
    volatile char *lost = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    add(memory, 0, PAGE, 0, make_file(PAGE));
    if (ftruncate(fd, 0) == 0)
        lost[0] = 1;
    _exit(0);
}

static void leave_with_7(int number)
{
    _exit(7);
}

static int run_child(void (*handler)(int))
{
    int status;
    pid_t child = fork();

    if (child == 0) {
        signal(SIGBUS, handler);
        fault_elsewhere();
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    return status;
}

static void test_other_faults(void **state)
{
    int status = run_child(leave_with_7);

    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 7);
    status = run_child(SIG_DFL);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
}

static void test_bad_regions(void **state)
{
    VirtioMemory *memory = virtio_memory_new();
    int sockets[2];

    add(memory, 0x10000, 0x4000, 0, make_file(0x4000));
    assert_int_equal(try_add(memory, 0, 0, 0, 0, make_file(PAGE), "is zero or wraps around"), -EINVAL);
    assert_int_equal(try_add(memory, UINT64_MAX - 100, 0, PAGE, 0, make_file(PAGE), "wraps"), -EINVAL);
    assert_int_equal(try_add(memory, 0, UINT64_MAX - 100, PAGE, 0, make_file(PAGE), "wraps"), -EINVAL);
    assert_int_equal(
        try_add(memory, 0x13fff, 0, 1, 0, make_file(PAGE), "overlaps the one at 0x10000"), -EINVAL);
    assert_int_equal(try_add(memory, 0xf000, 0, 0x1001, 0, make_file(PAGE), "overlaps"), -EINVAL);
    assert_int_equal(try_add(memory, 0, 0, 0x40000, 0, make_file(PAGE), "overlaps"), -EINVAL);
    assert_int_equal(try_add(memory, 0, USER + 0x13fff, 1, 0, make_file(PAGE), "overlaps"), -EINVAL);
    assert_int_equal(
        try_add(memory, 0, 0, PAGE + 1, 0, make_file(PAGE), "behind the end of their file (0x1000 bytes)"),
        -EINVAL);
    assert_int_equal(try_add(memory, 0, 0, PAGE, 1, make_file(PAGE), "behind the end"), -EINVAL);
    assert_int_equal(try_add(memory, 0, 0, PAGE, UINT64_MAX - 5, make_file(PAGE), "cannot be"), -EINVAL);
    assert_int_equal(try_add(memory, UINT64_C(1) << 62, UINT64_C(1) << 62, UINT64_MAX / 2, 0, make_file(PAGE),
                         "cannot be"),
        -EINVAL);
    assert_int_equal(try_add(memory, 0, 0, PAGE, 0, -1, "cannot look at the file"), -EBADF);
    assert_int_equal(pipe2(sockets, O_CLOEXEC), 0);
    assert_true(try_add(memory, 0, 0, PAGE, 0, sockets[0], "cannot map") < 0);
    assert_true(try_add(memory, 0, 0, PAGE, 0, sockets[1], "cannot map") < 0);
    assert_true(
        try_add(memory, 0, 0, PAGE, 0, open("/proc/self/exe", O_RDONLY | O_CLOEXEC), "cannot map") < 0);
    assert_int_equal(virtio_memory_count(memory), 1);
    virtio_memory_free(memory);
}

static void test_many_regions(void **state)
{
    VirtioMemory *memory = virtio_memory_new();
    int fd = make_file(LIMIT_VIRTIO_REGIONS * PAGE);
    uint64_t bytes;

    /* Neither in order nor in the order of the file. */
    for (uint64_t i = 0; i < LIMIT_VIRTIO_REGIONS; i++) {
        uint64_t n = i * 100 % LIMIT_VIRTIO_REGIONS;

        add(memory, n * 2 * PAGE, PAGE, (LIMIT_VIRTIO_REGIONS - 1 - n) * PAGE, dup(fd));
        *(uint64_t *)virtio_memory_at(memory, n * 2 * PAGE, 8, &bytes) = n;
    }
    assert_int_equal(
        try_add(memory, UINT64_C(1) << 40, 0, PAGE, 0, dup(fd), "there are 509 regions already"), -ENOSPC);
    for (uint64_t n = 0; n < LIMIT_VIRTIO_REGIONS; n++) {
        uint64_t *at = virtio_memory_at(memory, n * 2 * PAGE, 2 * PAGE, &bytes), in_file;

        assert_int_equal(*at, n);
        assert_int_equal(bytes, PAGE);
        assert_int_equal(pread(fd, &in_file, 8, (off_t)((LIMIT_VIRTIO_REGIONS - 1 - n) * PAGE)), 8);
        assert_int_equal(in_file, n);
        assert_ptr_equal(virtio_memory_at_user(memory, USER + n * 2 * PAGE, PAGE), at);
        assert_null(virtio_memory_at_user(memory, USER + n * 2 * PAGE, PAGE + 1));
        assert_null(virtio_memory_at(memory, n * 2 * PAGE + PAGE, 1, &bytes));
        assert_ptr_equal(virtio_memory_at(memory, n * 2 * PAGE + PAGE - 1, 9, &bytes), (char *)at + PAGE - 1);
        assert_int_equal(bytes, 1);
    }
    assert_null(virtio_memory_at_user(memory, UINT64_MAX, 1));
    virtio_memory_free(memory);
    close(fd);
}

static void test_remove(void **state)
{
    VirtioMemory *memory = virtio_memory_new();
    VirtioRegion region = {.guest = 0x2000, .user = USER + 0x2000, .bytes = PAGE};
    Error err = ERROR_INIT;
    uint64_t bytes;

    for (uint64_t n = 0; n < 4; n++)
        add(memory, n * PAGE, PAGE, 0, make_file(PAGE));
    assert_int_equal(virtio_memory_remove(memory, &region, &err), 0);
    assert_int_equal(virtio_memory_remove(memory, &region, &err), -ENOENT);
    err_done(&err);
    region = (VirtioRegion){.guest = 0x1000, .user = USER + 0x1000, .bytes = PAGE - 1};
    assert_int_equal(virtio_memory_remove(memory, &region, &err), -ENOENT);
    err_done(&err);
    assert_int_equal(virtio_memory_count(memory), 3);
    assert_null(virtio_memory_at(memory, 0x2000, 1, &bytes));
    assert_non_null(virtio_memory_at(memory, 0x3000, 1, &bytes));
    add(memory, 0x2000, PAGE, 0, make_file(PAGE));
    virtio_memory_free(memory);
}

/* Offsets need not be those of pages. */
static void test_odd_offset(void **state)
{
    VirtioMemory *memory = virtio_memory_new();
    int fd = make_file(3 * PAGE);
    uint64_t bytes;
    char c;

    add(memory, 0x1000, PAGE + 10, PAGE - 5, dup(fd));
    memset(virtio_memory_at(memory, 0x1000, PAGE + 10, &bytes), 'x', PAGE + 10);
    assert_int_equal(bytes, PAGE + 10);
    for (off_t i = 0; i < 3 * PAGE; i++) {
        assert_int_equal(pread(fd, &c, 1, i), 1);
        assert_int_equal(c, i >= PAGE - 5 && i < 2 * PAGE + 5 ? 'x' : 0);
    }
    virtio_memory_free(memory);
    close(fd);
}

static void expect_log(int fd, unsigned byte, unsigned value)
{
    uint8_t found;

    assert_int_equal(pread(fd, &found, 1, 16 + byte), 1);
    assert_int_equal(found, value);
}

static void test_log(void **state)
{
    VirtioMemory *memory = virtio_memory_new();
    Error err = ERROR_INIT;
    int log = make_file(16 + 8);
    uint64_t bytes;
    char *at;

    add(memory, 0, 8 * PAGE, 0, make_file(8 * PAGE));
    add(memory, 16 * PAGE, 64 * PAGE, 0, make_file(64 * PAGE));
    at = virtio_memory_at(memory, 16 * PAGE, 1, &bytes);
    virtio_memory_written(memory, at, 1); /* there is none yet */
    assert_int_equal(virtio_memory_set_log(memory, 8, 16, dup(log), &err), 0);
    expect_log(log, 2, 0);
    virtio_memory_written(memory, at, 1);
    expect_log(log, 2, 1);
    virtio_memory_written(memory, at + PAGE - 1, 2);
    expect_log(log, 2, 3);
    virtio_memory_written(memory, at + 6 * PAGE, 3 * PAGE);
    expect_log(log, 2, 0xc3);
    expect_log(log, 3, 1);
    virtio_memory_written(memory, at, 0);
    virtio_memory_written(memory, &err, 1);
    virtio_memory_written_guest(memory, 7 * PAGE, 1);
    expect_log(log, 0, 0x80);
    virtio_memory_written_guest(memory, 63 * PAGE, 10 * PAGE); /* behind the log's end, too */
    virtio_memory_written_guest(memory, UINT64_MAX, 1000);
    expect_log(log, 7, 0x80);
    assert_int_equal(virtio_memory_set_log(memory, 8, 17, dup(log), &err), -EINVAL);
    assert_non_null(strstr(err.message, "log of written pages"));
    err_done(&err);
    assert_int_equal(virtio_memory_set_log(memory, 0, 0, -1, &err), 0);
    virtio_memory_written_guest(memory, 0, 1);
    expect_log(log, 0, 0x80);
    virtio_memory_free(memory);
    close(log);
}

/* Somebody who goes through all of memory, reading and writing, until it is lost. */
typedef struct User {
    VirtioMemory *memory;
    volatile uint64_t *at;
    bool goes;
} User;

#define USER_PAGES 64

static void *use_memory(void *arg)
{
    User *user = arg;

    while (!virtio_memory_is_lost(user->memory)) {
        for (unsigned i = 0; i < USER_PAGES; i++) {
            user->at[i * PAGE / 8] = 1;
            (void)user->at[i * PAGE / 8 + 1];
        }
        __atomic_store_n(&user->goes, true, __ATOMIC_RELEASE);
    }
    return NULL;
}

static void test_shrinking_file(void **state)
{
    for (unsigned round = 0; round < 50; round++) {
        User user = {.memory = virtio_memory_new()};
        int fd = make_file(USER_PAGES * PAGE);
        unsigned left = (unsigned)rand() % USER_PAGES;
        pthread_t thread;
        uint64_t bytes;

        add(user.memory, 0, USER_PAGES * PAGE, 0, dup(fd));
        user.at = virtio_memory_at(user.memory, 0, 1, &bytes);
        pthread_create(&thread, NULL, use_memory, &user);
        while (!__atomic_load_n(&user.goes, __ATOMIC_ACQUIRE))
            sched_yield();
        assert_false(virtio_memory_is_lost(user.memory));
        assert_int_equal(ftruncate(fd, left * PAGE), 0);
        pthread_join(thread, NULL);
        for (unsigned i = 0; i < USER_PAGES; i++) {
            user.at[i * PAGE / 8 + 2] = 5;
            assert_int_equal(user.at[i * PAGE / 8 + 3], 0);
        }
        assert_int_equal(lseek(fd, 0, SEEK_END), left * PAGE);
        virtio_memory_free(user.memory);
        close(fd);
    }
}

/* A system call is told instead, and the kernel is not asked to write to our own pages. */
static void test_shrunk_file_in_system_call(void **state)
{
    VirtioMemory *memory = virtio_memory_new();
    int fd = make_file(PAGE), other = make_file(PAGE);
    uint64_t bytes;

    add(memory, 0, PAGE, 0, dup(fd));
    assert_int_equal(ftruncate(fd, 0), 0);
    assert_int_equal(pread(other, virtio_memory_at(memory, 0, 1, &bytes), PAGE, 0), -1);
    assert_int_equal(errno, EFAULT);
    assert_false(virtio_memory_is_lost(memory));
    virtio_memory_free(memory);
    close(fd);
    close(other);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_other_faults),
        cmocka_unit_test(test_bad_regions),
        cmocka_unit_test(test_many_regions),
        cmocka_unit_test(test_remove),
        cmocka_unit_test(test_odd_offset),
        cmocka_unit_test(test_log),
        cmocka_unit_test(test_shrinking_file),
        cmocka_unit_test(test_shrunk_file_in_system_call),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
