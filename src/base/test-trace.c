/* SPDX-License-Identifier: Apache-2.0 */
#include "base/trace.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static void patterns(void **state)
{
    assert_true(trace_pattern_matches("abc", "abc"));
    assert_false(trace_pattern_matches("abc", "abcd"));
    assert_false(trace_pattern_matches("abcd", "abc"));
    assert_true(trace_pattern_matches("*", ""));
    assert_true(trace_pattern_matches("*", "abc"));
    assert_true(trace_pattern_matches("a*c", "abcbc"));
    assert_false(trace_pattern_matches("a*c", "abcb"));
    assert_true(trace_pattern_matches("*b*", "abc"));
    assert_true(trace_pattern_matches("a**", "a"));
    assert_false(trace_pattern_matches("", "a"));
}

static void set_and_clear(void **state)
{
    assert_true(trace_count > 0);
    assert_int_equal(trace_set("*"), trace_count);
    assert_true(trace_enabled[0]);
    assert_int_equal(trace_set("-*"), trace_count);
    assert_false(trace_enabled[0]);
    assert_int_equal(trace_set(trace_names[0]), 1);
    assert_true(trace_enabled[0]);
    assert_int_equal(trace_set("no_such_event"), 0);
    trace_set("-*");
}

static void option(void **state)
{
    Error err = ERROR_INIT;
    bool help = false;

    assert_int_equal(trace_set_from_option("enable=*", &help, &err), 0);
    assert_true(trace_enabled[0]);
    assert_false(help);
    assert_int_equal(trace_set_from_option("-*", &help, &err), 0);
    assert_false(trace_enabled[0]);
    assert_int_equal(trace_set_from_option("help", &help, &err), 0);
    assert_true(help);
    assert_true(trace_set_from_option("x=y", &help, &err) < 0);
    assert_string_equal(err.message, "Invalid parameter 'x'");
    err_done(&err);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(patterns),
        cmocka_unit_test(set_and_clear),
        cmocka_unit_test(option),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
