/* SPDX-License-Identifier: Apache-2.0 */
/* What the unit tests of the graph share: tests that run in a loop, nodes and objects from JSON, root edges.
 */
#pragma once

#include "block/block-priv.h"
#include "schema/object.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

/* A test whose body is a coroutine of a main loop; it returns 0. */
#define LOOP_TEST(name)                                                                     \
    static int name##_main(void *arg);                                                      \
    static void name(void **state)                                                          \
    {                                                                                       \
        const LoopOptions options = LOOP_OPTIONS_DEFAULT;                                   \
                                                                                            \
        assert_int_equal(loop_run_main(LOOP_BACKEND_AUTO, &options, name##_main, NULL), 0); \
    }                                                                                       \
    static int name##_main(void *arg)

/* The generated struct that text describes; fails the test if it does not. */
static inline void *test_options(const SchemaType *type, const char *json)
{
    Error err = ERROR_INIT;
    JsonValue *value;
    void *options;

    assert_int_equal(json_parse(json, &value, &err), 0);
    if (schema_from_json(type, value, SCHEMA_JSON, &options, &err) < 0)
        fail_msg("%s", err.message);
    json_free(value);
    return options;
}

static inline Node *test_add(const char *json)
{
    BlockdevOptions *options = test_options(&schema_type_BlockdevOptions, json);
    Error err = ERROR_INIT;
    Node *node;

    if (node_add(options, &err) < 0)
        fail_msg("%s", err.message);
    node = node_find(options->node_name);
    blockdev_options_free(options);
    return node;
}

static const EdgeUser test_user = {0};

static inline Edge *test_open_root(Node *node, unsigned perm)
{
    Edge *edge;
    Error err = ERROR_INIT;

    if (edge_open(node, &test_user, NULL, perm, PERM_ALL, &edge, &err) < 0)
        fail_msg("%s", err.message);
    return edge;
}
