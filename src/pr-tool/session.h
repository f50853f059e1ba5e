/* SPDX-License-Identifier: Apache-2.0 */
/* A disk, a helper, and reservation commands from one to the other. */
#pragma once

#include "pr-client/granary-pr.h"
#include "pr-tool/direct.h"
#include "pr-tool/options.h"

typedef struct Session {
    const Options *options;
    granary_pr *pr;
    int disk_fd;
    Direct direct;
} Session;

/* How a command went. */
typedef struct Outcome {
    ExitCode code;
    int error; /* -errno: no answer; 0: there is a result */
    granary_pr_result result;
} Outcome;

/* Opens the disk and reaches a helper; what is wrong has been said when it is not EXIT_DONE. */
ExitCode session_open(Session *session, const Options *options);
void session_close(Session *session);

/* Carries out one CDB. data and data_bytes: the parameter list, or room for what comes. */
Outcome session_execute(Session *session, const uint8_t cdb[SCSI_CDB_BYTES], void *data, size_t data_bytes);

/* Says how the command failed, and returns the exit code. */
ExitCode session_report(const Session *session, const Outcome *outcome);
/* Says another reason to fail. */
ExitCode session_fail(const Session *session, ExitCode code, const char *fmt, ...) PRINTF(3, 4);
