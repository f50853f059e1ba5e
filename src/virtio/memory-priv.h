/* SPDX-License-Identifier: Apache-2.0 */
/* The table of guest memory as the rings look at it. */
#pragma once

#include "virtio/mapping.h"
#include "virtio/memory.h"

typedef struct MemoryRegion {
    uint64_t guest, bytes, user;
    char *at;
    Mapping mapping;
} MemoryRegion;

struct VirtioMemory {
    MemoryRegion *regions; /* sorted by guest address, which do not overlap */
    unsigned count, capacity;
    bool lost;    /* atomic */
    Mapping *log; /* atomic; NULL: none */
};

/* The region that an address lies in, or NULL. */
const MemoryRegion *memory_find(const VirtioMemory *memory, uint64_t guest);
/* How many regions begin where another one ends: a range has at most one piece more than that. */
unsigned memory_joints(const VirtioMemory *memory);
