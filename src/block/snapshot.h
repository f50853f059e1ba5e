/* SPDX-License-Identifier: Apache-2.0 */
/* Internal snapshots of nodes, as their commands and transactions see them. Main loop; they may wait. device
 * is the name of a node. */
#pragma once

#include "block/node.h"

typedef struct SnapshotInfo SnapshotInfo;         /* generated */
typedef struct SnapshotInfoList SnapshotInfoList; /* generated */

/* Takes one with the present time. */
int node_snapshot_create(const char *device, const char *name, Error *err) MUST_CHECK;
/* id or name may be NULL; ret_info, which the caller frees, tells what was there. */
int node_snapshot_delete(
    const char *device, const char *id, const char *name, SnapshotInfo **ret_info, Error *err) MUST_CHECK;
/* Goes back to one: its contents become those of the node. */
int node_snapshot_apply(const char *device, const char *id, const char *name, Error *err) MUST_CHECK;
/* Appends the snapshots of the image below node; nothing where there can be none. */
int node_snapshot_list(Node *node, SnapshotInfoList *list, Error *err) MUST_CHECK;
