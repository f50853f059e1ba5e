/* SPDX-License-Identifier: Apache-2.0 */
/*
 * JSON -> values, by the type's table. The texts of errors are part of the contract, with their quirks: most
 * name a member by its whole path (a.b[2].c, or a.b.2.c for key=value text), some by its last part only.
 */
#include "schema/visit-priv.h"

#include "base/limits.h"
#include "schema/keyval.h"

#include <math.h>
#include <string.h>

/* Where in the text we are; lives on the stack, innermost last. */
typedef struct Path {
    const struct Path *up;
    const char *name; /* NULL: an item of a list */
    size_t index;
} Path;

typedef struct Reader {
    SchemaMode mode;
    Error *err;
    unsigned depth; /* structs within structs */
} Reader;

static void append_path(const Reader *reader, const Path *path, StrBuf *out)
{
    if (!path)
        return;
    append_path(reader, path->up, out);
    if (!path->name) {
        strbuf_printf(out, reader->mode == SCHEMA_KEYVAL ? ".%zu" : "[%zu]", path->index);
        return;
    }
    if (path->up)
        strbuf_append_char(out, '.');
    strbuf_append(out, path->name);
}

/* The whole path; the caller frees it. */
static char *full_name(const Reader *reader, const Path *path)
{
    StrBuf out = {0};

    if (!path)
        return str_dup("<anonymous>");
    append_path(reader, path, &out);
    return strbuf_take(&out);
}

static const char *last_name(const Path *path)
{
    return path && path->name ? path->name : "null";
}

static int wrong_type(const Reader *reader, const Path *path, const char *expected)
{
    AUTO_FREE char *name = full_name(reader, path);

    return err_set(reader->err, -EINVAL, "Invalid parameter type for '%s', expected: %s", name, expected);
}

static int wrong_value(const Reader *reader, const Path *path, const char *expected)
{
    AUTO_FREE char *name = full_name(reader, path);

    return err_set(reader->err, -EINVAL, "Parameter '%s' expects %s", name, expected);
}

static int read_slot(
    Reader *reader, const SchemaType *type, const JsonValue *value, const Path *path, void *slot);

/* ---- Scalars ---- */

/* The text of a scalar in key=value text. */
static int keyval_text(const Reader *reader, const JsonValue *value, const Path *path, const char **ret_text)
{
    AUTO_FREE char *name = NULL;

    if (value->type == JSON_STRING) {
        *ret_text = value->u.string;
        return 0;
    }
    name = full_name(reader, path);
    return err_set(reader->err, -EINVAL, "Parameters '%s.*' are unexpected", name);
}

static int read_bool(const Reader *reader, const JsonValue *value, const Path *path, bool *slot)
{
    static const char *const on[] = {"on", "yes", "true", "y"}, *const off[] = {"off", "no", "false", "n"};
    const char *text;
    int r;

    if (reader->mode == SCHEMA_JSON) {
        if (value->type != JSON_BOOL)
            return wrong_type(reader, path, "boolean");
        *slot = value->u.boolean;
        return 0;
    }
    r = keyval_text(reader, value, path, &text);
    if (r < 0)
        return r;
    for (size_t i = 0; i < ARRAY_SIZE(on); i++) {
        if (strcmp(text, on[i]) == 0 || strcmp(text, off[i]) == 0) {
            *slot = strcmp(text, on[i]) == 0;
            return 0;
        }
    }
    return wrong_value(reader, path, "'on' or 'off'");
}

static int read_int64(const Reader *reader, const JsonValue *value, const Path *path, int64_t *ret_integer)
{
    const char *text;
    char *end;
    int r;

    if (reader->mode == SCHEMA_JSON) {
        if (value->type != JSON_INT)
            return wrong_type(reader, path, "integer");
        *ret_integer = value->u.integer;
        return 0;
    }
    r = keyval_text(reader, value, path, &text);
    if (r < 0)
        return r;
    errno = 0;
    *ret_integer = strtoll(text, &end, 0);
    return errno || end == text || *end ? wrong_value(reader, path, "integer") : 0;
}

/* Negative numbers wrap around: existing clients send them. */
static int read_uint64(const Reader *reader, const JsonValue *value, const Path *path, uint64_t *ret_integer)
{
    const char *text;
    char *end;
    int r;

    if (reader->mode == SCHEMA_JSON) {
        if (value->type != JSON_INT && value->type != JSON_UINT)
            return wrong_value(reader, path, "uint64");
        *ret_integer = value->type == JSON_INT ? (uint64_t)value->u.integer : value->u.uinteger;
        return 0;
    }
    r = keyval_text(reader, value, path, &text);
    if (r < 0)
        return r;
    errno = 0;
    *ret_integer = strtoull(text, &end, 0);
    return errno || end == text || *end ? wrong_value(reader, path, "integer") : 0;
}

static int read_size(const Reader *reader, const JsonValue *value, const Path *path, uint64_t *slot)
{
    const char *text;
    int r;

    if (reader->mode == SCHEMA_JSON)
        return read_uint64(reader, value, path, slot);
    r = keyval_text(reader, value, path, &text);
    if (r < 0)
        return r;
    return keyval_parse_size(text, slot) < 0 ? wrong_value(reader, path, "size") : 0;
}

static int out_of_bounds(const Reader *reader, const Path *path, const char *expected)
{
    return err_set(reader->err, -EINVAL, "Parameter '%s' expects %s", last_name(path), expected);
}

static int read_small_int(
    const Reader *reader, const SchemaType *type, const JsonValue *value, const Path *path, void *slot)
{
    static const char *const names[] = {"int8_t", "int16_t", "int32_t"};
    unsigned log_bytes = type->kind - SCHEMA_INT8;
    int64_t integer, limit = INT64_C(1) << ((8 << log_bytes) - 1);
    int r = read_int64(reader, value, path, &integer);

    if (r < 0)
        return r;
    if (integer < -limit || integer >= limit)
        return out_of_bounds(reader, path, names[log_bytes]);
    if (log_bytes == 0)
        *(int8_t *)slot = (int8_t)integer;
    else if (log_bytes == 1)
        *(int16_t *)slot = (int16_t)integer;
    else
        *(int32_t *)slot = (int32_t)integer;
    return 0;
}

static int read_small_uint(
    const Reader *reader, const SchemaType *type, const JsonValue *value, const Path *path, void *slot)
{
    static const char *const names[] = {"uint8_t", "uint16_t", "uint32_t"};
    unsigned log_bytes = type->kind - SCHEMA_UINT8;
    uint64_t integer;
    int r = read_uint64(reader, value, path, &integer);

    if (r < 0)
        return r;
    if (integer >> (8 << log_bytes))
        return out_of_bounds(reader, path, names[log_bytes]);
    if (log_bytes == 0)
        *(uint8_t *)slot = (uint8_t)integer;
    else if (log_bytes == 1)
        *(uint16_t *)slot = (uint16_t)integer;
    else
        *(uint32_t *)slot = (uint32_t)integer;
    return 0;
}

static int read_number(const Reader *reader, const JsonValue *value, const Path *path, double *slot)
{
    const char *text;
    char *end;
    int r;

    if (reader->mode == SCHEMA_JSON) {
        if (value->type != JSON_INT && value->type != JSON_UINT && value->type != JSON_DOUBLE)
            return wrong_type(reader, path, "number");
        *slot = value->type == JSON_DOUBLE ? value->u.number
                : value->type == JSON_INT  ? (double)value->u.integer
                                           : (double)value->u.uinteger;
        return 0;
    }
    r = keyval_text(reader, value, path, &text);
    if (r < 0)
        return r;
    *slot = strtod(text, &end);
    return end == text || *end || !isfinite(*slot) ? wrong_type(reader, path, "number") : 0;
}

static int read_text(const Reader *reader, const JsonValue *value, const Path *path, const char **ret_text)
{
    if (reader->mode == SCHEMA_KEYVAL)
        return keyval_text(reader, value, path, ret_text);
    if (value->type != JSON_STRING)
        return wrong_type(reader, path, "string");
    *ret_text = value->u.string;
    return 0;
}

static int read_enum(
    const Reader *reader, const SchemaType *type, const JsonValue *value, const Path *path, int *slot)
{
    const char *text;
    int r = read_text(reader, value, path, &text), found;

    if (r < 0)
        return r;
    found = schema_enum_value(type, text);
    if (found < 0)
        return err_set(
            reader->err, -EINVAL, "Parameter '%s' does not accept value '%s'", last_name(path), text);
    *slot = found;
    return 0;
}

static int read_null(const Reader *reader, const JsonValue *value, const Path *path)
{
    const char *text;
    int r;

    if (reader->mode == SCHEMA_JSON)
        return value->type == JSON_NULL ? 0 : wrong_type(reader, path, "null");
    r = keyval_text(reader, value, path, &text);
    if (r < 0)
        return r;
    return *text ? wrong_type(reader, path, "null") : 0;
}

/* ---- Containers ---- */

static int read_list(
    Reader *reader, const SchemaType *type, const JsonValue *value, const Path *path, SchemaList *list)
{
    size_t item_size = schema_slot_size(type->element);

    if (value->type != JSON_ARRAY)
        return wrong_type(reader, path, "array");
    for (size_t i = 0; i < value->u.array.count; i++) {
        Path item = {.up = path, .index = i};
        void *slot;
        int r;

        schema_list_grow(list, item_size);
        slot = list->items + list->count++ * item_size;
        memset(slot, 0, item_size);
        r = read_slot(reader, type->element, value->u.array.items[i], &item, slot);
        if (r < 0)
            return r;
    }
    return 0;
}

static int read_member(
    Reader *reader, const SchemaMember *member, const JsonValue *json, const Path *path, void *object)
{
    const JsonValue *value = json_get(json, member->name);
    Path here = {.up = path, .name = member->name};
    bool *flag = schema_member_flag(member, object);

    if (value) {
        int r = read_slot(reader, member->type, value, &here, schema_member_slot(member, object));

        if (r == 0 && flag)
            *flag = true;
        return r;
    }
    if (!member->optional) {
        AUTO_FREE char *name = full_name(reader, &here);

        return err_set(reader->err, -EINVAL, "Parameter '%s' is missing", name);
    }
    return 0;
}

static int read_members(
    Reader *reader, const SchemaType *type, const JsonValue *json, const Path *path, void *object)
{
    const SchemaType *branch;

    for (size_t i = 0; i < type->member_count; i++) {
        int r = read_member(reader, &type->members[i], json, path, object);

        if (r < 0)
            return r;
    }
    branch = schema_branch(type, object);
    return branch ? read_members(reader, branch, json, path, (char *)object + type->branches_offset) : 0;
}

static bool has_member(const SchemaType *type, const void *object, const char *name)
{
    const SchemaType *branch = schema_branch(type, object);

    for (size_t i = 0; i < type->member_count; i++)
        if (strcmp(type->members[i].name, name) == 0)
            return true;
    return branch && has_member(branch, (const char *)object + type->branches_offset, name);
}

static int check_unexpected(
    const Reader *reader, const SchemaType *type, const JsonValue *json, const Path *path, const void *object)
{
    for (size_t i = 0; i < json->u.object.count; i++) {
        Path here = {.up = path, .name = json->u.object.members[i].key};
        AUTO_FREE char *name = NULL;

        if (has_member(type, object, here.name))
            continue;
        name = full_name(reader, &here);
        return err_set(reader->err, -EINVAL, "Parameter '%s' is unexpected", name);
    }
    return 0;
}

static int read_struct(
    Reader *reader, const SchemaType *type, const JsonValue *json, const Path *path, void *object)
{
    int r;

    if (json->type != JSON_OBJECT)
        return wrong_type(reader, path, "object");
    if (++reader->depth > LIMIT_SCHEMA_DEPTH)
        return err_set(reader->err, -EINVAL, "Parameter '%s' is nested too deeply", last_name(path));
    r = read_members(reader, type, json, path, object);
    if (r == 0)
        r = check_unexpected(reader, type, json, path, object);
    reader->depth--;
    return r;
}

/* Whether a JSON value of this type selects a choice of the given kind. */
static bool choice_fits(SchemaKind kind, JsonType json)
{
    switch (json) {
    case JSON_NULL:
        return kind == SCHEMA_NULL;
    case JSON_BOOL:
        return kind == SCHEMA_BOOL;
    case JSON_INT:
    case JSON_UINT:
        return kind >= SCHEMA_INT8 && kind <= SCHEMA_NUMBER;
    case JSON_DOUBLE:
        return kind == SCHEMA_NUMBER;
    case JSON_STRING:
        return kind == SCHEMA_STRING || kind == SCHEMA_ENUM;
    case JSON_ARRAY:
        return kind == SCHEMA_LIST;
    case JSON_OBJECT:
        return kind == SCHEMA_STRUCT;
    }
    return false;
}

static int read_alternate(
    Reader *reader, const SchemaType *type, const JsonValue *value, const Path *path, void *object)
{
    for (size_t i = 0; i < type->member_count; i++) {
        const SchemaMember *choice = &type->members[i];
        int kind = (int)i;

        if (!choice_fits(choice->type->kind, value->type))
            continue;
        memcpy(object, &kind, sizeof(kind));
        return read_slot(reader, choice->type, value, path, schema_member_slot(choice, object));
    }
    return err_set(
        reader->err, -EINVAL, "Invalid parameter type for '%s', expected: %s", last_name(path), type->name);
}

/* Strings and what is made anew on the heap. */
static int read_owned(
    Reader *reader, const SchemaType *type, const JsonValue *value, const Path *path, void **slot)
{
    const char *text;
    int r;

    if (type->kind == SCHEMA_STRING) {
        r = read_text(reader, value, path, &text);
        if (r == 0)
            *slot = str_dup(text);
        return r;
    }
    if (type->kind == SCHEMA_ANY) {
        *slot = json_clone(value);
        return 0;
    }
    *slot = mem_zalloc(type->size);
    if (type->kind == SCHEMA_STRUCT)
        return read_struct(reader, type, value, path, *slot);
    return read_alternate(reader, type, value, path, *slot);
}

/* Reads into a zeroed slot. After a failure the slot can be freed as usual. */
static int read_slot(
    Reader *reader, const SchemaType *type, const JsonValue *value, const Path *path, void *slot)
{
    switch (type->kind) {
    case SCHEMA_BOOL:
        return read_bool(reader, value, path, slot);
    case SCHEMA_INT8:
    case SCHEMA_INT16:
    case SCHEMA_INT32:
        return read_small_int(reader, type, value, path, slot);
    case SCHEMA_INT64:
        return read_int64(reader, value, path, slot);
    case SCHEMA_UINT8:
    case SCHEMA_UINT16:
    case SCHEMA_UINT32:
        return read_small_uint(reader, type, value, path, slot);
    case SCHEMA_UINT64:
        return read_uint64(reader, value, path, slot);
    case SCHEMA_SIZE:
        return read_size(reader, value, path, slot);
    case SCHEMA_NUMBER:
        return read_number(reader, value, path, slot);
    case SCHEMA_ENUM:
        return read_enum(reader, type, value, path, slot);
    case SCHEMA_NULL:
        return read_null(reader, value, path);
    case SCHEMA_LIST:
        return read_list(reader, type, value, path, slot);
    case SCHEMA_STRING:
    case SCHEMA_ANY:
    case SCHEMA_STRUCT:
    case SCHEMA_ALTERNATE:
        break;
    }
    return read_owned(reader, type, value, path, slot);
}

static int read_top(
    Reader *reader, const SchemaType *type, const JsonValue *value, const Path *path, void *ret_ptr)
{
    uint64_t slot[2] = {0}; /* as large as any value */
    int r = read_slot(reader, type, value, path, slot);

    if (r < 0) {
        schema_slot_done(type, slot);
        return r;
    }
    memcpy(ret_ptr, slot, schema_slot_size(type));
    return 0;
}

int schema_from_json(
    const SchemaType *type, const JsonValue *value, SchemaMode mode, void *ret_ptr, Error *err)
{
    static const JsonValue empty = {.type = JSON_OBJECT};
    Reader reader = {.mode = mode, .err = err};

    return read_top(&reader, type, value ? value : &empty, NULL, ret_ptr);
}

int schema_member_from_json(
    const SchemaType *type, const char *name, const JsonValue *value, void *ret_ptr, Error *err)
{
    Reader reader = {.mode = SCHEMA_JSON, .err = err};
    Path path = {.name = name};

    return read_top(&reader, type, value, &path, ret_ptr);
}
