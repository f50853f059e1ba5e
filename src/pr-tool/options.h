/* SPDX-License-Identifier: Apache-2.0 */
/* The command line of granary-pr. */
#pragma once

#include "base/macros.h"
#include "proto/pr.h"

/* How the program ends. Scripts rely on these numbers: docs/granary-pr.1. */
typedef enum ExitCode {
    EXIT_DONE = 0,
    EXIT_USAGE = 1,
    EXIT_UNREACHABLE = 2, /* the device cannot be opened, no helper; nothing was done */
    EXIT_CONFLICT = 3,
    EXIT_REFUSED = 4, /* by the device or the helper, and it would be again */
    EXIT_TRY_AGAIN = 5,
    EXIT_UNKNOWN = 6, /* sent, but the answer is missing: it may or may not have been done */
} ExitCode;

/* Options that only some commands take; as bits, so that commands can list them. */
enum {
    OPTION_KEY = 1 << 0,
    OPTION_NEW_KEY = 1 << 1,
    OPTION_VICTIM = 1 << 2,
    OPTION_TYPE = 1 << 3,
    OPTION_APTPL = 1 << 4,
    OPTION_ALL_TARGET_PORTS = 1 << 5,
    OPTION_IGNORE = 1 << 6,
    OPTION_ABORT = 1 << 7,
    OPTION_TO = 1 << 8,
    OPTION_UNREGISTER = 1 << 9,
};

struct Session;

typedef struct ToolCommand {
    const char *name;
    const char *summary;
    bool changes;             /* needs the device for writing */
    unsigned options, needed; /* OPTION_ bits that it takes, and that it cannot do without */
    ExitCode (*run)(struct Session *session);
} ToolCommand;

typedef struct Options {
    const ToolCommand *command;
    const char *device;
    const char *socket; /* NULL: none was named */
    const char *helper; /* program for direct; NULL: look for it */
    bool direct, json, quiet;
    int timeout_ms;
    unsigned given; /* OPTION_ bits */
    uint64_t key, new_key, victim;
    PrType type;
    const char *to; /* TransportID of the new holder, as text */
} Options;

/*
 * Reads the command line; commands ends with a name of NULL. EXIT_USAGE after a message; *ret_over is set
 * when everything has been done (--help, --version).
 */
ExitCode options_read(
    int argc, char *argv[], const ToolCommand *commands, Options *ret_options, bool *ret_over);
