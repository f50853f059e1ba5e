/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Types that can be made come from the registries of objects and character devices; what they derive from is
 * known only to clients of the reference and is kept in a table here.
 */
#include "monitor/qom-types.h"

#include "base/mem.h"
#include "chardev/chardev.h"

#include <string.h>

#define CHARDEV_PREFIX "chardev-"

/* Further properties of abstract types and of character devices, for listing only. */
static const ObjectProperty loop_properties[] = {
    {.name = "thread-pool-min", .type = "int"},
    {.name = "aio-max-batch", .type = "int"},
    {.name = "thread-pool-max", .type = "int"},
    {0},
};
static const ObjectProperty socket_properties[] = {
    {.name = "connected", .type = "bool"},
    {.name = "addr", .type = "SocketAddress"},
    {0},
};

/* Types that nobody can make. */
static const QomType base_types[] = {
    {.name = "object", .abstract = true},
    {.name = "interface", .abstract = true, .interface = true},
    {.name = "user-creatable", .parent = "interface", .abstract = true, .interface = true},
    {.name = "container", .parent = "object"},
    {.name = "authz", .parent = "object", .abstract = true},
    {.name = "chardev", .parent = "object", .abstract = true},
    {.name = "chardev-fd", .parent = "chardev", .abstract = true},
    {.name = "event-loop-base",
        .parent = "object",
        .abstract = true,
        .user_creatable = true,
        .properties = loop_properties},
    {.name = "pr-manager", .parent = "object", .abstract = true, .user_creatable = true},
    {.name = "secret_common", .parent = "object", .abstract = true, .user_creatable = true},
    {.name = "tls-creds", .parent = "object", .abstract = true},
};

/* Of types that can be made; those that are missing here derive from "object" or "chardev". */
static const struct {
    const char *name, *parent;
} parents[] = {
    {"authz-list", "authz"},
    {"authz-list-file", "authz"},
    {"authz-simple", "authz"},
    {"chardev-file", "chardev-fd"},
    {"chardev-memory", "chardev-ringbuf"},
    {"chardev-pipe", "chardev-fd"},
    {"chardev-serial", "chardev-fd"},
    {"chardev-stdio", "chardev-fd"},
    {"iothread", "event-loop-base"},
    {"main-loop", "event-loop-base"},
    {"pr-manager-helper", "pr-manager"},
    {"secret", "secret_common"},
    {"secret_keyring", "secret_common"},
    {"tls-creds-anon", "tls-creds"},
    {"tls-creds-psk", "tls-creds"},
    {"tls-creds-x509", "tls-creds"},
};

static const char *parent_of(const char *name, const char *otherwise)
{
    for (size_t i = 0; i < ARRAY_SIZE(parents); i++) {
        if (str_eq(parents[i].name, name))
            return parents[i].parent;
    }
    return otherwise;
}

static QomType object_type(const ObjectKind *kind)
{
    return (QomType){
        .name = kind->name,
        .parent = parent_of(kind->name, "object"),
        .user_creatable = true,
        .kind = kind,
        .properties = kind->properties,
    };
}

static QomType chardev_type(const char *name)
{
    return (QomType){
        .name = name,
        .parent = parent_of(name, "chardev"),
        .properties = str_eq(name, CHARDEV_PREFIX "socket") ? socket_properties : NULL,
    };
}

void qom_type_foreach(void (*fn)(const QomType *type, void *arg), void *arg)
{
    size_t count;

    for (size_t i = 0; i < ARRAY_SIZE(base_types); i++)
        fn(&base_types[i], arg);

    const ObjectKind *const *kinds = object_kind_list(&count);
    for (size_t i = 0; i < count; i++) {
        QomType type = object_type(kinds[i]);
        fn(&type, arg);
    }

    const ChardevKind *const *chardevs = chardev_kind_list(&count);
    for (size_t i = 0; i < count; i++) {
        AUTO_FREE char *name = str_printf(CHARDEV_PREFIX "%s", chardevs[i]->name);
        QomType type = chardev_type(name);
        fn(&type, arg);
    }
}

bool qom_type_find(const char *name, QomType *ret_type)
{
    const ObjectKind *kind = object_kind_find(name);

    for (size_t i = 0; i < ARRAY_SIZE(base_types); i++) {
        if (str_eq(base_types[i].name, name)) {
            *ret_type = base_types[i];
            return true;
        }
    }
    if (kind) {
        *ret_type = object_type(kind);
        return true;
    }
    if (str_starts(name, CHARDEV_PREFIX) && chardev_kind_find(name + strlen(CHARDEV_PREFIX))) {
        *ret_type = chardev_type(name);
        return true;
    }
    return false;
}

bool qom_type_is(const QomType *type, const char *name)
{
    if (type->user_creatable && (str_eq(name, "user-creatable") || str_eq(name, "interface")))
        return true;
    for (QomType at = *type;;) {
        if (str_eq(at.name, name))
            return true;
        if (!at.parent || !qom_type_find(at.parent, &at))
            return false;
    }
}
