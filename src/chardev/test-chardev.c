/* SPDX-License-Identifier: Apache-2.0 */
/* The ring buffer, the old option syntax, and the back ends on a real loop. */
#include "base/limits.h"
#include "chardev/chardev.h"
#include "chardev/options.h"
#include "chardev/ringbuf.h"
#include "generated/types.h"
#include "loop/loop.h"
#include "net/socket.h"

#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

/* In a coroutine: an assertion would jump between stacks, so a failed check returns its line. */
#define CHECK(condition)     \
    do {                     \
        if (!(condition))    \
            return __LINE__; \
    } while (0)

#define SECOND_NS UINT64_C(1000000000)

static char dir[] = "/tmp/test-chardev-XXXXXX";

static void run(int (*fn)(void *arg))
{
    LoopOptions options = LOOP_OPTIONS_DEFAULT;

    assert_int_equal(loop_run_main(LOOP_BACKEND_AUTO, &options, fn, NULL), 0);
    assert_int_equal(loop_run_main(LOOP_BACKEND_EPOLL, &options, fn, NULL), 0);
}

/* ---- Ring buffer ---- */

static void test_ringbuf(void **state)
{
    RingBuf ring;
    char out[16];

    assert_int_equal(ringbuf_init(&ring, 8), 0);
    ringbuf_write(&ring, "abc", 3);
    assert_int_equal(ringbuf_count(&ring), 3);
    assert_int_equal(ringbuf_read(&ring, out, 2), 2);
    assert_memory_equal(out, "ab", 2);
    ringbuf_write(&ring, "defghij", 7);
    assert_int_equal(ringbuf_count(&ring), 8);
    ringbuf_write(&ring, "k", 1);
    assert_int_equal(ringbuf_read(&ring, out, sizeof(out)), 8);
    assert_memory_equal(out, "defghijk", 8);
    assert_int_equal(ringbuf_read(&ring, out, sizeof(out)), 0);
    ringbuf_write(&ring, "0123456789abcdef", 16);
    assert_int_equal(ringbuf_read(&ring, out, sizeof(out)), 8);
    assert_memory_equal(out, "89abcdef", 8);
    ringbuf_done(&ring);
}

/* ---- Options ---- */

/* The message of what is wrong with a --chardev argument. */
static void expect_error(const char *text, const char *message)
{
    CLEANUP(chardev_options_free_ptr) ChardevOptions *options = NULL;
    CLEANUP(chardev_backend_free_ptr) ChardevBackend *backend = NULL;
    AUTO_ERROR Error err = ERROR_INIT;
    bool help;
    int r = chardev_options_parse(text, &options, &help, &err);

    if (r == 0)
        r = chardev_options_to_backend(options, &backend, &err);
    assert_true(r < 0);
    assert_string_equal(err.message, message);
}

static ChardevBackend *backend_of(const char *text)
{
    CLEANUP(chardev_options_free_ptr) ChardevOptions *options = NULL;
    ChardevBackend *backend;
    Error err = ERROR_INIT;
    bool help;

    assert_int_equal(chardev_options_parse(text, &options, &help, &err), 0);
    assert_false(help);
    assert_int_equal(chardev_options_to_backend(options, &backend, &err), 0);
    return backend;
}

static void test_option_errors(void **state)
{
    expect_error("null,id=a b", "Parameter 'id' expects an identifier");
    expect_error("null,id=1a", "Parameter 'id' expects an identifier");
    expect_error("null,id=a,,b", "Parameter 'id' expects an identifier");
    expect_error("foo,id=a", "'foo' is not a valid char driver name");
    expect_error("vc,id=a", "'vc' is not a valid char driver name");
    expect_error("null,foo=1,id=a", "Invalid parameter 'foo'");
    expect_error("null,nofoo,id=a", "Invalid parameter 'foo'");
    expect_error("=null,id=a", "Invalid parameter ''");
    expect_error("socket,id=a,path=x,server=maybe", "Parameter 'server' expects 'on' or 'off'");
    expect_error("null,id=a,reconnect=x", "Parameter 'reconnect' expects a number");
    expect_error("null,id=a,to=1k", "Parameter 'to' expects a number");
    expect_error(
        "null,id=a,to=99999999999999999999", "Value '99999999999999999999' is too large for parameter 'to'");
    expect_error("ringbuf,id=a,size=foo", "Parameter 'size' expects a non-negative number below 2^64");
    expect_error("ringbuf,id=a,size=-1", "Value '-1' is out of range for parameter 'size'");
    expect_error("ringbuf,id=a,size=99999999999999999999",
        "Value '99999999999999999999' is out of range for parameter 'size'");
    expect_error("socket,id=a,path=x,host=h", "None or one of 'path', 'fd' or 'host' option required.");
    expect_error("socket,id=a,host=h", "chardev: socket: no port given");
    expect_error("file,id=a", "chardev: file: no filename given");
    expect_error("pipe,id=a", "chardev: pipe: no device path given");
}

static void test_option_socket(void **state)
{
    CLEANUP(chardev_backend_free_ptr) ChardevBackend *backend = NULL;
    const ChardevSocket *socket_options;

    backend = backend_of("socket,id=a,path=/a,,b,server=on,logfile=l,logappend=on");
    socket_options = backend->u.socket.data;
    assert_int_equal(backend->type, CHARDEV_BACKEND_KIND_SOCKET);
    assert_string_equal(socket_options->addr->u.unix_.data->path, "/a,b");
    assert_string_equal(socket_options->logfile, "l");
    assert_true(socket_options->logappend);
    assert_true(socket_options->server);
    assert_true(socket_options->has_wait && socket_options->wait);
    chardev_backend_free(backend);

    backend = backend_of("socket,id=a,host=h,port=1,to=5,ipv4=off,reconnect-ms=7,delay=off");
    socket_options = backend->u.socket.data;
    assert_false(socket_options->server);
    assert_false(socket_options->has_wait);
    assert_true(socket_options->nodelay);
    assert_int_equal(socket_options->reconnect_ms, 7);
    assert_int_equal(socket_options->addr->u.inet.data->to, 5);
    assert_true(socket_options->addr->u.inet.data->has_ipv4);
    assert_false(socket_options->addr->u.inet.data->ipv4);
}

static void test_option_rules(void **state)
{
    CLEANUP(chardev_options_free_ptr) ChardevOptions *options = NULL;
    CLEANUP(chardev_backend_free_ptr) ChardevBackend *backend = NULL;
    AUTO_ERROR Error err = ERROR_INIT;
    bool help;

    /* The first id and the last of anything else count. */
    assert_int_equal(chardev_options_parse("null,id=a,id=b,size=1,size=3k,", &options, &help, &err), 0);
    assert_string_equal(chardev_options_id(options), "a");
    assert_string_equal(chardev_option(options, "size"), "3k");
    chardev_options_free(TAKE(options));
    assert_int_equal(chardev_options_parse("socket,path=x,?", &options, &help, &err), 0);
    assert_true(help);
    backend = backend_of("ringbuf,id=a,size=3k");
    assert_int_equal(backend->u.ringbuf.data->size, 3072);
}

/* ---- Helpers for back ends ---- */

/* Runs a --chardev argument whose path stands in the test's folder. */
static int add(const char *format)
{
    AUTO_ERROR Error err = ERROR_INIT;
    AUTO_STRBUF StrBuf text = {0};
    const char *mark = strstr(format, "DIR");

    if (mark) {
        strbuf_append_bytes(&text, format, (size_t)(mark - format));
        strbuf_printf(&text, "%s%s", dir, mark + strlen("DIR"));
    } else {
        strbuf_append(&text, format);
    }
    return chardev_add_cmdline(text.text, &err);
}

static int connect_to(const char *name)
{
    AUTO_ERROR Error err = ERROR_INIT;
    SocketAddress address = {.type = SOCKET_ADDRESS_TYPE_UNIX};
    AUTO_FREE char *path = str_printf("%s/%s", dir, name);
    int fd, r;

    address.u.unix_.path = path;
    r = socket_connect(&address, &fd, &err);
    return r < 0 ? r : fd;
}

static bool exists(const char *name)
{
    AUTO_FREE char *path = str_printf("%s/%s", dir, name);

    return access(path, F_OK) == 0;
}

static bool filename_is(const Chardev *chardev, const char *format)
{
    AUTO_FREE char *filename = chardev_filename(chardev);
    AUTO_FREE char *expected = str_printf("%s%s%s", format, dir, "/s,server=on");

    return strcmp(filename, expected) == 0;
}

/* ---- Socket server ---- */

static int socket_clients(void *arg)
{
    AUTO_ERROR Error err = ERROR_INIT;
    AUTO_CLOSE int first = -1, second = -1;
    Chardev *chardev = NULL;
    char data[8];

    CHECK(add("socket,id=s,path=DIR/s,server=on,wait=off") == CHARDEV_CMDLINE_ADDED);
    CHECK(chardev_attach("s", &chardev, &err) == 0);
    CHECK(chardev_attach("s", &chardev, &err) == -EBUSY);
    CHECK(strcmp(err.message, "chardev 's' is already in use") == 0);
    CHECK(filename_is(chardev, "disconnected:unix:"));
    CHECK(chardev_write_all(chardev, "x", 1) == -ENOTCONN);
    CHECK((first = connect_to("s")) >= 0);
    CHECK((second = connect_to("s")) >= 0);
    CHECK(chardev_open_wait(chardev) == 0);
    CHECK(filename_is(chardev, "unix:"));
    CHECK(io_write_all(first, "one", 3) == 0);
    CHECK(io_write_all(second, "two", 3) == 0);
    CHECK(chardev_read(chardev, data, sizeof(data)) == 3 && memcmp(data, "one", 3) == 0);
    /* A client that only has no more to say still gets its answer. */
    CHECK(shutdown(first, SHUT_WR) == 0);
    CHECK(chardev_read(chardev, data, sizeof(data)) == 0);
    CHECK(chardev_write_all(chardev, "answer", 6) == 0);
    CHECK(io_read(first, data, sizeof(data)) == 6);
    CHECK(chardev_open_wait(chardev) == 0);
    CHECK(io_read(first, data, sizeof(data)) == 0);
    CHECK(chardev_read(chardev, data, sizeof(data)) == 3 && memcmp(data, "two", 3) == 0);
    err_done(&err);
    CHECK(chardev_remove("s", &err) == -EBUSY);
    CHECK(strcmp(err.message, "Chardev 's' is busy") == 0);
    chardev_detach(chardev);
    CHECK(io_read(second, data, sizeof(data)) == 0);
    err_done(&err);
    CHECK(chardev_remove("s", &err) == 0);
    CHECK(!exists("s"));
    CHECK(chardev_remove("s", &err) == -ENOENT);
    return 0;
}

static void test_socket_clients(void **state)
{
    run(socket_clients);
}

typedef struct Reading {
    Chardev *chardev;
    ssize_t result;
    bool done;
} Reading;

static void read_once(void *arg)
{
    Reading *reading = arg;
    char data[8];

    reading->result = chardev_read(reading->chardev, data, sizeof(data));
    reading->done = true;
}

/* A peer that does not read holds up the writer only; a hang-up ends both sides of our use. */
static int socket_stalled_peer(void *arg)
{
    AUTO_ERROR Error err = ERROR_INIT;
    AUTO_CLOSE int client = -1;
    AUTO_FREE char *much = mem_try_zalloc(4 * MIB, 1);
    Reading reading = {0};
    CoDeadline deadline;
    CoGroup group;

    CHECK(much && add("socket,id=s,path=DIR/s,server=on,wait=off") == 0);
    CHECK(chardev_attach("s", &reading.chardev, &err) == 0);
    CHECK((client = connect_to("s")) >= 0);
    CHECK(chardev_open_wait(reading.chardev) == 0);
    co_group_init(&group);
    co_start(&group, "reader", read_once, &reading);
    co_deadline_begin(&deadline, SECOND_NS / 50);
    CHECK(chardev_write_all(reading.chardev, much, 4 * MIB) == -ETIMEDOUT);
    co_deadline_end(&deadline);
    CHECK(!reading.done);
    chardev_hang_up(reading.chardev);
    co_group_join(&group);
    CHECK(reading.result == 0);
    CHECK(chardev_write_all(reading.chardev, "x", 1) == -ENOTCONN);
    chardev_detach(reading.chardev);
    chardev_remove_all();
    CHECK(!exists("s"));
    return 0;
}

static void test_socket_stalled_peer(void **state)
{
    run(socket_stalled_peer);
}

/* Waiting for the first client can be interrupted, and leaves nothing behind. */
static int socket_wait(void *arg)
{
    CoDeadline deadline;

    co_deadline_begin(&deadline, SECOND_NS / 50);
    CHECK(add("socket,id=s,path=DIR/s,server=on") == -ETIMEDOUT);
    co_deadline_end(&deadline);
    CHECK(!chardev_find("s"));
    CHECK(!exists("s"));
    return 0;
}

static void test_socket_wait(void **state)
{
    run(socket_wait);
}

static int socket_reconnect(void *arg)
{
    AUTO_ERROR Error err = ERROR_INIT;
    Chardev *server, *client;
    char data[8];

    CHECK(add("socket,id=c,path=DIR/s,reconnect-ms=5") == 0);
    CHECK(chardev_attach("c", &client, &err) == 0);
    CHECK(co_sleep_ns(SECOND_NS / 100) == 0);
    CHECK(add("socket,id=s,path=DIR/s,server=on,wait=off") == 0);
    CHECK(chardev_attach("s", &server, &err) == 0);
    for (int i = 0; i < 3; i++) {
        CHECK(chardev_open_wait(client) == 0);
        CHECK(chardev_open_wait(server) == 0);
        CHECK(chardev_write_all(client, "hello", 5) == 0);
        CHECK(chardev_read(server, data, sizeof(data)) == 5);
        chardev_hang_up(server);
        CHECK(chardev_read(client, data, sizeof(data)) == 0);
    }
    chardev_detach(client);
    chardev_detach(server);
    chardev_remove_all();
    CHECK(!chardev_first());
    return 0;
}

static void test_socket_reconnect(void **state)
{
    run(socket_reconnect);
}

/* ---- Other back ends ---- */

static bool file_holds(const char *name, const char *text)
{
    AUTO_FREE char *path = str_printf("%s/%s", dir, name);
    AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    char data[64] = {0};

    return read(fd, data, sizeof(data) - 1) >= 0 && strcmp(data, text) == 0;
}

static int files(void *arg)
{
    AUTO_ERROR Error err = ERROR_INIT;
    AUTO_FREE char *out = str_printf("%s/out", dir), *log = str_printf("%s/log", dir);
    AUTO_FREE char *text = str_printf("file,id=g,path=%s,input-path=%s,append=on,logfile=%s", out, out, log);
    Chardev *chardev;
    CoDeadline deadline;
    char data[8];

    CHECK(add("file,id=f,path=DIR/out") == 0);
    CHECK(chardev_attach("f", &chardev, &err) == 0);
    CHECK(chardev_open_wait(chardev) == 0);
    CHECK(chardev_write_all(chardev, "one", 3) == 0);
    chardev_detach(chardev);
    CHECK(chardev_add_cmdline(text, &err) == 0);
    CHECK(chardev_attach("g", &chardev, &err) == 0);
    CHECK(chardev_open_wait(chardev) == 0);
    CHECK(chardev_write_all(chardev, "two", 3) == 0);
    CHECK(chardev_read(chardev, data, sizeof(data)) == 6);
    CHECK(chardev_read(chardev, data, sizeof(data)) == 0);
    co_deadline_begin(&deadline, SECOND_NS / 100);
    CHECK(chardev_open_wait(chardev) == -ETIMEDOUT);
    co_deadline_end(&deadline);
    chardev_detach(chardev);
    chardev_remove_all();
    CHECK(file_holds("out", "onetwo"));
    CHECK(file_holds("log", "two"));
    unlink(out);
    unlink(log);
    return 0;
}

static void test_files(void **state)
{
    run(files);
}

static int pipes(void *arg)
{
    AUTO_ERROR Error err = ERROR_INIT;
    AUTO_FREE char *in = str_printf("%s/p.in", dir), *out = str_printf("%s/p.out", dir);
    AUTO_CLOSE int in_fd = -1, out_fd = -1;
    Chardev *chardev;
    char data[8];

    CHECK(add("pipe,id=p,path=DIR/p") == -ENOENT);
    CHECK(mkfifo(in, 0600) == 0 && mkfifo(out, 0600) == 0);
    CHECK(add("pipe,id=p,path=DIR/p") == 0);
    CHECK(chardev_attach("p", &chardev, &err) == 0);
    CHECK((in_fd = open(in, O_WRONLY | O_CLOEXEC)) >= 0);
    CHECK((out_fd = open(out, O_RDONLY | O_CLOEXEC)) >= 0);
    CHECK(chardev_open_wait(chardev) == 0);
    CHECK(write(in_fd, "in", 2) == 2);
    CHECK(chardev_read(chardev, data, sizeof(data)) == 2);
    CHECK(chardev_write_all(chardev, "out", 3) == 0);
    CHECK(read(out_fd, data, sizeof(data)) == 3);
    chardev_detach(chardev);
    chardev_remove_all();
    unlink(in);
    unlink(out);
    return 0;
}

static void test_pipes(void **state)
{
    run(pipes);
}

static void open_later(void *arg)
{
    int *fd = arg;

    if (co_sleep_ns(SECOND_NS / 100) < 0)
        return;
    *fd = open(chardev_pty_path(chardev_find("t")), O_RDWR | O_NOCTTY | O_CLOEXEC);
}

static int pty(void *arg)
{
    AUTO_ERROR Error err = ERROR_INIT;
    Chardev *chardev;
    CoGroup group;
    int fd = -1;
    char data[8];

    CHECK(add("pty,id=t,path=DIR/link") == 0);
    CHECK(exists("link"));
    CHECK(chardev_attach("t", &chardev, &err) == 0);
    CHECK(chardev_write_all(chardev, "x", 1) == -ENOTCONN);
    for (int i = 0; i < 2; i++) {
        co_group_init(&group);
        co_start(&group, "opener", open_later, &fd);
        CHECK(chardev_open_wait(chardev) == 0);
        co_group_join(&group);
        CHECK(fd >= 0 && write(fd, "in", 2) == 2);
        CHECK(chardev_read(chardev, data, sizeof(data)) == 2);
        CHECK(chardev_write_all(chardev, "out", 3) == 0);
        CHECK(read(fd, data, sizeof(data)) == 3);
        CHECK(chardev_write_all(chardev, "unread", 6) == 0);
        fd = fd_close(fd);
        CHECK(chardev_read(chardev, data, sizeof(data)) == 0);
    }
    chardev_detach(chardev);
    chardev_remove_all();
    CHECK(!exists("link"));
    return 0;
}

static void test_pty(void **state)
{
    run(pty);
}

static int memory(void *arg)
{
    AUTO_ERROR Error err = ERROR_INIT;
    Chardev *chardev;
    char data[8];

    CHECK(add("ringbuf,id=r,size=100") == -EINVAL);
    CHECK(add("memory,id=r,size=4") == 0);
    CHECK(chardev_attach("r", &chardev, &err) == 0);
    CHECK(chardev_open_wait(chardev) == 0);
    CHECK(chardev_write_all(chardev, "123456", 6) == 0);
    CHECK(ringbuf_read(chardev_ringbuf(chardev), data, sizeof(data)) == 4);
    CHECK(memcmp(data, "3456", 4) == 0);
    chardev_detach(chardev);
    CHECK(add("null,id=n") == 0);
    CHECK(!chardev_ringbuf(chardev_find("n")));
    CHECK(add("null,id=n") == -EEXIST);
    chardev_remove_all();
    return 0;
}

static void test_memory(void **state)
{
    run(memory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ringbuf),
        cmocka_unit_test(test_option_errors),
        cmocka_unit_test(test_option_socket),
        cmocka_unit_test(test_option_rules),
        cmocka_unit_test(test_socket_clients),
        cmocka_unit_test(test_socket_stalled_peer),
        cmocka_unit_test(test_socket_wait),
        cmocka_unit_test(test_socket_reconnect),
        cmocka_unit_test(test_files),
        cmocka_unit_test(test_pipes),
        cmocka_unit_test(test_pty),
        cmocka_unit_test(test_memory),
    };
    int r;

    if (!mkdtemp(dir))
        return 1;
    r = cmocka_run_group_tests(tests, NULL, NULL);
    rmdir(dir);
    return r;
}
