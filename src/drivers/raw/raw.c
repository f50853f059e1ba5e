/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The driver `raw`: its file child unchanged, or a window of it. With a fixed size the window keeps it; with
 * an offset only, it reaches up to the end of the child.
 */
#include "base/mem.h"
#include "block/driver.h"
#include "generated/types.h"

#include <errno.h>
#include <inttypes.h>

#define SECTOR_BYTES 512

typedef struct RawState {
    uint64_t offset;
    bool has_size; /* node->size is the user's */
    struct {
        uint64_t offset, size;
        bool has_size;
    } before; /* a reopening */
} RawState;

static bool is_window(const Node *node)
{
    const RawState *s = node->state;

    return s->offset || s->has_size;
}

static int set_window(Node *node, const BlockdevOptionsRaw *o, Error *err)
{
    RawState *s = node->state;
    uint64_t child_size = node_size(edge_node(node->file)), size = (uint64_t)o->size;

    if (s->offset > child_size)
        return err_set(err, -EINVAL,
            "Offset (%" PRIu64 ") cannot be greater than size of the containing file (%" PRIu64 ")",
            s->offset, child_size);
    if (!s->has_size) {
        node->size = child_size - s->offset;
        return 0;
    }
    if (size > child_size - s->offset)
        return err_set(err, -EINVAL,
            "The sum of offset (%" PRIu64 ") and size (%" PRIu64
            ") has to be smaller or equal to the  actual size of the containing file (%" PRIu64 ")",
            s->offset, size, child_size);
    if (size % SECTOR_BYTES)
        return err_set(err, -EINVAL, "Specified size is not multiple of %d", SECTOR_BYTES);
    node->size = size;
    return 0;
}

static int check_ranges(const BlockdevOptionsRaw *o, Error *err)
{
    if (o->has_offset && o->offset < 0)
        return err_set(err, -EINVAL, "Value '%" PRId64 "' is out of range for parameter 'offset'", o->offset);
    if (o->has_size && o->size < 0)
        return err_set(err, -EINVAL, "Value '%" PRId64 "' is out of range for parameter 'size'", o->size);
    return 0;
}

static void raw_refresh_size(Node *node)
{
    const RawState *s = node->state;
    uint64_t child_size = node_size(edge_node(node->file));

    if (!s->has_size)
        node->size = child_size > s->offset ? child_size - s->offset : 0;
}

static void set_options(RawState *s, const BlockdevOptionsRaw *o)
{
    s->offset = o->has_offset ? (uint64_t)o->offset : 0;
    s->has_size = o->has_size;
}

static unsigned child_roles(const Node *node)
{
    return (is_window(node) ? EDGE_DATA : EDGE_FILTERED) | EDGE_PRIMARY;
}

static int raw_open(Node *node, const BlockdevOptions *options, Error *err)
{
    const BlockdevOptionsRaw *o = &options->u.raw;
    Edge *file;
    int r = check_ranges(o, err);

    if (r < 0)
        return r;
    set_options(node->state, o);
    r = node_open_child(node, "file", o->file, child_roles(node), &file, err);
    if (r < 0)
        return r;
    /* The edge to the child does what the child cannot. */
    node->write_flags = REQ_FUA | REQ_OUTLIVES;
    node->zeroes_flags = REQ_FUA | REQ_MAY_UNMAP | REQ_NO_FALLBACK | REQ_OUTLIVES;
    return set_window(node, o, err);
}

static void raw_reopen_abort(Node *node)
{
    RawState *s = node->state;

    s->offset = s->before.offset;
    s->has_size = s->before.has_size;
    node->size = s->before.size;
    node_set_child_roles(node->file, child_roles(node));
}

static int raw_reopen_prepare(Node *node, const BlockdevOptions *options, Error *err)
{
    const BlockdevOptionsRaw *o = &options->u.raw;
    RawState *s = node->state;
    int r = check_ranges(o, err);

    if (r < 0)
        return r;
    s->before.offset = s->offset;
    s->before.has_size = s->has_size;
    s->before.size = node->size;
    set_options(s, o);
    node_set_child_roles(node->file, child_roles(node));
    r = set_window(node, o, err);
    if (r < 0)
        raw_reopen_abort(node);
    return r;
}

static int raw_read(Node *node, uint64_t offset, IoSlice dst)
{
    const RawState *s = node->state;

    return edge_read(node->file, s->offset + offset, dst);
}

static int raw_write(Node *node, uint64_t offset, IoSlice src, unsigned flags)
{
    const RawState *s = node->state;

    return edge_write(node->file, s->offset + offset, src, flags);
}

static int raw_write_zeroes(Node *node, uint64_t offset, uint64_t bytes, unsigned flags)
{
    const RawState *s = node->state;

    return edge_write_zeroes(node->file, s->offset + offset, bytes, flags);
}

static int raw_discard(Node *node, uint64_t offset, uint64_t bytes)
{
    const RawState *s = node->state;

    return edge_discard(node->file, s->offset + offset, bytes);
}

static int raw_status(Node *node, uint64_t offset, uint64_t bytes, BlockStatus *ret_status)
{
    const RawState *s = node->state;

    return edge_status(node->file, s->offset + offset, bytes, ret_status);
}

static int raw_pr_execute(Node *node, const PrRequest *request, PrReply *ret_reply)
{
    /* A reservation is of the whole disk, not of a window. */
    return is_window(node) ? -ENOTSUP : edge_pr_execute(node->file, request, ret_reply);
}

static int resize_check(Node *node, uint64_t size, Error *err)
{
    const RawState *s = node->state;

    if (s->has_size)
        return err_set(err, -ENOTSUP, "Cannot resize fixed-size raw disks");
    if (size > INT64_MAX - s->offset)
        return err_set(err, -EINVAL, "Disk size too large for the chosen offset");
    return 0;
}

static int raw_resize(
    Node *node, uint64_t size, bool exact, Preallocation prealloc, unsigned flags, Error *err)
{
    const RawState *s = node->state;
    int r = resize_check(node, size, err);

    if (r == 0)
        r = edge_resize(node->file, s->offset + size, exact, prealloc, flags, err);
    if (r == 0)
        node->size = node_size(edge_node(node->file)) - s->offset;
    return r;
}

/* A format writes and grows its file on its own account; here the child sees only what this node's users do.
 */
static void raw_child_permissions(
    Node *node, Edge *child, unsigned perm, unsigned shared, unsigned *ret_perm, unsigned *ret_shared)
{
    *ret_perm = perm;
    *ret_shared = is_window(node) ? shared & ~(unsigned)PERM_RESIZE : shared;
}

static int64_t raw_allocated_size(Node *node)
{
    Node *child = edge_node(node->file);

    return child->driver->allocated_size ? child->driver->allocated_size(child) : -ENOTSUP;
}

static int raw_info(Node *node, ImageInfo *info, Error *err)
{
    Node *child = edge_node(node->file);
    CLEANUP(image_info_free_ptr) ImageInfo *below = mem_new(ImageInfo);
    int r = child->driver->info ? child->driver->info(child, below, err) : 0;

    if (r < 0)
        return r;
    info->has_dirty_flag = below->has_dirty_flag;
    info->dirty_flag = below->dirty_flag;
    return 0;
}

static bool raw_filename_is_plain(Node *node)
{
    return !is_window(node);
}

/* Anything is raw when it is nothing else. */
static int raw_probe(const uint8_t *header, size_t bytes, const char *filename)
{
    return 1;
}

static const char *const reopen_options[] = {"offset", "size", NULL};

extern const Driver driver_raw;
const Driver driver_raw = {
    .name = "raw",
    .state_size = sizeof(RawState),
    .flags = DRIVER_FORMAT | DRIVER_ANY_LOOP,
    .open = raw_open,
    .read = raw_read,
    .write = raw_write,
    .write_zeroes = raw_write_zeroes,
    .discard = raw_discard,
    .status = raw_status,
    .pr_execute = raw_pr_execute,
    .resize = raw_resize,
    .refresh_size = raw_refresh_size,
    .child_permissions = raw_child_permissions,
    .allocated_size = raw_allocated_size,
    .info = raw_info,
    .filename_is_plain = raw_filename_is_plain,
    .probe = raw_probe,
    .reopen_prepare = raw_reopen_prepare,
    .reopen_abort = raw_reopen_abort,
    .reopen_options = reopen_options,
};
