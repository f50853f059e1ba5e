/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A queue's part of the in-flight area (vhost-user.rst, "Inflight I/O tracking"): what the next process needs
 * to know when this one was killed. The front end keeps the area and can write to it, so it is believed once,
 * when a queue starts, as far as it makes sense; from then on it is only written, and what is linked in it is
 * linked privately, too.
 *
 * Each store is a release store, because the order in which they arrive is what makes the area right at any
 * moment. Numbers are the machine's own. Where the specification has several fields change one after the
 * other that must not differ, they lie in one aligned word and change with one store.
 */
#pragma once

#include "base/error.h"

#define INFLIGHT_VERSION 1

typedef struct InflightSplitEntry {
    uint8_t inflight;
    uint8_t padding[5];
    uint16_t next;
    uint64_t counter;
} InflightSplitEntry;

typedef struct InflightSplit {
    uint64_t features;
    uint16_t version;
    uint16_t desc_num;
    uint16_t last_batch_head;
    uint16_t used_idx;
    InflightSplitEntry entries[];
} InflightSplit;

typedef struct InflightPackedEntry {
    uint8_t inflight;
    uint8_t padding;
    uint16_t next;
    uint16_t last;
    uint16_t num;
    uint64_t counter;
    uint16_t id;
    uint16_t flags;
    uint32_t len;
    uint64_t addr;
} InflightPackedEntry;

/* Where the used side of a packed ring stands and where it stood before the last push: one word. */
typedef union InflightPackedUsed {
    struct {
        uint16_t used_idx;
        uint16_t old_used_idx;
        uint8_t used_wrap_counter;
        uint8_t old_used_wrap_counter;
        uint8_t padding[2];
    };
    uint64_t word;
} InflightPackedUsed;

typedef struct InflightPacked {
    uint64_t features;
    uint16_t version;
    uint16_t desc_num;
    uint16_t free_head;
    uint16_t old_free_head;
    InflightPackedUsed used;
    uint8_t padding[8];
    InflightPackedEntry entries[];
} InflightPacked;

/* A request that an earlier process had taken: head in a split ring, slot in the area of a packed one. */
typedef struct InflightResume {
    uint64_t counter;
    uint16_t at;
} InflightResume;

/* Our own copy of what links the slots of a packed ring's area. */
typedef struct InflightSlot {
    uint16_t next; /* of the free list or of the request's list */
    uint16_t last; /* of the request's list; in its first slot */
    uint16_t num;  /* likewise */
    uint16_t id;   /* likewise */
} InflightSlot;

typedef struct Inflight {
    union {
        InflightSplit *split; /* NULL: there is no area */
        InflightPacked *packed;
    };
    uint64_t counter;
    uint16_t last_batch_head; /* split */
    uint16_t free_head;       /* packed */
    InflightSlot *slots;      /* packed */
    InflightResume *resume;   /* in the order in which they are to be popped */
    unsigned resume_count, resumed;
} Inflight;

struct VirtQueue;

/*
 * Prepares a new area, or finds out from one in use where the ring stands, and which requests are to be
 * resumed. The ring must have been looked up. -EINVAL with err if it makes no sense.
 */
int inflight_split_init(struct VirtQueue *queue, void *area, Error *err) MUST_CHECK;
int inflight_packed_init(struct VirtQueue *queue, void *area, Error *err) MUST_CHECK;
void inflight_done(Inflight *inflight);

#define INFLIGHT_STORE(field, value) __atomic_store_n(&(field), value, __ATOMIC_RELEASE)
#define INFLIGHT_LOAD(field) __atomic_load_n(&(field), __ATOMIC_RELAXED)

/* A request was taken from a split ring. */
static inline void inflight_split_taken(Inflight *inflight, uint16_t head)
{
    InflightSplitEntry *entry = &inflight->split->entries[head];

    INFLIGHT_STORE(entry->counter, inflight->counter++);
    INFLIGHT_STORE(entry->inflight, 1);
}

/* Before the used ring's index tells the driver of the request. */
static inline void inflight_split_before_used(Inflight *inflight, uint16_t head)
{
    INFLIGHT_STORE(inflight->split->entries[head].next, inflight->last_batch_head);
    INFLIGHT_STORE(inflight->split->last_batch_head, head);
    inflight->last_batch_head = head;
}

/* After that. */
static inline void inflight_split_after_used(Inflight *inflight, uint16_t head, uint16_t used_idx)
{
    INFLIGHT_STORE(inflight->split->entries[head].inflight, 0);
    INFLIGHT_STORE(inflight->split->used_idx, used_idx);
}

/* A descriptor of a request from a packed ring, put down in a slot. */
static inline void inflight_packed_note(
    Inflight *inflight, uint16_t slot, uint64_t addr, uint32_t len, uint16_t id, uint16_t flags)
{
    InflightPackedEntry *entry = &inflight->packed->entries[slot];

    INFLIGHT_STORE(entry->addr, addr);
    INFLIGHT_STORE(entry->len, len);
    INFLIGHT_STORE(entry->id, id);
    INFLIGHT_STORE(entry->flags, flags);
}

/* All descriptors of a request are in the list from the free list's head to `last`: the request was taken
 * with the last of these stores. */
static inline void inflight_packed_taken(Inflight *inflight, uint16_t last, uint16_t num, uint16_t id)
{
    uint16_t head = inflight->free_head, next = inflight->slots[last].next;
    InflightPackedEntry *entry = &inflight->packed->entries[head];

    inflight->slots[head].last = last;
    inflight->slots[head].num = num;
    inflight->slots[head].id = id;
    inflight->free_head = next;
    INFLIGHT_STORE(entry->num, num);
    INFLIGHT_STORE(entry->last, last);
    INFLIGHT_STORE(entry->counter, inflight->counter++);
    INFLIGHT_STORE(entry->inflight, 1);
    INFLIGHT_STORE(inflight->packed->free_head, next);
    INFLIGHT_STORE(inflight->packed->old_free_head, next);
}

/* Before the used descriptor's flags tell the driver of the request. */
static inline void inflight_packed_before_used(Inflight *inflight, uint16_t head, InflightPackedUsed used)
{
    uint16_t last = inflight->slots[head].last;

    INFLIGHT_STORE(inflight->packed->entries[last].next, inflight->free_head);
    INFLIGHT_STORE(inflight->packed->free_head, head);
    INFLIGHT_STORE(inflight->packed->used.word, used.word);
    inflight->slots[last].next = inflight->free_head;
    inflight->free_head = head;
}

/* After that. */
static inline void inflight_packed_after_used(Inflight *inflight, uint16_t head, InflightPackedUsed used)
{
    INFLIGHT_STORE(inflight->packed->entries[head].inflight, 0);
    INFLIGHT_STORE(inflight->packed->old_free_head, head);
    INFLIGHT_STORE(inflight->packed->used.word, used.word);
}
