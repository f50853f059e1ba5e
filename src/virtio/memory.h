/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The memory that a virtio front end shares with a device: regions of files, mapped here. All of it can
 * change at any time under the reader: what is looked at is copied first, checked, and then used.
 *
 * A table changes only while no queue that uses it runs; then any loop may read it without a lock. Files can
 * be truncated by their owner: a touch of a lost page reads zeroes, writes nowhere, and marks the table as
 * lost (virtio_memory_is_lost()), after which the device is to be stopped. System calls into such a page
 * return -EFAULT. How that is done, and how other shared files are mapped the same way, is in mapping.h.
 */
#pragma once

#include "base/error.h"

typedef struct VirtioMemory VirtioMemory;

/* A region as vhost-user describes it (vhost-user.rst, "Single memory region description"). */
typedef struct VirtioRegion {
    uint64_t guest;       /* guest address of the first byte */
    uint64_t user;        /* the front end's own address of it: rings are given by this one */
    uint64_t bytes;       /* > 0 */
    uint64_t file_offset; /* of the first byte in the file */
} VirtioRegion;

VirtioMemory *virtio_memory_new(void);
/* Unmaps everything. NULL is fine. */
void virtio_memory_free(VirtioMemory *memory);
/*
 * Maps a region. -EINVAL: overlaps another one in guest or user addresses, wraps around, lies behind the end
 * of the file; -ENOSPC: more than LIMIT_VIRTIO_REGIONS. Takes fd in any case.
 */
int virtio_memory_add(VirtioMemory *memory, const VirtioRegion *region, int take_fd, Error *err) MUST_CHECK;
/* -ENOENT if there is no such region; file_offset is not compared. */
int virtio_memory_remove(VirtioMemory *memory, const VirtioRegion *region, Error *err) MUST_CHECK;
unsigned virtio_memory_count(const VirtioMemory *memory);

/* Where guest memory lies here; NULL if the address is in no region. *ret_bytes: how many bytes of the range,
 * at most `bytes`, lie there in one piece. bytes > 0. */
void *virtio_memory_at(const VirtioMemory *memory, uint64_t guest, uint64_t bytes, uint64_t *ret_bytes);
/* The same by the front end's own address; NULL unless all bytes lie in one region. */
void *virtio_memory_at_user(const VirtioMemory *memory, uint64_t user, uint64_t bytes);
bool virtio_memory_is_lost(const VirtioMemory *memory);

/*
 * The log of written pages, for the migration of a guest (vhost-user.rst, "Migration"): a bitmap with a bit
 * for each 4 KiB of guest memory in a shared file. fd -1: no log any more. Takes fd in any case. While queues
 * run, too, from the main loop; the caller keeps them quiet.
 */
int virtio_memory_set_log(
    VirtioMemory *memory, uint64_t bytes, uint64_t file_offset, int take_fd, Error *err) MUST_CHECK;
/* Marks pages that were written, if there is a log. Any loop. */
void virtio_memory_written(const VirtioMemory *memory, const void *at, size_t bytes);
void virtio_memory_written_guest(const VirtioMemory *memory, uint64_t guest, size_t bytes);
