/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Compressed clusters: raw deflate or zstd. The computing runs on the worker pool. The last decompressed
 * clusters are kept, so that small sequential reads decompress each cluster once.
 */
#include "base/mem.h"
#include "drivers/qcow2/qcow2-priv.h"

#include <libdeflate.h>
#include <zstd.h>

#define DEFLATE_LEVEL 6
#define ZSTD_LEVEL 3
/* Above this cluster size fewer slots are kept. */
#define INFLATE_SMALL_CLUSTER (256 * KIB)

/* ---- On the worker ---- */

typedef struct CodecJob {
    const uint8_t *in;
    uint8_t *out;
    size_t in_bytes, out_bytes; /* compressing: out_bytes is set to what was used */
    uint8_t type;
} CodecJob;

static int inflate_deflate(const CodecJob *job)
{
    struct libdeflate_decompressor *d = libdeflate_alloc_decompressor();
    enum libdeflate_result result;
    size_t used;

    if (!d)
        return -ENOMEM;
    /* What follows the stream up to the end of its last sector belongs to others and is ignored. */
    result =
        libdeflate_deflate_decompress_ex(d, job->in, job->in_bytes, job->out, job->out_bytes, &used, NULL);
    libdeflate_free_decompressor(d);
    return result == LIBDEFLATE_SUCCESS ? 0 : -EIO;
}

static int inflate_zstd(const CodecJob *job)
{
    ZSTD_DCtx *d = ZSTD_createDCtx();
    ZSTD_inBuffer in = {job->in, job->in_bytes, 0};
    ZSTD_outBuffer out = {job->out, job->out_bytes, 0};
    int r = d ? 0 : -ENOMEM;

    while (r == 0 && out.pos < out.size) {
        size_t in_before = in.pos, out_before = out.pos;

        if (ZSTD_isError(ZSTD_decompressStream(d, &out, &in)) ||
            (in.pos == in_before && out.pos == out_before))
            r = -EIO;
    }
    ZSTD_freeDCtx(d);
    return r;
}

static int inflate_job(void *arg)
{
    const CodecJob *job = arg;

    return job->type == QCOW2_COMPRESSION_ZSTD ? inflate_zstd(job) : inflate_deflate(job);
}

static int compress_job(void *arg)
{
    CodecJob *job = arg;
    size_t used;

    if (job->type == QCOW2_COMPRESSION_ZSTD) {
        used = ZSTD_compress(job->out, job->out_bytes, job->in, job->in_bytes, ZSTD_LEVEL);
        used = ZSTD_isError(used) ? 0 : used;
    } else {
        struct libdeflate_compressor *c = libdeflate_alloc_compressor(DEFLATE_LEVEL);

        if (!c)
            return -ENOMEM;
        used = libdeflate_deflate_compress(c, job->in, job->in_bytes, job->out, job->out_bytes);
        libdeflate_free_compressor(c);
    }
    job->out_bytes = used;
    return 0;
}

/* ---- Reading ---- */

static InflateSlot *slot_find(Qcow2 *q, uint64_t entry)
{
    for (unsigned i = 0; i < q->inflate_slots; i++) {
        InflateSlot *slot = &q->inflate[i];

        if ((slot->valid || slot->busy) && slot->entry == entry)
            return slot;
    }
    return NULL;
}

static InflateSlot *slot_oldest(Qcow2 *q)
{
    InflateSlot *oldest = NULL;

    if (!q->inflate_slots)
        q->inflate_slots = q->cluster_size > INFLATE_SMALL_CLUSTER ? 2 : INFLATE_SLOTS;
    for (unsigned i = 0; i < q->inflate_slots; i++) {
        InflateSlot *slot = &q->inflate[i];

        if (!slot->busy && (!oldest || slot->used < oldest->used))
            oldest = slot;
    }
    return oldest;
}

static int slot_load(Qcow2 *q, InflateSlot *slot)
{
    Qcow2Compressed c = qcow2_compressed_decode(slot->entry, q->cluster_bits);
    CodecJob job = {.in_bytes = c.bytes, .out_bytes = q->cluster_size, .type = q->header.compression_type};
    int r;

    if (!slot->data)
        slot->data = mem_try_aligned(4096, q->cluster_size);
    if (!slot->input) /* the longest that a descriptor can say */
        slot->input = mem_try_aligned(4096, 2 * q->cluster_size);
    if (!slot->data || !slot->input)
        return -ENOMEM;
    r = child_pread(q->file, c.offset, slot->input, c.bytes);
    if (r < 0)
        return r;
    job.in = slot->input;
    job.out = slot->data;
    return loop_work(inflate_job, &job);
}

int inflate_read(Qcow2 *q, uint64_t entry, uint64_t skip, IoSlice dst)
{
    for (;;) {
        InflateSlot *slot = slot_find(q, entry);
        int r;

        if (slot && slot->busy) {
            co_cond_wait_shielded(&slot->done, NULL);
            continue;
        }
        if (slot) {
            slot->used = ++q->inflate_clock;
            io_slice_copy_to(dst, slot->data + skip, dst.bytes);
            return 0;
        }
        slot = slot_oldest(q);
        if (!slot) {
            co_cond_wait_shielded(&q->inflate_room, NULL);
            continue;
        }
        slot->entry = entry;
        slot->valid = false;
        slot->busy = true;
        r = slot_load(q, slot);
        slot->busy = false;
        slot->valid = r == 0;
        slot->used = ++q->inflate_clock;
        if (r == 0)
            io_slice_copy_to(dst, slot->data + skip, dst.bytes);
        co_cond_broadcast(&slot->done);
        co_cond_broadcast(&q->inflate_room);
        return r;
    }
}

void inflate_forget(Qcow2 *q, uint64_t offset, uint64_t bytes)
{
    for (unsigned i = 0; i < q->inflate_slots; i++) {
        InflateSlot *slot = &q->inflate[i];
        Qcow2Compressed c = qcow2_compressed_decode(slot->entry, q->cluster_bits);

        if (c.offset < offset + bytes && offset < c.offset + c.bytes)
            slot->valid = false;
    }
}

void inflate_done(Qcow2 *q)
{
    for (unsigned i = 0; i < q->inflate_slots; i++) {
        free(q->inflate[i].data);
        free(q->inflate[i].input);
    }
    q->inflate_slots = 0;
}

/* ---- Writing ---- */

/* Enters a compressed cluster; only where nothing is stored yet, as the format's users expect. */
static int link_compressed(Qcow2 *q, uint64_t guest, uint64_t entry)
{
    CacheEntry *slice;
    uint32_t index;
    int r = map_for_write(q, guest, &slice, &index);

    if (r < 0)
        return r;
    slice_set(q, guest, cache_modify(&q->l2, slice), index, entry, 0);
    q->unordered = true;
    return 0;
}

static int store_compressed(Qcow2 *q, uint64_t guest, const uint8_t *data, uint32_t bytes)
{
    uint64_t offset, entry;
    int r = refcount_alloc_bytes(q, bytes, &offset);

    if (r < 0)
        return r;
    r = qcow2_compressed_encode(offset, bytes, q->cluster_bits, &entry);
    if (r == 0)
        r = edge_pwrite(q->file, offset, data, bytes, 0);
    if (r == 0)
        r = link_compressed(q, guest, entry);
    if (r < 0) {
        uint64_t start = align_down(offset, q->cluster_size);

        free_range(q, FREE_READY, start, align_up(offset + bytes, q->cluster_size) - start, false);
    }
    return r;
}

/* Reserves the cluster: it must not be stored yet. */
static int begin_compressed(Qcow2 *q, uint64_t guest, AllocRange *range)
{
    CacheEntry *slice;
    uint32_t index;
    uint64_t entry;
    int r;

    do {
        r = map_for_write(q, guest, &slice, &index);
        if (r < 0)
            return r;
    } while (alloc_wait(q, guest, guest + q->cluster_size));
    entry = slice_entry(q, slice->table, index);
    if (entry & (QCOW2_COMPRESSED | QCOW2_OFFSET_MASK))
        return -EIO;
    alloc_begin(q, range, guest, guest + q->cluster_size);
    return 0;
}

static int compress_cluster(Qcow2 *q, uint64_t guest, IoSlice src, uint8_t *plain, uint8_t *packed)
{
    CodecJob job = {.in = plain,
        .out = packed,
        .in_bytes = q->cluster_size,
        .out_bytes = q->cluster_size - 1,
        .type = q->header.compression_type};
    AllocRange range;
    Kept kept;
    int r = begin_compressed(q, guest, &range);

    if (r < 0)
        return r;
    memset(plain + src.bytes, 0, q->cluster_size - src.bytes);
    io_slice_copy_from(src, plain, src.bytes);
    r = loop_work(compress_job, &job);
    if (r == 0 && job.out_bytes)
        r = store_compressed(q, guest, packed, (uint32_t)job.out_bytes);
    alloc_end(&range);
    if (r == 0 && !job.out_bytes) /* does not get smaller */
        r = write_range(q, guest, src, 0, &kept);
    return r;
}

int write_compressed(Qcow2 *q, uint64_t offset, IoSlice src)
{
    AUTO_FREE uint8_t *plain = NULL, *packed = NULL;
    uint64_t end = offset + src.bytes;

    if (q->data_file)
        return -ENOTSUP;
    if (in_cluster(q, offset) || (in_cluster(q, end) && end != q->node->size))
        return -EINVAL;
    plain = mem_try_aligned(4096, q->cluster_size);
    packed = mem_try_aligned(4096, q->cluster_size);
    if (!plain || !packed)
        return -ENOMEM;
    for (size_t done = 0; done < src.bytes;) {
        size_t bytes = MIN(src.bytes - done, q->cluster_size);
        int r = compress_cluster(q, offset + done, io_slice_part(src, done, bytes), plain, packed);

        if (r < 0)
            return r;
        done += bytes;
    }
    return 0;
}
