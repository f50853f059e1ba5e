/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "base/macros.h"

/*
 * path from the root: for whoever will need it again after the daemon may have left its working directory.
 * The same as path if the working directory cannot be told; NULL of NULL. Free with free().
 */
char *path_absolute(const char *path) MUST_CHECK;
