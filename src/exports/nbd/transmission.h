/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The transmission phase of one NBD connection, on the loop that calls it. Knows nothing of servers and
 * exports, only a connected socket and an edge, so that it can be tested and fuzzed alone.
 */
#pragma once

#include "block/bitmap.h"
#include "proto/nbd.h"

typedef struct TransmissionOptions {
    int fd; /* borrowed; shutdown(fd) from any thread ends the transmission */
    Edge *edge;
    NbdMode mode;
    NbdContexts contexts;        /* negotiated */
    DirtyBitmap *const *bitmaps; /* of the contexts from NBD_CONTEXT_BITMAPS on; may be NULL without such */
    uint64_t size;               /* as the client was told */
    bool read_only;
    bool writethrough;
} TransmissionOptions;

/* Serves requests until the client leaves or breaks the protocol, and waits for those in flight. Always 0. */
int transmission_run(const TransmissionOptions *options);
