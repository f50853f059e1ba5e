/* SPDX-License-Identifier: Apache-2.0 */
/* Walks values by their type's table: to JSON, freeing, copying. Reading is in visit-read.c. */
#include "schema/visit-priv.h"

#include <assert.h>
#include <string.h>

#define BUILTIN(type_name, type_kind, c_type) \
    const SchemaType schema_type_##type_name = {.kind = type_kind, .name = #type_name, .size = sizeof(c_type)}

BUILTIN(bool, SCHEMA_BOOL, bool);
BUILTIN(int, SCHEMA_INT64, int64_t);
BUILTIN(int8, SCHEMA_INT8, int8_t);
BUILTIN(int16, SCHEMA_INT16, int16_t);
BUILTIN(int32, SCHEMA_INT32, int32_t);
BUILTIN(int64, SCHEMA_INT64, int64_t);
BUILTIN(uint8, SCHEMA_UINT8, uint8_t);
BUILTIN(uint16, SCHEMA_UINT16, uint16_t);
BUILTIN(uint32, SCHEMA_UINT32, uint32_t);
BUILTIN(uint64, SCHEMA_UINT64, uint64_t);
BUILTIN(size, SCHEMA_SIZE, uint64_t);
BUILTIN(number, SCHEMA_NUMBER, double);
BUILTIN(str, SCHEMA_STRING, char *);
BUILTIN(any, SCHEMA_ANY, JsonValue *);
const SchemaType schema_type_null = {.kind = SCHEMA_NULL, .name = "null", .size = 0};
const SchemaType schema_type_Empty = {.kind = SCHEMA_STRUCT, .name = "Empty", .size = 1};

const char *schema_enum_name(const SchemaType *type, int value)
{
    return value >= 0 && (size_t)value < type->value_count ? type->values[value] : NULL;
}

int schema_enum_value(const SchemaType *type, const char *name)
{
    for (size_t i = 0; i < type->value_count; i++)
        if (strcmp(type->values[i], name) == 0)
            return (int)i;
    return -1;
}

void schema_list_grow(void *list, size_t item_size)
{
    SchemaList *grown = list;

    /* powers of two: growing by one item at a time stays cheap without a capacity */
    if ((grown->count & (grown->count - 1)) == 0)
        grown->items = mem_realloc(grown->items, (grown->count ? grown->count * 2 : 1) * item_size);
}

const SchemaType *schema_branch(const SchemaType *type, const void *object)
{
    int tag;

    if (!type->tag)
        return NULL;
    memcpy(&tag, schema_member_slot(type->tag, object), sizeof(tag));
    return schema_enum_name(type->tag->type, tag) ? type->branches[tag] : NULL;
}

/* ---- To JSON ---- */

static JsonValue *slot_to_json(const SchemaType *type, const void *slot);

static bool is_absent(const SchemaMember *member, const void *object)
{
    const bool *flag = schema_member_flag(member, object);

    if (!member->optional)
        return false;
    return flag ? !*flag : !*(void *const *)schema_member_slot(member, object);
}

static void put_members(JsonValue *json, const SchemaType *type, const void *object)
{
    const SchemaType *branch = schema_branch(type, object);

    for (size_t i = 0; i < type->member_count; i++) {
        const SchemaMember *member = &type->members[i];

        if (!is_absent(member, object))
            json_object_put(
                json, member->name, slot_to_json(member->type, schema_member_slot(member, object)));
    }
    if (branch)
        put_members(json, branch, (const char *)object + type->branches_offset);
}

static const SchemaMember *chosen(const SchemaType *alternate, const void *object)
{
    int kind;

    memcpy(&kind, object, sizeof(kind));
    assert(kind >= 0 && (size_t)kind < alternate->member_count);
    return &alternate->members[kind];
}

static JsonValue *object_to_json(const SchemaType *type, const void *object)
{
    JsonValue *json;

    if (type->kind == SCHEMA_ALTERNATE) {
        const SchemaMember *choice = chosen(type, object);

        return slot_to_json(choice->type, schema_member_slot(choice, object));
    }
    json = json_object_new();
    put_members(json, type, object);
    return json;
}

static JsonValue *list_to_json(const SchemaType *type, const SchemaList *list)
{
    JsonValue *json = json_array_new();

    for (size_t i = 0; i < list->count; i++)
        json_array_append(
            json, slot_to_json(type->element, list->items + i * schema_slot_size(type->element)));
    return json;
}

static JsonValue *enum_to_json(const SchemaType *type, int value)
{
    const char *name = schema_enum_name(type, value);

    assert(name);
    return json_string_new(name);
}

static JsonValue *slot_to_json(const SchemaType *type, const void *slot)
{
    switch (type->kind) {
    case SCHEMA_BOOL:
        return json_bool_new(*(const bool *)slot);
    case SCHEMA_INT8:
        return json_int_new(*(const int8_t *)slot);
    case SCHEMA_INT16:
        return json_int_new(*(const int16_t *)slot);
    case SCHEMA_INT32:
        return json_int_new(*(const int32_t *)slot);
    case SCHEMA_INT64:
        return json_int_new(*(const int64_t *)slot);
    case SCHEMA_UINT8:
        return json_int_new(*(const uint8_t *)slot);
    case SCHEMA_UINT16:
        return json_int_new(*(const uint16_t *)slot);
    case SCHEMA_UINT32:
        return json_int_new(*(const uint32_t *)slot);
    case SCHEMA_UINT64:
    case SCHEMA_SIZE:
        return json_uint_new(*(const uint64_t *)slot);
    case SCHEMA_NUMBER:
        return json_double_new(*(const double *)slot);
    case SCHEMA_STRING:
        return json_string_new(*(char *const *)slot ? *(char *const *)slot : "");
    case SCHEMA_ANY:
        return *(JsonValue *const *)slot ? json_clone(*(JsonValue *const *)slot) : json_null_new();
    case SCHEMA_ENUM:
        return enum_to_json(type, *(const int *)slot);
    case SCHEMA_LIST:
        return list_to_json(type, slot);
    case SCHEMA_STRUCT:
    case SCHEMA_ALTERNATE:
        return object_to_json(type, *(void *const *)slot);
    case SCHEMA_NULL:
        break;
    }
    return json_null_new();
}

JsonValue *schema_to_json(const SchemaType *type, const void *ptr)
{
    return schema_is_pointer_kind(type) ? object_to_json(type, ptr) : slot_to_json(type, ptr);
}

/* ---- Freeing ---- */

static void object_done(const SchemaType *type, void *object)
{
    const SchemaType *branch;

    if (type->kind == SCHEMA_ALTERNATE) {
        const SchemaMember *choice = chosen(type, object);

        schema_slot_done(choice->type, schema_member_slot(choice, object));
        return;
    }
    branch = schema_branch(type, object);
    if (branch)
        object_done(branch, (char *)object + type->branches_offset);
    for (size_t i = 0; i < type->member_count; i++)
        schema_slot_done(type->members[i].type, schema_member_slot(&type->members[i], object));
}

void schema_slot_done(const SchemaType *type, void *slot)
{
    SchemaList *list = slot;

    switch (type->kind) {
    case SCHEMA_STRING:
        str_free_wiped(*(char **)slot);
        break;
    case SCHEMA_ANY:
        json_free(*(JsonValue **)slot);
        break;
    case SCHEMA_STRUCT:
    case SCHEMA_ALTERNATE:
        schema_free(type, *(void **)slot);
        break;
    case SCHEMA_LIST:
        for (size_t i = 0; i < list->count; i++)
            schema_slot_done(type->element, list->items + i * schema_slot_size(type->element));
        free(list->items);
        break;
    default:
        return;
    }
    memset(slot, 0, schema_slot_size(type));
}

void schema_free(const SchemaType *type, void *ptr)
{
    if (!ptr)
        return;
    object_done(type, ptr);
    free(ptr);
}

void schema_done(const SchemaType *type, void *ptr)
{
    if (!schema_is_pointer_kind(type)) {
        schema_slot_done(type, ptr);
        return;
    }
    object_done(type, ptr);
    memset(ptr, 0, type->size);
}

/* ---- Copying: everything is copied as bytes, then what is owned is replaced by copies ---- */

static void own_slot(const SchemaType *type, void *slot);

static void own_object(const SchemaType *type, void *object)
{
    const SchemaType *branch;

    if (type->kind == SCHEMA_ALTERNATE) {
        const SchemaMember *choice = chosen(type, object);

        own_slot(choice->type, schema_member_slot(choice, object));
        return;
    }
    branch = schema_branch(type, object);
    if (branch)
        own_object(branch, (char *)object + type->branches_offset);
    for (size_t i = 0; i < type->member_count; i++)
        own_slot(type->members[i].type, schema_member_slot(&type->members[i], object));
}

static void own_list(const SchemaType *type, SchemaList *list)
{
    size_t item_size = schema_slot_size(type->element);
    SchemaList copy = {0};

    for (size_t i = 0; i < list->count; i++) {
        schema_list_grow(&copy, item_size);
        memcpy(copy.items + i * item_size, list->items + i * item_size, item_size);
        own_slot(type->element, copy.items + i * item_size);
        copy.count++;
    }
    *list = copy;
}

static void own_slot(const SchemaType *type, void *slot)
{
    switch (type->kind) {
    case SCHEMA_STRING:
        *(char **)slot = str_dup(*(char **)slot);
        return;
    case SCHEMA_ANY:
        *(JsonValue **)slot = json_clone(*(JsonValue **)slot);
        return;
    case SCHEMA_STRUCT:
    case SCHEMA_ALTERNATE:
        *(void **)slot = schema_clone(type, *(void **)slot);
        return;
    case SCHEMA_LIST:
        own_list(type, slot);
        return;
    default:
        return;
    }
}

void *schema_clone(const SchemaType *type, const void *ptr)
{
    void *copy;

    if (!ptr)
        return NULL;
    copy = mem_zalloc(type->size);
    memcpy(copy, ptr, type->size);
    own_object(type, copy);
    return copy;
}
