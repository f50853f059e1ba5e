/* SPDX-License-Identifier: Apache-2.0 */
#include "pr-tool/commands.h"

/* Enough for most; a device that has more to say is asked again. */
#define FIRST_BYTES 512

static Outcome read_once(Session *session, PrInAction action, uint32_t allocation_bytes, PrInData *data)
{
    uint8_t cdb[SCSI_CDB_BYTES];
    Outcome outcome;

    pr_in_cdb_put(cdb, action, (uint16_t)allocation_bytes);
    outcome = session_execute(session, cdb, data->data, sizeof(data->data));
    data->header = (PrInHeader){0};
    data->bytes = outcome.result.data_bytes;
    data->truncated = !pr_in_header_get(data->data, data->bytes, &data->header);
    return outcome;
}

/* Whether the registrants fill the list: one that contradicts itself ends it early. */
static bool is_whole(const PrInData *data)
{
    PrRegistrant registrant;
    size_t offset = 0;

    while (pr_registrant_next(data->data, data->bytes, &offset, &registrant))
        ;
    return offset == data->header.additional_bytes;
}

Outcome read_data(Session *session, PrInAction action, PrInData *ret_data)
{
    uint32_t allocation_bytes = FIRST_BYTES;

    for (;;) {
        Outcome outcome = read_once(session, action, allocation_bytes, ret_data);
        uint64_t all_bytes = (uint64_t)PR_IN_HEADER_BYTES + ret_data->header.additional_bytes;

        if (outcome.code != EXIT_DONE)
            return outcome;
        if (all_bytes <= allocation_bytes || allocation_bytes == PR_DATA_BYTES) {
            ret_data->truncated |= all_bytes > ret_data->bytes;
            if (action == PR_IN_READ_FULL_STATUS)
                ret_data->truncated |= !is_whole(ret_data);
            return outcome;
        }
        allocation_bytes = (uint32_t)MIN(all_bytes, (uint64_t)PR_DATA_BYTES);
    }
}

ExitCode read_reservation(Session *session, uint32_t *ret_generation, PrReservation *ret_reservation)
{
    PrInData data;
    Outcome outcome = read_data(session, PR_IN_READ_RESERVATION, &data);

    if (outcome.code != EXIT_DONE)
        return session_report(session, &outcome);
    if (!pr_reservation_get(data.data, data.bytes, ret_reservation))
        return session_fail(
            session, EXIT_TRY_AGAIN, "the device's answer does not tell whether there is a reservation");
    *ret_generation = data.header.generation;
    return EXIT_DONE;
}
