/* SPDX-License-Identifier: Apache-2.0 */
/*
 * User-creatable objects: made by object-add and --object, found by id, seen through qom-get and its like.
 * Each type is an ObjectKind in its own file, found through the generated registry (`const ObjectKind
 * object_kind_NAME`, dashes as underscores).
 *
 * An object lives until object-del *and* the last reference is gone, so that a user (a node that holds a
 * secret) may keep it; after object-del it can no longer be found. Main loop only.
 */
#pragma once

#include "schema/json.h"

typedef struct Object Object;
typedef struct ObjectKind ObjectKind;
typedef struct ObjectProperty ObjectProperty;
typedef struct ObjectOptions ObjectOptions; /* generated */

/* A property that qom-get reads and qom-set writes. */
struct ObjectProperty {
    const char *name;
    const char *type;        /* as qom-list shows it: "int", "string", "bool", an enum's name, ... */
    const char *description; /* or NULL */
    /* NULL: cannot be read. On success *ret_value is the caller's. */
    int (*get)(Object *object, const ObjectProperty *property, JsonValue **ret_value, Error *err);
    /* NULL: cannot be written. value is borrowed. */
    int (*set)(Object *object, const ObjectProperty *property, const JsonValue *value, Error *err);
    const void *data;         /* the kind's own */
    const char *default_json; /* default value as JSON text for qom-list-properties, or NULL */
};

struct ObjectKind {
    const char *name;
    size_t state_size;
    bool single; /* at most one object of this kind */
    /* Fills the zeroed state. On failure releases what it acquired; destroy() is then not called. */
    int (*create)(Object *object, const ObjectOptions *options, Error *err);
    /* Last reference is gone. May wait. May be NULL. */
    void (*destroy)(Object *object);
    /* object-del: whether it is free to go. NULL: always. */
    bool (*can_be_deleted)(Object *object);
    const ObjectProperty *properties; /* ends with a NULL name; may be NULL */
};

/* The registry (generated): NULL if there is no such type. */
const ObjectKind *object_kind_find(const char *name);
const ObjectKind *const *object_kind_list(size_t *ret_count);

/* object-add */
int object_add(const ObjectOptions *options, Error *err) MUST_CHECK;
/* object-del */
int object_del(const char *id, Error *err) MUST_CHECK;
/* Deletes all, newest first (shutdown, when their users are gone). */
void object_del_all(void);

/* The object of that id, or NULL. Borrowed. */
Object *object_find(const char *id);
/* Calls fn for each object, oldest first, until it returns false. */
void object_foreach(bool (*fn)(Object *object, void *arg), void *arg);

const char *object_id(const Object *object);
const ObjectKind *object_kind(const Object *object);
/* The kind's state, or NULL when the object is of another kind (or NULL). */
void *object_state(Object *object, const ObjectKind *kind);
Object *object_ref(Object *object);
void object_unref(Object *object);

/* Property access by name, with the messages that users know. "type" is a property of every object; kinds do
 * not list it. */
int object_property_get(Object *object, const char *name, JsonValue **ret_value, Error *err) MUST_CHECK;
int object_property_set(Object *object, const char *name, const JsonValue *value, Error *err) MUST_CHECK;
