/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Edges: how they are attached and taken away, and what only changes through one (the size). Main loop only.
 */
#include "block/block-priv.h"

#include "base/log.h"
#include "base/mem.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

static void refresh_size(Node *node)
{
    uint64_t old_size = node->size;

    if (!node->driver->refresh_size || !node->private->in_graph)
        return;
    refresh_size(node->file->node);
    node->driver->refresh_size(node);
    if (node->size != old_size)
        node_size_changed(node);
}

void edge_attach(Edge *edge, Node *node)
{
    refresh_size(node);
    edge->node = node;
    list_prepend(&node->private->parents, &edge->node_link);
    if (edge->parent)
        list_append(&edge->parent->private->children, &edge->parent_link);
    edge_inherit_drains(edge);
}

void edge_detach(Edge *edge)
{
    if (edge->parent)
        edge_disinherit_drains(edge);
    if (edge->parent && edge->node->private->origin == edge->parent)
        edge->node->private->origin = NULL;
    list_remove(&edge->node_link);
    list_remove(&edge->parent_link);
}

void edge_retarget(Edge *edge, Node *node)
{
    refresh_size(node);
    edge_stats_add(&edge->node->private->closed_stats, edge);
    for (unsigned i = 0; i < LIMIT_LOOPS; i++)
        if (edge->lanes[i])
            edge->lanes[i]->stats = (EdgeStats){0};
    if (edge->node->private->origin == edge->parent)
        edge->node->private->origin = NULL;
    edge_disinherit_drains(edge);
    list_remove(&edge->node_link);
    edge->node = node;
    list_prepend(&node->private->parents, &edge->node_link);
    edge_inherit_drains(edge);
}

static void edge_free(Edge *edge)
{
    for (unsigned i = 0; i < LIMIT_LOOPS; i++)
        free(edge->lanes[i]);
    free(edge->name);
    free(edge);
}

void edge_dispose(Edge *edge)
{
    edge_stats_add(&edge->node->private->closed_stats, edge);
    edge_free(edge);
}

Edge *edge_new(const char *name)
{
    Edge *edge = mem_new(Edge);

    edge->name = str_dup(name);
    edge->shared = PERM_ALL;
    return edge;
}

/* Lowering what is asked for cannot conflict; a driver that fails here keeps what it has. */
static void refresh_after_detach(Node *node)
{
    AUTO_ERROR Error err = ERROR_INIT;

    if (permission_refresh(node, &err) < 0)
        log_warn("%s", err.message);
}

static void edge_disconnect(Edge *edge)
{
    Node *node = edge->node;

    graph_change_begin();
    edge_stats_add(&node->private->closed_stats, edge);
    edge_detach(edge);
    graph_change_end();
    edge_free(edge);
    if (!list_empty(&node->private->parents) || node->private->monitor_owned || node->private->held)
        refresh_after_detach(node);
    node_release(node);
}

int edge_open(Node *node, const EdgeUser *user, void *opaque, unsigned perm, unsigned shared, Edge **ret_edge,
    Error *err)
{
    Edge *edge = edge_new("root");
    int r;

    edge->user = user;
    edge->opaque = opaque;
    graph_change_begin();
    edge_attach(edge, node);
    graph_change_end();
    r = permission_set(edge, perm, shared, err);
    if (r < 0) {
        graph_change_begin();
        edge_detach(edge);
        graph_change_end();
        edge_free(edge);
        return r;
    }
    *ret_edge = edge;
    return 0;
}

void edge_close(Edge *edge)
{
    if (!edge)
        return;
    edge_wait_for_pr(edge);
    if (!edge->parent) {
        edge_close_gate(edge);
        edge_wait_until_idle(edge);
    } else if (edge->parent->file == edge) {
        edge->parent->file = NULL;
    } else if (edge->parent->backing == edge) {
        edge->parent->backing = NULL;
    }
    edge_disconnect(edge);
}

int edge_set_permissions(Edge *edge, unsigned perm, unsigned shared, Error *err)
{
    return permission_set(edge, perm, shared, err);
}

Node *edge_node(const Edge *edge)
{
    return edge->node;
}

void node_set_child_roles(Edge *child, unsigned roles)
{
    child->roles = roles;
}

void edge_fix_home(Edge *edge)
{
    edge->fixed_home = true;
}

/* ---- Resizing ---- */

typedef struct ResizeCall {
    Edge *edge;
    uint64_t size;
    bool exact;
    Preallocation prealloc;
    unsigned flags;
    Error *err;
} ResizeCall;

static int resize_on_home(void *arg)
{
    const ResizeCall *c = arg;
    Node *node = c->edge->node;

    return node->driver->resize(node, c->size, c->exact, c->prealloc, c->flags, c->err);
}

/*
 * For users outside of the graph, on the main loop: drivers resize while nothing else is in flight, and one
 * at a time. A filter passes the request on, so that is true for what it shows, too.
 */
static int resize_drained(ResizeCall *call, Node *node)
{
    int r;

    if (!node)
        return loop_call(call->edge->node->home, resize_on_home, call);
    node_hold(node);
    co_mutex_lock_shielded(&node->private->resizing);
    node_drain_begin(node);
    r = resize_drained(call, node->file ? node->file->node : NULL);
    node_drain_end(node);
    co_mutex_unlock(&node->private->resizing);
    node_let_go(node);
    return r;
}

int edge_resize(Edge *edge, uint64_t size, bool exact, Preallocation prealloc, unsigned flags, Error *err)
{
    ResizeCall call = {
        .edge = edge, .size = size, .exact = exact, .prealloc = prealloc, .flags = flags, .err = err};
    Node *node = edge->node;
    uint64_t old_size = node->size;
    int r;

    if (!(edge->perm & PERM_RESIZE))
        return err_set(err, -EPERM, "Permission 'resize' missing on node '%s'", node->name);
    if (node->read_only)
        return err_set(err, -EACCES, "Image is read-only");
    if (size > LIMIT_NODE_BYTES)
        return err_set(err, -EFBIG, "Required too big image size, it must be not greater than %" PRIu64,
            LIMIT_NODE_BYTES);
    if (!node->driver->resize)
        return err_set(err, -ENOTSUP, "Image format driver does not support resize");
    r = edge->parent ? loop_call(node->home, resize_on_home, &call) : resize_drained(&call, node);
    if (node->size != old_size) /* also when only what follows has failed */
        node_size_changed(node);
    return r;
}
