/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The header of LUKS version 1 as pure functions over bytes. Source: "LUKS On-Disk Format
 * Specification", 1.2.3. What the names in it mean, and everything that needs a key, is in crypto/luks.h. All
 * numbers are big-endian on disk.
 */
#pragma once

#include "base/error.h"

#define LUKS_HEADER_BYTES 592u
#define LUKS_SECTOR_BYTES 512u
#define LUKS_SLOTS 8u
#define LUKS_STRIPES 4000u
#define LUKS_NAME_BYTES 32u
#define LUKS_UUID_BYTES 40u
#define LUKS_SALT_BYTES 32u
#define LUKS_DIGEST_BYTES 20u
/* Key material begins at multiples of this, in bytes; so does what this program writes behind it. */
#define LUKS_ALIGNMENT 4096u

typedef struct LuksSlot {
    bool active;
    uint32_t iterations;
    uint8_t salt[LUKS_SALT_BYTES];
    uint32_t sector; /* of the key material */
    uint32_t stripes;
} LuksSlot;

typedef struct LuksHeader {
    char cipher[LUKS_NAME_BYTES], mode[LUKS_NAME_BYTES], hash[LUKS_NAME_BYTES];
    uint32_t payload_sector; /* 0: the payload is elsewhere */
    uint32_t key_bytes;
    uint8_t digest[LUKS_DIGEST_BYTES], digest_salt[LUKS_SALT_BYTES];
    uint32_t digest_iterations;
    char uuid[LUKS_UUID_BYTES + 1];
    LuksSlot slots[LUKS_SLOTS];
} LuksHeader;

/* True when the bytes begin as LUKS of this version does. */
bool luks_is_version(const uint8_t *data, size_t bytes, unsigned version);
/*
 * Checks all that can be checked without knowing the names, with the texts that users of QEMU know: places
 * and sizes do not overlap. detached: the payload is in another file.
 */
int luks_header_decode(const uint8_t data[static LUKS_HEADER_BYTES], bool detached, LuksHeader *ret_header,
    Error *err) MUST_CHECK;
void luks_header_encode(const LuksHeader *header, uint8_t out[static LUKS_HEADER_BYTES]);

/* Of the key material of a slot: a key spread over all stripes, in whole sectors. */
uint64_t luks_material_bytes(const LuksHeader *header);
/* Places slots and payload as every program does; returns the bytes up to the payload's place. */
uint64_t luks_header_place(LuksHeader *header, bool detached);
