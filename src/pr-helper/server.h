/* SPDX-License-Identifier: Apache-2.0 */
/* The process that clients talk to. It has no privileges: see keeper.h. */
#pragma once

#include "base/error.h"

typedef struct Options Options;

/* Blocks the signals that end the program, from the very beginning, and ignores what clients could kill it
 * with. */
void server_block_signals(void);
/*
 * Serves until a signal asks for the end, and returns when what was begun is finished or has had its time.
 * What can fail has failed when ready() is called, which gives up the last privileges. keeper_fd stays the
 * caller's.
 */
int server_run(const Options *options, int listen_fd, int keeper_fd, int (*ready)(void *opaque, Error *err),
    void *opaque, Error *err) MUST_CHECK;
