/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A VDUSE device in service: answers the kernel's messages, and starts and stops the queues of a virtio block
 * device as they tell. Main loop, in coroutines, which may wait; queues run on loops of their own.
 */
#pragma once

#include "exports/vduse-blk/kernel.h"
#include "virtio/blk.h"

typedef struct VduseDevice VduseDevice;

typedef struct VduseDeviceOptions {
    const char *export_id; /* for messages */
    const VduseKernel *kernel;
    const char *record_folder; /* see record.h */
    VduseSpec spec; /* without the configuration space, which is blk's, and features that VDUSE adds */
    VirtioBlk *blk; /* borrowed until the device is gone */
    /* Where queue `index` is to run, asked whenever it starts. */
    Loop *(*queue_loop)(void *opaque, unsigned index);
    void *opaque;
} VduseDeviceOptions;

/* The device is there for `vdpa dev add`, or is served on if it was on the vDPA bus already. */
int vduse_device_new(const VduseDeviceOptions *options, VduseDevice **ret_device, Error *err) MUST_CHECK;
/* Waits for requests in flight. A device that is on the bus stays there, with its record, for the next
 * process. */
void vduse_device_free(VduseDevice *device);
/* A driver uses the device. */
bool vduse_device_in_use(const VduseDevice *device);
/* The capacity in blk's configuration space has changed. Does not wait. */
void vduse_device_resized(VduseDevice *device);
/* Queues belong on other loops now. */
void vduse_device_moved(VduseDevice *device);
