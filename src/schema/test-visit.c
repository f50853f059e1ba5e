/* SPDX-License-Identifier: Apache-2.0 */
/* Text -> generated types -> JSON. The expected texts were taken from QEMU 10.0.2. */
#include "generated/types.h"
#include "schema/keyval.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

/* Reads, copies, frees and writes a value; expected is its JSON or the error. */
static void check_value(const SchemaType *type, JsonValue *take_json, SchemaMode mode, const char *expected)
{
    AUTO_JSON JsonValue *json = take_json, *written = NULL;
    AUTO_ERROR Error err = ERROR_INIT;
    AUTO_FREE char *text = NULL;
    void *value, *copy;

    if (schema_from_json(type, json, mode, &value, &err) < 0) {
        assert_string_equal(err.message, expected);
        return;
    }
    copy = schema_clone(type, value);
    schema_free(type, value);
    written = schema_to_json(type, copy);
    schema_free(type, copy);
    text = json_text(written, false);
    assert_string_equal(text, expected);
}

static void check_json(const SchemaType *type, const char *text, const char *expected)
{
    AUTO_ERROR Error err = ERROR_INIT;
    JsonValue *json = NULL;

    assert_int_equal(json_parse(text, &json, &err), 0);
    check_value(type, json, SCHEMA_JSON, expected);
}

static void check_keyval(const SchemaType *type, const char *text, const char *expected)
{
    AUTO_ERROR Error err = ERROR_INIT;
    JsonValue *json = NULL;

    assert_int_equal(keyval_parse(text, "driver", &json, NULL, &err), 0);
    check_value(type, json, SCHEMA_KEYVAL, expected);
}

static void blockdev(const char *text, const char *expected)
{
    check_json(&schema_type_BlockdevOptions, text, expected);
}

static void blockdev_keyval(const char *text, const char *expected)
{
    check_keyval(&schema_type_BlockdevOptions, text, expected);
}

static void test_round_trip(void **state)
{
    blockdev(
        "{'driver':'qcow2','node-name':'n','cache':{'direct':true},'file':{'driver':'file','filename':'x'},"
        "'backing':null,'overlap-check':{'template':'all'}}",
        "{\"driver\": \"qcow2\", \"node-name\": \"n\", \"cache\": {\"direct\": true}, \"file\": {\"driver\": "
        "\"file\", "
        "\"filename\": \"x\"}, \"backing\": null, \"overlap-check\": {\"template\": \"all\"}}");
    blockdev("{'driver':'raw','file':'n','size':5}", "{\"driver\": \"raw\", \"file\": \"n\", \"size\": 5}");
    blockdev("{'driver':'null-co','latency-ns':-1}",
        "{\"driver\": \"null-co\", \"latency-ns\": 18446744073709551615}");
    check_json(&schema_type_BlockExportOptions,
        "{'type':'nbd','id':'e','node-name':'n','bitmaps':['a',{'node':'b','name':'c'}]}",
        "{\"type\": \"nbd\", \"id\": \"e\", \"node-name\": \"n\", \"bitmaps\": [\"a\", {\"node\": \"b\", "
        "\"name\": "
        "\"c\"}]}");
}

static void test_type_errors(void **state)
{
    blockdev("{'driver':'null-co','size':'1'}", "Invalid parameter type for 'size', expected: integer");
    blockdev("{'driver':'null-co','size':1.0}", "Invalid parameter type for 'size', expected: integer");
    blockdev("{'driver':'null-co','size':18446744073709551615}",
        "Invalid parameter type for 'size', expected: integer");
    blockdev("{'driver':'null-co','latency-ns':1.5}", "Parameter 'latency-ns' expects uint64");
    blockdev("{'driver':1}", "Invalid parameter type for 'driver', expected: string");
    blockdev(
        "{'driver':'null-co','read-only':'on'}", "Invalid parameter type for 'read-only', expected: boolean");
    blockdev("{'driver':'null-co','cache':1}", "Invalid parameter type for 'cache', expected: object");
    blockdev("{'driver':'raw','file':1}", "Invalid parameter type for 'file', expected: BlockdevRef");
    blockdev("{'driver':'raw','file':{'driver':'null-co','size':'a'}}",
        "Invalid parameter type for 'file.size', expected: integer");
    check_json(&schema_type_BlockExportOptions, "{'type':'nbd','id':'e','node-name':'n','bitmaps':1}",
        "Invalid parameter type for 'bitmaps', expected: array");
}

static void test_list_errors(void **state)
{
    const SchemaType *type = &schema_type_BlockExportOptions;

    check_json(type, "{'type':'nbd','id':'e','node-name':'n','bitmaps':[1]}",
        "Invalid parameter type for 'null', expected: BlockDirtyBitmapOrStr");
    check_json(type, "{'type':'nbd','id':'e','node-name':'n','bitmaps':['x',{'node':1}]}",
        "Invalid parameter type for 'bitmaps[1].node', expected: string");
    check_json(type, "{'type':'nbd','id':'e','node-name':'n','bitmaps':[{'node':'a','name':'b','c':1}]}",
        "Parameter 'bitmaps[0].c' is unexpected");
    check_json(&schema_type_QmpCapabilitiesArg, "{'enable':[1]}",
        "Invalid parameter type for 'enable[0]', expected: string");
}

static void test_member_errors(void **state)
{
    blockdev("{}", "Parameter 'driver' is missing");
    blockdev("{'driver':'foo'}", "Parameter 'driver' does not accept value 'foo'");
    blockdev("{'driver':'raw'}", "Parameter 'file' is missing");
    blockdev("{'driver':'raw','file':{}}", "Parameter 'file.driver' is missing");
    blockdev("{'driver':'raw','file':{'driver':'x'}}", "Parameter 'driver' does not accept value 'x'");
    blockdev("{'driver':'raw','file':{'driver':'null-co','x':1}}", "Parameter 'file.x' is unexpected");
    blockdev("{'driver':'null-co','cache':{'dirct':true}}", "Parameter 'cache.dirct' is unexpected");
    check_json(&schema_type_Empty, "{'x':1}", "Parameter 'x' is unexpected");
}

static void test_ranges(void **state)
{
    const SchemaType *type = &schema_type_NbdServerOptions;

    check_json(
        type, "{'addr':{'type':'inet','host':'a','port':'1','to':65536}}", "Parameter 'to' expects uint16_t");
    check_json(type, "{'addr':{'type':'inet','host':'a','port':'1'},'max-connections':-1}",
        "Parameter 'max-connections' expects uint32_t");
    check_json(type, "{'addr':{'type':'inet','host':'a','port':'1'},'max-connections':1.5}",
        "Parameter 'max-connections' expects uint64");
    check_json(type, "{'addr':{'type':'inet','host':'a'}}", "Parameter 'addr.port' is missing");
}

static void test_keyval(void **state)
{
    blockdev_keyval("null-co,size=0x10,read-zeroes=y,latency-ns=-1",
        "{\"driver\": \"null-co\", \"size\": 16, \"latency-ns\": 18446744073709551615, \"read-zeroes\": "
        "true}");
    blockdev_keyval("raw,file.driver=file,file.filename=a,,b",
        "{\"driver\": \"raw\", \"file\": {\"driver\": \"file\", \"filename\": \"a,b\"}}");
    check_keyval(&schema_type_BlockdevCreateOptions, "file,filename=x,size=1.5M",
        "{\"driver\": \"file\", \"filename\": \"x\", \"size\": 1572864}");
}

static void test_keyval_errors(void **state)
{
    blockdev_keyval("null-co,size=1M", "Parameter 'size' expects integer");
    blockdev_keyval("null-co,size=", "Parameter 'size' expects integer");
    blockdev_keyval("null-co,size=99999999999999999999", "Parameter 'size' expects integer");
    blockdev_keyval("null-co,read-zeroes=TRUE", "Parameter 'read-zeroes' expects 'on' or 'off'");
    blockdev_keyval("null-co,cache.direct=1", "Parameter 'cache.direct' expects 'on' or 'off'");
    blockdev_keyval("null-co,size.a=1", "Parameters 'size.*' are unexpected");
    blockdev_keyval("null-co,x.y.z=1", "Parameter 'x' is unexpected");
    check_keyval(
        &schema_type_BlockdevCreateOptions, "file,filename=x,size=-1", "Parameter 'size' expects size");
    check_keyval(&schema_type_BlockExportOptions, "type=nbd,id=e,node-name=n,bitmaps.0=a,bitmaps.1.node=x",
        "Parameter 'bitmaps.1.name' is missing");
}

/* Deep nesting is refused before it can use up a coroutine's stack. */
static void test_depth(void **state)
{
    AUTO_ERROR Error err = ERROR_INIT;
    AUTO_JSON JsonValue *json = NULL;
    AUTO_STRBUF StrBuf text = {0};
    BlockdevOptions *options;

    for (int i = 0; i < 1000; i++)
        strbuf_append(&text, "{'driver':'raw','file':");
    strbuf_append(&text, "'x'");
    for (int i = 0; i < 1000; i++)
        strbuf_append_char(&text, '}');
    assert_int_equal(json_parse(text.text, &json, &err), 0);
    assert_true(schema_from_json(&schema_type_BlockdevOptions, json, SCHEMA_JSON, &options, &err) < 0);
    assert_string_equal(err.message, "Parameter 'file' is nested too deeply");
}

static void test_lists(void **state)
{
    StrList list = {0};
    AUTO_JSON JsonValue *json = NULL;
    AUTO_FREE char *text = NULL;

    for (int i = 0; i < 5; i++)
        str_list_append(&list, str_printf("%d", i));
    json = schema_to_json(&schema_type_StrList, &list);
    text = json_text(json, false);
    assert_string_equal(text, "[\"0\", \"1\", \"2\", \"3\", \"4\"]");
    str_list_done(&list);
    assert_int_equal(list.count, 0);
}

static void test_member(void **state)
{
    AUTO_JSON JsonValue *json = json_string_new("5");
    AUTO_ERROR Error err = ERROR_INIT;
    int64_t value;

    assert_true(schema_member_from_json(&schema_type_int, "poll-max-ns", json, &value, &err) < 0);
    assert_string_equal(err.message, "Invalid parameter type for 'poll-max-ns', expected: integer");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_type_errors),
        cmocka_unit_test(test_list_errors),
        cmocka_unit_test(test_member_errors),
        cmocka_unit_test(test_ranges),
        cmocka_unit_test(test_keyval),
        cmocka_unit_test(test_keyval_errors),
        cmocka_unit_test(test_depth),
        cmocka_unit_test(test_lists),
        cmocka_unit_test(test_member),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
