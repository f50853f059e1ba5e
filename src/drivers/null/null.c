/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The drivers `null-co` and `null-aio`: a device that takes everything and stores nothing, for measuring what
 * is above it.
 *
 * Reads always return zeroes: a buffer left as it is might show one client what another has read before. The
 * option read-zeroes only says so in the status of a range.
 */
#include "block/driver.h"
#include "generated/types.h"

#include <errno.h>

#define NULL_SIZE_DEFAULT (1 * GIB)
#define SECTOR_BYTES 512

typedef struct NullState {
    uint64_t latency_ns;
    bool read_zeroes;
    bool has_options; /* of those that decide what is read */
} NullState;

static int null_open(Node *node, const BlockdevOptions *options, Error *err)
{
    const BlockdevOptionsNull *o =
        options->driver == BLOCKDEV_DRIVER_NULL_CO ? &options->u.null_co : &options->u.null_aio;
    NullState *s = node->state;

    if (o->has_size && o->size < 0)
        return err_set(err, -EINVAL, "Value '%lld' is out of range for parameter 'size'", (long long)o->size);
    if (o->has_latency_ns && o->latency_ns > INT64_MAX)
        return err_set(err, -EINVAL, "latency-ns is invalid");
    node->size = o->has_size ? align_up((uint64_t)o->size, SECTOR_BYTES) : NULL_SIZE_DEFAULT;
    node->write_flags = REQ_FUA;
    node->zeroes_flags = REQ_FUA | REQ_MAY_UNMAP | REQ_NO_FALLBACK;
    s->latency_ns = o->latency_ns;
    s->read_zeroes = o->read_zeroes;
    s->has_options = o->has_size || o->has_read_zeroes;
    return 0;
}

static inline int delay(const Node *node)
{
    const NullState *s = node->state;

    if (LIKELY(!s->latency_ns))
        return 0;
    co_shield_begin();
    (void)!co_sleep_ns(s->latency_ns);
    co_shield_end();
    return 0;
}

static int null_read(Node *node, uint64_t offset, IoSlice dst)
{
    io_slice_fill(dst, 0);
    return delay(node);
}

static int null_write(Node *node, uint64_t offset, IoSlice src, unsigned flags)
{
    return delay(node);
}

static int null_write_zeroes(Node *node, uint64_t offset, uint64_t bytes, unsigned flags)
{
    return delay(node);
}

static int null_flush(Node *node)
{
    return delay(node);
}

static int null_status(Node *node, uint64_t offset, uint64_t bytes, BlockStatus *ret_status)
{
    const NullState *s = node->state;

    *ret_status = (BlockStatus){
        .bytes = bytes,
        .flags = BLOCK_STATUS_OFFSET | BLOCK_STATUS_ALLOCATED |
                 (s->read_zeroes ? BLOCK_STATUS_ZERO : BLOCK_STATUS_DATA),
        .map_offset = offset,
        .map_node = node,
    };
    return 0;
}

static int64_t null_allocated_size(Node *node)
{
    return 0;
}

static bool null_filename_is_plain(Node *node)
{
    const NullState *s = node->state;

    return !s->has_options;
}

#define NULL_DRIVER                                                                                 \
    .state_size = sizeof(NullState), .flags = DRIVER_PROTOCOL | DRIVER_ANY_LOOP, .open = null_open, \
    .read = null_read, .write = null_write, .write_zeroes = null_write_zeroes, .flush = null_flush, \
    .status = null_status, .allocated_size = null_allocated_size,                                   \
    .filename_is_plain = null_filename_is_plain

extern const Driver driver_null_co, driver_null_aio;
const Driver driver_null_co = {.name = "null-co", NULL_DRIVER};
const Driver driver_null_aio = {.name = "null-aio", NULL_DRIVER};
