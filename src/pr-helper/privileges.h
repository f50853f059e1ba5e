/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who may do what. The server, which listens to clients, ends with no capability and with the user and group
 * asked for. The keeper, and the workers that it forks, carry commands out: they keep their user and
 * CAP_SYS_RAWIO, and where they have it CAP_SYS_ADMIN (device mapper, NVMe, PR ioctls of older kernels),
 * which workers raise only for a device that needs it.
 */
#pragma once

#include "base/error.h"

typedef struct Options Options;

/* Whether this process may do the helper's work at all. */
int privileges_check(Error *err) MUST_CHECK;
int privileges_become_server(const Options *options, Error *err) MUST_CHECK;
int privileges_become_keeper(Error *err) MUST_CHECK;
int privileges_become_worker(Error *err) MUST_CHECK;
/* A worker's CAP_SYS_ADMIN becomes effective, if it has any. */
void privileges_raise_admin(void);
