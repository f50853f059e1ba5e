/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Changes of the size, on the main loop, one after the other: of two writes behind the end the one that ends
 * earlier must not take away what the other has gained.
 *
 * Only a growable export has the permission to resize all the time. Another one asks for it when somebody
 * truncates the file, so that it stands in nobody's way otherwise; jobs that move data between the layers
 * of a chain exclude resizing while they run.
 */
#include "exports/fuse/size.h"

#include "base/mem.h"

#include <errno.h>

#define SECTOR_BYTES 512

typedef struct SizeCall {
    FuseSession *session;
    uint64_t size;
    bool grow; /* at least to that size; else exactly */
    Preallocation prealloc;
} SizeCall;

static int resize(FuseSession *s, uint64_t size, Preallocation prealloc)
{
    AUTO_ERROR Error err = ERROR_INIT;

    return edge_resize(s->edge, size, true, prealloc, 0, &err);
}

/* Formats count in sectors: a write to an odd end gets the rest of the sector with it. */
static int grow(FuseSession *s, uint64_t size, Preallocation prealloc)
{
    int r;

    if (node_size(edge_node(s->edge)) >= size)
        return 0;
    r = resize(s, size, prealloc);
    if (r == -EINVAL && !is_aligned(size, SECTOR_BYTES) && !align_up_overflows(size, SECTOR_BYTES))
        r = resize(s, align_up(size, SECTOR_BYTES), prealloc);
    return r;
}

static int set_exactly(FuseSession *s, uint64_t size)
{
    AUTO_ERROR Error err = ERROR_INIT, ignored = ERROR_INIT;
    int r;

    if (s->growable)
        return resize(s, size, PREALLOCATION_OFF);
    if (size > node_size(edge_node(s->edge)))
        return -EPERM;
    if (edge_set_permissions(s->edge, s->perm | PERM_RESIZE, s->shared, &err) < 0)
        return -EBUSY; /* another user of the node relies on its size */
    r = resize(s, size, PREALLOCATION_OFF);
    (void)!edge_set_permissions(s->edge, s->perm, s->shared, &ignored);
    return r;
}

static int change_size(void *arg)
{
    const SizeCall *call = arg;
    FuseSession *s = call->session;
    int r;

    co_mutex_lock_shielded(&s->resizing);
    r = call->grow ? grow(s, call->size, call->prealloc) : set_exactly(s, call->size);
    co_mutex_unlock(&s->resizing);
    return r;
}

int fuse_grow(FuseSession *session, uint64_t end, Preallocation prealloc)
{
    SizeCall call = {.session = session, .size = end, .grow = true, .prealloc = prealloc};

    return loop_call(session->main_loop, change_size, &call);
}

int fuse_set_size(FuseSession *session, uint64_t size)
{
    SizeCall call = {.session = session, .size = size};

    return loop_call(session->main_loop, change_size, &call);
}
