/* SPDX-License-Identifier: Apache-2.0 */
/* The user-creatable objects. References are counted; the list holds one until object-del. */
#include "schema/object.h"

#include "base/id.h"
#include "base/list.h"
#include "generated/types.h"

#include <assert.h>
#include <string.h>

struct Object {
    List link; /* in objects, oldest first; unlinked by object-del */
    const ObjectKind *kind;
    char *id;
    void *state;
    unsigned references;
};

static List objects = LIST_INIT(objects);

static bool kind_exists(const ObjectKind *kind)
{
    LIST_FOREACH (link, &objects)
        if (LIST_ENTRY(link, Object, link)->kind == kind)
            return true;
    return false;
}

static int check_id(const char *id, Error *err)
{
    if (!id_is_valid(id)) {
        err_set(err, -EINVAL, "Parameter 'id' expects an identifier");
        err_hint(err, "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.");
        return err->code;
    }
    if (object_find(id))
        return err_set(
            err, -EEXIST, "attempt to add duplicate property '%s' to object (type 'container')", id);
    return 0;
}

static void object_free(Object *object)
{
    free(object->state);
    free(object->id);
    free(object);
}

int object_add(const ObjectOptions *options, Error *err)
{
    const char *type = object_type_name(options->qom_type);
    const ObjectKind *kind = object_kind_find(type);
    Object *object;
    int r;

    if (!kind)
        return err_set(err, -EINVAL, "invalid object type: %s", type);
    r = check_id(options->id, err);
    if (r < 0)
        return r;
    if (kind->single && kind_exists(kind))
        return err_set(err, -EEXIST, "only one %s instance allowed", kind->name);
    object = mem_new(Object);
    object->kind = kind;
    object->id = str_dup(options->id);
    object->state = mem_zalloc(kind->state_size);
    object->references = 1;
    list_append(&objects, &object->link); /* before create(), which may wait: the id is taken */
    r = kind->create(object, options, err);
    if (r < 0) {
        list_remove(&object->link);
        object_free(object);
    }
    return r < 0 ? r : 0;
}

int object_del(const char *id, Error *err)
{
    Object *object = object_find(id);

    if (!object)
        return err_set(err, -ENOENT, "object '%s' not found", id);
    if (object->kind->can_be_deleted && !object->kind->can_be_deleted(object))
        return err_set(err, -EBUSY, "object '%s' is in use, can not be deleted", id);
    list_remove(&object->link);
    object_unref(object);
    return 0;
}

void object_del_all(void)
{
    while (!list_empty(&objects)) {
        Object *object = LIST_ENTRY(objects.prev, Object, link);

        list_remove(&object->link);
        object_unref(object);
    }
}

Object *object_find(const char *id)
{
    LIST_FOREACH (link, &objects) {
        Object *object = LIST_ENTRY(link, Object, link);

        if (strcmp(object->id, id) == 0)
            return object;
    }
    return NULL;
}

void object_foreach(bool (*fn)(Object *object, void *arg), void *arg)
{
    LIST_FOREACH_SAFE (link, &objects)
        if (!fn(LIST_ENTRY(link, Object, link), arg))
            return;
}

const char *object_id(const Object *object)
{
    return object->id;
}

const ObjectKind *object_kind(const Object *object)
{
    return object->kind;
}

void *object_state(Object *object, const ObjectKind *kind)
{
    return object && object->kind == kind ? object->state : NULL;
}

Object *object_ref(Object *object)
{
    object->references++;
    return object;
}

void object_unref(Object *object)
{
    if (!object)
        return;
    assert(object->references);
    if (--object->references)
        return;
    if (object->kind->destroy)
        object->kind->destroy(object);
    object_free(object);
}

/* ---- Properties ---- */

static const ObjectProperty *find_property(const ObjectKind *kind, const char *name)
{
    const ObjectProperty *property = kind->properties;

    while (property && property->name && strcmp(property->name, name) != 0)
        property++;
    return property && property->name ? property : NULL;
}

int object_property_get(Object *object, const char *name, JsonValue **ret_value, Error *err)
{
    const ObjectProperty *property = find_property(object->kind, name);

    if (!property && strcmp(name, "type") == 0) {
        *ret_value = json_string_new(object->kind->name);
        return 0;
    }
    if (!property)
        return err_set(err, -ENOENT, "Property '%s.%s' not found", object->kind->name, name);
    if (!property->get)
        return err_set(err, -EACCES, "Property '%s.%s' is not readable", object->kind->name, name);
    return property->get(object, property, ret_value, err);
}

int object_property_set(Object *object, const char *name, const JsonValue *value, Error *err)
{
    const ObjectProperty *property = find_property(object->kind, name);

    if (!property && strcmp(name, "type") != 0)
        return err_set(err, -ENOENT, "Property '%s.%s' not found", object->kind->name, name);
    if (!property || !property->set)
        return err_set(err, -EACCES, "Property '%s.%s' is not writable", object->kind->name, name);
    return property->set(object, property, value, err);
}
