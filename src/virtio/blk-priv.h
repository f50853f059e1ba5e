/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the block device share. */
#pragma once

#include "virtio/blk.h"

#include <stdatomic.h>

struct VirtioBlk {
    Edge *edge;
    uint32_t block_bytes;
    bool writable, writethrough;
    VirtioBlkConfig config;    /* but for the capacity; main loop */
    uint64_t features;         /* accepted by the driver; main loop */
    _Atomic uint64_t capacity; /* sectors */
    atomic_bool durable;       /* writes are, before they are answered */
    atomic_bool outlives;      /* writes survive this process when they are answered */
    uint8_t serial[VIRTIO_BLK_SERIAL_BYTES];
};

/* Segments that a request holds without further memory. */
#define BLK_INLINE_IOV 16

/* A longer iovec array; kept by its queue for the next request that needs one. */
typedef struct BlkIovBuffer {
    struct BlkIovBuffer *next;
    size_t capacity;
    struct iovec iov[];
} BlkIovBuffer;

/* A request of the driver, on the stack of the coroutine that serves it. */
typedef struct BlkRequest {
    VirtElement element;
    VirtioBlkHeader header;
    uint8_t *status;          /* where the status byte belongs, in guest memory */
    IoSlice payload;          /* behind the header, or in front of the status byte */
    BlkIovBuffer *iov_buffer; /* NULL: inline_iov */
    struct iovec inline_iov[BLK_INLINE_IOV];
} BlkRequest;

/*
 * Takes apart what was popped into request->element, whose iovecs are valid only now. *spare are buffers to
 * take from. -EPROTO: has no room for a header or a status byte; -ENOMEM (also: too many segments).
 */
int blk_request_parse(BlkRequest *request, BlkIovBuffer **spare) MUST_CHECK;
/* Carries it out and writes the status byte, which it returns. Waits. */
VirtioBlkStatus blk_request_serve(
    const VirtioBlk *blk, const VirtioMemory *memory, const BlkRequest *request);
/* Writes the status byte. */
void blk_request_answer(const VirtioMemory *memory, const BlkRequest *request, VirtioBlkStatus status);
