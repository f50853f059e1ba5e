/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "base/macros.h"

/* The rule for the names that users give to things: a letter, then letters, digits, '-', '.', '_'. */
bool id_is_valid(const char *id);
