/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Payload buffers of exports and drivers on one loop: page-aligned, in sizes that are powers of two from 4 KiB to 32
 * MiB, kept for reuse up to LIMIT_BUFFER_POOL_BYTES. A buffer must go back to the pool, on the loop, that it
 * came from.
 */
#pragma once

#include "base/macros.h"

typedef struct BufferPool BufferPool;

/* The calling thread's pool, made on first use; each call is paired with a buffer_pool_put(). */
BufferPool *buffer_pool_get(void);
void buffer_pool_put(BufferPool *pool);

/* At least `bytes` bytes (up to 32 MiB) with arbitrary contents, or NULL. */
void *buffer_alloc(BufferPool *pool, size_t bytes) MUST_CHECK;
/* bytes as in buffer_alloc(). NULL is fine. */
void buffer_free(BufferPool *pool, void *buffer, size_t bytes);
