/* SPDX-License-Identifier: Apache-2.0 */
#include "schema/command.h"

#include "schema/visit-priv.h"

#include <string.h>

const QmpCommand *qmp_command_find(const char *name)
{
    size_t low = 0, high = qmp_commands_count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(name, qmp_commands[middle].name);

        if (order == 0)
            return &qmp_commands[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

const QmpCommand *qmp_command_list(size_t *ret_count)
{
    *ret_count = qmp_commands_count;
    return qmp_commands;
}

int schema_call_begin(SchemaCall *call, const JsonValue *args, Error *err)
{
    return schema_from_json(call->type, args, SCHEMA_JSON, &call->arg, err);
}

void schema_call_done(SchemaCall *call)
{
    schema_free(call->type, call->arg);
}

JsonValue *schema_call_result(const SchemaType *type, void *result)
{
    JsonValue *json = schema_to_json(type, schema_is_pointer_kind(type) ? *(void **)result : result);

    schema_slot_done(type, result);
    return json;
}
