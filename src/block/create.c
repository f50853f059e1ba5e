/* SPDX-License-Identifier: Apache-2.0 */
/* What drivers need to make images in other nodes. */
#include "block/driver.h"

#include "base/mem.h"
#include "generated/types.h"

static char *describe_creation(void *opaque)
{
    return str_dup("block job 'create'");
}

static const EdgeUser creation_user = {.describe = describe_creation};

int creation_check_ref(const BlockdevRef *ref, Error *err)
{
    if (ref->type != BLOCKDEV_REF_KIND_REFERENCE || node_find(ref->u.reference))
        return 0;
    return err_set(
        err, -ENOENT, "Cannot find device='%s' nor node-name='%s'", ref->u.reference, ref->u.reference);
}

int creation_open_ref(const BlockdevRef *ref, Edge **ret_edge, Error *err)
{
    Node *node;
    int r = creation_check_ref(ref, err);

    if (r < 0)
        return r;
    if (ref->type == BLOCKDEV_REF_KIND_REFERENCE)
        node = node_find(ref->u.reference);
    else
        r = node_open(ref->u.definition, &node, err);
    if (r < 0)
        return r;
    return edge_open(
        node, &creation_user, NULL, PERM_CONSISTENT_READ | PERM_WRITE | PERM_RESIZE, PERM_ALL, ret_edge, err);
}
