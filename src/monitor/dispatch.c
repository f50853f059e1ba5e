/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The envelope of the control protocol: checks a request, runs the command that it names, wraps the result.
 * Texts and the places of "id" are those that existing clients know (compatibility.md 1.4).
 */
#include "base/version.h"
#include "generated/trace.h"
#include "monitor/monitor-priv.h"
#include "schema/command.h"

typedef struct Request {
    const char *command;
    const JsonValue *arguments; /* may be NULL */
    const JsonValue *id;        /* may be NULL */
    bool oob;
} Request;

static JsonValue *greeting_version(void)
{
    JsonValue *triple = json_object_new(), *version = json_object_new();

    json_object_put(triple, "micro", json_int_new(VERSION_COMPAT_MICRO));
    json_object_put(triple, "minor", json_int_new(VERSION_COMPAT_MINOR));
    json_object_put(triple, "major", json_int_new(VERSION_COMPAT_MAJOR));
    json_object_put(version, "qemu", triple);
    json_object_put(version, "package", json_string_new(VERSION_PACKAGE));
    return version;
}

JsonValue *dispatch_greeting(void)
{
    JsonValue *capabilities = json_array_new(), *body = json_object_new(), *greeting = json_object_new();

    json_array_append(capabilities, json_string_new("oob"));
    json_object_put(body, "version", greeting_version());
    json_object_put(body, "capabilities", capabilities);
    json_object_put(greeting, "QMP", body);
    return greeting;
}

JsonValue *dispatch_error_reply(const JsonValue *id, const Error *err)
{
    JsonValue *reply = json_object_new(), *body = json_object_new();

    if (id)
        json_object_put(reply, "id", json_clone(id));
    json_object_put(body, "class", json_string_new(error_class_name(err->class)));
    json_object_put(body, "desc", json_string_new(err->message));
    json_object_put(reply, "error", body);
    return reply;
}

static JsonValue *success_reply(const JsonValue *id, JsonValue *take_result)
{
    JsonValue *reply = json_object_new();

    json_object_put(reply, "return", take_result);
    if (id)
        json_object_put(reply, "id", json_clone(id));
    return reply;
}

/* One member of the request other than "id". */
static int check_member(
    const Negotiation *negotiation, const JsonMember *member, Request *request, Error *err)
{
    bool oob = negotiation->oob && str_eq(member->key, "exec-oob");

    if (oob || str_eq(member->key, "execute")) {
        if (!json_is(member->value, JSON_STRING))
            return err_set(err, -EINVAL, "QMP input member '%s' must be a string", member->key);
        if (request->command)
            return err_set(err, -EINVAL, "QMP input member 'execute' clashes with 'exec-oob'");
        request->command = member->value->u.string;
        request->oob = oob;
        return 0;
    }
    if (str_eq(member->key, "arguments")) {
        if (!json_is(member->value, JSON_OBJECT))
            return err_set(err, -EINVAL, "QMP input member 'arguments' must be an object");
        request->arguments = member->value;
        return 0;
    }
    return err_set(err, -EINVAL, "QMP input member '%s' is unexpected", member->key);
}

static int check_request(const Negotiation *negotiation, const JsonValue *value, Request *request, Error *err)
{
    if (!json_is(value, JSON_OBJECT))
        return err_set(err, -EINVAL, "QMP input must be a JSON object");
    request->id = json_get(value, "id");
    for (size_t i = 0; i < value->u.object.count; i++) {
        const JsonMember *member = &value->u.object.members[i];
        int r = str_eq(member->key, "id") ? 0 : check_member(negotiation, member, request, err);

        if (r < 0)
            return r;
    }
    if (!request->command)
        return err_set(err, -EINVAL, "QMP input lacks member 'execute'");
    return 0;
}

static int find_command(
    const Negotiation *negotiation, const Request *request, const QmpCommand **ret_command, Error *err)
{
    const QmpCommand *command = qmp_command_find(request->command);

    if (!negotiation->complete && !str_eq(request->command, "qmp_capabilities"))
        return err_set_class(err, ERROR_COMMAND_NOT_FOUND, -ENOENT,
            "Expecting capabilities negotiation with 'qmp_capabilities'");
    if (!command)
        return err_set_class(
            err, ERROR_COMMAND_NOT_FOUND, -ENOENT, "The command %s has not been found", request->command);
    if (request->oob)
        return err_set(err, -EINVAL, "The command %s does not support OOB", request->command);
    *ret_command = command;
    return 0;
}

static int run_request(
    Negotiation *negotiation, const JsonValue *value, Request *request, JsonValue **ret_result, Error *err)
{
    const QmpCommand *command = NULL;
    int r = check_request(negotiation, value, request, err);

    if (r < 0)
        return r;
    r = find_command(negotiation, request, &command, err);
    if (r < 0)
        return r;
    trace_monitor_command(request->command);
    qmp_set_negotiation(negotiation);
    r = command->run(request->arguments, ret_result, err);
    trace_monitor_command_done(request->command, r);
    return r;
}

JsonValue *dispatch_request(Negotiation *negotiation, const JsonValue *value)
{
    AUTO_ERROR Error err = ERROR_INIT;
    JsonValue *result = NULL;
    Request request = {0};

    if (run_request(negotiation, value, &request, &result, &err) < 0)
        return dispatch_error_reply(request.id, &err);
    return success_reply(request.id, result);
}
