/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One connection: hello, then command after command (proto/pr-wire.h). Whatever breaks the protocol ends it.
 * Nothing is read beyond the command in hand, so that a client can have only one.
 */
#include "base/endian.h"
#include "base/mem.h"
#include "pr-helper/closer.h"
#include "pr-helper/options.h"
#include "pr-helper/pass.h"
#include "pr-helper/server-priv.h"
#include "pr-helper/trace.h"

#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define NS_PER_SECOND UINT64_C(1000000000)
/* For how long a client is not heard whose user's descriptors cannot be closed. */
#define DEAF_NS (NS_PER_SECOND / 10)

typedef enum State {
    STATE_HELLO, /* features from the client */
    STATE_CDB,
    STATE_LIST,
    STATE_COMMAND, /* queue or worker */
    STATE_ANSWER,
} State;

/* Somebody who has connections. */
struct User {
    List link; /* in Server.users */
    uid_t uid;
    unsigned clients;
};

struct Client {
    Source source;
    List link; /* in Server.waits */
    User *user;
    uint64_t since_ns;
    Server *server;
    struct ucred peer;
    State state;
    Wait wait;
    size_t done; /* bytes of the current part that have come or gone */
    uint8_t hello[PR_WIRE_FEATURES_BYTES];
    uint8_t header[PR_WIRE_REPLY_BYTES];
    Exchange *exchange; /* from the first byte of a command until its answer has been taken */
};

/* ---- Life ---- */

static User *user_ref(Server *server, uid_t uid)
{
    User *user;

    LIST_FOREACH (link, &server->users) {
        user = LIST_ENTRY(link, User, link);
        if (user->uid == uid) {
            user->clients++;
            return user;
        }
    }
    user = mem_new(User);
    *user = (User){.uid = uid, .clients = 1};
    list_append(&server->users, &user->link);
    return user;
}

static void user_unref(User *user)
{
    if (--user->clients)
        return;
    list_remove(&user->link);
    free(user);
}

static void set_wait(Client *client, Wait wait)
{
    list_remove(&client->link);
    list_append(&client->server->waits[wait], &client->link);
    client->wait = wait;
    client->since_ns = client->server->now_ns;
}

void exchange_free(Exchange *exchange)
{
    closer_close(exchange->device_fd, exchange->peer.uid);
    free(exchange);
}

void client_free(Client *client)
{
    Server *server = client->server;

    trace_client_end(client->source.fd, client->peer.pid);
    source_watch(server, &client->source, 0);
    close(client->source.fd);
    list_remove(&client->link);
    server->clients--;
    user_unref(client->user);
    if (client->state == STATE_COMMAND)
        dispatch_abandon(TAKE(client->exchange));
    else if (client->exchange)
        exchange_free(client->exchange);
    free(client);
}

/* ---- Receiving ---- */

/* Takes what there is of `bytes` bytes at data. 1: complete, 0: not yet, -1: the client is to go. */
static int receive(Client *client, void *data, size_t bytes, int *ret_fds)
{
    ssize_t n;

    if (ret_fds) {
        n = pass_recv_all(client->source.fd, (uint8_t *)data + client->done, bytes - client->done, ret_fds);
    } else {
        n = recv(client->source.fd, (uint8_t *)data + client->done, bytes - client->done, 0);
        n = n < 0 ? -errno : n;
    }
    if (n == -EAGAIN || n == -EINTR)
        return 0;
    if (n <= 0)
        return -1;
    client->done += (size_t)n;
    return client->done == bytes;
}

static int take_hello(Client *client)
{
    int r = receive(client, client->hello, sizeof(client->hello), NULL);

    if (r <= 0)
        return r;
    if (get_be32(client->hello) & ~(uint32_t)PR_FEATURES)
        return -1;
    client->state = STATE_CDB;
    set_wait(client, WAIT_IDLE);
    return 0;
}

/* What the kernel knows must do: a file system of the client's own (FUSE) could let us wait for ever. */
static void look_at_device(Exchange *exchange)
{
    struct statx st;

    if (statx(exchange->device_fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, &st) < 0)
        return;
    exchange->device = makedev(st.stx_rdev_major, st.stx_rdev_minor);
    exchange->is_device = S_ISBLK(st.stx_mode) || S_ISCHR(st.stx_mode);
}

static void submit(Client *client)
{
    look_at_device(client->exchange);
    client->state = STATE_COMMAND;
    set_wait(client, WAIT_COMMAND);
    trace_client_command(client->source.fd, client->peer.pid, client->exchange->request.cdb[0],
        pr_cdb_action(client->exchange->request.cdb), client->exchange->request.data_bytes);
    dispatch_submit(client->server, client->exchange);
}

static int check_cdb(Client *client)
{
    const Options *options = client->server->options;
    Exchange *exchange = client->exchange;

    switch (pr_wire_request(exchange->request.cdb, &exchange->request.data_bytes)) {
    case PR_WIRE_BAD_OPCODE:
        audit_complaint(options, &client->peer, "Invalid CDB, closing socket.");
        return -1;
    case PR_WIRE_TOO_LONG:
        audit_complaint(options, &client->peer, "Data of %u bytes is more than %d, closing socket.",
            exchange->request.data_bytes, PR_DATA_BYTES);
        return -1;
    case PR_WIRE_READY:
    case PR_WIRE_LIST:
        break;
    }
    if (exchange->device_fd < 0) {
        audit_complaint(options, &client->peer, "No file descriptor in request.");
        return -1;
    }
    return 0;
}

/* Stops listening to a client for a while; the time limit of a request ends it if it does not get better. */
static void turn_deaf(Client *client)
{
    Server *server = client->server;

    source_watch(server, &client->source, 0);
    if (client->wait == WAIT_IDLE)
        set_wait(client, WAIT_REQUEST);
    if (!server->hear_ns)
        server->hear_ns = server->now_ns + DEAF_NS;
}

static void hear_again(Server *server)
{
    server->hear_ns = 0;
    LIST_FOREACH (link, &server->waits[WAIT_REQUEST]) {
        Client *client = LIST_ENTRY(link, Client, link);

        if (!client->source.events)
            source_watch(server, &client->source, EPOLLIN);
    }
}

static int take_cdb(Client *client)
{
    Exchange *exchange = client->exchange;
    int fds[PASS_FDS], r;

    if (closer_is_full(client->peer.uid)) {
        turn_deaf(client);
        return 0;
    }
    if (!exchange) {
        exchange = mem_new(Exchange);
        *exchange = (Exchange){.client = client, .peer = client->peer, .device_fd = -1};
        client->exchange = exchange;
    }
    r = receive(client, exchange->request.cdb, sizeof(exchange->request.cdb), fds);
    for (unsigned i = 0; i < PASS_FDS; i++) {
        if (fds[i] >= 0 && exchange->device_fd >= 0)
            r = -1;
        if (exchange->device_fd < 0)
            exchange->device_fd = fds[i];
        else
            closer_close(fds[i], client->peer.uid);
    }
    if (client->done && client->wait == WAIT_IDLE)
        set_wait(client, WAIT_REQUEST);
    if (r <= 0)
        return r;
    if (check_cdb(client) < 0)
        return -1;
    client->state = STATE_LIST;
    return 1;
}

static int take_list(Client *client)
{
    PrRequest *request = &client->exchange->request;
    size_t bytes = request->cdb[0] == PR_OUT_OPCODE ? request->data_bytes : 0;
    int r = bytes ? receive(client, request->data, bytes, NULL) : 1;

    if (r > 0)
        submit(client);
    return r < 0 ? -1 : 0;
}

/* ---- Answering ---- */

static int send_answer(Client *client)
{
    const PrReply *reply = &client->exchange->reply;
    size_t total = sizeof(client->header) + reply->data_bytes;

    while (client->done < total) {
        bool in_header = client->done < sizeof(client->header);
        size_t data_done = in_header ? 0 : client->done - sizeof(client->header);
        struct iovec iov[] = {
            {client->header + client->done, in_header ? sizeof(client->header) - client->done : 0},
            {(uint8_t *)reply->data + data_done, reply->data_bytes - data_done},
        };
        struct msghdr message = {.msg_iov = in_header ? iov : iov + 1, .msg_iovlen = in_header ? 2 : 1};
        ssize_t n = sendmsg(client->source.fd, &message, MSG_NOSIGNAL);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return errno == EAGAIN ? 0 : -1;
        client->done += (size_t)n;
    }
    exchange_free(TAKE(client->exchange));
    client->state = STATE_CDB;
    client->done = 0;
    set_wait(client, WAIT_IDLE);
    source_watch(client->server, &client->source, EPOLLIN);
    return client->server->stopping ? -1 : 0;
}

void client_answer(Client *client, Exchange *take_exchange)
{
    client->exchange = take_exchange;
    client->state = STATE_ANSWER;
    client->done = 0;
    pr_wire_reply_put(client->header, &take_exchange->reply);
    set_wait(client, WAIT_REQUEST);
    if (send_answer(client) < 0)
        client_free(client);
    else if (client->state == STATE_ANSWER)
        source_watch(client->server, &client->source, EPOLLOUT);
}

/* ---- Events ---- */

/* Something happens during a command. A client that half-closes its connection still gets the answer, and one
 * that sends its next command early waits. */
static int interrupt(Client *client, uint32_t events)
{
    if (events & (EPOLLHUP | EPOLLERR))
        return -1;
    source_watch(client->server, &client->source, EPOLLHUP);
    return 0;
}

/* One step of the conversation. 1: go on at once, 0: wait, -1: the client is to go. */
static int step(Client *client, uint32_t events)
{
    State before = client->state;
    int r;

    switch (before) {
    case STATE_HELLO:
        r = take_hello(client);
        break;
    case STATE_CDB:
        r = take_cdb(client);
        break;
    case STATE_LIST:
        r = take_list(client);
        break;
    case STATE_ANSWER:
        r = send_answer(client);
        break;
    case STATE_COMMAND:
    default:
        return interrupt(client, events);
    }
    if (r >= 0 && client->state != before)
        client->done = 0;
    return r;
}

static void client_ready(Server *server, Source *source, uint32_t events)
{
    Client *client = CONTAINER_OF(source, Client, source);
    int r;

    do
        r = step(client, events);
    while (r > 0);
    if (r < 0)
        client_free(client);
}

void client_new(Server *server, int take_fd, const struct ucred *peer)
{
    uint8_t features[PR_WIRE_FEATURES_BYTES];
    Client *client = mem_new(Client);

    *client = (Client){
        .source = {.fd = take_fd, .ready = client_ready},
        .user = user_ref(server, peer->uid),
        .server = server,
        .peer = *peer,
    };
    list_init(&client->link);
    server->clients++;
    set_wait(client, WAIT_HANDSHAKE);
    source_watch(server, &client->source, EPOLLIN);
    trace_client_new(take_fd, peer->pid, peer->uid);
    /* A new socket always has room for this. */
    put_be32(features, PR_FEATURES);
    if (send(take_fd, features, sizeof(features), MSG_NOSIGNAL) != sizeof(features))
        client_free(client);
}

/* ---- All clients ---- */

static uint64_t limit_ns(const Options *options, Wait wait)
{
    const unsigned seconds[WAIT_COUNT] = {
        [WAIT_HANDSHAKE] = options->handshake_timeout,
        [WAIT_IDLE] = options->idle_timeout,
        [WAIT_REQUEST] = options->request_timeout,
    };

    return seconds[wait] * NS_PER_SECOND;
}

uint64_t client_expire(Server *server)
{
    static const char *const what[WAIT_COUNT] = {
        "says nothing", "is idle", "has sent half a request or does not take the answer", ""};
    uint64_t next;

    if (server->hear_ns && server->now_ns >= server->hear_ns)
        hear_again(server);
    next = server->hear_ns ? server->hear_ns : UINT64_MAX;
    for (unsigned wait = 0; wait < WAIT_COUNT; wait++) {
        uint64_t limit = limit_ns(server->options, wait);

        if (!limit)
            continue;
        while (!list_empty(&server->waits[wait])) {
            Client *client = LIST_ENTRY(server->waits[wait].next, Client, link);

            if (client->since_ns + limit > server->now_ns) {
                next = MIN(next, client->since_ns + limit);
                break;
            }
            audit_complaint(server->options, &client->peer, "The client %s, closing socket.", what[wait]);
            client_free(client);
        }
    }
    return next;
}

/* Whether nothing is lost with the client: its command, if any, has not begun. */
static bool is_idle(const Client *client)
{
    if (client->state == STATE_COMMAND)
        return !list_empty(&client->exchange->link);
    return client->state != STATE_ANSWER;
}

Client *client_to_evict(const Server *server)
{
    Client *found = NULL;

    /* In the order of what is lost with a client; each list is in the order of time. */
    for (unsigned wait = 0; wait < WAIT_COUNT; wait++) {
        LIST_FOREACH (link, &server->waits[wait]) {
            Client *client = LIST_ENTRY(link, Client, link);

            if (is_idle(client) && (!found || client->user->clients > found->user->clients))
                found = client;
        }
    }
    return found;
}

static void free_if(Server *server, bool (*condition)(const Client *client))
{
    for (unsigned wait = 0; wait < WAIT_COUNT; wait++) {
        LIST_FOREACH_SAFE (link, &server->waits[wait]) {
            Client *client = LIST_ENTRY(link, Client, link);

            if (condition(client))
                client_free(client);
        }
    }
}

static bool is_any(const Client *client)
{
    return true;
}

void client_free_idle(Server *server)
{
    free_if(server, is_idle);
}

void client_free_all(Server *server)
{
    free_if(server, is_any);
}
