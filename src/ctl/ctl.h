/* SPDX-License-Identifier: Apache-2.0 */
/*
 * granaryctl: what its files share. Each subcommand is a file of its own with a `const CtlCommand`, which
 * main.c lists. They talk QMP (client.c): to a daemon that runs, or to one that is started for this alone.
 */
#pragma once

#include "base/error.h"
#include "schema/json.h"

typedef struct CtlCommand {
    const char *name;
    const char *summary;
    /* argv[0] is the command's name. Returns the exit status, after a message if something is wrong. */
    int (*run)(int argc, char *argv[]);
} CtlCommand;

extern const CtlCommand ctl_check;

/* A QMP session. */
typedef struct CtlClient CtlClient;

/* With the daemon whose monitor listens at a Unix socket. */
int ctl_connect(const char *path, CtlClient **ret_client, Error *err) MUST_CHECK;
/* With a daemon of its own, granaryd in the folder of this program; it ends with the session. */
int ctl_start(CtlClient **ret_client, Error *err) MUST_CHECK;
/* Runs a command and waits for its answer; events are left out. The caller frees the result. */
int ctl_run(CtlClient *client, const char *command, JsonValue *take_arguments, JsonValue **ret_result,
    Error *err) MUST_CHECK;
/* NULL is fine. */
void ctl_close(CtlClient *client);
