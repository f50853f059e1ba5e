/* SPDX-License-Identifier: Apache-2.0 */
/* Which way a command takes, and what is checked before it takes one. */
#include "pr-device/pr-device-priv.h"

#include <string.h>

static bool changes_something(const PrRequest *request)
{
    return request->cdb[0] != PR_IN_OPCODE;
}

static bool known_opcode(const PrRequest *request)
{
    return request->cdb[0] == PR_IN_OPCODE || request->cdb[0] == PR_OUT_OPCODE ||
           request->cdb[0] == PR_WIRE_CLEANUP_OPCODE;
}

void pr_device_execute(const PrDevice *device, int fd, const PrRequest *request,
    const PrDeviceOptions *options, PrReply *ret_reply)
{
    memset(ret_reply, 0, sizeof(*ret_reply));
    if (device->kind == PR_DEVICE_REFUSED || !known_opcode(request) || request->data_bytes > PR_DATA_BYTES ||
        (changes_something(request) && !device->writable))
        return pr_reply_check(ret_reply, SCSI_SENSE_INVALID_OPCODE);
    /* Only multipathd keeps a key of its own that could be put back. */
    if (request->cdb[0] == PR_WIRE_CLEANUP_OPCODE && device->kind != PR_DEVICE_MULTIPATH)
        return pr_reply_good(ret_reply);
    if (device->kind == PR_DEVICE_NVME)
        return pr_kernel_execute(fd, true, request, ret_reply);
    if (device->kind == PR_DEVICE_MULTIPATH && changes_something(request))
        return pr_multipath_execute(device, fd, request, options->timeout_ms, ret_reply);
    pr_sg_execute(fd, request, options->timeout_ms, ret_reply);
}

bool pr_device_needs_admin(const PrDevice *device)
{
    return device->kind == PR_DEVICE_MULTIPATH || device->kind == PR_DEVICE_NVME;
}

bool pr_device_needs_process(const PrDevice *device, const PrRequest *request)
{
    return device->kind == PR_DEVICE_MULTIPATH && changes_something(request);
}

static bool action_has_type(unsigned action)
{
    return action == PR_OUT_RESERVE || action == PR_OUT_RELEASE || action == PR_OUT_PREEMPT ||
           action == PR_OUT_PREEMPT_AND_ABORT;
}

bool pr_device_out_list(const PrRequest *request, PrOutList *ret_list, PrReply *reply)
{
    unsigned action = pr_cdb_action(request->cdb);
    PrOutList list;

    if (action > PR_OUT_REGISTER_AND_IGNORE ||
        (action_has_type(action) &&
            (pr_cdb_scope(request->cdb) || !pr_type_name(pr_cdb_type(request->cdb))))) {
        pr_reply_check(reply, SCSI_SENSE_INVALID_FIELD_IN_CDB);
        return false;
    }
    if (!pr_out_list_get(request->data, MIN(request->data_bytes, (uint32_t)PR_DATA_BYTES), &list) ||
        (request->data_bytes != PR_OUT_LIST_BYTES && !list.spec_i_pt)) {
        pr_reply_check(reply, SCSI_SENSE_PARAMETER_LENGTH);
        return false;
    }
    if (list.spec_i_pt) {
        pr_reply_check(reply, SCSI_SENSE_INVALID_PARAMETER);
        return false;
    }
    *ret_list = list;
    return true;
}

void pr_device_in_data(const PrRequest *request, const uint8_t *data, size_t bytes, PrReply *reply)
{
    size_t room = MIN(request->data_bytes, (uint32_t)PR_DATA_BYTES);
    size_t kept = MIN(bytes, room);

    pr_reply_good(reply);
    memcpy(reply->data, data, kept);
    reply->data_bytes = (uint32_t)kept;
}
