/* SPDX-License-Identifier: Apache-2.0 */
/* What the two kinds of reservation managers share with the lookup. */
#pragma once

#include "loop/loop.h"
#include "pr/pr-manager.h"
#include "schema/object.h"

/* The first member of either kind's state. */
struct PrManager {
    Object *object;
    Loop *loop; /* the main loop */
    /* Of a request that has been checked. */
    int (*execute)(PrManager *manager, int fd, const PrRequest *request, PrReply *ret_reply);
    bool ready;     /* creation, which may wait, has succeeded */
    bool connected; /* as clients have been told */
};

extern const ObjectKind object_kind_pr_manager_helper, object_kind_pr_manager_kernel;

void pr_manager_init(PrManager *manager, Object *object,
    int (*execute)(PrManager *manager, int fd, const PrRequest *request, PrReply *ret_reply));
/* Notes the state and sends the event when it is a change. */
void pr_manager_set_connected(PrManager *manager, bool connected);
/* ObjectKind.can_be_deleted: not while create() still waits. */
bool pr_manager_can_be_deleted(Object *object);
