/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Virtqueues: what both kinds of rings share. The rings themselves are in split.c and packed.c; which one it
 * is, is a branch that the processor predicts.
 */
#include "virtio/queue-priv.h"

#include "base/mem.h"

#include <assert.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>

int queue_fault(VirtQueue *queue, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    vsnprintf(queue->fault, sizeof(queue->fault), fmt, args);
    va_end(args);
    queue->interrupted = true;
    return -EPROTO;
}

const char *virtqueue_fault(const VirtQueue *queue)
{
    return queue->fault[0] ? queue->fault : NULL;
}

char *queue_ring_at(
    const VirtQueue *queue, const char *what, uint64_t user, size_t bytes, size_t align, Error *err)
{
    char *at = virtio_memory_at_user(queue->memory, user, bytes);

    if (!at)
        err_set(err, -EINVAL, "the %s (%zu bytes at %#" PRIx64 ") lies outside the shared memory", what,
            bytes, user);
    else if (!is_aligned((uintptr_t)at, align))
        err_set(err, -EINVAL, "the %s at %#" PRIx64 " is not aligned to %zu bytes", what, user, align);
    else
        return at;
    return NULL;
}

/* As long as the longest legal request with every descriptor in as many regions as there are side by side.
 * Memory that is never touched costs nothing. */
static int alloc_scratch(VirtQueue *queue, Error *err)
{
    size_t pieces = memory_joints(queue->memory) + 1;

    queue->iov = mem_try_aligned(64, (queue->size + LIMIT_VIRTQUEUE_SIZE) * pieces * sizeof(*queue->iov));
    queue->table_copy = mem_try_aligned(64, LIMIT_VIRTQUEUE_SIZE * DESCRIPTOR_BYTES);
    queue->taken = mem_try_zalloc(queue->packed ? PACKED_IDS : queue->size, sizeof(*queue->taken));
    if (!queue->iov || !queue->taken || !queue->table_copy)
        return err_set(err, -ENOMEM, "no memory for a virtqueue of %u entries", queue->size);
    return 0;
}

static int init(VirtQueue *queue, const VirtQueueConfig *config, void *inflight, Error *err)
{
    int r;

    if (config->size == 0 || config->size > LIMIT_VIRTQUEUE_SIZE)
        return err_set(err, -EINVAL, "a virtqueue cannot have %u entries, %u is the most", config->size,
            LIMIT_VIRTQUEUE_SIZE);
    r = config->packed ? packed_init(queue, config, err) : split_init(queue, config, err);
    if (r < 0)
        return r;
    r = alloc_scratch(queue, err);
    if (r < 0 || !inflight)
        return r;
    r = config->packed ? inflight_packed_init(queue, inflight, err)
                       : inflight_split_init(queue, inflight, err);
    if (r < 0)
        return err_prefix(err, r, "in-flight area");
    queue->interrupted = queue->inflight.resume_count > 0;
    return 0;
}

int virtqueue_new(const VirtQueueConfig *config, const VirtioMemory *memory, void *inflight,
    VirtQueue **ret_queue, Error *err)
{
    VirtQueue *queue = mem_new(VirtQueue);
    int r;

    queue->packed = config->packed;
    queue->indirect = config->indirect;
    queue->event_idx = config->event_idx;
    queue->logs_used = config->logs_used;
    queue->used_log_guest = config->used_log_guest;
    queue->size = config->size;
    queue->memory = memory;
    queue->call_is_due = true;
    r = init(queue, config, inflight, err);
    if (r < 0) {
        virtqueue_free(queue);
        return r;
    }
    *ret_queue = queue;
    return 0;
}

void virtqueue_free(VirtQueue *queue)
{
    if (!queue)
        return;
    inflight_done(&queue->inflight);
    free(queue->table_copy);
    free(queue->taken);
    free(queue->iov);
    free(queue);
}

void chain_order_fault(VirtQueue *queue, uint64_t guest, uint32_t bytes)
{
    queue_fault(queue,
        "a device-readable buffer (%u bytes at %#" PRIx64 ") comes after a device-writable one", bytes,
        guest);
}

Window window_of(const MemoryRegion *region)
{
    return (Window){region->guest, region->bytes, (uintptr_t)region->at - (uintptr_t)region->guest};
}

struct iovec *chain_add_slowly(VirtQueue *queue, struct iovec *next, uint64_t guest, uint32_t bytes)
{
    uint64_t at = guest, left = bytes;

    if (bytes == 0) {
        queue_fault(queue, "a buffer at %#" PRIx64 " has no bytes", guest);
        return NULL;
    }
    while (left) {
        const MemoryRegion *region = memory_find(queue->memory, at);
        uint64_t offset, piece;

        if (!region) {
            queue_fault(queue, "a buffer (%u bytes at %#" PRIx64 ") lies outside guest memory", bytes, guest);
            return NULL;
        }
        offset = at - region->guest;
        piece = MIN(left, region->bytes - offset);
        *next++ = (struct iovec){region->at + offset, piece};
        queue->data = window_of(region);
        at += piece;
        left -= piece;
    }
    return next;
}

/* Copies a table together that lies in several regions. */
static const char *chain_table_in_pieces(VirtQueue *queue, uint64_t guest, uint32_t bytes)
{
    uint64_t piece;

    for (uint32_t done = 0; done < bytes; done += (uint32_t)piece) {
        void *at = virtio_memory_at(queue->memory, guest + done, bytes - done, &piece);

        if (!at) {
            queue_fault(queue, "an indirect table (%u bytes at %#" PRIx64 ") lies outside guest memory",
                bytes, guest);
            return NULL;
        }
        memcpy(queue->table_copy + done, at, piece);
    }
    return queue->table_copy;
}

const char *chain_table_slowly(VirtQueue *queue, uint64_t guest, uint32_t bytes)
{
    const MemoryRegion *region = memory_find(queue->memory, guest);

    if (!queue->indirect) {
        queue_fault(queue, "an indirect table at %#" PRIx64 " without the feature", guest);
        return NULL;
    }
    if (bytes % DESCRIPTOR_BYTES || bytes == 0 || bytes > LIMIT_VIRTQUEUE_SIZE * DESCRIPTOR_BYTES) {
        queue_fault(queue, "an indirect table at %#" PRIx64 " has %u bytes", guest, bytes);
        return NULL;
    }
    if (!region || bytes > region->bytes - (guest - region->guest))
        return chain_table_in_pieces(queue, guest, bytes);
    queue->tables = window_of(region);
    return window_at(&queue->tables, guest);
}

/* Takes up what an earlier process had taken. */
static int pop_interrupted(VirtQueue *queue, VirtElement *ret_element)
{
    Inflight *inflight = &queue->inflight;
    uint16_t at;
    int r;

    if (queue->fault[0])
        return -EPROTO;
    at = inflight->resume[inflight->resumed].at;
    r = queue->packed ? packed_resume(queue, at, ret_element) : split_resume(queue, at, ret_element);
    if (r < 0)
        return r;
    queue->in_flight++;
    inflight->resumed++;
    queue->interrupted = inflight->resumed < inflight->resume_count;
    return 1;
}

int virtqueue_pop(VirtQueue *queue, VirtElement *ret_element)
{
    if (UNLIKELY(queue->interrupted))
        return pop_interrupted(queue, ret_element);
    return queue->packed ? packed_pop(queue, ret_element) : split_pop(queue, ret_element);
}

bool virtqueue_has_more(const VirtQueue *queue)
{
    return queue->interrupted || (queue->packed ? packed_has_more(queue) : split_has_more(queue));
}

void virtqueue_push(VirtQueue *queue, const VirtElement *element, uint32_t written)
{
    assert(queue->taken[element->id]);
    queue->taken[element->id] = false;
    queue->in_flight--;
    if (queue->packed)
        packed_push(queue, element, written);
    else
        split_push(queue, element, written);
}

bool virtqueue_wants_call(VirtQueue *queue)
{
    bool wants = false;

    if (queue->used_since_call || queue->call_is_due) {
        /* The driver says what it wants and looks then; we tell and then read what it wants: one of us sees
         * the other. */
        atomic_thread_fence(memory_order_seq_cst);
        wants = queue->packed ? packed_wants_call(queue) : split_wants_call(queue);
    }
    queue->used_since_call = 0;
    queue->call_is_due = false;
    return wants;
}

bool virtqueue_ask_for_kicks(VirtQueue *queue, bool kicks)
{
    if (queue->packed)
        packed_ask_for_kicks(queue, kicks);
    else
        split_ask_for_kicks(queue, kicks);
    if (!kicks)
        return false;
    atomic_thread_fence(memory_order_seq_cst); /* as above, the other way round */
    return virtqueue_has_more(queue);
}

unsigned virtqueue_in_flight(const VirtQueue *queue)
{
    return queue->in_flight;
}

static uint32_t place_bits(PackedPlace place)
{
    return place.index | (uint32_t)place.wrap << 15;
}

uint32_t virtqueue_base(const VirtQueue *queue)
{
    if (!queue->packed)
        return queue->split.next_available;
    return place_bits(queue->ring.next_available) | place_bits(queue->ring.next_used) << 16;
}
