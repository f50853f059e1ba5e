/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Trace events at run time. The events are declared in `trace-events` files; generated/trace.h has a function
 * trace_NAME() for each, which costs one predicted branch while the event is off. Events that are on are
 * written as lines "NAME text" to standard error or a file.
 */
#pragma once

#include "base/error.h"

#include <stdio.h>

/* Generated: one byte per event (non-zero: on), the sorted names, and how many there are. */
extern uint8_t trace_enabled[];
extern const char *const trace_names[];
extern const unsigned trace_count;

/* Writes one line; for the generated functions. From any thread. */
void trace_log(const char *fmt, ...) PRINTF(1, 2);

/*
 * Turns events on, or off with a '-' in front. '*' in the pattern stands for any text. Returns how many
 * events match; a pattern with '*' that matches nothing is no mistake of the user's, a plain name is.
 */
unsigned trace_set(const char *pattern);
/* Applies a file of patterns, one a line, with '#' comments; warns of names that do not exist. */
int trace_set_from_file(const char *path, Error *err) MUST_CHECK;
/* Lines are appended to the file at path from now on. */
int trace_set_output(const char *path, Error *err) MUST_CHECK;
/*
 * The argument of --trace: [enable=]PATTERN, events=FILE, file=FILE, separated by commas. *ret_help is set
 * when the list of events was asked for; nothing else is done then. Names that do not exist are warned of.
 */
int trace_set_from_option(const char *text, bool *ret_help, Error *err) MUST_CHECK;
/* Writes the names of all events, one a line. */
void trace_list(FILE *out);

/* Whether text matches a pattern in which '*' stands for any text. */
bool trace_pattern_matches(const char *pattern, const char *text);
