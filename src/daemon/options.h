/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The command line. The first pass looks at everything and acts on help, version, trace and daemonize; what
 * is to be made is kept, in order, for the second pass, which runs in a coroutine of the main loop.
 */
#pragma once

#include "base/error.h"

typedef enum OptionKind {
    OPTION_STRAY, /* an argument that belongs to no option */
    OPTION_BLOCKDEV,
    OPTION_CHARDEV,
    OPTION_EXPORT,
    OPTION_MONITOR,
    OPTION_NBD_SERVER,
    OPTION_OBJECT,
} OptionKind;

typedef struct OptionItem {
    OptionKind kind;
    const char *argument; /* of argv */
    char *location;       /* as typed, with a blank in front, for messages */
} OptionItem;

typedef struct Options {
    OptionItem *items;
    size_t count, capacity;
    bool daemonize;
    const char *pidfile; /* of argv, or NULL */
} Options;

typedef enum OptionsOutcome {
    OPTIONS_RUN,
    OPTIONS_DONE,   /* help or version was printed: exit 0 */
    OPTIONS_FAILED, /* a message was printed: exit 1 */
} OptionsOutcome;

/* The first pass. */
OptionsOutcome options_scan(int argc, char **argv, Options *options) MUST_CHECK;
void options_done(Options *options);

typedef enum OptionOutcome {
    OPTION_APPLIED,
    OPTION_HELPED,        /* it asked for help, which is printed: exit 0 */
    OPTION_HELPED_FAILED, /* the same, but existing users get exit code 1 */
} OptionOutcome;

/* A part of the second pass. Returns an OptionOutcome or -errno. */
int option_apply(const OptionItem *item, Error *err) MUST_CHECK;
