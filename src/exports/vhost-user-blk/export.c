/* SPDX-License-Identifier: Apache-2.0 */
/* The export kind `vhost-user-blk`: its options, its socket, and the clients one after the other. */
#include "exports/vhost-user-blk/vhost-user-priv.h"

#include "base/limits.h"
#include "base/log.h"
#include "base/mem.h"
#include "generated/types.h"

#include <inttypes.h>
#include <string.h>

#define BLOCK_BYTES_MIN 512
#define BLOCK_BYTES_DEFAULT 512
#define SERIAL_DEFAULT "vhost_user_blk"
/* Size of a queue that the configuration's seg_max is made for: that of the usual front ends. */
#define QUEUE_SIZE 128
/* A client that waits is the usual case when a guest is started again; more than a few are a mistake. */
#define BACKLOG 128

static int check_block_bytes(const BlockExportOptionsVhostUserBlk *options, uint32_t *ret_bytes, Error *err)
{
    uint64_t bytes = options->has_logical_block_size ? options->logical_block_size : 0;

    if (bytes && (!is_power_of_2(bytes) || bytes < BLOCK_BYTES_MIN || bytes > LIMIT_VIRTIO_BLOCK_BYTES))
        return err_set(err, -EINVAL,
            "parameter logical-block-size must be a power of 2 between %d and %" PRIu64, BLOCK_BYTES_MIN,
            LIMIT_VIRTIO_BLOCK_BYTES);
    *ret_bytes = bytes ? (uint32_t)bytes : BLOCK_BYTES_DEFAULT; /* users of the reference may say 0 */
    return 0;
}

static int check_options(const BlockExportOptionsVhostUserBlk *options, uint32_t *ret_block_bytes, Error *err)
{
    int type = options->addr->type;
    int r = check_block_bytes(options, ret_block_bytes, err);

    if (r < 0)
        return r;
    if (options->has_num_queues && !options->num_queues)
        return err_set(err, -EINVAL, "num-queues must be greater than 0");
    if (options->serial && strlen(options->serial) > VIRTIO_BLK_SERIAL_BYTES)
        return err_set(err, -EINVAL, "serial '%s' is too long: it has at most %d bytes", options->serial,
            VIRTIO_BLK_SERIAL_BYTES);
    if (type != SOCKET_ADDRESS_TYPE_UNIX && type != SOCKET_ADDRESS_TYPE_FD)
        return err_set(err, -EINVAL, "Only socket address types 'unix' and 'fd' are supported");
    return 0;
}

/* Accepts nobody while it serves somebody: the next client waits in the kernel's backlog. */
static void serve_clients(void *arg)
{
    VhostUserExport *owner = arg;

    for (;;) {
        int fd = listener_accept(&owner->listener);

        if (fd >= 0) {
            vhost_user_session_run(owner, fd);
            continue;
        }
        if (fd != -ECANCELED)
            log_error("vhost-user-blk export '%s': cannot accept clients any more: %s", owner->export->id,
                strerror(-fd));
        return;
    }
}

static int vhost_user_blk_create(Export *export, const BlockExportOptions *options, Error *err)
{
    const BlockExportOptionsVhostUserBlk *own = &options->u.vhost_user_blk;
    VhostUserExport *owner = export->state;
    VirtioBlkOptions device = {
        .edge = export->edge,
        .writable = export->writable,
        .writethrough = export->writethrough,
        .queue_count = own->has_num_queues ? own->num_queues : 1,
        .queue_size_max = QUEUE_SIZE,
        .serial = own->serial ? own->serial : SERIAL_DEFAULT,
    };
    int r = check_options(own, &device.logical_block_bytes, err);

    if (r < 0)
        return r;
    r = listener_open(&owner->listener, own->addr, BACKLOG, err);
    if (r < 0)
        return r;
    owner->export = export;
    owner->queue_count = device.queue_count;
    owner->blk = virtio_blk_new(&device);
    co_group_init(&owner->clients);
    co_start(&owner->clients, "vhost-user-blk", serve_clients, owner);
    return 0;
}

static void vhost_user_blk_shutdown(Export *export)
{
    VhostUserExport *owner = export->state;

    if (owner->session)
        vhost_user_postcopy_release(owner->session);
    co_group_cancel(&owner->clients);
    co_group_join(&owner->clients);
    listener_close(&owner->listener);
    /* Whoever still moves the queues comes to its end. */
    co_mutex_lock_shielded(&owner->lock);
    co_mutex_unlock(&owner->lock);
    virtio_blk_free(TAKE(owner->blk));
}

static void vhost_user_blk_resized(Export *export, uint64_t size)
{
    VhostUserExport *owner = export->state;

    if (!owner->blk)
        return;
    virtio_blk_resized(owner->blk, size);
    if (owner->session)
        vhost_user_channel_config_changed(owner->session);
}

static void vhost_user_blk_moved(Export *export)
{
    vhost_user_session_move(export->state);
}

const ExportKind export_kind_vhost_user_blk = {
    .name = "vhost-user-blk",
    .state_size = sizeof(VhostUserExport),
    .shared = PERM_ALL,
    .create = vhost_user_blk_create,
    .shutdown = vhost_user_blk_shutdown,
    .resized = vhost_user_blk_resized,
    .moved = vhost_user_blk_moved,
};
