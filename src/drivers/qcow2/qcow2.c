/* SPDX-License-Identifier: Apache-2.0 */
/* The driver qcow2: its table, what it says about an image, and small helpers of the engine. See
 * qcow2-priv.h. */
#include "base/log.h"
#include "base/mem.h"
#include "drivers/qcow2/qcow2-priv.h"
#include "generated/types.h"

#include <stdio.h>

/* ---- Helpers ---- */

int child_pread(Edge *edge, uint64_t offset, void *data, size_t bytes)
{
    struct iovec iov;

    return child_read(edge, offset, io_slice_of(&iov, data, bytes));
}

int child_read(Edge *edge, uint64_t offset, IoSlice dst)
{
    uint64_t size = node_size(edge_node(edge));
    size_t valid;
    int r = 0;

    if (LIKELY(!out_of_range(offset, dst.bytes, size)))
        return edge_read(edge, offset, dst);
    if (out_of_range(offset, dst.bytes, LIMIT_NODE_BYTES))
        return -EIO;
    valid = offset < size ? size - offset : 0;
    if (valid)
        r = edge_read(edge, offset, io_slice_part(dst, 0, valid));
    io_slice_fill(io_slice_part(dst, valid, dst.bytes - valid), 0);
    return r;
}

int child_write_durably(Edge *edge, uint64_t offset, const void *data, size_t bytes)
{
    int r = edge_pwrite(edge, offset, data, bytes, 0);

    return r < 0 ? r : edge_flush(edge);
}

int child_fill_zeroes(Edge *edge, uint64_t offset, uint64_t bytes)
{
    static const uint8_t zeroes[64 * KIB] __attribute__((aligned(4096)));
    struct iovec iov[16];

    for (unsigned i = 0; i < ARRAY_SIZE(iov); i++)
        iov[i] = (struct iovec){.iov_base = (void *)zeroes, .iov_len = sizeof(zeroes)};
    while (bytes) {
        size_t piece = MIN(bytes, (uint64_t)ARRAY_SIZE(iov) * sizeof(zeroes));
        int r = edge_write(edge, offset, (IoSlice){.iov = iov, .bytes = piece}, 0);

        if (r < 0)
            return r;
        offset += piece;
        bytes -= piece;
    }
    return 0;
}

int child_write_zeroes(Edge *edge, uint64_t offset, uint64_t bytes)
{
    if (bytes > 64 * KIB && !out_of_range(offset, bytes, node_size(edge_node(edge))))
        return edge_write_zeroes(edge, offset, bytes, 0);
    return child_fill_zeroes(edge, offset, bytes);
}

/* ---- Corruption ---- */

void image_refuse(Qcow2 *q)
{
    q->corrupt = true;
    away_forget(q); /* reads on other loops come home and are told */
}

int image_change_incompatible(Qcow2 *q, uint64_t set, uint64_t clear)
{
    int r;

    co_mutex_lock_shielded(&q->header_lock);
    r = header_write_bits(q, QCOW2_AT_INCOMPATIBLE, (q->header.incompatible | set) & ~clear,
        &q->header.incompatible, &q->incompatible_unsure);
    co_mutex_unlock(&q->header_lock);
    return r;
}

static void mark_corrupt(Qcow2 *q)
{
    image_refuse(q);
    if (q->header.version >= 3 && image_change_incompatible(q, QCOW2_INCOMPATIBLE_CORRUPT, 0) < 0)
        log_warn("qcow2: node '%s' could not be marked corrupt", q->node->name);
}

int image_corrupt(Qcow2 *q, bool fatal, int64_t offset, int64_t size, const char *fmt, ...)
{
    AUTO_FREE char *message = NULL;
    va_list args;

    fatal = fatal && q->writable;
    if (q->corrupt || (q->reported && !fatal))
        return -EIO;
    va_start(args, fmt);
    message = str_vprintf(fmt, args);
    va_end(args);
    /* On standard error without the program's name: this is what those who watch for corruption look for. */
    if (fatal)
        fprintf(stderr, "qcow2: Marking image as corrupt: %s; further corruption events will be suppressed\n",
            message);
    else
        fprintf(stderr,
            "qcow2: Image is corrupt: %s; further non-fatal corruption events will be suppressed\n", message);
    q->reported = true;
    if (fatal)
        mark_corrupt(q);
    node_report_corruption(q->node, fatal, offset, size, message);
    return -EIO;
}

/* ---- Flush, information ---- */

static int image_flush(Node *node)
{
    Qcow2 *q = node->state;
    int r;

    if (!q->writable)
        return 0;
    if (q->corrupt)
        return -EIO;
    r = sync_flush(q);
    if (r == 0)
        image_flush_bitmaps(q);
    return r;
}

static int image_info(Node *node, ImageInfo *info, Error *err)
{
    Qcow2 *q = node->state;
    ImageInfoSpecificQCow2 *specific;
    bool v3 = q->header.version >= 3;

    info->has_cluster_size = true;
    info->cluster_size = (int64_t)q->cluster_size;
    info->has_dirty_flag = true;
    info->dirty_flag = q->header.incompatible & QCOW2_INCOMPATIBLE_DIRTY;
    info->format_specific = mem_new(ImageInfoSpecific);
    info->format_specific->type = IMAGE_INFO_SPECIFIC_KIND_QCOW2;
    specific = mem_new(ImageInfoSpecificQCow2);
    info->format_specific->u.qcow2.data = specific;
    specific->compat = str_dup(v3 ? "1.1" : "0.10");
    specific->refcount_bits = 1 << q->refcount_order;
    specific->compression_type = q->header.compression_type == QCOW2_COMPRESSION_ZSTD
                                     ? QCOW2_COMPRESSION_TYPE_ZSTD
                                     : QCOW2_COMPRESSION_TYPE_ZLIB;
    info->has_encrypted = info->encrypted = q->crypt;
    specific->encrypt = q->crypt ? crypt_info(q) : NULL;
    if (!v3)
        return 0;
    specific->has_lazy_refcounts = specific->has_corrupt = specific->has_extended_l2 = true;
    specific->lazy_refcounts = q->header.compatible & QCOW2_COMPATIBLE_LAZY_REFCOUNTS;
    specific->corrupt = q->header.incompatible & QCOW2_INCOMPATIBLE_CORRUPT;
    specific->extended_l2 = q->extended;
    image_bitmaps_info(q, specific);
    if (q->data_file) {
        specific->data_file = str_dup(q->data_filename);
        specific->has_data_file_raw = true;
        specific->data_file_raw = q->data_raw;
    }
    return 0;
}

static int image_amend(Node *node, const BlockdevAmendOptions *options, bool force, Error *err)
{
    const QCryptoBlockAmendOptions *encrypt = options->u.qcow2.encrypt;

    return encrypt ? crypt_amend(node->state, encrypt, force, err) : 0;
}

static bool image_filename_is_plain(Node *node)
{
    const Qcow2 *q = node->state;

    return !q->crypt;
}

static int image_probe(const uint8_t *header, size_t bytes, const char *filename)
{
    return bytes >= 8 && get_be32(header) == QCOW2_MAGIC && get_be32(header + 4) >= 2 ? 100 : 0;
}

static void image_leave_home(Node *node)
{
    clean_end(node->state);
}

static void image_enter_home(Node *node)
{
    clean_begin(node->state);
}

/* Growing zeroes what an external data file holds behind the end of the disk. */
static void image_child_permissions(
    Node *node, Edge *child, unsigned perm, unsigned shared, unsigned *ret_perm, unsigned *ret_shared)
{
    const Qcow2 *q = node->state;

    node_default_permissions(node, child, perm, shared, ret_perm, ret_shared);
    if (q->data_file && child == q->data && (perm & PERM_RESIZE))
        *ret_perm |= PERM_WRITE;
}

const Driver driver_qcow2 = {
    .name = "qcow2",
    .state_size = sizeof(Qcow2),
    .flags = DRIVER_FORMAT | DRIVER_BACKING | DRIVER_READ_ANY_LOOP,
    .open = image_open,
    .close = image_close,
    .read = image_read,
    .write = image_write,
    .write_zeroes = image_write_zeroes,
    .discard = image_discard,
    .flush = image_flush,
    .status = image_status,
    .leave_home = image_leave_home,
    .enter_home = image_enter_home,
    .resize = image_resize,
    .child_permissions = image_child_permissions,
    .snapshots = &qcow2_snapshots,
    .info = image_info,
    .filename_is_plain = image_filename_is_plain,
    .check = check_run_node,
    .bitmaps = &qcow2_bitmaps,
    .create = image_create,
    .amend = image_amend,
    .reopen_prepare = image_reopen_prepare,
    .reopen_commit = image_reopen_commit,
    .reopen_abort = image_reopen_abort,
    .reopen_options = image_reopen_options,
    .change_backing_file = image_change_backing_file,
    .start_writing = image_start_writing,
    .stop_writing = image_stop_writing,
    .probe = image_probe,
};
