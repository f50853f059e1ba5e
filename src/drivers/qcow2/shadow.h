/* SPDX-License-Identifier: Apache-2.0 */
/* A change of many tables that becomes true with one write to the header. What may run meanwhile, and what a
 * crash finds: see shadow.c. */
#pragma once

#include "drivers/qcow2/qcow2-priv.h"

typedef struct Shadow {
    Qcow2 *q;
    Qcow2Header header; /* that is going to be written: to be changed by the user */
    uint64_t *rt;       /* the new refcount table, host order */
    uint32_t rt_entries, rt_capacity;
    uint64_t next;          /* no cluster below is given out */
    FreeList taken;         /* given out, one reference each */
    size_t counted;         /* items of taken that the new blocks count */
    uint64_t counted_bytes; /* and so much of the next one */
    FreeList dropped;       /* freed once the header is durable */
    uint64_t steps;
} Shadow;

/* Brings the image to rest on disk first. Whatever it returns, shadow_end() follows. */
int shadow_begin(Qcow2 *q, Shadow *s) MUST_CHECK;
/* Contiguous clusters for metadata of that kind (META_, 0: not protected), with one reference. */
int shadow_alloc(Shadow *s, uint64_t count, unsigned kind, uint64_t *ret_offset) MUST_CHECK;
/* One reference more for clusters that were got from shadow_alloc(). */
void shadow_share(Shadow *s, uint64_t offset, uint64_t bytes);
/* Refcounts as they will be, without what shadow_alloc() has given out. */
int shadow_read(Shadow *s, uint64_t cluster, uint64_t *ret_count) MUST_CHECK;
/* One reference more, or less, for clusters in use. -ERANGE: they cannot be counted up. */
int shadow_ref(Shadow *s, uint64_t offset, uint64_t bytes) MUST_CHECK;
int shadow_unref(Shadow *s, uint64_t offset, uint64_t bytes, bool discard) MUST_CHECK;
/* What lost its last user is freed afterwards. */
void shadow_free(Shadow *s, uint64_t offset, uint64_t bytes, bool discard);
/* Writes a table of 64-bit entries, padded with zeroes to whole clusters. */
int shadow_write_table(Shadow *s, const uint64_t *table, uint64_t entries, uint64_t offset) MUST_CHECK;
/* 0: the new header is durable, and q->header. Else the image is as it was. */
int shadow_commit(Shadow *s) MUST_CHECK;
/* Frees; without a commit nothing has happened. */
void shadow_end(Shadow *s);
