/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Closing descriptors of clients. To close a file can take for ever: its file system is asked, and that may
 * be a program of the client (FUSE) or a dead server (NFS); the last close of a disk writes what is still in
 * the cache. Not even SIGKILL ends the wait. So it is done by threads that have nothing else to do, and a
 * user can keep few of them waiting.
 */
#pragma once

#include "base/error.h"

/* Starts the threads: after privileges were given up, before the sandbox. */
int closer_start(Error *err) MUST_CHECK;
/* Closes a descriptor that came from this user. Never waits. -1 is fine. */
void closer_close(int take_fd, uid_t user);
/* Whether so many of this user's are not closed yet that no other may be received. */
bool closer_is_full(uid_t user);
