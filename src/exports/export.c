/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The list of exports, their creation and removal. An export is on the list, and its id taken, until its last
 * reference is gone and the event is sent.
 */
#include "exports/export.h"

#include "base/id.h"
#include "base/mem.h"
#include "generated/events.h"
#include "generated/trace.h"
#include "generated/types.h"
#include "loop/iothread.h"
#include "schema/object.h"

#include <string.h>

static List exports = LIST_INIT(exports);
/* Signalled when an export was created or has left the list. */
static CoCond exports_changed;

static char *describe(void *opaque)
{
    return str_dup("an unnamed block device");
}

static void resized(void *opaque, uint64_t size)
{
    Export *export = opaque;

    if (export->kind->resized)
        export->kind->resized(export, size);
}

/* Before an export has started, and while it stops, there is nothing to move. */
static void moved(void *opaque)
{
    Export *export = opaque;

    co_mutex_lock_shielded(&export->control);
    if (export->serving && !export->spreads && export->kind->moved)
        export->kind->moved(export);
    co_mutex_unlock(&export->control);
}

static const EdgeUser edge_user = {
    .describe = describe,
    .moved = moved,
    .resized = resized,
};

Export *export_find(const char *id)
{
    LIST_FOREACH (link, &exports) {
        Export *export = LIST_ENTRY(link, Export, link);

        if (str_eq(export->id, id))
            return export;
    }
    return NULL;
}

Export *export_next(Export *export)
{
    List *next = export ? export->link.next : exports.next;

    return next == &exports ? NULL : LIST_ENTRY(next, Export, link);
}

Loop *export_home(const Export *export)
{
    return node_home(edge_node(export->edge));
}

unsigned export_loop_count(const Export *export)
{
    return export->spreads ? export->iothread_count : 1;
}

Object *export_iothread(const Export *export, unsigned i)
{
    return export->spreads ? export->iothreads[i % export->iothread_count]
                           : node_iothread(edge_node(export->edge));
}

Loop *export_loop(const Export *export, unsigned i)
{
    return export->spreads ? iothread_loop(export_iothread(export, i)) : export_home(export);
}

/* ---- Iothreads ---- */

static int add_iothread(Export *export, const char *name, Error *err)
{
    Object *object = object_find(name);

    if (!iothread_loop(object))
        return err_set(err, -ENOENT, "iothread \"%s\" not found", name);
    export->iothreads[export->iothread_count++] = object_ref(object);
    return 0;
}

/* Takes references to the iothreads that options name. */
static int find_iothreads(Export *export, const BlockExportOptions *options, Error *err)
{
    const BlockExportIothreads *names = options->iothread;
    int r = 0;

    if (!names)
        return 0;
    if (names->type == BLOCK_EXPORT_IOTHREADS_KIND_SINGLE) {
        export->iothreads = mem_new(Object *);
        return add_iothread(export, names->u.single, err);
    }
    if (options->has_fixed_iothread && options->fixed_iothread)
        return err_set(err, -EINVAL, "'fixed-iothread' cannot be used with a list of iothreads");
    if (!names->u.multi.count)
        return err_set(err, -EINVAL, "The list of iothreads of export '%s' is empty", export->id);
    export->spreads = true;
    export->iothreads = mem_zalloc(names->u.multi.count * sizeof(Object *));
    for (size_t i = 0; i < names->u.multi.count && r == 0; i++)
        r = add_iothread(export, names->u.multi.items[i], err);
    return r;
}

/* Moves the node to the first iothread. Only with fixed-iothread must that succeed. Waits, so the node is
 * looked up by its name. */
static int move_to_iothread(Export *export, const BlockExportOptions *options, Error *err)
{
    bool fixed = options->has_fixed_iothread && options->fixed_iothread;
    AUTO_ERROR Error ignored = ERROR_INIT;
    int r;

    if (!export->iothread_count)
        return 0;
    r = node_set_iothread(node_find(options->node_name), export->iothreads[0], fixed ? err : &ignored);
    return fixed ? r : 0;
}

/* Where a node goes whose export has left: to the iothread of the newest export that is on its loop and wants
 * another one. */
static Object *next_iothread(const Node *node)
{
    LIST_FOREACH (link, &exports) {
        Export *export = LIST_ENTRY(link, Export, link);

        if (export->edge && export->iothread_count && export_home(export) == node_home(node))
            return export->iothreads[0];
    }
    return NULL;
}

/* After the edge is gone: brings the node home if it was there for this export's sake. */
static void leave_iothreads(Export *export, const char *node_name)
{
    AUTO_ERROR Error ignored = ERROR_INIT;
    Node *node = node_find(node_name);

    if (node && export->iothread_count && node_iothread(node) == export->iothreads[0])
        (void)!node_set_iothread(node, next_iothread(node), &ignored);
}

static void export_detach(Export *export)
{
    AUTO_FREE char *name = export->edge ? str_dup(node_name(edge_node(export->edge))) : NULL;

    edge_close(TAKE(export->edge));
    if (name)
        leave_iothreads(export, name);
    while (export->iothread_count)
        object_unref(export->iothreads[--export->iothread_count]);
}

static void export_free(Export *export)
{
    list_remove(&export->link);
    free(export->iothreads);
    free(export->state);
    free(export->id);
    free(export);
}

static int check_options(const BlockExportOptions *options, const ExportKind **ret_kind, Error *err)
{
    const ExportKind *kind;
    Node *node;

    if (!id_is_valid(options->id))
        return err_set(err, -EINVAL, "Invalid block export id");
    if (export_find(options->id))
        return err_set(err, -EEXIST, "Block export id '%s' is already in use", options->id);
    kind = export_kind_find(block_export_type_name(options->type));
    if (!kind)
        return err_set(err, -ENOTSUP, "No driver found for the requested export type");
    node = node_find(options->node_name);
    if (!node)
        return err_set(err, -ENOENT, "Cannot find device='' nor node-name='%s'", options->node_name);
    if (options->has_writable && options->writable && node_is_read_only(node))
        return err_set(err, -EROFS, "Cannot export read-only node as writable");
    if (options->has_allow_inactive && options->allow_inactive && !kind->allows_inactive)
        return err_set(err, -ENOTSUP, "Export type does not support inactive exports");
    *ret_kind = kind;
    return 0;
}

static int export_start(Export *export, const BlockExportOptions *options, Error *err)
{
    unsigned perm = PERM_CONSISTENT_READ | (export->writable ? PERM_WRITE : 0);
    int r = find_iothreads(export, options, err);
    Node *node;

    if (r == 0)
        r = move_to_iothread(export, options, err);
    if (r < 0)
        return r;
    node = node_find(options->node_name);
    if (!node)
        return err_set(err, -ENOENT, "Cannot find device='' nor node-name='%s'", options->node_name);
    /* In two steps, so that of several conflicts the one that users know is told. */
    r = edge_open(node, &edge_user, export, perm, PERM_ALL, &export->edge, err);
    if (r == 0)
        r = edge_set_permissions(export->edge, perm, export->kind->shared, err);
    if (r == 0 && options->has_fixed_iothread && options->fixed_iothread)
        edge_fix_home(export->edge);
    return r < 0 ? r : export->kind->create(export, options, err);
}

int export_add(const BlockExportOptions *options, Error *err)
{
    const ExportKind *kind = NULL;
    Export *export;
    int r = check_options(options, &kind, err);

    if (r < 0)
        return r;
    export = mem_new(Export);
    export->kind = kind;
    export->id = str_dup(options->id);
    export->type = options->type;
    export->state = mem_zalloc(kind->state_size);
    export->writable = options->has_writable && options->writable;
    export->writethrough = options->has_writethrough && options->writethrough;
    export->starting = true;
    trace_export_add(export->id, kind->name, options->node_name);
    /* On the list first: what follows may wait, and the id is taken from here on. */
    list_prepend(&exports, &export->link);
    r = export_start(export, options, err);
    export->starting = false;
    export->serving = r == 0;
    if (r < 0) {
        export_detach(export);
        export_free(export);
    }
    co_cond_broadcast(&exports_changed);
    return r;
}

static void export_close(Export *export)
{
    co_mutex_lock_shielded(&export->control);
    export->serving = false;
    export->kind->shutdown(export);
    co_mutex_unlock(&export->control);
    export_detach(export);
    trace_export_removed(export->id);
    event_block_export_deleted(&(BlockExportDeletedEvent){.id = export->id});
    export_free(export);
    co_cond_broadcast(&exports_changed);
}

static void export_close_main(void *arg)
{
    export_close(arg);
}

int export_remove(Export *export, bool hard, Error *err)
{
    bool in_use;

    if (export->starting)
        return err_set(err, -EBUSY, "Export '%s' is still being created", export->id);
    in_use = export->kind->in_use && export->kind->in_use(export);
    if (export->shutting_down)
        return err_set(err, -EBUSY, "Export '%s' is already shutting down", export->id);
    if (in_use && !hard) {
        int r = err_set(err, -EBUSY, "export '%s' still in use", export->id);

        err_hint(err, "Use mode='hard' to force client disconnect");
        return r;
    }
    trace_export_remove(export->id, in_use);
    export->shutting_down = true;
    if (in_use)
        co_start(loop_group(loop_current()), "export-close", export_close_main, export);
    else
        export_close(export);
    return 0;
}

static bool concerns(const Export *export, const ExportKind *kind)
{
    return !kind || export->kind == kind;
}

static bool any_left(const ExportKind *kind)
{
    LIST_FOREACH (link, &exports)
        if (concerns(LIST_ENTRY(link, Export, link), kind))
            return true;
    return false;
}

/* The newest export that nobody is closing yet, or NULL. */
static Export *next_to_close(const ExportKind *kind)
{
    LIST_FOREACH (link, &exports) {
        Export *export = LIST_ENTRY(link, Export, link);

        if (concerns(export, kind) && !export->starting && !export->shutting_down)
            return export;
    }
    return NULL;
}

void exports_close(const ExportKind *kind)
{
    Export *export;

    while (any_left(kind)) {
        export = next_to_close(kind);
        if (!export) {
            co_cond_wait_shielded(&exports_changed, NULL);
            continue;
        }
        export->shutting_down = true;
        export_close(export);
    }
}

void exports_shutdown(void)
{
    size_t count;
    const ExportKind *const *kinds = export_kind_list(&count);

    exports_close(NULL);
    for (size_t i = 0; i < count; i++)
        if (kinds[i]->stop)
            kinds[i]->stop();
}
