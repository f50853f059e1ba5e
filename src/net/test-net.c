/* SPDX-License-Identifier: Apache-2.0 */
/* Addresses, listening, connecting and descriptor passing, on a real loop. */
#include "base/limits.h"
#include "generated/types.h"
#include "loop/loop.h"
#include "net/listener.h"
#include "net/socket.h"

#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

/* In a coroutine: an assertion would jump between stacks, so a failed check returns its line. */
#define CHECK(condition)     \
    do {                     \
        if (!(condition))    \
            return __LINE__; \
    } while (0)

static char dir[] = "/tmp/test-net-XXXXXX";

static char *path_of(const char *name)
{
    return str_printf("%s/%s", dir, name);
}

static SocketAddress *unix_address(const char *path)
{
    SocketAddress *address = mem_new(SocketAddress);

    address->type = SOCKET_ADDRESS_TYPE_UNIX;
    address->u.unix_.path = str_dup(path);
    return address;
}

static SocketAddress *inet_address(const char *host, const char *port)
{
    SocketAddress *address = mem_new(SocketAddress);

    address->type = SOCKET_ADDRESS_TYPE_INET;
    address->u.inet.host = str_dup(host);
    address->u.inet.port = str_dup(port);
    return address;
}

static void run(int (*fn)(void *arg))
{
    LoopOptions options = LOOP_OPTIONS_DEFAULT;

    assert_int_equal(loop_run_main(LOOP_BACKEND_AUTO, &options, fn, NULL), 0);
    assert_int_equal(loop_run_main(LOOP_BACKEND_EPOLL, &options, fn, NULL), 0);
}

/* ---- Addresses ---- */

static void test_unix_sockaddr(void **state)
{
    UnixSocketAddress address = {.path = (char *)"name"};
    AUTO_ERROR Error err = ERROR_INIT;
    struct sockaddr_un to;
    socklen_t length;
    char longest[110];

    assert_int_equal(socket_unix_sockaddr(&address, &to, &length, &err), 0);
    assert_string_equal(to.sun_path, "name");
    address.has_abstract = address.abstract = true;
    assert_int_equal(socket_unix_sockaddr(&address, &to, &length, &err), 0);
    assert_int_equal(length, sizeof(sa_family_t) + 1 + strlen("name"));
    assert_memory_equal(to.sun_path, "\0name", 5);
    address.has_tight = true;
    assert_int_equal(socket_unix_sockaddr(&address, &to, &length, &err), 0);
    assert_int_equal(length, sizeof(to));
    memset(longest, 'x', sizeof(longest) - 1);
    longest[108] = '\0';
    address.path = longest;
    assert_int_equal(socket_unix_sockaddr(&address, &to, &length, &err), -ENAMETOOLONG);
    assert_string_equal(err.hint, "Path must be less than 107 bytes");
    address.abstract = false;
    err_done(&err);
    assert_int_equal(socket_unix_sockaddr(&address, &to, &length, &err), 0);
    longest[108] = 'x';
    longest[109] = '\0';
    assert_int_equal(socket_unix_sockaddr(&address, &to, &length, &err), -ENAMETOOLONG);
    assert_string_equal(err.hint, "Path must be less than 108 bytes");
}

static void expect_vsock_error(const char *cid, const char *port, const char *message)
{
    VsockSocketAddress address = {.cid = (char *)cid, .port = (char *)port};
    AUTO_ERROR Error err = ERROR_INIT;
    struct sockaddr_vm to;

    assert_int_equal(socket_vsock_sockaddr(&address, &to, &err), -EINVAL);
    assert_string_equal(err.message, message);
}

static void test_vsock_sockaddr(void **state)
{
    VsockSocketAddress address = {.cid = (char *)"4294967295", .port = (char *)"12"};
    AUTO_ERROR Error err = ERROR_INIT;
    struct sockaddr_vm to;

    assert_int_equal(socket_vsock_sockaddr(&address, &to, &err), 0);
    assert_int_equal(to.svm_cid, UINT32_MAX);
    assert_int_equal(to.svm_port, 12);
    expect_vsock_error("4294967296", "1", "Failed to parse cid '4294967296'");
    expect_vsock_error("-1", "1", "Failed to parse cid '-1'");
    expect_vsock_error("1", "x", "Failed to parse port 'x'");
    expect_vsock_error("1", "", "Failed to parse port ''");
}

static void test_flatten_and_text(void **state)
{
    InetSocketAddress inet = {.host = (char *)"::1",
        .port = (char *)"80",
        .has_to = true,
        .to = 90,
        .has_ipv6 = true,
        .ipv6 = true};
    SocketAddressLegacy legacy = {.type = SOCKET_ADDRESS_TYPE_INET, .u.inet.data = &inet};
    CLEANUP(socket_address_free_ptr) SocketAddress *flat = socket_address_flatten(&legacy);
    CLEANUP(socket_address_free_ptr) SocketAddress *local = unix_address("/a");
    AUTO_STRBUF StrBuf out = {0};

    assert_int_equal(flat->u.inet.to, 90);
    assert_true(flat->u.inet.ipv6);
    socket_address_append(&out, flat);
    local->u.unix_.has_abstract = local->u.unix_.abstract = true;
    socket_address_append(&out, local);
    local->u.unix_.has_tight = true;
    socket_address_append(&out, local);
    assert_string_equal(out.text, "tcp:::1:80unix:/a,abstract=on,tight=onunix:/a,abstract=on");
}

static void expect_not_passed(const char *text, const char *message)
{
    AUTO_ERROR Error err = ERROR_INIT;
    int fd;

    assert_true(socket_take_passed(text, &fd, &err) < 0);
    assert_string_equal(err.message, message);
}

static void test_take_passed(void **state)
{
    AUTO_ERROR Error err = ERROR_INIT;
    AUTO_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    AUTO_CLOSE int file = open("/dev/null", O_RDWR);
    AUTO_FREE char *number = str_printf("%d", fd), *file_number = str_printf("%d", file);
    AUTO_FREE char *busy = str_printf("File descriptor '%d' is already in use", fd);
    AUTO_FREE char *no_socket = str_printf("File descriptor '%d' is not a socket", file);
    int taken;

    assert_int_equal(socket_take_passed(number, &taken, &err), 0);
    assert_int_equal(taken, fd);
    assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    expect_not_passed(number, busy);
    expect_not_passed(file_number, no_socket);
    expect_not_passed("-1", "File descriptor '-1' is not a socket");
    expect_not_passed("foo", "Unable to parse FD number foo");
    expect_not_passed("", "Unable to parse FD number ");
}

/* ---- Listening ---- */

static int listen_unix(void *arg)
{
    AUTO_ERROR Error err = ERROR_INIT;
    AUTO_FREE char *path = path_of("listen");
    CLEANUP(socket_address_free_ptr) SocketAddress *address = unix_address(path), *bound = NULL;
    Listener first, second;
    AUTO_CLOSE int client = -1, server = -1;
    CoDeadline deadline;

    CHECK(listener_open(&first, address, 1, &err) == 0);
    bound = listener_address(&first);
    CHECK(bound && strcmp(bound->u.unix_.path, path) == 0);
    /* A second server takes the path over, and the first leaves it alone when it ends. */
    CHECK(listener_open(&second, address, 1, &err) == 0);
    listener_close(&first);
    CHECK(access(path, F_OK) == 0);
    CHECK(socket_connect(address, &client, &err) == 0);
    CHECK((server = listener_accept(&second)) >= 0);
    CHECK(fcntl(server, F_GETFD) & FD_CLOEXEC);
    CHECK(io_write_all(client, "x", 1) == 0);
    CHECK(io_read(server, &(char){0}, 1) == 1);
    co_deadline_begin(&deadline, 1000000);
    CHECK(listener_accept(&second) == -ETIMEDOUT);
    co_deadline_end(&deadline);
    listener_close(&second);
    CHECK(access(path, F_OK) < 0);
    listener_close(&second);
    return 0;
}

static void test_listen_unix(void **state)
{
    run(listen_unix);
}

static int refuse_unix(void *arg)
{
    AUTO_ERROR Error err = ERROR_INIT;
    AUTO_FREE char *path = path_of("file"), *expected = NULL;
    CLEANUP(socket_address_free_ptr) SocketAddress *address = unix_address(path);
    Listener listener;
    int fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);

    CHECK(fd >= 0);
    fd_close(fd);
    CHECK(listener_open(&listener, address, 1, &err) == -EEXIST);
    expected = str_printf("Failed to bind socket to %s: the path exists and is not a socket", path);
    CHECK(strcmp(err.message, expected) == 0);
    CHECK(access(path, F_OK) == 0);
    unlink(path);
    err_done(&err);
    CHECK(socket_connect(address, &fd, &err) == -ENOENT);
    free(expected);
    expected = str_printf("Failed to connect to '%s': No such file or directory", path);
    CHECK(strcmp(err.message, expected) == 0);
    return 0;
}

static void test_refuse_unix(void **state)
{
    run(refuse_unix);
}

/* Connects to the listener's host at its port and accepts. */
static int try_host(Listener *listener, const char *host)
{
    AUTO_ERROR Error err = ERROR_INIT;
    CLEANUP(socket_address_free_ptr) SocketAddress *bound = listener_address(listener), *address = NULL;
    AUTO_CLOSE int client = -1, server = -1;

    CHECK(bound);
    address = inet_address(host, bound->u.inet.port);
    CHECK(socket_connect(address, &client, &err) == 0);
    CHECK((server = listener_accept(listener)) >= 0);
    return 0;
}

static int listen_inet(void *arg)
{
    AUTO_ERROR Error err = ERROR_INIT;
    CLEANUP(socket_address_free_ptr) SocketAddress *any = inet_address("", "0");
    Listener listener;
    int r;

    CHECK(listener_open(&listener, any, 4, &err) == 0);
    r = try_host(&listener, "127.0.0.1");
    if (r == 0)
        r = try_host(&listener, "127.0.0.1");
    if (r == 0 && listener.count > 1)
        r = try_host(&listener, "::1");
    listener_close(&listener);
    return r;
}

static void test_listen_inet(void **state)
{
    run(listen_inet);
}

static int inet_errors(void *arg)
{
    AUTO_ERROR Error err = ERROR_INIT;
    CLEANUP(socket_address_free_ptr) SocketAddress *local = inet_address("127.0.0.1", "0"), *taken = NULL;
    Listener first, second;

    CHECK(listener_open(&first, local, 1, &err) == 0);
    taken = listener_address(&first);
    CHECK(taken);
    CHECK(listener_open(&second, taken, 1, &err) == -EADDRINUSE);
    CHECK(strcmp(err.message, "Failed to find an available port: Address already in use") == 0);
    err_done(&err);
    taken->u.inet.has_to = true;
    taken->u.inet.to = UINT16_MAX;
    if (listener_open(&second, taken, 1, &err) == 0)
        listener_close(&second);
    err_done(&err);
    local->u.inet.has_ipv4 = local->u.inet.has_ipv6 = true;
    CHECK(listener_open(&second, local, 1, &err) == -EINVAL);
    CHECK(strcmp(err.message, "Cannot disable IPv4 and IPv6 at same time") == 0);
    listener_close(&first);
    err_done(&err);
    taken->u.inet.has_to = false;
    CHECK(socket_connect(taken, &(int){0}, &err) == -ECONNREFUSED);
    return 0;
}

static void test_inet_errors(void **state)
{
    run(inet_errors);
}

/* Takes every free number; the caller closes them all. Returns how many, or -1 when there were too many. */
static int take_all_numbers(int *fds, int max)
{
    int count = 0, fd;

    while ((fd = dup(STDIN_FILENO)) >= 0 && count < max)
        fds[count++] = fd;
    return fd_close(fd) < 0 && count < max ? count : -1;
}

/* Without a free descriptor a client waits, and the accepting coroutine sleeps rather than spins. */
static int accept_exhausted(void *arg)
{
    AUTO_ERROR Error err = ERROR_INIT;
    CLEANUP(socket_address_free_ptr) SocketAddress *any = inet_address("127.0.0.1", "0"), *bound = NULL;
    struct rlimit before, now = {.rlim_cur = 64, .rlim_max = RLIM_INFINITY};
    Listener listener;
    int fds[128], count, client, server, r;
    CoDeadline deadline;
    struct timespec cpu_before, cpu_after;

    CHECK(getrlimit(RLIMIT_NOFILE, &before) == 0);
    now.rlim_max = before.rlim_max;
    CHECK(listener_open(&listener, any, 4, &err) == 0);
    bound = listener_address(&listener);
    CHECK(bound && socket_connect(bound, &client, &err) == 0);
    CHECK(setrlimit(RLIMIT_NOFILE, &now) == 0);
    count = take_all_numbers(fds, 128);
    CHECK(count >= 0);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu_before);
    co_deadline_begin(&deadline, UINT64_C(150000000));
    r = listener_accept(&listener);
    co_deadline_end(&deadline);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu_after);
    for (int i = 0; i < count; i++)
        fd_close(fds[i]);
    CHECK(setrlimit(RLIMIT_NOFILE, &before) == 0);
    CHECK(r == -ETIMEDOUT);
    CHECK(cpu_after.tv_sec - cpu_before.tv_sec <= 1);
    CHECK((cpu_after.tv_sec - cpu_before.tv_sec) * 1000000000 + cpu_after.tv_nsec - cpu_before.tv_nsec <
          75000000);
    CHECK((server = listener_accept(&listener)) >= 0);
    fd_close(server);
    fd_close(client);
    listener_close(&listener);
    return 0;
}

static void test_accept_exhausted(void **state)
{
    run(accept_exhausted);
}

/* A host name that the system's resolver must look at; nobody waits for it beyond the deadline. */
static int interrupt_lookup(void *arg)
{
    AUTO_ERROR Error err = ERROR_INIT;
    CLEANUP(socket_address_free_ptr) SocketAddress *address = inet_address("no-such-host.invalid", "1");
    CoDeadline deadline;
    int fd;

    co_deadline_begin(&deadline, 1);
    CHECK(socket_connect(address, &fd, &err) < 0);
    CHECK(str_starts(err.message, "address resolution failed for no-such-host.invalid:1: "));
    co_deadline_end(&deadline);
    return 0;
}

static void test_interrupt_lookup(void **state)
{
    run(interrupt_lookup);
}

/* ---- Descriptors ---- */

static int pass_fds(void *arg)
{
    int pair[2], fds[3], got[3];
    unsigned count;
    char byte;

    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
    fds[0] = fds[1] = fds[2] = pair[0];
    CHECK(socket_send_fds(pair[0], "x", 1, fds, 2) == 0);
    CHECK(socket_recv_fds(pair[1], &byte, 1, got, 3, &count) == 1);
    CHECK(count == 2 && byte == 'x' && (fcntl(got[0], F_GETFD) & FD_CLOEXEC));
    fd_close(got[0]);
    fd_close(got[1]);
    CHECK(socket_send_fds(pair[0], "x", 1, fds, 3) == 0);
    CHECK(socket_recv_fds(pair[1], &byte, 1, got, 2, &count) == -EMSGSIZE);
    CHECK(socket_send_fds(pair[0], "x", 1, fds, LIMIT_PASSED_FDS + 1) == -EINVAL);
    fd_close(pair[0]);
    CHECK(socket_recv_fds(pair[1], &byte, 1, got, 2, &count) == 0);
    fd_close(pair[1]);
    return 0;
}

static void test_pass_fds(void **state)
{
    run(pass_fds);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_unix_sockaddr),
        cmocka_unit_test(test_vsock_sockaddr),
        cmocka_unit_test(test_flatten_and_text),
        cmocka_unit_test(test_take_passed),
        cmocka_unit_test(test_listen_unix),
        cmocka_unit_test(test_refuse_unix),
        cmocka_unit_test(test_listen_inet),
        cmocka_unit_test(test_inet_errors),
        cmocka_unit_test(test_accept_exhausted),
        cmocka_unit_test(test_interrupt_lookup),
        cmocka_unit_test(test_pass_fds),
    };
    int r;

    if (!mkdtemp(dir))
        return 1;
    r = cmocka_run_group_tests(tests, NULL, NULL);
    rmdir(dir);
    return r;
}
