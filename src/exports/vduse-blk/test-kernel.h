/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kernel's side of VDUSE for tests: one device, whose messages go through a socket pair, and the memory
 * of a driver. What it refuses, the kernel refuses, too (drivers/vdpa/vdpa_user/vduse_dev.c).
 */
#pragma once

#include "base/mem.h"
#include "exports/vduse-blk/device.h"
#include "proto/virtio-blk.h"

#include <fcntl.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define FAKE_QUEUES 4
#define FAKE_RANGES 4
#define FAKE_MEMORY_BYTES (1 * MIB)
#define FAKE_NEEDED (VIRTIO_FEATURE_VERSION_1 | UINT64_C(1) << VIRTIO_F_ACCESS_PLATFORM)

typedef struct FakeRange {
    uint64_t start, last, offset;
    uint8_t perm;
} FakeRange;

typedef struct FakeKernel {
    bool exists, on_bus, given_up;
    char name[VDUSE_NAME_MAX];
    uint64_t offered; /* features */
    uint32_t queue_count;
    uint8_t config[VIRTIO_BLK_CONFIG_BYTES];
    unsigned created, config_calls;
    uint64_t features;      /* the driver's */
    _Atomic uint8_t status; /* calls come from every loop */
    uint16_t size_max[FAKE_QUEUES];
    struct vduse_vq_info queues[FAKE_QUEUES];
    int kicks[FAKE_QUEUES];
    int called;    /* an eventfd that counts calls */
    int channel;   /* our end; -1: nobody has opened the device */
    uint32_t sent; /* messages */
    FakeRange ranges[FAKE_RANGES];
    unsigned range_count;
    int memory_fd;
    uint8_t *memory;
} FakeKernel;

/* Shared with children, as a kernel is. */
static FakeKernel *fake_state;
#define fake (*fake_state)

static inline void fake_init(void)
{
    fake_state = mmap(NULL, sizeof(fake), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    fake = (FakeKernel){.channel = -1, .kicks = {-1, -1, -1, -1}};
    fake.called = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    fake.memory_fd = memfd_create("driver", MFD_CLOEXEC);
    if (ftruncate(fake.memory_fd, FAKE_MEMORY_BYTES) < 0)
        abort();
    fake.memory = mmap(NULL, FAKE_MEMORY_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fake.memory_fd, 0);
}

/* Whether the other end of the channel is open. */
static inline bool fake_is_open(void)
{
    struct pollfd fd = {.fd = fake.channel};

    if (fake.channel >= 0 && poll(&fd, 1, 0) == 1 && fd.revents & POLLHUP)
        fake.channel = fd_close(fake.channel);
    return fake.channel >= 0;
}

static inline void fake_reset(void)
{
    fake.status = 0;
    fake.features = 0;
    for (unsigned i = 0; i < FAKE_QUEUES; i++) {
        fake.queues[i] = (struct vduse_vq_info){.index = i};
        fake.kicks[i] = fd_close(fake.kicks[i]);
    }
}

static inline void fake_done(void)
{
    fake_reset();
    fd_close(fake.channel);
    fd_close(fake.called);
    munmap(fake.memory, FAKE_MEMORY_BYTES);
    fd_close(fake.memory_fd);
    munmap(fake_state, sizeof(fake));
}

static int fake_open(const char *path)
{
    int pair[2];

    if (str_eq(path, "/dev/vduse/control"))
        return open("/dev/null", O_RDWR | O_CLOEXEC);
    if (!fake.exists || !str_eq(path + strlen("/dev/vduse/"), fake.name))
        return -ENOENT;
    if (fake_is_open())
        return -EBUSY;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
        return -errno;
    fake.channel = pair[0];
    return pair[1];
}

static inline int fake_create(const struct vduse_dev_config *config)
{
    if (config->device_id != VIRTIO_ID_BLOCK ||
        !(config->features & UINT64_C(1) << VIRTIO_F_ACCESS_PLATFORM) ||
        config->features & VIRTIO_BLK_FEATURE_CONFIG_WCE || config->config_size != sizeof(fake.config) ||
        config->vq_num > FAKE_QUEUES)
        return -EINVAL;
    for (size_t i = 0; i < ARRAY_SIZE(config->reserved); i++)
        if (config->reserved[i])
            return -EINVAL;
    if (fake.exists)
        return -EEXIST;
    memcpy(fake.name, config->name, sizeof(fake.name));
    fake.offered = config->features;
    fake.queue_count = config->vq_num;
    memcpy(fake.config, config->config, sizeof(fake.config));
    fake.exists = true;
    fake.created++;
    memset(fake.size_max, 0, sizeof(fake.size_max));
    fake_reset();
    return 0;
}

static inline int fake_destroy(const char *name)
{
    if (!fake.exists || !str_eq(name, fake.name))
        return -EINVAL;
    if (fake.on_bus || fake_is_open())
        return -EBUSY;
    fake.exists = false;
    return 0;
}

static inline int fake_get_range(struct vduse_iotlb_entry *entry)
{
    for (unsigned i = 0; i < fake.range_count; i++) {
        const FakeRange *range = &fake.ranges[i];

        if (range->last < entry->start || range->start > entry->last)
            continue;
        *entry = (struct vduse_iotlb_entry){range->offset, range->start, range->last, range->perm};
        return dup(fake.memory_fd);
    }
    return -EINVAL;
}

static inline int fake_set_kick(const struct vduse_vq_eventfd *kick)
{
    if (kick->index >= fake.queue_count)
        return -EINVAL;
    fd_close(fake.kicks[kick->index]);
    fake.kicks[kick->index] = kick->fd < 0 ? -1 : dup(kick->fd);
    return 0;
}

static inline int fake_call(uint32_t index)
{
    if (index >= fake.queue_count || !(fake.status & VIRTIO_CONFIG_S_DRIVER_OK))
        return -EINVAL;
    return eventfd_write(fake.called, 1);
}

static inline int fake_get_info(struct vduse_vq_info *info)
{
    if (info->index >= fake.queue_count)
        return -EINVAL;
    *info = fake.queues[info->index];
    return 0;
}

static inline int fake_set_up(const struct vduse_vq_config *config)
{
    if (config->index >= fake.queue_count)
        return -EINVAL;
    fake.size_max[config->index] = config->max_size;
    return 0;
}

static inline int fake_set_config(const struct vduse_config_data *data)
{
    if (data->length == 0 || out_of_range(data->offset, data->length, sizeof(fake.config)))
        return -EINVAL;
    memcpy(fake.config + data->offset, data->buffer, data->length);
    return 0;
}

static int fake_control(int fd, unsigned long request, void *arg)
{
    if (request == VDUSE_SET_API_VERSION)
        return *(uint64_t *)arg == 0 ? 0 : -EINVAL;
    if (request == VDUSE_CREATE_DEV)
        return fake_create(arg);
    if (request == VDUSE_DESTROY_DEV)
        return fake_destroy(arg);
    if (fake.given_up)
        return -EPERM;
    if (request == VDUSE_IOTLB_GET_FD)
        return fake_get_range(arg);
    if (request == VDUSE_VQ_SETUP)
        return fake_set_up(arg);
    if (request == VDUSE_VQ_GET_INFO)
        return fake_get_info(arg);
    if (request == VDUSE_VQ_SETUP_KICKFD)
        return fake_set_kick(arg);
    if (request == VDUSE_VQ_INJECT_IRQ)
        return fake_call(*(uint32_t *)arg);
    if (request == VDUSE_DEV_SET_CONFIG)
        return fake_set_config(arg);
    if (request == VDUSE_DEV_GET_FEATURES) {
        *(uint64_t *)arg = fake.features;
        return 0;
    }
    if (request == VDUSE_DEV_INJECT_CONFIG_IRQ) {
        fake.config_calls++;
        return fake.status & VIRTIO_CONFIG_S_DRIVER_OK ? 0 : -EINVAL;
    }
    return -ENOTTY;
}

static const VduseKernel fake_kernel = {.open = fake_open, .control = fake_control};

/* Sends a message and waits for the answer. */
static inline int fake_ask(struct vduse_dev_request request, struct vduse_dev_response *ret_response)
{
    request.request_id = fake.sent++;
    if (send(fake.channel, &request, sizeof(request), MSG_NOSIGNAL) != sizeof(request))
        return -errno;
    if (io_recv(fake.channel, ret_response, sizeof(*ret_response)) != sizeof(*ret_response) ||
        ret_response->request_id != request.request_id)
        return -EIO;
    return ret_response->result == VDUSE_REQ_RESULT_OK ? 0 : -EPROTO;
}

static inline int fake_set_status(uint8_t status)
{
    struct vduse_dev_response response;
    int r = fake_ask((struct vduse_dev_request){.type = VDUSE_SET_STATUS, .s.status = status}, &response);

    if (status == 0)
        fake_reset();
    else if (r == 0)
        fake.status = status;
    return r;
}
