/* SPDX-License-Identifier: Apache-2.0 */
/* Version of the program, and of the reference's surface that it offers: clients choose what they ask for by
 * it. */
#pragma once

#define VERSION "0.1.0"
#define VERSION_PACKAGE "granary " VERSION
#define VERSION_COMPAT_MAJOR 10
#define VERSION_COMPAT_MINOR 0
#define VERSION_COMPAT_MICRO 2
#define VERSION_COMPAT "10.0.2"
