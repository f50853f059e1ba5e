/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by visit.c and visit-read.c. A slot is the place where a value is stored: of a struct, its pointer.
 */
#pragma once

#include "schema/visit.h"

static inline bool schema_is_pointer_kind(const SchemaType *type)
{
    return type->kind == SCHEMA_STRUCT || type->kind == SCHEMA_ALTERNATE;
}

static inline size_t schema_slot_size(const SchemaType *type)
{
    return schema_is_pointer_kind(type) ? sizeof(void *) : type->size;
}

/* All lists have this shape. */
typedef struct SchemaList {
    char *items;
    size_t count;
} SchemaList;

static inline void *schema_member_slot(const SchemaMember *member, const void *object)
{
    return (char *)object + member->offset;
}

static inline bool *schema_member_flag(const SchemaMember *member, const void *object)
{
    return member->flag_offset < 0 ? NULL : (bool *)((char *)object + member->flag_offset);
}

/* The branch of a union that its tag selects; NULL: none, or it has no members. */
const SchemaType *schema_branch(const SchemaType *type, const void *object);
/* Frees what a slot holds and zeroes it. */
void schema_slot_done(const SchemaType *type, void *slot);
