/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Drain: the one way to bring a node to rest. New requests are held at the root edges above the node (exports
 * and jobs); those already inside run to their end. Requests between nodes are never held, so nothing inside
 * can wait for itself.
 */
#include "block/block-priv.h"

#include <assert.h>

typedef struct DrainCall {
    Node *node;
    bool begin;
} DrainCall;

static void close_gate(Edge *edge)
{
    if (edge->drained++ == 0 && edge->user->drained_begin)
        edge->user->drained_begin(edge->opaque);
}

static void open_gate(Edge *edge)
{
    assert(edge->drained);
    if (--edge->drained)
        return;
    co_cond_broadcast(&edge->changed);
    if (edge->user->drained_end)
        edge->user->drained_end(edge->opaque);
}

static void for_each_root(Node *node, void (*fn)(Edge *edge))
{
    LIST_FOREACH (link, &node->private->parents) {
        Edge *edge = LIST_ENTRY(link, Edge, node_link);

        if (edge->parent)
            for_each_root(edge->parent, fn);
        else
            fn(edge);
    }
}

static void wait_until_idle(Edge *edge)
{
    while (edge->in_flight)
        co_cond_wait_shielded(&edge->changed, NULL);
}

static int drain_on_home(void *arg)
{
    const DrainCall *call = arg;

    if (call->begin) {
        for_each_root(call->node, close_gate);
        for_each_root(call->node, wait_until_idle);
    } else {
        for_each_root(call->node, open_gate);
    }
    return 0;
}

void node_drain_begin(Node *node)
{
    DrainCall call = {.node = node, .begin = true};

    graph_change_begin();
    loop_call(node->home, drain_on_home, &call);
    graph_change_end();
}

void drain_end_on(Loop *loop, Node *node)
{
    DrainCall call = {.node = node, .begin = false};

    graph_change_begin();
    loop_call(loop, drain_on_home, &call);
    graph_change_end();
}

void node_drain_end(Node *node)
{
    drain_end_on(node->home, node);
}
