/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Listening sockets at one address (a name may stand for several), and waiting for the next connection on any
 * of them.
 *
 * Nothing is accepted but inside listener_accept(): whoever has enough clients just does not call it, and
 * later clients wait in the kernel's backlog. One coroutine at a time may be in listener_accept().
 */
#pragma once

#include "base/error.h"
#include "base/limits.h"

#include <sys/stat.h>

typedef struct SocketAddress SocketAddress; /* generated */

typedef struct Listener {
    int fds[LIMIT_LISTENER_FDS];
    unsigned count; /* 0: not listening; {0} is valid */
    unsigned next;  /* whose turn it is when several are ready */
    char *path;     /* of the Unix socket that we made, else NULL */
    dev_t path_dev;
    ino_t path_inode;
} Listener;

/*
 * Starts to listen. An existing Unix socket at the path is replaced, even one that somebody listens on, as
 * users of the reference expect; anything else at the path is refused. Waits for name look-ups.
 */
int listener_open(Listener *listener, const SocketAddress *address, int backlog, Error *err) MUST_CHECK;
/*
 * Waits for the next client and returns its descriptor (close-on-exec, the caller's); -ECANCELED or
 * -ETIMEDOUT when interrupted, another -errno when the listener is broken. Does not spin when descriptors run
 * out.
 */
int listener_accept(Listener *listener) MUST_CHECK;
/* Stops listening, and removes the socket file if it is still the one that we made. Idempotent. */
void listener_close(Listener *listener);
/* The address of the first socket, with the true port; the caller frees it. NULL if unknown. */
SocketAddress *listener_address(const Listener *listener) MUST_CHECK;
