/* SPDX-License-Identifier: Apache-2.0 */
/* The types of objects, as qom-list-types shows them: those that can be made here and what they derive from.
 */
#pragma once

#include "schema/object.h"

#include <stdbool.h>

typedef struct QomType {
    const char *name;
    const char *parent; /* or NULL */
    bool abstract;
    bool interface;
    bool user_creatable;              /* implements that interface */
    const ObjectKind *kind;           /* of a user-creatable object, or NULL */
    const ObjectProperty *properties; /* further ones than "type"; ends with a NULL name; may be NULL */
} QomType;

/* Calls fn for each type. */
void qom_type_foreach(void (*fn)(const QomType *type, void *arg), void *arg);
/* Finds a type by name. */
bool qom_type_find(const char *name, QomType *ret_type) MUST_CHECK;
/* Whether type is name, derives from it or implements it. */
bool qom_type_is(const QomType *type, const char *name);
