/* SPDX-License-Identifier: Apache-2.0 */
/*
 * LUKS version 2 volumes: opening, with what cryptsetup makes. Source: "LUKS2 On-Disk Format Specification",
 * 1.1.x. Such a volume has two copies of its metadata; the newest one whose checksum is right is used. Tokens
 * are ignored. Nothing here writes to the header.
 *
 * A key slot that this program cannot open is no reason to refuse the volume: others may do.
 *
 * All functions that take a LuksIo are called from a coroutine of a loop: they wait, and leave what takes
 * long to worker threads.
 */
#pragma once

#include "crypto/hash.h"
#include "crypto/luks.h"
#include "proto/luks2.h"
#include "schema/json.h"

#define LUKS2_SLOTS 32u
#define LUKS2_SALT_BYTES_MAX 64u
#define LUKS2_PROBLEM_BYTES 192u

typedef enum LuksKdf {
    LUKS_KDF_PBKDF2,
    LUKS_KDF_ARGON2I,
    LUKS_KDF_ARGON2ID,
} LuksKdf;

typedef struct LuksSalt {
    uint8_t data[LUKS2_SALT_BYTES_MAX];
    size_t bytes;
} LuksSalt;

/* "Keyslots Object", type luks2; the area is of type raw, the anti-forensic splitter luks1. */
typedef struct Luks2Slot {
    bool active;                       /* has the volume key */
    char problem[LUKS2_PROBLEM_BYTES]; /* why the slot cannot be opened here; empty: it can */
    bool preferred, avoided;           /* its priority; an avoided slot is not tried */
    LuksKdf kdf;
    QCryptoHashAlgo kdf_hash; /* for PBKDF2 */
    uint32_t iterations;      /* for Argon2: passes over the memory */
    uint32_t memory_kib, lanes;
    LuksSalt salt;
    CipherSpec area_spec;
    uint32_t key_bytes;
    uint64_t area_offset; /* from the beginning of the header */
    QCryptoHashAlgo af_hash;
} Luks2Slot;

/* "Digests Object", type pbkdf2. */
typedef struct Luks2Digest {
    QCryptoHashAlgo hash;
    uint32_t iterations;
    LuksSalt salt;
    uint8_t value[HASH_BYTES_MAX];
} Luks2Digest;

typedef struct Luks2 {
    char uuid[LUKS2_UUID_BYTES + 1];
    bool detached;
    /* "Segments Object": the only one, of type crypt. */
    CipherSpec spec;
    uint32_t key_bytes;
    uint32_t sector_bytes;
    uint64_t payload;       /* where the data begins */
    uint64_t payload_bytes; /* 0: up to the end of the file */
    Luks2Digest digest;
    Luks2Slot slots[LUKS2_SLOTS];
} Luks2;

/*
 * 0: *ret_luks is what the volume says, and this program can do it. 1: there is no volume of version 2. The
 * first copy may be damaged beyond recognition; the second one is then looked for where it can be.
 */
int luks2_read(const LuksIo *io, bool detached, Luks2 *ret_luks, Error *err) MUST_CHECK;
/* Tries the secret with the id on the key slots, preferred ones first. *ret_key has luks->key_bytes bytes;
 * secret_free() it. */
int luks2_unlock(
    const Luks2 *luks, const LuksIo *io, const char *secret_id, uint8_t **ret_key, Error *err) MUST_CHECK;
/* In the terms of version 1, which are all that users of the protocol know. */
QCryptoBlockInfoLUKS *luks2_info(const Luks2 *luks);

/* ---- Between the files about LUKS2 ---- */

/* "JSON Area": fills what it says into *luks, of which uuid and detached are set. */
int luks2_decode(const JsonValue *json, uint64_t copy_bytes, Luks2 *luks, Error *err) MUST_CHECK;
/* Of the key material of a slot, in whole sectors. */
uint64_t luks2_material_bytes(const Luks2Slot *slot);
