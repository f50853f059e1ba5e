/* SPDX-License-Identifier: Apache-2.0 */
#include "base/mem.h"
#include "daemon/options.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

#define SCAN(options, ...)                                        \
    ({                                                            \
        char *argv_[] = {(char *)"granaryd", __VA_ARGS__, NULL};  \
        options_scan((int)ARRAY_SIZE(argv_) - 1, argv_, options); \
    })

static void keeps_order_and_spelling(void **state)
{
    CLEANUP(options_done) Options options = {0};

    assert_int_equal(
        SCAN(&options, (char *)"--bl", (char *)"null-co", (char *)"stray", (char *)"--object=secret,id=a"),
        OPTIONS_RUN);
    assert_int_equal(options.count, 3);
    assert_int_equal(options.items[0].kind, OPTION_BLOCKDEV);
    assert_string_equal(options.items[0].argument, "null-co");
    assert_string_equal(options.items[0].location, " --bl null-co");
    assert_int_equal(options.items[1].kind, OPTION_STRAY);
    assert_string_equal(options.items[1].location, " stray");
    assert_int_equal(options.items[2].kind, OPTION_OBJECT);
    assert_string_equal(options.items[2].argument, "secret,id=a");
    assert_string_equal(options.items[2].location, " --object=secret,id=a");
}

static void global_ones_are_set_aside(void **state)
{
    CLEANUP(options_done) Options options = {0};

    assert_int_equal(SCAN(&options, (char *)"--daemonize", (char *)"--pidfile", (char *)"a", (char *)"--pidf",
                         (char *)"b"),
        OPTIONS_RUN);
    assert_true(options.daemonize);
    assert_string_equal(options.pidfile, "b");
    assert_int_equal(options.count, 0);
}

static void unknown_is_refused(void **state)
{
    CLEANUP(options_done) Options options = {0};

    assert_int_equal(SCAN(&options, (char *)"--nothing"), OPTIONS_FAILED);
    assert_int_equal(SCAN(&options, (char *)"--blockdev"), OPTIONS_FAILED);
    assert_int_equal(SCAN(&options, (char *)"--daemonize=on"), OPTIONS_FAILED);
}

static void rest_after_dashes_is_ignored(void **state)
{
    CLEANUP(options_done) Options options = {0};

    assert_int_equal(SCAN(&options, (char *)"--", (char *)"--version"), OPTIONS_RUN);
    assert_int_equal(options.count, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keeps_order_and_spelling),
        cmocka_unit_test(global_ones_are_set_aside),
        cmocka_unit_test(unknown_is_refused),
        cmocka_unit_test(rest_after_dashes_is_ignored),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
