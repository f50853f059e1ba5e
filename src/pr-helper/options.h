/* SPDX-License-Identifier: Apache-2.0 */
/* The helper's command line: that of qemu-pr-helper, and what Granary adds. */
#pragma once

#include "base/error.h"

enum { OPTIONS_UIDS = 64 };

typedef struct Options {
    bool daemonize, quiet, verbose, sandbox, allow_dm_linear;
    char *socket_path;  /* NULL: not given */
    char *pidfile_path; /* NULL: not wanted */
    bool has_user, has_group, has_socket_group, has_socket_mode;
    uid_t user;
    gid_t group, socket_group;
    mode_t socket_mode;
    uid_t allowed[OPTIONS_UIDS]; /* who may connect; allowed_count 0: whom the socket's mode lets in */
    unsigned allowed_count;
    unsigned max_clients; /* 0: as many as the limit of descriptors allows */
    /* Seconds. idle 0: never. */
    unsigned command_timeout, handshake_timeout, request_timeout, idle_timeout, stop_timeout;
} Options;

typedef enum OptionsOutcome {
    OPTIONS_RUN,
    OPTIONS_DONE,   /* help or version: nothing else to do */
    OPTIONS_FAILED, /* said on standard error */
} OptionsOutcome;

OptionsOutcome options_parse(int argc, char **argv, Options *ret_options);
void options_done(Options *options);
/* "/run/PROGRAM.sock" and the like; the caller frees it. */
char *options_default_path(const char *suffix) MUST_CHECK;
