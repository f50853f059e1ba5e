/* SPDX-License-Identifier: Apache-2.0 */
/* The read path. */
#include "drivers/qcow2/qcow2-priv.h"

/* Reads from the backing file; what it does not reach reads as zeroes. */
static int read_backing(Qcow2 *q, uint64_t offset, IoSlice dst)
{
    Edge *backing = q->node->backing;

    if (backing)
        return child_read(backing, offset, dst);
    io_slice_fill(dst, 0);
    return 0;
}

static int read_run(Qcow2 *q, const Map *map, uint64_t offset, IoSlice dst)
{
    switch (map->type) {
    case QCOW2_TYPE_NORMAL:
        return child_read(q->data, map->host, dst);
    case QCOW2_TYPE_ZERO:
    case QCOW2_TYPE_ZERO_HOST:
        io_slice_fill(dst, 0);
        return 0;
    case QCOW2_TYPE_COMPRESSED:
        return inflate_read(q, map->entry, in_cluster(q, offset), dst);
    case QCOW2_TYPE_UNALLOCATED:
    case QCOW2_TYPE_UNALLOCATED_HOST:
    case QCOW2_TYPE_INVALID:
        break;
    }
    return read_backing(q, offset, dst);
}

/* A run ends with its cached slice; goes on when the next slice continues it at the same place. */
static int extend_run(Qcow2 *q, uint64_t offset, uint64_t bytes, Map *map)
{
    while (map->bytes < bytes) {
        Map next;
        int r = map_lookup(q, offset + map->bytes, bytes - map->bytes, &next);

        if (r < 0)
            return r;
        if (next.type != map->type || next.host != map->host + map->bytes)
            break;
        map->bytes += next.bytes;
    }
    return 0;
}

int read_range(Qcow2 *q, uint64_t offset, IoSlice dst)
{
    size_t done = 0;

    while (done < dst.bytes) {
        Map map;
        int r = map_lookup(q, offset + done, dst.bytes - done, &map);

        if (LIKELY(r == 0) && map.type == QCOW2_TYPE_NORMAL && UNLIKELY(map.bytes < dst.bytes - done))
            r = extend_run(q, offset + done, dst.bytes - done, &map);
        if (LIKELY(r == 0))
            r = read_run(q, &map, offset + done, io_slice_part(dst, done, map.bytes));
        if (UNLIKELY(r < 0))
            return r;
        done += map.bytes;
    }
    return 0;
}

int read_is_zero(Qcow2 *q, uint64_t offset, uint64_t bytes)
{
    uint64_t backing = q->node->backing ? node_size(edge_node(q->node->backing)) : 0;

    while (bytes) {
        Map map;
        int r = map_lookup(q, offset, bytes, &map);

        if (r < 0)
            return r;
        if (map.type == QCOW2_TYPE_NORMAL || map.type == QCOW2_TYPE_COMPRESSED)
            return 0;
        if ((map.type == QCOW2_TYPE_UNALLOCATED || map.type == QCOW2_TYPE_UNALLOCATED_HOST) &&
            offset < backing)
            return 0;
        offset += map.bytes;
        bytes -= map.bytes;
    }
    return 1;
}

int image_read(Node *node, uint64_t offset, IoSlice dst)
{
    Qcow2 *q = node->state;
    unsigned epoch;
    int r;

    if (UNLIKELY(q->corrupt))
        return -ENOMEDIUM; /* unusable from now on, as with the reference */
    epoch = request_begin(q);
    r = read_range(q, offset, dst);
    request_end(q, epoch);
    return r;
}
