/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The memory that a VDUSE device may reach: ranges of I/O virtual addresses, each with a file of the kernel
 * behind it, mapped here. Rings are given by the same addresses (VirtioRegion.user equals guest).
 *
 * All ranges are fetched at once. The kernel adds ranges without telling: its bounce buffer comes into being
 * with the first request. So an address that lies nowhere is a reason to fetch once more; it is wrong only if
 * nothing has changed.
 */
#pragma once

#include "exports/vduse-blk/kernel.h"
#include "virtio/memory.h"

typedef struct VduseRange {
    uint64_t start, last, offset;
} VduseRange;

typedef struct VduseIotlb {
    VirtioMemory *memory; /* NULL: nothing was fetched */
    VduseRange *ranges;   /* ascending */
    unsigned count, capacity;
} VduseIotlb;

/* {0} is an empty one. No queue may use what iotlb held before; on failure it is unchanged. *ret_changed:
 * whether the ranges are others than before. */
int vduse_iotlb_fetch(VduseIotlb *iotlb, const VduseHandle *handle, bool *ret_changed, Error *err) MUST_CHECK;
/* Unmaps everything; iotlb is empty then. */
void vduse_iotlb_done(VduseIotlb *iotlb);
