/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Permissions: what each parent does with a node, and what it lets others do with it at the same time.
 *
 * What a node asks of its children follows from what its parents ask of it, so a change runs down the graph.
 * It is a transaction: the new values are put into the edges and checked on the way down, drivers prepare
 * (locks), and at the end all of it is committed or put back. A node comes after all of its parents that are
 * part of the change, so that what is checked is what will be.
 */
#include "block/block-priv.h"

#include "base/mem.h"

#include <errno.h>

/* Permissions that a parent's request passes on to a child that holds the same data. */
#define PERM_PASSTHROUGH (PERM_CONSISTENT_READ | PERM_WRITE | PERM_WRITE_UNCHANGED | PERM_RESIZE)

typedef struct OldPermissions {
    Edge *edge;
    unsigned perm, shared;
} OldPermissions;

typedef struct Checked {
    Node *node;
    unsigned perm, shared;
} Checked;

typedef struct Transaction {
    Node **order; /* of the nodes to look at, last one first */
    size_t order_count, order_capacity;
    OldPermissions *old;
    size_t old_count, old_capacity;
    Checked *checked; /* nodes whose driver has agreed */
    size_t checked_count, checked_capacity;
} Transaction;

char *permission_names(unsigned perm)
{
    static const char *const names[] = {"consistent read", "write", "write unchanged", "resize"};
    AUTO_STRBUF StrBuf text = {0};

    for (unsigned i = 0; i < ARRAY_SIZE(names); i++)
        if (perm & (1U << i))
            strbuf_printf(&text, "%s%s", text.length ? ", " : "", names[i]);
    return strbuf_take(&text);
}

static void cumulative(const Node *node, unsigned *ret_perm, unsigned *ret_shared)
{
    unsigned perm = 0, shared = PERM_ALL;

    LIST_FOREACH (link, &node->private->parents) {
        const Edge *edge = LIST_ENTRY(link, Edge, node_link);

        perm |= edge->perm;
        shared &= edge->shared;
    }
    *ret_perm = perm;
    *ret_shared = shared;
}

/* "node 'q' (uses node 'f' as 'file' child)" */
static char *describe_use(const Edge *edge)
{
    AUTO_FREE char *who = edge->parent           ? str_printf("node '%s'", edge->parent->name)
                          : edge->user->describe ? edge->user->describe(edge->opaque)
                                                 : str_dup("an unnamed block device");

    return str_printf("%s (uses node '%s' as '%s' child)", who, edge->node->name, edge->name);
}

static int conflict(const Edge *wants, const Edge *refuses, Error *err)
{
    AUTO_FREE char *names = permission_names(wants->perm & ~refuses->shared);
    AUTO_FREE char *who = describe_use(wants), *other = describe_use(refuses);

    return err_set(err, -EPERM,
        "Permission conflict on node '%s': permissions '%s' are both required by %s and unshared by %s.",
        wants->node->name, names, who, other);
}

/* Newest first: which of several conflicts is told is part of what users see. */
static int check_parents(const Node *node, Error *err)
{
    LIST_FOREACH (a, &node->private->parents) {
        LIST_FOREACH (b, &node->private->parents) {
            const Edge *refuses = LIST_ENTRY(a, Edge, node_link), *wants = LIST_ENTRY(b, Edge, node_link);

            if (wants != refuses && (wants->perm & ~refuses->shared))
                return conflict(wants, refuses, err);
        }
    }
    return 0;
}

static void for_backing(unsigned perm, unsigned shared, unsigned *ret_perm, unsigned *ret_shared)
{
    *ret_perm = perm & PERM_CONSISTENT_READ;
    *ret_shared =
        (shared & PERM_WRITE ? PERM_WRITE | PERM_RESIZE : 0) | PERM_CONSISTENT_READ | PERM_WRITE_UNCHANGED;
}

static void for_storage(const Node *node, unsigned roles, unsigned *perm, unsigned *shared)
{
    if (roles & EDGE_METADATA) {
        *perm |= PERM_CONSISTENT_READ | (node->read_only ? 0 : PERM_WRITE | PERM_RESIZE);
        *shared &= ~(unsigned)(PERM_WRITE | PERM_RESIZE);
    }
    if (roles & EDGE_DATA) {
        if (*perm & PERM_WRITE_UNCHANGED)
            *perm |= PERM_WRITE;
        if (*perm & PERM_WRITE)
            *perm |= PERM_RESIZE;
        *shared &= ~(unsigned)PERM_RESIZE;
    }
}

void node_default_permissions(
    Node *node, Edge *child, unsigned perm, unsigned shared, unsigned *ret_perm, unsigned *ret_shared)
{
    unsigned child_perm = perm & PERM_PASSTHROUGH, child_shared = shared & PERM_PASSTHROUGH;

    if (child->roles & EDGE_COW)
        for_backing(perm, shared, &child_perm, &child_shared);
    else if (!(child->roles & EDGE_FILTERED))
        for_storage(node, child->roles, &child_perm, &child_shared);
    if (!node->active)
        child_shared |= PERM_WRITE | PERM_RESIZE;
    *ret_perm = child_perm;
    *ret_shared = child_shared;
}

static void set_edge(Transaction *t, Edge *edge, unsigned perm, unsigned shared)
{
    VEC_GROW(t->old, t->old_count, t->old_capacity);
    t->old[t->old_count++] = (OldPermissions){edge, edge->perm, edge->shared};
    edge->perm = perm;
    edge->shared = shared;
}

/* Writing the last, partial block of an odd-sized node would enlarge it. */
static bool write_needs_resize(const Node *node)
{
    return !is_aligned(node->size, node->limits.request_alignment);
}

static int check_write(const Node *node, unsigned perm, Error *err)
{
    if (!(perm & (PERM_WRITE | PERM_WRITE_UNCHANGED)))
        return 0;
    if (node->read_only && node->private->loses_writing)
        return err_set(err, -EPERM, "Read-only block node '%s' cannot support read-write users", node->name);
    if (node->read_only)
        return err_set(err, -EPERM, "Block node is read-only");
    if (!(perm & PERM_RESIZE) && write_needs_resize(node))
        return err_set(err, -EPERM,
            "Cannot get 'write' permission without 'resize': Image size is not a multiple of request "
            "alignment");
    return 0;
}

static void set_children(Transaction *t, Node *node, unsigned perm, unsigned shared)
{
    LIST_FOREACH (link, &node->private->children) {
        Edge *child = LIST_ENTRY(link, Edge, parent_link);
        unsigned child_perm, child_shared;

        if (node->driver->child_permissions)
            node->driver->child_permissions(node, child, perm, shared, &child_perm, &child_shared);
        else
            node_default_permissions(node, child, perm, shared, &child_perm, &child_shared);
        if (child->node->force_share)
            child_shared = PERM_ALL;
        set_edge(t, child, child_perm, child_shared);
    }
}

static int update(Transaction *t, Node *node, Error *err)
{
    unsigned perm, shared;
    int r = check_parents(node, err);

    if (r < 0)
        return r;
    cumulative(node, &perm, &shared);
    r = check_write(node, perm, err);
    if (r < 0)
        return r;
    if (node->driver->permissions_check) {
        r = node->driver->permissions_check(node, perm, shared, err);
        if (r < 0)
            return r;
        VEC_GROW(t->checked, t->checked_count, t->checked_capacity);
        t->checked[t->checked_count++] = (Checked){node, perm, shared};
    }
    set_children(t, node, perm, shared);
    return 0;
}

/* Puts node and all below it into the order, children first. */
static void visit(Transaction *t, Node *node, unsigned round)
{
    if (node->private->visited == round)
        return;
    node->private->visited = round;
    for (List *link = node->private->children.prev; link != &node->private->children; link = link->prev)
        visit(t, LIST_ENTRY(link, Edge, parent_link)->node, round);
    VEC_GROW(t->order, t->order_count, t->order_capacity);
    t->order[t->order_count++] = node;
}

static void commit(const Transaction *t)
{
    for (size_t i = 0; i < t->checked_count; i++) {
        const Checked *c = &t->checked[i];

        if (c->node->driver->permissions_commit)
            c->node->driver->permissions_commit(c->node, c->perm, c->shared);
    }
}

static void roll_back(const Transaction *t)
{
    for (size_t i = t->checked_count; i-- > 0;)
        if (t->checked[i].node->driver->permissions_abort)
            t->checked[i].node->driver->permissions_abort(t->checked[i].node);
    for (size_t i = t->old_count; i-- > 0;) {
        t->old[i].edge->perm = t->old[i].perm;
        t->old[i].edge->shared = t->old[i].shared;
    }
}

/* Drivers may wait inside a transaction; nobody else may change what it looks at. */
static CoMutex graph_lock;

void graph_change_begin(void)
{
    co_mutex_lock_shielded(&graph_lock);
}

void graph_change_end(void)
{
    co_mutex_unlock(&graph_lock);
}

/* With the graph lock. */
static int run(Transaction *t, Node *const *nodes, size_t count, Error *err)
{
    static unsigned round;
    int r = 0;

    round++;
    for (size_t i = count; i-- > 0;)
        visit(t, nodes[i], round);
    for (size_t i = t->order_count; r == 0 && i-- > 0;)
        r = update(t, t->order[i], err);
    if (r < 0)
        roll_back(t);
    else
        commit(t);
    free(t->order);
    free(t->old);
    free(t->checked);
    return r;
}

int permission_refresh_locked(Node *const *nodes, size_t count, Error *err)
{
    return run(&(Transaction){0}, nodes, count, err);
}

int permission_refresh(Node *node, Error *err)
{
    int r;

    graph_change_begin();
    r = permission_refresh_locked(&node, 1, err);
    graph_change_end();
    return r;
}

int node_refresh_permissions(Node *node, Error *err)
{
    return permission_refresh(node, err);
}

int permission_set(Edge *edge, unsigned perm, unsigned shared, Error *err)
{
    Transaction t = {0};
    int r;

    graph_change_begin();
    set_edge(&t, edge, perm, shared);
    r = run(&t, &edge->node, 1, err);
    graph_change_end();
    return r;
}
