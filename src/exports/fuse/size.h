/* SPDX-License-Identifier: Apache-2.0 */
/* Changes of the size of an exported node. Any loop; they wait for the main loop. */
#pragma once

#include "exports/fuse/session.h"

/* Enlarges the node so that it ends at end, or later: sizes come in the units of the node. */
int fuse_grow(FuseSession *session, uint64_t end, Preallocation prealloc);
/* Sets the size that a user asks for; -EPERM if that would enlarge an export that is not growable. */
int fuse_set_size(FuseSession *session, uint64_t size);
