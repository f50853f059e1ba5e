/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The dirty bitmaps of an NBD export: found by the names that its options give, and held for as long as it
 * exists, so that nobody removes or changes them; a node that is not the exported one is kept by an edge that
 * asks for nothing.
 */
#include "exports/nbd/nbd-priv.h"

#include "base/limits.h"
#include "base/mem.h"
#include "generated/types.h"

#include <errno.h>

static char *describe_hold(void *opaque)
{
    const Export *export = opaque;

    return str_printf("block-export '%s'", export->id);
}

static int find_local(const NbdExport *nbd, const char *name, DirtyBitmap **ret_bitmap, Error *err)
{
    DirtyBitmap *bitmap = dirty_bitmap_find_in_chain(edge_node(nbd->export->edge), name);

    if (!bitmap)
        return err_set(err, -ENOENT, "Bitmap '%s' is not found", name);
    if (!nbd->export->writable && dirty_bitmap_is_enabled(bitmap) &&
        !node_is_read_only(dirty_bitmap_node(bitmap)))
        return err_set(err, -EINVAL, "Enabled bitmap '%s' incompatible with readonly export", name);
    *ret_bitmap = bitmap;
    return 0;
}

static int find(
    const NbdExport *nbd, const BlockDirtyBitmapOrStr *option, DirtyBitmap **ret_bitmap, Error *err)
{
    return option->type == BLOCK_DIRTY_BITMAP_OR_STR_KIND_LOCAL
               ? find_local(nbd, option->u.local, ret_bitmap, err)
               : dirty_bitmap_lookup(option->u.external->node, option->u.external->name, ret_bitmap, err);
}

/* Naming a bitmap twice is no mistake. */
static bool has(const NbdExport *nbd, const DirtyBitmap *bitmap)
{
    for (unsigned i = 0; i < nbd->bitmap_count; i++)
        if (nbd->bitmaps[i] == bitmap)
            return true;
    return false;
}

/* Attaching the edge may wait, so the bitmap is looked up again. */
static int open_one(NbdExport *nbd, const BlockDirtyBitmapOrStr *option, Error *err)
{
    static const EdgeUser user = {.describe = describe_hold};
    DirtyBitmap *bitmap;
    Edge *edge = NULL;
    int r = find(nbd, option, &bitmap, err);

    if (r == 0 && dirty_bitmap_node(bitmap) != edge_node(nbd->export->edge))
        r = edge_open(dirty_bitmap_node(bitmap), &user, nbd->export, 0, PERM_ALL, &edge, err);
    if (r == 0)
        r = find(nbd, option, &bitmap, err);
    if (r == 0)
        r = dirty_bitmap_check(bitmap, has(nbd, bitmap) ? 0 : DIRTY_BITMAP_LOOK, err);
    if (r < 0) {
        edge_close(edge);
        return r;
    }
    dirty_bitmap_hold(bitmap);
    nbd->bitmaps[nbd->bitmap_count] = bitmap;
    nbd->bitmap_names[nbd->bitmap_count] = dirty_bitmap_name(bitmap);
    nbd->bitmap_edges[nbd->bitmap_count++] = edge;
    return 0;
}

int nbd_bitmaps_open(NbdExport *nbd, const BlockExportOptionsNbd *options, Error *err)
{
    const BlockDirtyBitmapOrStrList *wanted = &options->bitmaps;

    if (wanted->count > LIMIT_NBD_BITMAPS)
        return err_set(err, -E2BIG, "Export '%s' names %zu bitmaps, more than %d: make several exports",
            nbd->export->id, wanted->count, LIMIT_NBD_BITMAPS);
    nbd->bitmaps = mem_zalloc((wanted->count + 1) * sizeof(*nbd->bitmaps));
    nbd->bitmap_names = mem_zalloc((wanted->count + 1) * sizeof(*nbd->bitmap_names));
    nbd->bitmap_edges = mem_zalloc((wanted->count + 1) * sizeof(*nbd->bitmap_edges));
    for (size_t i = 0; i < wanted->count; i++) {
        int r = open_one(nbd, wanted->items[i], err);

        if (r < 0) {
            nbd_bitmaps_close(nbd);
            return r;
        }
    }
    return 0;
}

void nbd_bitmaps_close(NbdExport *nbd)
{
    while (nbd->bitmap_count > 0) {
        unsigned i = --nbd->bitmap_count;

        dirty_bitmap_release(nbd->bitmaps[i]);
        edge_close(nbd->bitmap_edges[i]);
    }
    free(TAKE(nbd->bitmaps));
    free(TAKE(nbd->bitmap_names));
    free(TAKE(nbd->bitmap_edges));
}
