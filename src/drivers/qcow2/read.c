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

static inline int read_run(Qcow2 *q, const Map *map, uint64_t offset, IoSlice dst)
{
    switch (map->type) {
    case QCOW2_TYPE_NORMAL:
        return UNLIKELY(q->crypt) ? crypt_read(q, offset, map->host, dst)
                                  : child_read(q->data, map->host, dst);
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

/* ---- At home, and away from it ---- */

typedef struct ReadCall {
    Qcow2 *q;
    uint64_t offset;
    IoSlice dst;
} ReadCall;

static int read_at_home(void *arg)
{
    const ReadCall *call = arg;

    return image_read(call->q->node, call->offset, call->dst);
}

static int call_home(Qcow2 *q, uint64_t offset, IoSlice dst)
{
    ReadCall call = {.q = q, .offset = offset, .dst = dst};

    return loop_call(q->node->home, read_at_home, &call);
}

static inline int lookup(Qcow2 *q, Away *away, uint64_t offset, uint64_t bytes, Map *ret_map)
{
    return away ? away_lookup(q, away, offset, bytes, ret_map) : map_lookup(q, offset, bytes, ret_map);
}

/* A run ends with its cached slice; goes on when the next slice continues it at the same place. */
static int extend_run(Qcow2 *q, Away *away, uint64_t offset, uint64_t bytes, Map *map)
{
    while (map->bytes < bytes) {
        Map next;
        int r = lookup(q, away, offset + map->bytes, bytes - map->bytes, &next);

        if (r < 0)
            return r;
        if (next.type != map->type || next.host != map->host + map->bytes)
            break;
        map->bytes += next.bytes;
    }
    return 0;
}

/* ---- Compressed clusters side by side ---- */

/* Pieces of one request at a time. */
#define MAX_TOGETHER UINT64_C(8)

typedef struct TogetherRead {
    Qcow2 *q;
    uint64_t offset;
    IoSlice dst;
    unsigned piece; /* whole clusters to read in one go */
    size_t taken;   /* bytes that somebody reads or has read */
    int result;
} TogetherRead;

/* Adds whole compressed clusters to a piece as long as they follow; returns its length. */
static size_t gather(const TogetherRead *t, size_t at, Map *map, InflatePiece *piece)
{
    Qcow2 *q = t->q;
    size_t bytes = 0;

    while (map->type == QCOW2_TYPE_COMPRESSED && map->bytes == q->cluster_size && piece->count < t->piece &&
           inflate_piece_add(q, piece, map->entry)) {
        bytes += q->cluster_size;
        if (at + bytes == t->dst.bytes ||
            map_lookup(q, t->offset + at + bytes, t->dst.bytes - at - bytes, map) < 0)
            break; /* whoever takes what is there will see why */
    }
    return bytes;
}

/* Reads one part after the other of those that nobody has taken yet. */
static void read_some(void *arg)
{
    TogetherRead *t = arg;

    while (t->taken < t->dst.bytes && t->result == 0) {
        InflatePiece piece = {0};
        size_t at = t->taken, bytes;
        Map map;
        int r = map_lookup(t->q, t->offset + at, t->dst.bytes - at, &map);

        bytes = r == 0 ? gather(t, at, &map, &piece) : 0;
        if (r == 0 && at != t->taken) /* a lookup had to wait */
            continue;
        if (r == 0) {
            IoSlice part = io_slice_part(t->dst, at, bytes ? bytes : map.bytes);

            t->taken += part.bytes;
            r = bytes ? inflate_piece(t->q, &piece, part) : read_run(t->q, &map, t->offset + at, part);
        }
        t->result = t->result < 0 ? t->result : r;
    }
}

static __attribute__((noinline)) int read_together(Qcow2 *q, uint64_t offset, IoSlice dst)
{
    uint64_t clusters = div_round_up(dst.bytes, q->cluster_size), others = MIN(clusters, MAX_TOGETHER) - 1;
    TogetherRead t = {.q = q, .offset = offset, .dst = dst};
    CoGroup group;

    t.piece = (unsigned)MAX(
        MIN(div_round_up(clusters, others + 1), INFLATE_PIECE_BYTES >> q->cluster_bits), UINT64_C(1));
    co_group_init(&group);
    while (others--)
        co_start(&group, "qcow2-read", read_some, &t);
    read_some(&t);
    co_group_join(&group);
    return t.result;
}

/* The rest of a request, which begins with a compressed cluster. What unpacks them is at home. */
static int read_compressed(Qcow2 *q, Away *away, const Map *map, uint64_t offset, IoSlice dst)
{
    if (away)
        return call_home(q, offset, dst);
    return map->bytes < dst.bytes || dst.bytes == q->cluster_size ? read_together(q, offset, dst)
                                                                  : read_run(q, map, offset, dst);
}

/* away: NULL at home. Inline, so that home pays nothing for it. */
static inline __attribute__((always_inline)) int read_runs(Qcow2 *q, Away *away, uint64_t offset, IoSlice dst)
{
    size_t done = 0;

    while (done < dst.bytes) {
        Map map;
        int r = lookup(q, away, offset + done, dst.bytes - done, &map);

        if (LIKELY(r == 0) && map.type == QCOW2_TYPE_NORMAL && UNLIKELY(map.bytes < dst.bytes - done))
            r = extend_run(q, away, offset + done, dst.bytes - done, &map);
        if (UNLIKELY(r < 0))
            return r;
        if (UNLIKELY(map.type == QCOW2_TYPE_COMPRESSED))
            return read_compressed(q, away, &map, offset + done, io_slice_part(dst, done, dst.bytes - done));
        r = read_run(q, &map, offset + done, io_slice_part(dst, done, map.bytes));
        if (UNLIKELY(r < 0))
            return r;
        done += map.bytes;
    }
    return 0;
}

int read_range(Qcow2 *q, uint64_t offset, IoSlice dst)
{
    return read_runs(q, NULL, offset, dst);
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

/* On a loop that is not the node's home. */
static __attribute__((noinline)) int read_away(Qcow2 *q, uint64_t offset, IoSlice dst)
{
    Away *away = away_get(q);
    _Atomic uint64_t *inflight;
    int r;

    if (UNLIKELY(!away))
        return call_home(q, offset, dst);
    inflight = away_begin(away);
    r = read_runs(q, away, offset, dst);
    away_end(inflight);
    return r;
}

int image_read(Node *node, uint64_t offset, IoSlice dst)
{
    Qcow2 *q = node->state;
    unsigned epoch;
    int r;

    if (UNLIKELY(loop_current() != node->home))
        return read_away(q, offset, dst);
    if (UNLIKELY(q->corrupt))
        return -ENOMEDIUM; /* unusable from now on, as with the reference */
    epoch = request_begin(q);
    r = read_range(q, offset, dst);
    request_end(q, epoch);
    return r;
}
