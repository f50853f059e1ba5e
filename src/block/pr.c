/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reservation commands through the graph: down to the node whose driver carries them out.
 *
 * They concern the disk and not its data, and may wait for somebody else for a long time. So they go another
 * way than requests: on the main loop whatever the home of the nodes, not held by drain, and interruptible.
 */
#include "block/block-priv.h"

#include "base/mem.h"
#include "generated/commands.h"
#include "generated/trace.h"
#include "proto/pr-wire.h"

#include <errno.h>
#include <string.h>

/* ---- On the main loop ---- */

static int local_pr_execute(Edge *edge, const PrRequest *request, PrReply *ret_reply)
{
    Node *node = edge->node;
    int r;

    trace_edge_pr_execute(node->name);
    edge->pr_in_flight++;
    if (node->driver->pr_execute)
        r = node->driver->pr_execute(node, request, ret_reply);
    else if ((node->driver->flags & DRIVER_FILTER) && node->file)
        r = edge_pr_execute(node->file, request, ret_reply);
    else
        r = -ENOTSUP;
    if (--edge->pr_in_flight == 0)
        co_cond_broadcast(&edge->pr_done);
    return r;
}

void edge_wait_for_pr(Edge *edge)
{
    while (edge->pr_in_flight)
        co_cond_wait_shielded(&edge->pr_done, NULL);
}

/* ---- Crossing to it; lives on the stack of the caller, who waits until both sides have done with it ---- */

typedef struct PrCrossing {
    Edge *edge;
    const PrRequest *request;
    PrReply *reply;
    Loop *caller;
    Co *co; /* main loop: who carries it out, while it does */
    bool cancelled;
    int result;
    CoWait wait; /* caller's loop */
} PrCrossing;

static void arrived_back(void *arg)
{
    PrCrossing *c = arg;

    co_wake(&c->wait, c->result);
}

static void carry_out(void *arg)
{
    PrCrossing *c = arg;

    c->co = co_self();
    c->result = c->cancelled ? -ECANCELED : local_pr_execute(c->edge, c->request, c->reply);
    c->co = NULL;
    loop_post(c->caller, "pr-done", arrived_back, c);
}

static int cancel_crossing(void *arg)
{
    PrCrossing *c = arg;

    c->cancelled = true;
    if (c->co)
        co_cancel(c->co);
    return 0;
}

int edge_pr_execute(Edge *edge, const PrRequest *request, PrReply *ret_reply)
{
    PrCrossing c = {.edge = edge, .request = request, .reply = ret_reply, .caller = loop_current()};
    int r;

    if (c.caller == block_main_loop())
        return local_pr_execute(edge, request, ret_reply);
    loop_post(block_main_loop(), "pr-execute", carry_out, &c);
    r = co_wait(&c.wait);
    if (c.wait.done)
        return r;
    loop_call(block_main_loop(), cancel_crossing, &c);
    co_wait_shielded(&c.wait);
    return c.result == -ECANCELED ? r : c.result;
}

/* ---- The test command ---- */

static char *describe_user(void *opaque)
{
    return str_dup("x-granary-pr-execute");
}

static int hex_digit(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* Returns the number of bytes. */
static int read_hex(const char *name, const char *text, uint8_t *data, size_t least, size_t most, Error *err)
{
    size_t length = strlen(text), bytes = length / 2;

    if (length % 2 || bytes < least || bytes > most)
        return err_set(
            err, -EINVAL, "Parameter '%s' expects %zu to %zu bytes in hexadecimal", name, least, most);
    for (size_t i = 0; i < bytes; i++) {
        int high = hex_digit(text[2 * i]), low = hex_digit(text[2 * i + 1]);

        if (high < 0 || low < 0)
            return err_set(err, -EINVAL, "Parameter '%s' has something else than hexadecimal digits", name);
        data[i] = (uint8_t)(high << 4 | low);
    }
    return (int)bytes;
}

static char *write_hex(const uint8_t *data, size_t bytes)
{
    AUTO_STRBUF StrBuf text = {0};

    for (size_t i = 0; i < bytes; i++)
        strbuf_printf(&text, "%02x", data[i]);
    return strbuf_take(&text);
}

static int read_request(const XGranaryPrExecuteArg *arg, PrRequest *request, Error *err)
{
    int r = read_hex("cdb", arg->cdb, request->cdb, PR_CDB_BYTES, sizeof(request->cdb), err);

    if (r < 0)
        return r;
    request->data_bytes = pr_cdb_data_bytes(request->cdb);
    if (!arg->data)
        return 0;
    r = read_hex("data", arg->data, request->data, 0, sizeof(request->data), err);
    if (r < 0)
        return r;
    request->data_bytes = (uint32_t)r;
    return 0;
}

static XGranaryPrResult *result_of(const PrReply *reply)
{
    XGranaryPrResult *result = mem_new(XGranaryPrResult);

    result->status = reply->status;
    result->sense = write_hex(reply->sense, reply->status == SCSI_CHECK_CONDITION ? sizeof(reply->sense) : 0);
    result->data = write_hex(reply->data, reply->data_bytes);
    return result;
}

int qmp_x_granary_pr_execute(const XGranaryPrExecuteArg *arg, XGranaryPrResult **ret_result, Error *err)
{
    static const EdgeUser user = {.describe = describe_user};
    AUTO_FREE PrRequest *request = mem_new(PrRequest);
    AUTO_FREE PrReply *reply = mem_new(PrReply);
    Node *node = node_find(arg->node_name);
    Edge *edge;
    int r;

    if (!node)
        return err_set(err, -ENOENT, "Cannot find node '%s'", arg->node_name);
    r = read_request(arg, request, err);
    if (r == 0)
        r = edge_open(node, &user, NULL, 0, PERM_ALL, &edge, err);
    if (r < 0)
        return r;
    r = edge_pr_execute(edge, request, reply);
    edge_close(edge);
    if (r == -ENOTSUP)
        return err_set(err, r,
            "Node '%s' carries no reservation commands out: it, or the file node that it shows, needs the "
            "option 'pr-manager'",
            arg->node_name);
    if (r < 0)
        return err_set_errno(
            err, r, "Node '%s': the reservation command was not carried out", arg->node_name);
    *ret_result = result_of(reply);
    return 0;
}
