/* SPDX-License-Identifier: Apache-2.0 */
/* What is negotiated for the device as a whole: features, status, configuration. */
#include "exports/vhost-user-blk/vhost-user-priv.h"

#include <inttypes.h>

/*
 * HOST_NOTIFIER and BACKEND_SEND_FD allow us to send what we do not send; users of the reference see them,
 * and nothing depends on them.
 */
#define PROTOCOL_FEATURES                                                                                    \
    (VHOST_USER_PROTOCOL_MQ | VHOST_USER_PROTOCOL_LOG_SHMFD | VHOST_USER_PROTOCOL_REPLY_ACK |                \
        VHOST_USER_PROTOCOL_BACKEND_REQ | VHOST_USER_PROTOCOL_CONFIG | VHOST_USER_PROTOCOL_BACKEND_SEND_FD | \
        VHOST_USER_PROTOCOL_HOST_NOTIFIER | VHOST_USER_PROTOCOL_INFLIGHT_SHMFD |                             \
        VHOST_USER_PROTOCOL_CONFIGURE_MEM_SLOTS | VHOST_USER_PROTOCOL_STATUS)

#define TRANSPORT_FEATURES (VHOST_USER_F_LOG_ALL | VHOST_USER_F_PROTOCOL_FEATURES)

static void answer(VhostUserReply *reply, const VhostUserIncoming *in, uint64_t number)
{
    reply->bytes = vhost_user_encode_number(reply->data, in->message.request, number);
}

/* ---- Features ---- */

static uint64_t offered_features(const VhostUserSession *session)
{
    return virtio_blk_features(session->owner->blk) | TRANSPORT_FEATURES;
}

int vhost_user_get_features(
    VhostUserSession *session, VhostUserIncoming *in, VhostUserReply *reply, Error *err)
{
    answer(reply, in, offered_features(session));
    return 0;
}

static int check_features(const VhostUserSession *session, uint64_t features, Error *err)
{
    uint64_t unknown = features & ~offered_features(session);
    uint64_t changed = (features ^ session->features) & ~TRANSPORT_FEATURES;

    if (unknown)
        return err_set(err, -EINVAL, "features 0x%" PRIx64 " were not offered", unknown);
    if (changed && vhost_user_rings_any_running(session))
        return err_set(err, -EBUSY, "features 0x%" PRIx64 " change while queues run", changed);
    return 0;
}

int vhost_user_set_features(
    VhostUserSession *session, VhostUserIncoming *in, VhostUserReply *reply, Error *err)
{
    uint64_t features = in->message.number;
    int r = check_features(session, features, err);

    if (r < 0)
        return r;
    vhost_user_rings_pause(session);
    session->features = features;
    virtio_blk_set_features(session->owner->blk, features & ~TRANSPORT_FEATURES);
    if (!(features & VHOST_USER_F_PROTOCOL_FEATURES))
        vhost_user_rings_enable(session, true);
    r = vhost_user_log_apply(session, err);
    return r < 0 ? r : vhost_user_rings_resume(session, err);
}

static uint64_t offered_protocol_features(void)
{
    return PROTOCOL_FEATURES | (vhost_user_postcopy_is_possible() ? VHOST_USER_PROTOCOL_PAGEFAULT : 0);
}

int vhost_user_get_protocol_features(
    VhostUserSession *session, VhostUserIncoming *in, VhostUserReply *reply, Error *err)
{
    answer(reply, in, offered_protocol_features());
    return 0;
}

int vhost_user_set_protocol_features(
    VhostUserSession *session, VhostUserIncoming *in, VhostUserReply *reply, Error *err)
{
    uint64_t unknown = in->message.number & ~offered_protocol_features();

    if (unknown)
        return err_set(err, -EINVAL, "protocol features 0x%" PRIx64 " were not offered", unknown);
    session->protocol_features = in->message.number;
    return 0;
}

int vhost_user_get_queue_num(
    VhostUserSession *session, VhostUserIncoming *in, VhostUserReply *reply, Error *err)
{
    answer(reply, in, session->owner->queue_count);
    return 0;
}

/* ---- Life of the device ---- */

/*
 * The first one says nothing new. A further one is a device that takes over the connection of one that was
 * unplugged without having taken its memory back; by then it has negotiated the protocol, which stays.
 */
int vhost_user_set_owner(VhostUserSession *session, VhostUserIncoming *in, VhostUserReply *reply, Error *err)
{
    if (session->has_owner) {
        vhost_user_postcopy_release(session);
        vhost_user_rings_done(session);
        vhost_user_rings_init(session);
        vhost_user_memory_forget(session);
        vhost_user_inflight_done(&session->inflight);
        session->features = 0;
        session->status = 0;
        virtio_blk_set_features(session->owner->blk, 0);
    }
    session->has_owner = true;
    return 0;
}

/* Nobody agrees on what else it means. */
int vhost_user_reset_owner(
    VhostUserSession *session, VhostUserIncoming *in, VhostUserReply *reply, Error *err)
{
    vhost_user_rings_pause(session);
    vhost_user_rings_enable(session, false);
    return 0;
}

int vhost_user_get_status(VhostUserSession *session, VhostUserIncoming *in, VhostUserReply *reply, Error *err)
{
    answer(reply, in, session->status);
    return 0;
}

/* 0 resets the device. Front ends go on with the memory that they have told us of, and what was negotiated
 * for the protocol. */
int vhost_user_set_status(VhostUserSession *session, VhostUserIncoming *in, VhostUserReply *reply, Error *err)
{
    if (in->message.number > UINT8_MAX)
        return err_set(err, -EINVAL, "status 0x%" PRIx64 " has more than 8 bits", in->message.number);
    session->status = (uint8_t)in->message.number;
    if (!session->status)
        vhost_user_rings_reset(session);
    return 0;
}

/* ---- Configuration space ---- */

int vhost_user_get_config(VhostUserSession *session, VhostUserIncoming *in, VhostUserReply *reply, Error *err)
{
    const VhostUserConfig *config = &in->message.config;
    uint8_t data[VHOST_USER_CONFIG_BYTES];

    /* An answer without payload is how an error is told here. */
    if (out_of_range(config->offset, config->bytes, sizeof(data))) {
        reply->bytes = vhost_user_encode_empty(reply->data, in->message.request);
        return 0;
    }
    virtio_blk_get_config(session->owner->blk, config->offset, data, config->bytes);
    reply->bytes = vhost_user_encode_config(reply->data, config, data);
    return 0;
}

int vhost_user_set_config(VhostUserSession *session, VhostUserIncoming *in, VhostUserReply *reply, Error *err)
{
    const VhostUserConfig *config = &in->message.config;
    int r = virtio_blk_set_config(session->owner->blk, config->offset, config->data, config->bytes);

    if (r < 0)
        return err_set(err, r, "offset %" PRIu32 ", %" PRIu32 " bytes: only the write cache can be set",
            config->offset, config->bytes);
    vhost_user_inflight_note_cache(session);
    return 0;
}
