/* SPDX-License-Identifier: Apache-2.0 */
/* What the fuzz targets of the engine do with an image, whatever is in it. */
#pragma once

#include "drivers/qcow2/test-graph.h"

typedef struct Use {
    bool read_only;
    bool check_first; /* before anything else has touched it */
    unsigned fix;     /* CheckFix */
    unsigned requests;
    bool bitmaps; /* commands for bitmaps, too */
} Use;

/* Bits of a byte: read-only, fix (two), check_first. */
Use use_of(unsigned choice);
/* In a coroutine. Opens mem_file; reads, writes, zeroes, discards, resizes, changes snapshots and bitmaps,
 * flushes, checks and closes; checks, repairs and checks again. Aborts when a repair says that it has put
 * everything right and the next check sees otherwise. All chance comes from test_random(). */
void use_image(const Use *use);
