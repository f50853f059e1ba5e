/* SPDX-License-Identifier: Apache-2.0 */
/* The envelope of the protocol, without a connection: texts of requests and of the replies to them. */
#include "monitor/monitor-priv.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

static Negotiation negotiation;

static void check(const char *request_text, const char *reply_text)
{
    AUTO_ERROR Error err = ERROR_INIT;
    AUTO_JSON JsonValue *request = NULL;

    assert_int_equal(json_parse(request_text, &request, &err), 0);
    AUTO_JSON JsonValue *reply = dispatch_request(&negotiation, request);
    AUTO_FREE char *text = json_text(reply, false);
    assert_string_equal(text, reply_text);
}

#define GENERIC(text) "{\"error\": {\"class\": \"GenericError\", \"desc\": \"" text "\"}}"
#define NOT_FOUND(text) "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"" text "\"}}"

static int reset(void **state)
{
    negotiation = (Negotiation){.complete = true};
    return 0;
}

static void negotiates(void **state)
{
    negotiation = (Negotiation){0};
    check("{'execute': 'query-version'}",
        NOT_FOUND("Expecting capabilities negotiation with 'qmp_capabilities'"));
    check("{'exec-oob': 'query-version'}", GENERIC("QMP input member 'exec-oob' is unexpected"));
    check("{'execute': 'qmp_capabilities', 'arguments': {'enable': ['x']}}",
        GENERIC("Parameter 'null' does not accept value 'x'"));
    assert_false(negotiation.complete);
    check("{'execute': 'qmp_capabilities'}", "{\"return\": {}}");
    assert_true(negotiation.complete);
    assert_false(negotiation.oob);
    check("{'execute': 'qmp_capabilities'}",
        NOT_FOUND("Capabilities negotiation is already complete, command ignored"));
    check("{'execute': 'qmp_capabilities', 'arguments': {'enable': 7}}",
        GENERIC("Invalid parameter type for 'enable', expected: array"));
}

static void enables_oob(void **state)
{
    negotiation = (Negotiation){0};
    check("{'execute': 'qmp_capabilities', 'arguments': {'enable': ['oob']}}", "{\"return\": {}}");
    assert_true(negotiation.oob);
    check("{'exec-oob': 'query-version'}", GENERIC("The command query-version does not support OOB"));
    check("{'exec-oob': 1}", GENERIC("QMP input member 'exec-oob' must be a string"));
    check("{'exec-oob': 'query-version', 'execute': 'query-version'}",
        GENERIC("QMP input member 'execute' clashes with 'exec-oob'"));
}

static void checks_members(void **state)
{
    check("[]", GENERIC("QMP input must be a JSON object"));
    check("{}", GENERIC("QMP input lacks member 'execute'"));
    check("{'execute': 1}", GENERIC("QMP input member 'execute' must be a string"));
    check("{'execute': 'query-version', 'arguments': []}",
        GENERIC("QMP input member 'arguments' must be an object"));
    check("{'execute': 'query-version', 'x': []}", GENERIC("QMP input member 'x' is unexpected"));
    check("{'execute': 'nope'}", NOT_FOUND("The command nope has not been found"));
    check("{'execute': 'query-version', 'arguments': {'x': 1}}", GENERIC("Parameter 'x' is unexpected"));
}

static void echoes_id(void **state)
{
    check("{'execute': 'qom-get', 'id': {'a': [1, null]}, 'arguments': {'path': '/', 'property': 'type'}}",
        "{\"return\": \"container\", \"id\": {\"a\": [1, null]}}");
    check("{'execute': 'nope', 'id': 7}", "{\"id\": 7, \"error\": {\"class\": \"CommandNotFound\", \"desc\": "
                                          "\"The command nope has not been found\"}}");
}

static void greets(void **state)
{
    AUTO_JSON JsonValue *greeting = dispatch_greeting();
    AUTO_FREE char *text = json_text(greeting, false);

    assert_string_equal(text,
        "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 2, \"minor\": 0, \"major\": 10}, "
        "\"package\": \"granary 0.1.0\"}, \"capabilities\": [\"oob\"]}}");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(negotiates, reset),
        cmocka_unit_test_setup(enables_oob, reset),
        cmocka_unit_test_setup(checks_members, reset),
        cmocka_unit_test_setup(echoes_id, reset),
        cmocka_unit_test(greets),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
