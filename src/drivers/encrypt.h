/* SPDX-License-Identifier: Apache-2.0 */
/* What drivers with encrypted data share. */
#pragma once

#include "block/node.h"
#include "crypto/cipher.h"

/* Writes to the edge at offset what src holds, encrypted; src stays as it is. number: of the initialisation
 * vector of the first sector. flags: as for edge_write(). From a coroutine; returns 0 or a negative errno. */
int encrypt_write(Edge *edge, uint64_t offset, const SectorCipher *cipher, uint64_t number, IoSlice src,
    unsigned flags) MUST_CHECK;
