/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the two halves of the library share: command.c takes a command through the conversation, connection.c
 * has the descriptors. Only system calls and proto/: the shared library needs nothing but libc.
 */
#pragma once

#include "pr-client/granary-pr.h"
#include "proto/pr-wire.h"

#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/un.h>

/* Where the command in flight stands. Each stage but IDLE has a step in command.c. */
typedef enum Stage {
    STAGE_IDLE,    /* no command in flight */
    STAGE_CONNECT, /* no connection; the listening queue may be full */
    STAGE_HELLO,   /* the helper's features are to come */
    STAGE_ANSWER,  /* ours go out */
    STAGE_READY,   /* connected, nothing of the command has been sent */
    STAGE_CDB,     /* the CDB goes out, with the descriptor */
    STAGE_LIST,    /* the parameter list of PR OUT goes out */
    STAGE_HEADER,  /* the reply is to come */
    STAGE_PAYLOAD,
} Stage;

/* What a command wants to happen. */
typedef enum Want {
    WANT_CONNECTION,
    WANT_COMMAND,
    WANT_CLEANUP,
} Want;

struct granary_pr {
    struct sockaddr_un address;
    socklen_t address_bytes;
    pid_t owner; /* a forked child may only free its copy: the descriptors behind it are shared */

    int poll_fd;   /* epoll of those below */
    int timer_fd;  /* the deadline, or the next attempt to connect */
    int cancel_fd; /* eventfd */
    int socket_fd; /* -1: no connection */
    uint32_t socket_events;
    uint64_t timer_ns; /* as timer_fd is set, CLOCK_MONOTONIC; 0: not set */
    bool connected;    /* hands have been shaken */
    uint32_t features; /* of the connected helper */

    /* The command. */
    atomic_bool in_flight; /* stage != STAGE_IDLE, for granary_pr_cancel() */
    Stage stage;
    Want want;
    bool reused; /* runs on a connection that an earlier command has made */
    bool sent;   /* the whole CDB has gone out: it may be executed */
    int disk_fd;
    uint8_t cdb[SCSI_CDB_BYTES];
    void *data;
    uint32_t data_bytes; /* of the CDB */
    granary_pr_result *result;
    uint64_t deadline_ns; /* 0: none */
    uint64_t retry_ns;    /* when to connect again; 0: not waiting for that */
    unsigned retries;
    size_t done; /* bytes of this stage that have been sent or received */
    uint8_t buffer[PR_WIRE_REPLY_BYTES];
    granary_pr_result answer; /* until it is complete */
};

/* connection.c. Fallible functions return 0 or -errno; "lost" is -ECONNREFUSED before the command was sent
 * and -ECONNRESET afterwards. */

/* Opens the descriptors that live as long as pr. */
int connection_init(granary_pr *pr) MUST_CHECK;
void connection_done(granary_pr *pr);
/* Connects; -EAGAIN when the helper's listening queue is full. */
int connection_open(granary_pr *pr) MUST_CHECK;
void connection_close(granary_pr *pr);
/* What a connection that has ended means for the command. */
int connection_lost(const granary_pr *pr);
/* Where nothing is expected: 0 while the connection is quiet, -EPROTO if something has come, lost. */
int connection_look(const granary_pr *pr) MUST_CHECK;
/* Sends or receives the rest of a stage's bytes and counts pr->done: 0 when complete, else the epoll events
 * to wait for, or -errno. fd (-1: none) goes with the first of them. */
int connection_send(granary_pr *pr, const void *data, size_t bytes, int fd) MUST_CHECK;
int connection_receive(granary_pr *pr, void *data, size_t bytes) MUST_CHECK;
/* Makes pr->poll_fd readable for these events of the socket, and when the clock has reached when_ns (0:
 * never). */
void connection_wait_for(granary_pr *pr, uint32_t socket_events, uint64_t when_ns);
/* Whether granary_pr_cancel() was called since the last time. */
bool connection_take_cancel(granary_pr *pr);
uint64_t connection_now_ns(void);
