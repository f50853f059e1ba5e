/* SPDX-License-Identifier: Apache-2.0 */
/* The commands about the monitor itself. */
#include "base/version.h"
#include "generated/commands.h"
#include "monitor/monitor-priv.h"
#include "schema/command.h"

/*
 * Commands of several sessions run side by side, so this is only valid until a command first waits; that is
 * enough for qmp_capabilities, which never does.
 */
static Negotiation *current;
static void (*quit_handler)(void);

void qmp_set_negotiation(Negotiation *negotiation)
{
    current = negotiation;
}

void qmp_set_quit_handler(void (*quit)(void))
{
    quit_handler = quit;
}

int qmp_qmp_capabilities(const QmpCapabilitiesArg *arg, Error *err)
{
    if (current->complete) /* said here because wrong arguments are to be told first */
        return err_set_class(err, ERROR_COMMAND_NOT_FOUND, -ENOENT,
            "Capabilities negotiation is already complete, command ignored");
    for (size_t i = 0; i < arg->enable.count; i++) {
        if (arg->enable.items[i] == QMP_CAPABILITY_OOB)
            current->oob = true;
    }
    current->complete = true;
    return 0;
}

int qmp_query_version(VersionInfo **ret_result, Error *err)
{
    VersionInfo *info = mem_new(VersionInfo);

    info->qemu = mem_new(VersionTriple);
    info->qemu->major = VERSION_COMPAT_MAJOR;
    info->qemu->minor = VERSION_COMPAT_MINOR;
    info->qemu->micro = VERSION_COMPAT_MICRO;
    info->package = str_dup(VERSION_PACKAGE);
    *ret_result = info;
    return 0;
}

int qmp_query_commands(CommandInfoList *ret_result, Error *err)
{
    size_t count;
    const QmpCommand *commands = qmp_command_list(&count);

    ret_result->items = mem_zalloc(count * sizeof(*ret_result->items));
    for (size_t i = 0; i < count; i++) {
        ret_result->items[i] = mem_new(CommandInfo);
        ret_result->items[i]->name = str_dup(commands[i].name);
    }
    ret_result->count = count;
    return 0;
}

int qmp_query_qmp_schema(const JsonValue *args, JsonValue **ret_result, Error *err)
{
    if (json_is(args, JSON_OBJECT) && args->u.object.count)
        return err_set(err, -EINVAL, "Parameter '%s' is unexpected", args->u.object.members[0].key);
    return json_parse(schema_introspection_json(), ret_result, err);
}

int qmp_quit(Error *err)
{
    sessions_refuse_commands();
    quit_handler();
    return 0;
}
