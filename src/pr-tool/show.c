/* SPDX-License-Identifier: Apache-2.0 */
/* The commands that look: keys, reservation, status, capabilities. */
#include "pr-tool/commands.h"

#include "base/log.h"
#include "pr-tool/output.h"

#include <inttypes.h>
#include <stdio.h>

/* ---- Pieces ---- */

static void begin(JsonText *json, const Session *session, uint32_t generation)
{
    json_text_open(json, NULL, '{');
    json_text_string(json, "device", session->options->device);
    json_text_number(json, "generation", generation);
}

static void end(JsonText *json)
{
    json_text_close(json, '}');
    json_text_print(json);
}

static void warn_truncated(const Session *session, bool truncated)
{
    if (truncated && !session->options->quiet)
        log_warn(
            "%s: the device has more to say than fits: the list is not complete", session->options->device);
}

static const char *type_text(unsigned type)
{
    const char *name = pr_type_name(type);

    return name ? name : "(reserved type)";
}

static bool is_for_all(unsigned type)
{
    return type == PR_TYPE_WRITE_EXCLUSIVE_ALL || type == PR_TYPE_EXCLUSIVE_ACCESS_ALL;
}

static void json_reservation(JsonText *json, const PrReservation *reservation)
{
    json_text_bool(json, "held", reservation->type != PR_TYPE_NONE);
    if (reservation->type == PR_TYPE_NONE) {
        json_text_string(json, "key", NULL);
        json_text_string(json, "type", NULL);
        return;
    }
    json_text_key(json, "key", reservation->key);
    json_text_string(json, "type", pr_type_name(reservation->type));
}

static void print_reservation(const PrReservation *reservation)
{
    if (reservation->type == PR_TYPE_NONE)
        printf("not reserved\n");
    else if (is_for_all(reservation->type))
        printf("reserved  %s  by all registrants\n", type_text(reservation->type));
    else
        printf("reserved  %s  by 0x%" PRIx64 "\n", type_text(reservation->type), reservation->key);
}

/* ---- keys ---- */

ExitCode command_keys(Session *session)
{
    PrInData data;
    Outcome outcome = read_data(session, PR_IN_READ_KEYS, &data);
    JsonText json = {0};
    uint64_t key;

    if (outcome.code != EXIT_DONE)
        return session_report(session, &outcome);
    warn_truncated(session, data.truncated);
    if (!session->options->json) {
        for (unsigned i = 0; pr_key_get(data.data, data.bytes, i, &key); i++)
            printf("0x%" PRIx64 "\n", key);
        return EXIT_DONE;
    }
    begin(&json, session, data.header.generation);
    json_text_bool(&json, "truncated", data.truncated);
    json_text_open(&json, "keys", '[');
    for (unsigned i = 0; pr_key_get(data.data, data.bytes, i, &key); i++)
        json_text_key(&json, NULL, key);
    json_text_close(&json, ']');
    end(&json);
    return EXIT_DONE;
}

/* ---- reservation ---- */

ExitCode command_reservation(Session *session)
{
    PrReservation reservation;
    uint32_t generation;
    ExitCode code = read_reservation(session, &generation, &reservation);
    JsonText json = {0};

    if (code != EXIT_DONE)
        return code;
    if (!session->options->json) {
        print_reservation(&reservation);
        return EXIT_DONE;
    }
    begin(&json, session, generation);
    json_reservation(&json, &reservation);
    end(&json);
    return EXIT_DONE;
}

/* ---- status ---- */

/* One line of it, from READ FULL STATUS (full) or only a key. */
typedef struct Row {
    uint64_t key;
    bool holder;
    bool full, all_ports;
    unsigned port;
    char initiator[PR_TRANSPORT_ID_TEXT];
} Row;

typedef struct Table {
    const PrReservation *reservation;
    bool full;
    PrInData data;
    size_t at; /* the next registrant, or the next key's number */
} Table;

static bool next_row(Table *table, Row *ret_row)
{
    PrRegistrant registrant;

    *ret_row = (Row){.full = table->full};
    if (!table->full) {
        const PrReservation *held = table->reservation;

        if (!pr_key_get(table->data.data, table->data.bytes, (unsigned)table->at++, &ret_row->key))
            return false;
        ret_row->holder = is_for_all(held->type) || (held->type != PR_TYPE_NONE && held->key == ret_row->key);
        return true;
    }
    if (!pr_registrant_next(table->data.data, table->data.bytes, &table->at, &registrant))
        return false;
    ret_row->key = registrant.key;
    ret_row->holder = registrant.holder;
    ret_row->all_ports = registrant.all_ports;
    ret_row->port = registrant.relative_port;
    pr_transport_id_text(registrant.transport_id, registrant.transport_id_bytes, ret_row->initiator);
    return true;
}

static void json_row(JsonText *json, const Row *row)
{
    json_text_open(json, NULL, '{');
    json_text_key(json, "key", row->key);
    json_text_bool(json, "holder", row->holder);
    if (row->full) {
        json_text_bool(json, "all-ports", row->all_ports);
        if (!row->all_ports)
            json_text_number(json, "port", row->port);
        json_text_string(json, "initiator", row->initiator);
    }
    json_text_close(json, '}');
}

static void print_row(const Row *row)
{
    const char *holder = row->holder ? "yes" : "no";
    char port[8] = "all";

    if (!row->all_ports)
        snprintf(port, sizeof(port), "%u", row->port);
    if (row->full)
        printf("0x%-16" PRIx64 "  %-6s  %-5s  %s\n", row->key, holder, port, row->initiator);
    else
        printf("0x%-16" PRIx64 "  %s\n", row->key, holder);
}

static void print_status(Table *table)
{
    unsigned rows = 0;
    Row row;

    print_reservation(table->reservation);
    while (next_row(table, &row)) {
        if (rows++ == 0)
            printf("KEY                 HOLDER%s\n", table->full ? "  PORT   INITIATOR" : "");
        print_row(&row);
    }
    if (rows == 0)
        printf("no keys\n");
}

static void json_status(const Session *session, Table *table)
{
    JsonText json = {0};
    Row row;

    begin(&json, session, table->data.header.generation);
    json_reservation(&json, table->reservation);
    json_text_bool(&json, "full", table->full);
    json_text_bool(&json, "truncated", table->data.truncated);
    json_text_open(&json, "registrants", '[');
    while (next_row(table, &row))
        json_row(&json, &row);
    json_text_close(&json, ']');
    end(&json);
}

ExitCode command_status(Session *session)
{
    PrReservation reservation;
    Table table = {.reservation = &reservation, .full = true};
    uint32_t generation;
    ExitCode code = read_reservation(session, &generation, &reservation);
    Outcome outcome;

    if (code != EXIT_DONE)
        return code;
    outcome = read_data(session, PR_IN_READ_FULL_STATUS, &table.data);
    if (outcome.code == EXIT_REFUSED) { /* older devices, and the kernel's interface, have only the keys */
        table.full = false;
        outcome = read_data(session, PR_IN_READ_KEYS, &table.data);
    }
    if (outcome.code != EXIT_DONE)
        return session_report(session, &outcome);
    warn_truncated(session, table.data.truncated);
    if (session->options->json)
        json_status(session, &table);
    else
        print_status(&table);
    return EXIT_DONE;
}

/* ---- capabilities ---- */

static const struct {
    const char *name, *text;
    size_t offset;
} flags[] = {
    {"persist-through-power-loss", "keys can outlive a power loss",
        offsetof(PrCapabilities, persist_through_power_loss)},
    {"persist-active", "and do now", offsetof(PrCapabilities, persist_active)},
    {"specify-ports", "register for other initiators", offsetof(PrCapabilities, specify_ports)},
    {"all-ports", "register for all target ports", offsetof(PrCapabilities, all_ports)},
    {"compatible-handling", "RESERVE(6) by registrants", offsetof(PrCapabilities, compatible_handling)},
    {"replace-lost", "replace lost reservation", offsetof(PrCapabilities, replace_lost)},
};

static bool has_flag(const PrCapabilities *capabilities, size_t offset)
{
    return *(const bool *)((const char *)capabilities + offset);
}

static void print_capabilities(const PrCapabilities *capabilities)
{
    for (unsigned i = 0; i < ARRAY_SIZE(flags); i++)
        printf("%-30s  %s\n", flags[i].text, has_flag(capabilities, flags[i].offset) ? "yes" : "no");
    if (!capabilities->type_mask_valid)
        printf("%-30s  unknown\n", "types");
    for (unsigned type = 1; capabilities->type_mask_valid && type <= PR_TYPE_EXCLUSIVE_ACCESS_ALL; type++)
        if (pr_type_name(type))
            printf("%-30s  %s\n", pr_type_name(type),
                pr_type_mask_has(capabilities->type_mask, type) ? "yes" : "no");
}

static void json_capabilities(const Session *session, const PrCapabilities *capabilities)
{
    JsonText json = {0};

    json_text_open(&json, NULL, '{');
    json_text_string(&json, "device", session->options->device);
    for (unsigned i = 0; i < ARRAY_SIZE(flags); i++)
        json_text_bool(&json, flags[i].name, has_flag(capabilities, flags[i].offset));
    json_text_number(&json, "allow-commands", capabilities->allow_commands);
    if (capabilities->type_mask_valid) {
        json_text_open(&json, "types", '[');
        for (unsigned type = 1; type <= PR_TYPE_EXCLUSIVE_ACCESS_ALL; type++)
            if (pr_type_name(type) && pr_type_mask_has(capabilities->type_mask, type))
                json_text_string(&json, NULL, pr_type_name(type));
        json_text_close(&json, ']');
    } else {
        json_text_string(&json, "types", NULL);
    }
    end(&json);
}

ExitCode command_capabilities(Session *session)
{
    uint8_t cdb[SCSI_CDB_BYTES], data[PR_CAPABILITIES_BYTES];
    PrCapabilities capabilities;
    Outcome outcome;

    pr_in_cdb_put(cdb, PR_IN_REPORT_CAPABILITIES, sizeof(data));
    outcome = session_execute(session, cdb, data, sizeof(data));
    if (outcome.code != EXIT_DONE)
        return session_report(session, &outcome);
    if (!pr_capabilities_get(data, outcome.result.data_bytes, &capabilities))
        return session_fail(session, EXIT_REFUSED, "the device's answer is too short");
    if (session->options->json)
        json_capabilities(session, &capabilities);
    else
        print_capabilities(&capabilities);
    return EXIT_DONE;
}
