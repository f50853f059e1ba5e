/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The request path: everything between edge_read() and driver->read(). This is the one place that every
 * request passes, so range and permission checks, alignment, splitting, emulation of what a driver lacks,
 * statistics and the gate that drain closes are here and nowhere else.
 */
#include "block/block-priv.h"

#include "generated/trace.h"

#include <errno.h>
#include <string.h>

const uint8_t zero_buffer[ZERO_BUFFER_BYTES] __attribute__((aligned(4096)));

/* Segments of zero_buffer in one write: 1 MiB. */
#define ZERO_SEGMENTS 16

/* ---- Node level ---- */

static bool needs_alignment(const Node *node)
{
    return node->limits.request_alignment > 1 || node->limits.memory_alignment > 1;
}

/* Size of the next piece of a request, by the driver's limit. */
static uint64_t next_piece(uint64_t remaining, uint64_t max)
{
    return max ? MIN(remaining, max) : remaining;
}

int node_read_aligned(Node *node, uint64_t offset, IoSlice dst)
{
    uint32_t max = node->limits.max_transfer;

    if (LIKELY(!max || dst.bytes <= max))
        return node->driver->read(node, offset, dst);
    for (size_t done = 0; done < dst.bytes;) {
        size_t bytes = MIN(dst.bytes - done, (size_t)max);
        int r = node->driver->read(node, offset + done, io_slice_part(dst, done, bytes));

        if (r < 0)
            return r;
        done += bytes;
    }
    return 0;
}

static int write_pieces(Node *node, uint64_t offset, IoSlice src, unsigned flags)
{
    uint32_t max = node->limits.max_transfer;

    if (LIKELY(!max || src.bytes <= max))
        return node->driver->write(node, offset, src, flags);
    for (size_t done = 0; done < src.bytes;) {
        size_t bytes = MIN(src.bytes - done, (size_t)max);
        int r = node->driver->write(node, offset + done, io_slice_part(src, done, bytes), flags);

        if (r < 0)
            return r;
        done += bytes;
    }
    return 0;
}

/* Makes *value at least `to`; other loops may do the same. */
static void raise_to(_Atomic uint64_t *value, uint64_t to)
{
    uint64_t old = atomic_load_explicit(value, memory_order_relaxed);

    while (UNLIKELY(old < to) && !atomic_compare_exchange_weak(value, &old, to))
        ;
}

/* Bookkeeping of a write, zeroing or discard that has completed, then the FUA that the driver does not do
 * itself. */
static int written(Node *node, uint64_t end, bool flush)
{
    NodePrivate *p = node->private;

    atomic_fetch_add(&p->write_generation, 1);
    raise_to(&p->write_highest, end);
    if (UNLIKELY(end > node->size))
        node->size = end;
    return flush ? node_flush(node) : 0;
}

int node_write_aligned(Node *node, uint64_t offset, IoSlice src, unsigned flags)
{
    unsigned driver_flags = flags & node->write_flags;
    int r;

    if ((flags & REQ_COMPRESSED) && !(driver_flags & REQ_COMPRESSED))
        return -ENOTSUP;
    r = write_pieces(node, offset, src, driver_flags);
    if (UNLIKELY(r < 0))
        return r;
    return written(node, offset + src.bytes, (flags & REQ_FUA) && !(driver_flags & REQ_FUA));
}

static int write_zero_buffers(Node *node, uint64_t offset, uint64_t bytes, unsigned flags)
{
    struct iovec iov[ZERO_SEGMENTS];

    for (unsigned i = 0; i < ZERO_SEGMENTS; i++)
        iov[i] = (struct iovec){.iov_base = (void *)zero_buffer, .iov_len = ZERO_BUFFER_BYTES};
    while (bytes) {
        size_t piece = (size_t)MIN(bytes, ZERO_SEGMENTS * ZERO_BUFFER_BYTES);
        int r = node_write_aligned(
            node, offset, (IoSlice){.iov = iov, .bytes = piece}, flags & (REQ_FUA | REQ_OUTLIVES));

        if (r < 0)
            return r;
        offset += piece;
        bytes -= piece;
    }
    return 0;
}

static int zero_piece(Node *node, uint64_t offset, uint64_t bytes, unsigned flags)
{
    unsigned driver_flags = flags & node->zeroes_flags;
    int r =
        node->driver->write_zeroes ? node->driver->write_zeroes(node, offset, bytes, driver_flags) : -ENOTSUP;

    if (r == -ENOTSUP)
        return flags & REQ_NO_FALLBACK ? r : write_zero_buffers(node, offset, bytes, flags);
    if (r < 0)
        return r;
    return written(node, offset + bytes, (flags & REQ_FUA) && !(driver_flags & REQ_FUA));
}

int node_write_zeroes_aligned(Node *node, uint64_t offset, uint64_t bytes, unsigned flags)
{
    while (bytes) {
        uint64_t piece = next_piece(bytes, node->limits.max_write_zeroes);
        int r = zero_piece(node, offset, piece, flags);

        if (r < 0)
            return r;
        offset += piece;
        bytes -= piece;
    }
    return 0;
}

int node_read(Node *node, uint64_t offset, IoSlice dst)
{
    if (UNLIKELY(needs_alignment(node) && !align_fits(node, offset, dst)))
        return align_read(node, offset, dst);
    return node_read_aligned(node, offset, dst);
}

static int write_zeroes_untracked(Node *node, uint64_t offset, uint64_t bytes, unsigned flags)
{
    if (!node->discard_unmap)
        flags &= ~(unsigned)REQ_MAY_UNMAP;
    if (node->limits.request_alignment > 1)
        return align_write_zeroes(node, offset, bytes, flags);
    return node_write_zeroes_aligned(node, offset, bytes, flags);
}

static int write_serialised(Node *node, uint64_t offset, IoSlice src, unsigned flags)
{
    Serialised serialised;
    int r;

    if (!align_fits(node, offset, src))
        return align_write(node, offset, src, flags);
    serialise_begin(node, &serialised, offset, src.bytes, false);
    r = node_write_aligned(node, offset, src, flags);
    serialise_end(node, &serialised);
    return r;
}

static int write_untracked(Node *node, uint64_t offset, IoSlice src, unsigned flags)
{
    if (UNLIKELY(node->detect_zeroes != BLOCKDEV_DETECT_ZEROES_OPTIONS_OFF) && !(flags & REQ_COMPRESSED) &&
        io_slice_is_zero(src)) {
        bool unmap = node->detect_zeroes == BLOCKDEV_DETECT_ZEROES_OPTIONS_UNMAP;

        return write_zeroes_untracked(node, offset, src.bytes, flags | (unmap ? (unsigned)REQ_MAY_UNMAP : 0));
    }
    if (UNLIKELY(needs_alignment(node)))
        return write_serialised(node, offset, src, flags);
    return node_write_aligned(node, offset, src, flags);
}

int node_flush(Node *node)
{
    NodePrivate *p = node->private;
    uint64_t generation = p->write_generation;
    int r = 0;

    if (p->flushed_generation == generation)
        return 0;
    if (node->driver->flush && !(node->no_flush && (node->driver->flags & DRIVER_PROTOCOL)))
        r = node->driver->flush(node);
    else if (!node->driver->flush && node->file)
        r = edge_flush(node->file);
    if (r == 0)
        raise_to(&p->flushed_generation, generation);
    return r;
}

static int discard_untracked(Node *node, uint64_t offset, uint64_t bytes)
{
    uint64_t align = MAX(node->limits.request_alignment, node->limits.discard_alignment);
    uint64_t first, end;

    /* A discard is a hint: partial blocks at its ends keep their data. The end of the node counts as aligned.
     */
    end = offset + bytes == node->size ? node->size : offset + bytes - (offset + bytes) % MAX(align, 1U);
    first = offset + (align > 1 && offset % align ? align - offset % align : 0);
    while (first < end) {
        uint64_t piece = next_piece(end - first, node->limits.max_discard);
        int r = node->driver->discard(node, first, piece);

        if (r == -ENOTSUP)
            return 0;
        if (r < 0)
            return r;
        written(node, 0, false);
        first += piece;
    }
    return 0;
}

/* ---- Node level: what must happen around a change of the contents, for dirty bitmaps ---- */

static inline bool is_tracked(const Node *node)
{
    return UNLIKELY(atomic_load_explicit(&node->private->tracking, memory_order_relaxed));
}

/* 1: the driver keeps a journal and knows of this write. */
static inline int change_begin(Node *node, uint64_t offset, uint64_t bytes)
{
    return is_tracked(node) ? tracked_write_begin(node, offset, bytes) : 0;
}

/* Also after a failure, which may have changed a part. A bitmap that has come meanwhile is marked, too. */
static inline void change_end(Node *node, uint64_t offset, uint64_t bytes, int begun)
{
    if (is_tracked(node) || UNLIKELY(begun))
        tracked_write_end(node, offset, bytes, begun);
}

static int node_write(Node *node, uint64_t offset, IoSlice src, unsigned flags)
{
    int r, begun = change_begin(node, offset, src.bytes);

    if (UNLIKELY(begun < 0))
        return begun;
    r = write_untracked(node, offset, src, flags);
    change_end(node, offset, src.bytes, begun);
    return r;
}

static int node_write_zeroes(Node *node, uint64_t offset, uint64_t bytes, unsigned flags)
{
    int r, begun = change_begin(node, offset, bytes);

    if (UNLIKELY(begun < 0))
        return begun;
    r = write_zeroes_untracked(node, offset, bytes, flags);
    change_end(node, offset, bytes, begun);
    return r;
}

static int node_discard(Node *node, uint64_t offset, uint64_t bytes)
{
    int r, begun;

    if (!node->discard_unmap || !node->driver->discard)
        return 0;
    begun = change_begin(node, offset, bytes);
    if (UNLIKELY(begun < 0))
        return begun;
    r = discard_untracked(node, offset, bytes);
    change_end(node, offset, bytes, begun);
    return r;
}

/* ---- Edge level: where, gate, checks, statistics ---- */

/* How a request may be served away from the node's home: DriverFlags. */
#define WAYS_TO_READ (DRIVER_ANY_LOOP | DRIVER_READ_ANY_LOOP)
#define WAYS_TO_DO_ELSE DRIVER_ANY_LOOP

static inline bool is_served_on(const Edge *edge, const Loop *loop, unsigned ways)
{
    const Node *node = edge->node;

    return LIKELY(atomic_load_explicit(&node->home, memory_order_relaxed) == loop) ||
           (node->driver->flags & ways);
}

/*
 * The calling loop's lane, or NULL if the request is to be carried out at home. The lane comes first: from
 * then on nobody can drain and move the node without asking this loop.
 */
static inline Lane *lane_here(Edge *edge, unsigned ways)
{
    const Loop *loop = loop_current();
    Lane *lane = atomic_load_explicit(&edge->lanes[loop_index(loop)], memory_order_relaxed);

    if (UNLIKELY(!lane))
        lane = edge_new_lane(edge);
    return is_served_on(edge, loop, ways) ? lane : NULL;
}

static inline bool is_drained(const Edge *edge)
{
    return UNLIKELY(atomic_load_explicit(&edge->drained, memory_order_relaxed));
}

/* False: the node has moved to another loop meanwhile, and the request must go there. */
static bool wait_while_drained(Edge *edge, Lane *lane, unsigned ways)
{
    while (is_drained(edge))
        co_cond_wait_shielded(&lane->changed, NULL);
    return is_served_on(edge, loop_current(), ways);
}

static inline bool enter(Edge *edge, Lane *lane, unsigned ways)
{
    if (edge->parent)
        return true;
    if (is_drained(edge) && !wait_while_drained(edge, lane, ways))
        return false;
    lane->in_flight++;
    return true;
}

static inline void leave(Edge *edge, Lane *lane)
{
    if (!edge->parent && --lane->in_flight == 0 && is_drained(edge))
        co_cond_broadcast(&lane->changed);
}

static int check_write(const Edge *edge, uint64_t offset, uint64_t bytes, unsigned flags)
{
    const Node *node = edge->node;

    if (UNLIKELY(!(edge->perm & (PERM_WRITE | (flags & REQ_UNCHANGED ? PERM_WRITE_UNCHANGED : 0)))))
        return -EPERM;
    if (UNLIKELY(node->read_only || !node->driver->write))
        return -EACCES;
    if (LIKELY(!out_of_range(offset, bytes, node->size)))
        return 0;
    /* Format drivers grow their file by writing at its end. */
    return edge->parent && (edge->perm & PERM_RESIZE) && !out_of_range(offset, bytes, LIMIT_NODE_BYTES)
               ? 0
               : -EIO;
}

static int local_read(Edge *edge, Lane *lane, uint64_t offset, IoSlice dst)
{
    Node *node = edge->node;
    uint64_t start_ns = loop_now_ns();
    int r;

    trace_edge_read(edge->node->name, offset, dst.bytes);
    if (!enter(edge, lane, WAYS_TO_READ))
        return edge_read(edge, offset, dst);
    r = UNLIKELY(out_of_range(offset, dst.bytes, node->size)) ? -EIO : node_read(node, offset, dst);
    leave(edge, lane);
    if (UNLIKELY(r < 0)) {
        lane->stats.failed_reads++;
        return r;
    }
    lane->stats.read_ops++;
    lane->stats.read_bytes += dst.bytes;
    lane->stats.read_ns += loop_now_ns() - start_ns;
    return 0;
}

static int local_write(Edge *edge, Lane *lane, uint64_t offset, IoSlice src, unsigned flags)
{
    uint64_t start_ns = loop_now_ns();
    int r;

    trace_edge_write(edge->node->name, offset, src.bytes, flags);
    if (!enter(edge, lane, WAYS_TO_DO_ELSE))
        return edge_write(edge, offset, src, flags);
    r = check_write(edge, offset, src.bytes, flags);
    if (LIKELY(r == 0))
        r = node_write(edge->node, offset, src, flags);
    leave(edge, lane);
    if (UNLIKELY(r < 0)) {
        lane->stats.failed_writes++;
        return r;
    }
    lane->stats.write_ops++;
    lane->stats.write_bytes += src.bytes;
    lane->stats.write_ns += loop_now_ns() - start_ns;
    lane->stats.write_highest = MAX(lane->stats.write_highest, offset + src.bytes);
    return 0;
}

static int local_write_zeroes(Edge *edge, Lane *lane, uint64_t offset, uint64_t bytes, unsigned flags)
{
    uint64_t start_ns = loop_now_ns();
    int r;

    trace_edge_write_zeroes(edge->node->name, offset, bytes, flags);
    if (!enter(edge, lane, WAYS_TO_DO_ELSE))
        return edge_write_zeroes(edge, offset, bytes, flags);
    r = check_write(edge, offset, bytes, flags);
    if (r == 0 && bytes)
        r = node_write_zeroes(edge->node, offset, bytes, flags);
    leave(edge, lane);
    if (r < 0) {
        lane->stats.failed_writes += r != -ENOTSUP;
        return r;
    }
    lane->stats.zeroes_ops++;
    lane->stats.zeroes_bytes += bytes;
    lane->stats.write_ns += loop_now_ns() - start_ns;
    return 0;
}

static int local_discard(Edge *edge, Lane *lane, uint64_t offset, uint64_t bytes)
{
    uint64_t start_ns = loop_now_ns();
    int r;

    trace_edge_discard(edge->node->name, offset, bytes);
    if (!enter(edge, lane, WAYS_TO_DO_ELSE))
        return edge_discard(edge, offset, bytes);
    r = check_write(edge, offset, bytes, 0);
    if (r == 0 && bytes)
        r = node_discard(edge->node, offset, bytes);
    leave(edge, lane);
    if (r < 0) {
        lane->stats.failed_discards++;
        return r;
    }
    lane->stats.discard_ops++;
    lane->stats.discard_bytes += bytes;
    lane->stats.discard_ns += loop_now_ns() - start_ns;
    return 0;
}

static int local_flush(Edge *edge, Lane *lane)
{
    uint64_t start_ns = loop_now_ns();
    int r;

    trace_edge_flush(edge->node->name);
    if (!enter(edge, lane, WAYS_TO_DO_ELSE))
        return edge_flush(edge);
    r = node_flush(edge->node);
    leave(edge, lane);
    if (r < 0) {
        lane->stats.failed_flushes++;
        return r;
    }
    lane->stats.flush_ops++;
    lane->stats.flush_ns += loop_now_ns() - start_ns;
    return 0;
}

/* ---- Crossing to the home loop ---- */

typedef struct Crossing {
    enum {
        CROSS_READ,
        CROSS_WRITE,
        CROSS_ZEROES,
        CROSS_DISCARD,
        CROSS_FLUSH,
        CROSS_STATUS,
        CROSS_STATUS_ABOVE
    } kind;
    Edge *edge;
    uint64_t offset, bytes;
    IoSlice io;
    unsigned flags;
    BlockStatus *ret_status;
} Crossing;

static int crossed(void *arg)
{
    Crossing *c = arg;

    switch (c->kind) {
    case CROSS_READ:
        return edge_read(c->edge, c->offset, c->io);
    case CROSS_WRITE:
        return edge_write(c->edge, c->offset, c->io, c->flags);
    case CROSS_ZEROES:
        return edge_write_zeroes(c->edge, c->offset, c->bytes, c->flags);
    case CROSS_DISCARD:
        return edge_discard(c->edge, c->offset, c->bytes);
    case CROSS_FLUSH:
        return edge_flush(c->edge);
    case CROSS_STATUS:
        return edge_status(c->edge, c->offset, c->bytes, c->ret_status);
    default:
        return edge_status_above(c->edge, c->offset, c->bytes, c->ret_status);
    }
}

static int cross(Crossing c)
{
    return loop_call(c.edge->node->home, crossed, &c);
}

int edge_read(Edge *edge, uint64_t offset, IoSlice dst)
{
    Lane *lane = lane_here(edge, WAYS_TO_READ);

    return LIKELY(lane) ? local_read(edge, lane, offset, dst)
                        : cross((Crossing){.kind = CROSS_READ, .edge = edge, .offset = offset, .io = dst});
}

int edge_write(Edge *edge, uint64_t offset, IoSlice src, unsigned flags)
{
    Lane *lane = lane_here(edge, WAYS_TO_DO_ELSE);

    return LIKELY(lane)
               ? local_write(edge, lane, offset, src, flags)
               : cross((Crossing){
                     .kind = CROSS_WRITE, .edge = edge, .offset = offset, .io = src, .flags = flags});
}

int edge_write_zeroes(Edge *edge, uint64_t offset, uint64_t bytes, unsigned flags)
{
    Lane *lane = lane_here(edge, WAYS_TO_DO_ELSE);

    return lane ? local_write_zeroes(edge, lane, offset, bytes, flags)
                : cross((Crossing){
                      .kind = CROSS_ZEROES, .edge = edge, .offset = offset, .bytes = bytes, .flags = flags});
}

int edge_discard(Edge *edge, uint64_t offset, uint64_t bytes)
{
    Lane *lane = lane_here(edge, WAYS_TO_DO_ELSE);

    return lane ? local_discard(edge, lane, offset, bytes)
                : cross((Crossing){.kind = CROSS_DISCARD, .edge = edge, .offset = offset, .bytes = bytes});
}

int edge_flush(Edge *edge)
{
    Lane *lane = lane_here(edge, WAYS_TO_DO_ELSE);

    return lane ? local_flush(edge, lane) : cross((Crossing){.kind = CROSS_FLUSH, .edge = edge});
}

int edge_pread(Edge *edge, uint64_t offset, void *data, size_t bytes)
{
    struct iovec iov;

    return edge_read(edge, offset, io_slice_of(&iov, data, bytes));
}

int edge_pwrite(Edge *edge, uint64_t offset, const void *data, size_t bytes, unsigned flags)
{
    struct iovec iov;

    return edge_write(edge, offset, io_slice_of(&iov, (void *)data, bytes), flags);
}

/* ---- Status ---- */

/* A driver that only points at a child: the child may know more (holes), and bounds the length. */
static int refine(BlockStatus *status)
{
    BlockStatus below;
    Node *target = status->map_node;
    int r;

    if (!(status->flags & BLOCK_STATUS_RECURSE) || !(status->flags & BLOCK_STATUS_OFFSET) || !target ||
        !target->driver->status || out_of_range(status->map_offset, 1, target->size))
        return 0;
    r = target->driver->status(
        target, status->map_offset, MIN(status->bytes, target->size - status->map_offset), &below);
    if (r < 0)
        return r;
    if (below.bytes && (below.flags & (BLOCK_STATUS_ZERO | BLOCK_STATUS_DATA))) {
        status->bytes = MIN(status->bytes, below.bytes);
        if (below.flags & BLOCK_STATUS_ZERO)
            status->flags |= BLOCK_STATUS_ZERO;
    }
    return 0;
}

static int node_status(Node *node, uint64_t offset, uint64_t bytes, BlockStatus *ret_status)
{
    BlockStatus status = {.bytes = bytes, .flags = BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED};
    uint32_t align = node->limits.request_alignment;
    uint64_t start = align_down(offset, align);
    int r = 0;

    if (node->driver->status) {
        uint64_t end = MIN(align_up(offset + bytes, align), node->size);

        r = node->driver->status(node, start, end - start, &status);
        if (r == 0)
            r = refine(&status);
    }
    if (r < 0)
        return r;
    status.bytes = status.bytes > offset - start ? MIN(status.bytes - (offset - start), bytes) : bytes;
    status.map_offset += offset - start;
    if (offset + status.bytes >= node->size)
        status.flags |= BLOCK_STATUS_EOF;
    status.flags &= ~(unsigned)BLOCK_STATUS_RECURSE;
    *ret_status = status;
    return 0;
}

static int local_status(Edge *edge, Lane *lane, uint64_t offset, uint64_t bytes, BlockStatus *ret_status)
{
    int r;

    if (!enter(edge, lane, WAYS_TO_DO_ELSE))
        return edge_status(edge, offset, bytes, ret_status);
    r = out_of_range(offset, bytes, edge->node->size) || !bytes
            ? -EINVAL
            : node_status(edge->node, offset, bytes, ret_status);
    leave(edge, lane);
    return r;
}

/* Whose data a filter shows: the node below that decides. */
static Node *skip_filters(Node *node)
{
    while ((node->driver->flags & DRIVER_FILTER) && node->file)
        node = node->file->node;
    return node;
}

static int chain_status(Node *node, uint64_t offset, uint64_t bytes, BlockStatus *ret_status)
{
    unsigned depth = 0;

    for (node = skip_filters(node); node; node = node->backing ? skip_filters(node->backing->node) : NULL) {
        BlockStatus status;
        int r;

        depth++;
        if (offset >= node->size) { /* a shorter backing file reads as zeroes behind its end */
            *ret_status = (BlockStatus){
                .bytes = bytes, .flags = BLOCK_STATUS_ZERO | BLOCK_STATUS_ALLOCATED, .depth = depth};
            return 0;
        }
        r = node_status(node, offset, MIN(bytes, node->size - offset), &status);
        if (r < 0)
            return r;
        bytes = MIN(bytes, status.bytes);
        if (status.flags & BLOCK_STATUS_ALLOCATED) {
            *ret_status = status;
            ret_status->depth = depth;
            return 0;
        }
    }
    *ret_status = (BlockStatus){.bytes = bytes, .flags = BLOCK_STATUS_ZERO};
    return 0;
}

static int local_status_above(
    Edge *edge, Lane *lane, uint64_t offset, uint64_t bytes, BlockStatus *ret_status)
{
    int r;

    if (!enter(edge, lane, WAYS_TO_DO_ELSE))
        return edge_status_above(edge, offset, bytes, ret_status);
    r = out_of_range(offset, bytes, edge->node->size) || !bytes
            ? -EINVAL
            : chain_status(edge->node, offset, bytes, ret_status);
    leave(edge, lane);
    return r;
}

int edge_status(Edge *edge, uint64_t offset, uint64_t bytes, BlockStatus *ret_status)
{
    Lane *lane = lane_here(edge, WAYS_TO_DO_ELSE);

    return lane ? local_status(edge, lane, offset, bytes, ret_status)
                : cross((Crossing){.kind = CROSS_STATUS,
                      .edge = edge,
                      .offset = offset,
                      .bytes = bytes,
                      .ret_status = ret_status});
}

int edge_status_above(Edge *edge, uint64_t offset, uint64_t bytes, BlockStatus *ret_status)
{
    Lane *lane = lane_here(edge, WAYS_TO_DO_ELSE);

    return lane ? local_status_above(edge, lane, offset, bytes, ret_status)
                : cross((Crossing){.kind = CROSS_STATUS_ABOVE,
                      .edge = edge,
                      .offset = offset,
                      .bytes = bytes,
                      .ret_status = ret_status});
}
