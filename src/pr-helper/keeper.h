/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The keeper: a process that keeps the privileges which the server gives up. It understands two words from
 * the server and nothing from anybody else: it forks workers, and removes the socket and the pid file at the
 * end - also when the server was killed.
 */
#pragma once

#include "base/pidfile.h"
#include "pr-helper/listen.h"

typedef struct Options Options;

/* One byte each, over a SOCK_SEQPACKET socket. */
typedef enum KeeperWord {
    KEEPER_WORKER =
        'w', /* answer: the same, with the worker's socket as descriptor; without one if it cannot be */
    KEEPER_REMOVE = 'r', /* remove the files; answer: the same, when it is done */
} KeeperWord;

/* Forks the keeper and returns the server's end of the socket (close-on-exec, blocking). Waits until the
 * keeper is ready; its failure is reported here. server_fd (-1: none) is a descriptor that is not for it. */
int keeper_start(const Options *options, const ListenSocket *socket, const Pidfile *pidfile, int server_fd,
    int *ret_fd, Error *err) MUST_CHECK;
/* Asks for the removal of the files. */
void keeper_ask_remove(int fd);
/* Waits until that is done or the keeper has ended, or for some seconds. */
void keeper_wait_removed(int fd);
