/* SPDX-License-Identifier: Apache-2.0 */
/*
 * FUSE over io_uring (Linux, Documentation/filesystems/fuse-io-uring.rst): the kernel has a queue for each
 * CPU, and we give each some entries, memory that a request is put into and its reply taken from. Sending a
 * reply and asking for the next request is one operation.
 *
 * The kernel uses the queues once each has an entry. If one cannot be given, it stays with /dev/fuse; what it
 * does not send through the queues comes there in any case (FORGET, INTERRUPT).
 */
#pragma once

#include "exports/fuse/session.h"

typedef struct FuseRing FuseRing;

/* How many queues the kernel has. */
unsigned fuse_ring_queues(void);
/*
 * The entries of every `step`-th queue from `first` on. fd is a descriptor of the connection, borrowed. NULL
 * if there is no memory.
 */
FuseRing *fuse_ring_new(FuseSession *session, int fd, unsigned first, unsigned step);
/* The ring must not run any more. NULL is fine. */
void fuse_ring_free(FuseRing *ring);
/*
 * On the loop that is to serve the queues, which has commands, with a FuseRing. Serves until the connection
 * ends: entries cannot be taken back before.
 */
int fuse_ring_run(void *ring);
