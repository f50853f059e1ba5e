/* SPDX-License-Identifier: Apache-2.0 */
/*
 * --chardev: its own old syntax ("socket,id=c,path=/run/x,server=on,wait=off", boolean options also by their
 * bare name), or the argument of chardev-add as JSON. One table of options serves all kinds, as users of the
 * reference know it: an option that the kind does not use is ignored.
 */
#pragma once

#include "base/error.h"

typedef enum ChardevCmdline {
    CHARDEV_CMDLINE_ADDED,
    CHARDEV_CMDLINE_LISTED_KINDS,   /* "help": printed; the program ends with success */
    CHARDEV_CMDLINE_LISTED_OPTIONS, /* "socket,help": printed; the program ends with failure */
} ChardevCmdline;

/*
 * Creates the chardev of one --chardev option. Waits like chardev_add(). Returns a ChardevCmdline or -errno;
 * the message does not name the option, which the caller puts in front.
 */
int chardev_add_cmdline(const char *text, Error *err) MUST_CHECK;

/* ---- For the kinds ---- */

typedef struct ChardevOptions ChardevOptions;
typedef struct ChardevBackend ChardevBackend; /* generated */

/* Parses text without creating anything; free with chardev_options_free(). *ret_help: help was asked for. */
int chardev_options_parse(
    const char *text, ChardevOptions **ret_options, bool *ret_help, Error *err) MUST_CHECK;
void chardev_options_free(ChardevOptions *options);
void chardev_options_free_ptr(ChardevOptions **options);
/* What chardev-add would get; free with chardev_backend_free(). */
int chardev_options_to_backend(
    const ChardevOptions *options, ChardevBackend **ret_backend, Error *err) MUST_CHECK;

const char *chardev_options_id(const ChardevOptions *options);
/* The text of an option, or NULL. name must be in the table. */
const char *chardev_option(const ChardevOptions *options, const char *name);
/* True and *ret_value set when the option is given. */
bool chardev_option_bool(const ChardevOptions *options, const char *name, bool *ret_value);
bool chardev_option_number(const ChardevOptions *options, const char *name, uint64_t *ret_value);
