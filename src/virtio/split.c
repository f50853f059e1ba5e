/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Split virtqueues (virtio 1.2, 2.7): a table of descriptors, the available ring, which the driver writes,
 * and the used ring, which we write.
 *
 * The indexes run freely through 16 bits. The available ring's index is read only when all it told of before
 * has been popped.
 */
#include "virtio/queue-priv.h"

#define RING_FLAGS 0
#define RING_INDEX 2
#define RING_ENTRIES 4
#define AVAILABLE_NO_INTERRUPT 1
#define USED_NO_NOTIFY 1
#define USED_ENTRY_BYTES 8

static inline uint16_t *ring_u16(char *ring, size_t offset)
{
    return (uint16_t *)(void *)(ring + offset);
}

/* The event index of the driver lies behind its ring, ours behind ours. */
static inline uint16_t *used_event(const VirtQueue *queue)
{
    return ring_u16(queue->split.available, RING_ENTRIES + 2 * (size_t)queue->size);
}

static inline uint16_t *available_event(const VirtQueue *queue)
{
    return ring_u16(queue->split.used, RING_ENTRIES + USED_ENTRY_BYTES * (size_t)queue->size);
}

int split_init(VirtQueue *queue, const VirtQueueConfig *config, Error *err)
{
    SplitRing *ring = &queue->split;
    size_t event = config->event_idx ? 2 : 0, size = config->size;

    if (!is_power_of_2(size))
        return err_set(
            err, -EINVAL, "a split ring cannot have %u entries, which is no power of two", config->size);
    if (config->base > UINT16_MAX)
        return err_set(err, -EINVAL, "a split ring cannot start at %#x: an index has 16 bits", config->base);
    ring->descriptors =
        queue_ring_at(queue, "descriptor table", config->descriptors, DESCRIPTOR_BYTES * size, 16, err);
    if (!ring->descriptors)
        return -EINVAL;
    ring->available =
        queue_ring_at(queue, "available ring", config->available, RING_ENTRIES + 2 * size + event, 2, err);
    if (!ring->available)
        return -EINVAL;
    ring->used = queue_ring_at(
        queue, "used ring", config->used, RING_ENTRIES + USED_ENTRY_BYTES * size + event, 4, err);
    if (!ring->used)
        return -EINVAL;
    ring->mask = (uint16_t)(size - 1);
    ring->next_available = ring->seen_available = (uint16_t)config->base;
    ring->next_used = le16toh(__atomic_load_n(ring_u16(ring->used, RING_INDEX), __ATOMIC_RELAXED));
    return 0;
}

typedef enum Walk { WALK_FAULT, WALK_DONE, WALK_TABLE } Walk;

/* Goes through a chain in the descriptor table, or in an indirect one. WALK_TABLE: it goes on in the indirect
 * table that *ret_last describes. */
HOT Walk walk(
    VirtQueue *queue, const char *table, unsigned entries, uint16_t head, Chain *chain, Descriptor *ret_last)
{
    unsigned index = head, left = entries;

    for (;;) {
        Descriptor desc = descriptor_read(table + DESCRIPTOR_BYTES * (size_t)index);

        if (desc.low & DESC_INDIRECT) {
            *ret_last = desc;
            return WALK_TABLE;
        }
        if (UNLIKELY(!chain_add(queue, chain, desc.guest, desc.bytes, desc.low)))
            return WALK_FAULT;
        if (!(desc.low & DESC_NEXT))
            return WALK_DONE;
        index = desc.high;
        if (UNLIKELY(index >= entries)) {
            queue_fault(queue, "a request goes on at descriptor %u of %u", index, entries);
            return WALK_FAULT;
        }
        if (UNLIKELY(--left == 0)) {
            queue_fault(queue, "a request's descriptors form a loop");
            return WALK_FAULT;
        }
    }
}

/* The chain's last descriptor is that of a table. */
HOT Walk walk_table(VirtQueue *queue, Chain *chain, Descriptor desc)
{
    const char *table;
    Walk end;

    if (UNLIKELY(desc.low & DESC_NEXT)) {
        queue_fault(queue, "a request has a descriptor behind an indirect table");
        return WALK_FAULT;
    }
    table = chain_table(queue, desc.guest, desc.bytes);
    if (UNLIKELY(!table))
        return WALK_FAULT;
    end = walk(queue, table, desc.bytes / DESCRIPTOR_BYTES, 0, chain, &desc);
    if (UNLIKELY(end == WALK_TABLE)) {
        queue_fault(queue, "a request has an indirect table in an indirect table");
        return WALK_FAULT;
    }
    return end;
}

HOT int element_at(VirtQueue *queue, uint16_t head, VirtElement *ret_element)
{
    Chain chain = {.next = queue->iov};
    Descriptor last;
    Walk end = walk(queue, queue->split.descriptors, queue->size, head, &chain, &last);

    if (end == WALK_TABLE)
        end = walk_table(queue, &chain, last);
    if (UNLIKELY(end == WALK_FAULT))
        return -EPROTO;
    ret_element->id = head;
    ret_element->descriptors = 1;
    ret_element->inflight = head;
    return chain_finish(queue, &chain, ret_element);
}

/* Reads the available ring's index. -EPROTO: an impossible one. */
static int look(VirtQueue *queue)
{
    SplitRing *ring = &queue->split;
    uint16_t index = le16toh(__atomic_load_n(ring_u16(ring->available, RING_INDEX), __ATOMIC_ACQUIRE));

    if (UNLIKELY((uint16_t)(index - ring->next_available) > queue->size))
        return queue_fault(queue, "the available ring's index went from %u to %u in a ring of %u entries",
            ring->next_available, index, queue->size);
    ring->seen_available = index;
    return 0;
}

int split_pop(VirtQueue *queue, VirtElement *ret_element)
{
    SplitRing *ring = &queue->split;
    uint16_t head;
    int r;

    if (ring->next_available == ring->seen_available) {
        r = look(queue);
        if (UNLIKELY(r < 0) || ring->next_available == ring->seen_available)
            return r;
    }
    head = le16toh(__atomic_load_n(
        ring_u16(ring->available, RING_ENTRIES + 2 * (size_t)(ring->next_available & ring->mask)),
        __ATOMIC_RELAXED));
    if (UNLIKELY(head >= queue->size))
        return queue_fault(queue, "descriptor %u is available in a table of %u", head, queue->size);
    if (UNLIKELY(queue->taken[head]))
        return queue_fault(queue, "descriptor %u is available while its request is being served", head);
    r = element_at(queue, head, ret_element);
    if (UNLIKELY(r < 0))
        return r;
    if (queue->inflight.split)
        inflight_split_taken(&queue->inflight, head);
    queue->taken[head] = true;
    queue->in_flight++;
    ring->next_available++;
    return 1;
}

int split_resume(VirtQueue *queue, uint16_t head, VirtElement *ret_element)
{
    return element_at(queue, head, ret_element);
}

bool split_has_more(const VirtQueue *queue)
{
    const SplitRing *ring = &queue->split;

    return ring->next_available != ring->seen_available ||
           le16toh(__atomic_load_n(ring_u16(ring->available, RING_INDEX), __ATOMIC_ACQUIRE)) !=
               ring->next_available;
}

static inline void log_used(const VirtQueue *queue, size_t offset, size_t bytes)
{
    if (UNLIKELY(queue->logs_used))
        virtio_memory_written_guest(queue->memory, queue->used_log_guest + offset, bytes);
}

void split_push(VirtQueue *queue, const VirtElement *element, uint32_t written)
{
    SplitRing *ring = &queue->split;
    size_t offset = RING_ENTRIES + USED_ENTRY_BYTES * (size_t)(ring->next_used & ring->mask);

    if (queue->inflight.split)
        inflight_split_before_used(&queue->inflight, element->id);
    put_le32(ring->used + offset, element->id);
    put_le32(ring->used + offset + 4, written);
    ring->next_used++;
    __atomic_store_n(ring_u16(ring->used, RING_INDEX), htole16(ring->next_used), __ATOMIC_RELEASE);
    if (queue->inflight.split)
        inflight_split_after_used(&queue->inflight, element->id, ring->next_used);
    queue->used_since_call++;
    log_used(queue, offset, USED_ENTRY_BYTES);
    log_used(queue, RING_INDEX, 2);
}

bool split_wants_call(const VirtQueue *queue)
{
    const SplitRing *ring = &queue->split;

    if (queue->event_idx) {
        uint16_t event = le16toh(__atomic_load_n(used_event(queue), __ATOMIC_RELAXED));

        return queue->call_is_due || (uint16_t)(ring->next_used - event - 1) < queue->used_since_call;
    }
    return !(le16toh(__atomic_load_n(ring_u16(ring->available, RING_FLAGS), __ATOMIC_RELAXED)) &
             AVAILABLE_NO_INTERRUPT);
}

void split_ask_for_kicks(VirtQueue *queue, bool kicks)
{
    if (!queue->event_idx) {
        __atomic_store_n(
            ring_u16(queue->split.used, RING_FLAGS), htole16(kicks ? 0 : USED_NO_NOTIFY), __ATOMIC_RELAXED);
        log_used(queue, RING_FLAGS, 2);
    } else if (kicks) {
        __atomic_store_n(available_event(queue), htole16(queue->split.next_available), __ATOMIC_RELAXED);
        log_used(queue, RING_ENTRIES + USED_ENTRY_BYTES * (size_t)queue->size, 2);
    }
    /* With an event index a kick comes only when the ring passes it, once. */
}
