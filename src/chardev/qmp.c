/* SPDX-License-Identifier: Apache-2.0 */
/* The QMP commands of character devices. */
#include "chardev/chardev.h"

#include "generated/commands.h"
#include "generated/types.h"
#include "net/socket.h"

/* A descriptor's number means nothing to a client of the control protocol. */
static int check_address(const ChardevBackend *backend, Error *err)
{
    CLEANUP(socket_address_free_ptr) SocketAddress *address = NULL;

    if (backend->type != CHARDEV_BACKEND_KIND_SOCKET)
        return 0;
    address = socket_address_flatten(backend->u.socket.data->addr);
    return socket_address_check_remote(address, err);
}

int qmp_chardev_add(const ChardevAddArg *arg, ChardevReturn **ret_result, Error *err)
{
    ChardevReturn *result;
    int r;

    if (chardev_find(arg->id))
        return err_set(err, -EEXIST, "Chardev with id '%s' already exists", arg->id);
    r = check_address(arg->backend, err);
    if (r == 0)
        r = chardev_add(arg->id, arg->backend, NULL, err);
    if (r < 0)
        return err_prefix(err, r, "Failed to add chardev '%s'", arg->id);
    result = mem_new(ChardevReturn);
    result->pty = str_dup(chardev_pty_path(chardev_find(arg->id)));
    *ret_result = result;
    return 0;
}

int qmp_chardev_remove(const ChardevRemoveArg *arg, Error *err)
{
    return chardev_remove(arg->id, err);
}

int qmp_query_chardev(ChardevInfoList *ret_result, Error *err)
{
    for (Chardev *chardev = chardev_first(); chardev; chardev = chardev_next(chardev)) {
        ChardevInfo *info = mem_new(ChardevInfo);

        info->label = str_dup(chardev_id(chardev));
        info->filename = chardev_filename(chardev);
        info->frontend_open = chardev_has_frontend(chardev);
        chardev_info_list_append(ret_result, info);
    }
    return 0;
}

int qmp_query_chardev_backends(ChardevBackendInfoList *ret_result, Error *err)
{
    size_t count;
    const ChardevKind *const *kinds = chardev_kind_list(&count);

    for (size_t i = 0; i < count; i++) {
        ChardevBackendInfo *info = mem_new(ChardevBackendInfo);

        info->name = str_dup(kinds[i]->name);
        chardev_backend_info_list_append(ret_result, info);
    }
    return 0;
}
