/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A virtio block device (virtio 1.2, 5.2) on an edge: configuration, requests, and queues that run on loops.
 * Transports (vhost-user, VDUSE) negotiate, own the memory table and the descriptors, and start and stop
 * queues.
 *
 * Functions are called on the main loop unless they say otherwise. All numbers on the wire are little-endian.
 */
#pragma once

#include "block/node.h"
#include "proto/virtio-blk.h"
#include "virtio/queue.h"

typedef struct VirtioBlk VirtioBlk;
typedef struct VirtioBlkQueue VirtioBlkQueue;

typedef struct VirtioBlkOptions {
    Edge *edge;
    bool writable;
    bool writethrough;
    uint32_t logical_block_bytes; /* power of two, 512 to 2 MiB */
    unsigned queue_count;
    unsigned queue_size_max; /* seg_max follows from it; 128: as vhost-user tells it */
    const char *serial;      /* at most VIRTIO_BLK_SERIAL_BYTES; what GET_ID returns */
} VirtioBlkOptions;

VirtioBlk *virtio_blk_new(const VirtioBlkOptions *options);
/* All queues must have stopped. NULL is fine. */
void virtio_blk_free(VirtioBlk *blk);

/* The device's feature bits (5.2.3) and those of the rings; without the transport's own. */
uint64_t virtio_blk_features(const VirtioBlk *blk);
/* What the driver has accepted, before queues start. */
void virtio_blk_set_features(VirtioBlk *blk, uint64_t features);
/* Configuration space; bytes behind its end are zero. */
void virtio_blk_get_config(const VirtioBlk *blk, size_t offset, void *ret_data, size_t bytes);
/* -EINVAL unless it is the write cache byte alone. */
int virtio_blk_set_config(VirtioBlk *blk, size_t offset, const void *data, size_t bytes) MUST_CHECK;
/* The node's size has changed: the capacity follows. */
void virtio_blk_resized(VirtioBlk *blk, uint64_t bytes);

typedef struct VirtioBlkQueueOptions {
    VirtQueueConfig config;
    const VirtioMemory *memory; /* unchanged until the queue has stopped */
    void *inflight;             /* or NULL; stays mapped until then */
    int kick_fd, call_fd;       /* eventfds, borrowed until then; -1: none (kick: polls only) */
    Loop *loop;                 /* where the queue runs */
    /* Pages of memory may be missing until the front end brings them: `loop`, which nobody else uses, waits
     * for each before other loops meet it. */
    bool touches;
    /* Instead of call_fd for a transport that has none: tells the driver to look at the used ring. On `loop`,
     * must not wait. May be NULL. */
    void (*call)(void *opaque, unsigned index);
    /* The queue has stopped taking requests because of what the front end did. Main loop; text is borrowed.
     */
    void (*failed)(void *opaque, unsigned index, const char *text);
    void *opaque;
} VirtioBlkQueueOptions;

/* Starts queue `index`: it takes what is in the ring at once and waits for kicks then. */
int virtio_blk_queue_start(VirtioBlk *blk, unsigned index, const VirtioBlkQueueOptions *options,
    VirtioBlkQueue **ret_queue, Error *err) MUST_CHECK;
/* Takes no new request, waits for those in flight, and frees the queue. Returns where it stands
 * (VirtQueueConfig.base). */
uint32_t virtio_blk_queue_stop(VirtioBlkQueue *queue);
/* From now on calls go to that descriptor (borrowed; -1: nowhere), and one is sent in case one was missed.
 * Waits until the old one is not used any more. */
void virtio_blk_queue_set_call(VirtioBlkQueue *queue, int call_fd);
