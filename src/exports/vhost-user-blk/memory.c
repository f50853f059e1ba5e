/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The client's memory and the log of what is written to it. Both may change while queues run: the queues are
 * stopped for that moment, without the client noticing anything but the time it takes.
 */
#include "exports/vhost-user-blk/vhost-user-priv.h"

#include "base/limits.h"
#include "base/mem.h"

#include <fcntl.h>

static int add_region(VirtioMemory *memory, const VhostUserRegion *from, int take_fd, Error *err)
{
    const VirtioRegion region = {
        .guest = from->guest, .user = from->user, .bytes = from->bytes, .file_offset = from->file_offset};

    return virtio_memory_add(memory, &region, take_fd, err);
}

/* Gives the log to a table of memory. */
static int apply_log(VhostUserSession *session, VirtioMemory *memory, Error *err)
{
    bool wanted = session->log_fd >= 0 && session->features & VHOST_USER_F_LOG_ALL;
    int fd = wanted ? fcntl(session->log_fd, F_DUPFD_CLOEXEC, 0) : -1;

    if (wanted && fd < 0)
        return err_set_errno(err, -errno, "cannot keep the log");
    return virtio_memory_set_log(memory, session->log_area.bytes, session->log_area.file_offset, fd, err);
}

int vhost_user_log_apply(VhostUserSession *session, Error *err)
{
    return apply_log(session, session->memory, err);
}

void vhost_user_memory_forget(VhostUserSession *session)
{
    virtio_memory_free(session->memory);
    session->memory = virtio_memory_new();
    vhost_user_postcopy_forget(session);
    session->log_fd = fd_close(session->log_fd);
}

/* The client knows where its memory is, or tells us of memory. */
static int confirm(VhostUserSession *session, Error *err)
{
    session->postcopy.unconfirmed = false;
    return vhost_user_rings_resume(session, err);
}

static int answer_table(VhostUserSession *session, VhostUserTable *table, VhostUserReply *reply, Error *err)
{
    int r = 0;

    for (unsigned i = 0; i < table->count && r >= 0; i++)
        r = vhost_user_postcopy_register(session, &table->regions[i], err);
    reply->bytes = vhost_user_encode_table(reply->data, table);
    return r;
}

int vhost_user_set_mem_table(
    VhostUserSession *session, VhostUserIncoming *in, VhostUserReply *reply, Error *err)
{
    VhostUserTable *table = &in->message.table;
    VirtioMemory *memory;
    int r;

    if (session->postcopy.unconfirmed && in->message.confirms)
        return confirm(session, err);
    memory = virtio_memory_new();
    r = apply_log(session, memory, err);
    for (unsigned i = 0; i < table->count && r >= 0; i++)
        r = add_region(memory, &table->regions[i], TAKE_FD(in->fds[i]), err);
    if (r < 0) {
        virtio_memory_free(memory);
        return r;
    }
    vhost_user_rings_pause(session);
    virtio_memory_free(session->memory);
    session->memory = memory;
    vhost_user_postcopy_forget(session);
    if (vhost_user_postcopy_loop(session))
        return answer_table(session, table, reply, err);
    return vhost_user_rings_resume(session, err);
}

int vhost_user_add_mem_reg(
    VhostUserSession *session, VhostUserIncoming *in, VhostUserReply *reply, Error *err)
{
    VhostUserRegion *region = &in->message.region;
    int r;

    if (in->message.confirms)
        return vhost_user_postcopy_loop(session) ? confirm(session, err)
                                                 : err_set(err, -EINVAL, "there is no region in it");
    vhost_user_rings_pause(session);
    r = add_region(session->memory, region, TAKE_FD(in->fds[0]), err);
    if (r >= 0 && vhost_user_postcopy_loop(session)) {
        r = vhost_user_postcopy_register(session, region, err);
        reply->bytes = vhost_user_encode_region(reply->data, region);
    }
    return r < 0 ? r : vhost_user_rings_resume(session, err);
}

int vhost_user_rem_mem_reg(
    VhostUserSession *session, VhostUserIncoming *in, VhostUserReply *reply, Error *err)
{
    const VhostUserRegion *from = &in->message.region;
    const VirtioRegion region = {.guest = from->guest, .user = from->user, .bytes = from->bytes};
    int r;

    vhost_user_rings_pause(session);
    r = virtio_memory_remove(session->memory, &region, err);
    return r < 0 ? r : vhost_user_rings_resume(session, err);
}

int vhost_user_get_max_mem_slots(
    VhostUserSession *session, VhostUserIncoming *in, VhostUserReply *reply, Error *err)
{
    reply->bytes = vhost_user_encode_number(reply->data, in->message.request, LIMIT_VIRTIO_REGIONS);
    return 0;
}

/* ---- The log ---- */

int vhost_user_set_log_base(
    VhostUserSession *session, VhostUserIncoming *in, VhostUserReply *reply, Error *err)
{
    int r;

    vhost_user_rings_pause(session);
    fd_close(session->log_fd);
    session->log_fd = TAKE_FD(in->fds[0]);
    session->log_area = in->message.area;
    r = vhost_user_log_apply(session, err);
    if (r >= 0)
        r = vhost_user_rings_resume(session, err);
    if (r >= 0 && session->protocol_features & VHOST_USER_PROTOCOL_LOG_SHMFD)
        reply->bytes = vhost_user_encode_number(reply->data, in->message.request, 0);
    return r;
}

/* Would be written to whenever the log is; no front end needs that. */
int vhost_user_set_log_fd(VhostUserSession *session, VhostUserIncoming *in, VhostUserReply *reply, Error *err)
{
    return 0;
}
