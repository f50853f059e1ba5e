/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The life of a device. Its driver (a virtio_vdpa of this kernel, or a virtual machine behind vhost_vdpa)
 * resets it, negotiates, sets queues up, and says DRIVER_OK: from then on queues run, until the next reset.
 * All of it arrives as messages; one that is not answered in time (30 s) makes the kernel give the device up
 * for good.
 *
 * `lock` is held by whoever starts and stops queues, which waits: the coroutine that answers messages, one
 * that looks after a queue which found an address in no range of memory, and callers from outside.
 *
 * Traps: the kernel notes DRIVER_OK only after it has seen our answer, and takes no calls before. Its bounce
 * buffer exists from the first request on, so that the first requests always fail once for want of it.
 */
#include "exports/vduse-blk/device.h"

#include "base/endian.h"
#include "base/log.h"
#include "base/mem.h"
#include "exports/vduse-blk/iotlb.h"
#include "exports/vduse-blk/record.h"
#include "generated/trace.h"
#include "proto/virtio-blk.h"

#include <inttypes.h>
#include <linux/virtio_config.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* Without these nothing works: the current rings, and addresses that the kernel translates
 * (VIRTIO_F_ACCESS_PLATFORM). */
#define NEEDED_FEATURES (VIRTIO_FEATURE_VERSION_1 | UINT64_C(1) << 33)
/* Between attempts to call the driver after a start; the second is the longest. */
#define CALL_FIRST_NS UINT64_C(1000000)
#define CALL_MOST_NS UINT64_C(100000000)

typedef enum DeviceState {
    DEVICE_IDLE,    /* no driver, or it has not finished its initialisation */
    DEVICE_RUNNING, /* DRIVER_OK was said */
    DEVICE_FAILED,  /* nothing runs until the driver resets the device */
} DeviceState;

typedef struct VduseQueue {
    VduseDevice *device;
    unsigned index;
    int kick_fd;             /* -1: the driver does not use the queue */
    VirtQueueConfig config;  /* base: where it stands while it does not run */
    VirtioBlkQueue *running; /* or NULL */
    char *fault;             /* what ended it; NULL once that was looked after */
} VduseQueue;

struct VduseDevice {
    VduseDeviceOptions options; /* spec: name and config are not valid */
    char *export_id;
    VduseHandle handle;
    VduseRecord record;
    VduseIotlb iotlb;
    DeviceState state;
    uint64_t features; /* that the driver has chosen */
    VduseQueue *queues;
    CoGroup group;
    CoMutex lock;
};

/* ---- Queues ---- */

/* On the queue's loop. Fails while the kernel has not noted DRIVER_OK, which call_all() makes good, and after
 * a reset. */
static void call(void *opaque, unsigned index)
{
    const VduseDevice *device = opaque;
    uint32_t number = index;

    (void)vduse_control(&device->handle, VDUSE_VQ_INJECT_IRQ, &number);
}

static void look_after(void *arg);

static void queue_failed(void *opaque, unsigned index, const char *text)
{
    VduseDevice *device = opaque;
    VduseQueue *queue = &device->queues[index];

    if (queue->fault)
        return;
    queue->fault = str_dup(text);
    co_start(&device->group, "vduse-fault", look_after, queue);
}

/* Stops what runs; each queue remembers where it stands. */
static void pause_queues(VduseDevice *device)
{
    for (unsigned i = 0; i < device->options.spec.queue_count; i++) {
        VduseQueue *queue = &device->queues[i];

        if (queue->running)
            queue->config.base = virtio_blk_queue_stop(queue->running);
        queue->running = NULL;
        free(TAKE(queue->fault));
    }
}

static int resume_queue(VduseQueue *queue, Error *err)
{
    VduseDevice *device = queue->device;
    VirtioBlkQueueOptions options = {
        .config = queue->config,
        .memory = device->iotlb.memory,
        .inflight = vduse_record_inflight(&device->record, queue->index),
        .kick_fd = queue->kick_fd,
        .call_fd = -1,
        .loop = device->options.queue_loop(device->options.opaque, queue->index),
        .call = call,
        .failed = queue_failed,
        .opaque = device,
    };
    int r = virtio_blk_queue_start(device->options.blk, queue->index, &options, &queue->running, err);

    return r < 0 ? err_prefix(err, r, "queue %u", queue->index) : 0;
}

static int resume_queues(VduseDevice *device, Error *err)
{
    for (unsigned i = 0; i < device->options.spec.queue_count; i++) {
        int r = device->queues[i].kick_fd < 0 ? 0 : resume_queue(&device->queues[i], err);

        if (r < 0) {
            pause_queues(device);
            return r;
        }
    }
    return 0;
}

static uint32_t base_of(const struct vduse_vq_info *info, bool packed)
{
    if (!packed)
        return info->split.avail_index;
    return (info->packed.last_avail_idx & 0x7fffu) | (info->packed.last_avail_counter & 1u) << 15 |
           (info->packed.last_used_idx & 0x7fffu) << 16 | (info->packed.last_used_counter & 1u) << 31;
}

static VirtQueueConfig config_of(const VduseDevice *device, const struct vduse_vq_info *info)
{
    bool packed = device->features & VIRTIO_FEATURE_RING_PACKED;

    return (VirtQueueConfig){
        .size = info->num,
        .packed = packed,
        .indirect = device->features & VIRTIO_FEATURE_INDIRECT_DESC,
        .event_idx = device->features & VIRTIO_FEATURE_EVENT_IDX,
        .descriptors = info->desc_addr,
        .available = info->driver_addr,
        .used = info->device_addr,
        .base = base_of(info, packed),
    };
}

/* Learns how the driver has set the queue up, if at all, and gives the kernel a descriptor for kicks. */
static int enable_queue(VduseQueue *queue, Error *err)
{
    VduseDevice *device = queue->device;
    struct vduse_vq_info info = {.index = queue->index};
    struct vduse_vq_eventfd kick = {.index = queue->index};
    int r = vduse_control(&device->handle, VDUSE_VQ_GET_INFO, &info);

    if (r < 0)
        return err_set_errno(err, r, "queue %u cannot be asked for", queue->index);
    if (!info.ready)
        return 0;
    if (info.num > device->options.spec.queue_size)
        return err_set(err, -EINVAL, "queue %u has %u entries, more than %u", queue->index,
            (unsigned)info.num, device->options.spec.queue_size);
    queue->config = config_of(device, &info);
    kick.fd = queue->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (kick.fd < 0)
        return err_set_errno(err, -errno, "queue %u gets no descriptor for kicks", queue->index);
    r = vduse_control(&device->handle, VDUSE_VQ_SETUP_KICKFD, &kick);
    return r < 0 ? err_set_errno(err, r, "queue %u takes no descriptor for kicks", queue->index) : 0;
}

static void disable_queue(VduseQueue *queue)
{
    struct vduse_vq_eventfd kick = {.index = queue->index, .fd = VDUSE_EVENTFD_DEASSIGN};

    if (queue->kick_fd < 0)
        return;
    /* From now on the kernel remembers kicks for the next descriptor. */
    (void)vduse_control(&queue->device->handle, VDUSE_VQ_SETUP_KICKFD, &kick);
    queue->kick_fd = fd_close(queue->kick_fd);
}

/* ---- The device's state ---- */

static void fail(VduseDevice *device)
{
    pause_queues(device);
    device->state = DEVICE_FAILED;
}

static void fail_and_log(VduseDevice *device, const char *what)
{
    fail(device);
    log_error("export '%s': vduse device %s has stopped until its driver resets it: %s", device->export_id,
        device->handle.name, what);
}

static void stop(VduseDevice *device)
{
    pause_queues(device);
    for (unsigned i = 0; i < device->options.spec.queue_count; i++)
        disable_queue(&device->queues[i]);
    vduse_iotlb_done(&device->iotlb);
    device->state = DEVICE_IDLE;
    trace_vduse_stop(device->export_id);
}

/* What the driver has chosen must be what it was offered; the kernel does not look. */
static int check_features(VduseDevice *device, Error *err)
{
    uint64_t features;
    int r = vduse_control(&device->handle, VDUSE_DEV_GET_FEATURES, &features);

    if (r < 0)
        return err_set_errno(err, r, "features cannot be asked for");
    if ((features & ~device->options.spec.features) || (features & NEEDED_FEATURES) != NEEDED_FEATURES)
        return err_set(err, -EINVAL,
            "the driver chose features 0x%" PRIx64 " of 0x%" PRIx64 ", and needs 0x%" PRIx64, features,
            device->options.spec.features, NEEDED_FEATURES);
    device->features = features;
    return 0;
}

static int fetch_memory(VduseDevice *device, bool *ret_changed, Error *err)
{
    int r = vduse_iotlb_fetch(&device->iotlb, &device->handle, ret_changed, err);

    if (r == 0)
        trace_vduse_memory(device->export_id, device->iotlb.count, *ret_changed);
    return r;
}

/* Tells the driver to look at every queue, as soon as the kernel takes calls: those of the first moments are
 * lost. */
static void call_all(void *arg)
{
    VduseDevice *device = arg;
    uint64_t wait_ns = CALL_FIRST_NS;

    while (device->state == DEVICE_RUNNING) {
        int r = 0;

        for (uint32_t i = 0; i < device->options.spec.queue_count && r >= 0; i++)
            r = vduse_control(&device->handle, VDUSE_VQ_INJECT_IRQ, &i);
        if (r >= 0 || co_sleep_ns(wait_ns) < 0)
            return;
        wait_ns = MIN(2 * wait_ns, CALL_MOST_NS);
    }
}

/* On failure nothing runs; stop() is to follow. */
static int start(VduseDevice *device, Error *err)
{
    bool changed;
    int r = check_features(device, err);

    if (r == 0)
        r = fetch_memory(device, &changed, err);
    for (unsigned i = 0; r == 0 && i < device->options.spec.queue_count; i++)
        r = enable_queue(&device->queues[i], err);
    if (r < 0)
        return r;
    trace_vduse_start(device->export_id, device->features, device->options.spec.queue_count);
    virtio_blk_set_features(device->options.blk, device->features);
    device->state = DEVICE_RUNNING;
    r = resume_queues(device, err);
    if (r == 0)
        co_start(&device->group, "vduse-calls", call_all, device);
    return r;
}

/* A queue has met something wrong. If the kernel has other memory by now, it goes on with that where it
 * stopped. */
static void look_again(VduseQueue *queue)
{
    VduseDevice *device = queue->device;
    AUTO_FREE char *fault = TAKE(queue->fault), *text = NULL;
    AUTO_ERROR Error err = ERROR_INIT;
    bool changed = false;
    int r = 0;

    pause_queues(device);
    if (!virtio_memory_is_lost(device->iotlb.memory))
        r = fetch_memory(device, &changed, &err);
    if (r == 0 && changed)
        r = resume_queues(device, &err);
    if (r == 0 && changed)
        return;
    text = str_printf("queue %u: %s%s%s", queue->index, fault, r < 0 ? "; " : "", r < 0 ? err.message : "");
    fail_and_log(device, text);
}

static void look_after(void *arg)
{
    VduseQueue *queue = arg;
    VduseDevice *device = queue->device;

    if (co_mutex_lock(&device->lock) < 0)
        return;
    if (queue->fault)
        look_again(queue);
    co_mutex_unlock(&device->lock);
}

/* ---- Messages ---- */

/* A queue tells where it stands when nothing of it is in flight. */
static int get_queue_state(VduseDevice *device, uint32_t index, struct vduse_vq_state *ret_state, Error *err)
{
    uint32_t base;
    int r = 0;

    if (index >= device->options.spec.queue_count)
        return err_set(err, -EINVAL, "there is no queue %" PRIu32, index);
    if (device->queues[index].running) {
        pause_queues(device);
        r = resume_queues(device, err);
        if (r < 0)
            fail(device);
    }
    base = device->queues[index].config.base;
    ret_state->index = index;
    if (device->features & VIRTIO_FEATURE_RING_PACKED)
        ret_state->packed = (struct vduse_vq_state_packed){
            .last_avail_idx = base & 0x7fff,
            .last_avail_counter = base >> 15 & 1,
            .last_used_idx = base >> 16 & 0x7fff,
            .last_used_counter = base >> 31,
        };
    else
        ret_state->split.avail_index = (uint16_t)base;
    return r;
}

static int set_status(VduseDevice *device, uint8_t status, Error *err)
{
    int r = 0;

    if (status == 0) {
        stop(device);
        device->features = 0;
        vduse_record_clear(&device->record);
        return 0;
    }
    if (device->state != DEVICE_IDLE)
        return 0;
    if (status & VIRTIO_CONFIG_S_DRIVER_OK) {
        r = start(device, err);
        if (r < 0)
            stop(device);
    } else if (status & VIRTIO_CONFIG_S_FEATURES_OK) {
        r = check_features(device, err);
    }
    return r;
}

/* Ranges have come or gone: what is mapped is not to be touched any more when this is answered. */
static int update_memory(VduseDevice *device, Error *err)
{
    bool changed;
    int r;

    if (device->state != DEVICE_RUNNING)
        return 0;
    pause_queues(device);
    r = fetch_memory(device, &changed, err);
    if (r == 0)
        r = resume_queues(device, err);
    if (r < 0) {
        fail(device);
        vduse_iotlb_done(&device->iotlb);
    }
    return r;
}

static int handle(VduseDevice *device, const struct vduse_dev_request *request,
    struct vduse_dev_response *response, Error *err)
{
    switch (request->type) {
    case VDUSE_GET_VQ_STATE:
        return get_queue_state(device, request->vq_state.index, &response->vq_state, err);
    case VDUSE_SET_STATUS:
        return set_status(device, request->s.status, err);
    case VDUSE_UPDATE_IOTLB:
        return update_memory(device, err);
    default:
        return err_set(err, -ENOTSUP, "message of type %" PRIu32 " is not known", (uint32_t)request->type);
    }
}

/* False: this coroutine is to end. */
static bool answer(VduseDevice *device, const struct vduse_dev_request *request)
{
    struct vduse_dev_response response = {.request_id = request->request_id};
    AUTO_ERROR Error err = ERROR_INIT;

    trace_vduse_message(
        device->export_id, request->type, request->request_id, request->iova.start, request->iova.last);
    if (co_mutex_lock(&device->lock) < 0)
        return false;
    if (handle(device, request, &response, &err) < 0) {
        response.result = VDUSE_REQ_RESULT_FAILED;
        log_error("export '%s': vduse device %s%s: %s", device->export_id, device->handle.name,
            device->state == DEVICE_FAILED ? " has stopped until its driver resets it" : "", err.message);
    }
    /* It can only fail for a message that the kernel does not wait for any more. */
    if (write(device->handle.fd, &response, sizeof(response)) < 0)
        log_warn(
            "export '%s': vduse device %s was answered too late: %m", device->export_id, device->handle.name);
    co_mutex_unlock(&device->lock);
    return true;
}

/* The next message. 0: there is none yet. */
static int receive(const VduseDevice *device, struct vduse_dev_request *ret_request)
{
    int events = io_poll(device->handle.fd, POLLIN);
    ssize_t n;

    if (events < 0)
        return events;
    if (events & (POLLERR | POLLHUP | POLLNVAL))
        return -EPIPE;
    n = read(device->handle.fd, ret_request, sizeof(*ret_request));
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -errno;
    return n == sizeof(*ret_request) ? 1 : -EPIPE;
}

static void serve(void *arg)
{
    VduseDevice *device = arg;
    struct vduse_dev_request request;
    int r;

    while ((r = receive(device, &request)) >= 0)
        if (r > 0 && !answer(device, &request))
            return;
    if (r == -ECANCELED || co_mutex_lock(&device->lock) < 0)
        return;
    stop(device);
    log_error("export '%s': the kernel has given vduse device %s up, because a message was not answered in "
              "time; take it off the vDPA bus and export it again",
        device->export_id, device->handle.name);
    co_mutex_unlock(&device->lock);
}

/* ---- For the export ---- */

static bool is_set_up(const VduseDevice *device)
{
    for (uint32_t i = 0; i < device->options.spec.queue_count; i++) {
        struct vduse_vq_info info = {.index = i};

        if (vduse_control(&device->handle, VDUSE_VQ_GET_INFO, &info) >= 0 && info.ready)
            return true;
    }
    return false;
}

/* Serves on what a driver was using, if one was. */
static int adopt(VduseDevice *device, Error *err)
{
    VduseSpec *spec = &device->options.spec;
    int r = vduse_record_open(device->options.record_folder, spec, &device->record, err);

    if (r < 0) {
        err_hint(err, "The device is on the vDPA bus; to begin anew: vdpa dev del %s", device->handle.name);
        return r;
    }
    spec->features = device->record.features;
    if (!is_set_up(device))
        return 0;
    co_mutex_lock_shielded(&device->lock);
    r = start(device, err);
    co_mutex_unlock(&device->lock);
    return r;
}

/* The record comes before the queues: the device cannot be put on the bus until they are set up. */
static int open_device(VduseDevice *device, Error *err)
{
    const VduseDeviceOptions *options = &device->options;
    uint8_t config[VIRTIO_BLK_CONFIG_BYTES];
    VduseSpec spec = options->spec;
    int r;

    virtio_blk_get_config(options->blk, 0, config, sizeof(config));
    spec.config = config;
    spec.config_bytes = sizeof(config);
    r = vduse_handle_open(options->kernel, &spec, &device->handle, err);
    if (r < 0)
        return r;
    trace_vduse_open(device->export_id, device->handle.name, device->handle.adopted);
    if (device->handle.adopted)
        return adopt(device, err);
    r = vduse_record_create(options->record_folder, &spec, &device->record, err);
    return r < 0 ? r : vduse_handle_set_up(&device->handle, &spec, err);
}

int vduse_device_new(const VduseDeviceOptions *options, VduseDevice **ret_device, Error *err)
{
    VduseDevice *device = mem_new(VduseDevice);
    int r;

    device->options = *options;
    device->options.spec.features |= NEEDED_FEATURES;
    device->export_id = str_dup(options->export_id);
    device->handle = VDUSE_HANDLE_INIT;
    device->queues = mem_zalloc(options->spec.queue_count * sizeof(*device->queues));
    for (unsigned i = 0; i < options->spec.queue_count; i++)
        device->queues[i] = (VduseQueue){.device = device, .index = i, .kick_fd = -1};
    co_group_init(&device->group);
    r = open_device(device, err);
    if (r < 0) {
        device->state = DEVICE_IDLE;
        vduse_device_free(device);
        return r;
    }
    if (device->handle.adopted)
        vduse_device_resized(device);
    co_start(&device->group, "vduse-device", serve, device);
    *ret_device = device;
    return 0;
}

void vduse_device_free(VduseDevice *device)
{
    bool in_use = device->state != DEVICE_IDLE;
    int r;

    co_group_cancel(&device->group);
    co_group_join(&device->group);
    stop(device);
    co_group_join(&device->group); /* queues that have failed meanwhile */
    r = vduse_handle_close(&device->handle);
    trace_vduse_close(device->export_id, r);
    if (r == -EBUSY && in_use)
        log_warn("export '%s': vduse device %s is still used; requests to it wait until it is exported again",
            device->export_id, device->handle.name);
    vduse_record_done(&device->record, r != -EBUSY);
    free(device->queues);
    free(device->export_id);
    free(device);
}

bool vduse_device_in_use(const VduseDevice *device)
{
    return device->state != DEVICE_IDLE;
}

void vduse_device_resized(VduseDevice *device)
{
    _Alignas(struct vduse_config_data)
        uint8_t space[offsetof(struct vduse_config_data, buffer) + sizeof(uint64_t)] = {0};
    struct vduse_config_data *data = (struct vduse_config_data *)space;
    int r;

    /* The capacity comes first. */
    data->length = sizeof(uint64_t);
    virtio_blk_get_config(device->options.blk, 0, data->buffer, sizeof(uint64_t));
    r = vduse_control(&device->handle, VDUSE_DEV_SET_CONFIG, data);
    if (r < 0)
        log_error("export '%s': vduse device %s keeps its old size: %s", device->export_id,
            device->handle.name, strerror(-r));
    /* Refused before DRIVER_OK: then the driver will read the new size anyway. */
    (void)vduse_control(&device->handle, VDUSE_DEV_INJECT_CONFIG_IRQ, NULL);
}

void vduse_device_moved(VduseDevice *device)
{
    AUTO_ERROR Error err = ERROR_INIT;

    co_mutex_lock_shielded(&device->lock);
    if (device->state == DEVICE_RUNNING) {
        pause_queues(device);
        if (resume_queues(device, &err) < 0)
            fail_and_log(device, err.message);
    }
    co_mutex_unlock(&device->lock);
}
