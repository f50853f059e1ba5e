/* SPDX-License-Identifier: Apache-2.0 */
/* The client against helpers in a thread: good, slow, dead and mad ones. */
#include "pr-client/pr-client-priv.h"

#include "base/endian.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define LONG_MS 60000

/* ---- A helper ---- */

typedef struct Server {
    char folder[32], path[64];
    int listen_fd;
    pthread_t thread;
    void (*talk)(struct Server *server, int fd);
    void (*on_command)(struct Server *server);
    granary_pr *client;
    pthread_t main_thread;
    uint32_t features;
    bool bytewise;
    /* What a test looks at. */
    atomic_int accepted;
    uint32_t asked;
    uint8_t cdb[SCSI_CDB_BYTES];
    uint8_t list[PR_DATA_BYTES];
    struct stat disk;
    sem_t heard; /* posted for each command */
    sem_t go;    /* for on_command to wait for */
    uint8_t reply[PR_WIRE_REPLY_BYTES + PR_DATA_BYTES];
    size_t reply_bytes;
} Server;

static bool receive(int fd, void *data, size_t bytes, struct stat *ret_disk)
{
    for (size_t done = 0; done < bytes;) {
        char control[CMSG_SPACE(sizeof(int))];
        struct iovec iov = {(uint8_t *)data + done, bytes - done};
        struct msghdr message = {
            .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
        ssize_t n = recvmsg(fd, &message, 0);
        struct cmsghdr *header;
        int disk_fd;

        if (n <= 0)
            return false;
        done += (size_t)n;
        header = CMSG_FIRSTHDR(&message);
        if (!header)
            continue;
        memcpy(&disk_fd, CMSG_DATA(header), sizeof(disk_fd));
        if (ret_disk)
            (void)!fstat(disk_fd, ret_disk);
        close(disk_fd);
    }
    return true;
}

static void transmit(const Server *server, int fd, const void *data, size_t bytes)
{
    size_t piece = server->bytewise ? 1 : bytes;

    for (size_t done = 0; done < bytes; done += piece)
        if (send(fd, (const uint8_t *)data + done, piece, MSG_NOSIGNAL) < 0)
            return;
}

static bool hello(Server *server, int fd)
{
    uint8_t word[4];

    put_be32(word, server->features);
    transmit(server, fd, word, sizeof(word));
    if (!receive(fd, word, sizeof(word), NULL))
        return false;
    server->asked = get_be32(word);
    return true;
}

static bool command(Server *server, int fd)
{
    if (!receive(fd, server->cdb, sizeof(server->cdb), &server->disk))
        return false;
    if (server->cdb[0] == PR_OUT_OPCODE && !receive(fd, server->list, pr_cdb_data_bytes(server->cdb), NULL))
        return false;
    sem_post(&server->heard);
    if (server->on_command)
        server->on_command(server);
    return true;
}

static void wait_until_gone(int fd)
{
    uint8_t byte;

    while (recv(fd, &byte, 1, 0) > 0)
        ;
}

static void talk_well(Server *server, int fd)
{
    if (!hello(server, fd))
        return;
    while (command(server, fd))
        transmit(server, fd, server->reply, server->reply_bytes);
}

static void talk_once(Server *server, int fd)
{
    if (hello(server, fd) && command(server, fd))
        transmit(server, fd, server->reply, server->reply_bytes);
}

static void talk_never(Server *server, int fd)
{
    wait_until_gone(fd);
}

static void listen_only(Server *server, int fd)
{
    if (hello(server, fd) && command(server, fd))
        wait_until_gone(fd);
}

/* The first connection listens only, the others are good. */
static void talk_later(Server *server, int fd)
{
    if (server->accepted == 1)
        listen_only(server, fd);
    else
        talk_well(server, fd);
}

/* The first connection gets no hello, the others are good. */
static void greet_later(Server *server, int fd)
{
    if (server->accepted == 1)
        wait_until_gone(fd);
    else
        talk_well(server, fd);
}

static void talk_too_early(Server *server, int fd)
{
    uint8_t bytes[8] = {0};

    transmit(server, fd, bytes, sizeof(bytes));
    wait_until_gone(fd);
}

static void close_at_once(Server *server, int fd)
{
}

static void close_after_hello(Server *server, int fd)
{
    (void)hello(server, fd);
}

static void close_after_cdb(Server *server, int fd)
{
    uint8_t cdb[SCSI_CDB_BYTES];

    if (hello(server, fd))
        (void)receive(fd, cdb, sizeof(cdb), NULL);
}

static void close_within_reply(Server *server, int fd)
{
    if (hello(server, fd) && command(server, fd))
        transmit(server, fd, server->reply, server->reply_bytes - 1);
}

static void *serve(void *opaque)
{
    Server *server = opaque;
    int fd;

    while ((fd = accept(server->listen_fd, NULL, NULL)) >= 0) {
        server->accepted++;
        server->talk(server, fd);
        close(fd);
    }
    return NULL;
}

static void listen_at(Server *server, int backlog)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    strcpy(server->folder, "/tmp/gr-XXXXXX");
    assert_non_null(mkdtemp(server->folder));
    snprintf(server->path, sizeof(server->path), "%s/s", server->folder);
    strcpy(address.sun_path, server->path);
    server->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(server->listen_fd, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(listen(server->listen_fd, backlog), 0);
    server->main_thread = pthread_self();
    sem_init(&server->heard, 0, 0);
    sem_init(&server->go, 0, 0);
}

static void set_reply(Server *server, uint32_t status, uint32_t size, size_t payload_bytes)
{
    memset(server->reply, 0, PR_WIRE_REPLY_BYTES);
    put_be32(server->reply, status);
    put_be32(server->reply + 4, size);
    if (status == SCSI_CHECK_CONDITION)
        scsi_sense_put(server->reply + 8, SCSI_SENSE_INVALID_OPCODE);
    for (size_t i = 0; i < payload_bytes; i++)
        server->reply[PR_WIRE_REPLY_BYTES + i] = (uint8_t)(i + 1);
    server->reply_bytes = PR_WIRE_REPLY_BYTES + payload_bytes;
}

static Server *begin(void (*talk)(Server *server, int fd))
{
    Server *server = calloc(1, sizeof(*server));

    listen_at(server, 16);
    server->talk = talk;
    set_reply(server, SCSI_GOOD, 0, 0);
    server->client = granary_pr_new(server->path);
    assert_non_null(server->client);
    assert_int_equal(pthread_create(&server->thread, NULL, serve, server), 0);
    return server;
}

static void end(Server *server)
{
    granary_pr_free(server->client);
    shutdown(server->listen_fd, SHUT_RDWR);
    pthread_join(server->thread, NULL);
    close(server->listen_fd);
    unlink(server->path);
    rmdir(server->folder);
    sem_destroy(&server->heard);
    sem_destroy(&server->go);
    free(server);
}

/* ---- A client ---- */

static int open_disk(void)
{
    int fd = open("/dev/null", O_RDWR | O_CLOEXEC);

    assert_true(fd >= 0);
    return fd;
}

static int read_keys(granary_pr *pr, int timeout_ms, uint8_t data[64], granary_pr_result *result)
{
    uint8_t cdb[SCSI_CDB_BYTES];
    int disk_fd = open_disk();
    int r;

    pr_in_cdb_put(cdb, PR_IN_READ_KEYS, 64);
    r = granary_pr_execute(pr, disk_fd, cdb, sizeof(cdb), data, 64, timeout_ms, result);
    close(disk_fd);
    return r;
}

static int read_simply(Server *server, int timeout_ms)
{
    granary_pr_result result;
    uint8_t data[64];

    return read_keys(server->client, timeout_ms, data, &result);
}

static int clear(Server *server)
{
    uint8_t cdb[SCSI_CDB_BYTES], list[PR_OUT_LIST_BYTES] = {0};
    granary_pr_result result;
    int disk_fd = open_disk();
    int r;

    pr_out_cdb_put(cdb, PR_OUT_CLEAR, 0, sizeof(list));
    r = granary_pr_execute(server->client, disk_fd, cdb, PR_CDB_BYTES, list, sizeof(list), LONG_MS, &result);
    close(disk_fd);
    return r;
}

/* Waits until the client's descriptor is readable. */
static void wait_client(const Server *server)
{
    struct pollfd poll_fd = {.fd = granary_pr_fd(server->client), .events = POLLIN};

    assert_int_equal(poll(&poll_fd, 1, LONG_MS), 1);
}

static bool client_is_quiet(const Server *server)
{
    struct pollfd poll_fd = {.fd = granary_pr_fd(server->client), .events = POLLIN};

    return poll(&poll_fd, 1, 0) == 0;
}

/* ---- Tests ---- */

static void in(void **state)
{
    Server *server = begin(talk_well);
    struct stat null;
    granary_pr_result result = {.status = 99};
    uint8_t data[64] = {0};

    set_reply(server, SCSI_GOOD, 16, 16);
    server->bytewise = true;
    server->features = 0xfffffffe;
    assert_int_equal(granary_pr_features(server->client), 0);
    assert_int_equal(read_keys(server->client, LONG_MS, data, &result), 0);
    assert_int_equal(result.status, SCSI_GOOD);
    assert_int_equal(result.data_bytes, 16);
    assert_int_equal(data[0], 1);
    assert_int_equal(data[15], 16);
    assert_int_equal(data[16], 0);
    assert_int_equal(granary_pr_features(server->client), 0xfffffffe);
    assert_int_equal(server->asked, 0); /* nothing of that is known here */
    assert_int_equal(server->cdb[0], PR_IN_OPCODE);
    stat("/dev/null", &null);
    assert_int_equal(server->disk.st_ino, null.st_ino);
    assert_true(granary_pr_was_sent(server->client));
    assert_true(client_is_quiet(server));
    end(server);
}

static void out(void **state)
{
    Server *server = begin(talk_well);
    uint8_t cdb[SCSI_CDB_BYTES], list[PR_OUT_LIST_BYTES];
    granary_pr_result result;
    ScsiSense sense;

    set_reply(server, SCSI_CHECK_CONDITION, 0, 0);
    pr_out_cdb_put(cdb, PR_OUT_RESERVE, 5, sizeof(list));
    pr_out_list_put(list, &(PrOutList){.key = 0x1234});
    assert_int_equal(
        granary_pr_execute(server->client, STDIN_FILENO, cdb, PR_CDB_BYTES, list, sizeof(list), -1, &result),
        0);
    assert_memory_equal(server->list, list, sizeof(list));
    assert_memory_equal(server->cdb, cdb, sizeof(cdb));
    assert_int_equal(result.status, SCSI_CHECK_CONDITION);
    assert_true(scsi_sense_get(result.sense, sizeof(result.sense), &sense));
    assert_int_equal(sense.asc, 0x20);
    assert_int_equal(clear(server), 0);
    assert_int_equal(server->accepted, 1);
    end(server);
}

static void wait_to_go(Server *server)
{
    sem_wait(&server->go);
}

static void event_loop(void **state)
{
    Server *server = begin(talk_once);
    uint8_t cdb[SCSI_CDB_BYTES], data[64];
    granary_pr_result result;
    int disk_fd = open_disk();
    int r;

    set_reply(server, SCSI_GOOD, 8, 8);
    server->bytewise = true;
    server->on_command = wait_to_go; /* until dispatch has said that it must wait */
    pr_in_cdb_put(cdb, PR_IN_READ_KEYS, 64);
    assert_int_equal(
        granary_pr_start(server->client, disk_fd, cdb, sizeof(cdb), data, sizeof(data), LONG_MS, &result), 0);
    assert_int_equal(
        granary_pr_start(server->client, disk_fd, cdb, sizeof(cdb), data, sizeof(data), LONG_MS, &result),
        -EBUSY);
    while ((r = granary_pr_dispatch(server->client)) == GRANARY_PR_AGAIN) {
        sem_post(&server->go);
        wait_client(server);
    }
    assert_int_equal(r, 0);
    assert_int_equal(result.data_bytes, 8);
    /* The helper goes while nothing is going on. */
    wait_client(server);
    assert_int_equal(granary_pr_dispatch(server->client), -ENOTCONN);
    assert_false(granary_pr_is_connected(server->client));
    assert_true(client_is_quiet(server));
    assert_int_equal(granary_pr_connect(server->client, LONG_MS), 0);
    assert_true(granary_pr_is_connected(server->client));
    assert_int_equal(granary_pr_connect(server->client, LONG_MS), 0);
    assert_int_equal(server->accepted, 2);
    granary_pr_disconnect(server->client);
    assert_false(granary_pr_is_connected(server->client));
    assert_true(client_is_quiet(server));
    close(disk_fd);
    end(server);
}

static void *cancel_when_heard(void *opaque)
{
    Server *server = opaque;

    while (sem_wait(&server->heard) < 0)
        ;
    granary_pr_cancel(server->client);
    return NULL;
}

static void cancel_from_thread(void **state)
{
    Server *server = begin(talk_later);
    pthread_t thread;

    pthread_create(&thread, NULL, cancel_when_heard, server);
    assert_int_equal(read_simply(server, -1), -ECANCELED);
    assert_true(granary_pr_was_sent(server->client));
    pthread_join(thread, NULL);
    assert_int_equal(read_simply(server, LONG_MS), 0);
    assert_int_equal(server->accepted, 2);
    end(server);
}

static Server *signalled;

static void on_signal(int number)
{
    granary_pr_cancel(signalled->client);
}

static void raise_signal(Server *server)
{
    if (server->accepted == 1)
        pthread_kill(server->main_thread, SIGUSR1);
}

static void cancel_from_signal(void **state)
{
    Server *server = begin(talk_later);

    server->on_command = raise_signal;
    signalled = server;
    signal(SIGUSR1, on_signal);
    assert_int_equal(read_simply(server, -1), -ECANCELED);
    signal(SIGUSR1, SIG_DFL);
    assert_int_equal(read_simply(server, LONG_MS), 0);
    end(server);
}

static void cancel_nothing(void **state)
{
    Server *server = begin(talk_well);

    granary_pr_cancel(server->client);
    assert_int_equal(read_simply(server, LONG_MS), 0);
    granary_pr_cancel(server->client);
    assert_true(client_is_quiet(server));
    /* As if it had come a moment after the end of the command. */
    eventfd_write(server->client->cancel_fd, 1);
    wait_client(server);
    assert_true(granary_pr_is_connected(server->client));
    assert_true(client_is_quiet(server));
    eventfd_write(server->client->cancel_fd, 1);
    assert_int_equal(read_simply(server, LONG_MS), 0);
    assert_int_equal(server->accepted, 1);
    end(server);
}

static void disconnect_in_flight(void **state)
{
    Server *server = begin(greet_later);

    assert_int_equal(granary_pr_start(server->client, -1, NULL, 0, NULL, 0, -1, NULL), 0);
    assert_int_equal(granary_pr_dispatch(server->client), GRANARY_PR_AGAIN);
    granary_pr_disconnect(server->client);
    assert_int_equal(granary_pr_dispatch(server->client), -ENOTCONN);
    assert_int_equal(read_simply(server, LONG_MS), 0);
    end(server);
}

static void deadlines(void **state)
{
    Server *server = begin(talk_never);

    assert_int_equal(granary_pr_connect(server->client, 0), -ETIMEDOUT);
    assert_int_equal(read_simply(server, 20), -ETIMEDOUT);
    assert_false(granary_pr_was_sent(server->client));
    end(server);

    server = begin(talk_later);
    assert_int_equal(read_simply(server, 200), -ETIMEDOUT);
    assert_true(granary_pr_was_sent(server->client));
    assert_false(granary_pr_is_connected(server->client));
    assert_int_equal(read_simply(server, LONG_MS), 0);
    assert_true(client_is_quiet(server));
    end(server);
}

static void full_backlog(void **state)
{
    Server *server = calloc(1, sizeof(*server));
    struct timespec before, after;
    int queued[8], fd;
    unsigned count = 0;

    listen_at(server, 0);
    server->client = granary_pr_new(server->path);
    server->talk = talk_well;
    set_reply(server, SCSI_GOOD, 0, 0);
    for (;; count++) {
        queued[count] = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (connect(queued[count], (struct sockaddr *)&server->client->address,
                server->client->address_bytes) < 0)
            break;
        assert_true(count < ARRAY_SIZE(queued) - 1);
    }
    assert_int_equal(errno, EAGAIN);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
    assert_int_equal(read_simply(server, 300), -ETIMEDOUT);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
    assert_false(granary_pr_was_sent(server->client));
    assert_true((after.tv_sec - before.tv_sec) * 1000 + (after.tv_nsec - before.tv_nsec) / 1000000 < 100);

    assert_int_equal(granary_pr_start(server->client, -1, NULL, 0, NULL, 0, LONG_MS, NULL), 0);
    assert_int_equal(granary_pr_dispatch(server->client), GRANARY_PR_AGAIN);
    for (unsigned i = 0; i <= count; i++)
        close(queued[i]);
    for (unsigned i = 0; i < count; i++) {
        fd = accept(server->listen_fd, NULL, NULL);
        assert_true(fd >= 0);
        close(fd);
    }
    pthread_create(&server->thread, NULL, serve, server);
    while ((fd = granary_pr_dispatch(server->client)) == GRANARY_PR_AGAIN)
        wait_client(server);
    assert_int_equal(fd, 0);
    assert_true(granary_pr_is_connected(server->client));
    end(server);
}

static void idle_death(void **state)
{
    Server *server = begin(talk_once);

    for (int i = 1; i <= 3; i++) {
        assert_int_equal(clear(server), 0);
        assert_int_equal(server->accepted, i);
        wait_client(server); /* the helper has closed */
        if (i == 2)
            assert_false(granary_pr_is_connected(server->client));
    }
    end(server);
}

/* Whether what went wrong happened before the command was sent, and that nothing is sent twice. */
static void deaths(void **state)
{
    static const struct {
        void (*talk)(Server *server, int fd);
        int error;
        bool sent;
    } cases[] = {
        {close_at_once, -ECONNREFUSED, false},
        {close_after_cdb, -ECONNRESET, true},
        {close_within_reply, -ECONNRESET, true},
        {talk_too_early, -EPROTO, false},
    };

    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        Server *server = begin(cases[i].talk);

        assert_int_equal(clear(server), cases[i].error);
        assert_int_equal(granary_pr_was_sent(server->client), cases[i].sent);
        assert_false(granary_pr_is_connected(server->client));
        assert_int_equal(server->accepted, 1);
        end(server);
    }
}

/* Whether the CDB has gone out before the helper closes is a matter of luck; a second try is none. */
static void death_after_hello(void **state)
{
    Server *server = begin(close_after_hello);
    int r = clear(server);

    assert_int_equal(r, granary_pr_was_sent(server->client) ? -ECONNRESET : -ECONNREFUSED);
    assert_int_equal(server->accepted, 1);
    end(server);
}

static void nonsense(void **state)
{
    static const struct {
        uint32_t status, size;
        size_t payload_bytes;
        bool out;
    } cases[] = {
        {0x100, 0, 0, false},
        {0xffffffff, 0, 0, true},
        {SCSI_GOOD, 65, 65, false},
        {SCSI_GOOD, 0xffffffff, 100, false},
        {SCSI_GOOD, 1, 1, true},
        {SCSI_CHECK_CONDITION, 8, 8, false},
        {SCSI_RESERVATION_CONFLICT, 8, 8, false},
    };

    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        Server *server = begin(talk_well);

        set_reply(server, cases[i].status, cases[i].size, cases[i].payload_bytes);
        assert_int_equal(cases[i].out ? clear(server) : read_simply(server, LONG_MS), -EPROTO);
        assert_true(granary_pr_was_sent(server->client));
        assert_false(granary_pr_is_connected(server->client));
        set_reply(server, SCSI_GOOD, 0, 0);
        assert_int_equal(clear(server), 0);
        end(server);
    }
}

/* More than the header says is found before the next command, which goes over a new connection. */
static void trailing_bytes(void **state)
{
    Server *server = begin(talk_well);

    set_reply(server, SCSI_GOOD, 8, 9);
    assert_int_equal(read_simply(server, LONG_MS), 0);
    wait_client(server);
    assert_int_equal(read_simply(server, LONG_MS), 0);
    assert_int_equal(server->accepted, 2);
    wait_client(server);
    assert_false(granary_pr_is_connected(server->client));
    end(server);
}

static void cleanup(void **state)
{
    Server *server = begin(talk_well);
    granary_pr_result result = {.status = 99};
    int disk_fd = open_disk();

    assert_int_equal(granary_pr_cleanup(server->client, disk_fd, LONG_MS, &result), -EOPNOTSUPP);
    assert_false(granary_pr_was_sent(server->client));
    assert_true(granary_pr_is_connected(server->client));
    granary_pr_disconnect(server->client);
    server->features = 0x80000000 | PR_FEATURE_CLEANUP;
    assert_int_equal(granary_pr_cleanup(server->client, disk_fd, LONG_MS, &result), 0);
    assert_int_equal(server->asked, PR_FEATURE_CLEANUP);
    assert_int_equal(granary_pr_features(server->client), 0x80000001);
    assert_int_equal(result.status, SCSI_GOOD);
    assert_int_equal(server->cdb[0], PR_WIRE_CLEANUP_OPCODE);
    for (unsigned i = 1; i < sizeof(server->cdb); i++)
        assert_int_equal(server->cdb[i], 0);
    close(disk_fd);
    end(server);
}

static void forks(void **state)
{
    Server *server = begin(talk_well);
    granary_pr *pr = server->client;
    const int *fds[] = {&pr->poll_fd, &pr->timer_fd, &pr->cancel_fd, &pr->socket_fd};
    pid_t child;
    int status;

    assert_int_equal(clear(server), 0);
    for (unsigned i = 0; i < ARRAY_SIZE(fds); i++)
        assert_true(fcntl(*fds[i], F_GETFD) & FD_CLOEXEC);
    child = fork();
    if (child == 0) {
        bool ok = granary_pr_connect(server->client, 1000) == -EINVAL;

        granary_pr_cancel(server->client);
        granary_pr_disconnect(server->client);
        granary_pr_free(server->client);
        _exit(ok ? 0 : 1);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_true(granary_pr_is_connected(server->client));
    assert_int_equal(clear(server), 0);
    assert_int_equal(server->accepted, 1);

    /* A child that keeps its copy does not keep the connection. */
    child = fork();
    if (child == 0) {
        pause();
        _exit(0);
    }
    granary_pr_disconnect(server->client);
    assert_true(client_is_quiet(server));
    assert_int_equal(clear(server), 0);
    assert_int_equal(server->accepted, 2);
    kill(child, SIGKILL);
    assert_int_equal(waitpid(child, &status, 0), child);
    end(server);
}

static void bad_arguments(void **state)
{
    Server *server = begin(talk_well);
    granary_pr *pr;
    uint8_t cdb[32] = {PR_IN_OPCODE}, data[64];
    granary_pr_result result;
    char path[110];

    memset(path, 'x', sizeof(path));
    path[108] = '\0';
    assert_null(granary_pr_new(path));
    assert_int_equal(errno, ENAMETOOLONG);
    assert_null(granary_pr_new(""));
    assert_int_equal(errno, EINVAL);
    assert_null(granary_pr_new(NULL));
    path[107] = '\0';
    pr = granary_pr_new(path);
    assert_non_null(pr);
    assert_int_equal(granary_pr_connect(pr, LONG_MS), -ENOENT);
    granary_pr_free(pr);
    granary_pr_free(NULL);
    pr = server->client;
    put_be16(cdb + 7, 65);
    assert_int_equal(granary_pr_execute(pr, 0, cdb, 16, data, 64, -1, &result), -EINVAL); /* no room */
    assert_int_equal(granary_pr_execute(pr, 0, cdb, 16, NULL, 65, -1, &result), -EINVAL);
    put_be16(cdb + 7, 8193);
    assert_int_equal(granary_pr_execute(pr, 0, cdb, 16, data, 9000, -1, &result), -EINVAL);
    put_be16(cdb + 7, 64);
    assert_int_equal(granary_pr_execute(pr, 0, cdb, 9, data, 64, -1, &result), -EINVAL);
    assert_int_equal(granary_pr_execute(pr, 0, cdb, 17, data, 64, -1, &result), -EINVAL);
    assert_int_equal(granary_pr_execute(pr, 0, NULL, 16, data, 64, -1, &result), -EINVAL);
    assert_int_equal(granary_pr_execute(pr, -1, cdb, 16, data, 64, -1, &result), -EBADF);
    cdb[0] = PR_WIRE_CLEANUP_OPCODE;
    assert_int_equal(granary_pr_execute(pr, 0, cdb, 16, data, 64, -1, &result), -EINVAL);
    assert_int_equal(server->accepted, 0);

    /* A descriptor that is none shows when it is sent; the connection is as good as before. */
    cdb[0] = PR_IN_OPCODE;
    assert_int_equal(granary_pr_execute(pr, 1000000, cdb, 16, data, 64, -1, &result), -EBADF);
    assert_false(granary_pr_was_sent(pr));
    assert_int_equal(granary_pr_execute(pr, 0, cdb, 16, data, 64, -1, &result), 0);
    assert_int_equal(server->accepted, 1);
    end(server);
}

static void abstract_socket(void **state)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    socklen_t bytes = sizeof(address);
    int listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    char path[128];
    granary_pr *pr;

    assert_int_equal(bind(listen_fd, (struct sockaddr *)&address, sizeof(address.sun_family)), 0);
    assert_int_equal(listen(listen_fd, 1), 0);
    assert_int_equal(getsockname(listen_fd, (struct sockaddr *)&address, &bytes), 0);
    snprintf(path, sizeof(path), "@%s", address.sun_path + 1);
    pr = granary_pr_new(path);
    assert_int_equal(granary_pr_start(pr, -1, NULL, 0, NULL, 0, -1, NULL), 0);
    assert_int_equal(granary_pr_dispatch(pr), GRANARY_PR_AGAIN); /* connected, waits for the hello */
    close(listen_fd);
    assert_int_equal(granary_pr_dispatch(pr), -ECONNREFUSED);
    granary_pr_free(pr);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(in),
        cmocka_unit_test(out),
        cmocka_unit_test(event_loop),
        cmocka_unit_test(cancel_from_thread),
        cmocka_unit_test(cancel_from_signal),
        cmocka_unit_test(cancel_nothing),
        cmocka_unit_test(disconnect_in_flight),
        cmocka_unit_test(deadlines),
        cmocka_unit_test(full_backlog),
        cmocka_unit_test(idle_death),
        cmocka_unit_test(deaths),
        cmocka_unit_test(death_after_hello),
        cmocka_unit_test(nonsense),
        cmocka_unit_test(trailing_bytes),
        cmocka_unit_test(cleanup),
        cmocka_unit_test(forks),
        cmocka_unit_test(bad_arguments),
        cmocka_unit_test(abstract_socket),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
