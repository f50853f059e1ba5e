/* SPDX-License-Identifier: Apache-2.0 */
/*
 * x-blockdev-check. A node in use is drained for as long as its check takes, so that nothing changes
 * meanwhile; its users' requests wait. An image that is opened for the check alone is opened as it is, also
 * when it is too damaged for any other use.
 */
#include "block/block-priv.h"

#include "base/mem.h"
#include "generated/commands.h"
#include "schema/visit.h"

#include <errno.h>
#include <inttypes.h>

typedef struct CheckCall {
    Node *node;
    unsigned fix;
    CheckResult result;
    Error *err;
} CheckCall;

static int check_on_home(void *arg)
{
    CheckCall *call = arg;

    return call->node->driver->check(call->node, call->fix, &call->result, call->err);
}

static char *describe_check(void *opaque)
{
    return str_dup("a check");
}

static int check_node(Node *node, unsigned fix, CheckResult *ret_result, Error *err)
{
    static const EdgeUser user = {.describe = describe_check};
    CheckCall call = {.node = node, .fix = fix, .err = err};
    Edge *edge;
    int r;

    if (!node->driver->check)
        return err_set(err, -ENOTSUP, "Driver '%s' of node '%s' does not support checks", node->driver->name,
            node->name);
    if (fix && node->read_only)
        return err_set(err, -EACCES, "Block node '%s' is read-only", node->name);
    r = edge_open(node, &user, NULL, 0, PERM_ALL, &edge, err);
    if (r < 0)
        return r;
    edge_fix_home(edge);
    co_mutex_lock_shielded(&node->private->resizing);
    node_drain_begin(node);
    r = loop_call(node->home, check_on_home, &call);
    node_drain_end(node);
    co_mutex_unlock(&node->private->resizing);
    edge_close(edge);
    *ret_result = call.result;
    return r;
}

static int check_image(
    const BlockdevOptions *options, unsigned fix, ImageCheck *info, CheckResult *ret_result, Error *err)
{
    BlockdevOptions *own = schema_clone(&schema_type_BlockdevOptions, options);
    Node *node;
    int r;

    own->has_read_only = true;
    own->read_only = fix == 0;
    r = node_open_inherited(own, &(Inherited){.for_check = true}, &node, err);
    blockdev_options_free(own);
    if (r < 0)
        return r;
    info->filename = node_filename(node);
    info->format = str_dup(node->driver->name);
    node->private->monitor_owned = true; /* until all is done with it */
    r = check_node(node, fix, ret_result, err);
    node->private->monitor_owned = false;
    node_release(node);
    return r;
}

static void set_positive(bool *has, int64_t *member, uint64_t value)
{
    *has = value != 0;
    *member = (int64_t)MIN(value, (uint64_t)INT64_MAX);
}

static void describe(ImageCheck *info, const CheckResult *r)
{
    info->check_errors = (int64_t)MIN(r->check_errors, (uint64_t)INT64_MAX);
    set_positive(&info->has_image_end_offset, &info->image_end_offset, r->image_end_offset);
    set_positive(&info->has_corruptions, &info->corruptions, r->corruptions);
    set_positive(&info->has_leaks, &info->leaks, r->leaks);
    set_positive(&info->has_corruptions_fixed, &info->corruptions_fixed, r->corruptions_fixed);
    set_positive(&info->has_leaks_fixed, &info->leaks_fixed, r->leaks_fixed);
    set_positive(&info->has_total_clusters, &info->total_clusters, r->total_clusters);
    set_positive(&info->has_allocated_clusters, &info->allocated_clusters, r->allocated_clusters);
    set_positive(&info->has_fragmented_clusters, &info->fragmented_clusters, r->fragmented_clusters);
    set_positive(&info->has_compressed_clusters, &info->compressed_clusters, r->compressed_clusters);
}

int qmp_x_blockdev_check(const XBlockdevCheckArg *arg, ImageCheck **ret_info, Error *err)
{
    static const unsigned fixes[] = {
        [IMAGE_CHECK_FIX_NONE] = 0,
        [IMAGE_CHECK_FIX_LEAKS] = CHECK_FIX_LEAKS,
        [IMAGE_CHECK_FIX_ALL] = CHECK_FIX_LEAKS | CHECK_FIX_ERRORS,
    };
    unsigned fix = arg->has_fix ? fixes[arg->fix] : 0;
    ImageCheck *info;
    CheckResult result = {0};
    Node *node;
    int r;

    if (!arg->node_name == !arg->image)
        return err_set(err, -EINVAL, "Exactly one of 'node-name' and 'image' must be given");
    node = arg->node_name ? node_find(arg->node_name) : NULL;
    if (arg->node_name && !node)
        return err_set(err, -ENOENT, "Cannot find node '%s'", arg->node_name);
    info = mem_new(ImageCheck);
    if (node) {
        info->filename = node_filename(node);
        info->format = str_dup(node->driver->name);
        r = check_node(node, fix, &result, err);
    } else {
        r = check_image(arg->image, fix, info, &result, err);
    }
    if (r < 0) {
        image_check_free(info);
        return r;
    }
    describe(info, &result);
    *ret_info = info;
    return 0;
}
