/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Internal snapshots: their commands. The driver works while all requests to the node are held; a root edge
 * keeps the node alive meanwhile.
 */
#include "block/snapshot.h"

#include "base/log.h"
#include "base/mem.h"
#include "block/bitmap.h"
#include "block/block-priv.h"
#include "block/transaction.h"
#include "generated/commands.h"

#include <string.h>
#include <time.h>

static char *describe_command(void *opaque)
{
    return str_dup("an internal snapshot command");
}

static const EdgeUser snapshot_user = {.describe = describe_command};

static void edge_close_ptr(Edge **edge)
{
    edge_close(*edge);
}

/* ---- The image that has them ---- */

/* The node itself, or below nodes that only pass its data on. */
static Node *image_below(Node *node)
{
    while (node && !node->driver->snapshots)
        node = node->file && !node->backing ? node->file->node : NULL;
    return node;
}

typedef struct SnapshotCall {
    Node *image;
    const char *id, *name;
    const SnapshotInfo *info;
    SnapshotInfoList *list;
    Error *err;
} SnapshotCall;

static int list_on_home(void *arg)
{
    const SnapshotCall *c = arg;

    return c->image->driver->snapshots->list(c->image, c->list, c->err);
}

static int create_on_home(void *arg)
{
    const SnapshotCall *c = arg;

    return c->image->driver->snapshots->create(c->image, c->info, c->err);
}

static int remove_on_home(void *arg)
{
    const SnapshotCall *c = arg;

    return c->image->driver->snapshots->remove(c->image, c->id, c->name, c->err);
}

static int apply_on_home(void *arg)
{
    const SnapshotCall *c = arg;

    return c->image->driver->snapshots->apply(c->image, c->id, c->name, c->err);
}

static int call_drained(SnapshotCall *c, int (*fn)(void *call))
{
    int r;

    node_drain_begin(c->image);
    r = loop_call(c->image->home, fn, c);
    node_drain_end(c->image);
    return r;
}

static int list_of(Node *node, SnapshotInfoList *list, Error *err)
{
    SnapshotCall call = {.image = image_below(node), .list = list, .err = err};

    if (!call.image)
        return err_set(err, -ENOTSUP, "%s", strerror(ENOTSUP));
    return loop_call(call.image->home, list_on_home, &call);
}

int node_snapshot_list(Node *node, SnapshotInfoList *list, Error *err)
{
    AUTO_ERROR Error own = ERROR_INIT;
    int r = list_of(node, list, &own);

    if (r < 0 && r != -ENOTSUP)
        err_move(err, &own);
    return r == -ENOTSUP ? 0 : r;
}

/* ---- What the commands check ---- */

/* Opens the node that a command names. */
static int open_device(const char *device, unsigned perm, unsigned shared, Edge **ret_edge, Error *err)
{
    Node *node = node_find(device);

    if (!node)
        return err_set(err, -ENODEV, "Cannot find device='%s' nor node-name='%s'", device, device);
    LIST_FOREACH (link, &node->private->parents)
        if (LIST_ENTRY(link, Edge, node_link)->parent)
            return err_set(err, -EPERM, "Need a root block node");
    return edge_open(node, &snapshot_user, NULL, perm, shared, ret_edge, err);
}

/* A copy of the one that matches what is given; NULL if none does. */
static int find(Node *node, const char *id, const char *name, SnapshotInfo **ret_info, Error *err)
{
    CLEANUP(snapshot_info_list_done) SnapshotInfoList list = {0};
    int r = list_of(node, &list, err);

    if (r < 0)
        return err_prefix(err, r, "Failed to get a snapshot list");
    *ret_info = NULL;
    for (size_t i = 0; i < list.count && !*ret_info; i++)
        if ((!id || str_eq(list.items[i]->id, id)) && (!name || str_eq(list.items[i]->name, name)))
            *ret_info = TAKE(list.items[i]);
    return 0;
}

static int check_writable(const Node *node, const char *device, Error *err)
{
    return node->read_only ? err_set(err, -EROFS, "Device '%s' is read only", device) : 0;
}

/* What has changed since the bitmap was cleared is not known after the contents are others. */
static int check_bitmaps(Node *node, Error *err)
{
    for (const Node *image = image_below(node); node; node = node == image ? NULL : node->file->node)
        if (dirty_bitmap_next(node, NULL))
            return err_set(err, -EBUSY, "Device has active dirty bitmaps");
    return 0;
}

static int find_existing(
    Node *node, const char *device, const char *id, const char *name, SnapshotInfo **ret_info, Error *err)
{
    int r;

    if (!id && !name)
        return err_set(err, -EINVAL, "Name or id must be provided");
    r = find(node, id, name, ret_info, err);
    if (r == 0 && !*ret_info)
        r = err_set(err, -ENOENT, "Snapshot with id '%s' and name '%s' does not exist on device '%s'",
            id ? id : "null", name ? name : "null", device);
    return r;
}

/* ---- As part of a transaction ---- */

typedef struct CreateState {
    Edge *hold; /* no request comes in before the transaction ends */
    const BlockdevSnapshotInternal *arg;
} CreateState;

static int create_prepare(void *state, const TransactionAction *action, Error *err)
{
    CreateState *s = state;
    Node *node;
    int r = 0;

    s->arg = action->u.blockdev_snapshot_internal_sync.data;
    node = node_find(s->arg->device);
    if (node)
        r = transaction_hold_node(node, &s->hold, err);
    return r < 0 ? r : node_snapshot_create(s->arg->device, s->arg->name, err);
}

static void create_abort(void *state)
{
    AUTO_ERROR Error err = ERROR_INIT;
    CLEANUP(snapshot_info_free_ptr) SnapshotInfo *info = NULL;
    const CreateState *s = state;

    if (node_snapshot_delete(s->arg->device, NULL, s->arg->name, &info, &err) < 0)
        log_warn("a snapshot of a transaction that failed is left: %s", err.message);
}

static void create_clean(void *state)
{
    transaction_release_node(((CreateState *)state)->hold);
}

const TransactionKind transaction_kind_blockdev_snapshot_internal_sync = {.state_size = sizeof(CreateState),
    .prepare = create_prepare,
    .abort = create_abort,
    .clean = create_clean};

/* ---- Commands ---- */

static int check_new(Node *node, const char *device, const char *name, Error *err)
{
    CLEANUP(snapshot_info_free_ptr) SnapshotInfo *same = NULL;
    int r = check_writable(node, device, err);

    if (r < 0)
        return r;
    if (!image_below(node))
        return err_set(err, -ENOTSUP,
            "Block format '%s' used by device '%s' does not support internal snapshots", node->driver->name,
            device);
    r = find(node, NULL, name, &same, err);
    if (r < 0)
        return r;
    if (same)
        return err_set(err, -EEXIST, "Snapshot with name '%s' already exists on device '%s'", name, device);
    if (!name[0])
        return err_set(err, -EINVAL, "Name is empty");
    if (strlen(name) > LIMIT_SNAPSHOT_NAME)
        return err_set(err, -EINVAL, "Snapshot name '%s' is longer than %d bytes", name, LIMIT_SNAPSHOT_NAME);
    return 0;
}

int node_snapshot_create(const char *device, const char *name, Error *err)
{
    CLEANUP(edge_close_ptr) Edge *edge = NULL;
    struct timespec now;
    SnapshotInfo info;
    SnapshotCall call = {.info = &info, .err = err};
    int r = open_device(device, 0, PERM_ALL, &edge, err);

    if (r == 0)
        r = check_new(edge->node, device, name, err);
    if (r < 0)
        return r;
    clock_gettime(CLOCK_REALTIME, &now);
    info =
        (SnapshotInfo){.name = (char *)name, .date_sec = now.tv_sec, .date_nsec = now.tv_nsec / 1000 * 1000};
    info.vm_clock_sec = info.date_sec; /* no machine runs: its clock is that of the host */
    info.vm_clock_nsec = info.date_nsec;
    call.image = image_below(edge->node);
    r = call_drained(&call, create_on_home);
    return r < 0 ? err_prefix(err, r, "Failed to create snapshot '%s' on device '%s'", name, device) : 0;
}

int node_snapshot_delete(
    const char *device, const char *id, const char *name, SnapshotInfo **ret_info, Error *err)
{
    CLEANUP(edge_close_ptr) Edge *edge = NULL;
    CLEANUP(snapshot_info_free_ptr) SnapshotInfo *info = NULL;
    SnapshotCall call = {.err = err};
    int r = open_device(device, 0, PERM_ALL, &edge, err);

    if (r == 0)
        r = find_existing(edge->node, device, id, name, &info, err);
    if (r == 0)
        r = check_writable(edge->node, device, err);
    if (r < 0)
        return r;
    call.image = image_below(edge->node);
    call.id = info->id;
    call.name = info->name;
    r = call_drained(&call, remove_on_home);
    if (r < 0)
        return err_prefix(err, r, "Failed to delete snapshot '%s' on device '%s'", info->name, device);
    *ret_info = TAKE(info);
    return 0;
}

int node_snapshot_apply(const char *device, const char *id, const char *name, Error *err)
{
    CLEANUP(edge_close_ptr) Edge *edge = NULL;
    CLEANUP(snapshot_info_free_ptr) SnapshotInfo *info = NULL;
    SnapshotCall call = {.err = err};
    uint64_t size;
    int r = open_device(device, 0, PERM_ALL, &edge, err);

    if (r == 0)
        r = find_existing(edge->node, device, id, name, &info, err);
    if (r == 0)
        r = check_writable(edge->node, device, err);
    if (r == 0)
        r = check_bitmaps(edge->node, err);
    if (r == 0) /* nobody else may write, nor rely on the size */
        r = edge_set_permissions(edge, PERM_CONSISTENT_READ | PERM_WRITE | PERM_RESIZE,
            PERM_CONSISTENT_READ | PERM_WRITE_UNCHANGED, err);
    if (r < 0)
        return r;
    call.image = image_below(edge->node);
    call.id = info->id;
    call.name = info->name;
    size = call.image->size;
    r = call_drained(&call, apply_on_home);
    if (r == 0 && call.image->size != size)
        node_size_changed(call.image);
    return r < 0 ? err_prefix(err, r, "Failed to apply snapshot '%s' on device '%s'", info->name, device) : 0;
}

int qmp_blockdev_snapshot_internal_sync(const BlockdevSnapshotInternal *arg, Error *err)
{
    const TransactionAction action = {.type = TRANSACTION_ACTION_KIND_BLOCKDEV_SNAPSHOT_INTERNAL_SYNC,
        .u.blockdev_snapshot_internal_sync.data = (BlockdevSnapshotInternal *)arg};

    return transaction_run_one(&action, err);
}

int qmp_blockdev_snapshot_delete_internal_sync(
    const BlockdevSnapshotDeleteInternalSyncArg *arg, SnapshotInfo **ret_result, Error *err)
{
    return node_snapshot_delete(arg->device, arg->id, arg->name, ret_result, err);
}

int qmp_x_blockdev_snapshot_apply_internal(const XBlockdevSnapshotApplyInternalArg *arg, Error *err)
{
    return node_snapshot_apply(arg->device, arg->id, arg->name, err);
}
