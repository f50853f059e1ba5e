/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads on loops other than the node's home, while home writes, zeroes, discards, flushes and resizes a small
 * image whose freed clusters are used again at once. Every word of a sector says which sector it belongs to
 * and by which write it got there, so that a place that was used again, metadata, or what should have been
 * overwritten is noticed.
 */
#include "base/mem.h"
#include "drivers/qcow2/test-graph.h"
#include "generated/types.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

#define SECTORS 1024U
#define SMALL_SECTORS 900U /* the disk now and then; as large as the backing file */
#define DISK_BYTES (SECTORS * UINT64_C(512))
#define FILE_BYTES (64 * MIB) /* clusters come back when the slowest read has ended */
#define MAX_RANGE 32U         /* sectors in one request */
#define WRITERS 4
#define READERS 6 /* on each loop */
#define LOOPS 2
#define OPERATIONS 1500
#define DEADLINE_NS (60 * UINT64_C(1000000000))

extern const Driver driver_qcow2;

/* Fails the test on any thread. */
#define CHECK(condition)                                                              \
    do {                                                                              \
        if (!(condition)) {                                                           \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
            abort();                                                                  \
        }                                                                             \
    } while (0)

typedef struct Shape {
    uint64_t cluster_size;
    bool extended, backing, data_file;
    bool tiny; /* caches, and so copies, of next to nothing */
} Shape;

typedef struct Sector {
    _Atomic uint64_t done;   /* number of the last write or zeroing that is complete */
    _Atomic uint64_t zeroed; /* number of the last zeroing that has begun */
    bool busy;
} Sector;

typedef struct ReadingLoop {
    Loop *loop;
    _Atomic uint64_t reads; /* that are complete */
} ReadingLoop;

static ReadingLoop readings[LOOPS];
static Node *node;
static Sector sectors[SECTORS];
static uint64_t last_number, operations;
static _Atomic bool stopped;
static unsigned cluster_sectors;
static _Atomic bool hold_next, held; /* the next request to the disk takes until the other one is false */

void test_pause(void)
{
    uint64_t turns = test_random(100) ? test_random(4) : 2000; /* now and then the disk is slow */

    if (atomic_exchange(&hold_next, false))
        while (held)
            (void)!co_yield ();
    for (uint64_t n = mem_yields ? turns : 0; n; n--)
        (void)!co_yield ();
}

/* ---- Contents ---- */

static uint64_t word_of(uint64_t number, uint64_t sector)
{
    return UINT64_C(0xa5) << 56 | number << 16 | sector;
}

static bool is_word_of(uint64_t word, uint64_t sector, uint64_t at_least)
{
    return word >> 56 == 0xa5 && (word & 0xffff) == sector &&
           (word >> 16 & ((UINT64_C(1) << 40) - 1)) >= at_least;
}

static void fill(uint64_t *data, uint64_t first, uint64_t count, uint64_t number)
{
    for (uint64_t i = 0; i < count * 64; i++)
        data[i] = word_of(number, first + i / 64);
}

/* What was complete before the read began has been overwritten by nothing older. */
static void check_sector(const uint64_t *data, uint64_t sector, uint64_t done_before)
{
    for (unsigned i = 0; i < 64; i++) {
        if (data[i])
            CHECK(is_word_of(data[i], sector, done_before));
        else
            CHECK(sectors[sector].zeroed >= done_before);
    }
}

static int read_sectors(uint64_t first, uint64_t count, uint64_t *data)
{
    struct iovec iov;

    return driver_qcow2.read(node, first * 512, io_slice_of(&iov, data, count * 512));
}

static void read_and_check(uint64_t first, uint64_t count)
{
    uint64_t done_before[MAX_RANGE], data[MAX_RANGE * 64];

    for (uint64_t i = 0; i < count; i++)
        done_before[i] = sectors[first + i].done;
    CHECK(read_sectors(first, count, data) == 0);
    for (uint64_t i = 0; i < count; i++)
        check_sector(data + i * 64, first + i, done_before[i]);
}

static void read_and_check_all(void)
{
    for (uint64_t i = 0; i < SECTORS; i += MAX_RANGE)
        read_and_check(i, MAX_RANGE);
}

/* ---- The load at home ---- */

static bool claim(uint64_t first, uint64_t count)
{
    for (uint64_t i = first; i < first + count; i++)
        if (sectors[i].busy)
            return false;
    for (uint64_t i = first; i < first + count; i++)
        sectors[i].busy = true;
    return true;
}

static uint64_t begin(uint64_t first, uint64_t count, bool zero)
{
    uint64_t number = ++last_number;

    for (uint64_t i = first; zero && i < first + count; i++)
        sectors[i].zeroed = number;
    return number;
}

static void end(uint64_t first, uint64_t count, uint64_t number)
{
    for (uint64_t i = first; i < first + count; i++) {
        sectors[i].done = number;
        sectors[i].busy = false;
    }
}

static int store(uint64_t first, uint64_t count, uint64_t number, unsigned flags)
{
    AUTO_FREE uint64_t *data = mem_zalloc(count * 512);
    struct iovec iov;

    fill(data, first, count, number);
    return driver_qcow2.write(node, first * 512, io_slice_of(&iov, data, count * 512), flags);
}

typedef enum Kind { STORE, COMPRESS, ZERO, DISCARD } Kind;

static int change(Kind kind, uint64_t first, uint64_t count, uint64_t number)
{
    switch (kind) {
    case ZERO:
        return driver_qcow2.write_zeroes(node, first * 512, count * 512, test_random(2) ? REQ_MAY_UNMAP : 0);
    case COMPRESS: /* only where nothing is stored */
        CHECK(driver_qcow2.discard(node, first * 512, count * 512) == 0);
        return store(first, count, number, REQ_COMPRESSED);
    case DISCARD:
        return driver_qcow2.discard(node, first * 512, count * 512);
    default:
        return store(first, count, number, 0);
    }
}

static void change_something(void)
{
    uint64_t limit = node->size / 512, first = test_random(limit), number;
    uint64_t count = 1 + test_random(MIN(limit - first, (uint64_t)MAX_RANGE));
    unsigned dice = (unsigned)test_random(16);
    Kind kind = dice < 8 ? STORE : dice < 9 ? COMPRESS : dice < 12 ? ZERO : DISCARD;

    if (kind == COMPRESS && mem_data_file)
        return;
    if (kind == COMPRESS || kind == DISCARD) { /* whole clusters, so that the outcome is known */
        first = align_down(first, cluster_sectors);
        count = kind == COMPRESS ? cluster_sectors : align_up(count, cluster_sectors);
    }
    if (first + count > limit || !claim(first, count))
        return;
    number = begin(first, count, kind != STORE);
    CHECK(change(kind, first, count, number) == 0);
    end(first, count, number);
}

/* The end of the disk comes back as zeroes. */
static void resize(void)
{
    AUTO_ERROR Error err = ERROR_INIT;
    uint64_t first = SMALL_SECTORS, count = SECTORS - SMALL_SECTORS, number;

    if (!claim(first, count))
        return;
    number = begin(first, count, true);
    CHECK(driver_qcow2.resize(node, first * 512, false, PREALLOCATION_OFF, 0, &err) == 0);
    (void)!co_yield ();
    CHECK(driver_qcow2.resize(node, DISK_BYTES, false, PREALLOCATION_OFF, 0, &err) == 0);
    end(first, count, number);
}

/* The file would grow without end while a loop does not get to run. */
static void wait_for_readers(uint64_t reads)
{
    for (unsigned i = 0; i < LOOPS; i++)
        while (readings[i].reads < reads)
            (void)!co_yield ();
}

static void writer(void *arg)
{
    while (operations) {
        wait_for_readers(OPERATIONS - operations--);
        if (test_random(6) == 0)
            CHECK(driver_qcow2.flush(node) == 0);
        else if (test_random(100) == 0)
            resize();
        else
            change_something();
    }
}

/* ---- The readers ---- */

static void reader(void *arg)
{
    ReadingLoop *reading = arg;

    for (; !stopped; reading->reads++) {
        uint64_t limit = node->size / 512, first = test_random(limit);

        read_and_check(first, 1 + test_random(MIN(limit - first, (uint64_t)MAX_RANGE)));
    }
}

static int run_readers(void *arg)
{
    const ReadingLoop *reading = arg;
    CoGroup group;

    test_random_seed((uint64_t)(reading - readings) + 1);
    co_group_init(&group);
    for (unsigned i = 0; i < READERS; i++)
        co_start(&group, "reader", reader, arg);
    co_group_join(&group);
    return 0;
}

static void reading_loop(void *arg)
{
    ReadingLoop *reading = arg;

    CHECK(loop_call(reading->loop, run_readers, reading) == 0);
}

/* ---- Images ---- */

static void make_backing(void)
{
    AUTO_FREE uint64_t *data = mem_zalloc(SMALL_SECTORS * 512);

    fill(data, 0, SMALL_SECTORS, 1);
    mem_backing = mem_file_new(data, SMALL_SECTORS * 512, false);
}

static void open_node(const Shape *shape)
{
    AUTO_ERROR Error err = ERROR_INIT;
    BlockdevRef any = {.type = BLOCKDEV_REF_KIND_REFERENCE, .u.reference = (char *)"file"};

    mem_options = (BlockdevOptionsQcow2){.data_file = shape->data_file ? &any : NULL,
        .has_l2_cache_size = shape->tiny,
        .has_l2_cache_entry_size = shape->tiny,
        .l2_cache_entry_size = 512};
    node = test_open(false, &err);
    CHECK(node);
    mem_options = (BlockdevOptionsQcow2){0};
}

static void open_image(const Shape *shape)
{
    AUTO_ERROR Error err = ERROR_INIT;
    BlockdevRef any = {.type = BLOCKDEV_REF_KIND_REFERENCE, .u.reference = (char *)"file"};
    BlockdevCreateOptions options = {.u.qcow2 = {.file = &any,
                                         .data_file = shape->data_file ? &any : NULL,
                                         .backing_file = shape->backing ? (char *)"backing" : NULL,
                                         .size = DISK_BYTES,
                                         .has_cluster_size = true,
                                         .cluster_size = shape->cluster_size,
                                         .has_extended_l2 = true,
                                         .extended_l2 = shape->extended}};

    mem_yields = false;
    mem_file = mem_file_new(NULL, 0, false);
    mem_file_reserve(mem_file, FILE_BYTES);
    CHECK(driver_qcow2.create(&options, &err) == 0);
    if (shape->data_file) {
        mem_data_file = mem_file_new(NULL, 0, false);
        mem_file_reserve(mem_data_file, FILE_BYTES);
    }
    if (shape->backing)
        make_backing();
    open_node(shape);
    cluster_sectors = (unsigned)(shape->cluster_size / 512);
    for (uint64_t i = 0; i < SECTORS; i++)
        sectors[i] = (Sector){.done = i < SMALL_SECTORS && shape->backing};
    last_number = 1;
    mem_limit = FILE_BYTES;
}

static void close_image(void)
{
    CHECK(mem_corruptions == 0);
    test_close(node);
    mem_file_free(TAKE(mem_file));
    mem_file_free(TAKE(mem_data_file));
    mem_file_free(TAKE(mem_backing));
}

static Loop *start_loop(const char *name)
{
    const LoopOptions options = LOOP_OPTIONS_DEFAULT;
    AUTO_ERROR Error err = ERROR_INIT;
    Loop *loop;

    CHECK(loop_new(name, LOOP_BACKEND_EPOLL, &options, &loop, &err) == 0);
    return loop;
}

static void run_at_home(int (*fn)(void *arg), const Shape *shape)
{
    const LoopOptions options = LOOP_OPTIONS_DEFAULT;

    CHECK(loop_run_main(LOOP_BACKEND_EPOLL, &options, fn, (void *)shape) == 0);
}

/* ---- Load ---- */

static int run_load(void *arg)
{
    CoGroup writers, readers;

    open_image(arg);
    mem_yields = true;
    operations = OPERATIONS;
    stopped = false;
    co_group_init(&writers);
    co_group_init(&readers);
    for (unsigned i = 0; i < LOOPS; i++) {
        readings[i].reads = 0;
        readings[i].loop = start_loop("away");
        co_start(&readers, "readers", reading_loop, &readings[i]);
    }
    for (unsigned i = 0; i < WRITERS; i++)
        co_start(&writers, "writer", writer, NULL);
    co_group_join(&writers);
    stopped = true;
    co_group_join(&readers);
    for (unsigned i = 0; i < LOOPS; i++)
        loop_free(readings[i].loop);
    read_and_check_all();
    close_image();
    return 0;
}

static const Shape shapes[] = {
    {.cluster_size = 512},
    {.cluster_size = 4096, .backing = true},
    {.cluster_size = 16384, .extended = true},
    {.cluster_size = 512, .tiny = true},
    {.cluster_size = 4096, .data_file = true},
};

static void test_load(void **state)
{
    for (unsigned i = 0; i < ARRAY_SIZE(shapes); i++) {
        test_random_seed(i + 1);
        run_at_home(run_load, &shapes[i]);
    }
}

/* ---- What is mapped is read without home ---- */

static _Atomic bool finished;

static int read_all(void *arg)
{
    read_and_check_all();
    return 0;
}

static void read_all_and_tell(void *arg)
{
    read_and_check_all();
    finished = true;
}

/* Every kind of mapping but compressed data. */
static int run_alone(void *arg)
{
    Loop *loop = start_loop("away");
    uint64_t number, until_ns = clock_monotonic_ns() + DEADLINE_NS;

    open_image(arg);
    number = begin(0, 300, false);
    CHECK(store(0, 300, number, 0) == 0);
    end(0, 300, number);
    number = begin(128, 64, true);
    CHECK(change(ZERO, 128, 64, number) == 0);
    end(128, 64, number);
    CHECK(loop_call(loop, read_all, NULL) == 0);
    number = begin(192, 64, true);
    CHECK(change(DISCARD, 192, 64, number) == 0);
    end(192, 64, number);
    number = begin(160, 200, false);
    CHECK(store(160, 200, number, 0) == 0);
    end(160, 200, number);
    /* From here on, this loop does nothing for anybody. */
    finished = false;
    loop_post(loop, "reader", read_all_and_tell, NULL);
    while (!finished)
        CHECK(clock_monotonic_ns() < until_ns);
    loop_free(loop);
    close_image();
    return 0;
}

static void test_without_home(void **state)
{
    for (unsigned i = 0; i < ARRAY_SIZE(shapes); i++)
        if (!shapes[i].tiny)
            run_at_home(run_alone, &shapes[i]);
}

/* ---- What holds a place back ---- */

static uint64_t references(uint64_t host)
{
    Qcow2 *q = node->state;
    uint64_t count;

    CHECK(refcount_read(q, host >> q->cluster_bits, &count) == 0);
    return count;
}

/* A read that counted itself in either epoch, be it one that was over by then. */
static void expect_held(_Atomic uint64_t *inflight)
{
    Qcow2 *q = node->state;
    Map map;

    CHECK(store(0, cluster_sectors, 1, 0) == 0);
    CHECK(map_lookup(q, 0, 512, &map) == 0 && map.type == QCOW2_TYPE_NORMAL);
    *inflight = 1;
    CHECK(driver_qcow2.discard(node, 0, q->cluster_size) == 0);
    for (unsigned i = 0; i < 3; i++) {
        CHECK(driver_qcow2.flush(node) == 0);
        CHECK(references(map.host) == 1);
    }
    *inflight = 0;
    CHECK(driver_qcow2.flush(node) == 0);
    CHECK(references(map.host) == 0);
}

static int run_held(void *arg)
{
    Loop *loop = start_loop("away");
    Qcow2 *q;

    open_image(arg);
    q = node->state;
    CHECK(loop_call(loop, read_all, NULL) == 0);
    for (unsigned i = 0; i < 8; i++)
        expect_held(&q->away->inflight[loop_index(loop)].of_epoch[i / 2 % 2]);
    loop_free(loop);
    close_image();
    return 0;
}

static void test_held(void **state)
{
    run_at_home(run_held, &shapes[0]);
}

/* ---- An image that is given up ---- */

static int read_first(void *arg)
{
    uint64_t data[64];

    return read_sectors(0, 1, data);
}

static void read_away(void *arg)
{
    int r = loop_call(arg, read_first, NULL);

    CHECK(r == 0 || r == -ENOMEDIUM);
    finished = true;
}

/* While a lookup that came home waits for a table. */
static void refuse_during_lookup(Loop *loop)
{
    AUTO_ERROR Error err = ERROR_INIT;
    CoGroup group;
    Qcow2 *q;

    test_close(node);
    node = test_open(false, &err);
    CHECK(node);
    q = node->state;
    finished = false;
    co_group_init(&group);
    co_start(&group, "read", read_away, loop);
    while (!finished && !(q->l2.count && q->l2.entries[0].loading))
        (void)!co_yield ();
    image_refuse(q);
    co_group_join(&group);
    CHECK(loop_call(loop, read_first, NULL) == -ENOMEDIUM);
}

static int run_refused(void *arg)
{
    Loop *loop = start_loop("away");

    open_image(arg);
    CHECK(store(0, 1, 1, 0) == 0);
    CHECK(loop_call(loop, read_first, NULL) == 0);
    mem_yields = true;
    for (unsigned i = 0; i < 20; i++)
        refuse_during_lookup(loop);
    loop_free(loop);
    close_image();
    return 0;
}

static void test_refused(void **state)
{
    run_at_home(run_refused, &shapes[0]);
}

/* ---- A table that moves ---- */

static int check_first(void *arg)
{
    read_and_check(0, 1);
    return 0;
}

static void check_away(void *arg)
{
    CHECK(loop_call(arg, check_first, NULL) == 0);
}

/* A lookup that came home waits for a slice of a table that is shared with a snapshot; meanwhile a write
 * through another slice has the table copied. */
static int run_moved(void *arg)
{
    const Shape *shape = arg;
    const uint64_t other = 64 * shape->cluster_size / 512; /* each slice has 64 entries */
    const SnapshotInfo info = {.name = (char *)"s"};
    AUTO_ERROR Error err = ERROR_INIT;
    Loop *loop = start_loop("away");
    CoGroup group;

    open_image(shape);
    CHECK(store(0, 1, begin(0, 1, false), 0) == 0);
    end(0, 1, last_number);
    CHECK(driver_qcow2.snapshots->create(node, &info, &err) == 0);
    test_close(node);
    open_node(shape);
    co_group_init(&group);
    mem_yields = true;
    held = true;
    hold_next = true;
    co_start(&group, "read", check_away, loop);
    while (hold_next)
        (void)!co_yield ();
    CHECK(store(other, 1, begin(other, 1, false), 0) == 0);
    end(other, 1, last_number);
    held = false;
    co_group_join(&group);
    check_away(loop);
    loop_free(loop);
    close_image();
    return 0;
}

static void test_moved(void **state)
{
    const Shape shape = {.cluster_size = 1024, .tiny = true};

    run_at_home(run_moved, &shape);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_load), cmocka_unit_test(test_without_home),
        cmocka_unit_test(test_held), cmocka_unit_test(test_refused), cmocka_unit_test(test_moved)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
