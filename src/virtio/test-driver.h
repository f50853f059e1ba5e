/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The driver's side of a virtqueue, for tests: guest memory in a memfd, a split or packed ring in it,
 * requests made available in any legal layout, and what was used. Written from the specification and
 * independently of the device's side; plain enough to be changed by hand into what is illegal. One thread may
 * be the driver while another one is the device.
 *
 * Guest memory is one file. The device sees it in several regions: rings and some room for requests in the
 * first one, then two that lie side by side in guest addresses and nowhere else.
 */
#pragma once

#include "base/endian.h"
#include "virtio/queue.h"

#include <assert.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define TEST_RING_GUEST UINT64_C(0x10000)
#define TEST_RING_BYTES (1 * MIB)
#define TEST_DATA_GUEST (UINT64_C(0x100000000) - 2 * MIB)
#define TEST_DATA_BYTES (4 * MIB) /* the regions meet in the middle */
#define TEST_USER_SHIFT UINT64_C(0x7f0000000000)
#define TEST_MAX_SIZE 1024

#define TEST_DESC_NEXT 1
#define TEST_DESC_WRITE 2
#define TEST_DESC_INDIRECT 4
#define TEST_DESC_AVAIL 0x80
#define TEST_DESC_USED 0x8000

/* A buffer of a request. */
typedef struct TestPiece {
    uint64_t guest;
    uint32_t bytes;
    bool in; /* device-writable */
} TestPiece;

typedef struct TestDriver {
    VirtioMemory *memory; /* the device's view */
    int fd;
    char *rings; /* the device's own mapping: ThreadSanitizer compares addresses */
    char *data;  /* a mapping of the driver's own */
    VirtQueueConfig config;
    uint64_t descriptors, available, used; /* guest addresses */
    uint64_t scratch;                      /* guest address behind the rings */
    uint16_t free[TEST_MAX_SIZE];          /* descriptors, or buffer ids */
    unsigned free_count;
    unsigned room;                        /* packed: free entries */
    uint16_t next_available, next_used;   /* split: free-running; packed: places */
    bool available_wrap, used_wrap;       /* packed */
    uint16_t entries[TEST_MAX_SIZE];      /* packed: of the request with that id */
    uint16_t chain[TEST_MAX_SIZE];        /* split: the next descriptor of a request */
    uint16_t last_available, last_called; /* split: indexes when kick or call was last decided about */
} TestDriver;

/* Where guest memory lies for the driver. */
static inline char *test_driver_at(const TestDriver *driver, uint64_t guest)
{
    if (guest >= TEST_DATA_GUEST)
        return driver->data + (guest - TEST_DATA_GUEST);
    return driver->rings + (guest - TEST_RING_GUEST);
}

/* Which guest address lies at a place of the device's view; 0 if none does. */
static inline uint64_t test_driver_guest(const TestDriver *driver, const void *at)
{
    static const uint64_t regions[][2] = {{TEST_RING_GUEST, TEST_RING_BYTES},
        {TEST_DATA_GUEST, TEST_DATA_BYTES / 2}, {TEST_DATA_GUEST + TEST_DATA_BYTES / 2, TEST_DATA_BYTES / 2}};

    for (size_t i = 0; i < ARRAY_SIZE(regions); i++) {
        uint64_t bytes;
        uintptr_t start = (uintptr_t)virtio_memory_at(driver->memory, regions[i][0], regions[i][1], &bytes);

        if ((uintptr_t)at >= start && (uintptr_t)at < start + regions[i][1])
            return regions[i][0] + ((uintptr_t)at - start);
    }
    return 0;
}

static inline void test_driver_region(TestDriver *driver, uint64_t guest, uint64_t bytes, uint64_t offset)
{
    VirtioRegion region = {
        .guest = guest, .user = guest + TEST_USER_SHIFT, .bytes = bytes, .file_offset = offset};
    Error err = ERROR_INIT;
    int r = virtio_memory_add(driver->memory, &region, dup(driver->fd), &err);

    assert(r == 0);
}

/* Rings as after the driver's start: nothing available, nothing used. */
static inline void test_driver_reset(TestDriver *driver)
{
    unsigned size = driver->config.size;

    memset(test_driver_at(driver, driver->descriptors), 0, (size_t)(driver->scratch - driver->descriptors));
    driver->free_count = driver->room = size;
    for (unsigned i = 0; i < size; i++)
        driver->free[i] = (uint16_t)(size - 1 - i);
    driver->next_available = driver->next_used = driver->last_available = driver->last_called = 0;
    driver->available_wrap = driver->used_wrap = true;
    driver->config.base = driver->config.packed ? 0x80008000 : 0;
}

static inline void test_driver_init(
    TestDriver *driver, unsigned size, bool packed, bool indirect, bool event_idx)
{
    *driver = (TestDriver){.memory = virtio_memory_new(), .fd = memfd_create("guest", MFD_CLOEXEC)};
    assert(driver->fd >= 0 && ftruncate(driver->fd, TEST_RING_BYTES + TEST_DATA_BYTES) == 0);
    driver->data =
        mmap(NULL, TEST_DATA_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, driver->fd, TEST_RING_BYTES);
    assert(driver->data != MAP_FAILED);
    test_driver_region(driver, TEST_RING_GUEST, TEST_RING_BYTES, 0);
    test_driver_region(driver, TEST_DATA_GUEST + TEST_DATA_BYTES / 2, TEST_DATA_BYTES / 2,
        TEST_RING_BYTES + TEST_DATA_BYTES / 2);
    test_driver_region(driver, TEST_DATA_GUEST, TEST_DATA_BYTES / 2, TEST_RING_BYTES);
    driver->rings = virtio_memory_at(driver->memory, TEST_RING_GUEST, TEST_RING_BYTES, &(uint64_t){0});
    driver->descriptors = TEST_RING_GUEST;
    driver->available = driver->descriptors + UINT64_C(16) * size;
    driver->used = align_up(driver->available + 6 + UINT64_C(2) * size, 4);
    driver->scratch = align_up(driver->used + 6 + UINT64_C(8) * size, 16);
    driver->config = (VirtQueueConfig){
        .size = size,
        .packed = packed,
        .indirect = indirect,
        .event_idx = event_idx,
        .descriptors = driver->descriptors + TEST_USER_SHIFT,
        .available = driver->available + TEST_USER_SHIFT,
        .used = driver->used + TEST_USER_SHIFT,
    };
    test_driver_reset(driver);
}

static inline void test_driver_done(TestDriver *driver)
{
    virtio_memory_free(driver->memory);
    munmap(driver->data, TEST_DATA_BYTES);
    close(driver->fd);
}

static inline uint16_t *test_u16(const TestDriver *driver, uint64_t guest)
{
    return (uint16_t *)(void *)test_driver_at(driver, guest);
}

static inline uint16_t test_load16(const TestDriver *driver, uint64_t guest)
{
    return le16toh(__atomic_load_n(test_u16(driver, guest), __ATOMIC_ACQUIRE));
}

static inline void test_store16(const TestDriver *driver, uint64_t guest, uint16_t value)
{
    __atomic_store_n(test_u16(driver, guest), htole16(value), __ATOMIC_RELEASE);
}

static inline void test_put_desc(
    const TestDriver *driver, uint64_t at, uint64_t guest, uint32_t bytes, uint16_t third, uint16_t fourth)
{
    char *to = test_driver_at(driver, at);

    put_le64(to, guest);
    put_le32(to + 8, bytes);
    put_le16(to + 12, third);
    put_le16(to + 14, fourth);
}

/* Writes an indirect table for the pieces. */
static inline void test_put_table(
    const TestDriver *driver, uint64_t at, const TestPiece *pieces, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        uint16_t flags = pieces[i].in ? TEST_DESC_WRITE : 0;
        bool more = i + 1 < count;

        if (driver->config.packed)
            test_put_desc(driver, at + 16 * i, pieces[i].guest, pieces[i].bytes, 0, flags);
        else
            test_put_desc(driver, at + 16 * i, pieces[i].guest, pieces[i].bytes,
                flags | (more ? TEST_DESC_NEXT : 0), more ? (uint16_t)(i + 1) : 0);
    }
}

/* Ring entries: the pieces, the last of which is an indirect table if `indirect`. */
static inline int test_split_add(TestDriver *driver, const TestPiece *pieces, unsigned count, bool indirect)
{
    uint16_t head = 0, previous = 0;

    if (driver->free_count < count)
        return -1;
    for (unsigned i = 0; i < count; i++) {
        uint16_t index = driver->free[--driver->free_count];
        uint16_t flags = pieces[i].in ? TEST_DESC_WRITE : 0;

        if (i == 0)
            head = index;
        else
            put_le16(test_driver_at(driver, driver->descriptors + UINT64_C(16) * previous + 14), index);
        if (i + 1 < count)
            flags |= TEST_DESC_NEXT;
        else if (indirect)
            flags |= TEST_DESC_INDIRECT;
        test_put_desc(
            driver, driver->descriptors + UINT64_C(16) * index, pieces[i].guest, pieces[i].bytes, flags, 0);
        if (i > 0)
            driver->chain[previous] = index;
        driver->chain[index] = UINT16_MAX;
        previous = index;
    }
    test_store16(driver, driver->available + 4 + 2 * (driver->next_available % driver->config.size), head);
    driver->next_available++;
    test_store16(driver, driver->available + 2, driver->next_available);
    return head;
}

static inline void test_packed_advance(const TestDriver *driver, uint16_t *index, bool *wrap, unsigned by)
{
    *index = (uint16_t)(*index + by);
    if (*index >= driver->config.size) {
        *index = (uint16_t)(*index - driver->config.size);
        *wrap = !*wrap;
    }
}

static inline int test_packed_add(TestDriver *driver, const TestPiece *pieces, unsigned count, bool indirect)
{
    uint16_t id, head_flags = 0, head_index = driver->next_available;

    if (driver->room < count)
        return -1;
    id = driver->free[--driver->free_count];
    for (unsigned i = 0; i < count; i++) {
        uint64_t at = driver->descriptors + UINT64_C(16) * driver->next_available;
        uint16_t flags =
            (uint16_t)((driver->available_wrap ? TEST_DESC_AVAIL : TEST_DESC_USED) |
                       (pieces[i].in ? TEST_DESC_WRITE : 0) | (i + 1 < count ? TEST_DESC_NEXT : 0) |
                       (indirect && i + 1 == count ? TEST_DESC_INDIRECT : 0));

        put_le64(test_driver_at(driver, at), pieces[i].guest);
        put_le32(test_driver_at(driver, at + 8), pieces[i].bytes);
        put_le16(test_driver_at(driver, at + 12), i + 1 < count ? (uint16_t)rand() : id);
        if (i == 0)
            head_flags = flags;
        else
            test_store16(driver, at + 14, flags);
        test_packed_advance(driver, &driver->next_available, &driver->available_wrap, 1);
    }
    driver->entries[id] = (uint16_t)count;
    driver->room -= count;
    test_store16(driver, driver->descriptors + UINT64_C(16) * head_index + 14, head_flags);
    return id;
}

/* Makes a request of ring entries available. Returns its head or buffer id; -1: there is no room. */
static inline int test_driver_add(TestDriver *driver, const TestPiece *pieces, unsigned count, bool indirect)
{
    return driver->config.packed ? test_packed_add(driver, pieces, count, indirect)
                                 : test_split_add(driver, pieces, count, indirect);
}

/* The same with all pieces in an indirect table at a guest address. */
static inline int test_driver_add_table(
    TestDriver *driver, const TestPiece *pieces, unsigned count, uint64_t table)
{
    TestPiece entry = {.guest = table, .bytes = 16 * count};

    if (driver->free_count == 0 || (driver->config.packed && driver->room == 0))
        return -1;
    test_put_table(driver, table, pieces, count);
    return test_driver_add(driver, &entry, 1, true);
}

static inline bool test_split_used(TestDriver *driver, uint16_t *ret_id, uint32_t *ret_bytes)
{
    uint64_t at = driver->used + 4 + UINT64_C(8) * (driver->next_used % driver->config.size);

    if (test_load16(driver, driver->used + 2) == driver->next_used)
        return false;
    driver->next_used++;
    *ret_id = (uint16_t)get_le32(test_driver_at(driver, at));
    *ret_bytes = get_le32(test_driver_at(driver, at + 4));
    for (uint16_t i = *ret_id; i != UINT16_MAX; i = driver->chain[i])
        driver->free[driver->free_count++] = i;
    return true;
}

static inline bool test_packed_used(TestDriver *driver, uint16_t *ret_id, uint32_t *ret_bytes)
{
    uint64_t at = driver->descriptors + UINT64_C(16) * driver->next_used;
    uint16_t flags = test_load16(driver, at + 14);
    uint16_t bits = driver->used_wrap ? TEST_DESC_AVAIL | TEST_DESC_USED : 0;

    if ((flags & (TEST_DESC_AVAIL | TEST_DESC_USED)) != bits || driver->room == driver->config.size)
        return false;
    *ret_bytes = get_le32(test_driver_at(driver, at + 8));
    *ret_id = get_le16(test_driver_at(driver, at + 12));
    driver->free[driver->free_count++] = *ret_id;
    driver->room += driver->entries[*ret_id];
    test_packed_advance(driver, &driver->next_used, &driver->used_wrap, driver->entries[*ret_id]);
    return true;
}

/* Takes a request that was used from the ring; false if there is none. */
static inline bool test_driver_used(TestDriver *driver, uint16_t *ret_id, uint32_t *ret_bytes)
{
    return driver->config.packed ? test_packed_used(driver, ret_id, ret_bytes)
                                 : test_split_used(driver, ret_id, ret_bytes);
}

static inline bool test_need_event(uint16_t event, uint16_t new, uint16_t old)
{
    return (uint16_t)(new - event - 1) < (uint16_t)(new - old);
}

/* Whether the device wants to be told of what was added since the last time; one request at a time. `entries`
 * is how many it has (packed). */
static inline bool test_driver_must_kick(TestDriver *driver, unsigned entries)
{
    unsigned size = driver->config.size;
    uint16_t place, flags, old = driver->last_available;

    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    driver->last_available = driver->next_available;
    if (!driver->config.packed) {
        if (!driver->config.event_idx)
            return !(test_load16(driver, driver->used) & 1);
        place = test_load16(driver, driver->used + 4 + UINT64_C(8) * size);
        return test_need_event(place, driver->next_available, old);
    }
    flags = test_load16(driver, driver->used + 2);
    place = test_load16(driver, driver->used);
    if (flags != 2)
        return flags == 0;
    return test_need_event((uint16_t)((place & 0x7fff) - (place >> 15 == driver->available_wrap ? 0 : size)),
        driver->next_available, (uint16_t)(driver->next_available - entries));
}

/* Whether calls are wanted; with an event index: for what is used next. */
static inline void test_driver_want_calls(TestDriver *driver, bool calls)
{
    if (!driver->config.packed && !driver->config.event_idx) {
        test_store16(driver, driver->available, calls ? 0 : 1);
    } else if (!driver->config.packed) {
        if (calls)
            test_store16(
                driver, driver->available + 4 + UINT64_C(2) * driver->config.size, driver->next_used);
    } else if (driver->config.event_idx && calls) {
        uint32_t place = driver->next_used | (uint32_t)driver->used_wrap << 15 | 2u << 16;

        __atomic_store_n(
            (uint32_t *)(void *)test_driver_at(driver, driver->available), htole32(place), __ATOMIC_RELEASE);
    } else {
        __atomic_store_n((uint32_t *)(void *)test_driver_at(driver, driver->available),
            htole32(calls ? 0 : 1u << 16), __ATOMIC_RELEASE);
    }
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
