/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of the server share. One thread (but see closer.h), one epoll set; each event is fetched
 * alone, so that an object may be freed by any handler.
 *
 * A Client is a connection and has at most one Exchange: a command on its way. An Exchange waits in the queue
 * until the limits allow it and a Worker is free, is then the worker's, and outlives a client that goes away
 * meanwhile: the device may be in the middle of it.
 */
#pragma once

#include "base/error.h"
#include "base/list.h"
#include "pr-helper/worker.h"

#include <sys/socket.h>

typedef struct Server Server;
typedef struct Client Client;
typedef struct User User;
typedef struct Worker Worker;

/* Something in the epoll set. */
typedef struct Source {
    int fd;
    uint32_t events; /* watched for; 0: not in the set */
    void (*ready)(Server *server, struct Source *source, uint32_t events);
} Source;

/* What a client, or its peer of ours, is waited for; each has one time limit, so each list is in the order of
 * time. */
typedef enum Wait {
    WAIT_HANDSHAKE,
    WAIT_IDLE,    /* between commands */
    WAIT_REQUEST, /* in the middle of a command, or taking its answer */
    WAIT_COMMAND, /* for us: no limit here */
    WAIT_COUNT,
} Wait;

typedef struct Exchange {
    List link;      /* in Server.queue until it is given to a worker */
    Client *client; /* NULL when it has gone */
    struct ucred peer;
    int device_fd;
    dev_t device;
    bool is_device;    /* and not a file, which can be slow to close */
    uint64_t since_ns; /* queued, then begun */
    PrRequest request;
    PrReply reply;
} Exchange;

struct Worker {
    Source source;
    List link;
    Exchange *exchange; /* NULL: idle, or lost */
    uint64_t idle_since_ns;
    bool lost;    /* overdue: hangs in the kernel */
    bool changes; /* its command is not a PERSISTENT RESERVE IN */
    dev_t device; /* of its command, while busy or lost */
    uid_t user;
};

struct Server {
    const Options *options;
    int epoll_fd;
    uint64_t now_ns, watchdog_ns, next_watchdog_ns;
    uint64_t door_ns; /* no new clients before, while the listener is not watched */
    uint64_t hear_ns; /* when to listen again to clients that are not watched; 0: there are none */
    uint64_t stop_ns; /* when to give up waiting for commands, while stopping */
    Source listener, signals, keeper;
    bool stopping, stop_now, crowded, broken;
    unsigned max_clients, max_commands;

    List waits[WAIT_COUNT]; /* of Client */
    List users;             /* of User */
    unsigned clients;
    List queue;   /* of Exchange */
    List workers; /* of Worker */
    unsigned worker_count, workers_coming;
};

/* ---- server.c ---- */

/* Changes what a source is watched for; 0 takes it out. */
void source_watch(Server *server, Source *source, uint32_t events);

/* ---- client.c ---- */

/* A connection that was just accepted; takes fd. */
void client_new(Server *server, int take_fd, const struct ucred *peer);
void client_free(Client *client);
/* Frees the clients that have had their time. Returns the time of the next one in ns, or UINT64_MAX. */
uint64_t client_expire(Server *server);
/* Who makes room for another: of the user who has most, the client that is idle for longest, or else one
 * whose command has not begun. NULL when all commands have. */
Client *client_to_evict(const Server *server);
/* Frees the clients whose command, if any, has not begun. */
void client_free_idle(Server *server);
void client_free_all(Server *server);
void exchange_free(Exchange *exchange);
/* The command that the client waits for is over; takes exchange. */
void client_answer(Client *client, Exchange *take_exchange);

/* ---- dispatch.c ---- */

/* Has a first worker started, so that the first command need not wait for it. */
void dispatch_begin(Server *server);
/* An exchange that has everything it needs; becomes the queue's. Nothing is answered before the next
 * dispatch_run(). */
void dispatch_submit(Server *server, Exchange *exchange);
/* The client has gone: a command that has not begun is forgotten, takes exchange. */
void dispatch_abandon(Exchange *take_exchange);
/* Gives waiting commands to workers as far as the limits allow. */
void dispatch_run(Server *server);
/* An answer of the keeper. False when it has gone. */
bool dispatch_keeper_answer(Server *server);
/* Answers what is overdue. Returns the time of the next one in ns, or UINT64_MAX. */
uint64_t dispatch_expire(Server *server);
/* Whether a worker has a command in flight that somebody may wait for. */
bool dispatch_busy(const Server *server);
/* Closes the workers' sockets; the clients must have gone. */
void dispatch_end(Server *server);

/* ---- audit.c ---- */

/* Opens the system's log, before the sandbox closes the way. */
void audit_open(void);
/* A command is over: one line for each change of reservations; every command with --verbose. */
void audit_command(const Options *options, const Exchange *exchange, const PrDevice *device);
/* What a client does wrong (not with --quiet). */
void audit_complaint(const Options *options, const struct ucred *peer, const char *fmt, ...) PRINTF(3, 4);
