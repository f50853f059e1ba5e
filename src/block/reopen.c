/* SPDX-License-Identifier: Apache-2.0 */
/*
 * blockdev-reopen: other options for nodes that are in use. All elements of the command are one transaction:
 * either every node has its new options, or nothing has changed.
 *
 * A step is one node. Besides the nodes that are named, these are the children that a node has opened itself:
 * what their own options leave open they take from their parent. Options that are not given have their
 * defaults; a child that is not given stays.
 *
 * The order: the nodes come to rest; everything is flushed, and nodes stop writing; each step puts its
 * options and children into force; permissions follow (and with them image locks and descriptors); nodes that
 * are writable start to write again. Each of these may fail, and is then taken back in the opposite order.
 * What comes after them cannot fail.
 *
 * The graph lock is held all the time, so that nobody else changes what the transaction looks at.
 */
#include "block/block-priv.h"

#include "base/log.h"
#include "base/mem.h"
#include "generated/commands.h"
#include "generated/trace.h"
#include "schema/json.h"
#include "schema/visit.h"

#include <errno.h>
#include <stdlib.h>

/* Options that every node can change. */
static const char *const common_options[] = {
    "node-name", "discard", "cache", "read-only", "auto-read-only", "detect-zeroes", NULL};

/* Options common to all nodes, as they were. */
typedef struct Common {
    bool read_only, auto_read_only, force_share, direct, no_flush, discard_unmap;
    int detect_zeroes;
} Common;

/* A child that was exchanged. */
typedef struct Exchange {
    Edge *edge;
    Node *old, *new; /* NULL: none */
    Node *old_origin, *new_origin;
} Exchange;

typedef struct Step {
    Node *node;
    Inherited from;
    bool named; /* by the user, here or as a child's description */
    JsonValue *json;
    BlockdevOptions *options; /* of json */
    Common old;
    uint64_t old_size;
    Exchange exchanges[2];
    unsigned exchange_count;
    bool stopped, common_set, prepared, started;
} Step;

typedef struct Reopen {
    Step **steps;
    size_t count, capacity;
    Edge **gates; /* root edges that were closed, once for each time */
    size_t gate_count, gate_capacity;
} Reopen;

/* ---- Calls on the home loop ---- */

typedef struct HomeCall {
    Step *step;
    Error *err;
} HomeCall;

static int on_home(Step *step, int (*fn)(void *call), Error *err)
{
    HomeCall call = {.step = step, .err = err};

    return loop_call(step->node->home, fn, &call);
}

static int home_flush(void *arg)
{
    return node_flush(((HomeCall *)arg)->step->node);
}

static int home_stop(void *arg)
{
    HomeCall *call = arg;
    Node *node = call->step->node;

    return node->driver->stop_writing ? node->driver->stop_writing(node, call->err) : 0;
}

static int home_start(void *arg)
{
    HomeCall *call = arg;
    Node *node = call->step->node;

    return node->driver->start_writing ? node->driver->start_writing(node, call->err) : 0;
}

static int home_prepare(void *arg)
{
    HomeCall *call = arg;
    Node *node = call->step->node;

    return node->driver->reopen_prepare ? node->driver->reopen_prepare(node, call->step->options, call->err)
                                        : 0;
}

static int home_commit(void *arg)
{
    Node *node = ((HomeCall *)arg)->step->node;

    if (node->driver->reopen_commit)
        node->driver->reopen_commit(node);
    return 0;
}

static int home_abort(void *arg)
{
    Node *node = ((HomeCall *)arg)->step->node;

    if (node->driver->reopen_abort)
        node->driver->reopen_abort(node);
    return 0;
}

/* ---- Which nodes ---- */

static Step *find_step(const Reopen *r, const Node *node)
{
    for (size_t i = 0; i < r->count; i++)
        if (r->steps[i]->node == node)
            return r->steps[i];
    return NULL;
}

/* Members of an object that are not in another one yet, or (with over) all of them. */
static void merge(JsonValue *into, const JsonValue *from, bool over)
{
    for (size_t i = 0; i < from->u.object.count; i++) {
        const JsonMember *member = &from->u.object.members[i];

        if (over || !json_get(into, member->key))
            json_object_put(into, member->key, json_clone(member->value));
    }
}

static Step *add_step(Reopen *r, Node *node, JsonValue *take_json, const Inherited *from, bool named)
{
    Step *step = find_step(r, node);

    if (!step) {
        step = mem_new(Step);
        step->node = node;
        step->json = take_json;
        VEC_GROW(r->steps, r->count, r->capacity);
        r->steps[r->count++] = step;
    } else { /* what was said last counts, but only if it was said */
        merge(step->json, take_json, named);
        json_free(take_json);
    }
    step->named |= named;
    if (from)
        step->from = *from;
    return step;
}

static JsonValue *options_of(const Node *node)
{
    JsonValue *json;

    if (node->private->options)
        return schema_to_json(&schema_type_BlockdevOptions, node->private->options);
    json = json_object_new();
    json_object_put(json, "driver", json_string_new(node->driver->name));
    return json;
}

static void add_node(Reopen *r, Node *node, JsonValue *take_json, const Inherited *from, bool named);

/* Children that somebody else has opened have options of their own. */
static void add_children(Reopen *r, const Step *step)
{
    LIST_FOREACH (link, &step->node->private->children) {
        Edge *edge = LIST_ENTRY(link, Edge, parent_link);
        Node *child = edge->node;
        const Inherited from = {.parent = step->node, .roles = edge->roles};
        const JsonValue *given = step->named ? json_get(step->json, edge->name) : NULL;
        bool described = json_is(given, JSON_OBJECT);

        if (child->private->origin != step->node)
            continue;
        if (given && !described && !(json_is(given, JSON_STRING) && str_eq(given->u.string, child->name)))
            continue; /* is exchanged */
        add_node(r, child, described ? json_clone(given) : options_of(child), &from, described);
    }
}

static void add_node(Reopen *r, Node *node, JsonValue *take_json, const Inherited *from, bool named)
{
    add_children(r, add_step(r, node, take_json, from, named));
}

static int add_named(Reopen *r, const BlockdevOptions *options, Error *err)
{
    const char *name = options->node_name;
    Node *node = name ? node_find(name) : NULL;

    if (!name)
        return err_set(err, -EINVAL, "node-name not specified");
    if (!node)
        return err_set(err, -ENOENT, "Failed to find node with node-name='%s'", name);
    if (!str_eq(blockdev_driver_name(options->driver), node->driver->name))
        return err_set(err, -EINVAL, "Cannot change the option 'driver'");
    add_node(r, node, schema_to_json(&schema_type_BlockdevOptions, options), NULL, true);
    return 0;
}

/* ---- What may change ---- */

static bool listed(const char *const *names, const char *name)
{
    for (; names && *names; names++)
        if (str_eq(*names, name))
            return true;
    return false;
}

static bool can_change(const Node *node, const char *name)
{
    return listed(common_options, name) || listed(node->driver->reopen_options, name);
}

/* "Cannot change the option 'a.b'": the first member that differs. */
static int refuse(const char *name, const JsonValue *value, const JsonValue *old, Error *err)
{
    if (json_is(value, JSON_OBJECT))
        for (size_t i = 0; i < value->u.object.count; i++) {
            const JsonMember *m = &value->u.object.members[i];
            const JsonValue *was = json_is(old, JSON_OBJECT) ? json_get(old, m->key) : NULL;
            AUTO_FREE char *path = str_printf("%s.%s", name, m->key);

            if (!was || !json_equal(was, m->value))
                return refuse(path, m->value, was, err);
        }
    return err_set(err, -EINVAL, "Cannot change the option '%s'", name);
}

static int check_member(const Step *step, const JsonMember *new, const JsonValue *old, Error *err)
{
    Node *node = step->node;
    const Edge *child = node_find_child(node, new->key);

    if (str_eq(new->key, "node-name") && !str_eq(new->value->u.string, node->name))
        return refuse(new->key, new->value, NULL, err);
    if (can_change(node, new->key))
        return 0;
    if (json_is(new->value, JSON_OBJECT) && child && child->node->private->origin == node)
        return 0; /* a step of its own */
    if (json_is(new->value, JSON_STRING) && child && str_eq(new->value->u.string, child->node->name))
        return 0;
    if ((str_eq(new->key, "file") || str_eq(new->key, "backing")) && !json_is(new->value, JSON_OBJECT))
        return 0; /* exchange() looks at it */
    if (child)
        return refuse(new->key, new->value, NULL, err);
    return old && json_equal(old, new->value) ? 0 : refuse(new->key, new->value, old, err);
}

static int check_missing(const Step *step, const JsonValue *old, Error *err)
{
    Node *node = step->node;

    for (size_t i = 0; i < old->u.object.count; i++) {
        const char *name = old->u.object.members[i].key;

        if (!json_get(step->json, name) && !can_change(node, name) && !node_find_child(node, name) &&
            !str_eq(name, "backing"))
            return err_set(err, -EINVAL, "Option '%s' cannot be reset to its default value", name);
    }
    if ((node->driver->flags & DRIVER_BACKING) && !json_get(step->json, "backing") &&
        (node->backing || (node->backing_filename && node->backing_filename[0])))
        return err_set(err, -EINVAL, "backing is missing for '%s'", node->name);
    return 0;
}

static int check_step(Step *step, Error *err)
{
    AUTO_JSON JsonValue *old = options_of(step->node);
    int r = check_missing(step, old, err);

    for (size_t i = 0; r == 0 && i < step->json->u.object.count; i++) {
        const JsonMember *member = &step->json->u.object.members[i];

        r = check_member(step, member, json_get(old, member->key), err);
    }
    return r;
}

static int read_options(Step *step, Error *err)
{
    int r = step->named ? check_step(step, err) : 0;

    if (r < 0)
        return r;
    return schema_from_json(&schema_type_BlockdevOptions, step->json, SCHEMA_JSON, &step->options, err);
}

/* ---- Children ---- */

static void put_edge(Edge *edge, const Node *old, Node *new)
{
    if (!old)
        edge_attach(edge, new);
    else if (!new)
        edge_detach(edge);
    else
        edge_retarget(edge, new);
    if (edge->roles & EDGE_COW)
        edge->parent->backing = new ? edge : NULL;
}

static Edge *new_backing_edge(Node *node)
{
    Edge *edge = edge_new("backing");

    edge->parent = node;
    edge->roles = EDGE_COW;
    return edge;
}

static int find_child(
    const Step *step, const char *name, const JsonValue *value, Node **ret_child, Error *err)
{
    Node *child = NULL;

    if (json_is(value, JSON_STRING)) {
        child = node_find(value->u.string);
        if (!child)
            return err_set(err, -ENODEV, "Cannot find device='' nor node-name='%s'", value->u.string);
        if (node_reaches(child, step->node))
            return err_set(err, -EINVAL, "Making '%s' a %s child of '%s' would create a cycle", child->name,
                name, step->node->name);
    }
    *ret_child = child;
    return 0;
}

static int exchange(Step *step, const char *name, Error *err)
{
    const JsonValue *value = step->named ? json_get(step->json, name) : NULL;
    Edge *edge = node_find_child(step->node, name);
    Exchange *x = &step->exchanges[step->exchange_count];
    Node *child;
    int r;

    if (!value || json_is(value, JSON_OBJECT))
        return 0;
    r = find_child(step, name, value, &child, err);
    if (r < 0 || child == (edge ? edge->node : NULL))
        return r;
    *x = (Exchange){.edge = edge, .old = edge ? edge->node : NULL, .new = child};
    x->old_origin = x->old ? x->old->private->origin : NULL;
    if (edge)
        edge_wait_for_pr(edge);
    else
        x->edge = new_backing_edge(step->node);
    put_edge(x->edge, x->old, x->new);
    step->exchange_count++;
    return 0;
}

static void exchange_back(Step *step)
{
    while (step->exchange_count) {
        Exchange *x = &step->exchanges[--step->exchange_count];

        put_edge(x->edge, x->new, x->old);
        if (x->old)
            x->old->private->origin = x->old_origin;
        else
            edge_dispose(x->edge);
    }
}

/* ---- Options common to all nodes ---- */

static Common common_of(const Node *node)
{
    return (Common){.read_only = node->read_only,
        .auto_read_only = node->auto_read_only,
        .force_share = node->force_share,
        .direct = node->direct,
        .no_flush = node->no_flush,
        .discard_unmap = node->discard_unmap,
        .detect_zeroes = node->detect_zeroes};
}

/* Parents first, wherever they are in the list. */
static int set_common(const Reopen *r, Step *step, Error *err)
{
    Step *parent = step->from.parent ? find_step(r, step->from.parent) : NULL;
    bool active = step->node->active;
    int result = parent ? set_common(r, parent, err) : 0;

    if (result < 0 || step->common_set)
        return result;
    step->common_set = true;
    node_set_common_options(step->node, step->options, &step->from);
    step->node->active = active;
    step->node->private->loses_writing = step->node->read_only && !step->old.read_only;
    return node_check_common_options(step->node, err);
}

static void set_common_back(Step *step)
{
    const Common *old = &step->old;
    Node *node = step->node;

    if (!step->common_set)
        return;
    node->read_only = old->read_only;
    node->auto_read_only = old->auto_read_only;
    node->force_share = old->force_share;
    node->direct = old->direct;
    node->no_flush = old->no_flush;
    node->discard_unmap = old->discard_unmap;
    node->detect_zeroes = old->detect_zeroes;
}

/* ---- Rest ---- */

static void close_gates(Reopen *r, Node *node)
{
    LIST_FOREACH (link, &node->private->parents) {
        Edge *edge = LIST_ENTRY(link, Edge, node_link);

        if (edge->parent) {
            close_gates(r, edge->parent);
            continue;
        }
        edge_close_gate(edge);
        VEC_GROW(r->gates, r->gate_count, r->gate_capacity);
        r->gates[r->gate_count++] = edge;
    }
}

/* Also of the nodes that are to become children: they see the end of what a node may do to them. */
static void close_gates_of_step(Reopen *r, const Step *step)
{
    static const char *const names[] = {"file", "backing"};

    close_gates(r, step->node);
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        const JsonValue *value = json_get(step->json, names[i]);
        Node *child = json_is(value, JSON_STRING) ? node_find(value->u.string) : NULL;

        if (child)
            close_gates(r, child);
    }
}

static void begin_rest(Reopen *r)
{
    for (size_t i = 0; i < r->count; i++)
        close_gates_of_step(r, r->steps[i]);
    for (size_t i = 0; i < r->gate_count; i++)
        edge_wait_until_idle(r->gates[i]);
}

static void end_rest(Reopen *r)
{
    for (size_t i = 0; i < r->gate_count; i++)
        edge_open_gate(r->gates[i]);
}

/* ---- The transaction ---- */

/* While everything is as it was. */
static int settle(Reopen *r, Error *err)
{
    int result = 0;

    for (size_t i = 0; result == 0 && i < r->count; i++) {
        result = on_home(r->steps[i], home_flush, err);
        if (result < 0)
            err_set_errno(err, result, "Error flushing drive");
    }
    for (size_t i = 0; result == 0 && i < r->count; i++) {
        Step *step = r->steps[i];

        if (step->node->read_only)
            continue;
        result = on_home(step, home_stop, err);
        step->stopped = result == 0;
    }
    return result;
}

static int prepare(const Reopen *r, Step *step, Error *err)
{
    int result = set_common(r, step, err);

    if (result == 0)
        result = exchange(step, "backing", err);
    if (result == 0)
        result = exchange(step, "file", err);
    if (result == 0)
        result = on_home(step, home_prepare, err);
    step->prepared = result == 0;
    return result;
}

static int refresh_permissions(const Reopen *r, Error *err)
{
    Node **nodes = mem_zalloc(MAX(r->count, (size_t)1) * 3 * sizeof(*nodes));
    size_t count = 0;
    int result;

    for (size_t i = 0; i < r->count; i++) {
        const Step *step = r->steps[i];

        nodes[count++] = step->node;
        for (unsigned x = 0; x < step->exchange_count; x++)
            if (step->exchanges[x].old)
                nodes[count++] = step->exchanges[x].old;
    }
    result = permission_refresh_locked(nodes, count, err);
    free(nodes);
    return result;
}

static int start(Reopen *r, Error *err)
{
    int result = 0;

    for (size_t i = 0; result == 0 && i < r->count; i++) {
        Step *step = r->steps[i];

        if (step->node->read_only)
            continue;
        result = on_home(step, home_start, err);
        step->started = result == 0;
    }
    return result;
}

static void start_again(Step *step)
{
    AUTO_ERROR Error err = ERROR_INIT;
    Node *node = step->node;

    if (!step->stopped || on_home(step, home_start, &err) == 0)
        return;
    log_warn("Node '%s' is read-only from now on: %s", node->name, err.message);
    node->read_only = true;
}

/* Permissions come back but for a lock that another process has taken in the moment between. */
static void undo(Reopen *r, bool permissions_changed)
{
    AUTO_ERROR Error err = ERROR_INIT;

    for (size_t i = r->count; i-- > 0;)
        if (r->steps[i]->started && on_home(r->steps[i], home_stop, &err) < 0)
            err_done(&err); /* leaks at worst */
    for (size_t i = r->count; i-- > 0;) {
        Step *step = r->steps[i];

        if (step->prepared)
            on_home(step, home_abort, NULL);
        exchange_back(step);
        set_common_back(step);
        step->node->private->loses_writing = false;
    }
    if (permissions_changed && refresh_permissions(r, &err) < 0)
        log_warn("What a failed blockdev-reopen has changed could not be undone: %s", err.message);
    for (size_t i = r->count; i-- > 0;)
        start_again(r->steps[i]);
}

/* Children first, wherever they are in the list. */
static void refresh_size(const Reopen *r, const Step *step)
{
    Node *node = step->node;
    const Step *child = node->driver->refresh_size ? find_step(r, node->file->node) : NULL;

    if (child)
        refresh_size(r, child);
    if (node->driver->refresh_size)
        node->driver->refresh_size(node);
}

static void commit(Reopen *r)
{
    for (size_t i = r->count; i-- > 0;) {
        Step *step = r->steps[i];
        NodePrivate *p = step->node->private;

        on_home(step, home_commit, NULL);
        p->loses_writing = false;
        blockdev_options_free(p->options);
        p->options = TAKE(step->options);
        trace_node_reopen(step->node->name, step->node->read_only ? "read-only" : "read-write");
    }
    for (size_t i = 0; i < r->count; i++)
        refresh_size(r, r->steps[i]);
}

static int transaction(Reopen *r, Error *err)
{
    bool permissions_changed = false;
    int result;

    for (size_t i = 0; i < r->count; i++) {
        r->steps[i]->old = common_of(r->steps[i]->node);
        r->steps[i]->old_size = r->steps[i]->node->size;
    }
    result = settle(r, err);
    for (size_t i = 0; result == 0 && i < r->count; i++)
        result = prepare(r, r->steps[i], err);
    if (result == 0)
        result = refresh_permissions(r, err);
    permissions_changed = result == 0;
    if (result == 0)
        result = start(r, err);
    if (result < 0)
        undo(r, permissions_changed);
    else
        commit(r);
    return result;
}

/* With the graph lock. */
static int run(Reopen *r, Error *err)
{
    int result = 0;

    for (size_t i = 0; result == 0 && i < r->count; i++)
        result = read_options(r->steps[i], err);
    if (result < 0)
        return result;
    begin_rest(r);
    result = transaction(r, err);
    end_rest(r);
    return result;
}

/* Without the lock: closing what nobody needs any more, telling users about the new size. */
static void finish(Reopen *r)
{
    for (size_t i = 0; i < r->count; i++) {
        Step *step = r->steps[i];

        for (unsigned x = 0; x < step->exchange_count; x++) {
            const Exchange *e = &step->exchanges[x];

            if (!e->new)
                edge_dispose(e->edge);
            if (e->old)
                node_release(e->old);
        }
        if (step->node->size != step->old_size)
            node_size_changed(step->node);
    }
}

static void reopen_free(Reopen *r)
{
    for (size_t i = 0; i < r->count; i++) {
        json_free(r->steps[i]->json);
        blockdev_options_free(r->steps[i]->options);
        free(r->steps[i]);
    }
    free(r->steps);
    free(r->gates);
}

/* A child lives on its parent's loop. Moving is not part of the transaction: nobody sees where a node lives.
 */
static int move_children(const BlockdevOptions *options, Error *err)
{
    AUTO_JSON JsonValue *json = schema_to_json(&schema_type_BlockdevOptions, options);
    const char *names[] = {json_get_string(json, "file"), json_get_string(json, "backing")};
    Node *node = options->node_name ? node_find(options->node_name) : NULL;
    int r = 0;

    for (size_t i = 0; node && r == 0 && i < ARRAY_SIZE(names); i++) {
        Node *child = names[i] ? node_find(names[i]) : NULL;

        if (child)
            r = node_set_iothread(child, node_iothread(node), err);
    }
    return r;
}

int qmp_blockdev_reopen(const BlockdevReopenArg *arg, Error *err)
{
    Reopen r = {0};
    int result = 0;

    for (size_t i = 0; result == 0 && i < arg->options.count; i++)
        result = move_children(arg->options.items[i], err);
    if (result < 0)
        return result;
    graph_change_begin();
    for (size_t i = 0; result == 0 && i < arg->options.count; i++)
        result = add_named(&r, arg->options.items[i], err);
    if (result == 0)
        result = run(&r, err);
    graph_change_end();
    if (result == 0)
        finish(&r);
    reopen_free(&r);
    return result;
}

int node_set_read_only(Node *node, bool read_only, Error *err)
{
    const Inherited from = {.parent = node->private->origin};
    JsonValue *json = options_of(node);
    Reopen r = {0};
    int result;

    json_object_put(json, "read-only", json_bool_new(read_only));
    graph_change_begin();
    add_node(&r, node, json, &from, false);
    result = run(&r, err);
    graph_change_end();
    if (result == 0)
        finish(&r);
    reopen_free(&r);
    return result;
}
