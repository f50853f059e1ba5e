/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Monitors: sessions of the control protocol (QMP) over character devices. Everything here runs on the main
 * loop.
 *
 * Life: monitors_init, then monitor_add for each monitor, monitors_start when start-up is complete,
 * monitors_end_commands when the program is about to end, monitors_close as the last thing.
 */
#pragma once

#include "base/error.h"

typedef struct MonitorOptions MonitorOptions; /* generated */

/* Makes this the sink of all events. quit is called when a client asks the program to end. */
void monitors_init(void (*quit)(void));
/* Serves clients of the character device that options name. They are greeted, but wait for monitors_start().
 */
int monitor_add(const MonitorOptions *options, Error *err) MUST_CHECK;
/* Commands run from now on: what the command line asked for exists. */
void monitors_start(void);
/* No further command runs; those that wait for something are cancelled. Returns when none runs any more.
 * Events are still delivered. */
void monitors_end_commands(void);
/* Delivers what has not been sent yet, to clients that read, closes the sessions and frees the monitors. */
void monitors_close(void);
