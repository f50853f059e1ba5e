/* SPDX-License-Identifier: Apache-2.0 */
/* The table of QMP commands (generated, sorted by name) and what the generated callers share. */
#pragma once

#include "schema/visit.h"

typedef struct QmpCommand {
    const char *name;
    /* args: an object, or NULL for none. On success *ret_result is never NULL and the caller's. Runs in a
     * coroutine of the main loop. */
    int (*run)(const JsonValue *args, JsonValue **ret_result, Error *err);
} QmpCommand;

/* NULL if there is no such command. */
const QmpCommand *qmp_command_find(const char *name);
/* All commands, sorted by name. */
const QmpCommand *qmp_command_list(size_t *ret_count);

/* The answer to query-qmp-schema, as JSON text; static. */
const char *schema_introspection_json(void);

/* ---- For generated code ---- */

extern const QmpCommand qmp_commands[];
extern const size_t qmp_commands_count;

/* One call: holds the argument struct until schema_call_done(). */
typedef struct SchemaCall {
    const SchemaType *type;
    void *arg;
} SchemaCall;

int schema_call_begin(SchemaCall *call, const JsonValue *args, Error *err) MUST_CHECK;
void schema_call_done(SchemaCall *call);
/* Turns a handler's result into JSON and frees it; result points to what the handler wrote (a pointer for
 * structs). */
JsonValue *schema_call_result(const SchemaType *type, void *result) MUST_CHECK;
