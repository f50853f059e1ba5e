/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing compressed clusters: whole ones, several at a time on worker threads. They are packed one behind
 * the other in host clusters (refcount_alloc_bytes). What does not get smaller is stored as it is, and zeroes
 * as a zero cluster. What the cluster held before is released, as with any other write.
 */
#include "base/mem.h"
#include "drivers/qcow2/codec.h"
#include "drivers/qcow2/qcow2-priv.h"

/* Clusters that are being compressed at a time; each has two buffers. */
#define MAX_PACKING 16

typedef struct PackJob {
    IoSlice src;
    uint8_t *plain, *packed; /* cluster_size */
    size_t cluster_bytes;
    size_t packed_bytes; /* 0: does not get smaller */
    uint8_t type;
    bool has_zero; /* the image can say "zero" */
    bool zero;
} PackJob;

/* From a copy: src may be memory of a guest, which may change it meanwhile. */
static int pack(void *arg)
{
    PackJob *job = arg;

    io_slice_copy_from(job->src, job->plain, job->src.bytes);
    memset(job->plain + job->src.bytes, 0, job->cluster_bytes - job->src.bytes);
    job->zero = job->has_zero && buffer_is_zero(job->plain, job->cluster_bytes);
    return job->zero ? 0
                     : codec_pack(job->type, job->plain, job->cluster_bytes, job->packed, &job->packed_bytes);
}

/* ---- Storing ---- */

static int link_cluster(Qcow2 *q, uint64_t guest, uint64_t entry, uint64_t subclusters)
{
    CacheEntry *slice;
    uint32_t index;
    uint64_t old;
    uint8_t *table;
    int r = map_for_write(q, guest, &slice, &index);

    if (r < 0)
        return r;
    table = cache_modify(&q->l2, slice);
    old = slice_entry(q, table, index);
    slice_set(q, guest, table, index, entry, subclusters);
    q->unordered = true;
    map_release(q, old, q->pass_discard_other);
    return 0;
}

static int store_packed(Qcow2 *q, uint64_t guest, const uint8_t *data, uint32_t bytes)
{
    uint64_t offset, entry;
    int r = refcount_alloc_bytes(q, bytes, &offset);

    if (r < 0)
        return r;
    r = qcow2_compressed_encode(offset, bytes, q->cluster_bits, &entry);
    if (r == 0)
        r = edge_pwrite(q->file, offset, data, bytes, 0);
    if (r == 0)
        r = link_cluster(q, guest, entry, 0);
    if (r < 0) {
        uint64_t start = align_down(offset, q->cluster_size);

        free_range(q, FREE_READY, start, align_up(offset + bytes, q->cluster_size) - start, false);
    }
    return r;
}

static int store(Qcow2 *q, uint64_t guest, const PackJob *job)
{
    if (job->zero)
        return link_cluster(q, guest, q->extended ? 0 : QCOW2_ZERO, q->extended ? QCOW2_SUB_ALL_ZERO : 0);
    return job->packed_bytes ? store_packed(q, guest, job->packed, (uint32_t)job->packed_bytes) : 0;
}

/* Registers the cluster, so that nobody else changes its mapping. */
static int begin(Qcow2 *q, uint64_t guest, AllocRange *range)
{
    CacheEntry *slice;
    uint32_t index;
    int r;

    do {
        r = map_for_write(q, guest, &slice, &index);
        if (r < 0)
            return r;
    } while (alloc_wait(q, guest, guest + q->cluster_size));
    alloc_begin(q, range, guest, guest + q->cluster_size);
    return 0;
}

static int pack_and_store(Qcow2 *q, uint64_t guest, PackJob *job)
{
    AllocRange range;
    Kept kept;
    int r = begin(q, guest, &range);

    if (r < 0)
        return r;
    r = loop_work(pack, job);
    if (r == 0)
        r = store(q, guest, job);
    alloc_end(&range);
    return r == 0 && !job->zero && !job->packed_bytes ? write_range(q, guest, job->src, 0, &kept) : r;
}

static int write_cluster(Qcow2 *q, uint64_t guest, IoSlice src)
{
    AUTO_FREE uint8_t *plain = mem_try_aligned(64, q->cluster_size);
    AUTO_FREE uint8_t *packed = mem_try_aligned(64, q->cluster_size);
    PackJob job = {.src = src,
        .plain = plain,
        .packed = packed,
        .cluster_bytes = q->cluster_size,
        .type = q->header.compression_type,
        .has_zero = q->has_zero};

    return plain && packed ? pack_and_store(q, guest, &job) : -ENOMEM;
}

/* ---- Several clusters ---- */

typedef struct TogetherWrite {
    Qcow2 *q;
    uint64_t offset;
    IoSlice src;
    size_t taken; /* bytes that somebody writes or has written */
    int result;
} TogetherWrite;

static void write_some(void *arg)
{
    TogetherWrite *t = arg;
    Qcow2 *q = t->q;

    while (q->packing >= MAX_PACKING)
        co_cond_wait_shielded(&q->packing_room, NULL);
    q->packing++;
    while (t->taken < t->src.bytes && t->result == 0) {
        size_t at = t->taken, bytes = MIN(t->src.bytes - at, q->cluster_size);
        int r;

        t->taken += bytes;
        r = write_cluster(q, t->offset + at, io_slice_part(t->src, at, bytes));
        t->result = t->result < 0 ? t->result : r;
    }
    q->packing--;
    co_cond_signal(&q->packing_room);
}

int write_compressed(Qcow2 *q, uint64_t offset, IoSlice src)
{
    TogetherWrite t = {.q = q, .offset = offset, .src = src};
    uint64_t end = offset + src.bytes,
             clusters = MIN(div_round_up(src.bytes, q->cluster_size), (uint64_t)MAX_PACKING);
    CoGroup others;

    if (q->data_file || q->crypt)
        return -ENOTSUP;
    if (in_cluster(q, offset) || (in_cluster(q, end) && end != q->node->size))
        return -EINVAL;
    co_group_init(&others);
    for (uint64_t i = 1; i < clusters; i++)
        co_start(&others, "qcow2-pack", write_some, &t);
    write_some(&t);
    co_group_join(&others);
    return t.result;
}
