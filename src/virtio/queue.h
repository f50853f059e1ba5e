/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The device side of a virtqueue, split or packed (virtio 1.2, 2.7 and 2.8), with indirect descriptors,
 * notification suppression by flags and by event index, and the vhost-user in-flight area (vhost-user.rst,
 * "Inflight I/O tracking").
 *
 * No I/O and no waiting: a queue belongs to one loop. Everything in the rings is hostile: each descriptor is
 * copied once, then checked, then used. After a violation (-EPROTO) the queue must not be used any more;
 * `fault` says what was wrong.
 */
#pragma once

#include "base/macros.h"
#include "virtio/memory.h"

#include <sys/uio.h>

typedef struct VirtQueue VirtQueue;

/* Where a queue's rings are and where it stands. Addresses are the front end's own (virtio_memory_at_user).
 */
typedef struct VirtQueueConfig {
    unsigned size; /* entries; split: a power of two; at most LIMIT_VIRTQUEUE_SIZE */
    bool packed, indirect, event_idx;
    uint64_t descriptors;    /* split: descriptor table; packed: descriptor ring */
    uint64_t available;      /* split: available ring; packed: driver event suppression */
    uint64_t used;           /* split: used ring; packed: device event suppression */
    bool logs_used;          /* writes to the used ring are marked in the log */
    uint64_t used_log_guest; /* the used ring's guest address for that purpose */
    /* As SET_VRING_BASE and GET_VRING_BASE have it. Split: next index of the available ring. Packed: bits 0
     * to 14 next available, 15 its wrap counter, 16 to 30 next used, 31 its wrap counter. */
    uint32_t base;
} VirtQueueConfig;

/* One request. */
typedef struct VirtElement {
    uint16_t id;          /* split: head descriptor; packed: buffer id */
    uint16_t descriptors; /* ring entries that it occupies (packed; 1 with an indirect table) */
    uint32_t inflight;    /* its slot in the in-flight area */
    /* Device-readable pieces first, then device-writable ones. They point into guest memory and are valid
     * until the next pop; copy what is to stay. A descriptor that crosses regions has several; there can be
     * more of them than IOV_MAX. */
    struct iovec *iov;
    unsigned out_count, in_count;
    size_t out_bytes, in_bytes;
} VirtElement;

/*
 * inflight: the queue's part of the in-flight area, virtqueue_inflight_bytes() long, or NULL. If it tells of
 * requests that an earlier process had taken and not finished, they are popped first, in the order in which
 * they were taken. A zeroed area is new; one in use says where the ring stands and config->base does not
 * count (a front end does not know it after a crash). -EINVAL with err: addresses outside memory, unaligned,
 * a size that is not legal, an area that makes no sense.
 */
int virtqueue_new(const VirtQueueConfig *config, const VirtioMemory *memory, void *inflight,
    VirtQueue **ret_queue, Error *err) MUST_CHECK;
void virtqueue_free(VirtQueue *queue);
size_t virtqueue_inflight_bytes(unsigned size, bool packed);

/* 1: *ret_element is the next request. 0: there is none. -EPROTO: the front end has broken the rules. */
int virtqueue_pop(VirtQueue *queue, VirtElement *ret_element) MUST_CHECK;
/* Cheap: false only if pop would return 0. */
bool virtqueue_has_more(const VirtQueue *queue);
/* The request is done and `written` bytes from the start of its writable pieces are valid. id, descriptors
 * and inflight as popped. Requests may end in any order. What was written to the ring is marked in the log;
 * what was written to the pieces has to be marked by whoever did it, before: virtio_memory_written(). */
void virtqueue_push(VirtQueue *queue, const VirtElement *element, uint32_t written);
/* After one or more pushes: true if the front end wants to be told (call). */
bool virtqueue_wants_call(VirtQueue *queue);
/* Whether the front end is to kick for new requests. After asking for kicks one more look is needed: true if
 * there are requests that no kick will come for. */
bool virtqueue_ask_for_kicks(VirtQueue *queue, bool kicks);
/* Requests popped and not pushed yet. */
unsigned virtqueue_in_flight(const VirtQueue *queue);
/* Where the next process goes on, as VirtQueueConfig.base. */
uint32_t virtqueue_base(const VirtQueue *queue);
/* What the front end has done, after -EPROTO; else NULL. */
const char *virtqueue_fault(const VirtQueue *queue);
