/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the operator gets to read: one line for each command that changes reservations, in the system's log,
 * or on standard error where there is none (a container); and complaints about clients.
 */
#include "base/log.h"
#include "base/mem.h"
#include "pr-helper/options.h"
#include "pr-helper/server-priv.h"
#include "pr-helper/trace.h"

#include <inttypes.h>
#include <sys/sysmacros.h>
#include <syslog.h>
#include <time.h>
#include <unistd.h>

/* Complaints made within a while; how many reasons there are for them is up to the clients. */
enum { COMPLAINTS = 100, COMPLAINTS_SECONDS = 10 };

static bool have_syslog;

void audit_open(void)
{
    /* Read the time zone now: the files cannot be opened later. */
    tzset();
    have_syslog = access("/dev/log", W_OK) == 0;
    if (have_syslog)
        openlog(log_program(), LOG_PID | LOG_NDELAY, LOG_DAEMON);
}

static void append_device(StrBuf *line, const PrDevice *device)
{
    if (device->name[0])
        strbuf_printf(line, " device=%s", device->name);
    else
        strbuf_printf(line, " device=%u:%u", major(device->number), minor(device->number));
}

static void append_list(StrBuf *line, const PrRequest *request)
{
    unsigned action = pr_cdb_action(request->cdb);
    const char *type = pr_type_name(pr_cdb_type(request->cdb));
    PrMoveList move;
    PrOutList list;

    if (action == PR_OUT_REGISTER_AND_MOVE) {
        if (pr_move_list_get(request->data, request->data_bytes, &move))
            strbuf_printf(line, " key=0x%" PRIx64 " service-key=0x%" PRIx64 " unregister=%s port=%u",
                move.key, move.service_key, move.unregister ? "yes" : "no", move.relative_port);
        return;
    }
    if (pr_out_list_get(request->data, request->data_bytes, &list))
        strbuf_printf(line, " key=0x%" PRIx64 " service-key=0x%" PRIx64, list.key, list.service_key);
    if (action == PR_OUT_RESERVE || action == PR_OUT_RELEASE || action == PR_OUT_PREEMPT ||
        action == PR_OUT_PREEMPT_AND_ABORT)
        strbuf_printf(line, " type=%s", type ? type : "invalid");
}

static void append_result(StrBuf *line, const PrReply *reply)
{
    const char *status = scsi_status_name(reply->status);
    ScsiSense sense;

    if (pr_reply_sense(reply, &sense))
        strbuf_printf(
            line, " result=\"%x/%02x/%02x %s\"", sense.key, sense.asc, sense.ascq, scsi_sense_text(sense));
    else if (status)
        strbuf_printf(line, " result=\"%s\"", status);
    else
        strbuf_printf(line, " result=0x%02x", reply->status);
}

static const char *action_name(const PrRequest *request)
{
    unsigned action = pr_cdb_action(request->cdb);
    const char *name;

    if (request->cdb[0] == PR_WIRE_CLEANUP_OPCODE)
        return "clean-up";
    name = request->cdb[0] == PR_IN_OPCODE ? pr_in_action_name(action) : pr_out_action_name(action);
    return name ? name : "unknown";
}

static bool may_complain(const Options *options)
{
    static time_t since;
    static unsigned made;
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    if (!made || now.tv_sec - since >= COMPLAINTS_SECONDS) {
        if (made > COMPLAINTS && !options->verbose)
            log_warn("%u more complaints about clients were left out", made - COMPLAINTS);
        since = now.tv_sec;
        made = 0;
    }
    return !options->quiet && (made++ < COMPLAINTS || options->verbose);
}

void audit_command(const Options *options, const Exchange *exchange, const PrDevice *device)
{
    const PrRequest *request = &exchange->request;
    bool change = request->cdb[0] != PR_IN_OPCODE;
    AUTO_STRBUF StrBuf line = {0};

    trace_command_done(
        exchange->peer.pid, request->cdb[0], pr_cdb_action(request->cdb), exchange->reply.status);
    if (device->kind == PR_DEVICE_REFUSED && device->reason[0]) {
        if (may_complain(options))
            log_warn("refused %s of process %d (user %u): %s", action_name(request), (int)exchange->peer.pid,
                exchange->peer.uid, device->reason);
        change = false;
    }
    if (!change && !options->verbose)
        return;
    strbuf_printf(&line, "%s", action_name(request));
    append_device(&line, device);
    if (request->cdb[0] == PR_OUT_OPCODE)
        append_list(&line, request);
    append_result(&line, &exchange->reply);
    strbuf_printf(&line, " pid=%d uid=%u", (int)exchange->peer.pid, exchange->peer.uid);
    if (have_syslog && change)
        syslog(LOG_NOTICE, "%s", line.text);
    if (!have_syslog || (options->verbose && !options->daemonize) || !change)
        log_info("%s", line.text);
}

void audit_complaint(const Options *options, const struct ucred *peer, const char *fmt, ...)
{
    va_list args;

    if (!may_complain(options))
        return;
    va_start(args, fmt);
    AUTO_FREE char *text = str_vprintf(fmt, args);
    va_end(args);
    if (options->verbose)
        log_warn("process %d (user %u): %s", (int)peer->pid, peer->uid, text);
    else
        log_error("%s", text);
}
