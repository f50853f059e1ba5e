/* SPDX-License-Identifier: Apache-2.0 */
/* Moving a tree of nodes to another loop. */
#include "block/block-priv.h"

#include "generated/trace.h"

#include <errno.h>

static void move_tree(Node *node, Loop *home)
{
    if (node->home == home)
        return;
    node->home = home;
    LIST_FOREACH (link, &node->private->children)
        move_tree(LIST_ENTRY(link, Edge, parent_link)->node, home);
    LIST_FOREACH (link, &node->private->parents) {
        Edge *edge = LIST_ENTRY(link, Edge, node_link);

        if (edge->parent)
            move_tree(edge->parent, home);
    }
}

/* Everything that must come along hangs together: if another user has already moved it elsewhere, it stays
 * there. */
static bool is_pinned_elsewhere(Node *node, Loop *main_loop)
{
    return node->home != main_loop && node_has_root_edge(node);
}

/* Draining the leaves reaches every user of any part of the tree. */
static void drain_tree(Node *node)
{
    node_drain_begin(node);
    LIST_FOREACH (link, &node->private->children)
        drain_tree(LIST_ENTRY(link, Edge, parent_link)->node);
}

static void undrain_tree(Node *node, Loop *old_home)
{
    drain_end_on(old_home, node);
    LIST_FOREACH (link, &node->private->children)
        undrain_tree(LIST_ENTRY(link, Edge, parent_link)->node, old_home);
}

int node_set_home(Node *node, Loop *home, Error *err)
{
    Loop *old_home = node->home;

    if (old_home == home)
        return 0;
    if (is_pinned_elsewhere(node, loop_current()))
        return err_set(err, -EBUSY, "Cannot change iothread of active block backend");
    trace_node_set_home(node->name, loop_name(home));
    drain_tree(node);
    move_tree(node, home);
    undrain_tree(node, old_home);
    return 0;
}
