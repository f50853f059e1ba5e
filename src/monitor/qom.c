/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tree of objects as qom-* commands show it: the root holds the containers `backend` (always empty),
 * `objects` and `chardevs`. A path that does not start with '/' is looked for below every container and must
 * match only once.
 */
#include "chardev/chardev.h"
#include "generated/commands.h"
#include "monitor/qom-types.h"

#include <string.h>

typedef enum PlaceKind {
    PLACE_ROOT,
    PLACE_BACKEND,
    PLACE_OBJECTS,
    PLACE_CHARDEVS,
    PLACE_OBJECT,
    PLACE_CHARDEV,
} PlaceKind;

/* A place in the tree. */
typedef struct Place {
    PlaceKind kind;
    Object *object;   /* PLACE_OBJECT */
    Chardev *chardev; /* PLACE_CHARDEV */
} Place;

static const struct {
    const char *name;
    PlaceKind kind;
} containers[] = {
    {"backend", PLACE_BACKEND},
    {"objects", PLACE_OBJECTS},
    {"chardevs", PLACE_CHARDEVS},
};

/* ---- Paths ---- */

/* Takes the next part off *path; its length, 0 at the end. */
static size_t next_part(const char **path, const char **ret_part)
{
    *path += strspn(*path, "/");
    *ret_part = *path;
    size_t length = strcspn(*path, "/");
    *path += length;
    return length;
}

static bool child_of(const Place *parent, const char *name, Place *ret_child)
{
    Place child = {0};

    switch (parent->kind) {
    case PLACE_ROOT:
        for (size_t i = 0; i < ARRAY_SIZE(containers); i++) {
            if (str_eq(containers[i].name, name)) {
                *ret_child = (Place){.kind = containers[i].kind};
                return true;
            }
        }
        return false;
    case PLACE_OBJECTS:
        child = (Place){.kind = PLACE_OBJECT, .object = object_find(name)};
        break;
    case PLACE_CHARDEVS:
        child = (Place){.kind = PLACE_CHARDEV, .chardev = chardev_find(name)};
        break;
    default:
        return false;
    }
    if (!child.object && !child.chardev)
        return false;
    *ret_child = child;
    return true;
}

static bool resolve_below(Place from, const char *path, Place *ret_place)
{
    const char *part;
    size_t length;

    while ((length = next_part(&path, &part))) {
        AUTO_FREE char *name = str_ndup(part, length);

        if (!child_of(&from, name, &from))
            return false;
    }
    *ret_place = from;
    return true;
}

static bool resolve(const char *path, Place *ret_place, bool *ret_ambiguous)
{
    unsigned found = 0;

    *ret_ambiguous = false;
    if (*path == '/')
        return resolve_below((Place){PLACE_ROOT}, path, ret_place);
    for (PlaceKind kind = PLACE_ROOT; kind <= PLACE_CHARDEVS; kind++)
        found += resolve_below((Place){kind}, path, ret_place);
    *ret_ambiguous = found > 1;
    return found == 1;
}

static int find_place(const char *path, Place *ret_place, bool *ret_ambiguous, Error *err)
{
    if (resolve(path, ret_place, ret_ambiguous))
        return 0;
    return err_set_class(err, ERROR_DEVICE_NOT_FOUND, -ENOENT, "Device '%s' not found", path);
}

static char *place_type(const Place *place)
{
    switch (place->kind) {
    case PLACE_OBJECT:
        return str_dup(object_kind(place->object)->name);
    case PLACE_CHARDEV:
        return str_printf("chardev-%s", chardev_kind(place->chardev)->name);
    default:
        return str_dup("container");
    }
}

/* ---- Listing ---- */

static void add_info(ObjectPropertyInfoList *list, const char *name, char *take_type)
{
    ObjectPropertyInfo *info = mem_new(ObjectPropertyInfo);

    info->name = str_dup(name);
    info->type = take_type;
    schema_list_grow(list, sizeof(*list->items));
    list->items[list->count++] = info;
}

static void add_properties(ObjectPropertyInfoList *list, const ObjectProperty *property)
{
    for (; property && property->name; property++) {
        add_info(list, property->name, str_dup(property->type));
        ObjectPropertyInfo *info = list->items[list->count - 1];
        info->description = str_dup(property->description);
    }
}

static bool add_object(Object *object, void *opaque)
{
    add_info(opaque, object_id(object), str_printf("child<%s>", object_kind(object)->name));
    return true;
}

static void add_chardevs(ObjectPropertyInfoList *list)
{
    for (Chardev *chardev = chardev_first(); chardev; chardev = chardev_next(chardev))
        add_info(list, chardev_id(chardev), str_printf("child<chardev-%s>", chardev_kind(chardev)->name));
}

int qmp_qom_list(const QomListArg *arg, ObjectPropertyInfoList *ret_result, Error *err)
{
    bool ambiguous;
    Place place;
    int r = find_place(arg->path, &place, &ambiguous, err);

    if (r < 0) {
        if (!ambiguous)
            return r;
        err_done(err);
        return err_set(err, -EINVAL, "Path '%s' is ambiguous", arg->path);
    }
    AUTO_FREE char *type_name = place_type(&place);
    QomType type = {0};

    add_info(ret_result, "type", str_dup("string"));
    switch (place.kind) {
    case PLACE_ROOT:
        for (size_t i = 0; i < ARRAY_SIZE(containers); i++)
            add_info(ret_result, containers[i].name, str_dup("child<container>"));
        break;
    case PLACE_OBJECTS:
        object_foreach(add_object, ret_result);
        break;
    case PLACE_CHARDEVS:
        add_chardevs(ret_result);
        break;
    default:
        if (qom_type_find(type_name, &type))
            add_properties(ret_result, type.properties);
    }
    return 0;
}

int qmp_qom_list_properties(const QomListPropertiesArg *arg, ObjectPropertyInfoList *ret_result, Error *err)
{
    QomType type;

    if (!qom_type_find(arg->typename, &type))
        return err_set_class(err, ERROR_DEVICE_NOT_FOUND, -ENOENT, "Class '%s' not found", arg->typename);
    if (type.interface)
        return err_set(err, -EINVAL, "Parameter 'typename' expects a QOM type");
    add_info(ret_result, "type", str_dup("string"));
    add_properties(ret_result, type.properties);
    for (size_t i = 0; type.kind && i + 1 < ret_result->count; i++) {
        const char *text = type.properties[i].default_json;
        AUTO_ERROR Error ignored = ERROR_INIT;

        if (text && json_parse(text, &ret_result->items[i + 1]->default_value, &ignored) < 0)
            ret_result->items[i + 1]->default_value = NULL;
    }
    return 0;
}

typedef struct TypeFilter {
    const QomListTypesArg *arg;
    ObjectTypeInfoList *list;
} TypeFilter;

static void add_type(const QomType *type, void *opaque)
{
    const TypeFilter *filter = opaque;
    ObjectTypeInfo *info;

    if (type->abstract && !filter->arg->abstract)
        return;
    if (filter->arg->implements && !qom_type_is(type, filter->arg->implements))
        return;
    info = mem_new(ObjectTypeInfo);
    info->name = str_dup(type->name);
    info->has_abstract = info->abstract = type->abstract;
    info->parent = str_dup(type->parent);
    schema_list_grow(filter->list, sizeof(*filter->list->items));
    filter->list->items[filter->list->count++] = info;
}

int qmp_qom_list_types(const QomListTypesArg *arg, ObjectTypeInfoList *ret_result, Error *err)
{
    TypeFilter filter = {.arg = arg, .list = ret_result};

    qom_type_foreach(add_type, &filter);
    return 0;
}

/* ---- Properties ---- */

static int no_property(const Place *place, const char *name, Error *err)
{
    AUTO_FREE char *type = place_type(place);

    return err_set(err, -ENOENT, "Property '%s.%s' not found", type, name);
}

int qmp_qom_get(const QomGetArg *arg, JsonValue **ret_result, Error *err)
{
    Place place, child;
    bool ambiguous;
    int r = find_place(arg->path, &place, &ambiguous, err);

    if (r < 0)
        return r;
    if (str_eq(arg->property, "type")) {
        AUTO_FREE char *type = place_type(&place);

        *ret_result = json_string_new(type);
        return 0;
    }
    if (place.kind == PLACE_OBJECT)
        return object_property_get(place.object, arg->property, ret_result, err);
    if (!child_of(&place, arg->property, &child))
        return no_property(&place, arg->property, err);
    *ret_result = json_string_printf("%s/%s",
        place.kind == PLACE_ROOT      ? ""
        : place.kind == PLACE_OBJECTS ? "/objects"
                                      : "/chardevs",
        arg->property);
    return 0;
}

int qmp_qom_set(const QomSetArg *arg, Error *err)
{
    Place place, child;
    bool ambiguous;
    int r = find_place(arg->path, &place, &ambiguous, err);

    if (r < 0)
        return r;
    if (str_eq(arg->property, "type") || child_of(&place, arg->property, &child)) {
        AUTO_FREE char *type = place_type(&place);

        return err_set(err, -EPERM, "Property '%s.%s' is not writable", type, arg->property);
    }
    if (place.kind == PLACE_OBJECT)
        return object_property_set(place.object, arg->property, arg->value, err);
    return no_property(&place, arg->property, err);
}

/* ---- Objects ---- */

int qmp_object_add(const ObjectOptions *arg, Error *err)
{
    return object_add(arg, err);
}

int qmp_object_del(const ObjectDelArg *arg, Error *err)
{
    return object_del(arg->id, err);
}
