/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A device of that name that exists already is one of three: left behind off the bus (destroyed and made
 * anew, so that it is what the options say), left behind on the bus (served on), or served by another process
 * (an error).
 */
#include "exports/vduse-blk/kernel.h"

#include "base/mem.h"

#include <fcntl.h>
#include <inttypes.h>
#include <linux/virtio_ids.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define CONTROL_PATH "/dev/vduse/control"
#define API_VERSION UINT64_C(0)
/* The kernel is told to lay rings out on pages. */
#define QUEUE_ALIGN 4096

static int linux_open(const char *path)
{
    int fd;

    do {
        fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
    } while (fd < 0 && errno == EINTR);
    return fd < 0 ? -errno : fd;
}

static int linux_control(int fd, unsigned long request, void *arg)
{
    int r;

    do {
        r = ioctl(fd, request, arg);
    } while (r < 0 && errno == EINTR);
    return r < 0 ? -errno : r;
}

const VduseKernel vduse_kernel_linux = {.open = linux_open, .control = linux_control};

int vduse_control(const VduseHandle *handle, unsigned long request, void *arg)
{
    return handle->kernel->control(handle->fd, request, arg);
}

static int open_control(VduseHandle *handle, Error *err)
{
    uint64_t version = API_VERSION;
    int fd = handle->kernel->open(CONTROL_PATH);
    int r;

    if (fd < 0) {
        r = err_set_errno(err, fd, "Failed to open " CONTROL_PATH);
        if (fd == -ENOENT)
            err_hint(err, "The kernel's module may be missing: modprobe vduse");
        return r;
    }
    handle->control_fd = fd;
    r = handle->kernel->control(fd, VDUSE_SET_API_VERSION, &version);
    return r < 0 ? err_set_errno(err, r, "Failed to set api version %" PRIu64, version) : 0;
}

static int create(const VduseHandle *handle, const VduseSpec *spec)
{
    AUTO_FREE struct vduse_dev_config *config =
        mem_zalloc(offsetof(struct vduse_dev_config, config) + spec->config_bytes);

    memcpy(config->name, handle->name, sizeof(config->name));
    config->device_id = VIRTIO_ID_BLOCK;
    config->features = spec->features;
    config->vq_num = spec->queue_count;
    config->vq_align = QUEUE_ALIGN;
    config->config_size = (uint32_t)spec->config_bytes;
    memcpy(config->config, spec->config, spec->config_bytes);
    return handle->kernel->control(handle->control_fd, VDUSE_CREATE_DEV, config);
}

static int destroy(VduseHandle *handle)
{
    return handle->kernel->control(handle->control_fd, VDUSE_DESTROY_DEV, handle->name);
}

static int create_or_adopt(VduseHandle *handle, const VduseSpec *spec, Error *err)
{
    int r = create(handle, spec);

    if (r == -EEXIST) {
        r = destroy(handle);
        handle->adopted = r == -EBUSY;
        if (!handle->adopted)
            r = create(handle, spec);
    }
    if (r < 0 && !handle->adopted)
        return err_set_errno(err, r, "Failed to create vduse device %s", handle->name);
    return 0;
}

static int open_device(VduseHandle *handle, Error *err)
{
    AUTO_FREE char *path = str_printf("/dev/vduse/%s", handle->name);
    int fd = handle->kernel->open(path);

    if (fd == -EBUSY)
        return err_set(err, fd, "Another process serves %s", path);
    if (fd < 0)
        return err_set_errno(err, fd, "Failed to open %s", path);
    handle->fd = fd;
    return 0;
}

int vduse_handle_set_up(const VduseHandle *handle, const VduseSpec *spec, Error *err)
{
    for (unsigned i = 0; i < spec->queue_count; i++) {
        struct vduse_vq_config config = {.index = i, .max_size = (uint16_t)spec->queue_size};
        int r = vduse_control(handle, VDUSE_VQ_SETUP, &config);

        if (r < 0)
            return err_set_errno(err, r, "Failed to set queue %u of vduse device %s up", i, handle->name);
    }
    return 0;
}

static bool has_queue(const VduseHandle *handle, unsigned index)
{
    struct vduse_vq_info info = {.index = index};

    return vduse_control(handle, VDUSE_VQ_GET_INFO, &info) >= 0;
}

/* The device was made by another process: is it alive, and as large as it is to be? */
static int check_adopted(const VduseHandle *handle, const VduseSpec *spec, Error *err)
{
    uint64_t features;
    int r = vduse_control(handle, VDUSE_DEV_GET_FEATURES, &features);

    if (r == -EPERM) {
        r = err_set(err, r, "The kernel has given vduse device %s up, because nobody served it for too long",
            handle->name);
        err_hint(err, "Take it off the vDPA bus first: vdpa dev del %s", handle->name);
        return r;
    }
    if (r < 0)
        return err_set_errno(err, r, "Failed to get features of vduse device %s", handle->name);
    if (!has_queue(handle, spec->queue_count - 1) || has_queue(handle, spec->queue_count))
        return err_set(err, -EINVAL, "vduse device %s is in use with another number of queues than %u",
            handle->name, spec->queue_count);
    return 0;
}

/* The name is a file's in /dev/vduse; a slash would make another one of it. */
static int check_name(const char *name, Error *err)
{
    if (!*name || strlen(name) >= VDUSE_NAME_MAX || strstr(name, "..") || strchr(name, '/') ||
        str_eq(name, ".") || str_eq(name, "control"))
        return err_set(err, -EINVAL,
            "'%s' cannot be the name of a vduse device: it needs 1 to %u bytes without '/' or '..', and not "
            "'control'",
            name, VDUSE_NAME_MAX - 1);
    return 0;
}

int vduse_handle_open(const VduseKernel *kernel, const VduseSpec *spec, VduseHandle *ret_handle, Error *err)
{
    VduseHandle handle = VDUSE_HANDLE_INIT;
    int r = check_name(spec->name, err);

    if (r < 0)
        return r;
    handle.kernel = kernel;
    strcpy(handle.name, spec->name);
    r = open_control(&handle, err);
    if (r == 0)
        r = create_or_adopt(&handle, spec, err);
    if (r == 0) {
        r = open_device(&handle, err);
        if (r == 0 && handle.adopted)
            r = check_adopted(&handle, spec, err);
        if (r < 0 && !handle.adopted) {
            handle.fd = fd_close(handle.fd);
            destroy(&handle);
        }
    }
    if (r < 0) {
        fd_close(handle.fd);
        fd_close(handle.control_fd);
        return r;
    }
    *ret_handle = handle;
    return 0;
}

int vduse_handle_close(VduseHandle *handle)
{
    int r = 0;

    handle->fd = fd_close(handle->fd);
    if (handle->control_fd >= 0)
        r = destroy(handle);
    handle->control_fd = fd_close(handle->control_fd);
    return r;
}
