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
