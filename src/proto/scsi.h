/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SCSI status and sense data (SAM-5 section 5.3, SPC-4 section 4.5) as pure functions over bytes.
 */
#pragma once

#include "base/macros.h"

/* SAM-5 section 5.3.1. */
typedef enum ScsiStatus {
    SCSI_GOOD = 0x00,
    SCSI_CHECK_CONDITION = 0x02,
    SCSI_CONDITION_MET = 0x04,
    SCSI_BUSY = 0x08,
    SCSI_RESERVATION_CONFLICT = 0x18,
    SCSI_TASK_SET_FULL = 0x28,
    SCSI_ACA_ACTIVE = 0x30,
    SCSI_TASK_ABORTED = 0x40,
} ScsiStatus;

/* Sense keys (SPC-4 section 4.5.6). */
enum {
    SCSI_KEY_NO_SENSE = 0x0,
    SCSI_KEY_RECOVERED_ERROR = 0x1,
    SCSI_KEY_NOT_READY = 0x2,
    SCSI_KEY_MEDIUM_ERROR = 0x3,
    SCSI_KEY_HARDWARE_ERROR = 0x4,
    SCSI_KEY_ILLEGAL_REQUEST = 0x5,
    SCSI_KEY_UNIT_ATTENTION = 0x6,
    SCSI_KEY_DATA_PROTECT = 0x7,
    SCSI_KEY_ABORTED_COMMAND = 0xb,
};

enum {
    SCSI_CDB_BYTES = 16,   /* longest CDB handled here */
    SCSI_SENSE_BYTES = 96, /* room for sense data; the standard's limit is 252, the helper's protocol has 96 */
};

/* Sense key, additional sense code and its qualifier. */
typedef struct ScsiSense {
    uint8_t key, asc, ascq;
} ScsiSense;

/* What this project answers by itself, by meaning (SPC-4 annex F). */
#define SCSI_SENSE_INVALID_OPCODE ((ScsiSense){SCSI_KEY_ILLEGAL_REQUEST, 0x20, 0x00})
#define SCSI_SENSE_INVALID_FIELD_IN_CDB ((ScsiSense){SCSI_KEY_ILLEGAL_REQUEST, 0x24, 0x00})
#define SCSI_SENSE_PARAMETER_LENGTH ((ScsiSense){SCSI_KEY_ILLEGAL_REQUEST, 0x1a, 0x00})
#define SCSI_SENSE_INVALID_PARAMETER ((ScsiSense){SCSI_KEY_ILLEGAL_REQUEST, 0x26, 0x00})
#define SCSI_SENSE_NOT_READY_INTERVENTION ((ScsiSense){SCSI_KEY_NOT_READY, 0x04, 0x03})
#define SCSI_SENSE_NO_MEDIUM ((ScsiSense){SCSI_KEY_NOT_READY, 0x3a, 0x00})
#define SCSI_SENSE_READ_ERROR ((ScsiSense){SCSI_KEY_MEDIUM_ERROR, 0x11, 0x00})
#define SCSI_SENSE_TARGET_FAILURE ((ScsiSense){SCSI_KEY_HARDWARE_ERROR, 0x44, 0x00})
#define SCSI_SENSE_SPACE_ALLOCATION ((ScsiSense){SCSI_KEY_DATA_PROTECT, 0x27, 0x07})
#define SCSI_SENSE_IO_TERMINATED ((ScsiSense){SCSI_KEY_ABORTED_COMMAND, 0x00, 0x06})
#define SCSI_SENSE_NO_LUN ((ScsiSense){SCSI_KEY_ABORTED_COMMAND, 0x05, 0x00})
#define SCSI_SENSE_COMMUNICATION_FAILURE ((ScsiSense){SCSI_KEY_ABORTED_COMMAND, 0x08, 0x00})
#define SCSI_SENSE_COMMAND_TIMEOUT ((ScsiSense){SCSI_KEY_ABORTED_COMMAND, 0x2e, 0x02})
#define SCSI_SENSE_ABORTED_BY_TARGET ((ScsiSense){SCSI_KEY_ABORTED_COMMAND, 0x2f, 0x02})
#define SCSI_SENSE_BUS_RESET ((ScsiSense){SCSI_KEY_UNIT_ATTENTION, 0x29, 0x00})
#define SCSI_SENSE_TRANSPORT_DISRUPTED ((ScsiSense){SCSI_KEY_ABORTED_COMMAND, 0x29, 0x07})
#define SCSI_SENSE_RESERVATIONS_RELEASED ((ScsiSense){SCSI_KEY_UNIT_ATTENTION, 0x2a, 0x04})

/* Writes fixed-format sense data (18 bytes, SPC-4 section 4.5.3) and zeroes behind it. */
void scsi_sense_put(uint8_t sense[SCSI_SENSE_BYTES], ScsiSense what);
/* Reads fixed or descriptor format; false when the bytes are neither, or too few. */
bool scsi_sense_get(const uint8_t *sense, size_t bytes, ScsiSense *ret_what);

/* "RESERVATION CONFLICT", ... or NULL if unknown. */
const char *scsi_status_name(unsigned status);
/* A text for the codes that reservations can meet, else the name of the sense key; never NULL. */
const char *scsi_sense_text(ScsiSense what);
