/* SPDX-License-Identifier: Apache-2.0 */
#include "pr-helper/worker.h"

#include "base/mem.h"
#include "pr-helper/options.h"
#include "pr-helper/pass.h"
#include "pr-helper/privileges.h"

#include <signal.h>
#include <string.h>
#include <unistd.h>

/* What the kernel and the multipath tools may need beyond the time-out of the command itself. */
enum { GRACE_SECONDS = 10 };

unsigned worker_deadline_seconds(const Options *options)
{
    return options->command_timeout + GRACE_SECONDS;
}

size_t worker_request_bytes(const PrRequest *request)
{
    return offsetof(PrRequest, data) + (request->cdb[0] == PR_OUT_OPCODE ? request->data_bytes : 0);
}

static void execute(const PrRequest *request, int take_device_fd, const Options *options, WorkerReply *reply)
{
    const PrDeviceOptions device_options = {
        .timeout_ms = options->command_timeout * 1000,
        .allow_dm_linear = options->allow_dm_linear,
    };

    /* The default action of SIGALRM ends a process that sleeps interruptibly or in a library; one that does
     * not wake up is left behind by the server. */
    alarm(worker_deadline_seconds(options));
    if (options->allow_dm_linear)
        privileges_raise_admin();
    pr_device_inspect(take_device_fd, &device_options, &reply->device);
    if (pr_device_needs_admin(&reply->device))
        privileges_raise_admin();
    reply->last = pr_device_needs_process(&reply->device, request) || pr_device_needs_admin(&reply->device);
    pr_device_execute(&reply->device, take_device_fd, request, &device_options, &reply->reply);
    /* Closing can take for ever, too (FUSE, NFS); this command pays for it, not the next. */
    close(take_device_fd);
    alarm(0);
}

void worker_run(int fd, const Options *options)
{
    PrRequest request;
    WorkerReply reply;

    signal(SIGALRM, SIG_DFL);
    for (;;) {
        AUTO_CLOSE int device_fd = -1;
        ssize_t n = pass_recv(fd, &request, sizeof(request), &device_fd);

        if (n < (ssize_t)offsetof(PrRequest, data) || (size_t)n != worker_request_bytes(&request) ||
            device_fd < 0)
            return;
        memset(&reply, 0, WORKER_REPLY_BYTES);
        execute(&request, TAKE_FD(device_fd), options, &reply);
        if (pass_send(fd, &reply, WORKER_REPLY_BYTES + reply.reply.data_bytes, -1) < 0 || reply.last)
            return;
    }
}
