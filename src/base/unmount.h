/* SPDX-License-Identifier: Apache-2.0 */
/* Taking mounts away, by the kernel or, for whoever may not ask it, by fusermount3(1). Both functions block.
 */
#pragma once

#include "base/macros.h"

/* Takes the mount at path out of the name space. 0 or -errno. */
int unmount_lazily(const char *path);
/*
 * After a call on path has failed with r: true if it is worth another try, because path is a mount whose
 * server has died. Such a mount (-ENOTCONN) is removed; one whose server is dying just now (-ECONNABORTED,
 * -ECANCELED) will be, the next time. Keeps errno.
 */
bool unmount_if_dead(const char *path, int r) MUST_CHECK;
/* Mounts of several dead servers may lie on one another. */
#define UNMOUNT_TRIES 16
