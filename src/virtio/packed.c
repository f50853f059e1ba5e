/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packed virtqueues (virtio 1.2, 2.8): one ring of descriptors. The driver writes what is available, we
 * overwrite what is used; two bits of the flags and a counter that changes with each round tell one from the
 * other.
 *
 * A request's used descriptor takes the place of whatever request lies at next_used, not its own; the places
 * that a request occupies are skipped after it. So the sum of what is in flight lies between next_used and
 * next_available.
 */
#include "virtio/queue-priv.h"

#define DESC_ROUND (DESC_AVAIL | DESC_USED)
#define DESC_ID_OFFSET 12
#define DESC_FLAGS_OFFSET 14
#define DESC_LENGTH_OFFSET 8

/* Event suppression (2.8.10): a place and flags. */
#define EVENT_BYTES 4
#define EVENT_ENABLE 0
#define EVENT_DISABLE 1
#define EVENT_PLACE 2
#define EVENT_FLAGS_SHIFT 16
#define EVENT_WRAP 0x8000

static inline uint16_t available_bits(bool wrap)
{
    return wrap ? DESC_AVAIL : DESC_USED;
}

static inline uint16_t used_bits(bool wrap)
{
    return wrap ? DESC_AVAIL | DESC_USED : 0;
}

static inline char *descriptor_at(const PackedRing *ring, PackedPlace place)
{
    return ring->descriptors + DESCRIPTOR_BYTES * (size_t)place.index;
}

static inline uint16_t *flags_at(const PackedRing *ring, PackedPlace place)
{
    return (uint16_t *)(void *)(descriptor_at(ring, place) + DESC_FLAGS_OFFSET);
}

static inline PackedPlace advance(const VirtQueue *queue, PackedPlace place, unsigned entries)
{
    unsigned index = place.index + entries;

    if (index >= queue->size) {
        index -= queue->size;
        place.wrap = !place.wrap;
    }
    place.index = (uint16_t)index;
    return place;
}

static PackedPlace place_of(uint32_t base)
{
    return (PackedPlace){.index = base & 0x7fff, .wrap = base >> 15 & 1};
}

int packed_init(VirtQueue *queue, const VirtQueueConfig *config, Error *err)
{
    PackedRing *ring = &queue->ring;

    ring->next_available = place_of(config->base);
    ring->next_used = place_of(config->base >> 16);
    if (ring->next_available.index >= config->size || ring->next_used.index >= config->size)
        return err_set(
            err, -EINVAL, "a packed ring of %u entries cannot start at %#x", config->size, config->base);
    ring->descriptors = queue_ring_at(queue, "descriptor ring", config->descriptors,
        DESCRIPTOR_BYTES * (size_t)config->size, DESCRIPTOR_BYTES, err);
    if (!ring->descriptors)
        return -EINVAL;
    ring->driver_event =
        queue_ring_at(queue, "driver event suppression", config->available, EVENT_BYTES, EVENT_BYTES, err);
    if (!ring->driver_event)
        return -EINVAL;
    ring->device_event =
        queue_ring_at(queue, "device event suppression", config->used, EVENT_BYTES, EVENT_BYTES, err);
    return ring->device_event ? 0 : -EINVAL;
}

bool packed_was_used(const VirtQueue *queue, PackedPlace place)
{
    uint16_t flags = le16toh(__atomic_load_n(flags_at(&queue->ring, place), __ATOMIC_ACQUIRE));

    return (flags & DESC_ROUND) != available_bits(place.wrap);
}

void packed_set_places(VirtQueue *queue, PackedPlace next_used, unsigned occupied)
{
    queue->ring.next_used = next_used;
    queue->ring.next_available = advance(queue, next_used, occupied);
    queue->ring.occupied = occupied;
}

HOT bool add_table(VirtQueue *queue, Chain *chain, const Descriptor *desc)
{
    const char *table = chain_table(queue, desc->guest, desc->bytes);

    if (UNLIKELY(!table))
        return false;
    for (const char *end = table + desc->bytes; table < end; table += DESCRIPTOR_BYTES) {
        Descriptor entry = descriptor_read(table);

        if (UNLIKELY(!chain_add(queue, chain, entry.guest, entry.bytes, entry.high)))
            return false;
    }
    return true;
}

/* One of a request's descriptors from the ring, or the in-flight area. False: a fault. */
HOT bool add(VirtQueue *queue, Chain *chain, const Descriptor *desc, bool is_first)
{
    if (!(desc->high & DESC_INDIRECT))
        return chain_add(queue, chain, desc->guest, desc->bytes, desc->high);
    if (UNLIKELY(!is_first || desc->high & DESC_NEXT)) {
        queue_fault(queue, "a request has an indirect table at %#llx among other descriptors",
            (unsigned long long)desc->guest);
        return false;
    }
    return add_table(queue, chain, desc);
}

/* The request was read as a whole: it is ours from here on. */
HOT void take(VirtQueue *queue, unsigned entries, uint16_t id, uint16_t last_slot, VirtElement *element)
{
    element->id = id;
    element->descriptors = (uint16_t)entries;
    element->inflight = queue->inflight.free_head;
    queue->ring.occupied += entries;
    if (queue->inflight.packed)
        inflight_packed_taken(&queue->inflight, last_slot, (uint16_t)entries, id);
    queue->taken[id] = true;
    queue->in_flight++;
}

int packed_pop(VirtQueue *queue, VirtElement *ret_element)
{
    PackedRing *ring = &queue->ring;
    uint16_t slot = queue->inflight.free_head, last_slot = slot;
    uint16_t round = available_bits(ring->next_available.wrap);
    unsigned index = ring->next_available.index, entries = 0, room = queue->size - ring->occupied;
    Chain chain = {.next = queue->iov};
    Descriptor desc;
    int r;

    if (!packed_has_more(queue))
        return 0;
    do {
        if (UNLIKELY(entries == room))
            return queue_fault(
                queue, "requests have more descriptors than the ring's %u entries", queue->size);
        desc = descriptor_read(ring->descriptors + DESCRIPTOR_BYTES * (size_t)index);
        if (UNLIKELY((desc.high & DESC_ROUND) != round))
            return queue_fault(
                queue, "descriptor %u is part of a request, but its flags %#x are wrong", index, desc.high);
        if (UNLIKELY(!add(queue, &chain, &desc, entries == 0)))
            return -EPROTO;
        if (queue->inflight.packed) {
            inflight_packed_note(&queue->inflight, slot, desc.guest, desc.bytes, desc.low, desc.high);
            last_slot = slot;
            slot = queue->inflight.slots[slot].next;
        }
        entries++;
        if (++index == queue->size) {
            index = 0;
            round ^= DESC_ROUND;
        }
    } while (desc.high & DESC_NEXT);
    if (UNLIKELY(queue->taken[desc.low]))
        return queue_fault(queue, "buffer %u is available while its request is being served", desc.low);
    r = chain_finish(queue, &chain, ret_element);
    if (UNLIKELY(r < 0))
        return r;
    ring->next_available = (PackedPlace){.index = (uint16_t)index, .wrap = round == DESC_AVAIL};
    take(queue, entries, desc.low, last_slot, ret_element);
    return 1;
}

int packed_resume(VirtQueue *queue, uint16_t slot, VirtElement *ret_element)
{
    const InflightSlot *slots = queue->inflight.slots, *head = &slots[slot];
    Chain chain = {.next = queue->iov};
    unsigned entries = 0;

    ret_element->id = head->id;
    ret_element->descriptors = head->num;
    ret_element->inflight = slot;
    for (; entries < head->num; entries++, slot = slots[slot].next) {
        InflightPackedEntry *entry = &queue->inflight.packed->entries[slot];
        Descriptor desc = {.guest = INFLIGHT_LOAD(entry->addr),
            .bytes = INFLIGHT_LOAD(entry->len),
            .high = INFLIGHT_LOAD(entry->flags)};

        if (!add(queue, &chain, &desc, entries == 0))
            return -EPROTO;
    }
    return chain_finish(queue, &chain, ret_element);
}

bool packed_has_more(const VirtQueue *queue)
{
    const PackedRing *ring = &queue->ring;
    uint16_t flags = le16toh(__atomic_load_n(flags_at(ring, ring->next_available), __ATOMIC_ACQUIRE));

    return (flags & DESC_ROUND) == available_bits(ring->next_available.wrap);
}

static inline InflightPackedUsed used_places(PackedPlace old, PackedPlace new)
{
    return (InflightPackedUsed){
        .used_idx = new.index,
        .old_used_idx = old.index,
        .used_wrap_counter = new.wrap,
        .old_used_wrap_counter = old.wrap,
    };
}

void packed_push(VirtQueue *queue, const VirtElement *element, uint32_t written)
{
    PackedRing *ring = &queue->ring;
    PackedPlace place = ring->next_used, next = advance(queue, place, element->descriptors);
    uint16_t head = (uint16_t)element->inflight;
    char *at = descriptor_at(ring, place);

    if (queue->inflight.packed)
        inflight_packed_before_used(&queue->inflight, head, used_places(place, next));
    put_le32(at + DESC_LENGTH_OFFSET, written);
    put_le16(at + DESC_ID_OFFSET, element->id);
    __atomic_store_n(
        flags_at(ring, place), htole16(used_bits(place.wrap) | (written ? DESC_WRITE : 0)), __ATOMIC_RELEASE);
    if (queue->inflight.packed)
        inflight_packed_after_used(&queue->inflight, head, used_places(next, next));
    ring->next_used = next;
    ring->occupied -= element->descriptors;
    queue->used_since_call += element->descriptors;
    if (UNLIKELY(queue->logs_used))
        virtio_memory_written(queue->memory, at, DESCRIPTOR_BYTES);
}

bool packed_wants_call(const VirtQueue *queue)
{
    const PackedRing *ring = &queue->ring;
    uint32_t event = le32toh(__atomic_load_n((uint32_t *)(void *)ring->driver_event, __ATOMIC_RELAXED));
    unsigned index;

    switch (event >> EVENT_FLAGS_SHIFT & 3) {
    case EVENT_DISABLE:
        return false;
    case EVENT_PLACE:
        if (!queue->event_idx || queue->call_is_due)
            return true;
        index = event & (EVENT_WRAP - 1);
        if (!!(event & EVENT_WRAP) != ring->next_used.wrap)
            index -= queue->size;
        return (uint16_t)(ring->next_used.index - index - 1) < queue->used_since_call;
    }
    return true;
}

void packed_ask_for_kicks(VirtQueue *queue, bool kicks)
{
    PackedPlace place = queue->ring.next_available;
    uint32_t event = (kicks ? EVENT_ENABLE : EVENT_DISABLE) << EVENT_FLAGS_SHIFT;

    if (queue->event_idx) {
        if (!kicks)
            return; /* one comes only when the ring passes the place, once */
        event = place.index | (place.wrap ? EVENT_WRAP : 0) | EVENT_PLACE << EVENT_FLAGS_SHIFT;
    }
    __atomic_store_n((uint32_t *)(void *)queue->ring.device_event, htole32(event), __ATOMIC_RELAXED);
    if (UNLIKELY(queue->logs_used))
        virtio_memory_written_guest(queue->memory, queue->used_log_guest, EVENT_BYTES);
}
