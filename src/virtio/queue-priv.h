/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the two kinds of rings have in common: the queue itself and the making of a request out of
 * descriptors.
 *
 * Everything shared is read once, by a volatile or atomic access, into a local variable, and only that is
 * looked at. What is written and in which order matters twice: to the driver on another processor, and to a
 * process that takes over after this one was killed between any two instructions (inflight-priv.h).
 */
#pragma once

#include "virtio/inflight-priv.h"
#include "virtio/memory-priv.h"
#include "virtio/queue.h"

#include "base/endian.h"
#include "base/limits.h"

/* Flags of descriptors (virtio 1.2, 2.7.5 and 2.8). */
#define DESC_NEXT 0x1
#define DESC_WRITE 0x2
#define DESC_INDIRECT 0x4
#define DESC_AVAIL 0x80
#define DESC_USED 0x8000

#define DESCRIPTOR_BYTES 16
/* Buffer ids of packed rings have 16 bits and no other bound; heads of split rings are below the size. */
#define PACKED_IDS 65536

#define FAULT_TEXT_BYTES 160

/* For what is called from two places, only one of which is busy. */
#define HOT static inline __attribute__((always_inline))

typedef struct SplitRing {
    char *descriptors, *available, *used;
    uint16_t mask;
    uint16_t next_available; /* the next one to be popped */
    uint16_t seen_available; /* the driver's index when it was last read */
    uint16_t next_used;
} SplitRing;

/* A place in a packed ring and the wrap counter there. */
typedef struct PackedPlace {
    uint16_t index;
    bool wrap;
} PackedPlace;

typedef struct PackedRing {
    char *descriptors, *driver_event, *device_event;
    PackedPlace next_available, next_used;
    unsigned occupied; /* entries of the requests that were taken and not used yet */
} PackedRing;

/* A region that was hit before. Guest address plus `shift` is where it lies here. */
typedef struct Window {
    uint64_t start, bytes;
    uintptr_t shift;
} Window;

struct VirtQueue {
    bool packed, indirect, event_idx, logs_used;
    bool interrupted; /* pop has something else to do first: a fault, or requests of an earlier process */
    bool call_is_due; /* nobody knows what the earlier process has told */
    unsigned size;
    unsigned in_flight;
    unsigned used_since_call; /* entries */
    const VirtioMemory *memory;
    Window data, tables;
    struct iovec *iov; /* room for the longest request */
    char *table_copy;  /* for an indirect table that is not in one piece */
    bool *taken;       /* heads or buffer ids of requests that were taken */
    union {
        SplitRing split;
        PackedRing ring;
    };
    uint64_t used_log_guest;
    Inflight inflight;
    char fault[FAULT_TEXT_BYTES];
};

/* Keeps the text, ends the queue's life and returns -EPROTO. */
int queue_fault(VirtQueue *queue, const char *fmt, ...) PRINTF(2, 3) __attribute__((cold));

int split_init(VirtQueue *queue, const VirtQueueConfig *config, Error *err) MUST_CHECK;
int split_pop(VirtQueue *queue, VirtElement *ret_element) MUST_CHECK;
/* The request that starts at a head, which an earlier process had taken. */
int split_resume(VirtQueue *queue, uint16_t head, VirtElement *ret_element) MUST_CHECK;
bool split_has_more(const VirtQueue *queue);
void split_push(VirtQueue *queue, const VirtElement *element, uint32_t written);
bool split_wants_call(const VirtQueue *queue);
void split_ask_for_kicks(VirtQueue *queue, bool kicks);

int packed_init(VirtQueue *queue, const VirtQueueConfig *config, Error *err) MUST_CHECK;
int packed_pop(VirtQueue *queue, VirtElement *ret_element) MUST_CHECK;
/* The request that an earlier process has put down in the in-flight area's list that starts at a slot. */
int packed_resume(VirtQueue *queue, uint16_t slot, VirtElement *ret_element) MUST_CHECK;
bool packed_has_more(const VirtQueue *queue);
void packed_push(VirtQueue *queue, const VirtElement *element, uint32_t written);
bool packed_wants_call(const VirtQueue *queue);
void packed_ask_for_kicks(VirtQueue *queue, bool kicks);
/* Whether we have put a used descriptor where a driver's was; `place` has the counter of the round. */
bool packed_was_used(const VirtQueue *queue, PackedPlace place);
/* Where the ring stands with requests in flight that occupy so many entries. */
void packed_set_places(VirtQueue *queue, PackedPlace next_used, unsigned occupied);

/* Where a ring lies, all of it; NULL with err if it is outside memory or unaligned. */
char *queue_ring_at(
    const VirtQueue *queue, const char *what, uint64_t user, size_t bytes, size_t align, Error *err);

/* A descriptor, copied. `low` and `high` are flags and next in a split ring, buffer id and flags in a packed
 * one. */
typedef struct Descriptor {
    uint64_t guest;
    uint32_t bytes;
    uint16_t low, high;
} Descriptor;

/* Indirect tables need not be aligned. */
typedef struct Word {
    uint64_t value;
} __attribute__((packed)) Word;

static inline Descriptor descriptor_read(const char *at)
{
    const volatile Word *words = (const volatile Word *)at;
    uint64_t guest = le64toh(words[0].value), rest = le64toh(words[1].value);

    return (Descriptor){guest, (uint32_t)rest, (uint16_t)(rest >> 32), (uint16_t)(rest >> 48)};
}

/* A request in the making. */
typedef struct Chain {
    struct iovec *next;
    struct iovec *in; /* the first device-writable piece, once there is one */
    uint64_t bytes, out_bytes;
    uint16_t writing; /* DESC_WRITE after the first device-writable buffer, else 0 */
} Chain;

/* Whether a buffer lies in the region that was hit last, in one piece, and is not empty. */
static inline bool window_has(const Window *window, uint64_t guest, uint64_t bytes)
{
    uint64_t end;

    return LIKELY(
        !__builtin_add_overflow(guest - window->start, bytes, &end) && end <= window->bytes && bytes != 0);
}

static inline char *window_at(const Window *window, uint64_t guest)
{
    return (char *)((uintptr_t)guest + window->shift);
}

Window window_of(const MemoryRegion *region);

/* What chain_add() does with buffers that are empty, outside the last region, or in several ones. Returns
 * where the next piece goes; NULL: a fault. Nothing here takes the address of a Chain, which therefore lives
 * in registers. */
struct iovec *chain_add_slowly(VirtQueue *queue, struct iovec *next, uint64_t guest, uint32_t bytes);
void chain_order_fault(VirtQueue *queue, uint64_t guest, uint32_t bytes) __attribute__((cold));

/* False: a fault. */
static inline bool chain_add(VirtQueue *queue, Chain *chain, uint64_t guest, uint32_t bytes, uint16_t flags)
{
    if ((flags & DESC_WRITE) != chain->writing) {
        if (UNLIKELY(chain->writing)) {
            chain_order_fault(queue, guest, bytes);
            return false;
        }
        chain->writing = DESC_WRITE;
        chain->in = chain->next;
        chain->out_bytes = chain->bytes;
    }
    chain->bytes += bytes;
    if (UNLIKELY(!window_has(&queue->data, guest, bytes))) {
        chain->next = chain_add_slowly(queue, chain->next, guest, bytes);
        return chain->next;
    }
    *chain->next++ = (struct iovec){window_at(&queue->data, guest), bytes};
    return true;
}

/* Where an indirect table lies, in one piece; NULL: a fault. The number of its entries is its size by 16. */
const char *chain_table_slowly(VirtQueue *queue, uint64_t guest, uint32_t bytes);

static inline const char *chain_table(VirtQueue *queue, uint64_t guest, uint32_t bytes)
{
    if (UNLIKELY(!window_has(&queue->tables, guest, bytes) || !queue->indirect || bytes % DESCRIPTOR_BYTES ||
                 bytes > LIMIT_VIRTQUEUE_SIZE * DESCRIPTOR_BYTES))
        return chain_table_slowly(queue, guest, bytes);
    return window_at(&queue->tables, guest);
}

/* Everything but the ring's own fields. */
static inline int chain_finish(VirtQueue *queue, const Chain *chain, VirtElement *element)
{
    const struct iovec *in = chain->writing ? chain->in : chain->next;

    if (UNLIKELY(chain->bytes > LIMIT_VIRTQUEUE_REQUEST_BYTES))
        return queue_fault(
            queue, "a request has %llu bytes, more than 4 GiB", (unsigned long long)chain->bytes);
    element->iov = queue->iov;
    element->out_count = (unsigned)(in - queue->iov);
    element->in_count = (unsigned)(chain->next - in);
    element->out_bytes = chain->writing ? chain->out_bytes : chain->bytes;
    element->in_bytes = chain->bytes - element->out_bytes;
    return 0;
}
