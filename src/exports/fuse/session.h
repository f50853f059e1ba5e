/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One exported file: what requests are carried out on. Knows nothing of mounts and descriptors, so that it
 * can be tested and fuzzed alone. Requests run on several loops at once; sizes change on the main loop only.
 */
#pragma once

#include "block/node.h"
#include "proto/fuse.h"

#include <stdatomic.h>

typedef struct FuseSession {
    Edge *edge;
    const char *name; /* of the export; borrowed */
    Loop *main_loop;
    unsigned perm, shared; /* of the edge, without what a change of the size needs for its moment */
    bool writable, growable, writethrough;
    bool allow_other; /* the mount lets other users in */
    bool refused;     /* the kernel's FUSE is too old; known after FUSE_INIT */
    bool offers_ring; /* requests may come over io_uring, if the kernel likes */
    _Atomic uint32_t mode, uid, gid;
    _Atomic uint64_t agreed; /* capabilities of both sides, FUSE_CAP_* */
    CoMutex resizing;
} FuseSession;

/*
 * Carries out a request. payload (FUSE_PAYLOAD_BYTES, page-aligned) holds what a write brings and takes the
 * reply's bytes. Returns their number or -errno. Waits; any loop.
 */
ssize_t fuse_session_execute(FuseSession *session, const FuseRequest *request, void *payload);
