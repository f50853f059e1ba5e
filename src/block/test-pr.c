/* SPDX-License-Identifier: Apache-2.0 */
/* Reservation commands through the graph, from the main loop and from others; over a driver that waits as a
 * helper may. */
#include "block/test-nodes.h"

#include "base/mem.h"
#include "proto/pr-wire.h"

#include <errno.h>
#include <string.h>

#define SHORT_NS UINT64_C(10000000)
#define LONG_NS (60 * UINT64_C(1000000000))

/* ---- A disk whose commands take as long as the test wants ---- */

static Loop *home, *other;
static uint64_t duration_ns;
static CoCond begun;
static unsigned running;

static int disk_pr_execute(Node *node, const PrRequest *request, PrReply *ret_reply)
{
    int r;

    assert_ptr_equal(loop_current(), home);
    running++;
    co_cond_broadcast(&begun);
    r = duration_ns ? co_sleep_ns(duration_ns) : 0;
    running--;
    if (r < 0)
        return r;
    *ret_reply = (PrReply){.status = request->cdb[1], .data_bytes = 1};
    return 0;
}

static int disk_read(Node *node, uint64_t offset, IoSlice dst)
{
    return 0;
}

static const Driver disk_driver = {
    .name = "disk", .flags = DRIVER_PROTOCOL, .read = disk_read, .pr_execute = disk_pr_execute};

static Edge *open_disk(uint64_t takes_ns)
{
    Node *node = test_add("{'driver': 'null-co', 'node-name': 'disk', 'size': 65536}");

    node->driver = &disk_driver;
    duration_ns = takes_ns;
    return test_open_root(node, 0);
}

static void set_up(void)
{
    const LoopOptions options = {.thread_pool_max = 2};
    Error err = ERROR_INIT;

    block_init();
    home = loop_current();
    assert_int_equal(loop_new("other", LOOP_BACKEND_AUTO, &options, &other, &err), 0);
}

static void tear_down(Edge *edge)
{
    edge_close(edge);
    node_close_all();
    loop_free(other);
}

/* ---- A user of the disk ---- */

typedef struct User {
    Edge *edge;
    uint64_t deadline_ns;
    int result;
    uint32_t status;
    Co *co;
    bool done;
} User;

static void use(void *opaque)
{
    User *user = opaque;
    AUTO_FREE PrRequest *request = mem_new(PrRequest);
    AUTO_FREE PrReply *reply = mem_new(PrReply);
    CoDeadline deadline;

    __atomic_store_n(&user->co, co_self(), __ATOMIC_RELEASE);
    request->cdb[1] = 7;
    co_deadline_begin(&deadline, user->deadline_ns);
    user->result = edge_pr_execute(user->edge, request, reply);
    co_deadline_end(&deadline);
    user->status = reply->status;
    user->done = true;
}

static int use_and_return(void *opaque)
{
    use(opaque);
    return 0;
}

static int cancel(void *opaque)
{
    User *user = opaque;

    co_cancel(user->co);
    while (!user->done)
        assert_true(co_yield () == 0);
    return 0;
}

LOOP_TEST(test_from_any_loop)
{
    User user;

    set_up();
    user = (User){.edge = open_disk(SHORT_NS), .deadline_ns = LONG_NS};
    use(&user);
    assert_int_equal(user.result, 0);
    assert_int_equal(user.status, 7);
    user.status = 0;
    assert_int_equal(loop_call(other, use_and_return, &user), 0);
    assert_int_equal(user.result, 0);
    assert_int_equal(user.status, 7);
    tear_down(user.edge);
    return 0;
}

LOOP_TEST(test_a_deadline_ends_it)
{
    User user;

    set_up();
    user = (User){.edge = open_disk(LONG_NS), .deadline_ns = SHORT_NS};
    use(&user);
    assert_int_equal(user.result, -ETIMEDOUT);
    assert_int_equal(running, 0);
    assert_int_equal(loop_call(other, use_and_return, &user), 0);
    assert_int_equal(user.result, -ETIMEDOUT);
    assert_int_equal(running, 0);
    tear_down(user.edge);
    return 0;
}

/* At every moment: before it has arrived, while it runs, about when it ends. */
LOOP_TEST(test_cancelled_from_another_loop)
{
    Edge *edge;

    set_up();
    edge = open_disk(0);
    for (unsigned i = 0; i < 200; i++) {
        User user = {.edge = edge, .deadline_ns = LONG_NS};

        duration_ns = i % 2 ? LONG_NS : 0;
        loop_post(other, "user", use, &user);
        if (i % 4 == 1)
            co_cond_wait_shielded(&begun, NULL);
        while (!__atomic_load_n(&user.co, __ATOMIC_ACQUIRE))
            assert_true(co_yield () == 0);
        loop_call(other, cancel, &user);
        assert_true(user.result == -ECANCELED || (user.result == 0 && user.status == 7));
        assert_true(user.result == -ECANCELED || i % 2 == 0);
        assert_int_equal(running, 0);
    }
    tear_down(edge);
    return 0;
}

LOOP_TEST(test_closing_waits_for_it_and_drain_does_not)
{
    CoGroup group;
    User user;

    set_up();
    user = (User){.edge = open_disk(LONG_NS), .deadline_ns = 20 * SHORT_NS};
    co_group_init(&group);
    co_start(&group, "user", use, &user);
    co_cond_wait_shielded(&begun, NULL);
    node_drain_begin(edge_node(user.edge));
    assert_false(user.done);
    node_drain_end(edge_node(user.edge));
    tear_down(user.edge);
    assert_true(user.done);
    assert_int_equal(user.result, -ETIMEDOUT);
    co_group_join(&group);
    return 0;
}

LOOP_TEST(test_who_passes_it_on)
{
    AUTO_FREE PrRequest *request = mem_new(PrRequest);
    AUTO_FREE PrReply *reply = mem_new(PrReply);
    Edge *disk, *raw, *window, *null;

    set_up();
    disk = open_disk(0);
    raw = test_open_root(test_add("{'driver': 'raw', 'node-name': 'raw', 'file': 'disk'}"), 0);
    window = test_open_root(
        test_add("{'driver': 'raw', 'node-name': 'window', 'file': 'disk', 'offset': 512}"), 0);
    null = test_open_root(test_add("{'driver': 'null-co', 'node-name': 'null', 'size': 512}"), 0);
    assert_int_equal(edge_pr_execute(raw, request, reply), 0);
    assert_int_equal(reply->data_bytes, 1);
    assert_int_equal(edge_pr_execute(window, request, reply), -ENOTSUP);
    assert_int_equal(edge_pr_execute(null, request, reply), -ENOTSUP);
    edge_close(raw);
    edge_close(window);
    edge_close(null);
    tear_down(disk);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_from_any_loop),
        cmocka_unit_test(test_a_deadline_ends_it),
        cmocka_unit_test(test_cancelled_from_another_loop),
        cmocka_unit_test(test_closing_waits_for_it_and_drain_does_not),
        cmocka_unit_test(test_who_passes_it_on),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
