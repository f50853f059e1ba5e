/* SPDX-License-Identifier: Apache-2.0 */
/* A buffer that keeps the last bytes written to it, and the chardev around one. */
#pragma once

#include "base/macros.h"

typedef struct Chardev Chardev;

/* {0} is empty and holds nothing. written - taken is what can be read. */
typedef struct RingBuf {
    uint8_t *data;
    size_t size; /* a power of two */
    uint64_t written, taken;
} RingBuf;

/* 0 or -ENOMEM. size must be a power of two. */
int ringbuf_init(RingBuf *ring, size_t size) MUST_CHECK;
void ringbuf_done(RingBuf *ring);
/* Appends; what does not fit pushes out the oldest bytes. */
void ringbuf_write(RingBuf *ring, const void *data, size_t bytes);
/* Takes up to `bytes` of the oldest bytes; returns how many. */
size_t ringbuf_read(RingBuf *ring, void *data, size_t bytes);
size_t ringbuf_count(const RingBuf *ring);

/* The front end's output that nobody has taken yet; NULL when chardev is of another kind. */
RingBuf *chardev_ringbuf(Chardev *chardev);
