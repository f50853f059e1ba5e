/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Serves the requests of one /dev/fuse descriptor on one loop: several at a time, each in a coroutine and a
 * buffer of its own.
 */
#pragma once

#include "exports/fuse/session.h"

typedef struct FuseQueue FuseQueue;

/* fd is non-blocking and borrowed. NULL if there is no memory. */
FuseQueue *fuse_queue_new(FuseSession *session, int fd);
/* The queue must not run any more. NULL is fine. */
void fuse_queue_free(FuseQueue *queue);

/*
 * Answers FUSE_INIT, which is the first request of a connection, on the calling loop. Another queue for the
 * same descriptor may serve afterwards. Returns 0 or -errno.
 */
int fuse_queue_handshake(FuseQueue *queue) MUST_CHECK;
/*
 * Both are called on the queue's loop, with a FuseQueue. run serves until stop is called (-ECANCELED), or
 * until the connection has ended (-ENODEV: it was unmounted); requests that were received are answered in any
 * case.
 */
int fuse_queue_run(void *queue);
int fuse_queue_stop(void *queue);
