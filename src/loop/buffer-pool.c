/* SPDX-License-Identifier: Apache-2.0 */
/* Payload buffers; see buffer-pool.h. Idle buffers are chained through their own first bytes. */
#include "loop/buffer-pool.h"

#include "base/limits.h"
#include "base/mem.h"

#include <assert.h>

#define MIN_SHIFT 12
#define MAX_SHIFT 25

typedef struct Idle {
    struct Idle *next;
} Idle;

struct BufferPool {
    unsigned users;
    size_t idle_bytes;
    Idle *idle[MAX_SHIFT - MIN_SHIFT + 1];
};

static __thread BufferPool *thread_pool;

static unsigned class_of(size_t bytes)
{
    if (bytes <= (size_t)1 << MIN_SHIFT)
        return 0;
    return (unsigned)(64 - __builtin_clzll(bytes - 1)) - MIN_SHIFT;
}

static size_t class_bytes(unsigned class)
{
    return (size_t)1 << (class + MIN_SHIFT);
}

BufferPool *buffer_pool_get(void)
{
    if (!thread_pool)
        thread_pool = mem_new(BufferPool);
    thread_pool->users++;
    return thread_pool;
}

void buffer_pool_put(BufferPool *pool)
{
    assert(pool == thread_pool);
    if (--pool->users)
        return;
    for (unsigned i = 0; i < ARRAY_SIZE(pool->idle); i++) {
        while (pool->idle[i]) {
            Idle *idle = pool->idle[i];

            pool->idle[i] = idle->next;
            free(idle);
        }
    }
    free(TAKE(thread_pool));
}

void *buffer_alloc(BufferPool *pool, size_t bytes)
{
    unsigned class = class_of(bytes);
    Idle *idle;

    assert(class < ARRAY_SIZE(pool->idle));
    idle = pool->idle[class];
    if (!idle)
        return mem_try_aligned(4096, class_bytes(class));
    pool->idle[class] = idle->next;
    pool->idle_bytes -= class_bytes(class);
    return idle;
}

void buffer_free(BufferPool *pool, void *buffer, size_t bytes)
{
    unsigned class = class_of(bytes);
    Idle *idle = buffer;

    if (!buffer)
        return;
    if (pool->idle_bytes + class_bytes(class) > LIMIT_BUFFER_POOL_BYTES) {
        free(buffer);
        return;
    }
    idle->next = pool->idle[class];
    pool->idle[class] = idle;
    pool->idle_bytes += class_bytes(class);
}
