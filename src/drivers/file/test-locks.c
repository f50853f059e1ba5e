/* SPDX-License-Identifier: Apache-2.0 */
/* Which bytes are locked, and that two open files of the same inode see each other. */
#include "drivers/file/locks.h"

#include "base/mem.h"
#include "block/node.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static void test_bytes(void **state)
{
    FileLocks locks = {.used = PERM_WRITE, .unshared = PERM_WRITE | PERM_RESIZE};

    assert_int_equal(file_locks_mask(locks), UINT64_C(0xa00000002));
    assert_int_equal(file_lock_byte(0), 100);
    assert_int_equal(file_lock_byte(1), 101);
    assert_int_equal(file_lock_byte(3), 103);
    assert_int_equal(file_lock_byte(32), 200);
    assert_int_equal(file_lock_byte(35), 203);
}

static bool byte_is_locked(int fd, off_t byte)
{
    struct flock lock = {.l_whence = SEEK_SET, .l_start = byte, .l_len = 1, .l_type = F_WRLCK};

    assert_int_equal(fcntl(fd, F_OFD_GETLK, &lock), 0);
    return lock.l_type != F_UNLCK;
}

typedef struct Pair {
    char *name;
    int a, b;
} Pair;

static Pair pair_open(void)
{
    Pair p = {.name = str_dup("/tmp/granary-test-locks-XXXXXX")};

    p.a = mkstemp(p.name);
    p.b = open(p.name, O_RDWR | O_CLOEXEC);
    assert_true(p.a >= 0 && p.b >= 0);
    return p;
}

static void pair_close(Pair *p)
{
    fd_close(p->a);
    fd_close(p->b);
    unlink(p->name);
    free(p->name);
}

static void test_take_and_drop(void **state)
{
    CLEANUP(pair_close) Pair p = pair_open();
    AUTO_ERROR Error err = ERROR_INIT;
    FileLocks held = {0}, wanted = {.used = PERM_WRITE | PERM_CONSISTENT_READ, .unshared = PERM_RESIZE};

    assert_true(file_locks_supported(p.a));
    assert_int_equal(file_locks_take(p.a, &held, wanted, &err), 0);
    assert_int_equal(file_locks_mask(held), file_locks_mask(wanted));
    for (off_t byte = 96; byte < 210; byte++)
        assert_int_equal(byte_is_locked(p.b, byte), byte == 100 || byte == 101 || byte == 203);
    file_locks_drop(p.a, &held, (FileLocks){.used = PERM_WRITE});
    assert_true(byte_is_locked(p.b, 101));
    assert_false(byte_is_locked(p.b, 100));
    assert_false(byte_is_locked(p.b, 203));
}

/* a holds `first`; what happens to b when it wants `second`. */
static int conflict(FileLocks first, FileLocks second, Error *err)
{
    CLEANUP(pair_close) Pair p = pair_open();
    FileLocks held_a = {0}, held_b = {0};

    assert_int_equal(file_locks_take(p.a, &held_a, first, err), 0);
    assert_int_equal(file_locks_check(p.a, first, "x.img", err), 0);
    assert_int_equal(file_locks_take(p.b, &held_b, second, err), 0);
    return file_locks_check(p.b, second, "x.img", err);
}

static void test_conflicts(void **state)
{
    const FileLocks writer = {.used = PERM_WRITE, .unshared = PERM_WRITE};
    const FileLocks sharing_writer = {.used = PERM_WRITE};
    const FileLocks reader = {.used = PERM_CONSISTENT_READ};
    const FileLocks strict_reader = {.used = PERM_CONSISTENT_READ, .unshared = PERM_WRITE};
    AUTO_ERROR Error err = ERROR_INIT;

    assert_int_equal(conflict(sharing_writer, sharing_writer, &err), 0);
    assert_int_equal(conflict(writer, reader, &err), 0);
    assert_true(conflict(writer, sharing_writer, &err) < 0);
    assert_string_equal(err.message, "Failed to get \"write\" lock");
    assert_string_equal(err.hint, "Is another process using the image [x.img]?");
    err_done(&err);
    assert_true(conflict(writer, strict_reader, &err) < 0);
    assert_string_equal(err.message, "Failed to get shared \"write\" lock");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_take_and_drop),
        cmocka_unit_test(test_conflicts),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
