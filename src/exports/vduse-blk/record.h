/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a new process needs to serve a VDUSE device on after the old one has died: what the device is made of,
 * and an in-flight area (virtio/queue.h) for each queue. A mapped file; the kernel keeps its pages when the
 * process is killed, nothing has to be written out.
 *
 * Named vduse-blk-NAME and lies in /run, or, for a process that may not write there, in TMPDIR or /tmp.
 * Others can make names in /tmp: what is opened there is a regular file of our own, with one name and for
 * nobody else, or it is refused.
 */
#pragma once

#include "exports/vduse-blk/kernel.h"

typedef struct VduseRecord {
    char *path;
    void *data; /* NULL: there is none */
    size_t bytes;
    size_t queue_bytes;
    unsigned queue_count;
    uint64_t features; /* that the device's drivers may choose from */
} VduseRecord;

/* Where records lie. The caller frees it. */
char *vduse_record_folder(void);
/* A new record for a new device; one that an earlier process has left behind is replaced. */
int vduse_record_create(
    const char *folder, const VduseSpec *spec, VduseRecord *ret_record, Error *err) MUST_CHECK;
/* The record of a device that is in use: -ENOENT if there is none, -EINVAL if spec would not do for the
 * device's driver; that it has more features does not matter. */
int vduse_record_open(
    const char *folder, const VduseSpec *spec, VduseRecord *ret_record, Error *err) MUST_CHECK;
/* The queue's in-flight area. */
void *vduse_record_inflight(const VduseRecord *record, unsigned index);
/* All queues are new ones. */
void vduse_record_clear(VduseRecord *record);
/* Unmaps the record, and removes the file. Fine for {0}. */
void vduse_record_done(VduseRecord *record, bool remove);
