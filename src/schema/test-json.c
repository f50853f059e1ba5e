/* SPDX-License-Identifier: Apache-2.0 */
/* The dialect of the control protocol. The expected texts were taken from QEMU 10.0.2. */
#include "schema/json.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

/* Collects what the parser yields: one line each, a value's text or "! error". */
static void collect(void *opaque, JsonValue *take_value, const Error *err)
{
    AUTO_JSON JsonValue *value = take_value;
    StrBuf *out = opaque;

    if (err)
        strbuf_printf(out, "! %s", err->message);
    else
        json_write(value, out, false);
    strbuf_append_char(out, '\n');
}

/* Feeds text whole and byte by byte; both must yield expected. */
static void check_bytes(const char *text, size_t length, const char *expected)
{
    for (int bytewise = 0; bytewise < 2; bytewise++) {
        AUTO_STRBUF StrBuf out = {0};
        CLEANUP(json_parser_free_ptr) JsonParser *parser = json_parser_new(collect, &out);

        for (size_t i = 0; bytewise && i < length; i++)
            json_parser_feed(parser, text + i, 1);
        if (!bytewise)
            json_parser_feed(parser, text, length);
        assert_string_equal(out.text ? out.text : "", expected);
    }
}

static void check(const char *text, const char *expected)
{
    check_bytes(text, strlen(text), expected);
}

static void test_values(void **state)
{
    check("{\"a\": [1, true, null, 'x\"y'], \"b\": {}}", "{\"a\": [1, true, null, \"x\\\"y\"], \"b\": {}}\n");
    check("{}[]'a'{\"execute\":\"b\"}", "{}\n[]\n\"a\"\n{\"execute\": \"b\"}\n");
    check("12", "");
    check("12 null\n", "12\nnull\n");
    check("true1 \n", "true\n1\n");
}

static void test_numbers(void **state)
{
    check("[-0, 1.0, 9223372036854775807, 9223372036854775808, 18446744073709551615, 18446744073709551616]",
        "[0, 1, 9223372036854775807, 9223372036854775808, 18446744073709551615, 1.8446744073709552e+19]\n");
    check("[-9223372036854775808, -9223372036854775809, 0.1, 1E5, -0.0, 1e400, -1e400]",
        "[-9223372036854775808, -9.2233720368547758e+18, 0.10000000000000001, 100000, -0, 1e999, -1e999]\n");
}

static void test_strings(void **state)
{
    check("\"\\u00e9\\ud834\\udd1e\\b\\f\\n\\r\\t\\/\\'\\u0000\x7f\"",
        "\"\\u00E9\\uD834\\uDD1E\\b\\f\\n\\r\\t/'\\u0000\\u007F\"\n");
    check("'\xc0\x80'", "\"\\u0000\"\n");
    check("'\xf0\x9d\x84\x9e'", "\"\\uD834\\uDD1E\"\n");
}

static void test_string_errors(void **state)
{
    check("{'x':'\\q'}", "! JSON parse error, invalid escape sequence in string\n");
    check("'\\ud800'", "! JSON parse error, \\ud800 is not a valid Unicode character\n");
    check("'\\ud800\\u0041'", "! JSON parse error, \\ud800 is not a valid Unicode character\n");
    check("'\\udc00'", "! JSON parse error, \\udc00 is not a valid Unicode character\n");
    check("'\\uffff'", "! JSON parse error, \\uffff is not a valid Unicode character\n");
    check("\"abc\\u12\"", "! JSON parse error, \\u12\" is not a valid Unicode character\n");
    check("'\\u12g4'", "! JSON parse error, \\u12g4 is not a valid Unicode character\n");
    check("'\x80\x80'", "! JSON parse error, invalid UTF-8 sequence in string\n");
    check("'\xed\xa0\x80'", "! JSON parse error, invalid UTF-8 sequence in string\n");
    check("'\xe0\x80\x80'", "! JSON parse error, invalid UTF-8 sequence in string\n");
    check("'\xe2\x82'", "! JSON parse error, invalid UTF-8 sequence in string\n");
    check("'\xf4\x90\x80\x80'", "! JSON parse error, invalid UTF-8 sequence in string\n");
}

static void test_syntax_errors(void **state)
{
    check("{\"a\":1,}", "! JSON parse error, expecting value\n");
    check("{\"a\":1,\"a\":2}", "! JSON parse error, duplicate key\n");
    check("{1:2}", "! JSON parse error, key is not a string in object\n");
    check("{{'a':1}:2}", "! JSON parse error, key is not a string in object\n");
    check("{[1 2]:3}", "! JSON parse error, expected separator in list\n");
    check("{\"a\" 1}", "! JSON parse error, missing : in object pair\n");
    check("{\"a\":1 \"b\":2}", "! JSON parse error, expected separator in dict\n");
    check("[1,2\n}", "! JSON parse error, expected separator in list\n");
    check("[,]", "! JSON parse error, expecting value\n");
    check("]", "! JSON parse error, expecting value\n");
    check("nul\n{}", "! JSON parse error, invalid keyword 'nul'\n{}\n");
    check("{\"x\":true1}", "! JSON parse error, expected separator in dict\n");
    check("{'x':nil}{}", "! JSON parse error, invalid keyword 'nil'\n{}\n");
}

/* A bad token is reported at once; reading goes on at the next structural character. */
static void test_recovery(void **state)
{
    check("{\"x\":01}\n", "! JSON parse error, stray '01'\n! JSON parse error, expecting value\n");
    check("{\"x\":-}\n", "! JSON parse error, stray '-}'\n");
    check("@ {}", "! JSON parse error, stray '@'\n{}\n");
    check("%d {}", "! JSON parse error, stray '%'\n{}\n");
    check("tRue\n", "! JSON parse error, invalid keyword 't'\n! JSON parse error, stray 'R'\n");
    check("TRUE\n{}", "! JSON parse error, stray 'T'\n{}\n");
    check("{\"x\":\"a\tb\"}\n", "! JSON parse error, stray '\"a\t'\n! JSON parse error, expecting value\n");
    check("\xff{}", "! JSON parse error, stray '\xff'\n{}\n");
    check("{\"x\":\xff}\n{}", "! JSON parse error, stray '\xff'\n! JSON parse error, expecting value\n{}\n");
    check_bytes("\0{}", 3, "! JSON parse error, stray ''\n{}\n");
    check("{\"a\":1}}}{}",
        "{\"a\": 1}\n! JSON parse error, expecting value\n! JSON parse error, expecting value\n{}\n");
}

/* depth opening brackets and as many closing ones; how many errors that gives. */
static void check_nesting(size_t depth, bool fine)
{
    AUTO_STRBUF StrBuf out = {0}, text = {0};
    CLEANUP(json_parser_free_ptr) JsonParser *parser = json_parser_new(collect, &out);

    for (size_t i = 0; i < depth; i++)
        strbuf_append_char(&text, '[');
    for (size_t i = 0; i < depth; i++)
        strbuf_append_char(&text, ']');
    json_parser_feed(parser, text.text, text.length);
    assert_true(fine == !strchr(out.text, '!'));
    if (!fine)
        assert_true(str_starts(out.text, "! JSON nesting depth limit exceeded\n"));
}

static void test_nesting(void **state)
{
    check_nesting(1024, true);
    check_nesting(1025, false);
}

static void check_parse(const char *text, const char *expected_error)
{
    AUTO_JSON JsonValue *value = NULL;
    AUTO_ERROR Error err = ERROR_INIT;
    int r = json_parse(text, &value, &err);

    assert_string_equal(r < 0 ? err.message : "", expected_error);
}

static void test_single_value(void **state)
{
    check_parse("{} ", "");
    check_parse("12", "");
    check_parse(" ", "Expecting a JSON value");
    check_parse("{", "JSON parse error, premature EOI");
    check_parse("{\"a\":tru", "JSON parse error, invalid keyword 'tru'");
    check_parse("{\"a\":\"b", "JSON parse error, stray '\"b'");
    check_parse("{\"a\":-", "JSON parse error, stray '-'");
    check_parse("{}{}", "Expecting at most one JSON value");
    check_parse("{}}", "Expecting at most one JSON value");
    check_parse("{@}", "JSON parse error, stray '@'");
}

static void test_pretty(void **state)
{
    AUTO_JSON JsonValue *value = NULL;
    AUTO_ERROR Error err = ERROR_INIT;
    AUTO_FREE char *text = NULL;

    assert_int_equal(json_parse("{'a': [], 'b': {}, 'c': [1, {'x': 'y'}]}", &value, &err), 0);
    text = json_text(value, true);
    assert_string_equal(text,
        "{\n    \"a\": [\n    ],\n    \"b\": {\n    },\n    \"c\": [\n        1,\n        {\n"
        "            \"x\": \"y\"\n        }\n    ]\n}");
}

/* Many members: the index must agree with the list, also after replacing and removing. */
static void test_large_object(void **state)
{
    AUTO_JSON JsonValue *object = json_object_new(), *copy = NULL;

    for (int i = 0; i < 1000; i++) {
        AUTO_FREE char *key = str_printf("key-%d", i % 500);

        json_object_put(object, key, json_int_new(i));
    }
    assert_int_equal(object->u.object.count, 500);
    assert_int_equal(json_get(object, "key-7")->u.integer, 507);
    copy = json_clone(object);
    assert_true(json_equal(object, copy));
    json_free(json_object_take(copy, "key-7"));
    assert_null(json_get(copy, "key-7"));
    assert_int_equal(json_get(copy, "key-499")->u.integer, 999);
    assert_false(json_equal(object, copy));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_strings),
        cmocka_unit_test(test_string_errors),
        cmocka_unit_test(test_syntax_errors),
        cmocka_unit_test(test_recovery),
        cmocka_unit_test(test_nesting),
        cmocka_unit_test(test_single_value),
        cmocka_unit_test(test_pretty),
        cmocka_unit_test(test_large_object),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
