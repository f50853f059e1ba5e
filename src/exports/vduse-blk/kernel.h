/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A VDUSE device at the kernel (Linux include/uapi/linux/vduse.h, Documentation/userspace-api/vduse.rst):
 * made, found again after its server has died, and destroyed.
 *
 * A device that is on the vDPA bus outlives its server. Whoever opens it next serves it on; what the kernel
 * does not keep for that lies in a record (record.h).
 */
#pragma once

#include "base/error.h"

#include <linux/ioctl.h>
#include <linux/vduse.h>

/* The system calls; unit tests play the kernel with a table of their own. */
typedef struct VduseKernel {
    /* A new non-blocking descriptor, or -errno. */
    int (*open)(const char *path);
    /* ioctl(2): its result, or -errno. Any thread. */
    int (*control)(int fd, unsigned long request, void *arg);
} VduseKernel;

extern const VduseKernel vduse_kernel_linux;

/* What a device is made of. */
typedef struct VduseSpec {
    const char *name;
    uint64_t features; /* that a driver may choose from */
    unsigned queue_count;
    unsigned queue_size; /* entries, at most */
    uint32_t block_bytes;
    const void *config; /* configuration space */
    size_t config_bytes;
} VduseSpec;

typedef struct VduseHandle {
    const VduseKernel *kernel;
    char name[VDUSE_NAME_MAX];
    int control_fd, fd;
    bool adopted; /* the device was on the vDPA bus already: a driver may be using it */
} VduseHandle;

#define VDUSE_HANDLE_INIT ((VduseHandle){.control_fd = -1, .fd = -1})

/* Makes the device, or opens the one of that name if it is on the bus. */
int vduse_handle_open(
    const VduseKernel *kernel, const VduseSpec *spec, VduseHandle *ret_handle, Error *err) MUST_CHECK;
/* Sets the queues of a new device up; from then on it can be put on the bus. */
int vduse_handle_set_up(const VduseHandle *handle, const VduseSpec *spec, Error *err) MUST_CHECK;
/* Closes the device and destroys it; -EBUSY: it stays, because it is on the bus. Fine for one that was not
 * opened. */
int vduse_handle_close(VduseHandle *handle);
/* An ioctl of the device. Any thread. */
int vduse_control(const VduseHandle *handle, unsigned long request, void *arg);
