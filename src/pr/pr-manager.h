/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reservation managers: the objects that carry SCSI PERSISTENT RESERVE commands out for nodes of granaryd.
 *
 * `pr-manager-helper` sends them to a helper (proto/pr-wire.h) over as many connections as commands are in
 * flight, and keeps one while idle, so that a helper that goes is noticed at once. `pr-manager-kernel` uses
 * the kernel's PR ioctls in a worker thread. Both are found by id; a node keeps a reference, so object-del of
 * a manager in use leaves the node with it. Main loop only, but for pr_manager_put().
 */
#pragma once

#include "base/error.h"
#include "proto/pr-wire.h"

typedef struct PrManager PrManager;

/* The manager of that id, with a reference for the caller. */
int pr_manager_get(const char *id, PrManager **ret_manager, Error *err) MUST_CHECK;
/* Gives the reference back; waits when it was the last. NULL is fine. Any loop. */
void pr_manager_put(PrManager *manager);
const char *pr_manager_id(const PrManager *manager);

/*
 * Carries out the PR IN or PR OUT command in request on the disk behind fd, and always leaves a complete
 * reply: what is wrong with the request itself (opcode, lengths) is CHECK 5/24/00 without traffic; a helper
 * that cannot be reached CHECK b/00/06 and one that has died, hangs or talks nonsense CHECK b/08/00, both of
 * which tell the initiator to try again. Waits, at most the manager's deadline; interruptible: returns
 * -ECANCELED or -ETIMEDOUT at once when cancelled, and the command may or may not have been executed then.
 * Commands for different descriptors may be in flight at once; the caller keeps those of one disk in order.
 */
int pr_manager_execute(PrManager *manager, int fd, const PrRequest *request, PrReply *ret_reply) MUST_CHECK;
