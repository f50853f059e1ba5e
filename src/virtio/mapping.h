/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files of other processes, mapped here for reading and writing. Their owners may truncate them at any time:
 * a touch of a page that is gone is answered with a page of zeroes of our own, and the mapping counts as lost
 * from then on.
 *
 * Making one sees to it that SIGBUS has our handler; faults elsewhere go to whatever handled the signal
 * before. Threads that touch mappings must not block SIGBUS. A system call that is given such a page returns
 * -EFAULT instead and marks nothing.
 */
#pragma once

#include "base/error.h"

typedef struct MappingSlot MappingSlot;

/* Embedded; {0} is no mapping. May be moved. */
typedef struct Mapping {
    char *at;       /* where the first byte asked for lies; aligned as its offset in the file is */
    uint64_t bytes; /* as asked for */
    void *start;    /* whole pages */
    size_t length;
    MappingSlot *slot;
} Mapping;

/*
 * Maps `bytes` (> 0) bytes of a file from an offset on, neither needs to be aligned. -EINVAL if a file is
 * shorter than that, wraps or cannot be mapped, with err. *lost (borrowed until mapping_done()) becomes true,
 * atomically, when a page was found to be gone. fd is borrowed for this call.
 */
int mapping_init(
    Mapping *mapping, int fd, uint64_t offset, uint64_t bytes, bool *lost, Error *err) MUST_CHECK;
/* Idempotent. Nobody may touch the pages any more. */
void mapping_done(Mapping *mapping);
