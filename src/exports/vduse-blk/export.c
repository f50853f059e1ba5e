/* SPDX-License-Identifier: Apache-2.0 */
/* The export kind `vduse-blk`: a virtio block device of the kernel's vDPA bus. */
#include "exports/export.h"

#include "base/limits.h"
#include "base/mem.h"
#include "exports/vduse-blk/device.h"
#include "exports/vduse-blk/record.h"
#include "generated/types.h"
#include "proto/virtio-blk.h"

#include <inttypes.h>
#include <string.h>

#define DEFAULT_QUEUE_SIZE 256
#define BLOCK_BYTES_MIN 512
#define BLOCK_BYTES_MAX (2 * MIB)

/* Of what the block device can do; the kernel refuses a write cache that the driver may configure. */
#define OFFERED_FEATURES                                                                              \
    (VIRTIO_BLK_FEATURE_SEG_MAX | VIRTIO_BLK_FEATURE_RO | VIRTIO_BLK_FEATURE_BLK_SIZE |               \
        VIRTIO_BLK_FEATURE_FLUSH | VIRTIO_BLK_FEATURE_TOPOLOGY | VIRTIO_BLK_FEATURE_MQ |              \
        VIRTIO_BLK_FEATURE_DISCARD | VIRTIO_BLK_FEATURE_WRITE_ZEROES | VIRTIO_FEATURE_INDIRECT_DESC | \
        VIRTIO_FEATURE_EVENT_IDX | VIRTIO_FEATURE_RING_PACKED)

typedef struct VduseExport {
    VirtioBlk *blk;
    VduseDevice *device;
} VduseExport;

typedef struct Settings {
    unsigned queue_count, queue_size;
    uint64_t block_bytes;
} Settings;

static int read_settings(const BlockExportOptionsVduseBlk *options, Settings *ret_settings, Error *err)
{
    Settings settings = {
        .queue_count = options->has_num_queues ? options->num_queues : 1,
        .queue_size = options->has_queue_size ? options->queue_size : DEFAULT_QUEUE_SIZE,
        .block_bytes = options->has_logical_block_size ? options->logical_block_size : BLOCK_BYTES_MIN,
    };

    if (settings.queue_count == 0)
        return err_set(err, -EINVAL, "num-queues must be greater than 0");
    if (settings.queue_count > LIMIT_VDUSE_QUEUES)
        return err_set(err, -EINVAL, "num-queues must not be greater than %u", LIMIT_VDUSE_QUEUES);
    if (settings.queue_size <= 2 || settings.queue_size > LIMIT_VIRTQUEUE_SIZE ||
        !is_power_of_2(settings.queue_size))
        return err_set(err, -EINVAL, "queue-size is invalid");
    if (settings.block_bytes < BLOCK_BYTES_MIN || settings.block_bytes > BLOCK_BYTES_MAX ||
        !is_power_of_2(settings.block_bytes))
        return err_set(err, -EINVAL,
            "parameter logical-block-size must be a power of 2 between %u and %" PRIu64, BLOCK_BYTES_MIN,
            BLOCK_BYTES_MAX);
    *ret_settings = settings;
    return 0;
}

static Loop *queue_loop(void *opaque, unsigned index)
{
    return export_loop(opaque, index);
}

static VirtioBlk *make_blk(const Export *export, const Settings *settings, const char *serial)
{
    AUTO_FREE char *short_serial = str_ndup(serial, strnlen(serial, VIRTIO_BLK_SERIAL_BYTES));

    return virtio_blk_new(&(VirtioBlkOptions){
        .edge = export->edge,
        .writable = export->writable,
        .writethrough = export->writethrough,
        .logical_block_bytes = (uint32_t)settings->block_bytes,
        .queue_count = settings->queue_count,
        .queue_size_max = settings->queue_size,
        .serial = short_serial,
    });
}

static int make_device(Export *export, const Settings *settings, const char *name, Error *err)
{
    VduseExport *vduse = export->state;
    AUTO_FREE char *folder = vduse_record_folder();
    uint64_t offered =
        settings->queue_count > 1 ? OFFERED_FEATURES : OFFERED_FEATURES & ~VIRTIO_BLK_FEATURE_MQ;
    VduseDeviceOptions options = {
        .export_id = export->id,
        .kernel = &vduse_kernel_linux,
        .record_folder = folder,
        .spec =
            {
                .name = name,
                .features = virtio_blk_features(vduse->blk) & offered,
                .queue_count = settings->queue_count,
                .queue_size = settings->queue_size,
                .block_bytes = (uint32_t)settings->block_bytes,
            },
        .blk = vduse->blk,
        .queue_loop = queue_loop,
        .opaque = export,
    };
    int r = vduse_device_new(&options, &vduse->device, err);

    return r < 0 ? err_prefix(err, r, "failed to create vduse device") : 0;
}

static int vduse_create(Export *export, const BlockExportOptions *options, Error *err)
{
    const BlockExportOptionsVduseBlk *own = &options->u.vduse_blk;
    VduseExport *vduse = export->state;
    Settings settings;
    int r = read_settings(own, &settings, err);

    if (r < 0)
        return r;
    vduse->blk = make_blk(export, &settings, own->serial ? own->serial : "");
    r = make_device(export, &settings, own->name, err);
    if (r < 0)
        virtio_blk_free(TAKE(vduse->blk));
    return r;
}

static bool vduse_in_use(const Export *export)
{
    const VduseExport *vduse = export->state;

    return vduse_device_in_use(vduse->device);
}

static void vduse_shutdown(Export *export)
{
    VduseExport *vduse = export->state;

    vduse_device_free(TAKE(vduse->device));
    virtio_blk_free(TAKE(vduse->blk));
}

static void vduse_resized(Export *export, uint64_t size)
{
    VduseExport *vduse = export->state;

    /* Both are missing while the export is on its way in or out. */
    if (vduse->blk)
        virtio_blk_resized(vduse->blk, size);
    if (vduse->device)
        vduse_device_resized(vduse->device);
}

static void vduse_moved(Export *export)
{
    VduseExport *vduse = export->state;

    vduse_device_moved(vduse->device);
}

const ExportKind export_kind_vduse_blk = {
    .name = "vduse-blk",
    .state_size = sizeof(VduseExport),
    .shared = PERM_ALL,
    .create = vduse_create,
    .in_use = vduse_in_use,
    .shutdown = vduse_shutdown,
    .resized = vduse_resized,
    .moved = vduse_moved,
};
