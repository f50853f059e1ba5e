/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the driver luks share. */
#pragma once

#include "block/driver.h"
#include "crypto/luks.h"

/* Header and key material in the node that edge leads to. */
LuksIo luks_edge_io(Edge *edge);
int luks_create(const BlockdevCreateOptions *options, Error *err);
