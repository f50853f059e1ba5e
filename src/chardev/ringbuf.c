/* SPDX-License-Identifier: Apache-2.0 */
/* The chardev "ringbuf" (older name "memory"), see ringbuf.h. */
#include "chardev/ringbuf.h"

#include "base/limits.h"
#include "chardev/chardev.h"
#include "chardev/options.h"
#include "generated/types.h"

#include <string.h>

#define DEFAULT_BYTES (64 * KIB)

int ringbuf_init(RingBuf *ring, size_t size)
{
    uint8_t *data = mem_try_zalloc(size, 1);

    if (!data)
        return -ENOMEM;
    *ring = (RingBuf){.data = data, .size = size};
    return 0;
}

void ringbuf_done(RingBuf *ring)
{
    free(ring->data);
    *ring = (RingBuf){0};
}

size_t ringbuf_count(const RingBuf *ring)
{
    return (size_t)(ring->written - ring->taken);
}

void ringbuf_write(RingBuf *ring, const void *data, size_t bytes)
{
    const uint8_t *from = data;

    if (bytes > ring->size) {
        ring->written += bytes - ring->size;
        from += bytes - ring->size;
        bytes = ring->size;
    }
    while (bytes) {
        size_t at = (size_t)(ring->written & (ring->size - 1)), n = MIN(bytes, ring->size - at);

        memcpy(ring->data + at, from, n);
        from += n;
        bytes -= n;
        ring->written += n;
    }
    if (ring->written - ring->taken > ring->size)
        ring->taken = ring->written - ring->size;
}

size_t ringbuf_read(RingBuf *ring, void *data, size_t bytes)
{
    uint8_t *to = data;
    size_t done = 0;

    bytes = MIN(bytes, ringbuf_count(ring));
    while (done < bytes) {
        size_t at = (size_t)(ring->taken & (ring->size - 1)), n = MIN(bytes - done, ring->size - at);

        memcpy(to + done, ring->data + at, n);
        done += n;
        ring->taken += n;
    }
    return done;
}

/* ---- The chardev ---- */

static int ringbuf_create(Chardev *chardev, const ChardevBackend *backend, Error *err)
{
    const ChardevRingbuf *options = backend->u.ringbuf.data; /* memory's branch is the same */
    uint64_t size = options->has_size && options->size ? (uint64_t)options->size : DEFAULT_BYTES;
    int r;

    if (!is_power_of_2(size) || (int64_t)size < 0)
        return err_set(err, -EINVAL, "size of ringbuf chardev must be power of two");
    if (size > LIMIT_RINGBUF_BYTES)
        return err_set(err, -EINVAL, "size of ringbuf chardev must be at most %llu bytes",
            (unsigned long long)LIMIT_RINGBUF_BYTES);
    r = ringbuf_init(chardev_state(chardev), size);
    return r < 0 ? err_set_errno(err, r, "Could not allocate ringbuf") : 0;
}

static void ringbuf_destroy(Chardev *chardev)
{
    ringbuf_done(chardev_state(chardev));
}

static int ringbuf_write_all(Chardev *chardev, const void *data, size_t bytes)
{
    ringbuf_write(chardev_state(chardev), data, bytes);
    return 0;
}

static int ringbuf_from_options(const ChardevOptions *options, ChardevBackend *backend, Error *err)
{
    ChardevRingbuf *ring = backend->u.ringbuf.data = mem_new(ChardevRingbuf);
    uint64_t size;

    if (chardev_option_number(options, "size", &size) && size) {
        ring->has_size = true;
        ring->size = (int64_t)size;
    }
    return 0;
}

RingBuf *chardev_ringbuf(Chardev *chardev)
{
    return chardev_kind(chardev)->write_all == ringbuf_write_all ? chardev_state(chardev) : NULL;
}

const ChardevKind chardev_kind_ringbuf = {
    .name = "ringbuf",
    .state_size = sizeof(RingBuf),
    .create = ringbuf_create,
    .destroy = ringbuf_destroy,
    .write_all = ringbuf_write_all,
    .from_options = ringbuf_from_options,
};

const ChardevKind chardev_kind_memory = {
    .name = "memory",
    .state_size = sizeof(RingBuf),
    .create = ringbuf_create,
    .destroy = ringbuf_destroy,
    .write_all = ringbuf_write_all,
    .from_options = ringbuf_from_options,
};
