/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Messages for the operator, on standard error or in the system's log, one line each, with the program's name
 * in front. The library layers use these only for what no caller can report; everything else travels as an
 * Error.
 */
#pragma once

#include "base/error.h"

/* The name in front of each line (the program as it was called); the text must outlive the process. */
void log_set_program(const char *name);
const char *log_program(void);
/*
 * What the following messages are about, put between the program's name and the text: " --option argument" or
 * "file:line". Copied; NULL: nothing. Main thread only.
 */
void log_set_location(const char *location);
const char *log_location(void);
/* All messages go to the system's log (syslog(3)) from now on: for whoever gives up standard error. */
void log_use_syslog(void);
/* A message that standard error has no room for, as in a pipe that nobody reads, is dropped from now on
 * instead of being waited for. */
void log_never_wait(void);

void log_error(const char *fmt, ...) PRINTF(1, 2);
void log_warn(const char *fmt, ...) PRINTF(1, 2);
void log_info(const char *fmt, ...) PRINTF(1, 2);
/* Prints err (message, then hint lines) and ends it. */
void log_report(Error *err);
