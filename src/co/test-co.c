/* SPDX-License-Identifier: Apache-2.0 */
/* The rules of co.h, one test each, on a scheduler with a clock that the test moves. */
#include "co/co.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

static uint64_t fake_now_ns;
static CoSched *sched;
static CoGroup group;

static uint64_t fake_clock(void)
{
    return fake_now_ns;
}

static int setup(void **state)
{
    fake_now_ns = 1000;
    sched = co_sched_new(fake_clock);
    co_sched_enter(sched);
    co_group_init(&group);
    return 0;
}

static int teardown(void **state)
{
    co_sched_enter(NULL);
    co_sched_free(sched); /* asserts that no coroutine is left */
    return 0;
}

static void run(void)
{
    while (co_sched_run(sched))
        ;
}

typedef struct Waiting {
    CoWait *wait;
    int result, second_result;
    bool ended;
} Waiting;

static void wait_body(void *arg)
{
    Waiting *w = arg;

    w->result = co_wait(w->wait);
    w->ended = true;
}

static void test_wait_ends_only_for_its_wake(void **state)
{
    CoWait mine = {0}, other = {0};
    Waiting w = {.wait = &mine};

    co_start(&group, "waiter", wait_body, &w);
    run();
    co_wake(&other, 1);
    run();
    assert_false(w.ended);
    co_wake(&mine, 42);
    run();
    assert_true(w.ended);
    assert_int_equal(w.result, 42);
}

static void test_wake_before_wait(void **state)
{
    CoWait mine = {0};
    Waiting w = {.wait = &mine};

    co_wake(&mine, 7);
    co_start(&group, "waiter", wait_body, &w);
    run();
    assert_int_equal(w.result, 7);
}

static void two_waits_body(void *arg)
{
    Waiting *w = arg;
    CoWait never = {0};

    w->result = co_wait(w->wait);
    w->second_result = co_wait(&never);
    w->ended = true;
}

/* A cancellation that comes after the wake does not take the result away, and is seen by the next wait. */
static void test_cancellation_is_sticky_and_keeps_the_result(void **state)
{
    CoWait mine = {0};
    Waiting w = {.wait = &mine};

    co_start(&group, "waiter", two_waits_body, &w);
    run();
    co_wake(&mine, 5);
    co_group_cancel(&group);
    run();
    assert_true(w.ended);
    assert_int_equal(w.result, 5);
    assert_int_equal(w.second_result, -ECANCELED);
}

/* A wake that comes after the cancellation cannot overwrite it: both are seen. */
static void test_wake_does_not_overwrite_cancellation(void **state)
{
    CoWait mine = {0};
    Waiting w = {.wait = &mine};

    co_start(&group, "waiter", two_waits_body, &w);
    run();
    co_group_cancel(&group);
    co_wake(&mine, 5);
    run();
    assert_int_equal(w.result, 5);
    assert_int_equal(w.second_result, -ECANCELED);
}

static void test_started_in_a_cancelled_group(void **state)
{
    CoWait mine = {0};
    Waiting w = {.wait = &mine};

    co_group_cancel(&group);
    co_start(&group, "late", wait_body, &w);
    run();
    assert_int_equal(w.result, -ECANCELED);
}

typedef struct Timed {
    CoWait *wait;
    int first, second, third;
} Timed;

static void deadline_body(void *arg)
{
    Timed *t = arg;
    CoDeadline deadline;
    CoWait never = {0}, late = {0};

    co_deadline_begin(&deadline, 100);
    t->first = co_wait(t->wait);
    t->second = co_wait(&never);
    co_deadline_end(&deadline);
    co_wake(&late, 3);
    t->third = co_wait(&late);
}

static void test_deadline(void **state)
{
    CoWait mine = {0};
    Timed t = {.wait = &mine};

    co_start(&group, "timed", deadline_body, &t);
    run();
    assert_int_equal(co_sched_next_deadline_ns(sched), 1100);
    fake_now_ns = 1100;
    run();
    assert_int_equal(t.first, -ETIMEDOUT);
    assert_int_equal(t.second, -ETIMEDOUT);
    assert_int_equal(t.third, 3);
    assert_int_equal(co_sched_next_deadline_ns(sched), UINT64_MAX);
}

/* The deadline fires while the coroutine is already queued for its wake: it gets the result, then the
 * time-out. */
static void test_deadline_while_queued_is_not_lost(void **state)
{
    CoWait mine = {0};
    Timed t = {.wait = &mine};

    co_start(&group, "timed", deadline_body, &t);
    run();
    co_wake(&mine, 9);
    fake_now_ns = 5000;
    run();
    assert_int_equal(t.first, 9);
    assert_int_equal(t.second, -ETIMEDOUT);
}

static void nested_deadline_body(void *arg)
{
    Timed *t = arg;
    CoDeadline outer, inner;
    CoWait never = {0};

    co_deadline_begin(&outer, 50);
    co_deadline_begin(&inner, 1000);
    t->first = co_wait(&never);
    co_deadline_end(&inner);
    t->second = co_sleep_ns(1);
    co_deadline_end(&outer);
    t->third = co_sleep_ns(1);
}

static void test_outer_deadline_counts_inside_an_inner_one(void **state)
{
    Timed t = {0};

    co_start(&group, "nested", nested_deadline_body, &t);
    run();
    fake_now_ns += 60;
    run();
    assert_int_equal(t.first, -ETIMEDOUT);
    assert_int_equal(t.second, -ETIMEDOUT);
    fake_now_ns += 10;
    run();
    assert_int_equal(t.third, 0);
}

static void shielded_body(void *arg)
{
    Timed *t = arg;
    CoWait never = {0};

    co_shield_begin();
    t->first = co_wait(t->wait);
    co_shield_end();
    t->second = co_wait(&never);
}

static void test_shield_holds_interruptions_off(void **state)
{
    CoWait mine = {0};
    Timed t = {.wait = &mine, .first = -1};

    co_start(&group, "shielded", shielded_body, &t);
    run();
    co_group_cancel(&group);
    run();
    assert_int_equal(t.first, -1);
    co_wake(&mine, 11);
    run();
    assert_int_equal(t.first, 11);
    assert_int_equal(t.second, -ECANCELED);
}

/* ---- Groups ---- */

typedef struct Parent {
    CoGroup children;
    CoWait child_wait, own_wait;
    Waiting child;
    bool woke_for_own, joined;
} Parent;

static void parent_body(void *arg)
{
    Parent *p = arg;

    co_group_init(&p->children);
    p->child.wait = &p->child_wait;
    co_start(&p->children, "child", wait_body, &p->child);
    p->woke_for_own = co_wait(&p->own_wait) == 1;
    co_group_join(&p->children);
    p->joined = true;
}

static void test_child_end_wakes_parent_only_in_join(void **state)
{
    Parent p = {0};

    co_start(&group, "parent", parent_body, &p);
    run();
    co_wake(&p.child_wait, 0);
    run();
    assert_true(p.child.ended);
    assert_false(p.woke_for_own);
    co_wake(&p.own_wait, 1);
    run();
    assert_true(p.joined);
}

static void test_join_waits_for_the_child(void **state)
{
    Parent p = {0};

    co_start(&group, "parent", parent_body, &p);
    run();
    co_wake(&p.own_wait, 1);
    run();
    assert_false(p.joined);
    co_wake(&p.child_wait, 0);
    run();
    assert_true(p.joined);
}

static void count_named(Co *co, void *arg)
{
    assert_non_null(co_name(co));
    ++*(unsigned *)arg;
}

static void test_every_live_coroutine_can_be_reached(void **state)
{
    CoWait waits[3] = {0};
    Waiting w[3];
    unsigned seen = 0;

    for (int i = 0; i < 3; i++) {
        w[i] = (Waiting){.wait = &waits[i]};
        co_start(&group, "reachable", wait_body, &w[i]);
    }
    run();
    co_sched_foreach(sched, count_named, &seen);
    assert_int_equal(seen, 3);
    assert_int_equal(co_sched_count(sched), 3);
    co_group_cancel(&group);
    run();
    assert_int_equal(co_sched_count(sched), 0);
}

/* ---- Locks ---- */

typedef struct Locker {
    CoMutex *mutex;
    CoWait hold;
    int result;
    int *order, number;
} Locker;

static void lock_body(void *arg)
{
    Locker *l = arg;

    l->result = co_mutex_lock(l->mutex);
    if (l->result < 0)
        return;
    l->number = ++*l->order;
    co_wait_shielded(&l->hold);
    co_mutex_unlock(l->mutex);
}

static void test_mutex_is_fair_and_cancellable(void **state)
{
    CoMutex mutex = {0};
    CoGroup cancelled;
    int order = 0;
    Locker a = {&mutex, .order = &order}, b = {&mutex, .order = &order}, c = {&mutex, .order = &order};

    co_group_init(&cancelled);
    co_start(&group, "a", lock_body, &a);
    co_start(&cancelled, "b", lock_body, &b);
    co_start(&group, "c", lock_body, &c);
    run();
    co_group_cancel(&cancelled);
    run();
    assert_int_equal(b.result, -ECANCELED);
    co_wake(&a.hold, 0);
    co_wake(&c.hold, 0);
    run();
    assert_int_equal(a.number, 1);
    assert_int_equal(c.number, 2);
    assert_null(mutex.owner);
}

typedef struct CondUser {
    CoMutex mutex;
    CoCond cond;
    bool flag;
    int woken;
} CondUser;

static void cond_body(void *arg)
{
    CondUser *u = arg;

    co_mutex_lock_shielded(&u->mutex);
    while (!u->flag)
        co_cond_wait_shielded(&u->cond, &u->mutex);
    u->woken++;
    co_mutex_unlock(&u->mutex);
}

static void test_condition_broadcast(void **state)
{
    CondUser u = {0};

    for (int i = 0; i < 3; i++)
        co_start(&group, "cond", cond_body, &u);
    run();
    co_cond_signal(&u.cond);
    run();
    assert_int_equal(u.woken, 0);
    u.flag = true;
    co_cond_broadcast(&u.cond);
    run();
    assert_int_equal(u.woken, 3);
}

typedef struct RwUser {
    CoRwLock *lock;
    bool write, has;
    CoWait hold;
} RwUser;

static void rw_body(void *arg)
{
    RwUser *u = arg;

    if (u->write)
        co_rwlock_write(u->lock);
    else
        co_rwlock_read(u->lock);
    u->has = true;
    co_wait_shielded(&u->hold);
    co_rwlock_unlock(u->lock);
}

static void test_waiting_writer_keeps_later_readers_out(void **state)
{
    CoRwLock lock = {0};
    RwUser r1 = {&lock}, w = {&lock, .write = true}, r2 = {&lock};

    co_start(&group, "r1", rw_body, &r1);
    co_start(&group, "w", rw_body, &w);
    co_start(&group, "r2", rw_body, &r2);
    run();
    assert_true(r1.has);
    assert_false(w.has || r2.has);
    co_wake(&r1.hold, 0);
    run();
    assert_true(w.has);
    assert_false(r2.has);
    co_wake(&w.hold, 0);
    co_wake(&r2.hold, 0);
    run();
    assert_true(r2.has);
}

/* ---- Many ---- */

static void sleeper_body(void *arg)
{
    int *count = arg;

    for (uint64_t i = 1; i <= 20; i++)
        if (co_sleep_ns(i * 7 % 13 + 1) == 0)
            ++*count;
}

static void test_many_sleepers(void **state)
{
    int count = 0;

    for (int i = 0; i < 500; i++)
        co_start(&group, "sleeper", sleeper_body, &count);
    run();
    while (co_sched_count(sched)) {
        assert_true(co_sched_next_deadline_ns(sched) > fake_now_ns);
        fake_now_ns = co_sched_next_deadline_ns(sched);
        run();
    }
    assert_int_equal(count, 500 * 20);
}

int main(void)
{
#define CO_TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        CO_TEST(test_wait_ends_only_for_its_wake),
        CO_TEST(test_wake_before_wait),
        CO_TEST(test_cancellation_is_sticky_and_keeps_the_result),
        CO_TEST(test_wake_does_not_overwrite_cancellation),
        CO_TEST(test_started_in_a_cancelled_group),
        CO_TEST(test_deadline),
        CO_TEST(test_deadline_while_queued_is_not_lost),
        CO_TEST(test_outer_deadline_counts_inside_an_inner_one),
        CO_TEST(test_shield_holds_interruptions_off),
        CO_TEST(test_child_end_wakes_parent_only_in_join),
        CO_TEST(test_join_waits_for_the_child),
        CO_TEST(test_every_live_coroutine_can_be_reached),
        CO_TEST(test_mutex_is_fair_and_cancellable),
        CO_TEST(test_condition_broadcast),
        CO_TEST(test_waiting_writer_keeps_later_readers_out),
        CO_TEST(test_many_sleepers),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
