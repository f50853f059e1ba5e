/* SPDX-License-Identifier: Apache-2.0 */
/*
 * En- and decryption of requests, from a coroutine: small ones at once, large ones in parts on the loop's
 * worker threads, which the coroutine waits for. As sector_cipher_encrypt_slice() and
 * sector_cipher_decrypt_slice().
 */
#pragma once

#include "crypto/cipher.h"

void parallel_encrypt(const SectorCipher *cipher, uint64_t number, uint8_t *dst, IoSlice src);
void parallel_decrypt(const SectorCipher *cipher, uint64_t number, IoSlice data);
