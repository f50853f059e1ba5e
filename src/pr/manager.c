/* SPDX-License-Identifier: Apache-2.0 */
/* What both kinds of reservation managers share: finding them, checking requests, telling clients. */
#include "pr/pr-priv.h"

#include "base/mem.h"
#include "generated/commands.h"
#include "generated/events.h"
#include "generated/trace.h"

#include <errno.h>

static PrManager *manager_of(Object *object)
{
    PrManager *manager = object_state(object, &object_kind_pr_manager_helper);

    return manager ? manager : object_state(object, &object_kind_pr_manager_kernel);
}

void pr_manager_init(PrManager *manager, Object *object,
    int (*execute)(PrManager *manager, int fd, const PrRequest *request, PrReply *ret_reply))
{
    manager->object = object;
    manager->loop = loop_current();
    manager->execute = execute;
}

bool pr_manager_can_be_deleted(Object *object)
{
    return manager_of(object)->ready;
}

/* ---- References ---- */

int pr_manager_get(const char *id, PrManager **ret_manager, Error *err)
{
    Object *object = object_find(id);
    PrManager *manager = manager_of(object);

    if (object && !manager)
        return err_set(err, -EINVAL, "Object with id '%s' is not a persistent reservation manager", id);
    if (!manager || !manager->ready)
        return err_set(err, -ENOENT, "No persistent reservation manager with id '%s'", id);
    object_ref(object);
    *ret_manager = manager;
    return 0;
}

static int unref(void *arg)
{
    object_unref(arg);
    return 0;
}

void pr_manager_put(PrManager *manager)
{
    if (manager)
        loop_call(manager->loop, unref, manager->object);
}

const char *pr_manager_id(const PrManager *manager)
{
    return object_id(manager->object);
}

/* ---- Commands ---- */

/* What a device would refuse whatever its state. */
static bool is_sound(const PrRequest *request)
{
    uint32_t bytes = pr_cdb_data_bytes(request->cdb);

    if (request->cdb[0] != PR_IN_OPCODE && request->cdb[0] != PR_OUT_OPCODE)
        return false;
    return bytes && bytes <= PR_DATA_BYTES && request->data_bytes >= bytes &&
           request->data_bytes <= PR_DATA_BYTES;
}

int pr_manager_execute(PrManager *manager, int fd, const PrRequest *request, PrReply *ret_reply)
{
    unsigned opcode = request->cdb[0], action = pr_cdb_action(request->cdb);
    int r = 0;

    trace_pr_manager_execute(pr_manager_id(manager), fd, opcode, action);
    if (is_sound(request))
        r = manager->execute(manager, fd, request, ret_reply);
    else
        pr_reply_check(ret_reply, SCSI_SENSE_INVALID_FIELD_IN_CDB);
    trace_pr_manager_done(pr_manager_id(manager), fd, r, r == 0 ? ret_reply->status : 0);
    return r;
}

/* ---- Clients ---- */

void pr_manager_set_connected(PrManager *manager, bool connected)
{
    PrManagerStatusChangedEvent event = {.id = (char *)pr_manager_id(manager), .connected = connected};

    if (manager->connected == connected)
        return;
    manager->connected = connected;
    trace_pr_manager_connected(event.id, connected);
    /* After object-del the id is free for others; nodes may still use the manager. */
    if (object_find(event.id) == manager->object)
        event_pr_manager_status_changed(&event);
}

static bool add_info(Object *object, void *opaque)
{
    PRManagerInfoList *list = opaque;
    PrManager *manager = manager_of(object);
    PRManagerInfo *info;

    if (!manager || !manager->ready)
        return true;
    info = mem_new(PRManagerInfo);
    info->id = str_dup(object_id(object));
    info->connected = manager->connected;
    schema_list_grow(list, sizeof(*list->items));
    list->items[list->count++] = info;
    return true;
}

int qmp_query_pr_managers(PRManagerInfoList *ret_result, Error *err)
{
    object_foreach(add_info, ret_result);
    return 0;
}
