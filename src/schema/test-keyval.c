/* SPDX-License-Identifier: Apache-2.0 */
/* The command line's key=value text. The expected texts were taken from QEMU 10.0.2. */
#include "schema/keyval.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

/* Parses with the implied key "driver"; expected is the tree as JSON or the error. */
static void check(const char *text, const char *expected)
{
    AUTO_JSON JsonValue *object = NULL;
    AUTO_ERROR Error err = ERROR_INIT;
    AUTO_FREE char *shown = NULL;

    if (keyval_parse(text, "driver", &object, NULL, &err) < 0) {
        assert_string_equal(err.message, expected);
        return;
    }
    shown = json_text(object, false);
    assert_string_equal(shown, expected);
}

static void test_trees(void **state)
{
    check("", "{}");
    check("a=b", "{\"a\": \"b\"}");
    check("x,a=b,", "{\"driver\": \"x\", \"a\": \"b\"}");
    check("a=b,,c,d=", "{\"a\": \"b,c\", \"d\": \"\"}");
    check("a=x=y", "{\"a\": \"x=y\"}");
    check("a=1,a=2", "{\"a\": \"2\"}");
    check("a.b.c=1,a.d=2", "{\"a\": {\"b\": {\"c\": \"1\"}, \"d\": \"2\"}}");
    check("__org.x_b=1,A-_9=2", "{\"__org.x_b\": \"1\", \"A-_9\": \"2\"}");
    check("help=1", "{\"help\": \"1\"}");
}

static void test_lists(void **state)
{
    check("a.0=x,a.1.b=y", "{\"a\": [\"x\", {\"b\": \"y\"}]}");
    check("a.1=y,a.0=x", "{\"a\": [\"x\", \"y\"]}");
    check("a.00=x", "{\"a\": [\"x\"]}");
    check("a.0=x,a.2=y", "Parameter 'a.1' missing");
    check("a.b.1=x", "Parameter 'a.b.0' missing");
    check("a.0=x,a.b=y", "Parameters 'a.*' used inconsistently");
    check("a.99999999999999999999=x", "Parameter 'a.0' missing");
}

static void test_errors(void **state)
{
    check("x,b", "Expected '=' after parameter 'b'");
    check("a=b,c.d", "Expected '=' after parameter 'c.d'");
    check("=", "Invalid parameter ''");
    check("x,,a=b", "Invalid parameter ''");
    check(".a=b", "Invalid parameter '.a'");
    check("a..b=c", "Invalid parameter 'a..b'");
    check("a.=c", "Invalid parameter 'a.'");
    check("1=2", "Invalid parameter '1'");
    check("a b=c", "Invalid parameter 'a b'");
    check("a.1b=2", "Invalid parameter 'a.1b'");
    check("_a=b", "Invalid parameter '_a'");
    check("a=1,a.b=2", "Parameters 'a.*' used inconsistently");
    check("a.b.c=1,a.b=2", "Parameters 'a.b.*' used inconsistently");
    check("help", "Help is not available for this option");
    check("x,?", "Help is not available for this option");
}

/* A part of a key has at most 127 characters. */
static void test_key_length(void **state)
{
    AUTO_STRBUF StrBuf key = {0}, text = {0}, expected = {0};

    for (int i = 0; i < 127; i++)
        strbuf_append_char(&key, 'k');
    strbuf_printf(&text, "%s=1", key.text);
    strbuf_printf(&expected, "{\"%s\": \"1\"}", key.text);
    check(text.text, expected.text);

    strbuf_append_char(&key, 'k');
    text.length = expected.length = 0;
    strbuf_printf(&text, "%s=1", key.text);
    strbuf_printf(&expected, "Parameter '%s' is too long", key.text);
    check(text.text, expected.text);

    text.length = expected.length = 0;
    strbuf_printf(&text, "%s.a=1", key.text);
    strbuf_printf(&expected, "Parameter fragment '%s' is too long", key.text);
    check(text.text, expected.text);
}

static void test_help(void **state)
{
    AUTO_JSON JsonValue *object = NULL;
    AUTO_ERROR Error err = ERROR_INIT;
    bool help = false;

    assert_int_equal(keyval_parse("secret,help", "qom-type", &object, &help, &err), 0);
    assert_true(help);
    assert_string_equal(json_get_string(object, "qom-type"), "secret");
}

static void check_size(const char *text, uint64_t expected)
{
    uint64_t bytes = 1;

    assert_int_equal(keyval_parse_size(text, &bytes), 0);
    assert_int_equal(bytes, expected);
}

static void test_sizes(void **state)
{
    static const char *const bad[] = {"", "k", ".", "x", "-1", "1 ", "1kb", "1.5", "1.5b", "0x", "0x10k",
        "1e3", "1..2k", "inf", "16E", "18446744073709551616", "15.9999999999999999999E"};
    uint64_t bytes;

    check_size("0", 0);
    check_size(" +1", 1);
    check_size("64k", 65536);
    check_size("1.5M", 1572864);
    check_size(".5k", 512);
    check_size("1.", 1);
    check_size("0.1k", 102);
    check_size("0x10", 16);
    check_size("010", 10);
    check_size("15E", UINT64_C(15) << 60);
    check_size("18446744073709551615", UINT64_MAX);
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_true(keyval_parse_size(bad[i], &bytes) < 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_trees),
        cmocka_unit_test(test_lists),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_key_length),
        cmocka_unit_test(test_help),
        cmocka_unit_test(test_sizes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
