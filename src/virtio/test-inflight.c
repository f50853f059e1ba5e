/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The in-flight area: whatever instruction a process is killed at, its successor answers every request
 * exactly once.
 *
 * Each operation of a random history is carried out by a child, one machine instruction after the other, and
 * every state of the shared memory on the way is kept. Then a successor is started on each of these states,
 * as a front end does it after a crash: what the driver can see as used and what the successor pops must
 * together be all that was made available, in order. For some states the start of the successor is taken
 * apart in the same way.
 */
#include "virtio/inflight-priv.h"
#include "virtio/test-driver.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

#include <cmocka.h>

#define SIZE_MOST 8
#define AREA_BYTES 320
#define RING_BYTES 1536 /* and indirect tables */
#define STATES_MAX 256

/* Rings and area: all that survives. */
typedef struct Shared {
    char rings[RING_BYTES];
    char area[AREA_BYTES];
} Shared;

typedef struct Request {
    TestPiece pieces[SIZE_MOST];
    unsigned count;
    uint16_t id;
} Request;

/* What the driver has made available and not seen as used yet, in order. */
typedef struct Outstanding {
    Request requests[SIZE_MOST];
    unsigned count;
} Outstanding;

typedef struct Fixture {
    TestDriver driver;
    VirtQueue *queue;
    char *area;
    Outstanding outstanding;
    VirtElement flying[SIZE_MOST];
    unsigned in_flight;
    unsigned states; /* how many were looked at */
} Fixture;

typedef enum Operation { OPERATION_OPEN, OPERATION_POP, OPERATION_PUSH } Operation;

static unsigned below(unsigned bound)
{
    return (unsigned)rand() % bound;
}

static void save(const Fixture *f, Shared *to)
{
    memcpy(to->rings, f->driver.rings, sizeof(to->rings));
    memcpy(to->area, f->area, sizeof(to->area));
}

static void restore(const Fixture *f, const Shared *from)
{
    memcpy(f->driver.rings, from->rings, sizeof(from->rings));
    memcpy(f->area, from->area, sizeof(from->area));
}

static bool is_changed(const Fixture *f, const Shared *last)
{
    return memcmp(f->driver.rings, last->rings, sizeof(last->rings)) != 0 ||
           memcmp(f->area, last->area, sizeof(last->area)) != 0;
}

/* As QEMU starts a device again after a crash: with the used ring's index, or what it knew at first. */
static VirtQueue *open_successor(const Fixture *f)
{
    VirtQueueConfig config = f->driver.config;
    VirtQueue *queue;
    Error err = ERROR_INIT;

    if (!config.packed)
        config.base = test_load16(&f->driver, f->driver.used + 2);
    if (virtqueue_new(&config, f->driver.memory, f->area, &queue, &err) < 0)
        fail_msg("%s", err.message);
    return queue;
}

static void add_request(TestDriver *driver, Outstanding *outstanding)
{
    Request *request = &outstanding->requests[outstanding->count];
    unsigned size = driver->config.size;
    int id;

    if (outstanding->count == size)
        return;
    request->count = below(4) ? 1 + below(MIN(size, 3u)) : size;
    for (unsigned i = 0; i < request->count; i++) {
        request->pieces[i] = (TestPiece){.guest = TEST_DATA_GUEST + below(TEST_DATA_BYTES / 2 - 600),
            .bytes = 1 + below(600),
            .in = i > 0};
    }
    if (below(3) == 0 && driver->free_count) {
        uint64_t table = driver->scratch + UINT64_C(16) * SIZE_MOST * driver->free[driver->free_count - 1];

        id = test_driver_add_table(driver, request->pieces, request->count, table);
    } else {
        id = test_driver_add(driver, request->pieces, request->count, false);
    }
    request->id = (uint16_t)id;
    outstanding->count += id >= 0;
}

static void take_used(TestDriver *driver, Outstanding *outstanding)
{
    uint16_t id;
    uint32_t bytes;

    while (test_driver_used(driver, &id, &bytes)) {
        unsigned i = 0;

        while (i < outstanding->count && outstanding->requests[i].id != id)
            i++;
        if (i == outstanding->count)
            fail_msg("request %u was answered twice", id);
        outstanding->count--;
        memmove(&outstanding->requests[i], &outstanding->requests[i + 1],
            (outstanding->count - i) * sizeof(outstanding->requests[0]));
    }
}

static void assert_popped(const TestDriver *driver, const VirtElement *element, const Request *request)
{
    assert_int_equal(element->id, request->id);
    assert_int_equal(element->out_count + element->in_count, request->count);
    for (unsigned i = 0; i < request->count; i++) {
        assert_int_equal(test_driver_guest(driver, element->iov[i].iov_base), request->pieces[i].guest);
        assert_int_equal(element->iov[i].iov_len, request->pieces[i].bytes);
    }
}

/* All of the outstanding requests are popped in order, and can be answered in any. */
static void assert_serves_all(VirtQueue *queue, TestDriver *driver, Outstanding *outstanding)
{
    VirtElement elements[SIZE_MOST];
    unsigned count = 0;

    while (virtqueue_pop(queue, &elements[count]) == 1) {
        if (count >= outstanding->count)
            fail_msg("request %u was there twice", elements[count].id);
        assert_popped(driver, &elements[count], &outstanding->requests[count]);
        count++;
    }
    assert_null(virtqueue_fault(queue));
    assert_int_equal(count, outstanding->count);
    while (count) {
        unsigned which = below(count--);

        virtqueue_push(queue, &elements[which], 7);
        elements[which] = elements[count];
    }
    take_used(driver, outstanding);
    assert_int_equal(outstanding->count, 0);
}

/* The driver after the crash, the successor, and some more requests with another crash on the way. */
static void check_state(Fixture *f, const Shared *state)
{
    TestDriver driver = f->driver;
    Outstanding outstanding = f->outstanding;
    VirtElement element;
    VirtQueue *queue;

    restore(f, state);
    if (below(2))
        take_used(&driver, &outstanding);
    queue = open_successor(f);
    take_used(&driver, &outstanding);
    assert_serves_all(queue, &driver, &outstanding);
    for (unsigned round = 0; round < 3; round++) {
        while (below(4))
            add_request(&driver, &outstanding);
        if (outstanding.count && below(2)) {
            assert_int_equal(virtqueue_pop(queue, &element), 1);
            virtqueue_free(queue);
            queue = open_successor(f);
        }
        assert_serves_all(queue, &driver, &outstanding);
    }
    virtqueue_free(queue);
    f->states++;
}

static void perform(Fixture *f, Operation operation, unsigned which)
{
    if (operation == OPERATION_OPEN)
        f->queue = open_successor(f);
    else if (operation == OPERATION_POP)
        assert_int_equal(virtqueue_pop(f->queue, &f->flying[f->in_flight]), 1);
    else
        virtqueue_push(f->queue, &f->flying[which], 7);
}

static char *guarded;

static void unguard(int number)
{
    mprotect(guarded, AREA_BYTES, PROT_READ | PROT_WRITE);
}

/* The child runs until it writes to the area for the first time, which stops it. */
static pid_t start_child(Fixture *f, Operation operation, unsigned which)
{
    int status;
    pid_t child;

    /* Linked here, once, and not anew, step by step, in each child. */
    guarded = f->area;
    unguard(SIGSEGV);
    raise(SIGCONT);
    child = fork();
    if (child == 0) {
        signal(SIGSEGV, unguard);
        mprotect(guarded, AREA_BYTES, PROT_READ);
        ptrace(PTRACE_TRACEME, 0, NULL, NULL);
        raise(SIGSTOP);
        perform(f, operation, which);
        raise(SIGSTOP);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    if (!WIFSTOPPED(status) || ptrace(PTRACE_CONT, child, NULL, NULL) < 0)
        fail_msg("a child cannot be traced");
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSEGV);
    return child;
}

/* Carries an operation out in a child; returns how many different states the shared memory went through. */
static unsigned step_through(Fixture *f, Operation operation, unsigned which, Shared *states)
{
    pid_t child = start_child(f, operation, which);
    unsigned count = 1;
    long deliver = SIGSEGV;
    int status;

    save(f, &states[0]);
    for (;;) {
        assert_int_equal(ptrace(PTRACE_SINGLESTEP, child, NULL, deliver), 0);
        assert_int_equal(waitpid(child, &status, 0), child);
        if (!WIFSTOPPED(status) || WSTOPSIG(status) != SIGTRAP)
            break;
        deliver = 0;
        if (is_changed(f, &states[count - 1])) {
            assert_true(count < STATES_MAX);
            save(f, &states[count++]);
        }
    }
    assert_true(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP); /* it has finished */
    kill(child, SIGKILL);
    assert_int_equal(waitpid(child, &status, 0), child);
    return count;
}

/* Kills a process at each instruction of an operation, and, if `deep`, its successor at each of its start,
 * too. */
static void kill_everywhere(Fixture *f, Operation operation, unsigned which, bool deep)
{
    Shared *states = calloc(STATES_MAX, sizeof(*states)), *nested = calloc(STATES_MAX, sizeof(*nested));
    unsigned count = step_through(f, operation, which, states);

    assert_true(count > 1);
    for (unsigned i = 0; i < count; i++) {
        check_state(f, &states[i]);
        if (deep) {
            unsigned more;

            restore(f, &states[i]);
            more = step_through(f, OPERATION_OPEN, 0, nested);
            for (unsigned n = 1; n < more; n++)
                check_state(f, &nested[n]);
        }
    }
    restore(f, &states[0]);
    free(states);
    free(nested);
}

static void setup(Fixture *f, unsigned size, bool packed, uint16_t first)
{
    *f = (Fixture){.area = mmap(NULL, AREA_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)};
    assert_true(f->area != MAP_FAILED && virtqueue_inflight_bytes(size, packed) <= AREA_BYTES);
    test_driver_init(&f->driver, size, packed, true, false);
    if (!packed) {
        f->driver.next_available = f->driver.next_used = first;
        test_store16(&f->driver, f->driver.available + 2, first);
        test_store16(&f->driver, f->driver.used + 2, first);
    }
}

static void teardown(Fixture *f)
{
    virtqueue_free(f->queue);
    test_driver_done(&f->driver);
    munmap(f->area, AREA_BYTES);
}

/* A random history in which every operation is taken apart. */
static void run_history(unsigned size, bool packed, uint16_t first, unsigned operations)
{
    Fixture f;

    setup(&f, size, packed, first);
    add_request(&f.driver, &f.outstanding);
    kill_everywhere(&f, OPERATION_OPEN, 0, false);
    f.queue = open_successor(&f);
    for (unsigned i = 0; i < operations;) {
        if (below(2))
            add_request(&f.driver, &f.outstanding);
        if (below(3) == 0)
            take_used(&f.driver, &f.outstanding);
        if (virtqueue_has_more(f.queue) && below(f.in_flight + 1) < 2) {
            kill_everywhere(&f, OPERATION_POP, 0, i == 4);
            perform(&f, OPERATION_POP, 0);
            f.in_flight++;
            i++;
        } else if (f.in_flight) {
            unsigned which = below(f.in_flight);

            kill_everywhere(&f, OPERATION_PUSH, which, i == 5 || i == 9);
            perform(&f, OPERATION_PUSH, which);
            f.flying[which] = f.flying[--f.in_flight];
            i++;
        }
    }
    print_message("%s ring of %u: %u states\n", packed ? "packed" : "split", size, f.states);
    teardown(&f);
}

static void test_split(void **state)
{
    run_history(4, false, 0, 16);
    run_history(1, false, 0, 6);
    run_history(8, false, 65530, 20);
}

static void test_packed(void **state)
{
    run_history(4, true, 0, 20);
    run_history(1, true, 0, 8);
    run_history(5, true, 0, 20);
}

/* What the front end hands over can be anything. */
static void expect_text(Fixture *f, const char *text)
{
    VirtQueue *queue;
    Error err = ERROR_INIT;

    assert_int_equal(virtqueue_new(&f->driver.config, f->driver.memory, f->area, &queue, &err), -EINVAL);
    if (!strstr(err.message, text))
        fail_msg("'%s' does not say '%s'", err.message, text);
    err_done(&err);
}

/* Three requests are in flight. */
static void setup_busy(Fixture *f, bool packed)
{
    VirtElement element;

    setup(f, 8, packed, 0);
    f->queue = open_successor(f);
    for (unsigned i = 0; i < 3; i++) {
        TestPiece piece = {.guest = TEST_DATA_GUEST, .bytes = 16};

        assert_true(test_driver_add(&f->driver, (TestPiece[]){piece, piece}, 2, false) >= 0);
        assert_int_equal(virtqueue_pop(f->queue, &element), 1);
    }
}

static void test_bad_header(void **state)
{
    for (unsigned packed = 0; packed < 2; packed++) {
        InflightSplit *area;
        Fixture f;

        setup_busy(&f, packed);
        area = (InflightSplit *)f.area;
        area->version = 2;
        expect_text(&f, "in-flight area: it has version 2 with features 0");
        area->version = 1;
        area->features = 1;
        expect_text(&f, "it has version 1 with features 0x1");
        area->features = 0;
        area->desc_num = 16;
        expect_text(&f, "it has room for 16 descriptors and the ring has 8");
        area->desc_num = 8;
        virtqueue_free(f.queue);
        f.queue = open_successor(&f);
        teardown(&f);
    }
}

static void test_bad_split(void **state)
{
    InflightSplit *area;
    Fixture f;

    setup_busy(&f, false);
    area = (InflightSplit *)f.area;
    area->entries[7].inflight = 2;
    expect_text(&f, "descriptor 7 is marked with 2");
    area->entries[7].inflight = 0;
    area->used_idx = 50;
    expect_text(&f, "index went from 50 to 0");
    area->used_idx = 65534;
    area->last_batch_head = 8;
    expect_text(&f, "goes on at descriptor 8 of 8");
    teardown(&f);
}

/* A ring that was set up anew with an old area is fine while nothing is in flight. */
static void test_stale_split(void **state)
{
    InflightSplit *area;
    Fixture f;

    setup(&f, 8, false, 0);
    area = (InflightSplit *)f.area;
    area->version = 1;
    area->desc_num = 8;
    area->used_idx = 1000;
    f.queue = open_successor(&f);
    assert_int_equal(area->used_idx, 0);
    add_request(&f.driver, &f.outstanding);
    assert_serves_all(f.queue, &f.driver, &f.outstanding);
    teardown(&f);
}

/* Another back end may have told the driver of several requests at once before it was killed. */
static void test_batch_of_another(void **state)
{
    InflightSplit *area;
    Fixture f;
    VirtElement element;

    setup_busy(&f, false);
    area = (InflightSplit *)f.area;
    area->entries[0].next = area->last_batch_head; /* heads are 0, 2 and 4 */
    area->entries[4].next = 0;
    area->last_batch_head = 4;
    test_store16(&f.driver, f.driver.used + 2, 2);
    virtqueue_free(f.queue);
    f.queue = open_successor(&f);
    assert_int_equal(virtqueue_pop(f.queue, &element), 1);
    assert_int_equal(element.id, 2);
    assert_int_equal(virtqueue_pop(f.queue, &element), 0);
    assert_int_equal(virtqueue_base(f.queue), 3);
    teardown(&f);
}

/* Requests come back in the order in which they were taken, whatever their slots. */
static void test_order(void **state)
{
    for (unsigned packed = 0; packed < 2; packed++) {
        VirtElement elements[2];
        Fixture f;

        setup_busy(&f, packed);
        if (packed)
            ((InflightPacked *)f.area)->entries[0].counter = 100;
        else
            ((InflightSplit *)f.area)->entries[0].counter = 100;
        virtqueue_free(f.queue);
        f.queue = open_successor(&f);
        for (unsigned i = 0; i < 3; i++)
            assert_int_equal(virtqueue_pop(f.queue, &elements[i > 0]), 1);
        assert_int_equal(elements[1].id, 0); /* the one that was taken first by its slot or head */
        assert_int_equal(virtqueue_pop(f.queue, &elements[0]), 0);
        assert_int_equal(virtqueue_in_flight(f.queue), 3);
        teardown(&f);
    }
}

static void test_bad_packed(void **state)
{
    InflightPacked *area, good;
    Fixture f;

    setup_busy(&f, true);
    area = (InflightPacked *)f.area;
    good = *area;
#define EXPECT(field, value, text)         \
    do {                                   \
        typeof(field) before = (field);    \
                                           \
        (field) = (value);                 \
        expect_text(&f, text);             \
        (field) = before;                  \
        memcpy(area, &good, sizeof(good)); \
    } while (0)
    EXPECT(area->used.used_idx, 8, "used descriptors go on at 8/1 or 0/1 of 8");
    EXPECT(area->used.old_used_wrap_counter, 2, "used descriptors go on at 0/1 or 0/2 of 8");
    EXPECT(area->old_free_head, 9, "a list of slots goes on at 9 of 8");
    EXPECT(area->entries[7].next, 6, "a list of slots goes on at 6 of 8, or there for a second time");
    EXPECT(area->entries[0].num, 0, "the request in slot 0 has 0 descriptors");
    EXPECT(area->entries[0].num, 3,
        "the request in slot 0 has 3 descriptors, the last one in slot 2 instead of 1");
    EXPECT(area->entries[0].next, 2, "the last one in slot 2 instead of 1");
    EXPECT(area->entries[1].inflight, 1, "the request in slot 1 has 0 descriptors");
    EXPECT(area->entries[1].inflight, 7, "slot 1 is marked with 7");
    EXPECT(area->entries[1].id, area->entries[3].id, "is in two requests");
    EXPECT(area->entries[2].inflight, 0, "2 of its slots are neither free nor in use");
    virtqueue_free(f.queue);
    f.queue = open_successor(&f);
    teardown(&f);
}

/* A resumed request is looked at as sternly as one from the ring. */
static void test_bad_resumed_request(void **state)
{
    for (unsigned packed = 0; packed < 2; packed++) {
        VirtElement element;
        Fixture f;

        setup_busy(&f, packed);
        if (packed)
            ((InflightPacked *)f.area)->entries[1].addr = 0;
        else
            put_le64(test_driver_at(&f.driver, f.driver.descriptors + UINT64_C(16) * 1), 0);
        virtqueue_free(f.queue);
        f.queue = open_successor(&f);
        assert_int_equal(virtqueue_pop(f.queue, &element), -EPROTO);
        assert_non_null(strstr(virtqueue_fault(f.queue), "lies outside guest memory"));
        assert_int_equal(virtqueue_pop(f.queue, &element), -EPROTO);
        teardown(&f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_split),
        cmocka_unit_test(test_packed),
        cmocka_unit_test(test_bad_header),
        cmocka_unit_test(test_bad_split),
        cmocka_unit_test(test_stale_split),
        cmocka_unit_test(test_batch_of_another),
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_bad_packed),
        cmocka_unit_test(test_bad_resumed_request),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
