/* SPDX-License-Identifier: Apache-2.0 */
/*
 * System call filters (seccomp). What is not allowed fails with EPERM. no_new_privs must be set.
 */
#pragma once

#include "base/error.h"

/* For the server: a short list of calls on descriptors that it has; it can open nothing and run nothing. */
int sandbox_enter_server(Error *err) MUST_CHECK;
/* For the keeper and the workers: without running programs, mounting, modules, tracing and the like. The list
 * is by exception, because the multipath library's needs differ from version to version. */
int sandbox_enter_keeper(Error *err) MUST_CHECK;
