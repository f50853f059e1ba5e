/* SPDX-License-Identifier: Apache-2.0 */
/* A command by SG_IO, with a block device or an sg node. */
#include "pr-device/pr-device-priv.h"

#include <string.h>
#include <sys/ioctl.h>
#include <time.h>

enum {
    AGAIN_SLEEP_MS = 20, /* between attempts while a map is suspended */
    AGAIN_ATTEMPTS = 50, /* one second of them */
};

/* SG_IO on a suspended device-mapper device fails at once with EAGAIN, before anything was sent; a suspension
 * for a table reload lasts milliseconds. Returns the errno or 0. */
static int submit(int fd, sg_io_hdr_t *hdr)
{
    const struct timespec pause = {.tv_nsec = AGAIN_SLEEP_MS * 1000000L};

    for (int attempt = 1;; attempt++) {
        if (ioctl(fd, SG_IO, hdr) == 0)
            return 0;
        if (errno != EAGAIN || attempt == AGAIN_ATTEMPTS)
            return errno;
        nanosleep(&pause, NULL);
    }
}

void pr_sg_execute(int fd, const PrRequest *request, unsigned timeout_ms, PrReply *ret_reply)
{
    bool in = request->cdb[0] != PR_OUT_OPCODE;
    uint32_t bytes = MIN(request->data_bytes, (uint32_t)PR_DATA_BYTES);
    uint8_t sense[SCSI_SENSE_BYTES] = {0};
    sg_io_hdr_t hdr = {
        .interface_id = 'S',
        .dxfer_direction = bytes == 0 ? SG_DXFER_NONE
                           : in       ? SG_DXFER_FROM_DEV
                                      : SG_DXFER_TO_DEV,
        .cmd_len = PR_CDB_BYTES,
        .cmdp = (uint8_t *)request->cdb,
        .dxfer_len = bytes,
        .dxferp = in ? ret_reply->data : (uint8_t *)request->data,
        .mx_sb_len = sizeof(sense),
        .sbp = sense,
        .timeout = timeout_ms,
    };

    /* The device may transfer less than it says. */
    memset(ret_reply->data, 0, bytes);
    pr_status_sg(submit(fd, &hdr), &hdr, ret_reply);
    ret_reply->data_bytes = 0;
    if (in && ret_reply->status == SCSI_GOOD) {
        int64_t left = MAX((int64_t)hdr.resid, (int64_t)0);

        ret_reply->data_bytes = left < bytes ? bytes - (uint32_t)left : 0;
    }
}
