/* SPDX-License-Identifier: Apache-2.0 */
/* Names of hosts to addresses, without blocking the loop and without holding up a cancelled coroutine. */
#pragma once

#include "base/error.h"

#include <netdb.h>

typedef struct InetSocketAddress InetSocketAddress; /* generated */

/*
 * Looks address up, for listening (passive) or connecting. On success *ret_list is freed with freeaddrinfo().
 * Waits; interruptible. Messages are those that users of the reference know.
 */
int resolve_inet(
    const InetSocketAddress *address, bool passive, struct addrinfo **ret_list, Error *err) MUST_CHECK;
