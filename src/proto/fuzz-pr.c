/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every decoder of reservations over the same bytes: as data from a device, as a client's list and CDB, as
 * sense, TransportID and reply. What was decoded is encoded again and must come back the same.
 */
#include "base/endian.h"
#include "proto/pr-wire.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void check(bool holds)
{
    if (!holds)
        abort();
}

/* A text that ends within its room and has nothing that could disturb a terminal. */
static void transport_id(const uint8_t *id, size_t bytes)
{
    char text[PR_TRANSPORT_ID_TEXT];
    size_t length;

    memset(text, 0x7f, sizeof(text));
    pr_transport_id_text(id, bytes, text);
    length = strnlen(text, sizeof(text));
    check(length > 0 && length < sizeof(text));
    for (size_t i = 0; i < length; i++)
        check(text[i] > ' ' && text[i] < 0x7f);
}

static void keys(const uint8_t *data, size_t bytes)
{
    uint8_t again[PR_IN_HEADER_BYTES];
    PrInHeader header = {0};
    unsigned count = 0;
    uint64_t key;

    if (pr_in_header_get(data, bytes, &header)) {
        pr_in_header_put(again, header);
        check(!memcmp(again, data, sizeof(again)));
    }
    while (pr_key_get(data, bytes, count, &key)) {
        check(get_be64(data + PR_IN_HEADER_BYTES + 8 * (size_t)count) == key);
        count++;
    }
    check(count <= header.additional_bytes / 8 && count * (uint64_t)8 <= bytes);
    check(!pr_key_get(data, bytes, UINT32_MAX, &key));
}

static void reservation(const uint8_t *data, size_t bytes)
{
    uint8_t again[PR_IN_HEADER_BYTES + PR_RESERVATION_BYTES];
    PrReservation what, same;

    if (!pr_reservation_get(data, bytes, &what))
        return;
    if (!get_be32(data + 4)) {
        check(!what.key && !what.scope && what.type == PR_TYPE_NONE);
        return;
    }
    check(what.scope < 16 && what.type < 16);
    pr_reservation_put(again, get_be32(data), &what);
    check(pr_reservation_get(again, sizeof(again), &same));
    check(same.key == what.key && same.scope == what.scope && same.type == what.type);
    check(!memcmp(again, data, 4) && !memcmp(again + 8, data + 8, 8) && again[21] == data[21]);
    (void)pr_type_name(what.type);
}

static void capabilities(const uint8_t *data, size_t bytes)
{
    PrType types[16] = {PR_TYPE_NONE};
    uint8_t again[PR_CAPABILITIES_BYTES];
    PrCapabilities what;
    unsigned count = 0;

    if (!pr_capabilities_get(data, bytes, &what))
        return;
    pr_capabilities_put(again, &what);
    check(again[2] == (data[2] & 0x9d) && again[3] == (data[3] & 0xf1));
    check(!memcmp(again + 4, data + 4, 2));
    for (unsigned type = 0; type < 16; type++) {
        if (pr_type_mask_has(what.type_mask, type))
            types[count++] = type;
    }
    check(pr_type_mask(types) == (what.type_mask & 0xea01));
}

static void full_status(const uint8_t *data, size_t bytes)
{
    PrRegistrant what;
    size_t offset = 0, before = 0;

    while (pr_registrant_next(data, bytes, &offset, &what)) {
        check(offset == before + PR_FULL_STATUS_BYTES + what.transport_id_bytes);
        check(what.transport_id + what.transport_id_bytes == data + PR_IN_HEADER_BYTES + offset);
        check(PR_IN_HEADER_BYTES + offset <= bytes);
        transport_id(what.transport_id, what.transport_id_bytes);
        before = offset;
    }
    check(offset == before);
}

static void lists(const uint8_t *data, size_t bytes)
{
    uint8_t again[PR_OUT_LIST_BYTES];
    PrMoveList move;
    PrOutList list;

    if (pr_out_list_get(data, bytes, &list)) {
        pr_out_list_put(again, &list);
        check(!memcmp(again, data, 16) && again[20] == (data[20] & 0x0d));
    }
    if (pr_move_list_get(data, bytes, &move)) {
        pr_move_list_put(again, &move);
        check(!memcmp(again, data, 16) && again[17] == (data[17] & 0x03));
        check(!memcmp(again + 18, data + 18, 6));
    }
}

static void sense(const uint8_t *data, size_t bytes)
{
    uint8_t again[SCSI_SENSE_BYTES];
    ScsiSense what, same;

    if (!scsi_sense_get(data, bytes, &what))
        return;
    check(what.key < 16 && scsi_sense_text(what));
    scsi_sense_put(again, what);
    check(scsi_sense_get(again, sizeof(again), &same));
    check(same.key == what.key && same.asc == what.asc && same.ascq == what.ascq);
}

static void cdb(const uint8_t *data, size_t bytes)
{
    uint8_t again[SCSI_CDB_BYTES];
    uint32_t data_bytes = 0;
    PrWireRequest request;
    unsigned action;

    if (bytes < SCSI_CDB_BYTES)
        return;
    request = pr_wire_request(data, &data_bytes);
    check((request == PR_WIRE_TOO_LONG) == (data_bytes > PR_DATA_BYTES));
    check(request != PR_WIRE_LIST || (data[0] == PR_OUT_OPCODE && data_bytes));
    action = pr_cdb_action(data);
    (void)scsi_status_name(data[15]);
    (void)pr_in_action_name(action);
    (void)pr_out_action_name(action);
    if (data[0] == PR_IN_OPCODE)
        pr_in_cdb_put(again, action, (uint16_t)pr_cdb_data_bytes(data));
    else
        pr_out_cdb_put(again, action, pr_cdb_type(data), (uint16_t)pr_cdb_data_bytes(data));
    check(pr_cdb_action(again) == action && pr_cdb_data_bytes(again) == pr_cdb_data_bytes(data));
    check(pr_cdb_scope(again) == 0);
    check(data[0] == PR_IN_OPCODE || pr_cdb_type(again) == pr_cdb_type(data));
}

/* A reply; the opcode and the allocation length that it answers follow it. */
static void reply(const uint8_t *data, size_t bytes)
{
    static PrReply what;
    uint8_t again[PR_WIRE_REPLY_BYTES];
    uint32_t allocation_bytes;
    ScsiSense found;

    if (bytes < PR_WIRE_REPLY_BYTES + 5)
        return;
    allocation_bytes = get_be32(data + PR_WIRE_REPLY_BYTES + 1);
    if (!pr_wire_reply_get(data, data[PR_WIRE_REPLY_BYTES], allocation_bytes, &what))
        return;
    check(what.data_bytes <= PR_DATA_BYTES && what.data_bytes <= allocation_bytes);
    check(!what.data_bytes || (data[PR_WIRE_REPLY_BYTES] == PR_IN_OPCODE && what.status == SCSI_GOOD));
    check(!pr_reply_sense(&what, &found) || what.status == SCSI_CHECK_CONDITION);
    pr_wire_reply_put(again, &what);
    check(!memcmp(again, data, what.status == SCSI_CHECK_CONDITION ? sizeof(again) : 8));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    keys(data, bytes);
    reservation(data, bytes);
    capabilities(data, bytes);
    full_status(data, bytes);
    lists(data, bytes);
    sense(data, bytes);
    transport_id(data, bytes);
    cdb(data, bytes);
    reply(data, bytes);
    return 0;
}
