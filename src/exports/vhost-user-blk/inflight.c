/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The in-flight area (vhost-user.rst, "Inflight I/O tracking"): made here, kept by the client, and given back
 * by it after a reconnect, perhaps to another process. What it contains is checked by the queues
 * (virtio/queue.h); here it is only found out where each ring's part lies.
 */
#include "exports/vhost-user-blk/vhost-user-priv.h"

#include "base/limits.h"
#include "base/mem.h"

#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Parts begin on cache lines, as other back ends have it. */
#define PART_ALIGNMENT 64
/* Where both forms of a part have their version; 0 until a queue has used it. */
#define PART_VERSION_OFFSET 8

/*
 * Behind the parts of the areas that we make: what our successor must know and no front end tells it again.
 * Without it, a guest that has switched the write cache off would lose what it believes to be on disk.
 */
typedef struct Trailer {
    uint64_t magic; /* 0: not written yet */
    uint8_t write_cache;
    uint8_t padding[55];
} Trailer;

#define TRAILER_MAGIC UINT64_C(0x3179726172616e67)

static size_t part_bytes(const VhostUserSession *session, unsigned queue_size)
{
    bool packed = session->features & VIRTIO_FEATURE_RING_PACKED;

    return align_up(virtqueue_inflight_bytes(queue_size, packed), PART_ALIGNMENT);
}

void vhost_user_inflight_done(VhostUserInflightArea *area)
{
    mapping_done(&area->mapping);
    *area = (VhostUserInflightArea){0};
}

/* NULL if the area has none, as those of others. */
static Trailer *find_trailer(const VhostUserInflightArea *area)
{
    return area->has_trailer ? (Trailer *)(area->mapping.at + area->mapping.bytes - sizeof(Trailer)) : NULL;
}

int vhost_user_inflight_part(const VhostUserRing *ring, void **ret_part, Error *err)
{
    const VhostUserInflightArea *area = &ring->session->inflight;
    size_t bytes = part_bytes(ring->session, area->queue_size);
    uint64_t room = area->mapping.bytes - (area->has_trailer ? sizeof(Trailer) : 0);

    if (!area->mapping.at) {
        *ret_part = NULL;
        return 0;
    }
    /* Indexes and parts are small. */
    if (ring->index >= area->queues || ring->size > area->queue_size || (ring->index + 1) * bytes > room)
        return err_set(err, -EINVAL,
            "the in-flight area (%u queues of %u, %" PRIu64
            " bytes) has no room for queue %u with %u entries",
            area->queues, area->queue_size, area->mapping.bytes, ring->index, ring->size);
    *ret_part = area->mapping.at + ring->index * bytes;
    return 0;
}

bool vhost_user_inflight_was_used(const VhostUserRing *ring)
{
    AUTO_ERROR Error ignored = ERROR_INIT;
    uint16_t version;
    void *part;

    if (vhost_user_inflight_part(ring, &part, &ignored) < 0 || !part)
        return false;
    memcpy(&version, (char *)part + PART_VERSION_OFFSET, sizeof(version));
    return version != 0;
}

/* ---- The write cache ---- */

void vhost_user_inflight_note_cache(VhostUserSession *session)
{
    Trailer *trailer = find_trailer(&session->inflight);

    if (!trailer)
        return;
    virtio_blk_get_config(session->owner->blk, VIRTIO_BLK_CONFIG_WCE, &trailer->write_cache, 1);
    trailer->magic = TRAILER_MAGIC;
}

static bool any_part_was_used(const VhostUserSession *session)
{
    for (unsigned i = 0; i < session->ring_count; i++)
        if (vhost_user_inflight_was_used(&session->rings[i]))
            return true;
    return false;
}

/* Goes on as the area's former user has; off is safe where that is not known. */
static int restore_cache(VhostUserSession *session)
{
    const Trailer *trailer = find_trailer(&session->inflight);
    uint8_t write_cache = 0;
    int r = 0;

    if (trailer && trailer->magic == TRAILER_MAGIC)
        write_cache = trailer->write_cache;
    else if (!any_part_was_used(session))
        virtio_blk_get_config(session->owner->blk, VIRTIO_BLK_CONFIG_WCE, &write_cache, 1);
    r = virtio_blk_set_config(session->owner->blk, VIRTIO_BLK_CONFIG_WCE, &write_cache, 1);
    vhost_user_inflight_note_cache(session);
    return r;
}

/* ---- Requests ---- */

static int check_description(const VhostUserSession *session, const VhostUserInflight *inflight, Error *err)
{
    if (!inflight->queues || inflight->queues > session->owner->queue_count)
        return err_set(
            err, -EINVAL, "%u queues, but the export has %u", inflight->queues, session->owner->queue_count);
    if (!inflight->queue_size || inflight->queue_size > LIMIT_VIRTQUEUE_SIZE)
        return err_set(err, -EINVAL, "queues of %u entries; they have 1 to %d", inflight->queue_size,
            LIMIT_VIRTQUEUE_SIZE);
    return 0;
}

/* Nobody can take the memory away from under us afterwards. */
static int make_area(size_t bytes, int *ret_fd, Error *err)
{
    AUTO_CLOSE int fd = memfd_create("granary-inflight", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) < 0)
        return err_set_errno(err, -errno, "cannot make an in-flight area of %zu bytes", bytes);
    *ret_fd = TAKE_FD(fd);
    return 0;
}

int vhost_user_get_inflight_fd(
    VhostUserSession *session, VhostUserIncoming *in, VhostUserReply *reply, Error *err)
{
    VhostUserInflight inflight = in->message.inflight;
    int r = check_description(session, &inflight, err);

    if (r < 0)
        return r;
    inflight.bytes = inflight.queues * part_bytes(session, inflight.queue_size) + sizeof(Trailer);
    inflight.file_offset = 0;
    r = make_area(inflight.bytes, &reply->fd, err);
    if (r >= 0)
        reply->bytes = vhost_user_encode_inflight(reply->data, &in->message, &inflight);
    return r;
}

int vhost_user_set_inflight_fd(
    VhostUserSession *session, VhostUserIncoming *in, VhostUserReply *reply, Error *err)
{
    const VhostUserInflight *inflight = &in->message.inflight;
    VhostUserInflightArea *area = &session->inflight;
    int r = check_description(session, inflight, err);

    if (r < 0)
        return r;
    vhost_user_rings_pause(session);
    vhost_user_inflight_done(area);
    r = mapping_init(&area->mapping, in->fds[0], inflight->file_offset, inflight->bytes, &area->lost, err);
    if (r < 0)
        return r;
    area->queues = inflight->queues;
    area->queue_size = inflight->queue_size;
    area->has_trailer =
        inflight->bytes == area->queues * part_bytes(session, area->queue_size) + sizeof(Trailer);
    r = restore_cache(session);
    return r < 0 ? err_set(err, r, "cannot set the write cache") : vhost_user_rings_resume(session, err);
}
