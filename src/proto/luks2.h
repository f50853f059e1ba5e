/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The binary header of LUKS version 2 as pure functions over bytes. Source: "LUKS2 On-Disk Format
 * Specification", 1.1.x, "Binary Header". A volume has two copies of it, each with its JSON area behind; what
 * that area says is in crypto/luks2.h. All numbers are big-endian on disk.
 */
#pragma once

#include "base/error.h"

#define LUKS2_BINARY_BYTES 4096u
/* Of a copy, JSON area included: a power of two in these bounds. The second copy lies behind the first. */
#define LUKS2_COPY_BYTES_MIN (16 * KIB)
#define LUKS2_COPY_BYTES_MAX (4 * MIB)
#define LUKS2_CHECKSUM_BYTES 64u
#define LUKS2_HASH_NAME_BYTES 32u
#define LUKS2_UUID_BYTES 40u

typedef struct Luks2Binary {
    uint64_t copy_bytes;
    uint64_t sequence; /* the copy with the larger number is the newer one */
    char checksum_hash[LUKS2_HASH_NAME_BYTES];
    uint8_t checksum[LUKS2_CHECKSUM_BYTES];
    char uuid[LUKS2_UUID_BYTES + 1];
} Luks2Binary;

/* offset: where in the volume the copy was found, 0 for the first one. The checksum remains to be compared.
 */
int luks2_binary_decode(const uint8_t data[static LUKS2_BINARY_BYTES], uint64_t offset,
    Luks2Binary *ret_binary, Error *err) MUST_CHECK;
/* The checksum is that of the whole copy while this field of the binary header is zeroes. */
void luks2_binary_set_checksum(
    uint8_t data[static LUKS2_BINARY_BYTES], const uint8_t *checksum, size_t bytes);
