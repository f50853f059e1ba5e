/* SPDX-License-Identifier: Apache-2.0 */
/* Commands of the NBD server. */
#include "exports/nbd/nbd-priv.h"

#include "base/mem.h"
#include "generated/commands.h"
#include "generated/types.h"
#include "net/socket.h"

int qmp_nbd_server_start(const NbdServerOptionsLegacy *arg, Error *err)
{
    NbdServerOptions options = {
        .has_handshake_max_seconds = arg->has_handshake_max_seconds,
        .handshake_max_seconds = arg->handshake_max_seconds,
        .tls_creds = arg->tls_creds,
        .tls_authz = arg->tls_authz,
        .has_max_connections = arg->has_max_connections,
        .max_connections = arg->max_connections,
        .addr = socket_address_flatten(arg->addr),
    };
    int r = socket_address_check_remote(options.addr, err);

    if (r >= 0)
        r = nbd_server_start(&options, err);
    socket_address_free(options.addr);
    return r;
}

int qmp_nbd_server_stop(Error *err)
{
    if (!nbd_server() || nbd_server()->stopping)
        return err_set(err, -ENOTCONN, "NBD server not running");
    nbd_server_stop();
    return 0;
}

/* The bitmap that the old command names, as the list of the new one. */
static void set_bitmap(BlockExportOptionsNbd *options, BlockDirtyBitmapOrStr *storage,
    BlockDirtyBitmapOrStr **item, char *bitmap)
{
    if (!bitmap)
        return;
    storage->type = BLOCK_DIRTY_BITMAP_OR_STR_KIND_LOCAL;
    storage->u.local = bitmap;
    *item = storage;
    options->has_bitmaps = true;
    options->bitmaps.items = item;
    options->bitmaps.count = 1;
}

int qmp_nbd_server_add(const NbdServerAddOptions *arg, Error *err)
{
    BlockDirtyBitmapOrStr bitmap = {0}, *bitmaps[1];
    Node *node = node_find(arg->device);
    BlockExportOptions options = {
        .type = BLOCK_EXPORT_TYPE_NBD,
        .id = arg->name ? arg->name : arg->device,
        .node_name = arg->device,
    };

    if (!node)
        return err_set(err, -ENOENT, "Cannot find device='%s' nor node-name='%s'", arg->device, arg->device);
    /* This command never complained about a read-only node. */
    options.has_writable = true;
    options.writable = arg->has_writable && arg->writable && !node_is_read_only(node);
    options.u.nbd.name = options.id;
    options.u.nbd.description = arg->description;
    set_bitmap(&options.u.nbd, &bitmap, bitmaps, arg->bitmap);
    return export_add(&options, err);
}

int qmp_nbd_server_remove(const NbdServerRemoveArg *arg, Error *err)
{
    Export *export = export_find(arg->name);

    if (!export)
        return err_set(err, -ENOENT, "Export '%s' is not found", arg->name);
    if (export->kind != export_kind_find("nbd"))
        return err_set(err, -EINVAL, "Block export '%s' is not an NBD export", arg->name);
    return export_remove(export, arg->has_mode && arg->mode == BLOCK_EXPORT_REMOVE_MODE_HARD, err);
}
