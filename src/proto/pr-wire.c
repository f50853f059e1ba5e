/* SPDX-License-Identifier: Apache-2.0 */
/* The protocol between a reservation helper and its clients; see pr-wire.h. */
#include "proto/pr-wire.h"

#include "base/endian.h"

PrWireRequest pr_wire_request(const uint8_t cdb[SCSI_CDB_BYTES], uint32_t *ret_data_bytes)
{
    if (cdb[0] == PR_WIRE_CLEANUP_OPCODE) {
        *ret_data_bytes = 0;
        return PR_WIRE_READY;
    }
    if (cdb[0] != PR_IN_OPCODE && cdb[0] != PR_OUT_OPCODE)
        return PR_WIRE_BAD_OPCODE;
    *ret_data_bytes = pr_cdb_data_bytes(cdb);
    if (*ret_data_bytes > PR_DATA_BYTES)
        return PR_WIRE_TOO_LONG;
    return cdb[0] == PR_OUT_OPCODE && *ret_data_bytes ? PR_WIRE_LIST : PR_WIRE_READY;
}

void pr_wire_reply_put(uint8_t header[PR_WIRE_REPLY_BYTES], const PrReply *reply)
{
    put_be32(header, reply->status);
    put_be32(header + 4, reply->data_bytes);
    memcpy(header + 8, reply->sense, SCSI_SENSE_BYTES);
}

bool pr_wire_reply_get(
    const uint8_t header[PR_WIRE_REPLY_BYTES], uint8_t opcode, uint32_t allocation_bytes, PrReply *reply)
{
    uint32_t status = get_be32(header), bytes = get_be32(header + 4);

    if (status > UINT8_MAX)
        return false;
    if (bytes && (opcode != PR_IN_OPCODE || status != SCSI_GOOD))
        return false;
    if (bytes > MIN(allocation_bytes, (uint32_t)PR_DATA_BYTES))
        return false;
    pr_reply_status(reply, (ScsiStatus)status);
    reply->data_bytes = bytes;
    if (status == SCSI_CHECK_CONDITION)
        memcpy(reply->sense, header + 8, SCSI_SENSE_BYTES);
    return true;
}

void pr_reply_good(PrReply *reply)
{
    pr_reply_status(reply, SCSI_GOOD);
}

void pr_reply_status(PrReply *reply, ScsiStatus status)
{
    reply->status = status;
    reply->data_bytes = 0;
    memset(reply->sense, 0, sizeof(reply->sense));
}

void pr_reply_check(PrReply *reply, ScsiSense sense)
{
    reply->status = SCSI_CHECK_CONDITION;
    reply->data_bytes = 0;
    scsi_sense_put(reply->sense, sense);
}

bool pr_reply_sense(const PrReply *reply, ScsiSense *ret_sense)
{
    return reply->status == SCSI_CHECK_CONDITION &&
           scsi_sense_get(reply->sense, sizeof(reply->sense), ret_sense);
}
