/* SPDX-License-Identifier: Apache-2.0 */
/* The daemon's life: start-up in the order of the command line, serving until somebody asks it to end,
 * orderly end. */
#pragma once

#include "daemon/options.h"

/* Blocks the signals that end the daemon, in this thread and those that it starts. Before any thread is
 * started. */
void daemon_block_signals(void);
/*
 * Runs the daemon on the calling thread. background_fd: from background_start(), or -1. Returns the exit code
 * of the process; messages have been printed.
 */
int daemon_run(const Options *options, int background_fd) MUST_CHECK;
