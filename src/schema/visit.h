/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Types of the schema at run time. The generator writes one constant SchemaType per type; the functions here
 * read, write, free and copy any value of such a type by walking its table.
 *
 * How values lie in C (generated/types.h): structs, unions and alternates are reached through pointers when
 * they are members, and by value as the branches of a union; lists are {items, count}; strings and any are
 * pointers. An optional pointer is absent when NULL, other optional members have a bool `has_x`.
 */
#pragma once

#include "schema/json.h"

typedef enum SchemaKind {
    SCHEMA_BOOL,
    SCHEMA_INT8,
    SCHEMA_INT16,
    SCHEMA_INT32,
    SCHEMA_INT64,
    SCHEMA_UINT8,
    SCHEMA_UINT16,
    SCHEMA_UINT32,
    SCHEMA_UINT64,
    SCHEMA_SIZE, /* uint64_t; takes suffixes in key=value text */
    SCHEMA_NUMBER,
    SCHEMA_STRING,
    SCHEMA_ANY,
    SCHEMA_NULL,
    SCHEMA_ENUM,
    SCHEMA_STRUCT, /* a union when tag is set */
    SCHEMA_ALTERNATE,
    SCHEMA_LIST,
} SchemaKind;

typedef struct SchemaType SchemaType;

typedef struct SchemaMember {
    const char *name; /* on the wire */
    const SchemaType *type;
    uint32_t offset;     /* in the C struct */
    int32_t flag_offset; /* of has_x; -1: there is none */
    bool optional;
} SchemaMember;

struct SchemaType {
    SchemaKind kind;
    const char *name;
    size_t size;                 /* of the C type; for structs and alternates of what the pointer points to */
    const SchemaMember *members; /* of a struct, or the choices of an alternate */
    size_t member_count;
    const SchemaMember *tag;           /* discriminator of a union, else NULL */
    const SchemaType *const *branches; /* by value of the tag; NULL: no members */
    size_t branches_offset;            /* where every branch lies */
    const char *const *values;         /* of an enum */
    size_t value_count;
    const SchemaType *element; /* of a list */
};

typedef enum SchemaMode {
    SCHEMA_JSON,
    SCHEMA_KEYVAL, /* a tree of strings from key=value text: numbers, booleans and sizes are read from their
                      spelling */
} SchemaMode;

/*
 * Makes a C value from JSON. ret_ptr is `Foo **` for structs, unions and alternates (free with foo_free()),
 * else a pointer to the C value (FooList *, char **, int64_t *, ...). A NULL value counts as an empty object.
 * Messages name the member by its path and are those that existing clients know (compatibility.md 1.4 and 4).
 */
int schema_from_json(
    const SchemaType *type, const JsonValue *value, SchemaMode mode, void *ret_ptr, Error *err) MUST_CHECK;
/* The same for the value of one member, which messages call `name`. */
int schema_member_from_json(
    const SchemaType *type, const char *name, const JsonValue *value, void *ret_ptr, Error *err) MUST_CHECK;
/* ptr points to the struct, union or alternate itself, else to the C value. Never NULL. */
JsonValue *schema_to_json(const SchemaType *type, const void *ptr) MUST_CHECK;
/* Frees a struct, union or alternate, the memory itself included; NULL is fine. Only for these kinds. */
void schema_free(const SchemaType *type, void *ptr);
/* Frees what a value of any kind holds and zeroes it; for structs, ptr points to the struct, whose memory
 * stays. Strings are wiped: they may be passwords. */
void schema_done(const SchemaType *type, void *ptr);
/* A deep copy of a struct, union or alternate; NULL of NULL. */
void *schema_clone(const SchemaType *type, const void *ptr) MUST_CHECK;

/* The name of an enum's value, or NULL when there is no such value. */
const char *schema_enum_name(const SchemaType *type, int value);
/* The value of a name, or -1. */
int schema_enum_value(const SchemaType *type, const char *name);
/* Makes room for one more item in a generated list. */
void schema_list_grow(void *list, size_t item_size);

extern const SchemaType schema_type_bool, schema_type_int, schema_type_int8, schema_type_int16,
    schema_type_int32, schema_type_int64, schema_type_uint8, schema_type_uint16, schema_type_uint32,
    schema_type_uint64, schema_type_size, schema_type_number, schema_type_str, schema_type_any,
    schema_type_null;
/* A struct without members. */
extern const SchemaType schema_type_Empty;
