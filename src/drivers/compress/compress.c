/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The filter `compress`: what is written through it is stored compressed. Formats compress whole clusters, so
 * that is what its requests are aligned to; everything but writes goes to the child as it is.
 */
#include "base/mem.h"
#include "block/driver.h"
#include "generated/types.h"

#include <errno.h>
#include <inttypes.h>

static int child_info(Node *node, ImageInfo **ret_info, Error *err)
{
    Node *child = edge_node(node->file);
    CLEANUP(image_info_free_ptr) ImageInfo *info = mem_new(ImageInfo);
    int r = child->driver->info ? child->driver->info(child, info, err) : 0;

    if (r < 0)
        return r;
    *ret_info = TAKE(info);
    return 0;
}

/* What requests must be aligned to for the child. */
static int find_alignment(Node *node, uint32_t *ret_alignment, Error *err)
{
    CLEANUP(image_info_free_ptr) ImageInfo *below = NULL;
    Node *child = edge_node(node->file);
    int r;

    if (!(child->write_flags & REQ_COMPRESSED))
        return err_set(
            err, -ENOTSUP, "Compression is not supported for underlying format: %s", child->driver->name);
    r = child_info(node, &below, err);
    if (r < 0)
        return r;
    *ret_alignment = below->has_cluster_size ? (uint32_t)below->cluster_size : 1;
    return 0;
}

static int compress_open(Node *node, const BlockdevOptions *options, Error *err)
{
    Edge *file;
    int r = node_open_child(node, "file", options->u.compress.file, EDGE_FILTERED | EDGE_PRIMARY, &file, err);

    if (r == 0)
        r = find_alignment(node, &node->limits.request_alignment, err);
    if (r < 0)
        return r;
    node->size = node_size(edge_node(file));
    /* The edge to the child does what the child cannot. */
    node->write_flags = REQ_FUA | REQ_OUTLIVES;
    node->zeroes_flags = REQ_FUA | REQ_MAY_UNMAP | REQ_NO_FALLBACK | REQ_OUTLIVES;
    return 0;
}

/* Exports have told their clients what to align to. */
static int compress_reopen_prepare(Node *node, const BlockdevOptions *options, Error *err)
{
    uint32_t alignment;
    int r = find_alignment(node, &alignment, err);

    if (r == 0 && alignment != node->limits.request_alignment)
        r = err_set(err, -EINVAL,
            "Node '%s' compresses clusters of %" PRIu32 " bytes, but those of node '%s' have %" PRIu32
            " bytes; add another filter for it",
            node->name, node->limits.request_alignment, node_name(edge_node(node->file)), alignment);
    return r;
}

/* The last cluster may reach beyond the end of the disk. */
static int compress_read(Node *node, uint64_t offset, IoSlice dst)
{
    uint64_t size = node_size(edge_node(node->file)), room = size - MIN(size, offset);
    size_t bytes = MIN(dst.bytes, (size_t)room);

    io_slice_fill(io_slice_part(dst, bytes, dst.bytes - bytes), 0);
    return edge_read(node->file, offset, io_slice_part(dst, 0, bytes));
}

static int compress_write(Node *node, uint64_t offset, IoSlice src, unsigned flags)
{
    return edge_write(node->file, offset, src, flags | REQ_COMPRESSED);
}

static int compress_write_zeroes(Node *node, uint64_t offset, uint64_t bytes, unsigned flags)
{
    return edge_write_zeroes(node->file, offset, bytes, flags);
}

static int compress_discard(Node *node, uint64_t offset, uint64_t bytes)
{
    return edge_discard(node->file, offset, bytes);
}

static int compress_status(Node *node, uint64_t offset, uint64_t bytes, BlockStatus *ret_status)
{
    return edge_status(node->file, offset, bytes, ret_status);
}

static void compress_refresh_size(Node *node)
{
    node->size = node_size(edge_node(node->file));
}

static int compress_resize(
    Node *node, uint64_t size, bool exact, Preallocation prealloc, unsigned flags, Error *err)
{
    int r = edge_resize(node->file, size, exact, prealloc, flags, err);

    if (r == 0)
        compress_refresh_size(node);
    return r;
}

static int compress_info(Node *node, ImageInfo *info, Error *err)
{
    CLEANUP(image_info_free_ptr) ImageInfo *below = NULL;
    int r = child_info(node, &below, err);

    if (r < 0)
        return r;
    info->has_cluster_size = below->has_cluster_size;
    info->cluster_size = below->cluster_size;
    info->has_dirty_flag = below->has_dirty_flag;
    info->dirty_flag = below->dirty_flag;
    return 0;
}

/* No file is recognised as this when it is opened. */
static bool compress_filename_is_plain(Node *node)
{
    return false;
}

extern const Driver driver_compress;
const Driver driver_compress = {
    .name = "compress",
    .flags = DRIVER_FILTER | DRIVER_ANY_LOOP,
    .open = compress_open,
    .read = compress_read,
    .write = compress_write,
    .write_zeroes = compress_write_zeroes,
    .discard = compress_discard,
    .status = compress_status,
    .resize = compress_resize,
    .refresh_size = compress_refresh_size,
    .info = compress_info,
    .filename_is_plain = compress_filename_is_plain,
    .reopen_prepare = compress_reopen_prepare,
};
