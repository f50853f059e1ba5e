/* SPDX-License-Identifier: Apache-2.0 */
#include "pr-tool/session.h"

#include "base/log.h"
#include "base/mem.h"
#include "pr-tool/output.h"
#include "proto/pr-wire.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define SOCKET_VARIABLE "GRANARY_PR_SOCKET"
/* A device keeps several reports for each initiator; this is more than tells anything. */
#define UNIT_ATTENTIONS 5

/* ---- What went wrong ---- */

static ExitCode fail(const Session *session, ExitCode code, const granary_pr_result *result, const char *text)
{
    const Options *options = session->options;
    JsonText json = {0};
    ScsiSense sense;

    if (!options->quiet)
        log_error("%s: %s: %s", options->device, options->command->name, text);
    if (!options->json)
        return code;
    json_text_open(&json, NULL, '{');
    json_text_string(&json, "device", options->device);
    json_text_string(&json, "command", options->command->name);
    json_text_number(&json, "exit", code);
    json_text_string(&json, "error", text);
    if (result) {
        json_text_number(&json, "status", result->status);
        if (scsi_sense_get(result->sense, sizeof(result->sense), &sense)) {
            json_text_open(&json, "sense", '{');
            json_text_number(&json, "key", sense.key);
            json_text_number(&json, "asc", sense.asc);
            json_text_number(&json, "ascq", sense.ascq);
            json_text_close(&json, '}');
        }
    }
    json_text_close(&json, '}');
    json_text_print(&json);
    return code;
}

ExitCode session_fail(const Session *session, ExitCode code, const char *fmt, ...)
{
    AUTO_FREE char *text = NULL;
    va_list args;

    va_start(args, fmt);
    text = str_vprintf(fmt, args);
    va_end(args);
    return fail(session, code, NULL, text);
}

/* ---- Reaching a helper ---- */

/* The socket to use; NULL when there is none. */
static const char *find_socket(const Options *options)
{
    static const char *const usual[] = {"/run/granary-pr-helper.sock", "/run/qemu-pr-helper.sock"};
    const char *named = options->socket ? options->socket : getenv(SOCKET_VARIABLE);

    if (named && *named)
        return named;
    for (unsigned i = 0; i < ARRAY_SIZE(usual); i++)
        if (access(usual[i], F_OK) == 0)
            return usual[i];
    return NULL;
}

static ExitCode reach_helper(Session *session)
{
    const Options *options = session->options;
    const char *path = options->direct ? NULL : find_socket(options);
    AUTO_ERROR Error err = ERROR_INIT;
    int r;

    if (!path && !options->direct && geteuid() != 0)
        return session_fail(session, EXIT_UNREACHABLE,
            "no helper's socket in /run; name one with --socket, or be root to do without");
    if (!path) {
        if (direct_start(&session->direct, options->helper, &err) < 0)
            return session_fail(session, EXIT_UNREACHABLE, "%s", err.message);
        path = session->direct.path;
    }
    session->pr = granary_pr_new(path);
    if (!session->pr)
        return session_fail(session, EXIT_UNREACHABLE, "socket %s: %s", path, strerror(errno));
    r = granary_pr_connect(session->pr, options->timeout_ms);
    if (r < 0 && session->direct.pid)
        return session_fail(session, EXIT_UNREACHABLE, "the helper does not start: %s", strerror(-r));
    if (r < 0)
        return session_fail(session, EXIT_UNREACHABLE, "no helper at %s: %s", path, strerror(-r));
    return EXIT_DONE;
}

ExitCode session_open(Session *session, const Options *options)
{
    *session = (Session){.options = options};
    /* The helper carries changes out only if we could write to the disk ourselves. Not waiting: for a medium,
     * or for somebody at the other end of what is no disk at all. */
    session->disk_fd =
        open(options->device, (options->command->changes ? O_RDWR : O_RDONLY) | O_NONBLOCK | O_CLOEXEC);
    if (session->disk_fd < 0)
        return session_fail(session, EXIT_UNREACHABLE, "cannot open: %s", strerror(errno));
    return reach_helper(session);
}

void session_close(Session *session)
{
    granary_pr_free(TAKE(session->pr));
    direct_stop(&session->direct);
    session->disk_fd = fd_close(session->disk_fd);
}

/* ---- Commands ---- */

/* What a sense means for somebody who wants to know whether to try again. */
static ExitCode judge_sense(ScsiSense sense, bool changes)
{
    switch (sense.key) {
    case SCSI_KEY_NO_SENSE:
    case SCSI_KEY_RECOVERED_ERROR: /* done, with a remark; but then what was read is missing */
        return changes ? EXIT_DONE : EXIT_TRY_AGAIN;
    case SCSI_KEY_NOT_READY: /* 04/03: a person has to do something first */
        return sense.asc == 0x04 && sense.ascq == 0x03 ? EXIT_REFUSED : EXIT_TRY_AGAIN;
    case SCSI_KEY_UNIT_ATTENTION:
        return EXIT_TRY_AGAIN;
    case SCSI_KEY_ABORTED_COMMAND:
        /* Communication failure and time-out on the way to the device: it may have heard the command. */
        return changes && (sense.asc == 0x08 || sense.asc == 0x2e) ? EXIT_UNKNOWN : EXIT_TRY_AGAIN;
    default:
        return EXIT_REFUSED;
    }
}

static ExitCode judge(const granary_pr_result *result, bool changes)
{
    ScsiSense sense;

    switch (result->status) {
    case SCSI_GOOD:
    case SCSI_CONDITION_MET:
        return EXIT_DONE;
    case SCSI_RESERVATION_CONFLICT:
        return EXIT_CONFLICT;
    case SCSI_CHECK_CONDITION:
        if (scsi_sense_get(result->sense, sizeof(result->sense), &sense))
            return judge_sense(sense, changes);
        return EXIT_REFUSED;
    default: /* BUSY, TASK SET FULL, ... */
        return EXIT_TRY_AGAIN;
    }
}

static bool is_unit_attention(const Outcome *outcome)
{
    ScsiSense sense;

    return outcome->error == 0 && outcome->result.status == SCSI_CHECK_CONDITION &&
           scsi_sense_get(outcome->result.sense, sizeof(outcome->result.sense), &sense) &&
           sense.key == SCSI_KEY_UNIT_ATTENTION;
}

static Outcome execute_once(
    Session *session, const uint8_t cdb[SCSI_CDB_BYTES], void *data, size_t data_bytes)
{
    Outcome outcome = {0};

    outcome.error = granary_pr_execute(session->pr, session->disk_fd, cdb, SCSI_CDB_BYTES, data, data_bytes,
        session->options->timeout_ms, &outcome.result);
    if (outcome.error == 0)
        outcome.code = judge(&outcome.result, cdb[0] == PR_OUT_OPCODE);
    else
        outcome.code = granary_pr_was_sent(session->pr) ? EXIT_UNKNOWN : EXIT_UNREACHABLE;
    return outcome;
}

Outcome session_execute(Session *session, const uint8_t cdb[SCSI_CDB_BYTES], void *data, size_t data_bytes)
{
    Outcome outcome = execute_once(session, cdb, data, data_bytes);

    /* A unit attention reports what has happened before - a reset, a reservation that somebody else has
     * released - in place of carrying the command out. Once told, the device goes on to the next one. */
    for (unsigned i = 0; i < UNIT_ATTENTIONS && is_unit_attention(&outcome); i++)
        outcome = execute_once(session, cdb, data, data_bytes);
    return outcome;
}

static const char *conflict_reason(const Options *options)
{
    if (strcmp(options->command->name, "register") == 0)
        return "the key that is registered now is not the one given by --key";
    if (strcmp(options->command->name, "reserve") == 0)
        return "somebody else holds a reservation, or the key is not registered";
    if (strcmp(options->command->name, "preempt") == 0)
        return "the own key is not registered, or the victim's is not";
    if (strcmp(options->command->name, "register-and-move") == 0)
        return "the key is not registered, or does not hold the reservation";
    return options->command->changes ? "the key is not registered" : "the device is reserved";
}

static ExitCode report_no_answer(const Session *session, const Outcome *outcome)
{
    const char *reason = strerror(-outcome->error);

    if (outcome->code != EXIT_UNKNOWN)
        return session_fail(session, outcome->code, "not sent to the helper: %s", reason);
    if (outcome->error == -ECONNRESET)
        reason = "the helper closed the connection";
    if (outcome->error == -EPROTO)
        reason = "the helper's answer makes no sense";
    if (outcome->error == -ETIMEDOUT)
        return session_fail(session, EXIT_UNKNOWN,
            "no answer within %d s; it may or may not have been carried out",
            session->options->timeout_ms / 1000);
    return session_fail(session, EXIT_UNKNOWN, "%s; it may or may not have been carried out", reason);
}

ExitCode session_report(const Session *session, const Outcome *outcome)
{
    const granary_pr_result *result = &outcome->result;
    const char *name = scsi_status_name(result->status);
    AUTO_FREE char *text = NULL;
    ScsiSense sense;

    if (outcome->error)
        return report_no_answer(session, outcome);
    if (outcome->code == EXIT_CONFLICT)
        text = str_printf("reservation conflict: %s", conflict_reason(session->options));
    else if (scsi_sense_get(result->sense, sizeof(result->sense), &sense))
        text = str_printf("%s (sense %x/%02x/%02x)%s", scsi_sense_text(sense), sense.key, sense.asc,
            sense.ascq, outcome->code == EXIT_UNKNOWN ? "; it may or may not have been carried out" : "");
    else
        text = str_printf("status 0x%02x%s%s", result->status, name ? " " : "", name ? name : "");
    return fail(session, outcome->code, result, text);
}
