/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guest memory: a sorted table of mapped regions, and the log of written pages.
 *
 * The table has no state that a look-up changes, so that queues on several loops can share it; each queue
 * remembers its last hit itself (queue-priv.h).
 */
#include "virtio/memory-priv.h"

#include "base/limits.h"
#include "base/mem.h"

#include <inttypes.h>
#include <string.h>

#define LOG_PAGE_BITS 12

VirtioMemory *virtio_memory_new(void)
{
    return mem_new(VirtioMemory);
}

static void log_drop(VirtioMemory *memory)
{
    Mapping *log = __atomic_exchange_n(&memory->log, NULL, __ATOMIC_ACQ_REL);

    if (log)
        mapping_done(log);
    free(log);
}

void virtio_memory_free(VirtioMemory *memory)
{
    if (!memory)
        return;
    for (unsigned i = 0; i < memory->count; i++)
        mapping_done(&memory->regions[i].mapping);
    log_drop(memory);
    free(memory->regions);
    free(memory);
}

unsigned virtio_memory_count(const VirtioMemory *memory)
{
    return memory->count;
}

bool virtio_memory_is_lost(const VirtioMemory *memory)
{
    return __atomic_load_n(&memory->lost, __ATOMIC_ACQUIRE);
}

/* The number of regions that begin at or below an address. */
static unsigned regions_up_to(const VirtioMemory *memory, uint64_t guest)
{
    unsigned low = 0, high = memory->count;

    while (low < high) {
        unsigned middle = (low + high) / 2;

        if (memory->regions[middle].guest <= guest)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

const MemoryRegion *memory_find(const VirtioMemory *memory, uint64_t guest)
{
    unsigned i = regions_up_to(memory, guest);

    if (i == 0 || guest - memory->regions[i - 1].guest >= memory->regions[i - 1].bytes)
        return NULL;
    return &memory->regions[i - 1];
}

unsigned memory_joints(const VirtioMemory *memory)
{
    unsigned joints = 0;

    for (unsigned i = 1; i < memory->count; i++)
        joints += memory->regions[i - 1].guest + memory->regions[i - 1].bytes == memory->regions[i].guest;
    return joints;
}

static bool overlaps(uint64_t a, uint64_t a_bytes, uint64_t b, uint64_t b_bytes)
{
    return a < b ? b - a < a_bytes : a - b < b_bytes;
}

static int check_region(const VirtioMemory *memory, const VirtioRegion *new, Error *err)
{
    if (new->bytes == 0 || new->guest > UINT64_MAX - new->bytes || new->user > UINT64_MAX - new->bytes)
        return err_set(err, -EINVAL,
            "memory region at %#" PRIx64 ": a size of %#" PRIx64 " bytes is zero or wraps around", new->guest,
            new->bytes);
    for (unsigned i = 0; i < memory->count; i++) {
        const MemoryRegion *old = &memory->regions[i];

        if (overlaps(old->guest, old->bytes, new->guest, new->bytes) ||
            overlaps(old->user, old->bytes, new->user, new->bytes))
            return err_set(err, -EINVAL,
                "memory region at %#" PRIx64 " (%#" PRIx64 " bytes, user address %#" PRIx64
                ") overlaps the one at %#" PRIx64 " (%#" PRIx64 " bytes, user address %#" PRIx64 ")",
                new->guest, new->bytes, new->user, old->guest, old->bytes, old->user);
    }
    if (memory->count >= LIMIT_VIRTIO_REGIONS)
        return err_set(err, -ENOSPC,
            "memory region at %#" PRIx64 ": there are %u regions already, more are not served", new->guest,
            memory->count);
    return 0;
}

int virtio_memory_add(VirtioMemory *memory, const VirtioRegion *region, int take_fd, Error *err)
{
    AUTO_CLOSE int fd = take_fd;
    MemoryRegion new = {.guest = region->guest, .bytes = region->bytes, .user = region->user};
    unsigned at;
    int r;

    r = check_region(memory, region, err);
    if (r < 0)
        return r;
    r = mapping_init(&new.mapping, fd, region->file_offset, region->bytes, &memory->lost, err);
    if (r < 0)
        return err_prefix(err, r, "memory region at %#" PRIx64, region->guest);
    new.at = new.mapping.at;
    VEC_GROW(memory->regions, memory->count, memory->capacity);
    at = regions_up_to(memory, region->guest);
    memmove(&memory->regions[at + 1], &memory->regions[at], (memory->count - at) * sizeof(new));
    memory->regions[at] = new;
    memory->count++;
    return 0;
}

int virtio_memory_remove(VirtioMemory *memory, const VirtioRegion *region, Error *err)
{
    for (unsigned i = 0; i < memory->count; i++) {
        MemoryRegion *old = &memory->regions[i];

        if (old->guest != region->guest || old->user != region->user || old->bytes != region->bytes)
            continue;
        mapping_done(&old->mapping);
        memory->count--;
        memmove(old, old + 1, (memory->count - i) * sizeof(*old));
        return 0;
    }
    return err_set(err, -ENOENT,
        "there is no memory region at %#" PRIx64 " with %#" PRIx64 " bytes and user address %#" PRIx64,
        region->guest, region->bytes, region->user);
}

void *virtio_memory_at(const VirtioMemory *memory, uint64_t guest, uint64_t bytes, uint64_t *ret_bytes)
{
    const MemoryRegion *region = memory_find(memory, guest);
    uint64_t offset;

    if (!region)
        return NULL;
    offset = guest - region->guest;
    *ret_bytes = MIN(bytes, region->bytes - offset);
    return region->at + offset;
}

void *virtio_memory_at_user(const VirtioMemory *memory, uint64_t user, uint64_t bytes)
{
    for (unsigned i = 0; i < memory->count; i++) {
        const MemoryRegion *region = &memory->regions[i];

        if (user >= region->user && !out_of_range(user - region->user, bytes, region->bytes))
            return region->at + (user - region->user);
    }
    return NULL;
}

int virtio_memory_set_log(VirtioMemory *memory, uint64_t bytes, uint64_t file_offset, int take_fd, Error *err)
{
    AUTO_CLOSE int fd = take_fd;
    AUTO_FREE Mapping *new = NULL;
    int r;

    if (fd >= 0) {
        new = mem_new(Mapping);
        r = mapping_init(new, fd, file_offset, bytes, &memory->lost, err);
        if (r < 0)
            return err_prefix(err, r, "log of written pages");
    }
    log_drop(memory);
    __atomic_store_n(&memory->log, TAKE(new), __ATOMIC_RELEASE);
    return 0;
}

void virtio_memory_written_guest(const VirtioMemory *memory, uint64_t guest, size_t bytes)
{
    const Mapping *log = __atomic_load_n(&memory->log, __ATOMIC_ACQUIRE);
    uint64_t page = guest >> LOG_PAGE_BITS, last;

    if (!log || bytes == 0)
        return;
    last = bytes - 1 > UINT64_MAX - guest ? UINT64_MAX : guest + (bytes - 1);
    /* Guest addresses that the front end has given the log no room for are not wanted. */
    for (last >>= LOG_PAGE_BITS; page <= last && page / 8 < log->bytes; page++)
        __atomic_fetch_or(&log->at[page / 8], (char)(1 << page % 8), __ATOMIC_SEQ_CST);
}

void virtio_memory_written(const VirtioMemory *memory, const void *at, size_t bytes)
{
    if (!__atomic_load_n(&memory->log, __ATOMIC_ACQUIRE))
        return;
    for (unsigned i = 0; i < memory->count; i++) {
        const MemoryRegion *region = &memory->regions[i];
        uintptr_t start = (uintptr_t)region->at;

        if ((uintptr_t)at >= start && (uintptr_t)at - start < region->bytes) {
            virtio_memory_written_guest(memory, region->guest + ((uintptr_t)at - start), bytes);
            return;
        }
    }
}
