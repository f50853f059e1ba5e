/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Going to the background. The process that was started lives until the one in the background says that
 * everything is in place, so that its exit code tells whether start-up succeeded and its messages are seen.
 */
#pragma once

#include "base/error.h"

/*
 * Forks; returns only in the process that goes on, with a descriptor for background_complete(). Before any
 * thread is started. Standard input and output are still those of the caller.
 */
int background_start(int *ret_fd, Error *err) MUST_CHECK;
/* Leaves the working directory, and standard input, output and error. */
int background_detach(Error *err) MUST_CHECK;
/* The start has succeeded: lets the first process exit with 0. Takes fd. */
int background_report(int take_fd, Error *err) MUST_CHECK;
/* Both. */
int background_complete(int take_fd, Error *err) MUST_CHECK;
