/* SPDX-License-Identifier: Apache-2.0 */
/* The socket that clients connect to: passed by the service manager, or made at a path. */
#pragma once

#include "base/error.h"

typedef struct Options Options;

typedef struct ListenSocket {
    int fd;
    char *path;  /* of the socket file that we made; NULL when the socket was passed to us */
    int file_fd; /* that file (O_PATH): as long as it is open, no other file can get its number */
} ListenSocket;

#define LISTEN_SOCKET_INIT ((ListenSocket){.fd = -1, .file_fd = -1})

/* The socket that the service manager has passed (sd_listen_fds(3)); *ret_fd is -1 if there is none. Before
 * any fork: it is meant for one process id. */
int listen_take_passed(int *ret_fd, Error *err) MUST_CHECK;
/*
 * Makes a socket at path with the options' mode and group and listens on it. What a dead program has left
 * there is replaced; a socket that somebody listens on is not.
 */
int listen_create(const char *path, const Options *options, ListenSocket *ret_socket, Error *err) MUST_CHECK;
/* Removes the socket file, if it is still the one that we made. */
void listen_remove(const ListenSocket *socket);
