/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opening and closing. What an image says is checked in proto/qcow2.c; here it is put to use: children,
 * tables, caches. Memory taken at open is bounded by the limits on tables there.
 */
#include "base/mem.h"
#include "drivers/qcow2/qcow2-priv.h"
#include "generated/types.h"

#define DEFAULT_L2_CACHE_BYTES (32 * MIB)
#define DEFAULT_SLICE_BYTES (4 * KIB)
#define DEFAULT_CLEAN_SECONDS 600
#define MIN_REFCOUNT_CACHE_BYTES (256 * KIB)

/* ---- Header area ---- */

static void derive(Qcow2 *q)
{
    const Qcow2Header *h = &q->header;

    q->cluster_bits = h->cluster_bits;
    q->cluster_size = UINT64_C(1) << h->cluster_bits;
    q->extended = h->incompatible & QCOW2_INCOMPATIBLE_EXTENDED_L2;
    q->data_file = h->incompatible & QCOW2_INCOMPATIBLE_DATA_FILE;
    q->data_raw = h->autoclear & QCOW2_AUTOCLEAR_DATA_FILE_RAW;
    q->has_zero = h->version >= 3;
    q->entry_bytes = q->extended ? 16 : 8;
    q->l2_bits = h->cluster_bits - (q->extended ? 4 : 3);
    q->subclusters = q->extended ? QCOW2_SUBCLUSTERS : 1;
    q->sub_bits = h->cluster_bits - (q->extended ? 5 : 0);
    q->sub_size = UINT64_C(1) << q->sub_bits;
    q->refcount_order = h->refcount_order;
    q->block_rc_bits = h->cluster_bits + 3 - h->refcount_order;
    q->l1_entries = h->l1_entries;
    q->l1_offset = h->l1_offset;
    q->rt_offset = h->rt_offset;
}

static char *text_of(const uint8_t *data, size_t bytes)
{
    return str_ndup((const char *)data, strnlen((const char *)data, bytes));
}

/* "Full disk encryption header pointer": where the LUKS header lies. */
static int take_crypto(Qcow2 *q, const Qcow2Extension *e, Error *err)
{
    if (q->header.crypt_method != QCOW2_CRYPT_LUKS)
        return err_set(err, -EINVAL, "CRYPTO header extension only expected with LUKS encryption method");
    if (e->bytes != 16)
        return err_set(
            err, -EINVAL, "CRYPTO header extension size %" PRIu32 ", but expected size 16", e->bytes);
    q->crypt_offset = get_be64(e->data);
    q->crypt_bytes = get_be64(e->data + 8);
    if (!is_aligned(q->crypt_offset, UINT64_C(1) << q->header.cluster_bits))
        return err_set(err, -EINVAL,
            "Encryption header offset '%" PRIu64 "' is not a multiple of cluster size '%u'", q->crypt_offset,
            1u << q->header.cluster_bits);
    if (out_of_range(q->crypt_offset, q->crypt_bytes, QCOW2_MAX_HOST_OFFSET) ||
        q->crypt_bytes > LIMIT_QCOW2_CRYPT_BYTES)
        return err_set(err, -EINVAL, "Encryption header of %" PRIu64 " bytes at %" PRIu64 " is too large",
            q->crypt_bytes, q->crypt_offset);
    return 0;
}

static int take_extension(Qcow2 *q, const Qcow2Extension *e, Error *err)
{
    switch (e->magic) {
    case QCOW2_EXT_BACKING_FORMAT:
        if (e->bytes > QCOW2_MAX_FORMAT_BYTES)
            return err_set(err, -EINVAL, "ERROR: ext_backing_format: len=%" PRIu32 " too large (>=%u)",
                e->bytes, QCOW2_MAX_FORMAT_BYTES + 1);
        free(q->node->backing_format);
        q->node->backing_format = text_of(e->data, e->bytes);
        return 0;
    case QCOW2_EXT_DATA_FILE:
        free(q->data_filename);
        q->data_filename = text_of(e->data, e->bytes);
        return 0;
    case QCOW2_EXT_BITMAPS:
        return image_take_bitmaps_extension(q, e->data, e->bytes, err);
    case QCOW2_EXT_JOURNAL:
        image_take_journal_extension(q, e->data, e->bytes);
        return 0;
    case QCOW2_EXT_CRYPTO:
        return take_crypto(q, e, err);
    default: /* unknown ones stay as they are in the image */
        return 0;
    }
}

/* area: the first cluster of the file. What is wrong is told in the reference's order. */
static int parse_extensions(Qcow2 *q, const uint8_t *area, size_t bytes, Error *err)
{
    uint64_t start = q->header.header_bytes,
             end = q->header.backing_offset ? MIN(q->header.backing_offset, (uint64_t)bytes) : bytes;
    Qcow2Extension extension;
    size_t offset = 0;
    int r;

    start = MIN(start, end); /* a name within the header leaves no room for any */
    r = qcow2_features_check(&q->header, area + start, end - start, err);
    if (r == 0)
        r = qcow2_header_check(&q->header, err);
    if (r < 0)
        return r;
    while ((r = qcow2_extension_next(area + start, end - start, &offset, &extension, err)) == 1) {
        r = take_extension(q, &extension, err);
        if (r < 0)
            return r;
    }
    return r;
}

static int take_backing_name(Qcow2 *q, const uint8_t *area, size_t bytes, Error *err)
{
    const Qcow2Header *h = &q->header;

    if (!h->backing_offset || !h->backing_bytes)
        return 0;
    if (out_of_range(h->backing_offset, h->backing_bytes, bytes))
        return err_set(err, -EINVAL, "Could not read backing file name");
    q->node->backing_filename = text_of(area + h->backing_offset, h->backing_bytes);
    return 0;
}

static int read_header(Qcow2 *q, Error *err)
{
    uint64_t size = node_size(edge_node(q->file));
    uint8_t head[QCOW2_HEADER_BYTES] = {0};
    AUTO_FREE uint8_t *area = NULL;
    size_t bytes = MIN(size, (uint64_t)sizeof(head));
    int r = edge_pread(q->file, 0, head, bytes);

    if (r < 0)
        return err_set_errno(err, r, "Could not read qcow2 header");
    r = qcow2_header_decode(head, bytes, &q->header, err);
    if (r < 0)
        return r;
    bytes = (size_t)1 << q->header.cluster_bits;
    area = mem_try_zalloc(1, bytes);
    if (!area)
        return err_set(err, -ENOMEM, "Could not allocate the header area");
    r = child_pread(q->file, 0, area, bytes);
    if (r < 0)
        return err_set_errno(err, r, "Could not read qcow2 extensions");
    r = parse_extensions(q, area, bytes, err);
    if (r == 0)
        r = take_backing_name(q, area, bytes, err);
    return r;
}

/* ---- Options ---- */

typedef struct CacheSizes {
    uint64_t l2, refcounts, slice;
} CacheSizes;

static int read_combined_size(const BlockdevOptionsQcow2 *o, uint64_t l2_max, CacheSizes *sizes, Error *err)
{
    uint64_t total = (uint64_t)o->cache_size;

    if (o->has_l2_cache_size && o->has_refcount_cache_size)
        return err_set(err, -EINVAL,
            "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time");
    if (o->has_l2_cache_size && (uint64_t)o->l2_cache_size > total)
        return err_set(err, -EINVAL, "l2-cache-size may not exceed cache-size");
    if (o->has_refcount_cache_size && sizes->refcounts > total)
        return err_set(err, -EINVAL, "refcount-cache-size may not exceed cache-size");
    if (o->has_l2_cache_size) {
        sizes->refcounts = total - sizes->l2;
    } else if (o->has_refcount_cache_size) {
        sizes->l2 = total - sizes->refcounts;
    } else {
        sizes->l2 = MIN(l2_max, total);
        sizes->refcounts = total - sizes->l2;
    }
    return 0;
}

/* Defaults: an L2 cache that covers the disk, up to a limit. */
static int read_cache_sizes(const Qcow2 *q, const BlockdevOptionsQcow2 *o, CacheSizes *ret_sizes, Error *err)
{
    uint64_t clusters = div_round_up(q->header.size, q->cluster_size);
    uint64_t l2_max = align_up(clusters * q->entry_bytes, q->cluster_size);
    CacheSizes sizes = {
        .l2 = MIN(l2_max, o->has_l2_cache_size ? (uint64_t)o->l2_cache_size : DEFAULT_L2_CACHE_BYTES),
        .refcounts = o->has_refcount_cache_size ? (uint64_t)o->refcount_cache_size
                                                : MAX(4 * q->cluster_size, MIN_REFCOUNT_CACHE_BYTES),
        .slice = o->has_l2_cache_entry_size ? (uint64_t)o->l2_cache_entry_size
                                            : MIN(q->cluster_size, DEFAULT_SLICE_BYTES),
    };
    int r = o->has_cache_size ? read_combined_size(o, l2_max, &sizes, err) : 0;

    if (r < 0)
        return r;
    if (sizes.slice < 1u << QCOW2_MIN_CLUSTER_BITS || sizes.slice > q->cluster_size ||
        !is_power_of_2(sizes.slice))
        return err_set(err, -EINVAL,
            "L2 cache entry size must be a power of two between %u and the cluster size (%" PRIu64 ")",
            1u << QCOW2_MIN_CLUSTER_BITS, q->cluster_size);
    if (sizes.l2 / sizes.slice > INT32_MAX || sizes.l2 > INT64_MAX)
        return err_set(err, -EINVAL, "L2 cache size too big");
    if (sizes.refcounts / q->cluster_size > INT32_MAX || sizes.refcounts > INT64_MAX)
        return err_set(err, -EINVAL, "Refcount cache size too big");
    /* A cache larger than what there is to cache only costs memory for its directory. */
    sizes.l2 = MIN(sizes.l2, l2_max);
    sizes.refcounts = MIN(sizes.refcounts, DEFAULT_L2_CACHE_BYTES);
    *ret_sizes = sizes;
    return 0;
}

static unsigned template_kinds(Qcow2OverlapCheckMode mode)
{
    switch (mode) {
    case QCOW2_OVERLAP_CHECK_MODE_NONE:
        return 0;
    case QCOW2_OVERLAP_CHECK_MODE_CONSTANT:
        return META_HEADER | META_L1 | META_REFTABLE | META_SNAPSHOTS | META_BITMAPS;
    case QCOW2_OVERLAP_CHECK_MODE_ALL:
        return ~0U;
    default:
        return ~(unsigned)META_INACTIVE_L2;
    }
}

static unsigned with_flag(unsigned kinds, bool has, bool on, unsigned kind)
{
    return !has ? kinds : on ? kinds | kind : kinds & ~kind;
}

static unsigned overlap_kinds(const Qcow2OverlapChecks *checks)
{
    const Qcow2OverlapCheckFlags *f;
    unsigned kinds;

    if (!checks)
        return template_kinds(QCOW2_OVERLAP_CHECK_MODE_CACHED);
    if (checks->type == QCOW2_OVERLAP_CHECKS_KIND_MODE)
        return template_kinds(checks->u.mode);
    f = checks->u.flags;
    kinds = template_kinds(f->has_template ? f->template : QCOW2_OVERLAP_CHECK_MODE_CACHED);
    kinds = with_flag(kinds, f->has_main_header, f->main_header, META_HEADER);
    kinds = with_flag(kinds, f->has_active_l1, f->active_l1, META_L1);
    kinds = with_flag(kinds, f->has_active_l2, f->active_l2, META_L2);
    kinds = with_flag(kinds, f->has_refcount_table, f->refcount_table, META_REFTABLE);
    kinds = with_flag(kinds, f->has_refcount_block, f->refcount_block, META_REFBLOCK);
    kinds = with_flag(kinds, f->has_inactive_l1, f->inactive_l1, META_INACTIVE_L1);
    kinds = with_flag(kinds, f->has_inactive_l2, f->inactive_l2, META_INACTIVE_L2);
    kinds = with_flag(kinds, f->has_bitmap_directory, f->bitmap_directory, META_BITMAPS);
    return with_flag(kinds, f->has_snapshot_table, f->snapshot_table, META_SNAPSHOTS);
}

/* The sizes are integers on the wire, but no negative number is one. */
static int check_sizes(const BlockdevOptionsQcow2 *o, Error *err)
{
    const struct {
        const char *name;
        bool given;
        int64_t value;
    } sizes[] = {{"cache-size", o->has_cache_size, o->cache_size},
        {"l2-cache-size", o->has_l2_cache_size, o->l2_cache_size},
        {"l2-cache-entry-size", o->has_l2_cache_entry_size, o->l2_cache_entry_size},
        {"refcount-cache-size", o->has_refcount_cache_size, o->refcount_cache_size}};

    for (size_t i = 0; i < ARRAY_SIZE(sizes); i++)
        if (sizes[i].given && sizes[i].value < 0)
            return err_set(err, -EINVAL, "Value '%" PRId64 "' is out of range for parameter '%s'",
                sizes[i].value, sizes[i].name);
    return 0;
}

int image_read_options(Qcow2 *q, const BlockdevOptionsQcow2 *o, Error *err)
{
    uint64_t interval =
        o->has_cache_clean_interval ? (uint64_t)o->cache_clean_interval : DEFAULT_CLEAN_SECONDS;

    q->lazy_refcounts =
        o->has_lazy_refcounts ? o->lazy_refcounts : q->header.compatible & QCOW2_COMPATIBLE_LAZY_REFCOUNTS;
    if (q->lazy_refcounts && q->header.version < 3)
        return err_set(
            err, -EINVAL, "Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level");
    if (interval > UINT32_MAX)
        return err_set(err, -EINVAL, "Cache clean interval too big");
    q->discard_no_unref = o->has_discard_no_unref && o->discard_no_unref;
    if (q->discard_no_unref && q->header.version < 3)
        return err_set(err, -EINVAL, "discard-no-unref is only supported since qcow2 version 3");
    q->clean_interval_ns = interval * UINT64_C(1000000000);
    q->pass_discard_request = o->has_pass_discard_request ? o->pass_discard_request : q->node->discard_unmap;
    q->pass_discard_snapshot = !o->has_pass_discard_snapshot || o->pass_discard_snapshot;
    q->pass_discard_other = o->has_pass_discard_other && o->pass_discard_other;
    q->overlap_check = overlap_kinds(o->overlap_check);
    return check_sizes(o, err);
}

void image_set_slices(Qcow2 *q)
{
    q->slice_l2_bits = q->l2.slice_bits - (q->extended ? 4 : 3);
    q->slice_rc_bits = q->refcounts.slice_bits + 3 - q->refcount_order;
}

int image_init_caches(Qcow2 *q, const BlockdevOptionsQcow2 *o, Cache *l2, Cache *refcounts, Error *err)
{
    unsigned slice_bits = 0, block_bits = MIN(q->cluster_bits, 12U);
    CacheSizes sizes = {0};
    int r = read_cache_sizes(q, o, &sizes, err);

    if (r < 0)
        return r;
    while (UINT64_C(1) << slice_bits < sizes.slice)
        slice_bits++;
    r = cache_init(l2, q, slice_bits, sizes.l2, sync_writeback);
    if (r == 0)
        r = cache_init(refcounts, q, block_bits, sizes.refcounts, sync_refcounts);
    return r < 0 ? err_set(err, r, "Could not allocate the metadata caches") : 0;
}

/* ---- Tables ---- */

/* Reads a table of big-endian 64-bit entries. */
static int load_table(Qcow2 *q, uint64_t offset, uint64_t entries, uint64_t **ret_table)
{
    uint64_t *table = mem_try_zalloc(MAX(entries, UINT64_C(1)), 8);
    int r = table ? 0 : -ENOMEM;

    if (r == 0 && entries)
        r = child_pread(q->file, offset, table, entries * 8);
    if (r < 0) {
        free(table);
        return r;
    }
    for (uint64_t i = 0; i < entries; i++)
        table[i] = be64toh(table[i]);
    *ret_table = table;
    return 0;
}

static int load_l1(Qcow2 *q, Error *err)
{
    int r = load_table(q, q->l1_offset, q->l1_entries, &q->l1);

    if (r < 0)
        return err_set_errno(err, r, "Could not read L1 table");
    q->l1_dirty = mem_try_zalloc(q->l1_entries / 64 + 1, 1);
    return q->l1_dirty ? 0 : err_set(err, -ENOMEM, "Could not allocate L1 table");
}

int image_protect(Qcow2 *q, uint64_t offset, uint64_t bytes, unsigned kind)
{
    int r = 0;

    for (uint64_t at = offset >> q->cluster_bits;
         r == 0 && bytes && at <= (offset + bytes - 1) >> q->cluster_bits; at++)
        r = metaset_add(&q->meta, at, kind);
    return r;
}

static int protect_entries(Qcow2 *q, const uint64_t *table, uint64_t entries, uint64_t mask, unsigned kind)
{
    int r = 0;

    for (uint64_t i = 0; r == 0 && i < entries; i++)
        if (table[i] & mask)
            r = metaset_add(&q->meta, (table[i] & mask) >> q->cluster_bits, kind);
    return r;
}

/* Also notes a block that stands for several ranges: a search for a free cluster might take for ever in a
 * small file. */
static int protect_blocks(Qcow2 *q)
{
    int r = 0;

    q->rt_twice = 0;
    for (uint32_t i = 0; r == 0 && i < q->rt_entries; i++) {
        uint64_t block = q->rt[i] & QCOW2_RT_OFFSET_MASK;

        if (!block)
            continue;
        if (metaset_kinds(&q->meta, block >> q->cluster_bits) & META_REFBLOCK)
            q->rt_twice = block;
        r = metaset_add(&q->meta, block >> q->cluster_bits, META_REFBLOCK);
    }
    return r;
}

int image_load_reftable(Qcow2 *q)
{
    const Qcow2Header *h = &q->header;
    uint64_t entries = (uint64_t)h->rt_clusters << h->cluster_bits >> 3, *table;
    int r;

    if (q->rt)
        return 0;
    r = load_table(q, q->rt_offset, entries, &table);
    if (r < 0)
        return r;
    if (q->rt) { /* another request has loaded it meanwhile */
        free(table);
        return 0;
    }
    q->rt = table;
    q->rt_entries = (uint32_t)entries;
    return 0;
}

int image_prepare_writes(Qcow2 *q, Error *err)
{
    uint64_t bytes;
    int r = image_load_reftable(q);

    if (r < 0)
        return err_set_errno(err, r, "Could not initialize refcount handling");
    r = image_protect(q, 0, 1, META_HEADER);
    if (r == 0)
        r = image_protect(q, q->crypt_offset, q->crypt_bytes, META_HEADER);
    if (r == 0)
        r = image_protect(q, q->l1_offset, q->l1_entries * UINT64_C(8), META_L1);
    if (r == 0)
        r = image_protect(q, q->rt_offset, q->rt_entries * UINT64_C(8), META_REFTABLE);
    if (r == 0)
        r = protect_entries(q, q->l1, q->l1_entries, QCOW2_OFFSET_MASK, META_L2);
    if (r == 0)
        r = protect_blocks(q);
    if (r == 0)
        r = snapshot_table_space(q, &bytes);
    if (r == 0)
        r = image_protect(q, q->header.snapshots_offset, bytes, META_SNAPSHOTS);
    if (r == 0)
        r = image_protect_bitmaps(q);
    if (r < 0)
        return err_set(err, r, "Could not allocate the set of metadata clusters");
    r = overlap_protect_snapshots(q, err);
    if (r < 0)
        return r;
    q->fresh_offset = align_up(node_size(edge_node(q->file)), q->cluster_size);
    /* Who wrote the image last may have been killed: what the file says is not on the disk for sure. */
    q->mapping_unsynced = true;
    q->writable = true;
    return 0;
}

/* ---- Children ---- */

static int open_data_file(Qcow2 *q, const BlockdevOptionsQcow2 *o, Error *err)
{
    AUTO_FREE char *path = NULL;
    unsigned roles = EDGE_DATA;

    q->data = q->file;
    if (!q->data_file) {
        if (o->data_file)
            return err_set(err, -EINVAL, "'data-file' can only be set for images with an external data file");
        return q->data_raw ? err_set(err, -EINVAL, "data-file-raw requires a data file") : 0;
    }
    if (o->data_file)
        return node_open_child(q->node, "data-file", o->data_file, roles, &q->data, err);
    if (!q->data_filename)
        return err_set(err, -EINVAL, "'data-file' is required for this image");
    path = node_resolve_path(q->node, q->data_filename, err);
    return path ? node_open_child_file(q->node, "data-file", path, "file", roles, &q->data, err) : -EINVAL;
}

static int open_backing(Qcow2 *q, const BlockdevOptionsQcow2 *o, Error *err)
{
    Node *node = q->node;
    AUTO_FREE char *path = NULL;
    BlockdevRef ref;
    int r;

    if (o->backing && o->backing->type == BLOCKDEV_REF_OR_NULL_KIND_NULL)
        return 0;
    if (o->backing) {
        if (o->backing->type == BLOCKDEV_REF_OR_NULL_KIND_REFERENCE)
            ref = (BlockdevRef){.type = BLOCKDEV_REF_KIND_REFERENCE, .u.reference = o->backing->u.reference};
        else
            ref =
                (BlockdevRef){.type = BLOCKDEV_REF_KIND_DEFINITION, .u.definition = o->backing->u.definition};
        r = node_open_child(node, "backing", &ref, EDGE_COW, NULL, err);
    } else {
        if (!node->backing_filename || !node->backing_filename[0])
            return 0;
        path = node_resolve_path(node, node->backing_filename, err);
        if (!path)
            return -EINVAL;
        r = node_open_child_file(node, "backing", path, node->backing_format, EDGE_COW, NULL, err);
    }
    return r < 0 ? err_prefix(err, r, "Could not open backing file") : 0;
}

/* ---- Writable images ---- */

/* Bits that we do not know stand for data that our writes would not keep up to date. */
static int clear_autoclear(Qcow2 *q, Error *err)
{
    uint64_t keep = (q->data_file ? QCOW2_AUTOCLEAR_DATA_FILE_RAW : 0) | image_bitmaps_autoclear(q);
    int r = q->header.version < 3 ? 0 : header_write_autoclear(q, q->header.autoclear & keep);

    return r < 0 ? err_set_errno(err, r, "Could not update qcow2 header") : 0;
}

static int repair_dirty(Qcow2 *q, Error *err)
{
    CheckResult result;
    int r = check_run(q, CHECK_FIX_LEAKS | CHECK_FIX_ERRORS, &result, err);

    if (r < 0)
        return err_prefix(err, r, "Could not repair dirty image");
    if (result.check_errors || result.corruptions)
        return err_set(err, -EIO,
            "Could not repair dirty image: %" PRIu64 " errors are left; run a check of the image",
            result.check_errors + result.corruptions);
    return 0;
}

static int start_steps(Qcow2 *q, Error *err)
{
    int r;

    if ((q->header.incompatible & QCOW2_INCOMPATIBLE_CORRUPT) && !q->node->for_check)
        return err_set(err, -EACCES, "qcow2: Image is corrupt; cannot be opened read/write");
    r = q->node->for_check ? 0 : crypt_check_writable(q, err);
    if (r == 0)
        r = image_prepare_writes(q, err);
    if (r < 0 || q->node->for_check)
        return r;
    r = image_settle_found_bitmaps(q);
    if (r < 0)
        return err_set_errno(err, r, "Could not flush the image");
    r = clear_autoclear(q, err);
    if (r == 0 && (q->header.incompatible & QCOW2_INCOMPATIBLE_DIRTY))
        r = repair_dirty(q, err);
    if (r == 0)
        image_start_bitmaps(q);
    return r;
}

static void forget_writing(Qcow2 *q)
{
    q->writable = false;
    metaset_done(&q->meta);
    free(TAKE(q->rt));
}

int image_start_writing(Node *node, Error *err)
{
    Qcow2 *q = node->state;
    int r = start_steps(q, err);

    if (r < 0)
        forget_writing(q);
    return r;
}

int image_stop_writing(Node *node, Error *err)
{
    Qcow2 *q = node->state;
    int r;

    image_stop_bitmaps(q);
    r = sync_close(q);
    if (r < 0) {
        image_start_bitmaps(q); /* writing goes on */
        return err_set_errno(err, r, "Could not write the metadata of node '%s'", node->name);
    }
    forget_writing(q);
    return 0;
}

/* ---- Open and close ---- */

static void set_node(Qcow2 *q)
{
    Node *node = q->node;

    node->size = align_down(q->header.size, 512);
    if (q->crypt)
        node->limits.request_alignment = MAX(node->limits.request_alignment, 512U);
    node->limits.write_zeroes_alignment = (uint32_t)q->sub_size;
    node->limits.discard_alignment = (uint32_t)q->cluster_size;
    node->write_flags = REQ_FUA | REQ_OUTLIVES | (q->crypt ? 0 : (unsigned)REQ_COMPRESSED);
    node->zeroes_flags = REQ_MAY_UNMAP | REQ_NO_FALLBACK | REQ_OUTLIVES;
}

static int open_steps(Qcow2 *q, const BlockdevOptionsQcow2 *o, Error *err)
{
    int r =
        node_open_child(q->node, "file", o->file, EDGE_PRIMARY | EDGE_DATA | EDGE_METADATA, &q->file, err);

    if (r == 0)
        r = read_header(q, err);
    if (r < 0)
        return r;
    derive(q);
    r = image_read_options(q, o, err);
    if (r == 0)
        r = image_init_caches(q, o, &q->l2, &q->refcounts, err);
    if (r < 0)
        return r;
    image_set_slices(q);
    r = open_data_file(q, o, err);
    if (r == 0 && !q->node->for_check)
        r = crypt_open(q, o->encrypt, err);
    if (r == 0)
        r = load_l1(q, err);
    if (r == 0 && q->header.snapshots && !q->node->for_check)
        r = image_check_snapshots(q, err);
    if (r < 0)
        return r;
    set_node(q);
    q->file_node = edge_node(q->file);
    r = q->node->for_check ? 0 : image_load_bitmaps(q, err);
    if (r == 0 && !q->node->read_only)
        r = image_start_writing(q->node, err);
    return r == 0 && !q->node->for_check ? open_backing(q, o, err) : r;
}

int image_open(Node *node, const BlockdevOptions *options, Error *err)
{
    Qcow2 *q = node->state;
    int r;

    q->node = node;
    q->stored = image_new_bitmaps();
    list_init(&q->allocs);
    list_init(&q->in_place);
    co_group_init(&q->cleaner);
    r = open_steps(q, &options->u.qcow2, err);
    if (r < 0) {
        clean_end(q);
        image_done(q);
    }
    return r;
}

void image_done(Qcow2 *q)
{
    if (q->l2.entries)
        cache_done(&q->l2);
    if (q->refcounts.entries)
        cache_done(&q->refcounts);
    metaset_done(&q->meta);
    image_free_bitmaps(q);
    inflate_done(q);
    crypt_done(q);
    away_done(q);
    for (unsigned i = 0; i < FREE_STAGES; i++)
        free(q->frees[i].items);
    while (q->copy_buffers) {
        uint8_t *buffer = q->copy_buffers;

        memcpy(&q->copy_buffers, buffer, sizeof(q->copy_buffers));
        free(buffer);
    }
    free(q->l1);
    free(q->l1_dirty);
    free(q->l1_frozen);
    free(q->rt);
    free(q->data_filename);
    *q = (Qcow2){0};
}

void image_close(Node *node)
{
    AUTO_ERROR Error err = ERROR_INIT;
    Qcow2 *q = node->state;

    if (q->writable && !q->corrupt) /* failing leaves leaked clusters at worst, or was reported by flush */
        (void)!image_stop_writing(node, &err);
    clean_end(q);
    image_done(q);
}
