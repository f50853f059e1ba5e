/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Taking over a queue's part of the in-flight area. What the previous process was just doing when it ended is
 * completed or taken back, by stores that leave the area right if this process ends, too. Whether it got a
 * request to the driver is decided by what the driver can see: the used ring's index, or the flags of the
 * used descriptor.
 *
 * The front end may have written anything there. Each value is read once; lists are followed with a bitmap of
 * what was seen.
 */
#include "virtio/queue-priv.h"

#include "base/mem.h"

#include <assert.h>
#include <string.h>

/* Parts begin at cache lines, as other back ends have it. */
#define PART_ALIGN 64

static_assert(sizeof(InflightSplit) == 16 && sizeof(InflightSplitEntry) == 16, "the area's layout");
static_assert(sizeof(InflightPacked) == 32 && sizeof(InflightPackedEntry) == 32, "the area's layout");
static_assert(offsetof(InflightPacked, used) == 16, "the used places are one aligned word");

size_t virtqueue_inflight_bytes(unsigned size, bool packed)
{
    size_t bytes = packed ? sizeof(InflightPacked) + sizeof(InflightPackedEntry) * (size_t)size
                          : sizeof(InflightSplit) + sizeof(InflightSplitEntry) * (size_t)size;

    return align_up(bytes, PART_ALIGN);
}

void inflight_done(Inflight *inflight)
{
    free(inflight->slots);
    free(inflight->resume);
}

/* Room for what is to be resumed, at most `count`. */
static int resume_alloc(Inflight *inflight, unsigned count, Error *err)
{
    inflight->resume = mem_try_zalloc(count, sizeof(*inflight->resume));
    if (!inflight->resume)
        return err_set(err, -ENOMEM, "no memory for %u requests", count);
    return 0;
}

static int compare_counters(const void *a, const void *b)
{
    const InflightResume *x = a, *y = b;

    if (x->counter != y->counter)
        return x->counter < y->counter ? -1 : 1;
    return (int)x->at - (int)y->at;
}

/* All that is to be resumed was found. */
static void resume_in_order(Inflight *inflight)
{
    if (!inflight->resume_count)
        return;
    qsort(inflight->resume, inflight->resume_count, sizeof(*inflight->resume), compare_counters);
    inflight->counter = inflight->resume[inflight->resume_count - 1].counter + 1;
}

/* The same words begin both kinds. 1: in use, 0: new. */
static int check_header(void *area, unsigned size, Error *err)
{
    InflightSplit *header = area;
    uint64_t features;
    uint16_t version, entries;

    if (!is_aligned((uintptr_t)area, sizeof(uint64_t)))
        return err_set(err, -EINVAL, "it is not aligned to 8 bytes");
    version = INFLIGHT_LOAD(header->version);
    if (version == 0)
        return 0;
    features = INFLIGHT_LOAD(header->features);
    entries = INFLIGHT_LOAD(header->desc_num);
    if (version != INFLIGHT_VERSION || features != 0)
        return err_set(err, -EINVAL,
            "it has version %u with features %#llx, only version 1 without any is known", version,
            (unsigned long long)features);
    if (entries != size)
        return err_set(err, -EINVAL, "it has room for %u descriptors and the ring has %u", entries, size);
    return 1;
}

static void split_new(InflightSplit *area, unsigned size, uint16_t used_idx)
{
    for (unsigned i = 0; i < size; i++) {
        INFLIGHT_STORE(area->entries[i].inflight, 0);
        INFLIGHT_STORE(area->entries[i].next, 0);
        INFLIGHT_STORE(area->entries[i].counter, 0);
    }
    INFLIGHT_STORE(area->features, 0);
    INFLIGHT_STORE(area->desc_num, (uint16_t)size);
    INFLIGHT_STORE(area->last_batch_head, 0);
    INFLIGHT_STORE(area->used_idx, used_idx);
    INFLIGHT_STORE(area->version, INFLIGHT_VERSION);
}

/* The heads that are marked, in any order. */
static int split_collect(VirtQueue *queue, Error *err)
{
    Inflight *inflight = &queue->inflight;

    for (unsigned i = 0; i < queue->size; i++) {
        InflightSplitEntry *entry = &inflight->split->entries[i];
        uint8_t flag = INFLIGHT_LOAD(entry->inflight);

        if (flag > 1)
            return err_set(err, -EINVAL, "descriptor %u is marked with %u", i, flag);
        if (flag)
            inflight->resume[inflight->resume_count++] =
                (InflightResume){.counter = INFLIGHT_LOAD(entry->counter), .at = (uint16_t)i};
    }
    return 0;
}

/* The driver can see the last `batch` requests of the list, but they may still be marked. */
static int split_settle(InflightSplit *area, unsigned size, unsigned batch, Error *err)
{
    uint16_t head = INFLIGHT_LOAD(area->last_batch_head);

    for (unsigned i = 0; i < batch; i++) {
        if (head >= size)
            return err_set(
                err, -EINVAL, "the list of what was used last goes on at descriptor %u of %u", head, size);
        INFLIGHT_STORE(area->entries[head].inflight, 0);
        head = INFLIGHT_LOAD(area->entries[head].next);
    }
    return 0;
}

static int split_take_over(VirtQueue *queue, InflightSplit *area, Error *err)
{
    Inflight *inflight = &queue->inflight;
    uint16_t used_idx = queue->split.next_used, before = INFLIGHT_LOAD(area->used_idx);
    unsigned batch = (uint16_t)(used_idx - before);
    int r;

    /* A ring that was set up anew meanwhile is no contradiction while nothing is in flight. */
    r = batch <= queue->size ? split_settle(area, queue->size, batch, err) : 0;
    if (r < 0)
        return r;
    r = split_collect(queue, err);
    if (r < 0)
        return r;
    if (batch > queue->size && inflight->resume_count)
        return err_set(err, -EINVAL, "the used ring's index went from %u to %u in a ring of %u entries",
            before, used_idx, queue->size);
    INFLIGHT_STORE(area->used_idx, used_idx);
    for (unsigned i = 0; i < inflight->resume_count; i++)
        queue->taken[inflight->resume[i].at] = true;
    resume_in_order(inflight);
    queue->split.next_available = queue->split.seen_available = (uint16_t)(used_idx + inflight->resume_count);
    return 0;
}

int inflight_split_init(VirtQueue *queue, void *area, Error *err)
{
    int r = check_header(area, queue->size, err);

    if (r < 0)
        return r;
    queue->inflight.split = area;
    if (r == 0) {
        split_new(area, queue->size, queue->split.next_used);
        return 0;
    }
    r = resume_alloc(&queue->inflight, queue->size, err);
    if (r < 0)
        return r;
    return split_take_over(queue, area, err);
}

static InflightPackedUsed packed_used(PackedPlace place)
{
    return (InflightPackedUsed){
        .used_idx = place.index,
        .old_used_idx = place.index,
        .used_wrap_counter = place.wrap,
        .old_used_wrap_counter = place.wrap,
    };
}

static void packed_new(VirtQueue *queue, InflightPacked *area)
{
    for (unsigned i = 0; i < queue->size; i++) {
        INFLIGHT_STORE(area->entries[i].inflight, 0);
        INFLIGHT_STORE(area->entries[i].next, (uint16_t)(i + 1));
        queue->inflight.slots[i].next = (uint16_t)(i + 1);
    }
    INFLIGHT_STORE(area->features, 0);
    INFLIGHT_STORE(area->desc_num, (uint16_t)queue->size);
    INFLIGHT_STORE(area->free_head, 0);
    INFLIGHT_STORE(area->old_free_head, 0);
    INFLIGHT_STORE(area->used.word, packed_used(queue->ring.next_used).word);
    INFLIGHT_STORE(area->version, INFLIGHT_VERSION);
}

/* Completes or takes back a push or a pop that was under way. Says where the free list starts and where used
 * descriptors go on. */
static int packed_settle(
    VirtQueue *queue, InflightPacked *area, uint16_t *ret_free_head, PackedPlace *ret_next_used, Error *err)
{
    InflightPackedUsed used = {.word = INFLIGHT_LOAD(area->used.word)};
    PackedPlace old = {.index = used.old_used_idx, .wrap = used.old_used_wrap_counter & 1};
    PackedPlace new = {.index = used.used_idx, .wrap = used.used_wrap_counter & 1};
    bool push_was_seen;

    if (old.index >= queue->size || new.index >= queue->size || used.used_wrap_counter > 1 ||
        used.old_used_wrap_counter > 1)
        return err_set(err, -EINVAL, "used descriptors go on at %u/%u or %u/%u of %u", new.index,
            used.used_wrap_counter, old.index, used.old_used_wrap_counter, queue->size);
    push_was_seen = (old.index != new.index || old.wrap != new.wrap) && packed_was_used(queue, old);
    if (!push_was_seen) {
        *ret_free_head = INFLIGHT_LOAD(area->old_free_head);
        *ret_next_used = old;
        INFLIGHT_STORE(area->free_head, *ret_free_head);
    } else {
        *ret_free_head = INFLIGHT_LOAD(area->free_head);
        *ret_next_used = new;
        INFLIGHT_STORE(area->old_free_head, *ret_free_head);
    }
    INFLIGHT_STORE(area->used.word, packed_used(*ret_next_used).word);
    return 0;
}

typedef struct Seen {
    uint64_t bits[LIMIT_VIRTQUEUE_SIZE / 64];
    unsigned count;
} Seen;

/* Follows a list to its next slot. */
static int packed_step(VirtQueue *queue, Seen *seen, uint16_t slot, uint16_t *ret_next, Error *err)
{
    if (slot >= queue->size || seen->bits[slot / 64] >> (slot % 64) & 1)
        return err_set(err, -EINVAL, "a list of slots goes on at %u of %u, or there for a second time", slot,
            queue->size);
    seen->bits[slot / 64] |= UINT64_C(1) << (slot % 64);
    seen->count++;
    *ret_next = INFLIGHT_LOAD(queue->inflight.packed->entries[slot].next);
    queue->inflight.slots[slot].next = *ret_next;
    return 0;
}

static int packed_free_list(VirtQueue *queue, uint16_t head, Seen *seen, Error *err)
{
    queue->inflight.free_head = head;
    for (uint16_t slot = head, next; slot != queue->size; slot = next) {
        int r = packed_step(queue, seen, slot, &next, err);

        if (r < 0)
            return r;
        INFLIGHT_STORE(queue->inflight.packed->entries[slot].inflight, 0);
    }
    return 0;
}

/* A request's list of slots: as long as it says, and its end where it says. */
static int packed_collect_one(VirtQueue *queue, uint16_t head, Seen *seen, Error *err)
{
    Inflight *inflight = &queue->inflight;
    InflightPackedEntry *entry = &inflight->packed->entries[head];
    InflightSlot *first = &inflight->slots[head];
    uint16_t slot = head, last = head;

    first->num = INFLIGHT_LOAD(entry->num);
    first->last = INFLIGHT_LOAD(entry->last);
    for (unsigned i = 0; i < first->num; i++, slot = inflight->slots[slot].next) {
        uint16_t next;
        int r = packed_step(queue, seen, slot, &next, err);

        if (r < 0)
            return r;
        last = slot;
    }
    if (first->num == 0 || first->last != last)
        return err_set(err, -EINVAL,
            "the request in slot %u has %u descriptors, the last one in slot %u instead of %u", head,
            first->num, last, first->last);
    first->id = INFLIGHT_LOAD(inflight->packed->entries[last].id);
    if (queue->taken[first->id])
        return err_set(err, -EINVAL, "buffer %u is in two requests", first->id);
    queue->taken[first->id] = true;
    inflight->resume[inflight->resume_count++] =
        (InflightResume){.counter = INFLIGHT_LOAD(entry->counter), .at = head};
    return 0;
}

static int packed_take_over(VirtQueue *queue, InflightPacked *area, Error *err)
{
    Seen seen = {.count = 0};
    PackedPlace next_used;
    uint16_t free_head;
    unsigned free_count;
    int r;

    r = packed_settle(queue, area, &free_head, &next_used, err);
    if (r < 0)
        return r;
    r = packed_free_list(queue, free_head, &seen, err);
    if (r < 0)
        return r;
    free_count = seen.count;
    for (unsigned i = 0; i < queue->size; i++) {
        uint8_t flag = INFLIGHT_LOAD(area->entries[i].inflight);

        if (flag > 1)
            return err_set(err, -EINVAL, "slot %u is marked with %u", i, flag);
        r = flag ? packed_collect_one(queue, (uint16_t)i, &seen, err) : 0;
        if (r < 0)
            return r;
    }
    if (seen.count != queue->size)
        return err_set(err, -EINVAL, "%u of its slots are neither free nor in use", queue->size - seen.count);
    resume_in_order(&queue->inflight);
    packed_set_places(queue, next_used, queue->size - free_count);
    return 0;
}

int inflight_packed_init(VirtQueue *queue, void *area, Error *err)
{
    int r = check_header(area, queue->size, err), s;

    if (r < 0)
        return r;
    queue->inflight.packed = area;
    queue->inflight.slots = mem_try_zalloc(queue->size, sizeof(*queue->inflight.slots));
    if (!queue->inflight.slots)
        return err_set(err, -ENOMEM, "no memory for %u slots", queue->size);
    if (r == 0) {
        packed_new(queue, area);
        return 0;
    }
    s = resume_alloc(&queue->inflight, queue->size, err);
    if (s < 0)
        return s;
    return packed_take_over(queue, area, err);
}
