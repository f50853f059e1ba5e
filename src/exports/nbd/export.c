/* SPDX-License-Identifier: Apache-2.0 */
/* The export kind `nbd`: names, what the handshake tells about an export, and its removal. */
#include "exports/nbd/nbd-priv.h"

#include "base/limits.h"
#include "base/mem.h"
#include "generated/types.h"

#include <string.h>

#define BLOCK_PREFERRED 4096

/* In order of creation, as clients see them. */
static List nbd_exports = LIST_INIT(nbd_exports);
static uint64_t last_serial;

static NbdExport *find_by_name(const char *name, size_t bytes)
{
    LIST_FOREACH (link, &nbd_exports) {
        NbdExport *nbd = LIST_ENTRY(link, NbdExport, link);

        if (strlen(nbd->name) == bytes && memcmp(nbd->name, name, bytes) == 0)
            return nbd;
    }
    return NULL;
}

/* ---- For the handshake ---- */

static void describe_export(const NbdServer *server, NbdExport *nbd, NegotiateExport *ret_export)
{
    uint32_t min = node_request_alignment(edge_node(nbd->export->edge));
    NbdContexts contexts = (NBD_CONTEXT_BIT(nbd->bitmap_count) - 1) << NBD_CONTEXT_BITMAPS |
                           NBD_CONTEXT_BIT(NBD_CONTEXT_ALLOCATION);
    uint16_t flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_FLUSH | NBD_FLAG_FUA | NBD_FLAG_CACHE;

    flags |= nbd->export->writable ? NBD_FLAG_TRIM | NBD_FLAG_WRITE_ZEROES | NBD_FLAG_FAST_ZERO
                                   : NBD_FLAG_READ_ONLY;
    if (server->max_connections != 1)
        flags |= NBD_FLAG_MULTI_CONN;
    if (nbd->allocation_depth)
        contexts |= NBD_CONTEXT_BIT(NBD_CONTEXT_DEPTH);
    *ret_export = (NegotiateExport){
        .opaque = nbd,
        .serial = nbd->serial,
        .name = nbd->name,
        .description = nbd->description,
        .size = nbd->size,
        .flags = flags,
        .contexts = contexts,
        .bitmaps = {.names = nbd->bitmap_names, .count = nbd->bitmap_count},
        .block_min = min,
        .block_preferred = MAX(min, (uint32_t)BLOCK_PREFERRED),
        .block_max = LIMIT_REQUEST_BYTES,
    };
}

/* An export that is on its way out takes no clients. */
static bool is_open(const NbdExport *nbd)
{
    return !nbd->export->shutting_down;
}

static bool host_next(void *opaque, NegotiateExport *ret_export)
{
    NbdExport *nbd = ret_export->opaque;
    List *link = nbd ? nbd->link.next : nbd_exports.next;

    while (link != &nbd_exports && !is_open(LIST_ENTRY(link, NbdExport, link)))
        link = link->next;
    if (link == &nbd_exports)
        return false;
    describe_export(opaque, LIST_ENTRY(link, NbdExport, link), ret_export);
    return true;
}

static bool host_find(void *opaque, NbdString name, NegotiateExport *ret_export)
{
    NbdExport *nbd = find_by_name(name.text, name.bytes);

    if (!nbd || !is_open(nbd))
        return false;
    describe_export(opaque, nbd, ret_export);
    return true;
}

const NegotiateHost nbd_export_host = {.next = host_next, .find = host_find};

/* ---- The kind ---- */

static int check_options(const BlockExportOptionsNbd *options, const char *name, Error *err)
{
    if (!nbd_server() || nbd_server()->stopping)
        return err_set(err, -ENOTCONN, "NBD server not running");
    if (strlen(name) > NBD_STRING_BYTES)
        return err_set(err, -EINVAL, "export name '%s' too long", name);
    if (options->description && strlen(options->description) > NBD_STRING_BYTES)
        return err_set(err, -EINVAL, "description '%s' too long", options->description);
    if (find_by_name(name, strlen(name)))
        return err_set(err, -EEXIST, "NBD server already has export named '%s'", name);
    return 0;
}

static int nbd_create(Export *export, const BlockExportOptions *options, Error *err)
{
    const BlockExportOptionsNbd *own = &options->u.nbd;
    const char *name = own->name ? own->name : options->node_name;
    NbdExport *nbd = export->state;
    int r = check_options(own, name, err);

    if (r < 0)
        return r;
    nbd->export = export;
    nbd->serial = ++last_serial;
    r = nbd_bitmaps_open(nbd, own, err);
    if (r < 0)
        return r;
    r = check_options(own, name, err); /* things may have changed while bitmaps were opened */
    if (r < 0) {
        nbd_bitmaps_close(nbd);
        return r;
    }
    nbd->name = str_dup(name);
    nbd->description = str_dup(own->description);
    nbd->allocation_depth = own->has_allocation_depth && own->allocation_depth;
    nbd->size = node_size(edge_node(export->edge));
    list_init(&nbd->sessions);
    list_append(&nbd_exports, &nbd->link);
    return 0;
}

static bool nbd_in_use(const Export *export)
{
    const NbdExport *nbd = export->state;

    return !list_empty(&nbd->sessions);
}

static void nbd_shutdown(Export *export)
{
    NbdExport *nbd = export->state;

    LIST_FOREACH (link, &nbd->sessions)
        nbd_session_disconnect(LIST_ENTRY(link, NbdSession, export_link));
    while (!list_empty(&nbd->sessions))
        co_cond_wait_shielded(&nbd->left, NULL);
    list_remove(&nbd->link);
    nbd_bitmaps_close(nbd);
    free(nbd->name);
    free(nbd->description);
}

static void nbd_resized(Export *export, uint64_t size)
{
    NbdExport *nbd = export->state;

    nbd->size = size;
}

const ExportKind export_kind_nbd = {
    .name = "nbd",
    .state_size = sizeof(NbdExport),
    .allows_inactive = true,
    .shared = PERM_ALL & ~PERM_RESIZE,
    .create = nbd_create,
    .in_use = nbd_in_use,
    .shutdown = nbd_shutdown,
    .stop = nbd_server_stop,
    .resized = nbd_resized,
};
