/* SPDX-License-Identifier: Apache-2.0 */
/* Split and packed virtqueues against a driver: random legal requests, which have to come out as they went
 * in, and every way of breaking the rules. */
#include "virtio/test-driver.h"

#include "base/limits.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

#define PIECES_MAX 160
#define TABLE_MAX 39

typedef struct Expected {
    TestPiece pieces[PIECES_MAX];
    unsigned count;
    int id;
    bool is_used;
    uint32_t written;
} Expected;

typedef struct Fixture {
    TestDriver driver;
    VirtQueue *queue;
    Expected *requests; /* by id, the ones in the ring */
} Fixture;

static void open_queue(Fixture *f)
{
    Error err = ERROR_INIT;

    if (virtqueue_new(&f->driver.config, f->driver.memory, NULL, &f->queue, &err) < 0)
        fail_msg("%s", err.message);
}

static void setup(Fixture *f, unsigned size, bool packed, bool indirect, bool event_idx)
{
    *f = (Fixture){.requests = calloc(TEST_MAX_SIZE, sizeof(Expected))};
    test_driver_init(&f->driver, size, packed, indirect, event_idx);
    open_queue(f);
}

static void teardown(Fixture *f)
{
    virtqueue_free(f->queue);
    test_driver_done(&f->driver);
    free(f->requests);
}

static unsigned below(unsigned bound)
{
    return (unsigned)rand() % bound;
}

/* A buffer anywhere in the data regions, often over the seam between them. */
static TestPiece random_piece(bool in)
{
    uint32_t bytes = below(4) ? 1 + below(5000) : 512;
    uint64_t guest = TEST_DATA_GUEST + below(TEST_DATA_BYTES - bytes);

    if (below(8) == 0)
        guest = TEST_DATA_GUEST + TEST_DATA_BYTES / 2 - below(bytes);
    return (TestPiece){.guest = guest, .bytes = bytes, .in = in};
}

static unsigned random_pieces(TestPiece *pieces, unsigned max)
{
    unsigned count = below(3) ? 1 + below(MIN(max, 4u)) : 1 + below(max), outs = below(count + 1);

    for (unsigned i = 0; i < count; i++)
        pieces[i] = random_piece(i >= outs);
    return count;
}

/* The pieces as one would walk through their bytes: each step is as long as both sides go in one piece. */
static void assert_same_bytes(
    const TestDriver *driver, const TestPiece *pieces, unsigned count, const VirtElement *element)
{
    size_t sums[2] = {0, 0};
    const struct iovec *iov = element->iov;
    unsigned used = 0;
    uint64_t in_iov = 0;

    for (unsigned i = 0; i < count; i++) {
        for (uint32_t done = 0; done < pieces[i].bytes;) {
            bool in = used >= element->out_count;
            uint64_t step;

            assert_true(used < element->out_count + element->in_count);
            assert_int_equal(in, pieces[i].in);
            assert_int_equal(
                test_driver_guest(driver, (char *)iov[used].iov_base + in_iov), pieces[i].guest + done);
            step = MIN(iov[used].iov_len - in_iov, (uint64_t)pieces[i].bytes - done);
            done += (uint32_t)step;
            in_iov += step;
            sums[in] += step;
            if (in_iov == iov[used].iov_len) {
                used++;
                in_iov = 0;
            }
        }
    }
    assert_int_equal(used, element->out_count + element->in_count);
    assert_int_equal(sums[0], element->out_bytes);
    assert_int_equal(sums[1], element->in_bytes);
}

/* Adds a random request in one of the legal forms. Returns its id; -1: there is no room. */
static int add_random(Fixture *f)
{
    TestDriver *driver = &f->driver;
    Expected expected = {.id = -1};

    if (driver->free_count == 0)
        return -1;
    if (driver->config.indirect && below(2)) {
        /* Tables have places of their own as long as they are in flight: by the id that the request is going
         * to have. */
        uint64_t table =
            driver->scratch + UINT64_C(16) * (TABLE_MAX + 1) * driver->free[driver->free_count - 1];

        expected.count = random_pieces(expected.pieces, TABLE_MAX);
        expected.id = test_driver_add_table(driver, expected.pieces, expected.count, table + below(16));
    } else {
        expected.count = random_pieces(expected.pieces, MIN(driver->config.size, (unsigned)PIECES_MAX));
        expected.id = test_driver_add(driver, expected.pieces, expected.count, false);
    }
    if (expected.id >= 0)
        f->requests[expected.id] = expected;
    return expected.id;
}

static void pop_and_compare(Fixture *f, VirtElement *ret_element, int expected_id)
{
    assert_true(virtqueue_has_more(f->queue));
    assert_int_equal(virtqueue_pop(f->queue, ret_element), 1);
    assert_int_equal(ret_element->id, expected_id);
    assert_same_bytes(
        &f->driver, f->requests[expected_id].pieces, f->requests[expected_id].count, ret_element);
}

static void push_one(Fixture *f, const VirtElement *element)
{
    Expected *expected = &f->requests[element->id];

    expected->written = below(3) ? below(100000) : 0;
    expected->is_used = true;
    virtqueue_push(f->queue, element, expected->written);
}

static void take_used(Fixture *f)
{
    uint16_t id;
    uint32_t bytes;

    while (test_driver_used(&f->driver, &id, &bytes)) {
        assert_true(f->requests[id].is_used);
        assert_int_equal(bytes, f->requests[id].written);
        f->requests[id].is_used = false;
    }
}

/* Now and then the queue ends and another one goes on where it was. */
static void reopen(Fixture *f)
{
    uint32_t base = virtqueue_base(f->queue);

    virtqueue_free(f->queue);
    f->driver.config.base = base;
    open_queue(f);
}

static void run_random(unsigned size, bool packed, bool indirect, unsigned rounds)
{
    static VirtElement flying[TEST_MAX_SIZE];
    static int waiting[TEST_MAX_SIZE];
    unsigned in_flight = 0, waiting_count = 0;
    Fixture f;

    setup(&f, size, packed, indirect, below(2));
    for (unsigned i = 0; i < rounds; i++) {
        for (unsigned n = below(4); n > 0; n--) {
            int id = add_random(&f);

            if (id >= 0)
                waiting[waiting_count++] = id;
        }
        for (unsigned n = below(4); n > 0 && waiting_count; n--) {
            pop_and_compare(&f, &flying[in_flight++], waiting[0]);
            memmove(waiting, waiting + 1, --waiting_count * sizeof(*waiting));
        }
        for (unsigned n = below(4); n > 0 && in_flight; n--) {
            unsigned which = below(in_flight);

            push_one(&f, &flying[which]);
            flying[which] = flying[--in_flight];
        }
        assert_int_equal(virtqueue_in_flight(f.queue), in_flight);
        assert_int_equal(virtqueue_has_more(f.queue), waiting_count > 0);
        if (below(2))
            take_used(&f);
        if (in_flight == 0 && below(4) == 0)
            reopen(&f);
    }
    teardown(&f);
}

static void test_random_legal(void **state)
{
    static const unsigned sizes[] = {1, 2, 4, 16, 128, 1024};

    for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
        for (unsigned kind = 0; kind < 4; kind++)
            run_random(sizes[i], kind & 1, kind & 2, sizes[i] < 16 ? 3000 : 1500);
    }
    run_random(3, true, true, 3000); /* a packed ring may have any size */
    run_random(1000, true, false, 3000);
}

static void test_direct_before_table(void **state)
{
    TestPiece pieces[3] = {random_piece(false), random_piece(false), random_piece(true)};
    VirtElement element;
    Fixture f;

    setup(&f, 8, false, true, false);
    test_put_table(&f.driver, f.driver.scratch + 5, pieces + 1, 2);
    assert_true(test_driver_add(&f.driver,
                    (TestPiece[]){pieces[0], {.guest = f.driver.scratch + 5, .bytes = 32, .in = true}}, 2,
                    true) >= 0);
    assert_int_equal(virtqueue_pop(f.queue, &element), 1);
    assert_same_bytes(&f.driver, pieces, 3, &element);
    teardown(&f);
}

/* A table that lies in two regions, and a longer one than the ring has entries. */
static void test_odd_tables(void **state)
{
    static TestPiece pieces[LIMIT_VIRTQUEUE_SIZE];
    uint64_t table = TEST_DATA_GUEST + TEST_DATA_BYTES / 2 - 16 * 300 - 7;
    VirtElement element;
    Fixture f;

    for (unsigned i = 0; i < ARRAY_SIZE(pieces); i++)
        pieces[i] = (TestPiece){.guest = TEST_DATA_GUEST + 1000 * i, .bytes = 999, .in = i > 500};
    for (unsigned packed = 0; packed < 2; packed++) {
        setup(&f, 8, packed, true, false);
        assert_true(test_driver_add_table(&f.driver, pieces, ARRAY_SIZE(pieces), table) >= 0);
        assert_int_equal(virtqueue_pop(f.queue, &element), 1);
        assert_same_bytes(&f.driver, pieces, ARRAY_SIZE(pieces), &element);
        teardown(&f);
    }
}

/* What goes wrong, on a ring in which a good request was served before. */
typedef void Crime(Fixture *f);

static TestPiece out = {.guest = TEST_DATA_GUEST, .bytes = 16};
static TestPiece in = {.guest = TEST_DATA_GUEST + 4096, .bytes = 512, .in = true};

static void add(Fixture *f, const TestPiece *pieces, unsigned count)
{
    assert_true(test_driver_add(&f->driver, pieces, count, false) >= 0);
}

static void add_broken_table(Fixture *f, uint64_t guest, uint32_t bytes)
{
    assert_true(test_driver_add(&f->driver, &(TestPiece){.guest = guest, .bytes = bytes}, 1, true) >= 0);
}

/* Makes a table of two and leaves the change of the first entry's fields to the caller. */
static char *add_table(Fixture *f)
{
    assert_true(test_driver_add_table(&f->driver, (TestPiece[]){out, in}, 2, f->driver.scratch) >= 0);
    return test_driver_at(&f->driver, f->driver.scratch);
}

static char *split_desc(Fixture *f, int index)
{
    return test_driver_at(&f->driver, f->driver.descriptors + UINT64_C(16) * (unsigned)index);
}

static void add_no_bytes(Fixture *f)
{
    add(f, (TestPiece[]){out, {.guest = TEST_DATA_GUEST, .in = true}}, 2);
}

static void add_out_after_in(Fixture *f)
{
    add(f, (TestPiece[]){out, in, out}, 3);
}

static void add_outside(Fixture *f)
{
    add(f, (TestPiece[]){{.guest = 0x1000, .bytes = 16}, in}, 2);
}

static void add_behind_end(Fixture *f)
{
    add(f, (TestPiece[]){out, {.guest = TEST_DATA_GUEST + TEST_DATA_BYTES - 511, .bytes = 512, .in = true}},
        2);
}

static void add_wrapping(Fixture *f)
{
    add(f, (TestPiece[]){{.guest = UINT64_MAX - 3, .bytes = 16}, in}, 2);
}

static void add_wrapping_from_memory(Fixture *f)
{
    add(f, (TestPiece[]){{.guest = TEST_DATA_GUEST, .bytes = UINT32_MAX}, in}, 2);
}

/* Differences of addresses have more than one sign. */
static void add_half_way_round(Fixture *f)
{
    add(f, (TestPiece[]){{.guest = TEST_DATA_GUEST + INT64_MAX, .bytes = 2 * TEST_DATA_BYTES}, in}, 2);
}

static void add_far_below(Fixture *f)
{
    add(f, (TestPiece[]){{.guest = TEST_DATA_GUEST - (UINT64_C(1) << 63), .bytes = UINT32_MAX}, in}, 2);
}

static void table_without_feature(Fixture *f)
{
    reopen(f);
    virtqueue_free(f->queue);
    f->driver.config.indirect = false;
    open_queue(f);
    add_table(f);
}

static void table_of_nothing(Fixture *f)
{
    add_broken_table(f, f->driver.scratch, 0);
}

static void table_odd(Fixture *f)
{
    add_broken_table(f, f->driver.scratch, 24);
}

static void table_too_long(Fixture *f)
{
    add_broken_table(f, f->driver.scratch, 16 * (LIMIT_VIRTQUEUE_SIZE + 1));
}

static void table_outside(Fixture *f)
{
    add_broken_table(f, 0x1000, 32);
}

static void table_over_the_end(Fixture *f)
{
    add_broken_table(f, TEST_DATA_GUEST + TEST_DATA_BYTES - 16, 32);
}

static void table_with_next(Fixture *f)
{
    char *desc;

    add(f, (TestPiece[]){out, in}, 2);
    desc = split_desc(f, f->driver.config.packed
                             ? f->driver.next_available - 2
                             : get_le16(test_driver_at(&f->driver, f->driver.available + 4 + 2)));
    put_le64(desc, f->driver.scratch);
    put_le32(desc + 8, 32);
    desc[f->driver.config.packed ? 14 : 12] |= TEST_DESC_INDIRECT;
}

static void table_in_table(Fixture *f)
{
    add_table(f)[12] |= TEST_DESC_INDIRECT;
}

static void table_goes_on_outside(Fixture *f)
{
    put_le16(add_table(f) + 14, 2);
}

static void table_loop(Fixture *f)
{
    put_le16(add_table(f) + 14, 0);
}

static void table_out_after_in(Fixture *f)
{
    char *table = add_table(f);
    unsigned flags = f->driver.config.packed ? 14 : 12;

    table[flags] ^= TEST_DESC_WRITE;
    table[16 + flags] ^= TEST_DESC_WRITE;
}

static void add_four_gigabytes(Fixture *f)
{
    static TestPiece pieces[LIMIT_VIRTQUEUE_SIZE + 1];

    for (unsigned i = 0; i < LIMIT_VIRTQUEUE_SIZE; i++)
        pieces[i] = (TestPiece){.guest = TEST_DATA_GUEST, .bytes = TEST_DATA_BYTES};
    assert_true(test_driver_add_table(&f->driver, pieces, LIMIT_VIRTQUEUE_SIZE, f->driver.scratch) >= 0);
}

static void split_next_outside(Fixture *f)
{
    int head = test_driver_add(&f->driver, (TestPiece[]){out, in}, 2, false);

    put_le16(split_desc(f, head) + 14, (uint16_t)f->driver.config.size);
}

static void split_loop(Fixture *f)
{
    int head = test_driver_add(&f->driver, (TestPiece[]){out, in}, 2, false);

    put_le16(split_desc(f, head) + 14, (uint16_t)head);
}

static void split_index_jump(Fixture *f)
{
    test_store16(&f->driver, f->driver.available + 2,
        (uint16_t)(f->driver.next_available + f->driver.config.size + 1));
}

static void split_index_back(Fixture *f)
{
    test_store16(&f->driver, f->driver.available + 2, (uint16_t)(f->driver.next_available - 1));
}

static void split_head_outside(Fixture *f)
{
    add(f, (TestPiece[]){out, in}, 2);
    test_store16(&f->driver, f->driver.available + 4 + 2, (uint16_t)f->driver.config.size);
}

static void split_head_twice(Fixture *f)
{
    VirtElement element;
    int head = test_driver_add(&f->driver, (TestPiece[]){out, in}, 2, false);

    assert_int_equal(virtqueue_pop(f->queue, &element), 1);
    test_store16(&f->driver, f->driver.available + 4 + 2 * 2, (uint16_t)head);
    test_store16(&f->driver, f->driver.available + 2, ++f->driver.next_available);
}

static void packed_id_twice(Fixture *f)
{
    VirtElement element;
    int id = test_driver_add(&f->driver, &in, 1, false);

    assert_int_equal(virtqueue_pop(f->queue, &element), 1);
    f->driver.free[f->driver.free_count++] = (uint16_t)id;
    add(f, &in, 1);
}

/* The second descriptor of a request is one of the round before. */
static void packed_stale_part(Fixture *f)
{
    add(f, (TestPiece[]){out, in}, 2);
    put_le16(split_desc(f, f->driver.next_available - 1) + 14, TEST_DESC_USED | TEST_DESC_WRITE);
}

/* All entries belong to requests in flight, and the first one says that it is available again. */
static void packed_overrun(Fixture *f)
{
    VirtElement element;

    while (test_driver_add(&f->driver, &in, 1, false) >= 0)
        assert_int_equal(virtqueue_pop(f->queue, &element), 1);
    test_put_desc(&f->driver, f->driver.descriptors + UINT64_C(16) * f->driver.next_available, in.guest,
        in.bytes, 77, TEST_DESC_WRITE | (f->driver.available_wrap ? TEST_DESC_AVAIL : TEST_DESC_USED));
}

/* All descriptors of the ring go on with the next one, round and round. */
static void packed_endless(Fixture *f)
{
    uint16_t index = f->driver.next_available;
    bool wrap = f->driver.available_wrap;

    for (unsigned i = 0; i < f->driver.config.size; i++) {
        test_put_desc(&f->driver, f->driver.descriptors + UINT64_C(16) * index, in.guest, in.bytes, 1,
            TEST_DESC_WRITE | TEST_DESC_NEXT | (wrap ? TEST_DESC_AVAIL : TEST_DESC_USED));
        test_packed_advance(&f->driver, &index, &wrap, 1);
    }
}

#define SPLIT 1
#define PACKED 2
#define BOTH (SPLIT | PACKED)

static const struct {
    Crime *commit;
    unsigned kinds;
    const char *text;
} crimes[] = {
    {add_no_bytes, BOTH, "has no bytes"},
    {add_out_after_in, BOTH, "comes after a device-writable one"},
    {add_outside, BOTH, "(16 bytes at 0x1000) lies outside guest memory"},
    {add_behind_end, BOTH, "lies outside guest memory"},
    {add_wrapping, BOTH, "(16 bytes at 0xfffffffffffffffc) lies outside guest memory"},
    {add_wrapping_from_memory, BOTH, "(4294967295 bytes at 0xffe00000) lies outside guest memory"},
    {add_half_way_round, BOTH, "lies outside guest memory"},
    {add_far_below, BOTH, "lies outside guest memory"},
    {table_without_feature, BOTH, "without the feature"},
    {table_of_nothing, BOTH, "has 0 bytes"},
    {table_odd, BOTH, "has 24 bytes"},
    {table_too_long, BOTH, "has 16400 bytes"},
    {table_outside, BOTH, "(32 bytes at 0x1000) lies outside"},
    {table_over_the_end, BOTH, "lies outside"},
    {table_with_next, SPLIT, "a descriptor behind an indirect table"},
    {table_with_next, PACKED, "among other descriptors"},
    {table_in_table, SPLIT, "an indirect table in an indirect table"},
    {table_goes_on_outside, SPLIT, "goes on at descriptor 2 of 2"},
    {table_loop, SPLIT, "form a loop"},
    {table_out_after_in, BOTH, "comes after a device-writable one"},
    {split_next_outside, SPLIT, "goes on at descriptor 16 of 16"},
    {split_loop, SPLIT, "form a loop"},
    {split_index_jump, SPLIT, "index went from 1 to 18 in a ring of 16"},
    {split_index_back, SPLIT, "index went from 1 to 0"},
    {split_head_outside, SPLIT, "descriptor 16 is available in a table of 16"},
    {split_head_twice, SPLIT, "is available while its request is being served"},
    {packed_id_twice, PACKED, "is available while its request is being served"},
    {packed_stale_part, PACKED, "is part of a request, but its flags"},
    {packed_overrun, PACKED, "more descriptors than the ring's 16 entries"},
    {packed_endless, PACKED, "more descriptors than the ring's 16 entries"},
};

static void run_crime(unsigned i, bool packed)
{
    VirtElement element;
    Fixture f;
    uint16_t id;
    uint32_t bytes;

    setup(&f, 16, packed, true, false);
    add(&f, (TestPiece[]){out, in}, 2);
    assert_int_equal(virtqueue_pop(f.queue, &element), 1);
    virtqueue_push(f.queue, &element, 1);
    assert_true(test_driver_used(&f.driver, &id, &bytes));
    assert_null(virtqueue_fault(f.queue));
    crimes[i].commit(&f);
    if (virtqueue_pop(f.queue, &element) != -EPROTO)
        fail_msg("%s was not noticed", crimes[i].text);
    if (!strstr(virtqueue_fault(f.queue), crimes[i].text))
        fail_msg("'%s' does not say '%s'", virtqueue_fault(f.queue), crimes[i].text);
    assert_int_equal(virtqueue_pop(f.queue, &element), -EPROTO);
    teardown(&f);
}

static void test_illegal(void **state)
{
    for (unsigned i = 0; i < ARRAY_SIZE(crimes); i++) {
        if (crimes[i].kinds & SPLIT)
            run_crime(i, false);
        if (crimes[i].kinds & PACKED)
            run_crime(i, true);
    }
}

/* 1024 times 4 MiB are just what a request may have; one byte more are too many. */
static void test_four_gigabytes(void **state)
{
    VirtElement element;

    for (unsigned packed = 0; packed < 2; packed++) {
        Fixture f;

        setup(&f, 16, packed, true, false);
        add_four_gigabytes(&f);
        assert_int_equal(virtqueue_pop(f.queue, &element), 1);
        assert_true(element.out_bytes == 4 * GIB);
        virtqueue_push(f.queue, &element, 0);
        if (!packed) {
            /* The table behind an ordinary descriptor. */
            assert_true(test_driver_add(&f.driver,
                            (TestPiece[]){{.guest = TEST_DATA_GUEST, .bytes = 1},
                                {.guest = f.driver.scratch, .bytes = 16 * LIMIT_VIRTQUEUE_SIZE}},
                            2, true) >= 0);
            assert_int_equal(virtqueue_pop(f.queue, &element), -EPROTO);
            assert_non_null(strstr(virtqueue_fault(f.queue), "more than 4 GiB"));
        }
        teardown(&f);
    }
}

static void assert_in_memory(const TestDriver *driver, const VirtElement *element)
{
    for (unsigned i = 0; i < element->out_count + element->in_count; i++) {
        const struct iovec *iov = &element->iov[i];

        assert_true(iov->iov_len > 0);
        assert_true(test_driver_guest(driver, iov->iov_base) != 0);
        assert_true(test_driver_guest(driver, (char *)iov->iov_base + iov->iov_len - 1) != 0);
    }
}

/* A few random bits of the rings and tables. */
static void flip_bits(Fixture *f)
{
    const struct {
        uint64_t guest;
        unsigned bytes;
    } parts[] = {
        {f->driver.descriptors, 16 * 16}, {f->driver.scratch, 16 * 40 * 16}, {f->driver.available, 40}};

    for (unsigned n = 1 + below(3); n > 0; n--) {
        unsigned i = below(ARRAY_SIZE(parts));

        test_driver_at(&f->driver, parts[i].guest)[below(parts[i].bytes)] ^= (char)(1 << below(8));
    }
}

/* When the driver's memory has wrong bits, the answer is a request or a fault, and what comes lies in memory.
 */
static void test_flipped_bits(void **state)
{
    for (unsigned kind = 0; kind < 4; kind++) {
        VirtElement element;
        Fixture f;

        setup(&f, 16, kind & 1, true, kind & 2);
        for (unsigned i = 0; i < 5000; i++) {
            for (unsigned n = 0; n < 3 && add_random(&f) >= 0; n++)
                ;
            flip_bits(&f);
            while (virtqueue_pop(f.queue, &element) == 1)
                assert_in_memory(&f.driver, &element);
            virtqueue_free(f.queue);
            test_driver_reset(&f.driver);
            open_queue(&f);
        }
        teardown(&f);
    }
}

static void expect_new(const VirtQueueConfig *config, const VirtioMemory *memory, const char *text)
{
    VirtQueue *queue;
    Error err = ERROR_INIT;

    assert_int_equal(virtqueue_new(config, memory, NULL, &queue, &err), -EINVAL);
    if (!strstr(err.message, text))
        fail_msg("'%s' does not say '%s'", err.message, text);
    err_done(&err);
}

static void test_config(void **state)
{
    Fixture f;
    VirtQueueConfig c;

    setup(&f, 16, false, true, true);
#define EXPECT(change, text) \
    c = f.driver.config;     \
    change;                  \
    expect_new(&c, f.driver.memory, text)
    EXPECT(c.size = 0, "cannot have 0 entries, 1024 is the most");
    EXPECT(c.size = 2048, "cannot have 2048 entries");
    EXPECT(c.size = 12, "no power of two");
    EXPECT(c.base = 0x10000, "cannot start at 0x10000");
    EXPECT(c.descriptors += 8, "descriptor table at 0x7f0000010008 is not aligned to 16 bytes");
    EXPECT(c.available += 1, "available ring at");
    EXPECT(c.used += 2, "not aligned to 4");
    EXPECT(c.descriptors = TEST_RING_GUEST, "outside the shared memory");
    EXPECT(c.used = TEST_RING_GUEST + TEST_USER_SHIFT + TEST_RING_BYTES - 128, "used ring (134 bytes");
    EXPECT(c.used = UINT64_MAX - 8, "outside the shared memory");
    EXPECT((c.packed = true, c.base = 16), "cannot start at 0x10");
    EXPECT((c.packed = true, c.base = 16 << 16), "cannot start at 0x100000");
    EXPECT((c.packed = true, c.base = 0, c.available += 2), "driver event suppression at");
    teardown(&f);
}

/* Rings whose file was truncated have nothing in them; the log can be lost as well. */
static void test_lost_rings(void **state)
{
    for (unsigned packed = 0; packed < 2; packed++) {
        VirtElement element;
        Fixture f;

        setup(&f, 16, packed, true, true);
        add(&f, (TestPiece[]){out, in}, 2);
        assert_int_equal(virtqueue_pop(f.queue, &element), 1);
        add(&f, (TestPiece[]){out, in}, 2);
        assert_int_equal(ftruncate(f.driver.fd, 0), 0);
        assert_true(virtqueue_pop(f.queue, &element) <= 0);
        assert_true(virtio_memory_is_lost(f.driver.memory));
        virtqueue_push(f.queue, &element, 512);
        virtqueue_wants_call(f.queue);
        virtqueue_ask_for_kicks(f.queue, true);
        teardown(&f);
    }
}

static int set_log(Fixture *f)
{
    Error err = ERROR_INIT;
    int fd = memfd_create("log", MFD_CLOEXEC);

    assert_int_equal(ftruncate(fd, 4096), 0);
    assert_int_equal(virtio_memory_set_log(f->driver.memory, 4096, 0, dup(fd), &err), 0);
    return fd;
}

static void test_lost_log(void **state)
{
    Fixture f;
    int fd;

    setup(&f, 16, false, true, true);
    fd = set_log(&f);
    assert_int_equal(ftruncate(fd, 0), 0);
    virtio_memory_written_guest(f.driver.memory, 0, 1);
    assert_true(virtio_memory_is_lost(f.driver.memory));
    close(fd);
    teardown(&f);
}

/* The byte of the log that a page has its bit in. */
static int log_byte(int fd, uint64_t page)
{
    uint8_t byte;

    assert_int_equal(pread(fd, &byte, 1, (off_t)page / 8), 1);
    return byte;
}

/* The used ring is marked where the front end says that it lies, a packed ring where it lies. */
static void test_log(void **state)
{
    for (unsigned packed = 0; packed < 2; packed++) {
        uint64_t marked = packed ? TEST_RING_GUEST / 4096 : 100;
        VirtElement element;
        Fixture f;
        int fd;

        setup(&f, 16, packed, true, true);
        virtqueue_free(f.queue);
        f.driver.config.logs_used = true;
        f.driver.config.used_log_guest = 100 * 4096;
        open_queue(&f);
        fd = set_log(&f);
        add(&f, (TestPiece[]){out, in}, 2);
        assert_int_equal(virtqueue_pop(f.queue, &element), 1);
        assert_int_equal(log_byte(fd, marked), 0);
        virtqueue_push(f.queue, &element, 512);
        assert_int_equal(log_byte(fd, marked), 1 << marked % 8);
        assert_int_equal(ftruncate(fd, 0) + ftruncate(fd, 4096), 0);
        virtqueue_ask_for_kicks(f.queue, true);
        assert_int_equal(log_byte(fd, 100), 1 << 100 % 8);
        close(fd);
        teardown(&f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_legal),
        cmocka_unit_test(test_direct_before_table),
        cmocka_unit_test(test_odd_tables),
        cmocka_unit_test(test_illegal),
        cmocka_unit_test(test_four_gigabytes),
        cmocka_unit_test(test_flipped_bits),
        cmocka_unit_test(test_config),
        cmocka_unit_test(test_lost_rings),
        cmocka_unit_test(test_lost_log),
        cmocka_unit_test(test_log),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
