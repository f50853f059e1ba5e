/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sector ciphers: what disk encryption does to each sector by itself, with an initialisation vector made of
 * the sector's number. The names are dm-crypt's and LUKS's.
 *
 * A SectorCipher is constant once made: any number of threads may use one at once. Its keys lie in memory
 * that is not swapped or dumped. Nothing is allocated per call.
 */
#pragma once

#include "base/error.h"
#include "base/io-slice.h"
#include "generated/types.h"

/* Initialisation vectors count in these, whatever the size of the encrypted sectors. */
#define CIPHER_IV_SECTOR_BYTES 512u
#define CIPHER_SECTOR_BYTES_MAX 4096u
#define CIPHER_KEY_BYTES_MAX 64u

typedef struct CipherSpec {
    QCryptoCipherAlgo algorithm;
    QCryptoCipherMode mode;
    QCryptoIVGenAlgo ivgen;     /* ECB needs none */
    QCryptoHashAlgo ivgen_hash; /* for ESSIV */
} CipherSpec;

typedef struct SectorCipher SectorCipher;

/* False: the library has no such cipher. */
bool cipher_supported(QCryptoCipherAlgo algorithm);
/* Of the key that a specification takes: twice the cipher's in XTS mode; 0 for a cipher that is not
 * supported. */
size_t cipher_key_bytes(const CipherSpec *spec);
/* LUKS's name of a cipher ("aes"), and the cipher that has the name and a key of so many bytes (of one half
 * in XTS mode). False: there is none. */
const char *cipher_family(QCryptoCipherAlgo algorithm);
bool cipher_find(const char *family, size_t key_bytes, QCryptoCipherAlgo *ret_algorithm) MUST_CHECK;

/* Fails when the parts do not go together, or the library has them not. */
int cipher_check(const CipherSpec *spec, Error *err) MUST_CHECK;
/* As cipher_check(). key: cipher_key_bytes(spec) bytes. sector_bytes: 512 to 4096. */
int sector_cipher_new(const CipherSpec *spec, const uint8_t *key, uint32_t sector_bytes,
    SectorCipher **ret_cipher, Error *err) MUST_CHECK;
/* Wipes the keys. NULL is fine. */
void sector_cipher_free(SectorCipher *cipher);

/* So much takes as long as handing it to another thread does, about: it is not worth splitting. */
size_t sector_cipher_piece(const SectorCipher *cipher);

/* Whole sectors; number counts in CIPHER_IV_SECTOR_BYTES. dst and src are the same place or do not overlap.
 */
void sector_cipher_encrypt(
    const SectorCipher *cipher, uint64_t number, uint8_t *dst, const uint8_t *src, size_t bytes);
void sector_cipher_decrypt(
    const SectorCipher *cipher, uint64_t number, uint8_t *dst, const uint8_t *src, size_t bytes);
/* The same for scattered bytes: from src to the plain buffer dst, and in place. Segments may have any length.
 */
void sector_cipher_encrypt_slice(const SectorCipher *cipher, uint64_t number, uint8_t *dst, IoSlice src);
void sector_cipher_decrypt_slice(const SectorCipher *cipher, uint64_t number, IoSlice data);
