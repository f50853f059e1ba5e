/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The back-end channel: a second socket, on which we are the one who asks. All that we have to tell is that
 * the configuration has changed; several changes that the client has not been told of are one.
 *
 * A client that reads nothing holds up its own sender only. While no ring runs nothing is sent ("Suspended
 * device state"): the client would not pass it on, and is told as soon as one does.
 */
#include "exports/vhost-user-blk/vhost-user-priv.h"

#include "base/mem.h"
#include "generated/trace.h"
#include "net/socket.h"

void vhost_user_channel_init(VhostUserChannel *channel)
{
    channel->fd = -1;
    co_group_init(&channel->sender);
}

void vhost_user_channel_done(VhostUserChannel *channel)
{
    co_group_cancel(&channel->sender);
    co_group_join(&channel->sender);
    co_group_init(&channel->sender);
    channel->fd = fd_close(channel->fd);
}

static void send_changes(void *arg)
{
    VhostUserSession *session = arg;
    VhostUserChannel *channel = &session->channel;
    uint8_t request[VHOST_USER_HEADER_BYTES];
    size_t bytes = vhost_user_encode_backend_request(request, VHOST_USER_BACKEND_CONFIG_CHANGE);
    int r = 0;

    while (r >= 0) {
        while (r >= 0 && !(channel->config_changed && vhost_user_rings_any_running(session)))
            r = co_cond_wait(&channel->wake, NULL);
        if (r < 0)
            return;
        channel->config_changed = false;
        trace_vhost_user_config_change(session->owner->export->id);
        r = socket_send_fds(channel->fd, request, bytes, NULL, 0);
    }
}

void vhost_user_channel_config_changed(VhostUserSession *session)
{
    session->channel.config_changed = true;
    vhost_user_channel_wake(session);
}

void vhost_user_channel_wake(VhostUserSession *session)
{
    co_cond_broadcast(&session->channel.wake);
}

int vhost_user_set_backend_req_fd(
    VhostUserSession *session, VhostUserIncoming *in, VhostUserReply *reply, Error *err)
{
    VhostUserChannel *channel = &session->channel;

    vhost_user_channel_done(channel);
    channel->fd = TAKE_FD(in->fds[0]);
    co_start(&channel->sender, "vhost-user-channel", send_changes, session);
    return 0;
}
