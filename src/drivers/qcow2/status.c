/* SPDX-License-Identifier: Apache-2.0 */
/* Status of ranges: which layer decides the contents, and where they are. */
#include "drivers/qcow2/qcow2-priv.h"

/* ---- Preallocation ---- */

/* Clusters in use, counted up to a threshold. */
static int count_used(Qcow2 *q, uint64_t clusters, uint64_t threshold, bool *ret_reached)
{
    uint64_t used = 0, steps = 0;

    for (uint64_t i = 0; i < clusters && used < threshold; i++) {
        uint64_t refs;
        int r = refcount_read(q, i, &refs);

        if (r < 0)
            return r;
        used += refs != 0;
        refcount_breathe(&steps, 1);
    }
    *ret_reached = used >= threshold;
    return 0;
}

/*
 * Clusters that were allocated in advance have no data yet: asking the file for its holes then tells data
 * from zeroes. Otherwise it is a system call for nothing. An image counts as preallocated when it uses
 * noticeably more clusters than its file has space (by the reference's measure: a tenth, and at least two
 * clusters). Looked at once.
 */
static int detect_preallocation(Qcow2 *q)
{
    Node *file = edge_node(q->file);
    uint64_t clusters = div_round_up(node_size(file), q->cluster_size), stored, threshold;
    int64_t bytes;
    int r;

    if (q->preallocated_known)
        return 0;
    bytes = node_driver(file)->allocated_size ? node_driver(file)->allocated_size(file) : -ENOTSUP;
    stored = (uint64_t)MAX(bytes, (int64_t)0) >> q->cluster_bits;
    threshold = MAX(stored * 10 / 9, stored + 2);
    if (bytes >= 0 && clusters >= threshold) {
        r = image_load_reftable(q);
        if (r == 0)
            r = count_used(q, clusters, threshold, &q->preallocated);
        if (r < 0)
            return r;
    }
    q->preallocated_known = true;
    return 0;
}

/* ---- Status ---- */

static void status_of(const Qcow2 *q, const Map *map, BlockStatus *status)
{
    *status = (BlockStatus){.bytes = map->bytes};
    switch (map->type) {
    case QCOW2_TYPE_NORMAL:
        status->flags = BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED;
        if (q->crypt)
            break;
        status->flags |= BLOCK_STATUS_OFFSET;
        if (q->preallocated)
            status->flags |= BLOCK_STATUS_RECURSE;
        status->map_offset = map->host;
        status->map_node = edge_node(q->data);
        break;
    case QCOW2_TYPE_ZERO_HOST:
        status->flags = BLOCK_STATUS_ZERO | BLOCK_STATUS_ALLOCATED | BLOCK_STATUS_OFFSET;
        status->map_offset = map->host;
        status->map_node = edge_node(q->data);
        break;
    case QCOW2_TYPE_ZERO:
        status->flags = BLOCK_STATUS_ZERO | BLOCK_STATUS_ALLOCATED;
        break;
    case QCOW2_TYPE_COMPRESSED:
        status->flags = BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED | BLOCK_STATUS_COMPRESSED;
        break;
    case QCOW2_TYPE_UNALLOCATED:
    case QCOW2_TYPE_UNALLOCATED_HOST:
    case QCOW2_TYPE_INVALID:
        break;
    }
}

/* Grows a status over the runs that follow and look alike to the block layer. */
int image_status(Node *node, uint64_t offset, uint64_t bytes, BlockStatus *ret_status)
{
    Qcow2 *q = node->state;
    unsigned epoch = request_begin(q);
    BlockStatus status = {0}, next;
    Map map;
    int r = detect_preallocation(q);

    while (r == 0 && status.bytes < bytes) {
        r = map_lookup(q, offset + status.bytes, bytes - status.bytes, &map);
        if (r < 0)
            break;
        status_of(q, &map, &next);
        if (!status.bytes) {
            status = next;
            continue;
        }
        if (next.flags != status.flags || next.map_node != status.map_node ||
            (next.map_node && next.map_offset != status.map_offset + status.bytes))
            break;
        status.bytes += next.bytes;
    }
    request_end(q, epoch);
    if (r < 0 && !status.bytes)
        return r;
    *ret_status = status;
    return 0;
}
