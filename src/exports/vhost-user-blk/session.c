/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One connection: requests are received, carried out and answered one after the other. Whatever is wrong with
 * one ends the connection, with one line in the log; the export stays.
 *
 * A session ends in one way only, at the end of vhost_user_session_run(): when its socket has (shut down by
 * the client, or by us after a ring has failed) or its coroutine was cancelled.
 */
#include "exports/vhost-user-blk/vhost-user-priv.h"

#include "base/log.h"
#include "base/mem.h"
#include "generated/trace.h"
#include "net/socket.h"

#include <string.h>
#include <sys/socket.h>

static VhostUserHandler *const handlers[] = {
    [VHOST_USER_GET_FEATURES] = vhost_user_get_features,
    [VHOST_USER_SET_FEATURES] = vhost_user_set_features,
    [VHOST_USER_SET_OWNER] = vhost_user_set_owner,
    [VHOST_USER_RESET_OWNER] = vhost_user_reset_owner,
    [VHOST_USER_SET_MEM_TABLE] = vhost_user_set_mem_table,
    [VHOST_USER_SET_LOG_BASE] = vhost_user_set_log_base,
    [VHOST_USER_SET_LOG_FD] = vhost_user_set_log_fd,
    [VHOST_USER_SET_VRING_NUM] = vhost_user_set_vring_num,
    [VHOST_USER_SET_VRING_ADDR] = vhost_user_set_vring_addr,
    [VHOST_USER_SET_VRING_BASE] = vhost_user_set_vring_base,
    [VHOST_USER_GET_VRING_BASE] = vhost_user_get_vring_base,
    [VHOST_USER_SET_VRING_KICK] = vhost_user_set_vring_kick,
    [VHOST_USER_SET_VRING_CALL] = vhost_user_set_vring_call,
    [VHOST_USER_SET_VRING_ERR] = vhost_user_set_vring_err,
    [VHOST_USER_GET_PROTOCOL_FEATURES] = vhost_user_get_protocol_features,
    [VHOST_USER_SET_PROTOCOL_FEATURES] = vhost_user_set_protocol_features,
    [VHOST_USER_GET_QUEUE_NUM] = vhost_user_get_queue_num,
    [VHOST_USER_SET_VRING_ENABLE] = vhost_user_set_vring_enable,
    [VHOST_USER_SET_BACKEND_REQ_FD] = vhost_user_set_backend_req_fd,
    [VHOST_USER_GET_CONFIG] = vhost_user_get_config,
    [VHOST_USER_SET_CONFIG] = vhost_user_set_config,
    [VHOST_USER_POSTCOPY_ADVISE] = vhost_user_postcopy_advise,
    [VHOST_USER_POSTCOPY_LISTEN] = vhost_user_postcopy_listen,
    [VHOST_USER_POSTCOPY_END] = vhost_user_postcopy_end,
    [VHOST_USER_GET_INFLIGHT_FD] = vhost_user_get_inflight_fd,
    [VHOST_USER_SET_INFLIGHT_FD] = vhost_user_set_inflight_fd,
    [VHOST_USER_GET_MAX_MEM_SLOTS] = vhost_user_get_max_mem_slots,
    [VHOST_USER_ADD_MEM_REG] = vhost_user_add_mem_reg,
    [VHOST_USER_REM_MEM_REG] = vhost_user_rem_mem_reg,
    [VHOST_USER_SET_STATUS] = vhost_user_set_status,
    [VHOST_USER_GET_STATUS] = vhost_user_get_status,
};

static void log_violation(const VhostUserSession *session, const char *text)
{
    log_error("vhost-user-blk export '%s': %s; connection closed", session->owner->export->id, text);
}

static void log_request(const VhostUserSession *session, uint32_t request, const char *text)
{
    AUTO_FREE char *line = str_printf("%s: %s", vhost_user_request_name(request), text);

    log_violation(session, line);
}

/* ---- Receiving. These return 0, or -errno when the connection is to be closed. ---- */

static int receive(const VhostUserSession *session, uint8_t *data, size_t bytes)
{
    while (bytes) {
        ssize_t n = io_recv(session->fd, data, bytes);

        if (n <= 0)
            return n < 0 ? (int)n : -ECONNRESET;
        data += n;
        bytes -= (size_t)n;
    }
    return 0;
}

/* Descriptors come with the first byte; the kernel drops those that come with others. */
static int receive_header(
    const VhostUserSession *session, uint8_t data[VHOST_USER_HEADER_BYTES], VhostUserIncoming *in)
{
    ssize_t n = socket_recv_fds(
        session->fd, data, VHOST_USER_HEADER_BYTES, in->fds, VHOST_USER_TABLE_REGIONS, &in->fd_count);

    if (n == -EMSGSIZE)
        log_violation(session, "more descriptors came with a request than any has");
    if (n <= 0)
        return n < 0 ? (int)n : -ECONNRESET;
    return receive(session, data + n, VHOST_USER_HEADER_BYTES - (size_t)n);
}

static int receive_request(const VhostUserSession *session, VhostUserIncoming *in)
{
    uint8_t data[VHOST_USER_HEADER_BYTES], payload[VHOST_USER_PAYLOAD_BYTES];
    char text[VHOST_USER_TEXT_BYTES];
    VhostUserHeader header = {0};
    int r = receive_header(session, data, in);

    if (r < 0)
        return r;
    r = vhost_user_header_decode(data, &header, text);
    if (r == 0) {
        r = receive(session, payload, header.bytes);
        if (r < 0)
            return r;
        r = vhost_user_payload_decode(&header, payload, in->fd_count, &in->message, text);
    }
    if (r < 0)
        log_request(session, vhost_user_header_request(data), text);
    return r;
}

/* ---- Carrying out ---- */

static int send_reply(const VhostUserSession *session, VhostUserReply *reply)
{
    int r = socket_send_fds(session->fd, reply->data, reply->bytes, &reply->fd, reply->fd >= 0);

    reply->fd = fd_close(reply->fd);
    return r;
}

/* The client's own request to say how it went, which an answer of another kind makes up for. */
static void acknowledge(const VhostUserMessage *message, VhostUserReply *reply, bool good)
{
    if (!message->need_reply || (good && reply->bytes))
        return;
    reply->bytes = vhost_user_encode_number(reply->data, message->request, !good);
    reply->fd = fd_close(reply->fd);
}

static int carry_out(VhostUserSession *session, VhostUserIncoming *in)
{
    AUTO_ERROR Error err = ERROR_INIT;
    const char *name = vhost_user_request_name(in->message.request);
    VhostUserReply reply = {.fd = -1};
    int r;

    trace_vhost_user_request(session->owner->export->id, name, in->message.bytes, in->fd_count);
    r = co_mutex_lock(&session->owner->lock);
    if (r < 0)
        return r;
    r = handlers[in->message.request](session, in, &reply, &err);
    co_mutex_unlock(&session->owner->lock);
    if (r < 0)
        log_request(session, in->message.request, err.message);
    acknowledge(&in->message, &reply, r >= 0);
    if (reply.bytes) {
        int sent = send_reply(session, &reply);

        r = r < 0 ? r : sent;
    }
    return r;
}

static int serve_request(VhostUserSession *session)
{
    VhostUserIncoming in = {.fd_count = 0};
    int r = receive_request(session, &in);

    if (r == 0)
        r = carry_out(session, &in);
    for (unsigned i = 0; i < in.fd_count; i++)
        fd_close(in.fds[i]);
    return r;
}

/* ---- Life ---- */

static VhostUserSession *session_new(VhostUserExport *owner, int take_fd)
{
    VhostUserSession *session = mem_new(VhostUserSession);

    session->owner = owner;
    session->fd = take_fd;
    session->log_fd = -1;
    session->memory = virtio_memory_new();
    virtio_blk_set_features(owner->blk, 0);
    vhost_user_channel_init(&session->channel);
    vhost_user_postcopy_init(&session->postcopy);
    vhost_user_rings_init(session);
    owner->session = session;
    return session;
}

static void session_free(VhostUserSession *session)
{
    VhostUserExport *owner = session->owner;

    vhost_user_postcopy_release(session);
    co_mutex_lock_shielded(&owner->lock);
    owner->session = NULL;
    vhost_user_rings_done(session);
    vhost_user_postcopy_done(session);
    co_mutex_unlock(&owner->lock);
    vhost_user_channel_done(&session->channel);
    vhost_user_inflight_done(&session->inflight);
    virtio_memory_free(session->memory);
    fd_close(session->log_fd);
    fd_close(session->fd);
    free(session);
}

void vhost_user_session_run(VhostUserExport *owner, int take_fd)
{
    VhostUserSession *session = session_new(owner, take_fd);
    int r = 0;

    trace_vhost_user_connected(owner->export->id, take_fd);
    while (r >= 0)
        r = serve_request(session);
    trace_vhost_user_disconnected(owner->export->id, r);
    co_shield_begin();
    session_free(session);
    co_shield_end();
}

void vhost_user_session_fail(VhostUserSession *session, const char *text)
{
    if (session->failed)
        return;
    session->failed = true;
    log_violation(session, text);
    shutdown(session->fd, SHUT_RDWR);
}

void vhost_user_session_move(VhostUserExport *owner)
{
    AUTO_ERROR Error err = ERROR_INIT;

    co_mutex_lock_shielded(&owner->lock);
    if (owner->session) {
        vhost_user_rings_pause(owner->session);
        if (vhost_user_rings_resume(owner->session, &err) < 0)
            vhost_user_session_fail(owner->session, err.message);
    }
    co_mutex_unlock(&owner->lock);
}
