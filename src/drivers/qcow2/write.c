/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The write path. Where the mapping is the image's own, data goes straight to its place. Elsewhere a run of
 * clusters is planned, registered so that nobody else changes it, filled (new data, and around it what the
 * clusters read as so far) and only then entered into the L2 table.
 */
#include "base/mem.h"
#include "drivers/qcow2/qcow2-priv.h"

#define WRITE_VECTORS 128
#define ZERO_BYTES (64 * KIB)
/* From here on zeroes around new data are left to the child's write_zeroes. */
#define ZERO_PART_BYTES (128 * KIB)

static const uint8_t zeroes[ZERO_BYTES] __attribute__((aligned(4096)));

/* ---- Planning ---- */

typedef struct NewWrite {
    AllocRange range;
    uint64_t offset, end; /* guest bytes of the request that are written now */
    uint64_t first;       /* guest offset of the first cluster */
    uint64_t clusters;
    uint64_t fill_start,
        fill_end;   /* what is written in all: [offset, end) and what must be copied around it */
    uint64_t host;  /* of the first cluster */
    bool keep;      /* the clusters have host clusters of their own already */
    bool whole;     /* all subclusters become allocated */
    bool fresh;     /* the host clusters read as zeroes */
    bool unordered; /* what was done for it must be durable before the mapping is written */
} NewWrite;

/* The host cluster of an entry may be written in place. */
static bool owns_host(const Qcow2 *q, uint64_t entry)
{
    uint64_t host = entry & QCOW2_OFFSET_MASK;

    return !(entry & QCOW2_COMPRESSED) && (entry & QCOW2_COPIED) && (host || q->data_file) &&
           !in_cluster(q, host);
}

static Qcow2Type sub_type(const Qcow2 *q, uint64_t entry, uint64_t subs, uint64_t guest)
{
    return q->extended ? qcow2_subcluster_type(
                             entry, subs, (unsigned)(in_cluster(q, guest) >> q->sub_bits), q->data_file)
                       : qcow2_entry_type(entry, q->has_zero, q->data_file);
}

/* A cluster whose old data must be copied as a whole: with subclusters, which of them had data is not worth
 * looking at. */
static bool copies_whole(const Qcow2 *q, uint64_t entry, uint64_t subs)
{
    if (!q->extended || (entry & QCOW2_COMPRESSED))
        return true;
    return !owns_host(q, entry) && (subs & QCOW2_SUB_ALL_ALLOCATED);
}

/* True when a write that starts in this cluster would go in place. */
static bool starts_in_place(const Qcow2 *q, uint64_t entry, uint64_t subs, uint64_t guest)
{
    return owns_host(q, entry) && sub_type(q, entry, subs, guest) == QCOW2_TYPE_NORMAL;
}

/* Counts the clusters that can be handled like the first one. */
static void plan_run(const Qcow2 *q, const uint8_t *table, uint32_t index, NewWrite *w)
{
    uint64_t max =
        MIN(div_round_up(w->end - w->first, q->cluster_size), (UINT64_C(1) << q->slice_l2_bits) - index);
    uint64_t n = 1;

    while (n < max) {
        uint64_t entry = slice_entry(q, table, index + (uint32_t)n);
        uint64_t subs = slice_subclusters(q, table, index + (uint32_t)n),
                 guest = w->first + (n << q->cluster_bits);

        if (owns_host(q, entry) != w->keep || starts_in_place(q, entry, subs, guest))
            break;
        if (w->keep && (entry & QCOW2_OFFSET_MASK) != w->host + (n << q->cluster_bits))
            break;
        if (q->extended && (w->whole || copies_whole(q, entry, subs)))
            break;
        n++;
    }
    w->clusters = n;
}

/* Shortens the plan to its first n clusters. */
static void plan_trim(const Qcow2 *q, NewWrite *w, uint64_t n)
{
    w->clusters = n;
    w->end = MIN(w->end, w->first + (n << q->cluster_bits));
}

/* Where copying begins and ends, from the entries of the first and the last cluster. */
static void plan_fill(const Qcow2 *q, const uint8_t *table, uint32_t index, NewWrite *w)
{
    uint32_t last = index + (uint32_t)w->clusters - 1;
    uint64_t unit = w->whole ? q->cluster_size : q->sub_size;

    w->fill_start = align_down(w->offset, unit);
    w->fill_end = align_up(w->end, unit);
    if (q->data_file) /* a data file belongs to us only as far as the disk reaches */
        w->fill_end = MAX(w->end, MIN(w->fill_end, q->node->size));
    if (!w->keep)
        return;
    if (sub_type(q, slice_entry(q, table, index), slice_subclusters(q, table, index), w->offset) ==
        QCOW2_TYPE_NORMAL)
        w->fill_start = w->offset;
    if (sub_type(q, slice_entry(q, table, last), slice_subclusters(q, table, last), w->end - 1) ==
        QCOW2_TYPE_NORMAL)
        w->fill_end = w->end;
}

/* Plans and registers a write; 1: it waited for someone else's, look at the mapping again. */
static int plan_write(Qcow2 *q, uint64_t offset, uint64_t bytes, NewWrite *w)
{
    CacheEntry *slice;
    uint32_t index;
    uint64_t entry, subs;
    int r = map_for_write(q, offset, &slice, &index);

    if (r < 0)
        return r;
    *w = (NewWrite){.offset = offset,
        .end = offset + bytes,
        .first = align_down(offset, q->cluster_size),
        .unordered = true};
    if (alloc_wait(q, w->first, w->first + q->cluster_size))
        return 1;
    entry = slice_entry(q, slice->table, index);
    subs = slice_subclusters(q, slice->table, index);
    if (starts_in_place(q, entry, subs, offset))
        return 1; /* somebody else has just allocated it */
    w->keep = owns_host(q, entry);
    w->host = w->keep ? entry & QCOW2_OFFSET_MASK : 0;
    w->whole = copies_whole(q, entry, subs);
    plan_run(q, slice->table, index, w);
    plan_trim(q, w,
        (alloc_first(q, w->first, w->first + (w->clusters << q->cluster_bits)) - w->first) >>
            q->cluster_bits);
    plan_fill(q, slice->table, index, w);
    alloc_begin(q, &w->range, w->first, w->first + (w->clusters << q->cluster_bits));
    return 0;
}

/* Host clusters for the plan. May shorten it. */
static int plan_place(Qcow2 *q, NewWrite *w)
{
    ClusterRun run;
    int r;

    if (w->keep)
        return q->data_file ? 0 : write_overlap_check(q, w->host, w->clusters << q->cluster_bits, 0);
    if (q->data_file) {
        w->host = w->first;
        return 0;
    }
    r = refcount_alloc(q, w->clusters, &run);
    if (r < 0)
        return r;
    w->host = run.offset;
    w->fresh = run.fresh;
    w->unordered = !run.fresh || !run.durable;
    if (run.count < w->clusters) {
        plan_trim(q, w, run.count);
        w->fill_end = w->end;
    }
    return 0;
}

/* ---- Filling ---- */

/* What surrounds the new data on one side. */
typedef struct Around {
    uint64_t start, bytes; /* guest */
    bool zero;
    uint8_t *data;
} Around;

static uint8_t *copy_buffer_get(Qcow2 *q)
{
    uint8_t *buffer = q->copy_buffers;

    if (!buffer)
        return mem_try_aligned(4096, MAX(q->cluster_size, UINT64_C(4096)));
    memcpy(&q->copy_buffers, buffer, sizeof(uint8_t *));
    return buffer;
}

static void copy_buffer_put(Qcow2 *q, uint8_t *buffer)
{
    if (!buffer)
        return;
    memcpy(buffer, &q->copy_buffers, sizeof(uint8_t *));
    q->copy_buffers = buffer;
}

/* Finds out what a side holds so far. Beyond the end of the disk there are zeroes. */
static int around_read(Qcow2 *q, Around *a)
{
    uint64_t valid = a->start < q->node->size ? MIN(a->bytes, q->node->size - a->start) : 0;
    struct iovec iov;
    int r = a->bytes ? read_is_zero(q, a->start, valid) : 1;

    if (r < 0)
        return r;
    a->zero = r == 1;
    if (a->zero)
        return 0;
    a->data = copy_buffer_get(q);
    if (!a->data)
        return -ENOMEM;
    memset(a->data + valid, 0, a->bytes - valid);
    return read_range(q, a->start, io_slice_of(&iov, a->data, valid));
}

static unsigned around_vectors(const Around *a, struct iovec *iov)
{
    unsigned n = 0;

    if (a->data) {
        iov[0] = (struct iovec){.iov_base = a->data, .iov_len = a->bytes};
        return 1;
    }
    for (uint64_t done = 0; done < a->bytes; done += iov[n++].iov_len)
        iov[n] = (struct iovec){.iov_base = (void *)zeroes, .iov_len = MIN(a->bytes - done, ZERO_BYTES)};
    return n;
}

/* A side that needs no part in the data write: it is empty, reads as zeroes anyway, or is zeroed on its own.
 * With encryption zeroes are data like any other. */
static int around_settle(Qcow2 *q, const NewWrite *w, Around *a)
{
    int r = 0;

    if (!a->zero || !a->bytes || q->crypt)
        return 0;
    if (!w->fresh) {
        if (a->bytes < ZERO_PART_BYTES)
            return 0;
        r = child_write_zeroes(q->data, w->host + (a->start - w->first), a->bytes);
    }
    a->bytes = 0;
    return r;
}

static int write_around(Qcow2 *q, const NewWrite *w, const Around *a)
{
    struct iovec iov[WRITE_VECTORS];

    if (!a->bytes)
        return 0;
    around_vectors(a, iov);
    return data_write(q, w->host + (a->start - w->first), (IoSlice){.iov = iov, .bytes = a->bytes}, 0);
}

/* One write for all if the vectors suffice. */
static int write_filled(Qcow2 *q, const NewWrite *w, const Around *head, const Around *tail, IoSlice src)
{
    uint64_t start = head->bytes ? head->start : w->offset;
    struct iovec iov[WRITE_VECTORS];
    unsigned n = around_vectors(head, iov), tail_n = (unsigned)div_round_up(tail->bytes, ZERO_BYTES) + 1;
    size_t taken;
    int r;

    if (!head->bytes && !tail->bytes)
        return data_write(q, w->host + (w->offset - w->first), src, 0);
    n += io_slice_to_iov(src, iov + n, WRITE_VECTORS - n - tail_n, &taken);
    if (taken == src.bytes) {
        if (tail->bytes)
            around_vectors(tail, iov + n);
        return data_write(q, w->host + (start - w->first),
            (IoSlice){.iov = iov, .bytes = head->bytes + src.bytes + tail->bytes}, 0);
    }
    r = write_around(q, w, head);
    if (r == 0)
        r = data_write(q, w->host + (w->offset - w->first), src, 0);
    return r < 0 ? r : write_around(q, w, tail);
}

static int fill(Qcow2 *q, const NewWrite *w, IoSlice src)
{
    Around head = {.start = w->fill_start, .bytes = w->offset - w->fill_start};
    Around tail = {.start = w->end, .bytes = w->fill_end - w->end};
    int r = around_read(q, &head);

    if (r == 0)
        r = around_read(q, &tail);
    if (r == 0)
        r = around_settle(q, w, &head);
    if (r == 0)
        r = around_settle(q, w, &tail);
    if (r == 0)
        r = write_filled(q, w, &head, &tail, src);
    copy_buffer_put(q, head.data);
    copy_buffer_put(q, tail.data);
    return r;
}

/* Whether it matters that the mapping may become durable before the data. Not if either way what was there
 * before is found: zeroes. */
static int find_order(Qcow2 *q, NewWrite *w)
{
    int r;

    w->unordered |= q->crypt != NULL; /* what was never written would be decrypted */
    if (w->unordered)
        return 0;
    r = read_is_zero(q, w->fill_start, MIN(w->fill_end, q->node->size) - w->fill_start);
    w->unordered = r == 0;
    return MIN(r, 0);
}

/* ---- Linking ---- */

/* Bits [from, to) of a subcluster mask. */
static uint64_t sub_bits(unsigned from, unsigned to)
{
    return ((UINT64_C(1) << to) - 1) & ~((UINT64_C(1) << from) - 1);
}

static uint64_t linked_subclusters(const Qcow2 *q, const NewWrite *w, uint64_t cluster, uint64_t old)
{
    uint64_t start = MAX(w->fill_start, cluster) - cluster,
             end = MIN(w->fill_end, cluster + q->cluster_size) - cluster;
    uint64_t bits = sub_bits((unsigned)(start >> q->sub_bits), (unsigned)div_round_up(end, q->sub_size));

    return w->whole ? QCOW2_SUB_ALL_ALLOCATED : (old | bits) & ~(bits << 32);
}

static int link_clusters(Qcow2 *q, const NewWrite *w)
{
    CacheEntry *slice;
    uint32_t index;
    uint8_t *table;
    int r = map_for_write(q, w->first, &slice, &index);

    if (r < 0)
        return r;
    table = cache_modify(&q->l2, slice);
    q->unordered |= w->unordered;
    for (uint32_t i = 0; i < w->clusters; i++) {
        uint64_t guest = w->first + ((uint64_t)i << q->cluster_bits);
        uint64_t old = slice_entry(q, table, index + i), subs = slice_subclusters(q, table, index + i);

        slice_set(q, guest, table, index + i, (w->host + ((uint64_t)i << q->cluster_bits)) | QCOW2_COPIED,
            q->extended ? linked_subclusters(q, w, guest, subs) : 0);
        if (!w->keep)
            map_release(q, old, q->pass_discard_other);
    }
    return 0;
}

/* Writes a first part of a request where the mapping must change; *ret_bytes may be 0: look again. */
static int write_new(Qcow2 *q, uint64_t offset, IoSlice src, size_t *ret_bytes)
{
    NewWrite w;
    int r = plan_write(q, offset, src.bytes, &w);

    *ret_bytes = 0;
    if (r != 0)
        return MIN(r, 0);
    r = plan_place(q, &w);
    if (r < 0) {
        alloc_end(&w.range);
        return r;
    }
    if (w.keep || q->data_file)
        in_place_wait(q, w.fill_start, w.fill_end);
    r = find_order(q, &w);
    if (r == 0)
        r = fill(q, &w, io_slice_part(src, 0, w.end - w.offset));
    if (r == 0)
        r = link_clusters(q, &w);
    if (r < 0 && !w.keep && !q->data_file)
        free_range(q, FREE_READY, w.host, w.clusters << q->cluster_bits, false);
    alloc_end(&w.range);
    *ret_bytes = w.end - w.offset;
    return r;
}

static int write_in_place(Qcow2 *q, const Map *map, uint64_t offset, IoSlice src, unsigned flags, Kept *kept)
{
    int r = q->data_file ? 0 : write_overlap_check(q, map->host, map->bytes, 0);
    AllocRange range;

    if (UNLIKELY(r < 0))
        return r;
    *kept = MIN(*kept, map->kept);
    in_place_begin(q, &range, offset, offset + src.bytes);
    r = data_write(q, map->host, src, *kept == KEPT_ON_DISK ? flags & REQ_FUA : 0);
    alloc_end(&range);
    return r;
}

int write_range(Qcow2 *q, uint64_t offset, IoSlice src, unsigned flags, Kept *ret_kept)
{
    size_t done = 0;

    *ret_kept = KEPT_ON_DISK;
    while (done < src.bytes) {
        size_t bytes;
        Map map;
        int r = map_lookup(q, offset + done, src.bytes - done, &map);

        if (UNLIKELY(r < 0))
            return r;
        if (LIKELY(map.type == QCOW2_TYPE_NORMAL && map.copied)) {
            bytes = map.bytes;
            r = write_in_place(q, &map, offset + done, io_slice_part(src, done, bytes), flags, ret_kept);
        } else {
            *ret_kept = KEPT_IN_MEMORY;
            r = write_new(q, offset + done, io_slice_part(src, done, src.bytes - done), &bytes);
        }
        if (UNLIKELY(r < 0))
            return r;
        done += bytes;
    }
    return 0;
}

/* A write has changed the image; makes it survive what flags ask for. */
static int keep(Qcow2 *q, Kept kept, unsigned flags)
{
    if ((flags & REQ_FUA) && kept != KEPT_ON_DISK)
        return sync_flush(q);
    return (flags & REQ_OUTLIVES) && kept == KEPT_IN_MEMORY ? sync_publish(q) : 0;
}

int image_write(Node *node, uint64_t offset, IoSlice src, unsigned flags)
{
    Qcow2 *q = node->state;
    Kept kept = KEPT_IN_MEMORY;
    unsigned epoch;
    int r;

    if (UNLIKELY(q->corrupt))
        return -ENOMEDIUM; /* unusable from now on, reads included */
    q->reserves |= flags & REQ_OUTLIVES;
    epoch = request_begin(q);
    if (UNLIKELY(flags & REQ_COMPRESSED))
        r = write_compressed(q, offset, src);
    else
        r = write_range(q, offset, src, flags, &kept);
    request_end(q, epoch);
    return LIKELY(r < 0 || !(flags & (REQ_FUA | REQ_OUTLIVES))) ? r : keep(q, kept, flags);
}
