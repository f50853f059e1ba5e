/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Drain: the one way to bring a node to rest. New requests are held at the root edges above the node (exports
 * and jobs); those already inside run to their end. Requests between nodes are never held, so nothing inside
 * can wait for itself.
 *
 * Requests come in on several loops, each of which counts its own in a lane of the edge. The gate is one
 * number that all of them read. Whoever closes it then visits each loop: what that loop had let in before is
 * counted by then, and what it looks at later finds the gate closed. A lane that is made meanwhile is either
 * seen here, or its maker sees the closed gate: both sides write first and read second, with a fence between.
 */
#include "block/block-priv.h"

#include "base/mem.h"

#include <assert.h>

Lane *edge_new_lane(Edge *edge)
{
    Lane *lane = mem_new(Lane);

    atomic_store(&edge->lanes[loop_index(loop_current())], lane);
    atomic_thread_fence(memory_order_seq_cst);
    return lane;
}

/* Runs fn(lane) on each loop that has used the edge; loops that are gone have nothing in flight. */
static void on_each_loop(Edge *edge, int (*fn)(void *lane))
{
    for (unsigned i = 0; i < LIMIT_LOOPS; i++) {
        Lane *lane = atomic_load(&edge->lanes[i]);

        if (lane && loop_at(i))
            loop_call(loop_at(i), fn, lane);
    }
}

static int wait_until_idle(void *arg)
{
    Lane *lane = arg;

    while (lane->in_flight)
        co_cond_wait_shielded(&lane->changed, NULL);
    return 0;
}

static int let_in(void *arg)
{
    Lane *lane = arg;

    co_cond_broadcast(&lane->changed);
    return 0;
}

void edge_close_gate(Edge *edge)
{
    atomic_fetch_add(&edge->drained, 1);
    atomic_thread_fence(memory_order_seq_cst);
}

void edge_wait_until_idle(Edge *edge)
{
    on_each_loop(edge, wait_until_idle);
}

void edge_open_gate(Edge *edge)
{
    assert(edge->drained);
    if (atomic_fetch_sub(&edge->drained, 1) == 1)
        on_each_loop(edge, let_in);
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

/* Drains that a root edge on node would wait for: one for each way down to a drained node, as for_each_root()
 * goes up each. */
static unsigned drains_below(const Node *node)
{
    unsigned count = node->private->drained;

    LIST_FOREACH (link, &node->private->children)
        count += drains_below(LIST_ENTRY(link, Edge, parent_link)->node);
    return count;
}

static void for_each_root_above(Edge *edge, void (*fn)(Edge *edge))
{
    if (edge->parent)
        for_each_root(edge->parent, fn);
    else
        fn(edge);
}

void edge_inherit_drains(Edge *edge)
{
    unsigned count = drains_below(edge->node);

    for (unsigned i = 0; i < count; i++)
        for_each_root_above(edge, edge_close_gate);
    if (count)
        for_each_root_above(edge, edge_wait_until_idle);
}

void edge_disinherit_drains(Edge *edge)
{
    for (unsigned count = drains_below(edge->node); count; count--)
        for_each_root_above(edge, edge_open_gate);
}

void node_drain_begin(Node *node)
{
    graph_change_begin();
    node->private->drained++;
    for_each_root(node, edge_close_gate);
    for_each_root(node, edge_wait_until_idle);
    graph_change_end();
}

void node_drain_end(Node *node)
{
    graph_change_begin();
    node->private->drained--;
    for_each_root(node, edge_open_gate);
    graph_change_end();
}
