/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Moving nodes to another loop. Everything that hangs together, children and parents, moves at once, while
 * the requests of all its users are held. Each node holds a reference to the iothread it lives on, so that
 * the thread outlives it.
 */
#include "block/block-priv.h"

#include "base/mem.h"
#include "generated/commands.h"
#include "generated/trace.h"
#include "loop/iothread.h"

#include <errno.h>
#include <stdlib.h>

/* The nodes that hang together. */
typedef struct Component {
    Node **nodes;
    size_t count, capacity;
} Component;

static bool contains(const Component *c, const Node *node)
{
    for (size_t i = 0; i < c->count; i++)
        if (c->nodes[i] == node)
            return true;
    return false;
}

static void collect(Component *c, Node *node)
{
    if (contains(c, node))
        return;
    VEC_GROW(c->nodes, c->count, c->capacity);
    c->nodes[c->count++] = node;
    LIST_FOREACH (link, &node->private->children)
        collect(c, LIST_ENTRY(link, Edge, parent_link)->node);
    LIST_FOREACH (link, &node->private->parents) {
        Edge *edge = LIST_ENTRY(link, Edge, node_link);

        if (edge->parent)
            collect(c, edge->parent);
    }
}

static void for_each_user(const Component *c, void (*fn)(Edge *edge))
{
    for (size_t i = 0; i < c->count; i++)
        LIST_FOREACH (link, &c->nodes[i]->private->parents) {
            Edge *edge = LIST_ENTRY(link, Edge, node_link);

            if (!edge->parent)
                fn(edge);
        }
}

static bool is_fixed(const Component *c)
{
    for (size_t i = 0; i < c->count; i++)
        LIST_FOREACH (link, &c->nodes[i]->private->parents)
            if (LIST_ENTRY(link, Edge, node_link)->fixed_home)
                return true;
    return false;
}

static void tell(Edge *edge)
{
    if (edge->user->moved)
        edge->user->moved(edge->opaque);
}

/* Puts the iothreads that the nodes have left into *left. */
static void move(const Component *c, Object *iothread, Object **left)
{
    for (size_t i = 0; i < c->count; i++) {
        Node *node = c->nodes[i];

        left[i] = node->private->iothread;
        node->private->iothread = iothread ? object_ref(iothread) : NULL;
        node->home = iothread ? iothread_loop(iothread) : block_main_loop();
    }
}

static int leave(void *arg)
{
    Node *node = arg;

    node->driver->leave_home(node);
    return 0;
}

static int enter(void *arg)
{
    Node *node = arg;

    node->driver->enter_home(node);
    return 0;
}

static void call_drivers(const Component *c, int (*fn)(void *arg))
{
    for (size_t i = 0; i < c->count; i++)
        if (c->nodes[i]->driver->leave_home)
            loop_call(c->nodes[i]->home, fn, c->nodes[i]);
}

static void move_component(const Component *c, Object *iothread)
{
    Object **left = mem_zalloc(c->count * sizeof(Object *));

    for_each_user(c, edge_close_gate);
    for_each_user(c, edge_wait_until_idle);
    call_drivers(c, leave);
    move(c, iothread, left);
    call_drivers(c, enter);
    for_each_user(c, edge_open_gate);
    for_each_user(c, tell);
    graph_change_end();
    for (size_t i = 0; i < c->count; i++)
        object_unref(left[i]); /* may wait for the end of a thread */
    free(left);
}

int node_set_iothread(Node *node, Object *iothread, Error *err)
{
    Component component = {0};
    int r = 0;

    graph_change_begin();
    if (node->private->iothread == iothread) {
        graph_change_end();
        return 0;
    }
    collect(&component, node);
    if (is_fixed(&component)) {
        graph_change_end();
        r = err_set(err, -EBUSY, "Cannot change iothread of active block backend");
    } else {
        trace_node_set_home(node->name, iothread ? object_id(iothread) : "main");
        move_component(&component, iothread);
    }
    free(component.nodes);
    return r;
}

Object *node_iothread(const Node *node)
{
    return node->private->iothread;
}

int qmp_x_blockdev_set_iothread(const XBlockdevSetIothreadArg *arg, Error *err)
{
    const StrOrNull *name = arg->iothread;
    Node *node = node_find(arg->node_name);
    Object *iothread = NULL;

    if (!node)
        return err_set(err, -ENOENT, "Failed to find node with node-name='%s'", arg->node_name);
    if (node_has_root_edge(node) && !(arg->has_force && arg->force))
        return err_set(err, -EBUSY,
            "Node %s is associated with a BlockBackend and could be in use (use force=true to override this "
            "check)",
            arg->node_name);
    if (name->type == STR_OR_NULL_KIND_S) {
        iothread = object_find(name->u.s);
        if (!iothread_loop(iothread))
            return err_set(err, -ENOENT, "Cannot find iothread %s", name->u.s);
    }
    return node_set_iothread(node, iothread, err);
}
