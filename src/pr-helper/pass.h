/* SPDX-License-Identifier: Apache-2.0 */
/* Messages with a descriptor over Unix sockets (unix(7), SCM_RIGHTS). */
#pragma once

#include "base/macros.h"

/* Sends bytes as one message, with fd unless it is -1. Returns the bytes sent or -errno; never raises
 * SIGPIPE. */
ssize_t pass_send(int socket, const void *data, size_t bytes, int fd);
/*
 * Receives up to `bytes` bytes. *ret_fd: a descriptor that came with them (close-on-exec, the caller's), or
 * -1. More than one descriptor, or one that could not be received, is -EBADMSG and all are closed.
 */
ssize_t pass_recv(int socket, void *data, size_t bytes, int *ret_fd) MUST_CHECK;

/* Enough to notice that there are too many; the kernel closes the rest. */
enum { PASS_FDS = 2 };
/* The same, but closes nothing: all descriptors that could be received are the caller's, also with -EBADMSG.
 */
ssize_t pass_recv_all(int socket, void *data, size_t bytes, int ret_fds[PASS_FDS]) MUST_CHECK;
