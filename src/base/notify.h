/* SPDX-License-Identifier: Apache-2.0 */
/* Tells the service manager how far the daemon is (sd_notify(3): a datagram to the socket in NOTIFY_SOCKET).
 */
#pragma once

/* Sends "READY=1" or the like. Without a service manager, or if it does not listen, nothing happens. */
void notify_service_manager(const char *state);
