/* SPDX-License-Identifier: Apache-2.0 */
/* Changes to the header's cluster (QEMU docs/interop/qcow2, "Header extensions") while the image is open. */
#pragma once

#include "drivers/qcow2/qcow2-priv.h"

#define HEADER_EXTENSION_HEAD 8u
#define HEADER_SECTOR 512u /* is written whole or not at all */

/* What the first cluster holds. Offsets are those in the file. */
typedef struct HeaderArea {
    uint8_t *bytes;
    size_t size;       /* of the cluster */
    size_t limit;      /* extensions end here: at the name of the backing file, or with the cluster */
    size_t end;        /* of the chain: where its last eight bytes are, if it has them */
    size_t found;      /* the extension that was looked for, or 0 */
    size_t found_next; /* what follows it */
    size_t retired;    /* room for QCOW2_SMALL_EXT_BYTES, or 0 */
    size_t names;      /* the feature name table, or 0 */
    uint32_t names_bytes;
} HeaderArea;

/* Reads it and looks for an extension; end it with header_area_done(), also after a failure. */
int header_area_read(Qcow2 *q, uint32_t type, HeaderArea *area) MUST_CHECK;
void header_area_done(HeaderArea *area);
/* Without an end of its own the chain ends where something else begins, and cannot become longer. */
bool header_area_has_end(const HeaderArea *area);
