/* SPDX-License-Identifier: Apache-2.0 */
/* Loops and their I/O; every test runs on both back ends. */
#include "loop/loop.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

static LoopBackendKind kind;

static void run_on_loop(int (*fn)(void *arg), void *arg)
{
    const LoopOptions options = LOOP_OPTIONS_DEFAULT;

    assert_int_equal(loop_run_main(kind, &options, fn, arg), 0);
}

/* ---- Sockets ---- */

static void echo_body(void *arg)
{
    int fd = *(int *)arg;
    char data[64];
    ssize_t n;

    while ((n = io_recv(fd, data, sizeof(data))) > 0)
        assert_int_equal(io_write_all(fd, data, (size_t)n), 0);
}

static int echo_main(void *arg)
{
    int pair[2];
    char data[8] = "";
    CoGroup group;
    struct iovec iov = {.iov_base = (char *)"hello", .iov_len = 5};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};

    co_group_init(&group);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    co_start(&group, "echo", echo_body, &pair[1]);
    for (int i = 0; i < 100; i++) {
        assert_int_equal(io_sendmsg(pair[0], &message, 0), 5);
        assert_int_equal(io_read(pair[0], data, sizeof(data)), 5);
        assert_memory_equal(data, "hello", 5);
    }
    close(pair[0]);
    co_group_join(&group);
    close(pair[1]);
    return 0;
}

static void test_echo(void **state)
{
    run_on_loop(echo_main, NULL);
}

static int interrupt_main(void *arg)
{
    int pair[2];
    char c;
    CoDeadline deadline;

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    co_deadline_begin(&deadline, 2000000);
    assert_int_equal(io_recv(pair[0], &c, 1), -ETIMEDOUT);
    assert_int_equal(io_poll(pair[0], POLLIN), -ETIMEDOUT);
    co_deadline_end(&deadline);
    /* The interrupted receive has really ended: it does not take this byte. */
    assert_int_equal(write(pair[1], "x", 1), 1);
    assert_int_equal(io_recv(pair[0], &c, 1), 1);
    assert_int_equal(c, 'x');
    close(pair[0]);
    close(pair[1]);
    return 0;
}

static void test_interrupted_operation_has_ended(void **state)
{
    run_on_loop(interrupt_main, NULL);
}

typedef struct Server {
    int listen_fd;
    int accepted;
} Server;

static void accept_body(void *arg)
{
    Server *server = arg;
    int fd;

    while ((fd = io_accept(server->listen_fd)) >= 0) {
        server->accepted++;
        close(fd);
    }
    assert_int_equal(fd, -ECANCELED);
}

static int accept_main(void *arg)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX}; /* autobind: an abstract name */
    socklen_t length = sizeof(address);
    Server server = {.listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    CoGroup group;

    co_group_init(&group);
    assert_int_equal(bind(server.listen_fd, (struct sockaddr *)&address, sizeof(sa_family_t)), 0);
    assert_int_equal(getsockname(server.listen_fd, (struct sockaddr *)&address, &length), 0);
    assert_int_equal(listen(server.listen_fd, 1), 0);
    co_start(&group, "accept", accept_body, &server);
    for (int i = 0; i < 20; i++) {
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        char c;

        assert_int_equal(io_connect(fd, (struct sockaddr *)&address, length), 0);
        assert_int_equal(io_recv(fd, &c, 1), 0);
        close(fd);
    }
    co_group_cancel(&group);
    co_group_join(&group);
    assert_int_equal(server.accepted, 20);
    close(server.listen_fd);
    return 0;
}

static void test_accept_connect_cancel(void **state)
{
    run_on_loop(accept_main, NULL);
}

/* ---- Files ---- */

static int file_main(void *arg)
{
    char name[] = "/tmp/test-loop-XXXXXX", a[4096], b[4096];
    int fd = mkstemp(name);
    struct iovec two[2] = {{a, 1000}, {a + 1000, 3096}}, one = {b, sizeof(b)};

    unlink(name);
    memset(a, 'a', sizeof(a));
    assert_int_equal(io_pwritev(fd, two, 2, 8192, 0), 4096);
    assert_int_equal(io_fsync(fd, true), 0);
    assert_int_equal(io_preadv(fd, &one, 1, 8192), 4096);
    assert_memory_equal(a, b, sizeof(a));
    assert_int_equal(io_preadv(fd, &one, 1, 1 << 20), 0);
    assert_int_equal(io_fallocate(fd, 0, 0, 1 << 20), 0);
    assert_int_equal(io_preadv(-1, &one, 1, 0), -EBADF);
    close(fd);
    return 0;
}

static void test_files(void **state)
{
    run_on_loop(file_main, NULL);
}

/* ---- Threads ---- */

static int slow_work(void *arg)
{
    usleep(2000);
    __atomic_add_fetch((int *)arg, 1, __ATOMIC_SEQ_CST);
    return 17;
}

static void work_body(void *arg)
{
    assert_int_equal(loop_work(slow_work, arg), 17);
}

static int work_main(void *arg)
{
    int done = 0;
    CoGroup group;

    co_group_init(&group);
    for (int i = 0; i < 100; i++)
        co_start(&group, "work", work_body, &done);
    co_group_join(&group);
    assert_int_equal(done, 100);
    return 0;
}

static void test_worker_threads(void **state)
{
    run_on_loop(work_main, NULL);
}

typedef struct Caller {
    Loop *other;
    int calls;
} Caller;

static int called(void *arg)
{
    Caller *c = arg;

    assert_ptr_equal(loop_current(), c->other);
    return ++c->calls;
}

static int call_main(void *arg)
{
    const LoopOptions options = {.poll_max_ns = *(uint64_t *)arg, .thread_pool_max = 4};
    Caller c = {0};
    Error err = ERROR_INIT;

    assert_int_equal(loop_new("other", kind, &options, &c.other, &err), 0);
    for (int i = 1; i <= 1000; i++)
        assert_int_equal(loop_call(c.other, called, &c), i);
    loop_set_options(c.other, &options);
    loop_free(c.other);
    return 0;
}

static void test_calls_between_loops(void **state)
{
    uint64_t poll_max_ns = 0;

    run_on_loop(call_main, &poll_max_ns);
    poll_max_ns = 32768;
    run_on_loop(call_main, &poll_max_ns);
}

static int sleep_main(void *arg)
{
    uint64_t start_ns = clock_monotonic_ns();

    assert_int_equal(co_sleep_ns(3000000), 0);
    assert_true(clock_monotonic_ns() - start_ns >= 3000000);
    return 0;
}

static void test_sleep(void **state)
{
    run_on_loop(sleep_main, NULL);
}

/* ---- Eventfds ---- */

static void signal_thrice(void *arg)
{
    const uint64_t one = 1;

    for (int i = 0; i < 3; i++) {
        assert_int_equal(co_sleep_ns(500000), 0);
        assert_int_equal(write(*(int *)arg, &one, sizeof(one)), sizeof(one));
    }
}

static int eventfd_main(void *arg)
{
    int fd = eventfd(0, EFD_CLOEXEC | *(int *)arg);
    const uint64_t many = 5;
    uint64_t count;
    CoDeadline deadline;
    CoGroup group;

    assert_int_equal(write(fd, &many, sizeof(many)), sizeof(many));
    assert_int_equal(io_eventfd_wait(fd), 0);
    co_deadline_begin(&deadline, 2000000);
    assert_int_equal(io_eventfd_wait(fd), -ETIMEDOUT);
    co_deadline_end(&deadline);
    /* The interrupted wait has really ended: it does not take this count. */
    assert_int_equal(write(fd, &many, sizeof(many)), sizeof(many));
    assert_int_equal(co_sleep_ns(1000000), 0);
    assert_int_equal(read(fd, &count, sizeof(count)), sizeof(count));
    assert_int_equal(count, many);
    co_group_init(&group);
    co_start(&group, "signal", signal_thrice, &fd);
    for (int i = 0; i < 3; i++)
        assert_int_equal(io_eventfd_wait(fd), 0);
    co_group_join(&group);
    close(fd);
    return 0;
}

static void test_eventfd(void **state)
{
    int flags = 0;

    run_on_loop(eventfd_main, &flags);
    flags = EFD_NONBLOCK;
    run_on_loop(eventfd_main, &flags);
}

/* ---- Pollers ---- */

/* Work that another thread leaves in memory; it writes to the eventfd only if asked to. */
typedef struct Inbox {
    LoopPoller poller;
    atomic_uint brought;
    atomic_bool wants_signal;
    unsigned taken, sleeps;
    int fd;
    CoWait wait;
} Inbox;

#define BROUGHT_MAX 2000

static void *bring(void *arg)
{
    Inbox *inbox = arg;
    const uint64_t one = 1;

    for (unsigned i = 1; i <= BROUGHT_MAX; i++) {
        atomic_store(&inbox->brought, i);
        if (atomic_exchange(&inbox->wants_signal, false))
            assert_int_equal(write(inbox->fd, &one, sizeof(one)), sizeof(one));
        if (i % 50 == 0)
            usleep(i % 100 ? 20 : 300);
    }
    return NULL;
}

static bool inbox_look(LoopPoller *poller)
{
    Inbox *inbox = CONTAINER_OF(poller, Inbox, poller);

    inbox->taken = atomic_load(&inbox->brought);
    if (inbox->taken < BROUGHT_MAX || inbox->wait.done)
        return false;
    co_wake(&inbox->wait, 0);
    return true;
}

static bool inbox_sleep(LoopPoller *poller)
{
    Inbox *inbox = CONTAINER_OF(poller, Inbox, poller);

    inbox->sleeps++;
    atomic_store(&inbox->wants_signal, true);
    return inbox_look(poller);
}

static void inbox_body(void *arg)
{
    Inbox *inbox = arg;

    while (io_eventfd_wait(inbox->fd) == 0)
        loop_poller_start(&inbox->poller);
}

static int join(void *arg)
{
    return pthread_join(*(pthread_t *)arg, NULL);
}

static int poller_main(void *arg)
{
    Inbox inbox = {.poller = {.look = inbox_look, .sleep = inbox_sleep}, .fd = eventfd(0, EFD_CLOEXEC)};
    CoGroup group;
    pthread_t thread;

    co_group_init(&group);
    co_start(&group, "inbox", inbox_body, &inbox);
    loop_poller_start(&inbox.poller);
    loop_poller_start(&inbox.poller);
    assert_int_equal(pthread_create(&thread, NULL, bring, &inbox), 0);
    co_wait_shielded(&inbox.wait);
    assert_int_equal(loop_work(join, &thread), 0);
    co_group_cancel(&group);
    co_group_join(&group);
    /* Once it has slept nobody looks any more. */
    assert_int_equal(co_sleep_ns(1000000), 0);
    inbox.sleeps = inbox.taken = 0;
    assert_int_equal(co_sleep_ns(1000000), 0);
    assert_int_equal(inbox.sleeps + inbox.taken, 0);
    loop_poller_stop(&inbox.poller);
    close(inbox.fd);
    return 0;
}

static void test_pollers(void **state)
{
    run_on_loop(poller_main, NULL);
}

static int set_uring(void **state)
{
    kind = LOOP_BACKEND_IO_URING;
    return 0;
}

static int set_epoll(void **state)
{
    kind = LOOP_BACKEND_EPOLL;
    return 0;
}

static int nothing(void *arg)
{
    return 0;
}

static bool io_uring_is_allowed(void)
{
    const LoopOptions options = LOOP_OPTIONS_DEFAULT;

    return loop_run_main(LOOP_BACKEND_IO_URING, &options, nothing, NULL) == 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_echo),
        cmocka_unit_test(test_interrupted_operation_has_ended),
        cmocka_unit_test(test_accept_connect_cancel),
        cmocka_unit_test(test_files),
        cmocka_unit_test(test_worker_threads),
        cmocka_unit_test(test_calls_between_loops),
        cmocka_unit_test(test_sleep),
        cmocka_unit_test(test_eventfd),
        cmocka_unit_test(test_pollers),
    };
    int failed = cmocka_run_group_tests_name("loop on epoll", tests, set_epoll, NULL);

    if (!io_uring_is_allowed()) {
        print_message("skipped: io_uring is refused here\n");
        return failed;
    }
    return failed + cmocka_run_group_tests_name("loop on io_uring", tests, set_uring, NULL);
}
