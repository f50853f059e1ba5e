/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hashes, random bytes, and what encrypted images make of them: PBKDF2 (RFC 8018, 5.2) and the anti-forensic
 * splitter (LUKS On-Disk Format Specification 1.2.3, "AF-Splitter"). Pure functions, from any thread.
 */
#pragma once

#include "base/error.h"
#include "generated/types.h"

#define HASH_BYTES_MAX 64u

/* Of a digest; 0 if the hash cannot be used here. */
size_t hash_bytes(QCryptoHashAlgo hash);
/* The hash that has the name, as LUKS headers and options spell it, and can be used here. False: none. */
bool hash_find(const char *name, QCryptoHashAlgo *ret_hash) MUST_CHECK;
void hash_digest(QCryptoHashAlgo hash, const void *data, size_t bytes, uint8_t *out);

typedef struct Pbkdf2 {
    QCryptoHashAlgo hash;
    const uint8_t *password;
    size_t password_bytes;
    const uint8_t *salt;
    size_t salt_bytes;
    uint32_t iterations; /* at least 1 */
} Pbkdf2;

void pbkdf2_derive(const Pbkdf2 *job, uint8_t *out, size_t bytes);
/* How many iterations of a derivation of `bytes` bytes take time_ms on this thread; takes a while itself. */
uint64_t pbkdf2_measure(QCryptoHashAlgo hash, size_t bytes, uint64_t time_ms);

/* Spreads a key over `stripes` times its bytes, of which each is needed to get it back. */
int af_split(
    QCryptoHashAlgo hash, const uint8_t *key, size_t key_bytes, uint32_t stripes, uint8_t *out) MUST_CHECK;
void af_merge(
    QCryptoHashAlgo hash, const uint8_t *material, size_t key_bytes, uint32_t stripes, uint8_t *ret_key);

/* Of the kernel's generator, fit for keys. */
int random_bytes(void *out, size_t bytes) MUST_CHECK;
