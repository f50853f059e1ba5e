/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libgranary-pr: a command on its way through the conversation (proto/pr-wire.h), and the functions of
 * granary-pr.h.
 *
 * Every stage of a command has a step that does what can be done without waiting. dispatch runs steps until
 * one has to wait or the command is over; the blocking functions are dispatch and poll.
 *
 * Invariant: a command is repeated only as long as its CDB has not gone out completely, and only if the
 * connection was there before the command; otherwise the helper has just refused it.
 */
#include "pr-client/pr-client-priv.h"

#include "base/endian.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define NS_PER_MS UINT64_C(1000000)
/* While the helper's listening queue is full: the pause doubles from 1 ms up to 2^8. Nothing tells when there
 * is room again. */
#define RETRY_SHIFT_MAX 8

_Static_assert(GRANARY_PR_CDB_BYTES == SCSI_CDB_BYTES, "CDB");
_Static_assert(GRANARY_PR_SENSE_BYTES == SCSI_SENSE_BYTES, "sense");
_Static_assert(GRANARY_PR_DATA_BYTES == PR_DATA_BYTES, "data");
_Static_assert(GRANARY_PR_FEATURE_CLEANUP == PR_FEATURE_CLEANUP, "feature");

/* ---- Steps: 0 to go on, epoll events to wait for (EPOLLERR: the clock only), -errno ---- */

static void enter(granary_pr *pr, Stage stage)
{
    pr->stage = stage;
    pr->done = 0;
}

static int step_connect(granary_pr *pr)
{
    int r = connection_open(pr);

    if (r == -EAGAIN) {
        pr->retry_ns = connection_now_ns() + (NS_PER_MS << pr->retries);
        if (pr->retries < RETRY_SHIFT_MAX)
            pr->retries++;
        return EPOLLERR;
    }
    pr->retry_ns = 0;
    if (r == 0)
        enter(pr, STAGE_HELLO);
    return r;
}

static int step_hello(granary_pr *pr)
{
    int r = connection_receive(pr, pr->buffer, PR_WIRE_FEATURES_BYTES);

    if (r != 0)
        return r;
    pr->features = get_be32(pr->buffer);
    /* Only what was offered: a helper drops who asks for more. */
    put_be32(pr->buffer, pr->features & PR_FEATURE_CLEANUP);
    enter(pr, STAGE_ANSWER);
    return 0;
}

static int step_answer(granary_pr *pr)
{
    int r = connection_send(pr, pr->buffer, PR_WIRE_FEATURES_BYTES, -1);

    if (r != 0)
        return r;
    pr->connected = true;
    enter(pr, STAGE_READY);
    return 0;
}

static int step_ready(granary_pr *pr)
{
    /* What comes before the question is no answer to it. */
    int r = connection_look(pr);

    if (r < 0)
        return r;
    if (pr->want == WANT_CLEANUP && !(pr->features & PR_FEATURE_CLEANUP))
        return -EOPNOTSUPP;
    enter(pr, pr->want == WANT_CONNECTION ? STAGE_IDLE : STAGE_CDB);
    return 0;
}

static int step_cdb(granary_pr *pr)
{
    int r = connection_send(pr, pr->cdb, sizeof(pr->cdb), pr->disk_fd);

    if (r != 0)
        return r;
    pr->sent = true;
    enter(pr, pr->cdb[0] == PR_OUT_OPCODE ? STAGE_LIST : STAGE_HEADER);
    return 0;
}

static int step_list(granary_pr *pr)
{
    int r = connection_send(pr, pr->data, pr->data_bytes, -1);

    if (r == 0)
        enter(pr, STAGE_HEADER);
    return r;
}

static int step_header(granary_pr *pr)
{
    PrReply reply;
    int r = connection_receive(pr, pr->buffer, PR_WIRE_REPLY_BYTES);

    if (r != 0)
        return r;
    if (!pr_wire_reply_get(pr->buffer, pr->cdb[0], pr->data_bytes, &reply))
        return -EPROTO;
    pr->answer.status = (uint8_t)reply.status;
    pr->answer.data_bytes = reply.data_bytes;
    memcpy(pr->answer.sense, reply.sense, sizeof(pr->answer.sense));
    enter(pr, STAGE_PAYLOAD);
    return 0;
}

static int step_payload(granary_pr *pr)
{
    int r = connection_receive(pr, pr->data, pr->answer.data_bytes);

    if (r != 0)
        return r;
    *pr->result = pr->answer;
    enter(pr, STAGE_IDLE);
    return 0;
}

static int (*const steps[])(granary_pr *pr) = {
    [STAGE_CONNECT] = step_connect,
    [STAGE_HELLO] = step_hello,
    [STAGE_ANSWER] = step_answer,
    [STAGE_READY] = step_ready,
    [STAGE_CDB] = step_cdb,
    [STAGE_LIST] = step_list,
    [STAGE_HEADER] = step_header,
    [STAGE_PAYLOAD] = step_payload,
};

/* ---- The command ---- */

/* Ends the command; r is its outcome. */
static int finish(granary_pr *pr, int r)
{
    /* The connection is good for another command after success, and if this one has not touched it. */
    bool untouched = pr->stage == STAGE_READY || (pr->stage == STAGE_CDB && pr->done == 0);

    if (r < 0 && (!untouched || r == connection_lost(pr) || r == -EPROTO))
        connection_close(pr);
    enter(pr, STAGE_IDLE);
    atomic_store(&pr->in_flight, false);
    connection_wait_for(pr, EPOLLIN, 0);
    return r;
}

/* Whether the connection was found dead (or out of step) before the command has gone out over it. */
static bool may_start_again(const granary_pr *pr, int r)
{
    return pr->reused && !pr->sent && (r == connection_lost(pr) || r == -EPROTO);
}

static void start_again(granary_pr *pr)
{
    connection_close(pr);
    pr->reused = false;
    enter(pr, STAGE_CONNECT);
}

/* Runs steps until the command is over (0), has failed, or has to wait for something. */
static int advance(granary_pr *pr)
{
    while (pr->stage != STAGE_IDLE) {
        int r = steps[pr->stage](pr);

        if (r > 0)
            return r;
        if (r < 0 && !may_start_again(pr, r))
            return r;
        if (r < 0)
            start_again(pr);
    }
    return 0;
}

static uint64_t earlier(uint64_t a_ns, uint64_t b_ns)
{
    return a_ns && b_ns ? MIN(a_ns, b_ns) : a_ns + b_ns;
}

int granary_pr_dispatch(granary_pr *pr)
{
    int r;

    if (pr->stage == STAGE_IDLE)
        return granary_pr_is_connected(pr) ? 0 : -ENOTCONN;
    if (connection_take_cancel(pr))
        return finish(pr, -ECANCELED);
    r = advance(pr);
    if (r <= 0)
        return finish(pr, r);
    if (pr->deadline_ns && connection_now_ns() >= pr->deadline_ns)
        return finish(pr, -ETIMEDOUT);
    connection_wait_for(pr, (uint32_t)r, earlier(pr->deadline_ns, pr->retry_ns));
    return GRANARY_PR_AGAIN;
}

static int start(granary_pr *pr, Want want, int disk_fd, int timeout_ms, granary_pr_result *result)
{
    if (pr->owner != getpid())
        return -EINVAL;
    if (pr->stage != STAGE_IDLE)
        return -EBUSY;
    if (want != WANT_CONNECTION && disk_fd < 0)
        return -EBADF;
    connection_take_cancel(pr); /* meant for an earlier command */
    pr->want = want;
    pr->disk_fd = disk_fd;
    pr->result = result;
    pr->sent = false;
    pr->reused = pr->connected;
    pr->retries = 0;
    pr->retry_ns = 0;
    pr->deadline_ns = timeout_ms < 0 ? 0 : connection_now_ns() + (uint64_t)timeout_ms * NS_PER_MS;
    enter(pr, pr->connected ? STAGE_READY : STAGE_CONNECT);
    atomic_store(&pr->in_flight, true);
    return 0;
}

/* Dispatches until the command is over. */
static int wait_for_end(granary_pr *pr)
{
    for (;;) {
        int r = granary_pr_dispatch(pr);
        struct pollfd poll_fd = {.fd = pr->poll_fd, .events = POLLIN};

        if (r != GRANARY_PR_AGAIN)
            return r;
        poll(&poll_fd, 1, -1); /* interrupted by a signal: no harm in looking */
    }
}

/* ---- The functions of granary-pr.h ---- */

granary_pr *granary_pr_new(const char *path)
{
    size_t length = path ? strlen(path) : 0;
    granary_pr *pr;
    int r;

    if (length == 0 || length >= sizeof(pr->address.sun_path)) {
        errno = length ? ENAMETOOLONG : EINVAL;
        return NULL;
    }
    pr = calloc(1, sizeof(*pr));
    if (!pr)
        return NULL;
    pr->address.sun_family = AF_UNIX;
    memcpy(pr->address.sun_path, path, length);
    pr->address_bytes = sizeof(pr->address);
    if (path[0] == '@') { /* an abstract name: no file, and every byte of it counts */
        pr->address.sun_path[0] = '\0';
        pr->address_bytes = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length);
    }
    r = connection_init(pr);
    if (r < 0) {
        granary_pr_free(pr);
        errno = -r;
        return NULL;
    }
    return pr;
}

void granary_pr_free(granary_pr *pr)
{
    if (!pr)
        return;
    connection_done(pr);
    free(pr);
}

int granary_pr_start(granary_pr *pr, int disk_fd, const uint8_t *cdb, size_t cdb_bytes, void *data,
    size_t data_bytes, int timeout_ms, granary_pr_result *ret_result)
{
    uint8_t full[SCSI_CDB_BYTES] = {0};
    uint32_t wanted_bytes;
    int r;

    if (!cdb)
        return start(pr, WANT_CONNECTION, -1, timeout_ms, NULL);
    if (cdb_bytes < PR_CDB_BYTES || cdb_bytes > sizeof(full) ||
        (cdb[0] != PR_IN_OPCODE && cdb[0] != PR_OUT_OPCODE))
        return -EINVAL;
    memcpy(full, cdb, cdb_bytes);
    wanted_bytes = pr_cdb_data_bytes(full);
    if (wanted_bytes > data_bytes || wanted_bytes > PR_DATA_BYTES || (wanted_bytes && !data))
        return -EINVAL;
    r = start(pr, WANT_COMMAND, disk_fd, timeout_ms, ret_result);
    if (r < 0)
        return r;
    memcpy(pr->cdb, full, sizeof(pr->cdb));
    pr->data = data;
    pr->data_bytes = wanted_bytes;
    return 0;
}

int granary_pr_start_cleanup(granary_pr *pr, int disk_fd, int timeout_ms, granary_pr_result *ret_result)
{
    int r = start(pr, WANT_CLEANUP, disk_fd, timeout_ms, ret_result);

    if (r < 0)
        return r;
    memset(pr->cdb, 0, sizeof(pr->cdb));
    pr->cdb[0] = PR_WIRE_CLEANUP_OPCODE;
    pr->data = NULL;
    pr->data_bytes = 0;
    return 0;
}

int granary_pr_execute(granary_pr *pr, int disk_fd, const uint8_t *cdb, size_t cdb_bytes, void *data,
    size_t data_bytes, int timeout_ms, granary_pr_result *ret_result)
{
    int r = cdb ? granary_pr_start(pr, disk_fd, cdb, cdb_bytes, data, data_bytes, timeout_ms, ret_result)
                : -EINVAL;

    return r < 0 ? r : wait_for_end(pr);
}

int granary_pr_cleanup(granary_pr *pr, int disk_fd, int timeout_ms, granary_pr_result *ret_result)
{
    int r = granary_pr_start_cleanup(pr, disk_fd, timeout_ms, ret_result);

    return r < 0 ? r : wait_for_end(pr);
}

int granary_pr_connect(granary_pr *pr, int timeout_ms)
{
    int r = start(pr, WANT_CONNECTION, -1, timeout_ms, NULL);

    return r < 0 ? r : wait_for_end(pr);
}

int granary_pr_is_connected(granary_pr *pr)
{
    if (pr->stage == STAGE_IDLE && pr->owner == getpid()) {
        connection_take_cancel(pr); /* came after the command: granary_pr_fd() must not stay readable */
        if (pr->connected && connection_look(pr) < 0)
            connection_close(pr);
    }
    return pr->connected;
}

void granary_pr_disconnect(granary_pr *pr)
{
    connection_close(pr);
    if (pr->owner == getpid())
        (void)finish(pr, 0);
}

uint32_t granary_pr_features(const granary_pr *pr)
{
    return pr->connected ? pr->features : 0;
}

int granary_pr_was_sent(const granary_pr *pr)
{
    return pr->sent;
}

void granary_pr_cancel(granary_pr *pr)
{
    int saved = errno;

    if (atomic_load(&pr->in_flight) && pr->owner == getpid())
        eventfd_write(pr->cancel_fd, 1);
    errno = saved;
}

int granary_pr_fd(const granary_pr *pr)
{
    return pr->poll_fd;
}
