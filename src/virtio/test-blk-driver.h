/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the unit tests of the virtio block device share: a disk in memory, and the driver's side of split
 * rings over shared memory and eventfds as a virtual machine has them.
 */
#pragma once

#include "block/test-nodes.h"
#include "virtio/blk.h"

#include "base/endian.h"
#include "base/mem.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#define MEMORY_BYTES (8 * MIB)
/* Two regions side by side in guest addresses, apart from each other in the front end's own. */
#define SPLIT_BYTES (2 * MIB)
#define GUEST UINT64_C(0x40000000)
#define USER_LOW UINT64_C(0x7000000000)
#define USER_HIGH UINT64_C(0x7100000000)
#define RING_SIZE 64
#define QUEUES 4
#define DISK_BYTES (4 * MIB)
#define DEADLINE_NS UINT64_C(60000000000)

/* ---- A disk in memory, whose requests take a few passes of the scheduler ---- */

static uint8_t disk[DISK_BYTES];
static _Atomic unsigned durable_writes, plain_writes, flushes, discards, unmaps;
static _Atomic unsigned slowness; /* passes */
static _Atomic int failing;       /* what requests return */

static inline int rest(void)
{
    for (unsigned i = slowness; i; i--)
        co_yield ();
    return failing;
}

static inline int disk_read(Node *node, uint64_t offset, IoSlice dst)
{
    int r = rest();

    if (r == 0)
        io_slice_copy_to(dst, disk + offset, dst.bytes);
    return r;
}

static inline int disk_write(Node *node, uint64_t offset, IoSlice src, unsigned flags)
{
    int r = rest();

    if (r == 0)
        io_slice_copy_from(src, disk + offset, src.bytes);
    *(flags & REQ_FUA ? &durable_writes : &plain_writes) += 1;
    return r;
}

static inline int disk_write_zeroes(Node *node, uint64_t offset, uint64_t bytes, unsigned flags)
{
    int r = rest();

    if (r == 0)
        memset(disk + offset, 0, bytes);
    unmaps += (flags & REQ_MAY_UNMAP) != 0;
    durable_writes += (flags & REQ_FUA) != 0;
    return r;
}

static inline int disk_discard(Node *node, uint64_t offset, uint64_t bytes)
{
    discards++;
    return rest();
}

static inline int disk_flush(Node *node)
{
    flushes++;
    return rest();
}

static const Driver disk_driver = {
    .name = "disk",
    .flags = DRIVER_PROTOCOL | DRIVER_ANY_LOOP,
    .read = disk_read,
    .write = disk_write,
    .write_zeroes = disk_write_zeroes,
    .discard = disk_discard,
    .flush = disk_flush,
};

/* ---- The driver's side ---- */

typedef struct Ring {
    unsigned index;
    VirtioBlkQueue *queue;
    uint64_t guest; /* descriptors, available ring, used ring, each in a page of its own */
    uint16_t available, used;
    uint32_t base;
    int kick_fd, call_fd;
    Loop *loop;
} Ring;

static uint8_t *guest_memory;
static int memory_fd;
static VirtioMemory *memory;
static Edge *edge;
static VirtioBlk *blk;
static Ring rings[QUEUES];
static char *failure;

static inline uint8_t *at(uint64_t guest)
{
    return guest_memory + (guest - GUEST);
}

static inline uint8_t *available(const Ring *ring)
{
    return at(ring->guest) + 4096;
}

static inline uint8_t *used(const Ring *ring)
{
    return at(ring->guest) + 8192;
}

static inline uint16_t shared_16(const void *p)
{
    return le16toh(__atomic_load_n((const uint16_t *)p, __ATOMIC_SEQ_CST));
}

/* How far the other side has come. */
static inline uint16_t shared_index(const uint8_t *ring)
{
    return shared_16(ring + 2);
}

static inline void describe(Ring *ring, unsigned i, uint64_t guest, size_t bytes, bool writable, bool more)
{
    uint8_t *descriptor = at(ring->guest) + i * 16;

    put_le64(descriptor, guest);
    put_le32(descriptor + 8, (uint32_t)bytes);
    put_le16(descriptor + 12, (uint16_t)((writable ? 2 : 0) | (more ? 1 : 0)));
    put_le16(descriptor + 14, (uint16_t)(i + 1));
}

/* Makes the chain that starts at a descriptor available, and kicks if that is wanted. */
static inline void publish(Ring *ring, uint16_t head)
{
    uint16_t old = ring->available++, want;
    uint64_t one = 1;

    put_le16(available(ring) + 4 + old % RING_SIZE * 2, head);
    __atomic_store_n((uint16_t *)(available(ring) + 2), htole16(ring->available), __ATOMIC_SEQ_CST);
    want = shared_16(used(ring) + 4 + RING_SIZE * 8);
    if ((uint16_t)(ring->available - want - 1) < (uint16_t)(ring->available - old))
        assert_int_equal(write(ring->kick_fd, &one, sizeof(one)), sizeof(one));
}

/* Waits until one more request has been used; its head. */
static inline uint16_t wait_for_used(Ring *ring)
{
    uint8_t *entry = used(ring) + 4 + ring->used % RING_SIZE * 8;
    CoDeadline deadline;

    co_deadline_begin(&deadline, DEADLINE_NS);
    for (;;) {
        __atomic_store_n(
            (uint16_t *)(available(ring) + 4 + RING_SIZE * 2), htole16(ring->used), __ATOMIC_SEQ_CST);
        if (shared_index(used(ring)) != ring->used)
            break;
        assert_int_equal(io_eventfd_wait(ring->call_fd), 0);
    }
    co_deadline_end(&deadline);
    ring->used++;
    return (uint16_t)get_le32(entry);
}

/* How the bytes of a request are spread over descriptors. */
typedef struct Layout {
    size_t out_first, out_rest; /* length of the first piece and of each other; 0: all that is left */
    size_t in_first, in_rest;
} Layout;

static const Layout layouts[] = {
    {16, 0, 512, 0},
    {1, 0, 0, 1},
    {0, 0, 0, 0},
    {1, 300, 1, 300},
    {3, 700, 5, 700},
    {15, 512, 513, 512},
    {17, 4096, 511, 4096},
    {8, 8192, 4096, 8192},
};

#define OUT_AT (GUEST + SPLIT_BYTES - 1000) /* across the regions */
#define IN_AT (GUEST + 4 * MIB - 777)

/* One piece after the other until all bytes have been described; the number of descriptors used. */
static inline unsigned spread(Ring *ring, unsigned first, uint64_t guest, size_t bytes, size_t piece,
    size_t rest_piece, bool writable, bool last_group)
{
    unsigned i = first;

    while (bytes) {
        size_t n = piece && piece < bytes ? piece : bytes;

        if (i == first + RING_SIZE / 2 - 1)
            n = bytes; /* the ring is full */
        describe(ring, i++, guest, n, writable, bytes > n || !last_group);
        guest += n;
        bytes -= n;
        piece = rest_piece;
    }
    return i - first;
}

typedef struct Call {
    uint32_t type;
    uint64_t sector;
    const void *out;
    size_t out_bytes;
    void *in;
    size_t in_bytes;
} Call;

/* One request of its own on the ring: the status byte. */
static inline int request(Ring *ring, const Layout *layout, Call call)
{
    uint8_t *header = at(OUT_AT);
    unsigned n;

    put_le32(header, call.type);
    put_le32(header + 4, 0xffffffff);
    put_le64(header + 8, call.sector);
    if (call.out_bytes)
        memcpy(header + 16, call.out, call.out_bytes);
    memset(at(IN_AT), 0xee, call.in_bytes + 1);
    n = spread(ring, 0, OUT_AT, 16 + call.out_bytes, layout->out_first, layout->out_rest, false, false);
    spread(ring, n, IN_AT, call.in_bytes + 1, layout->in_first, layout->in_rest, true, true);
    publish(ring, 0);
    assert_int_equal(wait_for_used(ring), 0);
    if (call.in_bytes)
        memcpy(call.in, at(IN_AT), call.in_bytes);
    return at(IN_AT)[call.in_bytes];
}

static inline int simple(uint32_t type, uint64_t sector, size_t out_bytes, size_t in_bytes)
{
    static uint8_t bytes[16384];

    return request(&rings[0], &layouts[0], (Call){type, sector, bytes, out_bytes, bytes, in_bytes});
}

/* ---- Setting up ---- */

static inline void failed(void *opaque, unsigned index, const char *text)
{
    assert_ptr_equal(opaque, &rings[index]);
    assert_null(failure);
    failure = str_dup(text);
}

static inline VirtioBlkQueueOptions queue_options(Ring *ring)
{
    return (VirtioBlkQueueOptions){
        .config = {.size = RING_SIZE,
            .indirect = true,
            .event_idx = true,
            .descriptors = ring->guest - GUEST + USER_LOW,
            .available = ring->guest - GUEST + USER_LOW + 4096,
            .used = ring->guest - GUEST + USER_LOW + 8192,
            .base = ring->base},
        .memory = memory,
        .kick_fd = ring->kick_fd,
        .call_fd = ring->call_fd,
        .loop = ring->loop,
        .failed = failed,
        .opaque = ring,
    };
}

static inline void start(Ring *ring)
{
    VirtioBlkQueueOptions options = queue_options(ring);
    Error err = ERROR_INIT;

    if (virtio_blk_queue_start(blk, ring->index, &options, &ring->queue, &err) < 0)
        fail_msg("%s", err.message);
}

static inline void stop(Ring *ring)
{
    ring->base = virtio_blk_queue_stop(ring->queue);
    ring->queue = NULL;
}

/* cmocka puts its own handler in place of the one that the first mapping installs, for each test. */
static inline void keep_bus_handler(void)
{
    static struct sigaction action;

    if (action.sa_handler)
        sigaction(SIGBUS, &action, NULL);
    else
        sigaction(SIGBUS, NULL, &action);
}

static inline void map_memory(void)
{
    const VirtioRegion low = {GUEST, USER_LOW, SPLIT_BYTES, 0},
                       high = {GUEST + SPLIT_BYTES, USER_HIGH, MEMORY_BYTES - SPLIT_BYTES, SPLIT_BYTES};
    Error err = ERROR_INIT;

    memory_fd = memfd_create("guest", MFD_CLOEXEC);
    assert_int_equal(ftruncate(memory_fd, MEMORY_BYTES), 0);
    guest_memory = mmap(NULL, MEMORY_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, memory_fd, 0);
    assert_ptr_not_equal(guest_memory, MAP_FAILED);
    memory = virtio_memory_new();
    assert_int_equal(virtio_memory_add(memory, &low, dup(memory_fd), &err), 0);
    assert_int_equal(virtio_memory_add(memory, &high, dup(memory_fd), &err), 0);
    keep_bus_handler();
}

static inline void open_disk(bool writable)
{
    Node *node = test_add("{'driver': 'null-co', 'node-name': 'disk', 'size': 4194304}");

    node->driver = &disk_driver;
    node->write_flags = REQ_FUA;
    node->zeroes_flags = REQ_FUA | REQ_MAY_UNMAP;
    node->discard_unmap = true;
    edge = test_open_root(node, PERM_CONSISTENT_READ | (writable ? PERM_WRITE : 0));
    durable_writes = plain_writes = flushes = discards = unmaps = slowness = 0;
    failing = 0;
    for (size_t i = 0; i < DISK_BYTES; i++)
        disk[i] = (uint8_t)(i * 7 + i / 512);
}

static inline void set_up(bool writable, uint32_t block_bytes)
{
    VirtioBlkOptions options = {.writable = writable,
        .logical_block_bytes = block_bytes,
        .queue_count = QUEUES,
        .queue_size_max = 128,
        .serial = "12345678901234567890"};

    block_init();
    map_memory();
    open_disk(writable);
    options.edge = edge;
    blk = virtio_blk_new(&options);
    virtio_blk_set_features(blk, virtio_blk_features(blk));
    for (unsigned i = 0; i < QUEUES; i++)
        rings[i] = (Ring){.index = i,
            .guest = GUEST + i * 0x4000,
            .kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
            .call_fd = eventfd(0, EFD_CLOEXEC),
            .loop = loop_current()};
}

static inline void tear_down(void)
{
    for (unsigned i = 0; i < QUEUES; i++) {
        if (rings[i].queue)
            stop(&rings[i]);
        close(rings[i].kick_fd);
        close(rings[i].call_fd);
    }
    virtio_blk_free(blk);
    virtio_memory_free(memory);
    munmap(guest_memory, MEMORY_BYTES);
    close(memory_fd);
    edge_close(edge);
    node_close_all();
    assert_null(failure);
}

static inline void wait_for_failure(void)
{
    for (unsigned i = 0; !failure && i < 10000; i++)
        assert_int_equal(co_sleep_ns(1000000), 0);
    assert_non_null(failure);
}

static inline void expect_text(const char *text, const char *format, int fd)
{
    char expected[100];

    snprintf(expected, sizeof(expected), format, fd);
    assert_string_equal(text, expected);
}

static inline void expect_failure(const char *text)
{
    wait_for_failure();
    assert_string_equal(failure, text);
    free(TAKE(failure));
}
