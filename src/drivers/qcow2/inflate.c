/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading compressed clusters. Workers unpack them, several at a time.
 *
 * A cluster that is read in part is kept in a slot, so that small reads unpack each cluster once. The first
 * one may unpack only the start: random reads are done with that, the next read unpacks it all. What is read
 * as a whole is not expected again and not kept.
 *
 * A slot is found by the host cluster where its data begins: that tells at once which slots a freed cluster
 * concerns. While a slot is loaded its request keeps its host clusters from being freed.
 */
#include "base/mem.h"
#include "drivers/qcow2/codec.h"
#include "drivers/qcow2/qcow2-priv.h"

/* Pieces that are being read or unpacked at a time, and slots that a node may always have. */
#define MAX_LOADS 16
/* Bytes that a node may keep; LIMIT_INFLATED_BYTES is for all. */
#define MAX_NODE_BYTES (32 * MIB)
#define BUCKET_BITS 8
/* Not worth the way to a worker and back. */
#define SMALL_CLUSTER (4 * KIB)

typedef struct Slot {
    List link;        /* Inflate.slots */
    List bucket_link; /* empty while it holds nothing */
    uint64_t entry;   /* L2 entry whose cluster it holds */
    uint64_t host;    /* index of the host cluster where that begins */
    uint64_t bytes;   /* of the cluster, from its start, that it holds */
    bool loading;
    bool used; /* since inflate_clean() */
    CoCond loaded;
    uint8_t data[]; /* cluster_size */
} Slot;

struct Inflate {
    List slots; /* the one to be reused next is first */
    List buckets[1 << BUCKET_BITS];
    uint64_t count;
    unsigned loads;
    CoCond room;      /* a load has ended */
    uint8_t *buffers; /* spare ones, chained through their first bytes */
};

static _Atomic uint64_t kept_bytes; /* in the slots of all nodes */

/* ---- Slots ---- */

static List *bucket_of(Inflate *f, uint64_t host)
{
    return &f->buckets[host * UINT64_C(0x9e3779b97f4a7c15) >> (64 - BUCKET_BITS)];
}

static uint64_t host_of(const Qcow2 *q, uint64_t entry)
{
    return qcow2_compressed_decode(entry, q->cluster_bits).offset >> q->cluster_bits;
}

static Slot *slot_find(const Qcow2 *q, uint64_t entry)
{
    LIST_FOREACH (link, bucket_of(q->inflate, host_of(q, entry))) {
        Slot *slot = LIST_ENTRY(link, Slot, bucket_link);

        if (slot->entry == entry)
            return slot;
    }
    return NULL;
}

static void slot_empty(Inflate *f, Slot *slot)
{
    list_remove(&slot->bucket_link);
    list_remove(&slot->link);
    list_prepend(&f->slots, &slot->link);
}

static void slot_free(Qcow2 *q, Slot *slot)
{
    list_remove(&slot->bucket_link);
    list_remove(&slot->link);
    free(slot);
    q->inflate->count--;
    atomic_fetch_sub(&kept_bytes, q->cluster_size);
}

static bool may_grow(const Qcow2 *q)
{
    const Inflate *f = q->inflate;

    return f->count < MAX_LOADS || ((f->count + 1) << q->cluster_bits <= MAX_NODE_BYTES &&
                                       atomic_load(&kept_bytes) < LIMIT_INFLATED_BYTES);
}

static Slot *slot_new(Qcow2 *q)
{
    Slot *slot = mem_try_aligned(64, sizeof(*slot) + q->cluster_size);

    if (!slot)
        return NULL;
    *slot = (Slot){0};
    list_init(&slot->bucket_link);
    list_prepend(&q->inflate->slots, &slot->link);
    q->inflate->count++;
    atomic_fetch_add(&kept_bytes, q->cluster_size);
    return slot;
}

/* A slot that may be filled. Fewer than MAX_LOADS are being loaded, so there is one unless memory lacks. */
static Slot *slot_take(Qcow2 *q)
{
    Slot *first = NULL, *fresh;

    LIST_FOREACH (link, &q->inflate->slots) {
        first = LIST_ENTRY(link, Slot, link);
        if (!first->loading)
            break;
        first = NULL;
    }
    if (first && list_empty(&first->bucket_link))
        return first;
    fresh = may_grow(q) ? slot_new(q) : NULL;
    return fresh ? fresh : first;
}

/* ---- Loading ---- */

typedef struct UnpackJob {
    const uint8_t *in;
    size_t in_bytes;
    uint8_t *out;
    size_t out_bytes;
    uint8_t type;
    bool start; /* out_bytes are not the whole cluster */
    uint64_t skip;
    IoSlice dst;
} UnpackJob;

/* Not straight to dst: that may be memory of a guest, which may change it meanwhile. */
static int unpack(void *arg)
{
    const UnpackJob *job = arg;
    int r = job->start ? codec_unpack_start(job->in, job->in_bytes, job->out, job->out_bytes)
                       : codec_unpack(job->type, job->in, job->in_bytes, job->out, job->out_bytes);

    if (r == 0)
        io_slice_copy_to(job->dst, job->out + job->skip, job->dst.bytes);
    return r;
}

/* Compressed data that is read at once: the longest that a descriptor can say, or that of several clusters.
 */
static uint64_t input_room(const Qcow2 *q)
{
    return MAX(2 * q->cluster_size, INFLATE_PIECE_BYTES);
}

/* Room for that, and before it for an unpacked cluster. Its pages are used as far as there is data. */
static uint8_t *buffer_get(Qcow2 *q)
{
    uint8_t *buffer = q->inflate->buffers;

    if (!buffer)
        return mem_try_aligned(4096, q->cluster_size + input_room(q));
    memcpy(&q->inflate->buffers, buffer, sizeof(q->inflate->buffers));
    return buffer;
}

static void buffer_put(Qcow2 *q, uint8_t *buffer)
{
    memcpy(buffer, &q->inflate->buffers, sizeof(q->inflate->buffers));
    q->inflate->buffers = buffer;
}

static void buffers_free(Inflate *f)
{
    while (f->buffers) {
        uint8_t *buffer = f->buffers;

        memcpy(&f->buffers, buffer, sizeof(f->buffers));
        free(buffer);
    }
}

static int load(Qcow2 *q, Slot *slot, uint64_t skip, IoSlice dst)
{
    Qcow2Compressed c = qcow2_compressed_decode(slot->entry, q->cluster_bits);
    UnpackJob job = {.in_bytes = c.bytes,
        .out = slot->data,
        .out_bytes = slot->bytes,
        .type = q->header.compression_type,
        .start = slot->bytes < q->cluster_size,
        .skip = skip,
        .dst = dst};
    uint8_t *buffer = buffer_get(q), *input;
    int r;

    if (!buffer)
        return -ENOMEM;
    job.in = input = buffer + q->cluster_size;
    r = child_pread(q->file, c.offset, input, c.bytes);
    if (r == 0)
        r = q->cluster_size > SMALL_CLUSTER ? loop_work(unpack, &job) : unpack(&job);
    buffer_put(q, buffer);
    return r;
}

/* How much of a cluster to unpack. again: a part did not suffice before. */
static uint64_t bytes_to_unpack(const Qcow2 *q, uint64_t end, bool again)
{
    bool start = q->header.compression_type == QCOW2_COMPRESSION_ZLIB && !again &&
                 end <= q->cluster_size / 2 && q->cluster_size > SMALL_CLUSTER;

    return start ? end : q->cluster_size;
}

static int load_slot(Qcow2 *q, Slot *slot, uint64_t entry, uint64_t skip, IoSlice dst)
{
    Inflate *f = q->inflate;
    bool again = slot->entry == entry && !list_empty(&slot->bucket_link);
    int r;

    slot->bytes = bytes_to_unpack(q, skip + dst.bytes, again);
    list_remove(&slot->bucket_link);
    slot->entry = entry;
    slot->host = host_of(q, entry);
    slot->loading = slot->used = true;
    clean_begin(q);
    list_append(bucket_of(f, slot->host), &slot->bucket_link);
    list_remove(&slot->link);
    list_append(&f->slots, &slot->link);
    f->loads++;
    r = load(q, slot, skip, dst);
    f->loads--;
    slot->loading = false;
    if (r < 0)
        slot_empty(f, slot);
    co_cond_broadcast(&slot->loaded);
    co_cond_broadcast(&f->room);
    return r;
}

static void hit(Inflate *f, Slot *slot, uint64_t skip, IoSlice dst)
{
    slot->used = true;
    list_remove(&slot->link);
    list_append(&f->slots, &slot->link);
    io_slice_copy_to(dst, slot->data + skip, dst.bytes);
}

static int begin(Qcow2 *q)
{
    Inflate *f = mem_try_zalloc(1, sizeof(*f));

    if (!f)
        return -ENOMEM;
    list_init(&f->slots);
    for (unsigned i = 0; i < ARRAY_SIZE(f->buckets); i++)
        list_init(&f->buckets[i]);
    q->inflate = f;
    return 0;
}

int inflate_read(Qcow2 *q, uint64_t entry, uint64_t skip, IoSlice dst)
{
    if (UNLIKELY(!q->inflate) && begin(q) < 0)
        return -ENOMEM;
    for (;;) {
        Slot *slot = slot_find(q, entry);

        if (slot && slot->loading) {
            co_cond_wait_shielded(&slot->loaded, NULL);
        } else if (slot && skip + dst.bytes <= slot->bytes) {
            hit(q->inflate, slot, skip, dst);
            return 0;
        } else if (q->inflate->loads >= MAX_LOADS) {
            co_cond_wait_shielded(&q->inflate->room, NULL);
        } else {
            slot = slot ? slot : slot_take(q);
            return slot ? load_slot(q, slot, entry, skip, dst) : -ENOMEM;
        }
    }
}

/* ---- Whole clusters ---- */

bool inflate_piece_add(const Qcow2 *q, InflatePiece *piece, uint64_t entry)
{
    Qcow2Compressed c = qcow2_compressed_decode(entry, q->cluster_bits);
    uint64_t start = piece->count ? MIN(piece->start, c.offset) : c.offset;
    uint64_t end = MAX(piece->end, c.offset + c.bytes);

    if (piece->count == INFLATE_PIECE || (piece->count && end - start > INFLATE_PIECE_BYTES))
        return false;
    piece->start = start;
    piece->end = end;
    piece->entries[piece->count++] = entry;
    return true;
}

typedef struct PieceJob {
    const Qcow2 *q;
    const InflatePiece *piece;
    const uint8_t *in;
    uint8_t *out; /* cluster_size */
    IoSlice dst;
} PieceJob;

static int unpack_piece(void *arg)
{
    const PieceJob *job = arg;
    uint64_t bytes = job->q->cluster_size;

    for (unsigned i = 0; i < job->piece->count; i++) {
        Qcow2Compressed c = qcow2_compressed_decode(job->piece->entries[i], job->q->cluster_bits);
        int r = codec_unpack(job->q->header.compression_type, job->in + (c.offset - job->piece->start),
            c.bytes, job->out, bytes);

        if (r < 0)
            return r;
        io_slice_copy_to(io_slice_part(job->dst, i * bytes, bytes), job->out, bytes);
    }
    return 0;
}

static int load_piece(Qcow2 *q, const InflatePiece *piece, IoSlice dst)
{
    uint8_t *buffer = buffer_get(q), *input;
    uint64_t bytes = piece->end - piece->start;
    PieceJob job = {.q = q, .piece = piece, .out = buffer, .dst = dst};
    int r;

    if (!buffer)
        return -ENOMEM;
    job.in = input = buffer + q->cluster_size;
    r = child_pread(q->file, piece->start, input, bytes);
    if (r == 0)
        r = dst.bytes > SMALL_CLUSTER ? loop_work(unpack_piece, &job) : unpack_piece(&job);
    buffer_put(q, buffer);
    return r;
}

int inflate_piece(Qcow2 *q, const InflatePiece *piece, IoSlice dst)
{
    int r;

    if (UNLIKELY(!q->inflate) && begin(q) < 0)
        return -ENOMEM;
    while (q->inflate->loads >= MAX_LOADS)
        co_cond_wait_shielded(&q->inflate->room, NULL);
    q->inflate->loads++;
    r = load_piece(q, piece, dst);
    q->inflate->loads--;
    co_cond_broadcast(&q->inflate->room);
    return r;
}

/* ---- Forgetting ---- */

void inflate_forget(Qcow2 *q, uint64_t cluster)
{
    if (LIKELY(!q->inflate))
        return;
    /* The longest data, which begins within a cluster, ends in the second one from there. */
    for (uint64_t host = cluster - MIN(cluster, UINT64_C(2)); host <= cluster; host++)
        LIST_FOREACH_SAFE (link, bucket_of(q->inflate, host)) {
            Slot *slot = LIST_ENTRY(link, Slot, bucket_link);

            if (slot->host == host)
                slot_empty(q->inflate, slot);
        }
}

bool inflate_clean(Qcow2 *q)
{
    if (!q->inflate)
        return false;
    LIST_FOREACH_SAFE (link, &q->inflate->slots) {
        Slot *slot = LIST_ENTRY(link, Slot, link);

        if (slot->used || slot->loading)
            slot->used = false;
        else
            slot_free(q, slot);
    }
    buffers_free(q->inflate);
    return q->inflate->count;
}

void inflate_done(Qcow2 *q)
{
    Inflate *f = q->inflate;

    if (!f)
        return;
    LIST_FOREACH_SAFE (link, &f->slots)
        slot_free(q, LIST_ENTRY(link, Slot, link));
    buffers_free(f);
    free(f);
    q->inflate = NULL;
}
