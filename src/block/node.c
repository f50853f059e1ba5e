/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Nodes: opening, naming, ownership, children, closing. Main loop only.
 *
 * Invariants: a node is in the graph list from before its driver's open() (so that names are unique) until it
 * is freed; it lives while `monitor_owned` or while it has parents; a child's home loop is its parent's.
 */
#include "block/block-priv.h"

#include "base/id.h"
#include "base/mem.h"
#include "generated/trace.h"
#include "schema/object.h"
#include "schema/visit.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static List graph = LIST_INIT(graph);
static unsigned next_auto_name;

/* ---- Names ---- */

/* Also finds nodes that are still being opened or closed. */
static Node *find_any(const char *name)
{
    LIST_FOREACH (link, &graph) {
        Node *node = LIST_ENTRY(link, NodePrivate, graph_link)->node;

        if (str_eq(node->name, name))
            return node;
    }
    return NULL;
}

Node *node_find(const char *name)
{
    Node *node = find_any(name);

    return node && node->private->in_graph ? node : NULL;
}

/* '#' keeps automatic names apart from any that users may choose. */
static void make_auto_name(Node *node)
{
    do
        snprintf(node->name, sizeof(node->name), "#block%u%02d", next_auto_name++, rand() % 100);
    while (find_any(node->name));
}

static int assign_name(Node *node, const char *name, Error *err)
{
    if (!name) {
        make_auto_name(node);
        return 0;
    }
    if (!id_is_valid(name))
        return err_set(err, -EINVAL, "Invalid node-name: '%s'", name);
    if (strlen(name) > LIMIT_NODE_NAME)
        return err_set(err, -EINVAL, "Node name too long");
    if (find_any(name))
        return err_set(err, -EINVAL, "Duplicate nodes with node-name='%s'", name);
    snprintf(node->name, sizeof(node->name), "%s", name);
    return 0;
}

const char *node_name(const Node *node)
{
    return node->name;
}

const Driver *node_driver(const Node *node)
{
    return node->driver;
}

uint64_t node_size(const Node *node)
{
    return node->size;
}

bool node_is_read_only(const Node *node)
{
    return node->read_only;
}

Loop *node_home(const Node *node)
{
    return node->home;
}

uint32_t node_request_alignment(const Node *node)
{
    return node->limits.request_alignment;
}

void node_foreach(void (*fn)(Node *node, void *arg), void *arg)
{
    LIST_FOREACH_SAFE (link, &graph)
        fn(LIST_ENTRY(link, NodePrivate, graph_link)->node, arg);
}

/* ---- Closing ---- */

static int close_on_home(void *arg)
{
    Node *node = arg;

    if (!node->read_only && !node->private->corrupt)
        (void)node_flush(node);
    if (node->driver->close)
        node->driver->close(node);
    return 0;
}

static void close_children(Node *node)
{
    while (!list_empty(&node->private->children))
        edge_close(LIST_ENTRY(node->private->children.prev, Edge, parent_link));
}

static void node_free(Node *node)
{
    NodePrivate *p = node->private;

    list_remove(&p->graph_link);
    bitmaps_done(p);
    pthread_mutex_destroy(&p->serialise_lock);
    object_unref(p->iothread);
    blockdev_options_free(p->options);
    free(p);
    free(node->filename);
    free(node->backing_filename);
    free(node->backing_format);
    free(node->state);
    free(node);
}

void node_release(Node *node)
{
    NodePrivate *p = node->private;

    if (p->monitor_owned || p->held || !list_empty(&p->parents) || !p->in_graph)
        return;
    trace_node_close(node->name);
    p->in_graph = false; /* closing children comes back here */
    loop_call(node->home, close_on_home, node);
    close_children(node);
    node_free(node);
}

void node_hold(Node *node)
{
    node->private->held++;
}

void node_let_go(Node *node)
{
    node->private->held--;
    node_release(node);
}

void node_close_all(void)
{
    bool more = true;

    while (more) {
        more = false;
        LIST_FOREACH (link, &graph) {
            NodePrivate *p = LIST_ENTRY(link, NodePrivate, graph_link);

            if (p->monitor_owned && list_empty(&p->parents)) {
                p->monitor_owned = false;
                node_release(p->node);
                more = true;
                break;
            }
        }
    }
}

/* ---- Opening ---- */

static Node *node_new(const Driver *driver)
{
    Node *node = mem_new(Node);
    NodePrivate *p = mem_new(NodePrivate);

    node->driver = driver;
    node->private = p;
    node->state = mem_zalloc(driver->state_size);
    node->home = loop_current();
    node->active = true;
    node->limits.request_alignment = node->limits.memory_alignment = 1;
    p->node = node;
    list_init(&p->parents);
    list_init(&p->children);
    pthread_mutex_init(&p->serialise_lock, NULL);
    list_init(&p->serialised);
    bitmaps_init(p);
    return node;
}

void node_set_common_options(Node *node, const BlockdevOptions *o, const Inherited *from)
{
    const Node *parent = from->parent;
    bool backing = from->roles & EDGE_COW;

    node->read_only = o->has_read_only ? o->read_only : parent && (backing || parent->read_only);
    node->auto_read_only = o->has_auto_read_only ? o->auto_read_only : parent && !backing;
    node->force_share = o->has_force_share ? o->force_share : parent && parent->force_share;
    node->direct = o->cache && o->cache->has_direct ? o->cache->direct : parent && parent->direct;
    node->no_flush = o->cache && o->cache->has_no_flush ? o->cache->no_flush : parent && parent->no_flush;
    node->discard_unmap = o->has_discard ? o->discard == BLOCKDEV_DISCARD_OPTIONS_UNMAP : parent && !backing;
    node->detect_zeroes = o->has_detect_zeroes ? (int)o->detect_zeroes : BLOCKDEV_DETECT_ZEROES_OPTIONS_OFF;
    node->active = !o->has_active || o->active;
    node->for_check = from->for_check;
}

int node_check_common_options(const Node *node, Error *err)
{
    if (node->force_share && !node->read_only)
        return err_set(err, -EINVAL, "force-share=on can only be used with read-only images");
    if (node->detect_zeroes == BLOCKDEV_DETECT_ZEROES_OPTIONS_UNMAP && !node->discard_unmap)
        return err_set(err, -EINVAL,
            "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap");
    return 0;
}

static bool limits_are_sound(const NodeLimits *l)
{
    return is_power_of_2(l->request_alignment) && is_power_of_2(l->memory_alignment) &&
           l->request_alignment <= LIMIT_REQUEST_ALIGNMENT &&
           is_aligned(l->max_transfer, l->request_alignment);
}

static int open_driver(Node *node, const BlockdevOptions *options, Error *err)
{
    int r = node->driver->open(node, options, err);

    if (r < 0)
        return r;
    if (node->size > LIMIT_NODE_BYTES)
        r = err_set_errno(err, -EFBIG, "Could not refresh total sector count");
    else
        assert(limits_are_sound(&node->limits));
    if (r == 0)
        r = permission_refresh(node, err);
    if (r < 0 && node->driver->close)
        node->driver->close(node);
    return r;
}

static void abandon(Node *node)
{
    close_children(node);
    node_free(node);
}

int node_open_inherited(
    const BlockdevOptions *options, const Inherited *inherited, Node **ret_node, Error *err)
{
    const char *name = blockdev_driver_name(options->driver);
    const Driver *driver = driver_find(name);
    Node *node;
    int r;

    if (!driver)
        return err_set(err, -ENOENT, "Unknown driver '%s'", name);
    node = node_new(driver);
    node->private->origin = inherited->parent;
    node->private->depth = inherited->parent ? inherited->parent->private->depth + 1 : 0;
    r = assign_name(node, options->node_name, err);
    list_prepend(&graph, &node->private->graph_link);
    if (r == 0) {
        node_set_common_options(node, options, inherited);
        node->private->options = schema_clone(&schema_type_BlockdevOptions, options);
        r = node_check_common_options(node, err);
    }
    if (r == 0 && node->private->depth > LIMIT_CHAIN_DEPTH)
        r = err_set(err, -ELOOP,
            "The chain of images below node '%s' is deeper than %d: does it name itself?",
            inherited->parent->name, LIMIT_CHAIN_DEPTH);
    if (r == 0)
        r = open_driver(node, options, err);
    if (r < 0) {
        abandon(node);
        return r;
    }
    node->private->in_graph = true;
    trace_node_open(node->name, name);
    *ret_node = node;
    return 0;
}

int node_open(const BlockdevOptions *options, Node **ret_node, Error *err)
{
    return node_open_inherited(options, &(Inherited){0}, ret_node, err);
}

int node_add(const BlockdevOptions *options, Error *err)
{
    Node *node;
    int r;

    if (!options->node_name)
        return err_set(err, -EINVAL, "'node-name' must be specified for the root node");
    r = node_open(options, &node, err);
    if (r == 0)
        node->private->monitor_owned = true;
    return r;
}

bool node_has_root_edge(const Node *node)
{
    LIST_FOREACH (link, &node->private->parents)
        if (!LIST_ENTRY(link, Edge, node_link)->parent)
            return true;
    return false;
}

static const Edge *find_backing_user(const Node *node)
{
    LIST_FOREACH (link, &node->private->parents)
        if (LIST_ENTRY(link, Edge, node_link)->roles & EDGE_COW)
            return LIST_ENTRY(link, Edge, node_link);
    return NULL;
}

int node_del(const char *name, Error *err)
{
    Node *node = node_find(name);
    const Edge *backing_user;

    if (!node)
        return err_set(err, -ENOENT, "Failed to find node with node-name='%s'", name);
    if (node_has_root_edge(node))
        return err_set(err, -EBUSY, "Node %s is in use", name);
    backing_user = find_backing_user(node);
    if (backing_user)
        return err_set(err, -EBUSY, "Node '%s' is busy: node is used as backing hd of '%s'", name,
            backing_user->parent->name);
    if (!node->private->monitor_owned)
        return err_set(err, -EPERM, "Node %s is not owned by the monitor", name);
    if (!list_empty(&node->private->parents) || node->private->held)
        return err_set(err, -EBUSY, "Block device %s is in use", name);
    node->private->monitor_owned = false;
    node_release(node);
    return 0;
}

/* ---- Children ---- */

Edge *node_find_child(const Node *node, const char *name)
{
    LIST_FOREACH (link, &node->private->children) {
        Edge *edge = LIST_ENTRY(link, Edge, parent_link);

        if (str_eq(edge->name, name))
            return edge;
    }
    return NULL;
}

/* A parent is younger than its primary child, wherever lists are ordered by age. */
static void reorder_behind_child(Node *node)
{
    list_remove(&node->private->graph_link);
    list_prepend(&graph, &node->private->graph_link);
}

static void adopt(Node *node, Node *child, const char *name, unsigned roles, Edge **ret_edge)
{
    Edge *edge = edge_new(name);

    edge->parent = node;
    edge->roles = roles;
    graph_change_begin();
    edge_attach(edge, child);
    graph_change_end();
    if (roles & EDGE_PRIMARY)
        node->file = edge;
    if (roles & EDGE_COW)
        node->backing = edge;
    if (ret_edge)
        *ret_edge = edge;
}

/* Reading and writing are needed while open() runs; the final permissions come when it has succeeded. */
static int attach_child(
    Node *node, Node *child, const char *name, unsigned roles, Edge **ret_edge, Error *err)
{
    Edge *edge;
    int r;

    adopt(node, child, name, roles, &edge);
    r = permission_refresh(node, err);
    if (r < 0) {
        edge_close(edge);
        return r;
    }
    if (ret_edge)
        *ret_edge = edge;
    return 0;
}

bool node_reaches(const Node *below, const Node *node)
{
    if (below == node)
        return true;
    LIST_FOREACH (link, &below->private->children)
        if (node_reaches(LIST_ENTRY(link, Edge, parent_link)->node, node))
            return true;
    return false;
}

static int find_reference(Node *node, const char *reference, Node **ret_child, Error *err)
{
    Node *child = node_find(reference);

    if (!child)
        return err_set(err, -ENODEV, "Cannot find device='%s' nor node-name='%s'", reference, reference);
    if (node_reaches(child, node))
        return err_set(
            err, -EINVAL, "Making '%s' a child of '%s' would create a cycle", reference, node->name);
    *ret_child = child;
    return 0;
}

int node_open_child(
    Node *node, const char *name, const BlockdevRef *ref, unsigned roles, Edge **ret_edge, Error *err)
{
    Inherited inherited = {.parent = node, .roles = roles};
    bool definition = ref->type == BLOCKDEV_REF_KIND_DEFINITION;
    Node *child = NULL;
    int r = definition ? node_open_inherited(ref->u.definition, &inherited, &child, err)
                       : find_reference(node, ref->u.reference, &child, err);

    if (r < 0)
        return r;
    if (definition && (roles & EDGE_PRIMARY))
        reorder_behind_child(node);
    return attach_child(node, child, name, roles, ret_edge, err);
}

int node_open_child_options(
    Node *node, const char *name, const BlockdevOptions *options, unsigned roles, Edge **ret_edge, Error *err)
{
    const BlockdevRef ref = {
        .type = BLOCKDEV_REF_KIND_DEFINITION, .u.definition = (BlockdevOptions *)options};

    return node_open_child(node, name, &ref, roles, ret_edge, err);
}

/* ---- Changes that drivers report ---- */

static void tell_parents_about_size(Node *node)
{
    LIST_FOREACH (link, &node->private->parents) {
        Edge *edge = LIST_ENTRY(link, Edge, node_link);

        if (!edge->parent && edge->user->resized)
            edge->user->resized(edge->opaque, node->size);
    }
}

void node_size_changed(Node *node)
{
    bitmaps_resize(node, node->size);
    tell_parents_about_size(node);
}
