/* SPDX-License-Identifier: Apache-2.0 */
/* SCSI status and sense data; see scsi.h. */
#include "proto/scsi.h"

#include <string.h>

enum { /* response codes, SPC-4 section 4.5.1: current and deferred */
    FIXED_CURRENT = 0x70,
    FIXED_DEFERRED = 0x71,
    DESCRIPTOR_CURRENT = 0x72,
    DESCRIPTOR_DEFERRED = 0x73,
    FIXED_BYTES = 18,
};

void scsi_sense_put(uint8_t sense[SCSI_SENSE_BYTES], ScsiSense what)
{
    memset(sense, 0, SCSI_SENSE_BYTES);
    sense[0] = FIXED_CURRENT;
    sense[2] = what.key;
    sense[7] = FIXED_BYTES - 8; /* additional sense length */
    sense[12] = what.asc;
    sense[13] = what.ascq;
}

bool scsi_sense_get(const uint8_t *sense, size_t bytes, ScsiSense *ret_what)
{
    if (!bytes)
        return false;
    switch (sense[0] & 0x7f) {
    case FIXED_CURRENT:
    case FIXED_DEFERRED:
        if (bytes < 14)
            return false;
        *ret_what = (ScsiSense){sense[2] & 0xf, sense[12], sense[13]};
        return true;
    case DESCRIPTOR_CURRENT:
    case DESCRIPTOR_DEFERRED:
        if (bytes < 4)
            return false;
        *ret_what = (ScsiSense){sense[1] & 0xf, sense[2], sense[3]};
        return true;
    default:
        return false;
    }
}

const char *scsi_status_name(unsigned status)
{
    switch (status) {
    case SCSI_GOOD:
        return "GOOD";
    case SCSI_CHECK_CONDITION:
        return "CHECK CONDITION";
    case SCSI_CONDITION_MET:
        return "CONDITION MET";
    case SCSI_BUSY:
        return "BUSY";
    case SCSI_RESERVATION_CONFLICT:
        return "RESERVATION CONFLICT";
    case SCSI_TASK_SET_FULL:
        return "TASK SET FULL";
    case SCSI_ACA_ACTIVE:
        return "ACA ACTIVE";
    case SCSI_TASK_ABORTED:
        return "TASK ABORTED";
    default:
        return NULL;
    }
}

#define CODE(asc, ascq) ((asc) << 8 | (ascq))

static const struct {
    uint16_t code;
    const char *text;
} texts[] = {
    {CODE(0x00, 0x06), "input or output process terminated"},
    {CODE(0x04, 0x03), "not ready, needs attention"},
    {CODE(0x04, 0x0a), "not ready, path is changing its state"},
    {CODE(0x04, 0x0b), "not ready, path is on standby"},
    {CODE(0x04, 0x0c), "not ready, path is unavailable"},
    {CODE(0x05, 0x00), "unit does not answer to selection"},
    {CODE(0x08, 0x00), "communication failed"},
    {CODE(0x11, 0x00), "unrecovered read error"},
    {CODE(0x1a, 0x00), "wrong length of the parameter list"},
    {CODE(0x20, 0x00), "command not supported here"},
    {CODE(0x24, 0x00), "invalid field in the command"},
    {CODE(0x25, 0x00), "no such unit"},
    {CODE(0x26, 0x00), "invalid field in the parameter list"},
    {CODE(0x26, 0x04), "release of a reservation that is not held like this"},
    {CODE(0x27, 0x07), "out of space"},
    {CODE(0x29, 0x00), "power on or reset"},
    {CODE(0x29, 0x01), "power on"},
    {CODE(0x29, 0x02), "bus reset"},
    {CODE(0x29, 0x03), "device reset"},
    {CODE(0x29, 0x04), "device internal reset"},
    {CODE(0x29, 0x07), "connection to the target was lost"},
    {CODE(0x2a, 0x03), "reservations were preempted"},
    {CODE(0x2a, 0x04), "reservations were released"},
    {CODE(0x2a, 0x05), "registrations were preempted"},
    {CODE(0x2a, 0x06), "path has changed its state"},
    {CODE(0x2e, 0x02), "time-out during processing"},
    {CODE(0x2f, 0x00), "commands were aborted by another initiator"},
    {CODE(0x2f, 0x02), "aborted by the target"},
    {CODE(0x3a, 0x00), "no medium"},
    {CODE(0x3f, 0x0e), "list of units has changed"},
    {CODE(0x44, 0x00), "internal failure of the target"},
    {CODE(0x55, 0x04), "no room for another registration"},
};

static const char *const key_names[16] = {
    "no sense",
    "recovered error",
    "not ready",
    "medium error",
    "hardware error",
    "illegal request",
    "unit attention",
    "data protect",
    "blank check",
    "vendor specific",
    "copy aborted",
    "aborted command",
    "reserved",
    "volume overflow",
    "miscompare",
    "completed",
};

const char *scsi_sense_text(ScsiSense what)
{
    for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
        if (texts[i].code == CODE(what.asc, what.ascq))
            return texts[i].text;
    }
    return key_names[what.key & 0xf];
}
