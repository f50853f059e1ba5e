/* SPDX-License-Identifier: Apache-2.0 */
/* Kicks and calls: who has to be told of what, one after the other, and with a driver and a device that run
 * at the same time, where a lost one would leave both asleep. */
#include "virtio/test-driver.h"

#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <sys/eventfd.h>

#include <cmocka.h>

#define REQUESTS 100000
#define REQUESTS_BY_FLAGS 20000
#define DEADLINE_MS 60000

typedef struct Fixture {
    TestDriver driver;
    VirtQueue *queue;
} Fixture;

static void setup(Fixture *f, unsigned size, bool packed, bool event_idx)
{
    Error err = ERROR_INIT;

    test_driver_init(&f->driver, size, packed, false, event_idx);
    if (virtqueue_new(&f->driver.config, f->driver.memory, NULL, &f->queue, &err) < 0)
        fail_msg("%s", err.message);
}

static void teardown(Fixture *f)
{
    virtqueue_free(f->queue);
    test_driver_done(&f->driver);
}

static void add(Fixture *f)
{
    TestPiece piece = {.guest = f->driver.scratch, .bytes = 8};

    assert_true(test_driver_add(&f->driver, &piece, 1, false) >= 0);
}

/* Serves one request and says whether the driver is to be told. */
static bool serve(Fixture *f)
{
    VirtElement element;

    assert_int_equal(virtqueue_pop(f->queue, &element), 1);
    virtqueue_push(f->queue, &element, 0);
    return virtqueue_wants_call(f->queue);
}

static void take_used(Fixture *f)
{
    uint16_t id;
    uint32_t bytes;

    while (test_driver_used(&f->driver, &id, &bytes))
        ;
}

/* By flags every request counts while the flag says so; the first call is due if nothing speaks against it.
 */
static void check_flags(bool packed)
{
    Fixture f;

    setup(&f, 4, packed, false);
    for (unsigned i = 0; i < 20; i++) {
        bool wanted = i % 3;

        test_driver_want_calls(&f.driver, wanted);
        add(&f);
        assert_int_equal(serve(&f), wanted);
        take_used(&f);
        assert_false(virtqueue_ask_for_kicks(f.queue, wanted));
        assert_int_equal(test_driver_must_kick(&f.driver, 1), wanted);
    }
    assert_false(virtqueue_wants_call(f.queue)); /* nothing since the last time */
    teardown(&f);
}

/* By index one request is told of, each time that it was asked for. Rounds lead through the wraps. */
static void check_event_index(bool packed)
{
    Fixture f;

    setup(&f, 4, packed, true);
    add(&f);
    assert_true(serve(&f)); /* whatever an earlier process has told */
    take_used(&f);
    for (unsigned i = 0; i < 40; i++) {
        test_driver_want_calls(&f.driver, true);
        assert_false(virtqueue_ask_for_kicks(f.queue, true));
        add(&f);
        assert_true(test_driver_must_kick(&f.driver, 1));
        add(&f);
        assert_false(test_driver_must_kick(&f.driver, 1));
        assert_true(virtqueue_ask_for_kicks(f.queue, true)); /* two that no kick comes for */
        assert_false(virtqueue_ask_for_kicks(f.queue, false));
        assert_true(serve(&f));
        assert_false(serve(&f));
        take_used(&f);
        for (unsigned n = i % 3; n > 0; n--) {
            add(&f);
            assert_false(serve(&f));
            take_used(&f);
        }
    }
    teardown(&f);
}

/* Several at once, the one that is asked for in the middle or outside. */
static void check_batches(bool packed)
{
    VirtElement elements[4];
    Fixture f;

    setup(&f, 8, packed, true);
    add(&f);
    serve(&f);
    take_used(&f);
    for (unsigned i = 0; i < 100; i++) {
        unsigned count = 1 + i % 4, skip = i % 6;
        uint16_t index = f.driver.next_used;
        bool wrap = f.driver.used_wrap;

        if (packed) {
            test_packed_advance(&f.driver, &f.driver.next_used, &f.driver.used_wrap, skip);
            test_driver_want_calls(&f.driver, true);
        } else {
            f.driver.next_used = (uint16_t)(index + skip);
            test_driver_want_calls(&f.driver, true);
        }
        f.driver.next_used = index;
        f.driver.used_wrap = wrap;
        for (unsigned n = 0; n < count; n++) {
            add(&f);
            assert_int_equal(virtqueue_pop(f.queue, &elements[n]), 1);
        }
        for (unsigned n = 0; n < count; n++)
            virtqueue_push(f.queue, &elements[n], 0);
        assert_int_equal(virtqueue_wants_call(f.queue), skip < count);
        take_used(&f);
    }
    teardown(&f);
}

static void test_one_by_one(void **state)
{
    for (unsigned packed = 0; packed < 2; packed++) {
        check_flags(packed);
        check_event_index(packed);
        check_batches(packed);
    }
}

/* The two sides as threads. Each request carries a number that comes back changed. */
typedef struct Race {
    Fixture f;
    int kick_fd, call_fd;
    unsigned requests;
    uint64_t kicks, calls;
} Race;

static void tell(int fd)
{
    assert_int_equal(write(fd, &(uint64_t){1}, 8), 8);
}

static void await(int fd)
{
    struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
    uint64_t count;

    if (poll(&poll_fd, 1, DEADLINE_MS) != 1)
        abort(); /* somebody was not told */
    assert_int_equal(read(fd, &count, 8), 8);
}

static void *device_main(void *arg)
{
    Race *race = arg;
    VirtQueue *queue = race->f.queue;

    for (unsigned done = 0; done < race->requests;) {
        VirtElement elements[3];
        unsigned count = 0, limit = 1 + done % ARRAY_SIZE(elements);

        for (; count < limit && virtqueue_pop(queue, &elements[count]) == 1; count++)
            put_le64(elements[count].iov[1].iov_base, get_le64(elements[count].iov[0].iov_base) * 3);
        for (unsigned i = count; i > 0; i--)
            virtqueue_push(queue, &elements[i - 1], 8);
        done += count;
        if (count && virtqueue_wants_call(queue)) {
            race->calls++;
            tell(race->call_fd);
        }
        if (count < limit && done < race->requests && !virtqueue_ask_for_kicks(queue, true)) {
            await(race->kick_fd);
            virtqueue_ask_for_kicks(queue, false);
        }
    }
    return NULL;
}

/* Where the request with a number has its two buffers. A number is free again when its request was used. */
static uint64_t slot(const Race *race, unsigned number)
{
    return race->f.driver.scratch + UINT64_C(16) * number;
}

static unsigned add_all(Race *race, uint64_t *values, unsigned left)
{
    TestDriver *driver = &race->f.driver;
    unsigned added = 0;

    for (; added < left && driver->free_count >= 2 && (!driver->config.packed || driver->room >= 2);
         added++) {
        uint16_t id = driver->free[driver->free_count - 1];
        uint64_t at = slot(race, id);

        values[id] = (uint64_t)rand();
        put_le64(test_driver_at(driver, at), values[id]);
        assert_int_equal(
            test_driver_add(driver,
                (TestPiece[]){{.guest = at, .bytes = 8}, {.guest = at + 8, .bytes = 8, .in = true}}, 2,
                false),
            id);
        if (test_driver_must_kick(driver, 2)) {
            race->kicks++;
            tell(race->kick_fd);
        }
    }
    return added;
}

static unsigned take_all(Race *race, const uint64_t *values)
{
    TestDriver *driver = &race->f.driver;
    unsigned taken = 0;
    uint32_t bytes;
    uint16_t id;

    for (; test_driver_used(driver, &id, &bytes); taken++) {
        assert_int_equal(bytes, 8);
        assert_int_equal(get_le64(test_driver_at(driver, slot(race, id) + 8)), values[id] * 3);
    }
    return taken;
}

static void run_race(bool packed, bool event_idx, unsigned requests)
{
    uint64_t values[16];
    pthread_t thread;
    Race race = {
        .requests = requests, .kick_fd = eventfd(0, EFD_CLOEXEC), .call_fd = eventfd(0, EFD_CLOEXEC)};
    unsigned added = 0, taken = 0;

    setup(&race.f, 16, packed, event_idx);
    pthread_create(&thread, NULL, device_main, &race);
    while (taken < requests) {
        unsigned progress = add_all(&race, values, requests - added), used;

        added += progress;
        used = take_all(&race, values);
        if (!progress && !used) {
            test_driver_want_calls(&race.f.driver, true);
            used = take_all(&race, values);
            if (!used)
                await(race.call_fd);
            test_driver_want_calls(&race.f.driver, false);
        }
        taken += used;
    }
    pthread_join(thread, NULL);
    assert_int_equal(virtqueue_in_flight(race.f.queue), 0);
    assert_true(race.kicks > 0 && race.kicks <= requests && race.calls > 0);
    teardown(&race.f);
    close(race.kick_fd);
    close(race.call_fd);
}

static void test_two_threads(void **state)
{
    run_race(false, true, REQUESTS);
    run_race(true, true, REQUESTS);
}

static void test_two_threads_by_flags(void **state)
{
    run_race(false, false, REQUESTS_BY_FLAGS);
    run_race(true, false, REQUESTS_BY_FLAGS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_by_one),
        cmocka_unit_test(test_two_threads),
        cmocka_unit_test(test_two_threads_by_flags),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
