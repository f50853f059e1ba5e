/* SPDX-License-Identifier: Apache-2.0 */
/* The registry of objects, with a kind of its own behind the name of a real one. */
#include "schema/object.h"

#include "generated/types.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

typedef struct Thing {
    bool busy;
} Thing;

static int destroyed;

static int thing_create(Object *object, const ObjectOptions *options, Error *err)
{
    return options->u.secret.data ? 0 : err_set(err, -EINVAL, "no data");
}

static void thing_destroy(Object *object)
{
    destroyed++;
}

static bool thing_can_be_deleted(Object *object);

static int thing_get(Object *object, const ObjectProperty *property, JsonValue **ret_value, Error *err)
{
    *ret_value = json_bool_new(true);
    return 0;
}

static const ObjectProperty properties[] = {{.name = "busy", .type = "bool", .get = thing_get}, {0}};

static const ObjectKind thing_kind = {
    .name = "secret",
    .state_size = sizeof(Thing),
    .single = true,
    .create = thing_create,
    .destroy = thing_destroy,
    .can_be_deleted = thing_can_be_deleted,
    .properties = properties,
};

static bool thing_can_be_deleted(Object *object)
{
    return !((Thing *)object_state(object, &thing_kind))->busy;
}

/* In place of the generated registry. */
const ObjectKind *object_kind_find(const char *name)
{
    return str_eq(name, "secret") ? &thing_kind : NULL;
}

const ObjectKind *const *object_kind_list(size_t *ret_count)
{
    *ret_count = 0;
    return NULL;
}

static void check_add(ObjectType type, const char *id, const char *data, const char *expected)
{
    CLEANUP(object_options_free_ptr) ObjectOptions *options = mem_new(ObjectOptions);
    AUTO_ERROR Error err = ERROR_INIT;

    options->qom_type = type;
    options->id = str_dup(id);
    if (type == OBJECT_TYPE_SECRET)
        options->u.secret.data = str_dup(data);
    assert_string_equal(object_add(options, &err) < 0 ? err.message : "", expected);
}

static void check_del(const char *id, const char *expected)
{
    AUTO_ERROR Error err = ERROR_INIT;

    assert_string_equal(object_del(id, &err) < 0 ? err.message : "", expected);
}

static void test_add(void **state)
{
    check_add(OBJECT_TYPE_QTEST, "a", NULL, "invalid object type: qtest");
    check_add(OBJECT_TYPE_SECRET, "1", "x", "Parameter 'id' expects an identifier");
    check_add(OBJECT_TYPE_SECRET, "", "x", "Parameter 'id' expects an identifier");
    check_add(OBJECT_TYPE_SECRET, "a", NULL, "no data");
    assert_null(object_find("a"));
    check_add(OBJECT_TYPE_SECRET, "a", "x", "");
    check_add(
        OBJECT_TYPE_SECRET, "a", "x", "attempt to add duplicate property 'a' to object (type 'container')");
    check_add(OBJECT_TYPE_SECRET, "b", "x", "only one secret instance allowed");
    object_del_all();
}

/* A user's reference keeps the state; the id is free at once. */
static void test_references(void **state)
{
    Object *object;

    destroyed = 0;
    check_del("a", "object 'a' not found");
    check_add(OBJECT_TYPE_SECRET, "a", "x", "");
    object = object_ref(object_find("a"));
    ((Thing *)object_state(object, &thing_kind))->busy = true;
    check_del("a", "object 'a' is in use, can not be deleted");
    ((Thing *)object_state(object, &thing_kind))->busy = false;
    check_del("a", "");
    assert_null(object_find("a"));
    assert_int_equal(destroyed, 0);
    object_unref(object);
    assert_int_equal(destroyed, 1);
}

static void check_property(const char *name, const char *expected)
{
    AUTO_ERROR Error err = ERROR_INIT;
    AUTO_JSON JsonValue *value = NULL;
    AUTO_FREE char *text = NULL;

    if (object_property_get(object_find("a"), name, &value, &err) == 0)
        text = json_text(value, false);
    assert_string_equal(text ? text : err.message, expected);
}

static void test_properties(void **state)
{
    AUTO_JSON JsonValue *value = json_bool_new(true);
    AUTO_ERROR Error err = ERROR_INIT;

    check_add(OBJECT_TYPE_SECRET, "a", "x", "");
    check_property("type", "\"secret\"");
    check_property("busy", "true");
    check_property("x", "Property 'secret.x' not found");
    assert_true(object_property_set(object_find("a"), "busy", value, &err) < 0);
    assert_string_equal(err.message, "Property 'secret.busy' is not writable");
    object_del_all();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_add),
        cmocka_unit_test(test_references),
        cmocka_unit_test(test_properties),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
