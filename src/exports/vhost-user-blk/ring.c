/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rings as the client sees them (vhost-user.rst, "Ring states"): stopped until the kick arrives, started
 * until GET_VRING_BASE; enabled and disabled independently of that. A ring is processed while it is started
 * and enabled and all that it needs is known.
 *
 * The first kick is only looked at, not taken: should we die before the queue has taken it, our successor
 * finds it. A kick that a predecessor took and did not live to answer is what the in-flight area tells of:
 * such a ring starts without one.
 */
#include "exports/vhost-user-blk/vhost-user-priv.h"

#include "base/limits.h"
#include "base/mem.h"
#include "generated/trace.h"

#include <inttypes.h>
#include <poll.h>

/* Both wrap counters of a packed ring begin with 1. */
#define PACKED_BASE UINT32_C(0x80008000)

/* ---- What runs ---- */

static const char *export_id(const VhostUserRing *ring)
{
    return ring->session->owner->export->id;
}

static bool should_run(const VhostUserRing *ring)
{
    return ring->started && ring->enabled && ring->size && ring->has_address &&
           !ring->session->postcopy.unconfirmed && virtio_memory_count(ring->session->memory);
}

static uint32_t base_of(const VhostUserRing *ring)
{
    bool packed = ring->session->features & VIRTIO_FEATURE_RING_PACKED;

    return ring->has_base ? ring->base : packed ? PACKED_BASE : 0;
}

/* Tells whoever listens at the client's error descriptor. */
static void signal_error(const VhostUserRing *ring)
{
    AUTO_ERROR Error ignored = ERROR_INIT;
    EventSignal *signal = NULL;

    if (ring->err_fd < 0 || event_signal_new(ring->err_fd, &signal, &ignored) < 0)
        return;
    event_signal_send(signal);
    event_signal_free(signal);
}

static void queue_failed(void *opaque, unsigned index, const char *text)
{
    AUTO_FREE char *line = str_printf("queue %u: %s", index, text);
    VhostUserSession *session = opaque;

    signal_error(&session->rings[index]);
    vhost_user_session_fail(session, line);
}

static VirtQueueConfig queue_config(const VhostUserRing *ring)
{
    uint64_t features = ring->session->features;

    return (VirtQueueConfig){
        .size = ring->size,
        .packed = features & VIRTIO_FEATURE_RING_PACKED,
        .indirect = features & VIRTIO_FEATURE_INDIRECT_DESC,
        .event_idx = features & VIRTIO_FEATURE_EVENT_IDX,
        .descriptors = ring->address.descriptors,
        .available = ring->address.available,
        .used = ring->address.used,
        .logs_used = ring->address.log && features & VHOST_USER_F_LOG_ALL,
        .used_log_guest = ring->address.log_guest,
        .base = base_of(ring),
    };
}

static int launch(VhostUserRing *ring, Error *err)
{
    VhostUserSession *session = ring->session;
    Loop *postcopy = vhost_user_postcopy_loop(session);
    VirtioBlkQueueOptions options = {
        .config = queue_config(ring),
        .memory = session->memory,
        .kick_fd = ring->kick_fd,
        .call_fd = ring->call_fd,
        .loop = postcopy ? postcopy : export_loop(session->owner->export, ring->index),
        .touches = postcopy,
        .failed = queue_failed,
        .opaque = session,
    };
    int r = vhost_user_inflight_part(ring, &options.inflight, err);

    if (r >= 0)
        r = virtio_blk_queue_start(session->owner->blk, ring->index, &options, &ring->queue, err);
    if (r < 0)
        return err_prefix(err, r, "queue %u cannot start", ring->index);
    trace_vhost_user_queue_start(
        export_id(ring), ring->index, ring->size, options.config.base, loop_name(options.loop));
    vhost_user_channel_wake(session);
    return 0;
}

static void halt(VhostUserRing *ring)
{
    if (!ring->queue)
        return;
    ring->base = virtio_blk_queue_stop(TAKE(ring->queue));
    ring->has_base = true;
    trace_vhost_user_queue_stop(export_id(ring), ring->index, ring->base);
}

void vhost_user_rings_pause(VhostUserSession *session)
{
    for (unsigned i = 0; i < session->ring_count; i++)
        halt(&session->rings[i]);
}

int vhost_user_rings_resume(VhostUserSession *session, Error *err)
{
    int r = 0;

    for (unsigned i = 0; i < session->ring_count && r >= 0 && !session->failed; i++) {
        VhostUserRing *ring = &session->rings[i];

        if (!ring->queue && should_run(ring))
            r = launch(ring, err);
    }
    return r;
}

bool vhost_user_rings_any_running(const VhostUserSession *session)
{
    for (unsigned i = 0; i < session->ring_count; i++)
        if (session->rings[i].queue)
            return true;
    return false;
}

/* ---- Starting and stopping ---- */

static void wait_for_kick(void *arg)
{
    AUTO_ERROR Error err = ERROR_INIT;
    VhostUserRing *ring = arg;
    VhostUserSession *session = ring->session;

    if (io_poll(ring->kick_fd, POLLIN) < 0 || co_mutex_lock(&session->owner->lock) < 0)
        return;
    ring->started = true;
    if (vhost_user_rings_resume(session, &err) < 0)
        vhost_user_session_fail(session, err.message);
    co_mutex_unlock(&session->owner->lock);
}

static void stop_watching(VhostUserRing *ring)
{
    co_group_cancel(&ring->watcher);
    co_group_join(&ring->watcher);
    co_group_init(&ring->watcher);
}

static void stop(VhostUserRing *ring)
{
    stop_watching(ring);
    halt(ring);
    ring->started = false;
    ring->kick_fd = fd_close(ring->kick_fd);
}

void vhost_user_rings_init(VhostUserSession *session)
{
    session->ring_count = MIN(session->owner->queue_count, (unsigned)VHOST_USER_RINGS);
    session->rings = mem_zalloc(session->ring_count * sizeof(*session->rings));
    for (unsigned i = 0; i < session->ring_count; i++) {
        session->rings[i] =
            (VhostUserRing){.session = session, .index = i, .kick_fd = -1, .call_fd = -1, .err_fd = -1};
        co_group_init(&session->rings[i].watcher);
    }
}

void vhost_user_rings_reset(VhostUserSession *session)
{
    for (unsigned i = 0; i < session->ring_count; i++) {
        stop(&session->rings[i]);
        session->rings[i].enabled = false;
    }
}

void vhost_user_rings_enable(VhostUserSession *session, bool enable)
{
    for (unsigned i = 0; i < session->ring_count; i++)
        session->rings[i].enabled = enable;
}

void vhost_user_rings_done(VhostUserSession *session)
{
    vhost_user_rings_reset(session);
    for (unsigned i = 0; i < session->ring_count; i++) {
        fd_close(session->rings[i].call_fd);
        fd_close(session->rings[i].err_fd);
    }
    free(TAKE(session->rings));
    session->ring_count = 0;
}

/* ---- Requests ---- */

static int find(VhostUserSession *session, uint32_t index, VhostUserRing **ret_ring, Error *err)
{
    if (index >= session->ring_count)
        return err_set(err, -EINVAL, "queue %" PRIu32 " does not exist (num-queues is %u)", index,
            session->owner->queue_count);
    *ret_ring = &session->rings[index];
    return 0;
}

/* For what would make a running ring look at the wrong place. */
static int find_halted(VhostUserSession *session, uint32_t index, VhostUserRing **ret_ring, Error *err)
{
    VhostUserRing *ring = NULL;
    int r = find(session, index, &ring, err);

    if (r < 0)
        return r;
    if (ring->queue)
        return err_set(err, -EBUSY, "queue %" PRIu32 " is running", index);
    *ret_ring = ring;
    return 0;
}

int vhost_user_set_vring_num(
    VhostUserSession *session, VhostUserIncoming *in, VhostUserReply *reply, Error *err)
{
    uint32_t size = in->message.vring.value;
    VhostUserRing *ring = NULL;
    int r = find_halted(session, in->message.vring.index, &ring, err);

    if (r < 0)
        return r;
    if (!size || size > LIMIT_VIRTQUEUE_SIZE)
        return err_set(err, -EINVAL, "queue %u with %" PRIu32 " entries; it has 1 to %d", ring->index, size,
            LIMIT_VIRTQUEUE_SIZE);
    ring->size = size;
    return vhost_user_rings_resume(session, err);
}

/* Also while the ring runs: the log of its used ring is switched on and off like this. */
int vhost_user_set_vring_addr(
    VhostUserSession *session, VhostUserIncoming *in, VhostUserReply *reply, Error *err)
{
    VhostUserRing *ring = NULL;
    int r = find(session, in->message.address.index, &ring, err);

    if (r < 0)
        return r;
    halt(ring);
    ring->address = in->message.address;
    ring->has_address = true;
    return vhost_user_rings_resume(session, err);
}

int vhost_user_set_vring_base(
    VhostUserSession *session, VhostUserIncoming *in, VhostUserReply *reply, Error *err)
{
    VhostUserRing *ring = NULL;
    int r = find_halted(session, in->message.vring.index, &ring, err);

    if (r < 0)
        return r;
    ring->base = in->message.vring.value;
    ring->has_base = true;
    return 0;
}

/* Waits for the ring's requests; those of other rings go on. */
int vhost_user_get_vring_base(
    VhostUserSession *session, VhostUserIncoming *in, VhostUserReply *reply, Error *err)
{
    VhostUserVring vring = in->message.vring;
    VhostUserRing *ring = NULL;
    int r = find(session, vring.index, &ring, err);

    if (r < 0)
        return r;
    stop(ring);
    vring.value = base_of(ring);
    reply->bytes = vhost_user_encode_vring(reply->data, in->message.request, &vring);
    return 0;
}

int vhost_user_set_vring_enable(
    VhostUserSession *session, VhostUserIncoming *in, VhostUserReply *reply, Error *err)
{
    VhostUserRing *ring = NULL;
    int r = find(session, in->message.vring.index, &ring, err);

    if (r < 0)
        return r;
    ring->enabled = in->message.vring.value;
    if (!ring->enabled)
        halt(ring);
    return vhost_user_rings_resume(session, err);
}

/* ---- Descriptors ---- */

static int take_eventfd(
    VhostUserIncoming *in, VhostUserRing **ret_ring, VhostUserSession *session, int *ret_fd, Error *err)
{
    int r = find(session, in->message.vring_fd.index, ret_ring, err);

    if (r < 0)
        return r;
    if (in->message.vring_fd.none) {
        *ret_fd = -1;
        return 0;
    }
    r = eventfd_check(in->fds[0], err);
    if (r < 0)
        return r;
    *ret_fd = TAKE_FD(in->fds[0]);
    return 0;
}

int vhost_user_set_vring_kick(
    VhostUserSession *session, VhostUserIncoming *in, VhostUserReply *reply, Error *err)
{
    VhostUserRing *ring = NULL;
    int fd = -1, r = take_eventfd(in, &ring, session, &fd, err);

    if (r < 0)
        return r;
    stop_watching(ring);
    halt(ring);
    fd_close(ring->kick_fd);
    ring->kick_fd = fd;
    if (fd < 0 || vhost_user_inflight_was_used(ring))
        ring->started = true;
    if (!ring->started)
        co_start(&ring->watcher, "vhost-user-kick", wait_for_kick, ring);
    return vhost_user_rings_resume(session, err);
}

int vhost_user_set_vring_call(
    VhostUserSession *session, VhostUserIncoming *in, VhostUserReply *reply, Error *err)
{
    VhostUserRing *ring = NULL;
    int fd = -1, r = take_eventfd(in, &ring, session, &fd, err);

    if (r < 0)
        return r;
    if (ring->queue)
        virtio_blk_queue_set_call(ring->queue, fd);
    fd_close(ring->call_fd);
    ring->call_fd = fd;
    return 0;
}

int vhost_user_set_vring_err(
    VhostUserSession *session, VhostUserIncoming *in, VhostUserReply *reply, Error *err)
{
    VhostUserRing *ring = NULL;
    int fd = -1, r = take_eventfd(in, &ring, session, &fd, err);

    if (r < 0)
        return r;
    fd_close(ring->err_fd);
    ring->err_fd = fd;
    return 0;
}
