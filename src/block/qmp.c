/* SPDX-License-Identifier: Apache-2.0 */
/* The QMP commands that change the graph, and the event about damaged images. */
#include "block/block-priv.h"

#include "base/mem.h"
#include "generated/commands.h"
#include "generated/events.h"

#include <errno.h>

int qmp_blockdev_add(const BlockdevOptions *arg, Error *err)
{
    return node_add(arg, err);
}

int qmp_blockdev_del(const BlockdevDelArg *arg, Error *err)
{
    return node_del(arg->node_name, err);
}

static char *describe_command(void *opaque)
{
    return str_dup("an unnamed block device");
}

int qmp_block_resize(const BlockResizeArg *arg, Error *err)
{
    static const EdgeUser user = {.describe = describe_command};
    const char *name = arg->node_name ? arg->node_name : "";
    Node *node = node_find(name);
    Edge *edge;
    int r;

    if (!node) /* devices exist only in virtual machines */
        return err_set(
            err, -ENODEV, "Cannot find device='%s' nor node-name='%s'", arg->device ? arg->device : "", name);
    if (arg->size < 0)
        return err_set(err, -EINVAL, "Parameter 'size' expects a >0 size");
    r = edge_open(node, &user, NULL, PERM_RESIZE, PERM_ALL, &edge, err);
    if (r < 0)
        return r;
    r = edge_resize(edge, (uint64_t)arg->size, false, PREALLOCATION_OFF, 0, err);
    edge_close(edge);
    return r;
}

/* ---- change-backing-file ---- */

/* The node whose data shows through where a node has none. */
static Node *below(const Node *node)
{
    const Edge *edge = node->backing                         ? node->backing
                       : node->driver->flags & DRIVER_FILTER ? node->file
                                                             : NULL;

    return edge ? edge->node : NULL;
}

static bool chain_contains(Node *top, const Node *node)
{
    while (top && top != node)
        top = below(top);
    return top;
}

/* No other node uses it. */
static bool is_root(const Node *node)
{
    LIST_FOREACH (link, &node->private->parents)
        if (LIST_ENTRY(link, Edge, node_link)->parent)
            return false;
    return true;
}

typedef struct BackingCall {
    Node *node;
    const char *filename;
} BackingCall;

static int change_on_home(void *arg)
{
    const BackingCall *call = arg;
    Node *node = call->node, *backing = node->backing->node;

    while ((backing->driver->flags & DRIVER_FILTER) && below(backing))
        backing = below(backing);
    return node->driver->change_backing_file(node, call->filename, backing->driver->name);
}

static int change_backing_file(Node *node, const char *filename, Error *err)
{
    BackingCall call = {.node = node, .filename = filename};
    int r = -ENOTSUP;

    if (node->driver->change_backing_file) {
        node_drain_begin(node);
        r = loop_call(node->home, change_on_home, &call);
        node_drain_end(node);
    }
    return r < 0 ? err_set_errno(err, r, "Could not change backing file to '%s'", filename) : 0;
}

int qmp_change_backing_file(const ChangeBackingFileArg *arg, Error *err)
{
    Node *device = node_find(arg->device), *image = node_find(arg->image_node_name);
    bool read_only;
    int r;

    if (!device)
        return err_set(err, -ENODEV, "Cannot find device='%s' nor node-name='%s'", arg->device, arg->device);
    if (!is_root(device))
        return err_set(err, -EINVAL, "Need a root block node");
    if (!image)
        return err_set(err, -ENODEV, "Cannot find device='' nor node-name='%s'", arg->image_node_name);
    if (!image->backing)
        return err_set(err, -EINVAL, "not allowing backing file change on an image without a backing file");
    if (!chain_contains(device, image))
        return err_set(err, -EINVAL, "'%s' and image file are not in the same chain", arg->device);
    node_hold(image);
    read_only = image->read_only;
    r = read_only ? node_set_read_only(image, false, err) : 0;
    if (r == 0) {
        r = change_backing_file(image, arg->backing_file, err);
        if (read_only) {
            AUTO_ERROR Error again = ERROR_INIT;
            int undone = node_set_read_only(image, true, r == 0 ? err : &again);

            r = r < 0 ? r : undone;
        }
    }
    node_let_go(image);
    return r;
}

static Loop *main_loop;

void block_init(void)
{
    main_loop = loop_current();
}

Loop *block_main_loop(void)
{
    return main_loop;
}

static int send_corruption(void *arg)
{
    event_block_image_corrupted(arg);
    return 0;
}

void node_report_corruption(Node *node, bool fatal, int64_t offset, int64_t size, const char *message)
{
    BlockImageCorruptedEvent event = {
        .device = (char *)"",
        .node_name = node->name,
        .msg = (char *)message,
        .has_offset = offset >= 0,
        .offset = offset,
        .has_size = size >= 0,
        .size = size,
        .fatal = fatal,
    };

    node->private->corrupt |= fatal;
    loop_call(main_loop, send_corruption, &event);
}
