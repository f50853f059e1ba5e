/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One connection of the helper, fed with pieces of any length and with descriptors in any place. The input is
 * a row of pieces: a byte with the length (low five bits) and the number of descriptors (high bits), then the
 * bytes. Commands that come through are answered at once, left unanswered until the client goes, or have
 * their client closed.
 */
#include "pr-helper/closer.h"
#include "pr-helper/options.h"
#include "pr-helper/pass.h"
#include "pr-helper/server-priv.h"

#include "base/endian.h"
#include "base/mem.h"

#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

enum { PIECE_BYTES = 32 };

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static Source *watched;
static Exchange *submitted;
static int null_fd;

/* ---- What the other files of the server would do ---- */

void source_watch(Server *server, Source *source, uint32_t events)
{
    source->events = events;
    watched = source;
}

void dispatch_submit(Server *server, Exchange *exchange)
{
    if (submitted || exchange->device_fd < 0 || exchange->request.data_bytes > PR_DATA_BYTES)
        __builtin_trap();
    list_init(&exchange->link);
    submitted = exchange;
}

void dispatch_abandon(Exchange *take_exchange)
{
    if (take_exchange != submitted)
        __builtin_trap();
    submitted = NULL;
    exchange_free(take_exchange);
}

void audit_complaint(const Options *options, const struct ucred *peer, const char *fmt, ...)
{
}

/* ---- The client ---- */

static void send_piece(int fd, const uint8_t *data, size_t bytes, unsigned fds)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(3 * sizeof(int))];
    } control = {0};
    struct iovec iov = {(void *)data, bytes};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};

    if (fds) {
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE(fds * sizeof(int));
        control.header = (struct cmsghdr){
            .cmsg_len = CMSG_LEN(fds * sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
        for (unsigned i = 0; i < fds; i++)
            memcpy(CMSG_DATA(&control.header) + i * sizeof(int), &null_fd, sizeof(null_fd));
    }
    if (sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
        return;
}

static void read_answer(int fd, const PrReply *expected)
{
    static uint8_t got[PR_WIRE_REPLY_BYTES + PR_DATA_BYTES];
    ssize_t n = recv(fd, got, sizeof(got), MSG_DONTWAIT);

    if (n != (ssize_t)(PR_WIRE_REPLY_BYTES + expected->data_bytes) || get_be32(got) != expected->status ||
        get_be32(got + 4) != expected->data_bytes)
        __builtin_trap();
}

static void answer(Server *server, int fd)
{
    Exchange *exchange = TAKE(submitted);
    PrReply expected;

    if (exchange->request.cdb[0] == PR_IN_OPCODE) {
        pr_reply_good(&exchange->reply);
        exchange->reply.data_bytes = exchange->request.data_bytes;
    } else {
        pr_reply_check(&exchange->reply, SCSI_SENSE_INVALID_OPCODE);
    }
    expected = exchange->reply;
    exchange->device_fd = fd_close(exchange->device_fd); /* as a worker has it now */
    client_answer(exchange->client, exchange);
    read_answer(fd, &expected);
}

/* Lets the server see what there is. */
static void serve(Server *server, int server_fd, int fd, bool answers)
{
    struct pollfd entry = {.fd = server_fd, .events = POLLIN};

    while (server->clients && !submitted && poll(&entry, 1, 0) > 0 && watched->events)
        watched->ready(server, watched, EPOLLIN);
    if (submitted && answers)
        answer(server, fd);
}

static void prepare(Server *server, const Options *options)
{
    *server = (Server){.options = options, .epoll_fd = -1, .now_ns = 1};
    for (unsigned wait = 0; wait < WAIT_COUNT; wait++)
        list_init(&server->waits[wait]);
    list_init(&server->users);
    list_init(&server->queue);
    list_init(&server->workers);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    AUTO_ERROR Error err = ERROR_INIT;

    null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    return null_fd < 0 || closer_start(&err) < 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static const Options options = {.handshake_timeout = 5, .request_timeout = 30};
    const struct ucred peer = {.pid = 1, .uid = 1000, .gid = 1000};
    uint8_t features[PR_WIRE_FEATURES_BYTES];
    Server server;
    int fds[2];

    if (bytes < 1 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) < 0)
        return 0;
    prepare(&server, &options);
    client_new(&server, fds[0], &peer);
    if (recv(fds[1], features, sizeof(features), 0) != sizeof(features))
        __builtin_trap();
    bool answers = data[0] & 1;
    for (size_t at = 1; at < bytes && server.clients;) {
        size_t length = MIN((size_t)(data[at] % PIECE_BYTES), bytes - at - 1);

        if (length)
            send_piece(fds[1], data + at + 1, length, data[at] / PIECE_BYTES % 4);
        at += 1 + length;
        serve(&server, fds[0], fds[1], answers);
    }
    client_free_all(&server);
    if (server.clients || submitted)
        __builtin_trap();
    close(fds[1]);
    return 0;
}
