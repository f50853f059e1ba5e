/* SPDX-License-Identifier: Apache-2.0 */
/* A reservation helper of our own for the time of one command, for privileged callers where none runs. */
#pragma once

#include "base/error.h"

#include <sys/un.h>

typedef struct Direct {
    pid_t pid;                                                 /* 0: none runs */
    char path[sizeof(((struct sockaddr_un *)NULL)->sun_path)]; /* for granary_pr_new() */
} Direct;

/* Starts the helper; program NULL: looks for it. That it works shows when it answers. */
int direct_start(Direct *direct, const char *program, Error *err) MUST_CHECK;
/* Ends it; one that does not end is killed and left behind. Fine if none was started. */
void direct_stop(Direct *direct);
