/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The NBD server: one per process, started by the command line or nbd-server-start. NBD exports exist only
 * while it runs. Everything here runs on the main loop.
 */
#pragma once

#include "base/error.h"

typedef struct NbdServerOptions NbdServerOptions; /* generated */

/* Starts to listen. Waits for name look-ups. */
int nbd_server_start(const NbdServerOptions *options, Error *err) MUST_CHECK;
/* Drops all clients, removes the NBD exports, stops listening and removes the socket file. Does nothing if
 * not running. */
void nbd_server_stop(void);
