/* SPDX-License-Identifier: Apache-2.0 */
/*
 * blockdev-create. A new image is laid out on paper and written once, front to back:
 *
 *     header | refcount table | refcount blocks | LUKS header | L1 table | L2 tables | data clusters
 *
 * (LUKS header: encryption; L2 tables and data clusters: preallocation.) The header goes last, so that a
 * failed attempt does not look like an image; what it had in its place goes first.
 */
#include "base/mem.h"
#include "drivers/qcow2/qcow2-priv.h"
#include "generated/types.h"

#include <errno.h>
#include <stdio.h>

/* The largest disk that the reference makes, which names it in a message. */
#define MAX_DISK_BYTES align_down(INT64_MAX, GIB)

typedef struct Layout {
    Qcow2Header header;
    uint64_t cluster, rt_clusters, rb_clusters, crypt_clusters, l1_clusters, l2_clusters, data_clusters;
    uint64_t crypt_offset, crypt_bytes;
    uint64_t total; /* clusters */
    PreallocMode prealloc;
    bool data_file;
} Layout;

/* ---- Validation ---- */

static int check_version(const BlockdevCreateOptionsQcow2 *o, Error *err)
{
    static const char suffix[] = "compatibility level 1.1 and above (use version=v3 or greater)";

    if (!o->has_version || o->version == BLOCKDEV_QCOW2_VERSION_V3)
        return 0;
    if (o->has_extended_l2 && o->extended_l2)
        return err_set(err, -EINVAL, "Extended L2 entries are only supported with %s", suffix);
    if (o->has_lazy_refcounts && o->lazy_refcounts)
        return err_set(err, -EINVAL, "Lazy refcounts only supported with %s", suffix);
    if (o->has_refcount_bits && o->refcount_bits != 16)
        return err_set(err, -EINVAL,
            "Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 "
            "or greater)");
    if (o->data_file)
        return err_set(err, -EINVAL, "External data files are only supported with %s", suffix);
    if (o->has_compression_type && o->compression_type != QCOW2_COMPRESSION_TYPE_ZLIB)
        return err_set(err, -EINVAL, "Non-zlib compression type is only supported with %s", suffix);
    /* What was never written would be decrypted, and only newer entries can say that a cluster is zero. */
    if (o->encrypt && o->has_preallocation && o->preallocation != PREALLOC_MODE_OFF)
        return err_set(err, -EINVAL, "Encryption with preallocation is only supported with %s", suffix);
    return 0;
}

static int check_options(const BlockdevCreateOptionsQcow2 *o, Error *err)
{
    uint64_t cluster = o->has_cluster_size ? o->cluster_size : 65536;
    bool extended = o->has_extended_l2 && o->extended_l2, raw = o->has_data_file_raw && o->data_file_raw;

    if (o->size % 512)
        return err_set(err, -EINVAL, "Image size must be a multiple of 512 bytes");
    if (!is_power_of_2(cluster) || cluster < 512 || cluster > 2 * MIB)
        return err_set(err, -EINVAL, "Cluster size must be a power of two between %d and %dk", 512, 2048);
    if (extended && cluster < 1u << QCOW2_MIN_EXTENDED_CLUSTER_BITS &&
        !(o->has_version && o->version == BLOCKDEV_QCOW2_VERSION_V2))
        return err_set(err, -EINVAL,
            "Extended L2 entries are only supported with cluster sizes of at least %u bytes",
            1u << QCOW2_MIN_EXTENDED_CLUSTER_BITS);
    if (o->has_preallocation && o->preallocation != PREALLOC_MODE_OFF && o->backing_file && !extended)
        return err_set(err, -EINVAL,
            "Backing file and preallocation can only be used at the same time if extended_l2 is on");
    if (o->has_backing_fmt && !o->backing_file)
        return err_set(err, -EINVAL, "Backing format cannot be used without backing file");
    if (o->has_refcount_bits && (o->refcount_bits > 64 || !is_power_of_2((uint64_t)o->refcount_bits)))
        return err_set(err, -EINVAL, "Refcount width must be a power of two and may not exceed 64 bits");
    if (raw && !o->data_file)
        return err_set(err, -EINVAL, "data-file-raw requires data-file");
    if (raw && o->backing_file)
        return err_set(err, -EINVAL, "Backing file and data-file-raw cannot be used at the same time");
    return check_version(o, err);
}

/* ---- Layout ---- */

static unsigned log2_of(uint64_t value)
{
    return (unsigned)__builtin_ctzll(value);
}

static void make_header(const BlockdevCreateOptionsQcow2 *o, Layout *l)
{
    Qcow2Header *h = &l->header;

    *h = (Qcow2Header){
        .version = o->has_version && o->version == BLOCKDEV_QCOW2_VERSION_V2 ? 2 : 3,
        .cluster_bits = log2_of(o->has_cluster_size ? o->cluster_size : 65536),
        .size = o->size,
        .refcount_order = o->has_refcount_bits ? log2_of((uint64_t)o->refcount_bits) : 4,
        .compression_type = o->has_compression_type && o->compression_type == QCOW2_COMPRESSION_TYPE_ZSTD
                                ? QCOW2_COMPRESSION_ZSTD
                                : QCOW2_COMPRESSION_ZLIB,
    };
    if (o->has_lazy_refcounts && o->lazy_refcounts)
        h->compatible |= QCOW2_COMPATIBLE_LAZY_REFCOUNTS;
    if (o->has_extended_l2 && o->extended_l2)
        h->incompatible |= QCOW2_INCOMPATIBLE_EXTENDED_L2;
    if (o->encrypt)
        h->crypt_method = QCOW2_CRYPT_LUKS;
    if (h->compression_type != QCOW2_COMPRESSION_ZLIB)
        h->incompatible |= QCOW2_INCOMPATIBLE_COMPRESSION;
    if (o->data_file)
        h->incompatible |= QCOW2_INCOMPATIBLE_DATA_FILE;
    if (o->has_data_file_raw && o->data_file_raw)
        h->autoclear |= QCOW2_AUTOCLEAR_DATA_FILE_RAW;
}

static int make_layout(const BlockdevCreateOptionsQcow2 *o, uint64_t crypt_bytes, Layout *l, Error *err)
{
    Qcow2Header *h = &l->header;
    uint64_t before, per_block, entries;

    make_header(o, l);
    l->cluster = UINT64_C(1) << h->cluster_bits;
    l->data_file = o->data_file;
    l->crypt_bytes = crypt_bytes;
    l->crypt_clusters = div_round_up(crypt_bytes, l->cluster);
    l->prealloc = o->has_preallocation ? o->preallocation : PREALLOC_MODE_OFF;
    /* A raw data file holds every cluster at its place from the start. */
    if ((h->autoclear & QCOW2_AUTOCLEAR_DATA_FILE_RAW) && l->prealloc == PREALLOC_MODE_OFF)
        l->prealloc = PREALLOC_MODE_METADATA;
    entries = qcow2_l1_entries_for(h, h->size);
    if (h->size > MAX_DISK_BYTES)
        return err_set(err, -EFBIG,
            "Could not resize image: offset(%" PRIu64 ") exceeds maximum(%" PRIu64 ")", h->size,
            MAX_DISK_BYTES);
    if (entries * 8 > QCOW2_MAX_L1_BYTES)
        return err_set(err, -EFBIG, "Could not resize image: Failed to grow the L1 table: File too large");
    h->l1_entries = (uint32_t)entries;
    l->l1_clusters = div_round_up(entries * 8, l->cluster);
    if (l->prealloc != PREALLOC_MODE_OFF) {
        l->l2_clusters = entries;
        l->data_clusters = l->data_file ? 0 : div_round_up(h->size, l->cluster);
    }
    per_block = l->cluster * 8 >> h->refcount_order;
    l->rt_clusters = l->rb_clusters = 1;
    do {
        before = l->rt_clusters + l->rb_clusters;
        l->total = 1 + before + l->crypt_clusters + l->l1_clusters + l->l2_clusters + l->data_clusters;
        l->rb_clusters = div_round_up(l->total, per_block);
        l->rt_clusters = div_round_up(l->rb_clusters * 8, l->cluster);
    } while (l->rt_clusters + l->rb_clusters != before);
    if (l->rt_clusters << h->cluster_bits > QCOW2_MAX_REFTABLE_BYTES)
        return err_set(err, -EFBIG, "Image size too large for file format (try using a larger cluster size)");
    h->rt_offset = l->cluster;
    h->rt_clusters = (uint32_t)l->rt_clusters;
    l->crypt_offset = (1 + l->rt_clusters + l->rb_clusters) << h->cluster_bits;
    h->l1_offset = l->crypt_offset + (l->crypt_clusters << h->cluster_bits);
    return 0;
}

/* ---- Writing ---- */

typedef struct Writer {
    Edge *file;
    const Layout *layout;
    uint8_t *buffer; /* a cluster */
    uint64_t at;     /* cluster that is written next */
} Writer;

static int put_cluster(Writer *w)
{
    int r = edge_pwrite(w->file, w->at << w->layout->header.cluster_bits, w->buffer, w->layout->cluster, 0);

    w->at++;
    memset(w->buffer, 0, w->layout->cluster);
    return r;
}

/* A table of count entries: first, first + step, ... */
static int put_pointers(Writer *w, uint64_t count, uint64_t first, uint64_t flags)
{
    uint64_t per_cluster = w->layout->cluster / 8;
    int r = 0;

    for (uint64_t i = 0; r == 0 && i < count; i += per_cluster) {
        for (uint64_t k = 0; k < MIN(per_cluster, count - i); k++)
            put_be64(w->buffer + k * 8, ((first + i + k) << w->layout->header.cluster_bits) | flags);
        r = put_cluster(w);
    }
    return r;
}

static int put_refblocks(Writer *w)
{
    const Layout *l = w->layout;
    uint64_t per_block = l->cluster * 8 >> l->header.refcount_order;
    int r = 0;

    for (uint64_t i = 0; r == 0 && i < l->rb_clusters; i++) {
        uint64_t used = MIN(per_block, l->total - i * per_block);

        for (uint64_t k = 0; k < used; k++)
            qcow2_refcount_set(w->buffer, l->header.refcount_order, (uint32_t)k, 1);
        r = put_cluster(w);
    }
    return r;
}

/*
 * L2 tables of a preallocated image. With extended entries the subclusters stay unallocated, so that a
 * backing file shows through; but a raw data file is all there is. With encryption the entries say that
 * the clusters are zero, as what they hold would be decrypted.
 */
static int put_l2(Writer *w)
{
    const Layout *l = w->layout;
    unsigned entry_bytes = l->header.incompatible & QCOW2_INCOMPATIBLE_EXTENDED_L2 ? 16 : 8;
    uint64_t clusters = div_round_up(l->header.size, l->cluster), per_table = l->cluster / entry_bytes;
    uint64_t first = l->data_file ? 0 : l->total - l->data_clusters;
    uint64_t flags = QCOW2_COPIED | (l->crypt_bytes && entry_bytes == 8 ? QCOW2_ZERO : 0);
    uint64_t raw = l->crypt_bytes ? QCOW2_SUB_ALL_ZERO : QCOW2_SUB_ALL_ALLOCATED;
    uint64_t subclusters = l->header.autoclear & QCOW2_AUTOCLEAR_DATA_FILE_RAW ? raw : 0;
    int r = 0;

    for (uint64_t i = 0; r == 0 && i < l->l2_clusters; i++) {
        for (uint64_t k = 0; k < per_table && i * per_table + k < clusters; k++) {
            uint8_t *entry = w->buffer + k * entry_bytes;

            put_be64(entry, ((first + i * per_table + k) << l->header.cluster_bits) | flags);
            if (entry_bytes == 16)
                put_be64(entry + 8, subclusters);
        }
        r = put_cluster(w);
    }
    return r;
}

/* Appends an extension; false if it does not fit. */
static bool put_extension(Writer *w, size_t *at, uint32_t magic, const void *data, size_t bytes)
{
    size_t used =
        qcow2_extension_encode(w->buffer + *at, w->layout->cluster - *at, magic, data, (uint32_t)bytes);

    *at += used;
    return used != 0;
}

static int put_backing_name(
    Writer *w, const BlockdevCreateOptionsQcow2 *o, size_t at, Qcow2Header *header, Error *err)
{
    size_t bytes = strlen(o->backing_file);
    int r = bytes > QCOW2_MAX_NAME_BYTES ? -EINVAL : bytes > w->layout->cluster - at ? -ENOSPC : 0;

    if (r < 0)
        return err_set_errno(err, r, "Could not assign backing file '%s' with format '%s'", o->backing_file,
            o->has_backing_fmt ? blockdev_driver_name(o->backing_fmt) : "(null)");
    memcpy(w->buffer + at, o->backing_file, bytes);
    header->backing_offset = at;
    header->backing_bytes = (uint32_t)bytes;
    return 0;
}

static bool put_crypto(Writer *w, size_t *at)
{
    uint8_t place[16];

    put_be64(place, w->layout->crypt_offset);
    put_be64(place + 8, w->layout->crypt_bytes);
    return put_extension(w, at, QCOW2_EXT_CRYPTO, place, sizeof(place));
}

static int put_header(Writer *w, const BlockdevCreateOptionsQcow2 *o, const char *data_name, Error *err)
{
    Qcow2Header header = w->layout->header;
    const char *format = o->has_backing_fmt ? blockdev_driver_name(o->backing_fmt) : NULL;
    size_t at = qcow2_header_encode(&header, w->buffer),
           tail = 8 + (o->backing_file ? strlen(o->backing_file) : 0);
    uint8_t names[512];
    size_t names_bytes = qcow2_feature_names_encode(names);
    bool fits = true;
    int r = 0;

    if (format)
        fits = put_extension(w, &at, QCOW2_EXT_BACKING_FORMAT, format, strlen(format));
    if (fits && data_name)
        fits = put_extension(w, &at, QCOW2_EXT_DATA_FILE, data_name, strlen(data_name));
    if (fits && w->layout->crypt_bytes)
        fits = put_crypto(w, &at);
    /* It is only of use to readers that do not know a feature: left out where there is no room. */
    if (fits && header.version >= 3 && at + 8 + names_bytes + tail <= w->layout->cluster)
        fits = put_extension(w, &at, QCOW2_EXT_FEATURE_NAMES, names, names_bytes);
    if (fits)
        fits = put_extension(w, &at, QCOW2_EXT_END, NULL, 0);
    if (!fits)
        return err_set(err, -ENOSPC, "The header does not fit into a cluster");
    if (o->backing_file)
        r = put_backing_name(w, o, at, &header, err);
    if (r == 0)
        (void)qcow2_header_encode(&header, w->buffer);
    return r;
}

static int write_tables(Writer *w)
{
    const Layout *l = w->layout;
    uint64_t l2_first = (l->header.l1_offset >> l->header.cluster_bits) + l->l1_clusters;
    int r;

    w->at = 1;
    r = put_pointers(w, l->rb_clusters, 1 + l->rt_clusters, 0);
    if (r == 0)
        r = put_refblocks(w);
    w->at += l->crypt_clusters;
    if (r == 0 && l->l2_clusters)
        r = put_pointers(w, l->header.l1_entries, l2_first, QCOW2_COPIED);
    for (uint64_t i = 0; r == 0 && !l->l2_clusters && i < l->l1_clusters; i++)
        r = put_cluster(w);
    return r == 0 && l->l2_clusters ? put_l2(w) : r;
}

static int write_image(Writer *w, const BlockdevCreateOptionsQcow2 *o, const char *data_name, Error *err)
{
    int r = write_tables(w);

    if (r == 0)
        r = edge_flush(w->file);
    if (r < 0)
        return err_set_errno(err, r, "Could not write qcow2 header");
    r = put_header(w, o, data_name, err);
    if (r < 0)
        return r;
    w->at = 0;
    r = put_cluster(w);
    if (r == 0)
        r = edge_flush(w->file);
    return r < 0 ? err_set_errno(err, r, "Could not write qcow2 header") : 0;
}

/* ---- Files ---- */

static void edge_close_ptr(Edge **edge)
{
    edge_close(*edge);
}

/* Old contents go: preallocated clusters must read as zeroes. What cannot shrink (a device) stays as it is
 * but for its first cluster, where the header of an older image would lead to what is made now. */
static int size_file(Edge *file, const Layout *l, Error *err)
{
    uint64_t bytes = l->total << l->header.cluster_bits;
    Preallocation prealloc = l->prealloc == PREALLOC_MODE_METADATA || l->data_file
                                 ? PREALLOCATION_OFF
                                 : (Preallocation)l->prealloc;
    AUTO_ERROR Error ignored = ERROR_INIT;
    int r;

    (void)!edge_resize(file, 0, false, PREALLOCATION_OFF, 0, &ignored);
    if (node_size(edge_node(file))) {
        r = child_write_zeroes(file, 0, l->cluster);
        if (r == 0)
            r = edge_flush(file);
        if (r < 0)
            return err_set_errno(err, r, "Could not write qcow2 header");
    }
    return node_size(edge_node(file)) >= bytes ? 0 : edge_resize(file, bytes, false, prealloc, 0, err);
}

static int size_data_file(Edge *data, const Layout *l, Error *err)
{
    Preallocation prealloc =
        l->prealloc == PREALLOC_MODE_METADATA ? PREALLOCATION_OFF : (Preallocation)l->prealloc;

    if (l->prealloc == PREALLOC_MODE_OFF)
        return 0;
    return node_size(edge_node(data)) >= l->header.size
               ? 0
               : edge_resize(data, l->header.size, false, prealloc, 0, err);
}

static int create_in(
    Edge *file, const BlockdevCreateOptionsQcow2 *o, const Layout *l, NewCrypt *crypt, Error *err)
{
    AUTO_FREE uint8_t *buffer = mem_try_aligned(4096, l->cluster);
    CLEANUP(edge_close_ptr) Edge *data = NULL;
    Writer w = {.file = file, .layout = l, .buffer = buffer};
    int r;

    if (!buffer)
        return err_set(err, -ENOMEM, "Could not allocate a cluster");
    memset(buffer, 0, l->cluster);
    if (o->data_file) {
        r = creation_open_ref(o->data_file, &data, err);
        if (r == 0)
            r = size_data_file(data, l, err);
        if (r < 0)
            return r;
    }
    r = size_file(file, l, err);
    if (r == 0 && crypt)
        r = crypt_new_write(crypt, file, l->crypt_offset, err);
    return r < 0 ? r : write_image(&w, o, data ? edge_node(data)->filename : NULL, err);
}

static void new_crypt_free_ptr(NewCrypt **crypt)
{
    crypt_new_free(*crypt);
}

int image_create(const BlockdevCreateOptions *options, Error *err)
{
    const BlockdevCreateOptionsQcow2 *o = &options->u.qcow2;
    CLEANUP(new_crypt_free_ptr) NewCrypt *crypt = NULL;
    CLEANUP(edge_close_ptr) Edge *file = NULL;
    Layout layout = {0};
    int r = creation_check_ref(o->file, err);

    if (r == 0)
        r = check_options(o, err);
    if (r == 0 && o->encrypt)
        r = crypt_new(o->encrypt, &crypt, err);
    if (r == 0)
        r = make_layout(o, crypt ? crypt_new_bytes(crypt) : 0, &layout, err);
    if (r == 0)
        r = creation_open_ref(o->file, &file, err);
    return r < 0 ? r : create_in(file, o, &layout, crypt, err);
}
