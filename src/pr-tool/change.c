/* SPDX-License-Identifier: Apache-2.0 */
/* The commands that change something: register, reserve, release, preempt, clear, register-and-move. */
#include "pr-tool/commands.h"

#include "base/mem.h"
#include "pr-tool/output.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Sends a PERSISTENT RESERVE OUT and says how it went; done: what has happened if it went well. */
static ExitCode change(
    Session *session, PrOutAction action, unsigned type, void *list, size_t list_bytes, const char *done)
{
    const Options *options = session->options;
    uint8_t cdb[SCSI_CDB_BYTES];
    JsonText json = {0};
    Outcome outcome;

    pr_out_cdb_put(cdb, action, type, (uint16_t)list_bytes);
    outcome = session_execute(session, cdb, list, list_bytes);
    if (outcome.code != EXIT_DONE)
        return session_report(session, &outcome);
    if (options->json) {
        json_text_open(&json, NULL, '{');
        json_text_string(&json, "device", options->device);
        json_text_string(&json, "command", options->command->name);
        json_text_number(&json, "exit", EXIT_DONE);
        json_text_close(&json, '}');
        json_text_print(&json);
    } else if (!options->quiet) {
        printf("%s\n", done);
    }
    return EXIT_DONE;
}

static ExitCode change_simply(
    Session *session, PrOutAction action, unsigned type, uint64_t service_key, const char *done)
{
    const Options *options = session->options;
    PrOutList what = {
        .key = options->key,
        .service_key = service_key,
        .aptpl = options->given & OPTION_APTPL,
        .all_tg_pt = options->given & OPTION_ALL_TARGET_PORTS,
    };
    uint8_t list[PR_OUT_LIST_BYTES];

    pr_out_list_put(list, &what);
    return change(session, action, type, list, sizeof(list), done);
}

ExitCode command_register(Session *session)
{
    const Options *options = session->options;
    AUTO_FREE char *done =
        options->new_key ? str_printf("registered 0x%" PRIx64, options->new_key) : str_dup("unregistered");

    return change_simply(session,
        options->given & OPTION_IGNORE ? PR_OUT_REGISTER_AND_IGNORE : PR_OUT_REGISTER, 0, options->new_key,
        done);
}

ExitCode command_reserve(Session *session)
{
    AUTO_FREE char *done = str_printf("reserved  %s", pr_type_name(session->options->type));

    return change_simply(session, PR_OUT_RESERVE, session->options->type, 0, done);
}

/* The type that a command names, or else that of the reservation there is: devices want it repeated. */
static ExitCode find_type(Session *session, PrType *ret_type)
{
    PrReservation reservation;
    uint32_t generation;
    ExitCode code = EXIT_DONE;

    *ret_type = session->options->type;
    if (*ret_type != PR_TYPE_NONE)
        return code;
    code = read_reservation(session, &generation, &reservation);
    if (code == EXIT_DONE)
        *ret_type = reservation.type;
    return code;
}

ExitCode command_release(Session *session)
{
    PrType type;
    ExitCode code = find_type(session, &type);

    /* No reservation: the device says what that means for this key. */
    return code == EXIT_DONE
               ? change_simply(session, PR_OUT_RELEASE, type ? type : PR_TYPE_WRITE_EXCLUSIVE, 0, "released")
               : code;
}

ExitCode command_preempt(Session *session)
{
    const Options *options = session->options;
    AUTO_FREE char *done = str_printf("preempted 0x%" PRIx64, options->victim);
    PrType type;
    ExitCode code = find_type(session, &type);

    if (code != EXIT_DONE)
        return code;
    /* Without a reservation preempting only removes keys; some devices want a valid type all the same. */
    return change_simply(session, options->given & OPTION_ABORT ? PR_OUT_PREEMPT_AND_ABORT : PR_OUT_PREEMPT,
        type ? type : PR_TYPE_WRITE_EXCLUSIVE, options->victim, done);
}

ExitCode command_clear(Session *session)
{
    return change_simply(session, PR_OUT_CLEAR, 0, 0, "cleared");
}

/* ---- register-and-move ---- */

/* The registrant that --to names: "TRANSPORT-ID" or "TRANSPORT-ID@PORT", as `status` shows both. */
static ExitCode find_new_holder(Session *session, const PrInData *status, PrRegistrant *ret_holder)
{
    const char *to = session->options->to;
    const char *at = strrchr(to, '@');
    size_t length = at ? (size_t)(at - to) : strlen(to);
    unsigned found = 0;
    size_t offset = 0;
    PrRegistrant registrant;

    while (pr_registrant_next(status->data, status->bytes, &offset, &registrant)) {
        char text[PR_TRANSPORT_ID_TEXT], port[8];

        pr_transport_id_text(registrant.transport_id, registrant.transport_id_bytes, text);
        snprintf(port, sizeof(port), "%u", registrant.relative_port);
        if (strlen(text) != length || memcmp(text, to, length) != 0 || (at && strcmp(at + 1, port) != 0))
            continue;
        *ret_holder = registrant;
        found++;
    }
    if (found == 1)
        return EXIT_DONE;
    return session_fail(session, EXIT_USAGE,
        found ? "%s is registered through several ports: add @PORT" : "%s is not registered: see `status`",
        to);
}

static ExitCode move_to(Session *session, const PrRegistrant *holder)
{
    const Options *options = session->options;
    AUTO_FREE char *done = str_printf("moved to %s", options->to);
    uint8_t list[PR_DATA_BYTES];
    PrMoveList what = {
        .key = options->key,
        .service_key = options->new_key,
        .unregister = options->given & OPTION_UNREGISTER,
        .aptpl = options->given & OPTION_APTPL,
        .relative_port = holder->relative_port,
        .transport_id_bytes = holder->transport_id_bytes,
    };

    if (holder->transport_id_bytes > sizeof(list) - PR_OUT_MOVE_LIST_BYTES)
        return session_fail(session, EXIT_REFUSED, "the new holder's TransportID is too long");
    pr_move_list_put(list, &what);
    memcpy(list + PR_OUT_MOVE_LIST_BYTES, holder->transport_id, holder->transport_id_bytes);
    return change(session, PR_OUT_REGISTER_AND_MOVE, 0, list,
        PR_OUT_MOVE_LIST_BYTES + holder->transport_id_bytes, done);
}

ExitCode command_register_and_move(Session *session)
{
    PrInData status;
    PrRegistrant holder = {0};
    Outcome outcome = read_data(session, PR_IN_READ_FULL_STATUS, &status);
    ExitCode code;

    if (outcome.code != EXIT_DONE)
        return session_report(session, &outcome);
    code = find_new_holder(session, &status, &holder);
    return code == EXIT_DONE ? move_to(session, &holder) : code;
}
