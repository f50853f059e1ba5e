/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What users do to dirty bitmaps: the actions of transactions, and the commands, which are transactions of
 * one action each.
 *
 * If a transaction has several actions, requests of their nodes are at rest from prepare to the end, so that
 * all happen at the same moment; and if a bitmap is persistent, so that the driver can change what it has
 * stored while nothing writes.
 */
#include "base/log.h"
#include "base/mem.h"
#include "block/bitmap.h"
#include "block/block-priv.h"
#include "block/transaction.h"
#include "generated/commands.h"

#include <errno.h>

typedef struct BitmapState {
    Edge *hold;
    bool at_rest; /* the node's requests wait */
    Node *node;
    DirtyBitmap *bitmap;
    DirtyBitmapSaved *saved; /* what it contained before, if the action changes that */
    bool was_enabled;
} BitmapState;

/* ---- Drivers that keep bitmaps in the image ---- */

typedef struct HookCall {
    int (*hook)(Node *node, DirtyBitmap *bitmap, Error *err);
    DirtyBitmap *bitmap;
    Error *err;
} HookCall;

static int call_on_home(void *arg)
{
    const HookCall *call = arg;

    return call->hook(dirty_bitmap_node(call->bitmap), call->bitmap, call->err);
}

static int call_hook(
    int (*hook)(Node *node, DirtyBitmap *bitmap, Error *err), DirtyBitmap *bitmap, Error *err)
{
    HookCall call = {.hook = hook, .bitmap = bitmap, .err = err};

    return hook && dirty_bitmap_is_persistent(bitmap)
               ? loop_call(node_home(dirty_bitmap_node(bitmap)), call_on_home, &call)
               : 0;
}

static const DriverBitmaps *hooks(const DirtyBitmap *bitmap)
{
    static const DriverBitmaps none;
    const Driver *driver = node_driver(dirty_bitmap_node(bitmap));

    return driver->bitmaps ? driver->bitmaps : &none;
}

static int tell_changed(DirtyBitmap *bitmap, Error *err)
{
    return call_hook(hooks(bitmap)->changed, bitmap, err);
}

/* The driver has stored a change, or not quite, that is undone now. */
static void tell_undone(int (*hook)(Node *node, DirtyBitmap *bitmap, Error *err), DirtyBitmap *bitmap)
{
    AUTO_ERROR Error err = ERROR_INIT;

    if (call_hook(hook, bitmap, &err) < 0)
        log_warn("Bitmap '%s' of node '%s' could not be stored as it was before: %s",
            dirty_bitmap_name(bitmap), node_name(dirty_bitmap_node(bitmap)), err.message);
}

/* ---- What all actions do ---- */

static char *describe_hold(void *opaque)
{
    return str_dup("a change of bitmaps");
}

/* Keeps the node, and its requests at rest if that is needed: a command alone need not wait for them. */
static int hold(BitmapState *s, Node *node, bool persistent, Error *err)
{
    static const EdgeUser user = {.describe = describe_hold};

    s->node = node;
    s->at_rest = persistent || !transaction_is_single();
    return s->at_rest ? transaction_hold_node(node, &s->hold, err)
                      : edge_open(node, &user, NULL, 0, PERM_ALL, &s->hold, err);
}

/* The bitmap is there before and after waiting for requests in flight. */
static int begin(BitmapState *s, const BlockDirtyBitmap *target, unsigned checks, Error *err)
{
    int r = dirty_bitmap_lookup(target->node, target->name, &s->bitmap, err);

    if (r == 0)
        r = hold(s, dirty_bitmap_node(s->bitmap), dirty_bitmap_is_persistent(s->bitmap), err);
    if (r == 0)
        r = dirty_bitmap_lookup(target->node, target->name, &s->bitmap, err);
    return r == 0 ? dirty_bitmap_check(s->bitmap, checks, err) : r;
}

static void clean(void *state)
{
    BitmapState *s = state;

    dirty_bitmap_drop(s->saved);
    if (s->at_rest)
        transaction_release_node(s->hold);
    else
        edge_close(s->hold);
}

/* ---- Adding ---- */

static int check_granularity(const BlockDirtyBitmapAdd *arg, Error *err)
{
    if (arg->has_granularity &&
        (arg->granularity < DIRTY_BITMAP_GRANULARITY_MIN || !is_power_of_2(arg->granularity)))
        return err_set(
            err, -EINVAL, "Granularity must be power of 2 and at least %d", DIRTY_BITMAP_GRANULARITY_MIN);
    return 0;
}

typedef struct CanAddCall {
    Node *node;
    const BlockDirtyBitmapAdd *arg;
    uint32_t granularity;
    Error *err;
} CanAddCall;

static int can_add_on_home(void *arg)
{
    const CanAddCall *call = arg;

    return call->node->driver->bitmaps->can_add(call->node, call->arg->name, call->granularity, call->err);
}

static int check_persistent(Node *node, const BlockDirtyBitmapAdd *arg, uint32_t granularity, Error *err)
{
    CanAddCall call = {.node = node, .arg = arg, .granularity = granularity, .err = err};

    if (!node->driver->bitmaps)
        return err_set_errno(err, -ENOTSUP, "Can't store persistent bitmaps to %s", node->name);
    return node->driver->bitmaps->can_add ? loop_call(node->home, can_add_on_home, &call) : 0;
}

static int add_to_held(BitmapState *s, const BlockDirtyBitmapAdd *arg, Error *err)
{
    uint32_t granularity =
        arg->has_granularity ? arg->granularity : dirty_bitmap_default_granularity(s->node);
    bool persistent = arg->has_persistent && arg->persistent;
    int r = persistent ? check_persistent(s->node, arg, granularity, err) : 0;

    if (r == 0)
        r = dirty_bitmap_new(s->node, arg->name, granularity, &s->bitmap, err);
    if (r < 0)
        return r;
    dirty_bitmap_set_enabled(s->bitmap, !(arg->has_disabled && arg->disabled));
    dirty_bitmap_set_persistent(s->bitmap, persistent);
    r = call_hook(hooks(s->bitmap)->added, s->bitmap, err);
    if (r < 0)
        dirty_bitmap_free(s->bitmap);
    return r;
}

static int add_prepare(void *state, const TransactionAction *action, Error *err)
{
    const BlockDirtyBitmapAdd *arg = action->u.block_dirty_bitmap_add.data;
    BitmapState *s = state;
    Node *node;
    int r;

    if (!arg->name[0])
        return err_set(err, -EINVAL, "Bitmap name cannot be empty");
    node = node_find(arg->node);
    if (!node)
        return err_set(err, -ENODEV, "Cannot find device='%s' nor node-name='%s'", arg->node, arg->node);
    r = check_granularity(arg, err);
    if (r == 0)
        r = hold(s, node, arg->has_persistent && arg->persistent, err);
    return r == 0 ? add_to_held(s, arg, err) : r;
}

/* An export that has found the bitmap meanwhile keeps it. */
static void add_abort(void *state)
{
    BitmapState *s = state;

    if (dirty_bitmap_is_busy(s->bitmap))
        return;
    tell_undone(hooks(s->bitmap)->remove, s->bitmap);
    dirty_bitmap_free(s->bitmap);
}

const TransactionKind transaction_kind_block_dirty_bitmap_add = {
    .state_size = sizeof(BitmapState), .prepare = add_prepare, .abort = add_abort, .clean = clean};

/* ---- Removing ---- */

static int remove_prepare(void *state, const TransactionAction *action, Error *err)
{
    BitmapState *s = state;
    int r =
        begin(s, action->u.block_dirty_bitmap_remove.data, DIRTY_BITMAP_BUSY | DIRTY_BITMAP_READ_ONLY, err);

    if (r < 0)
        return r;
    dirty_bitmap_hold(s->bitmap); /* nobody else begins to use it */
    r = call_hook(hooks(s->bitmap)->remove, s->bitmap, err);
    if (r < 0)
        dirty_bitmap_release(s->bitmap);
    return r;
}

static void remove_commit(void *state)
{
    BitmapState *s = state;

    dirty_bitmap_release(s->bitmap);
    dirty_bitmap_free(s->bitmap);
}

static void remove_abort(void *state)
{
    BitmapState *s = state;

    dirty_bitmap_release(s->bitmap);
    tell_undone(hooks(s->bitmap)->added, s->bitmap);
}

const TransactionKind transaction_kind_block_dirty_bitmap_remove = {.state_size = sizeof(BitmapState),
    .prepare = remove_prepare,
    .commit = remove_commit,
    .abort = remove_abort,
    .clean = clean};

/* ---- Enabling and disabling ---- */

static int switch_prepare(BitmapState *s, const BlockDirtyBitmap *target, bool enable, Error *err)
{
    int r = begin(s, target, DIRTY_BITMAP_LOOK, err);

    if (r < 0)
        return r;
    s->was_enabled = dirty_bitmap_is_enabled(s->bitmap);
    if (s->was_enabled == enable)
        return 0;
    dirty_bitmap_set_enabled(s->bitmap, enable);
    r = tell_changed(s->bitmap, err);
    if (r < 0)
        dirty_bitmap_set_enabled(s->bitmap, s->was_enabled);
    return r;
}

static int enable_prepare(void *state, const TransactionAction *action, Error *err)
{
    return switch_prepare(state, action->u.block_dirty_bitmap_enable.data, true, err);
}

static int disable_prepare(void *state, const TransactionAction *action, Error *err)
{
    return switch_prepare(state, action->u.block_dirty_bitmap_disable.data, false, err);
}

static void switch_abort(void *state)
{
    BitmapState *s = state;

    if (dirty_bitmap_is_enabled(s->bitmap) == s->was_enabled)
        return;
    dirty_bitmap_set_enabled(s->bitmap, s->was_enabled);
    tell_undone(hooks(s->bitmap)->changed, s->bitmap);
}

const TransactionKind transaction_kind_block_dirty_bitmap_enable = {
    .state_size = sizeof(BitmapState), .prepare = enable_prepare, .abort = switch_abort, .clean = clean};
const TransactionKind transaction_kind_block_dirty_bitmap_disable = {
    .state_size = sizeof(BitmapState), .prepare = disable_prepare, .abort = switch_abort, .clean = clean};

/* ---- Changing the contents ---- */

static void contents_abort(void *state)
{
    BitmapState *s = state;

    dirty_bitmap_restore(s->bitmap, TAKE(s->saved));
    tell_undone(hooks(s->bitmap)->changed, s->bitmap);
}

/* What was changed after saving becomes permanent for the driver, or is undone. */
static int tell_contents(BitmapState *s, Error *err)
{
    int r = tell_changed(s->bitmap, err);

    if (r < 0)
        contents_abort(s);
    return r;
}

static int clear_prepare(void *state, const TransactionAction *action, Error *err)
{
    BitmapState *s = state;
    int r = begin(s, action->u.block_dirty_bitmap_clear.data, DIRTY_BITMAP_CHANGE, err);

    if (r == 0)
        r = dirty_bitmap_save(s->bitmap, &s->saved, err);
    if (r < 0)
        return r;
    dirty_bitmap_clear(s->bitmap);
    return tell_contents(s, err);
}

const TransactionKind transaction_kind_block_dirty_bitmap_clear = {
    .state_size = sizeof(BitmapState), .prepare = clear_prepare, .abort = contents_abort, .clean = clean};

static int find_source(Node *node, const BlockDirtyBitmapOrStr *source, DirtyBitmap **ret_bitmap, Error *err)
{
    if (source->type == BLOCK_DIRTY_BITMAP_OR_STR_KIND_LOCAL)
        return dirty_bitmap_lookup(node->name, source->u.local, ret_bitmap, err);
    return dirty_bitmap_lookup(source->u.external->node, source->u.external->name, ret_bitmap, err);
}

/* Into a bitmap of its own first, as nothing happens to the target if one of the sources does not fit. */
static int merge_sources(DirtyBitmap *all, const BlockDirtyBitmapMerge *arg, Error *err)
{
    for (size_t i = 0; i < arg->bitmaps.count; i++) {
        DirtyBitmap *source;
        int r = find_source(dirty_bitmap_node(all), arg->bitmaps.items[i], &source, err);

        if (r == 0)
            r = dirty_bitmap_check(source, DIRTY_BITMAP_LOOK, err);
        if (r == 0)
            r = dirty_bitmap_merge(all, source, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int merge_prepare(void *state, const TransactionAction *action, Error *err)
{
    const BlockDirtyBitmapMerge *arg = action->u.block_dirty_bitmap_merge.data;
    const BlockDirtyBitmap target = {.node = arg->node, .name = arg->target};
    BitmapState *s = state;
    DirtyBitmap *all = NULL;
    int r = begin(s, &target, 0, err);

    if (r == 0)
        r = dirty_bitmap_new(s->node, NULL, dirty_bitmap_granularity(s->bitmap), &all, err);
    if (r < 0)
        return r;
    dirty_bitmap_set_enabled(all, false);
    r = merge_sources(all, arg, err);
    if (r == 0)
        r = dirty_bitmap_check(s->bitmap, DIRTY_BITMAP_CHANGE, err);
    if (r == 0)
        r = dirty_bitmap_save(s->bitmap, &s->saved, err);
    if (r == 0)
        r = dirty_bitmap_merge(s->bitmap, all, err);
    dirty_bitmap_free(all);
    return r == 0 ? tell_contents(s, err) : r;
}

const TransactionKind transaction_kind_block_dirty_bitmap_merge = {
    .state_size = sizeof(BitmapState), .prepare = merge_prepare, .abort = contents_abort, .clean = clean};

/* ---- Commands ---- */

int qmp_block_dirty_bitmap_add(const BlockDirtyBitmapAdd *arg, Error *err)
{
    const TransactionAction action = {.type = TRANSACTION_ACTION_KIND_BLOCK_DIRTY_BITMAP_ADD,
        .u.block_dirty_bitmap_add.data = (BlockDirtyBitmapAdd *)arg};

    return transaction_run_one(&action, err);
}

int qmp_block_dirty_bitmap_remove(const BlockDirtyBitmap *arg, Error *err)
{
    const TransactionAction action = {.type = TRANSACTION_ACTION_KIND_BLOCK_DIRTY_BITMAP_REMOVE,
        .u.block_dirty_bitmap_remove.data = (BlockDirtyBitmap *)arg};

    return transaction_run_one(&action, err);
}

int qmp_block_dirty_bitmap_clear(const BlockDirtyBitmap *arg, Error *err)
{
    const TransactionAction action = {.type = TRANSACTION_ACTION_KIND_BLOCK_DIRTY_BITMAP_CLEAR,
        .u.block_dirty_bitmap_clear.data = (BlockDirtyBitmap *)arg};

    return transaction_run_one(&action, err);
}

int qmp_block_dirty_bitmap_enable(const BlockDirtyBitmap *arg, Error *err)
{
    const TransactionAction action = {.type = TRANSACTION_ACTION_KIND_BLOCK_DIRTY_BITMAP_ENABLE,
        .u.block_dirty_bitmap_enable.data = (BlockDirtyBitmap *)arg};

    return transaction_run_one(&action, err);
}

int qmp_block_dirty_bitmap_disable(const BlockDirtyBitmap *arg, Error *err)
{
    const TransactionAction action = {.type = TRANSACTION_ACTION_KIND_BLOCK_DIRTY_BITMAP_DISABLE,
        .u.block_dirty_bitmap_disable.data = (BlockDirtyBitmap *)arg};

    return transaction_run_one(&action, err);
}

int qmp_block_dirty_bitmap_merge(const BlockDirtyBitmapMerge *arg, Error *err)
{
    const TransactionAction action = {.type = TRANSACTION_ACTION_KIND_BLOCK_DIRTY_BITMAP_MERGE,
        .u.block_dirty_bitmap_merge.data = (BlockDirtyBitmapMerge *)arg};

    return transaction_run_one(&action, err);
}
