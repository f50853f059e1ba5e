/* SPDX-License-Identifier: Apache-2.0 */
/* Queues of a virtio block device at work, and queues that start and stop meanwhile; every byte is checked.
 */
#include "virtio/test-blk-driver.h"

/* ---- Load ---- */

#define SLOTS 16 /* requests at a time, of three descriptors each */

typedef struct Load {
    Ring *ring;
    unsigned requests;
    unsigned random;
    unsigned generation[128]; /* of each block of 4 KiB; 0: as the disk was at first */
    struct {
        unsigned block;
        bool write, busy;
    } slots[SLOTS];
} Load;

static unsigned next_random(Load *load, unsigned below)
{
    load->random = load->random * 1103515245 + 12345;
    return (load->random >> 8) % below;
}

static uint64_t slot_at(const Load *load, unsigned slot)
{
    return GUEST + MIB + (load->ring->index * SLOTS + slot) * 0x3000;
}

static uint64_t block_sector(const Load *load, unsigned block)
{
    return (load->ring->index * 128 + block) * 8;
}

/* What the block contains. */
static void fill(const Load *load, unsigned block, uint8_t *data)
{
    for (size_t i = 0; i < 4096; i++)
        data[i] = (uint8_t)(i * 3 + block * 5 + load->generation[block] * 11 + load->ring->index);
}

static bool block_is_busy(const Load *load, unsigned block)
{
    for (unsigned i = 0; i < SLOTS; i++)
        if (load->slots[i].busy && load->slots[i].block == block)
            return true;
    return false;
}

static void submit(Load *load, unsigned slot)
{
    uint64_t guest = slot_at(load, slot);
    unsigned block, head = slot * 3;

    do
        block = next_random(load, 128);
    while (block_is_busy(load, block));
    load->slots[slot].block = block;
    load->slots[slot].busy = true;
    load->slots[slot].write = !load->generation[block] || next_random(load, 2);
    put_le32(at(guest), load->slots[slot].write);
    put_le64(at(guest) + 8, block_sector(load, block));
    at(guest)[16] = 0xff;
    if (load->slots[slot].write) {
        load->generation[block]++;
        fill(load, block, at(guest) + 4096);
    }
    describe(load->ring, head, guest, 16, false, true);
    describe(load->ring, head + 1, guest + 4096, 4096, !load->slots[slot].write, true);
    describe(load->ring, head + 2, guest + 16, 1, true, false);
    publish(load->ring, (uint16_t)head);
}

static void check_done(Load *load, unsigned slot)
{
    uint8_t expected[4096];

    assert_int_equal(at(slot_at(load, slot))[16], 0);
    if (!load->slots[slot].write) {
        fill(load, load->slots[slot].block, expected);
        assert_memory_equal(at(slot_at(load, slot)) + 4096, expected, sizeof(expected));
    }
    load->slots[slot].busy = false;
}

static void load_body(void *arg)
{
    Load *load = arg;
    unsigned submitted = 0, done = 0;

    for (unsigned slot = 0; slot < SLOTS; slot++, submitted++)
        submit(load, slot);
    for (; done < load->requests; done++) {
        unsigned slot = wait_for_used(load->ring) / 3;

        check_done(load, slot);
        if (submitted++ < load->requests)
            submit(load, slot);
    }
}

static void run_load(unsigned count, unsigned requests, void (*meanwhile)(void))
{
    static Load loads[QUEUES];
    CoGroup group;

    co_group_init(&group);
    for (unsigned i = 0; i < count; i++) {
        loads[i] = (Load){.ring = &rings[i], .requests = requests, .random = i};
        co_start(&group, "load", load_body, &loads[i]);
    }
    if (meanwhile)
        meanwhile();
    co_group_join(&group);
    for (unsigned i = 0; i < count; i++) {
        for (unsigned block = 0; block < 128; block++) {
            uint8_t expected[4096];

            fill(&loads[i], block, expected);
            if (loads[i].generation[block])
                assert_memory_equal(disk + block_sector(&loads[i], block) * 512, expected, sizeof(expected));
        }
    }
}

static Loop *new_loop(const char *name)
{
    const LoopOptions options = LOOP_OPTIONS_DEFAULT;
    Error err = ERROR_INIT;
    Loop *loop;

    assert_int_equal(loop_new(name, LOOP_BACKEND_AUTO, &options, &loop, &err), 0);
    return loop;
}

/* Queues come and go, and are called elsewhere, while their driver works. */
static void disturb(void)
{
    for (unsigned i = 0; i < 60; i++) {
        Ring *ring = &rings[i % QUEUES];

        if (i % 3) {
            virtio_blk_queue_set_call(ring->queue, ring->call_fd);
        } else {
            stop(ring);
            ring->loop = rings[next_random(&(Load){.random = i}, QUEUES)].loop;
            start(ring);
            virtio_blk_queue_set_call(ring->queue, ring->call_fd);
        }
        slowness = i % 4;
        assert_int_equal(co_sleep_ns(100000), 0);
    }
}

LOOP_TEST(test_load_on_several_loops)
{
    Loop *loops[2] = {new_loop("io0"), new_loop("io1")};

    set_up(true, 512);
    for (unsigned i = 0; i < QUEUES; i++) {
        rings[i].loop = i < 3 ? loops[i % 2] : loop_current();
        start(&rings[i]);
    }
    slowness = 1;
    run_load(QUEUES, 2000, NULL);
    run_load(QUEUES, 2000, disturb);
    tear_down();
    loop_free(loops[0]);
    loop_free(loops[1]);
    return 0;
}

LOOP_TEST(test_stop_waits_for_requests)
{
    set_up(true, 512);
    start(&rings[0]);
    slowness = 200;
    for (uint16_t i = 0; i < 10; i++) {
        uint64_t guest = GUEST + MIB + i * 0x1000;

        put_le32(at(guest), 0);
        put_le64(at(guest) + 8, i);
        describe(&rings[0], i * 2U, guest, 16, false, true);
        describe(&rings[0], i * 2U + 1, guest + 16, 513, true, false);
        publish(&rings[0], i * 2);
    }
    for (int i = 0; i < 5; i++)
        assert_int_equal(co_yield (), 0);
    stop(&rings[0]);
    /* What was taken has ended, the rest is still there; in the order of the ring. */
    assert_int_equal(shared_index(used(&rings[0])), rings[0].base & 0xffff);
    assert_true(rings[0].base > 0);
    /* Who serves the ring next may wait for a kick. */
    assert_int_equal(shared_16(used(&rings[0]) + 4 + RING_SIZE * 8), rings[0].base);
    slowness = 0;
    start(&rings[0]);
    for (uint16_t i = 0; i < 10; i++) {
        uint64_t guest;
        uint16_t request_index = wait_for_used(&rings[0]) / 2;

        guest = GUEST + MIB + request_index * 0x1000;
        assert_memory_equal(at(guest) + 16, disk + request_index * 512, 512);
        assert_int_equal(at(guest)[16 + 512], 0);
    }
    tear_down();
    return 0;
}

LOOP_TEST(test_without_kicks)
{
    VirtioBlkQueueOptions options;
    Error err = ERROR_INIT;

    set_up(true, 512);
    options = queue_options(&rings[0]);
    options.kick_fd = -1;
    assert_int_equal(virtio_blk_queue_start(blk, 0, &options, &rings[0].queue, &err), 0);
    for (int i = 0; i < 10; i++) {
        assert_int_equal(simple(0, 8, 0, 512), 0);
        assert_int_equal(co_sleep_ns(300000), 0);
    }
    tear_down();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_load_on_several_loops),
        cmocka_unit_test(test_stop_waits_for_requests),
        cmocka_unit_test(test_without_kicks),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
