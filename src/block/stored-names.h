/* SPDX-License-Identifier: Apache-2.0 */
/* What may be opened because an image names it. */
#pragma once

#include "base/error.h"

/* From now on only files below folder, and below those of earlier calls; "none": no more than these. */
int stored_names_allow(const char *folder, Error *err) MUST_CHECK;
