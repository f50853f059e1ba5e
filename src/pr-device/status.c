/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the kernel says about a command - errno, host status, SCSI or NVMe status - as the reply that a SCSI
 * initiator understands. The tables of errno and host status are the reference's, because guests have met
 * them; where the device's own sense data came back, that counts.
 */
#include "pr-device/pr-device-priv.h"

#include <string.h>

/* include/scsi/scsi_status.h of the kernel. */
enum {
    DID_NO_CONNECT = 0x01,
    DID_BUS_BUSY = 0x02,
    DID_TIME_OUT = 0x03,
    DID_BAD_TARGET = 0x04,
    DID_ABORT = 0x05,
    DID_RESET = 0x08,
    DID_TRANSPORT_DISRUPTED = 0x0e,
    DID_TARGET_FAILURE = 0x10,
    DID_NEXUS_FAILURE = 0x11,
    DID_ALLOC_FAILURE = 0x12,
    DID_MEDIUM_ERROR = 0x13,
    DRIVER_TIMEOUT = 0x06,
    DRIVER_SENSE = 0x08,
    DRIVER_MASK = 0x0f,
    SAM_STATUS_MASK = 0x7e, /* the other bits of a status byte are vendor specific or reserved */
};

/* Status field of an NVMe completion (NVM Express base specification 2.0, section 3.3.3.2.1). */
enum {
    NVME_STATUS_MASK = 0x7ff, /* code and type, without "more" and "do not retry" */
    NVME_INVALID_OPCODE = 0x001,
    NVME_INVALID_FIELD = 0x002,
    NVME_INVALID_NAMESPACE = 0x00b,
    NVME_RESERVATION_CONFLICT = 0x083,
};

void pr_status_errno(int error, PrReply *reply)
{
    static const struct {
        int error;
        ScsiSense sense;
    } table[] = {
        {EINVAL, SCSI_SENSE_INVALID_FIELD_IN_CDB},
        {ENOMEDIUM, SCSI_SENSE_NO_MEDIUM},
        {ENODATA, SCSI_SENSE_READ_ERROR},
        {ENOMEM, SCSI_SENSE_TARGET_FAILURE},
        {EREMOTEIO, SCSI_SENSE_TARGET_FAILURE},
        {ENOSPC, SCSI_SENSE_SPACE_ALLOCATION},
    };

    if (error == EDOM)
        return pr_reply_status(reply, SCSI_TASK_SET_FULL);
    if (error == EBADE)
        return pr_reply_status(reply, SCSI_RESERVATION_CONFLICT);
    for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
        if (table[i].error == error)
            return pr_reply_check(reply, table[i].sense);
    }
    pr_reply_check(reply, SCSI_SENSE_IO_TERMINATED);
}

bool pr_status_host(unsigned host_status, PrReply *reply)
{
    static const struct {
        unsigned host_status;
        ScsiSense sense;
    } table[] = {
        {DID_NO_CONNECT, SCSI_SENSE_NO_LUN},
        {DID_TIME_OUT, SCSI_SENSE_COMMAND_TIMEOUT},
        {DID_BAD_TARGET, SCSI_SENSE_COMMUNICATION_FAILURE},
        {DID_ABORT, SCSI_SENSE_ABORTED_BY_TARGET},
        {DID_RESET, SCSI_SENSE_BUS_RESET},
        {DID_TRANSPORT_DISRUPTED, SCSI_SENSE_TRANSPORT_DISRUPTED},
        {DID_TARGET_FAILURE, SCSI_SENSE_TARGET_FAILURE},
        {DID_ALLOC_FAILURE, SCSI_SENSE_SPACE_ALLOCATION},
        {DID_MEDIUM_ERROR, SCSI_SENSE_READ_ERROR},
    };

    if (host_status == DID_BUS_BUSY) {
        pr_reply_status(reply, SCSI_BUSY);
        return true;
    }
    if (host_status == DID_NEXUS_FAILURE) {
        pr_reply_status(reply, SCSI_RESERVATION_CONFLICT);
        return true;
    }
    for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
        if (table[i].host_status == host_status) {
            pr_reply_check(reply, table[i].sense);
            return true;
        }
    }
    return false;
}

void pr_status_sg(int error, const sg_io_hdr_t *hdr, PrReply *reply)
{
    unsigned status = hdr->status & SAM_STATUS_MASK;
    unsigned driver_status = hdr->driver_status & DRIVER_MASK;

    if (error)
        return pr_status_errno(error, reply);
    if (status == SCSI_CHECK_CONDITION && hdr->sb_len_wr) {
        pr_reply_status(reply, SCSI_CHECK_CONDITION);
        memcpy(reply->sense, hdr->sbp, MIN((size_t)hdr->sb_len_wr, sizeof(reply->sense)));
        return;
    }
    if (pr_status_host(hdr->host_status, reply))
        return;
    if (driver_status == DRIVER_TIMEOUT)
        return pr_reply_status(reply, SCSI_BUSY);
    if (status && status != SCSI_CHECK_CONDITION)
        return pr_reply_status(reply, status);
    /* A failure of which nothing more is known must not look like success. */
    if (status || hdr->host_status || (driver_status && driver_status != DRIVER_SENSE))
        return pr_reply_check(reply, SCSI_SENSE_COMMUNICATION_FAILURE);
    pr_reply_good(reply);
}

static void failed_call(int error, PrReply *reply)
{
    switch (error) {
    case EPERM:
    case EACCES:
    case EOPNOTSUPP:
    case ENOTTY:
        return pr_reply_check(reply, SCSI_SENSE_INVALID_OPCODE);
    default:
        return pr_status_errno(error, reply);
    }
}

void pr_status_nvme(int result, int error, PrReply *reply)
{
    if (result < 0)
        return failed_call(error, reply);
    if (result == 0)
        return pr_reply_good(reply);
    switch (result & NVME_STATUS_MASK) {
    case NVME_RESERVATION_CONFLICT:
        return pr_reply_status(reply, SCSI_RESERVATION_CONFLICT);
    case NVME_INVALID_OPCODE:
    case NVME_INVALID_NAMESPACE:
        return pr_reply_check(reply, SCSI_SENSE_INVALID_OPCODE);
    case NVME_INVALID_FIELD:
        return pr_reply_check(reply, SCSI_SENSE_INVALID_FIELD_IN_CDB);
    default:
        return pr_reply_check(reply, SCSI_SENSE_COMMUNICATION_FAILURE);
    }
}

/*
 * Positive results are, up to about kernel 6.3, the raw status: of SCSI with the host status in bits 16..23
 * (and 0x100 of an obsolete message byte), or of NVMe. Later they are values that were chosen to look like
 * SCSI's: 0x18 conflict, 2 anything else, 0xe0000, 0xf0000 and 0x10000 path failures. CHECK CONDITION comes
 * without sense data: usually a unit attention, which the initiator clears by asking again.
 */
void pr_status_kernel(bool nvme, int result, int error, PrReply *reply)
{
    unsigned status = (unsigned)result & SAM_STATUS_MASK;

    if (result < 0)
        return failed_call(error, reply);
    if (result == 0)
        return pr_reply_good(reply);
    if (nvme && result != SCSI_RESERVATION_CONFLICT && result != SCSI_CHECK_CONDITION && result < 0x10000)
        return pr_status_nvme(result, 0, reply);
    if (pr_status_host((unsigned)result >> 16 & 0xff, reply))
        return;
    if (status && status != SCSI_CHECK_CONDITION)
        return pr_reply_status(reply, status);
    pr_reply_check(reply, SCSI_SENSE_COMMUNICATION_FAILURE);
}
