/* SPDX-License-Identifier: Apache-2.0 */
/* What --help, --version and their like print, on standard output. */
#pragma once

#include <stdbool.h>

void help_print_usage(void);
void help_print_version(void);
/*
 * The argument of --object: if it asks for help ("help" or "TYPE,help", also "?"), prints the list of types
 * or of a type's properties and returns true.
 */
bool help_print_object(const char *argument);
