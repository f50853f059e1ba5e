/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The object `pr-manager-kernel`: reservations without a helper, through the kernel's own calls, for disks
 * with one path.
 *
 * The calls block in a worker thread and cannot be interrupted. A cancelled command, or one whose deadline
 * has passed, is left behind with everything that it needs; the end of the program waits for it.
 */
#include "pr/pr-priv.h"

#include "base/limits.h"
#include "base/mem.h"
#include "generated/trace.h"
#include "generated/types.h"
#include "pr-device/pr-device.h"

#include <errno.h>
#include <fcntl.h>

#define DEADLINE_NS (60 * UINT64_C(1000000000))

typedef struct PrKernel {
    PrManager manager; /* first */
} PrKernel;

/* One command; belongs to the worker's coroutine once the caller has left it. */
typedef struct KernelCall {
    int fd; /* a duplicate */
    bool left;
    CoWait done;
    PrDevice device;
    PrRequest request;
    PrReply reply;
} KernelCall;

static unsigned calls_in_flight;

/* ---- On a worker thread ---- */

/* Why the kernel's calls are not right for this device, or NULL. */
static const char *refusal(const PrDevice *device)
{
    switch (device->kind) {
    case PR_DEVICE_SCSI:
    case PR_DEVICE_NVME:
        return NULL;
    case PR_DEVICE_REFUSED:
        return device->reason;
    case PR_DEVICE_SG:
        return "the kernel has no reservation calls for sg devices; use the block device or a helper";
    default:
        return "multipath maps need a helper, which tells multipathd";
    }
}

static int carry_out(void *arg)
{
    static const PrDeviceOptions options = {.timeout_ms = DEADLINE_NS / 1000000};
    KernelCall *call = arg;

    pr_device_inspect(call->fd, &options, &call->device);
    if (refusal(&call->device) || (call->request.cdb[0] == PR_OUT_OPCODE && !call->device.writable))
        pr_reply_check(&call->reply, SCSI_SENSE_INVALID_OPCODE);
    else
        pr_kernel_execute(call->fd, call->device.kind == PR_DEVICE_NVME, &call->request, &call->reply);
    return 0;
}

/* ---- On the main loop ---- */

static void call_free(KernelCall *call)
{
    fd_close(call->fd);
    free(call);
}

static void run_call(void *opaque)
{
    KernelCall *call = opaque;

    loop_work(carry_out, call);
    calls_in_flight--;
    if (call->left)
        call_free(call);
    else
        co_wake(&call->done, 0);
}

static int kernel_execute(PrManager *manager, int fd, const PrRequest *request, PrReply *ret_reply)
{
    CoDeadline deadline;
    KernelCall *call;
    int r, copy;

    if (calls_in_flight >= LIMIT_PR_KERNEL_CALLS) {
        pr_reply_status(ret_reply, SCSI_BUSY);
        return 0;
    }
    copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (copy < 0) {
        pr_reply_check(ret_reply, SCSI_SENSE_IO_TERMINATED);
        return 0;
    }
    call = mem_new(KernelCall);
    call->fd = copy;
    call->request = *request;
    calls_in_flight++;
    co_start(loop_group(loop_current()), "pr-kernel", run_call, call);
    co_deadline_begin(&deadline, DEADLINE_NS);
    r = co_wait(&call->done);
    co_deadline_end(&deadline);
    if (r < 0) {
        call->left = true;
        r = co_interrupted();
        if (r == 0)
            pr_reply_check(ret_reply, SCSI_SENSE_COMMUNICATION_FAILURE);
        return r;
    }
    if (refusal(&call->device))
        trace_pr_kernel_refused(pr_manager_id(manager), call->device.name, refusal(&call->device));
    *ret_reply = call->reply;
    call_free(call);
    return 0;
}

static int kernel_create(Object *object, const ObjectOptions *options, Error *err)
{
    PrKernel *kernel = object_state(object, &object_kind_pr_manager_kernel);

    pr_manager_init(&kernel->manager, object, kernel_execute);
    kernel->manager.ready = kernel->manager.connected = true;
    return 0;
}

const ObjectKind object_kind_pr_manager_kernel = {
    .name = "pr-manager-kernel",
    .state_size = sizeof(PrKernel),
    .create = kernel_create,
};
