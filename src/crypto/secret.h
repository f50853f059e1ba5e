/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Secrets: passwords and keys that users name by the id of a `secret` object. The bytes lie in memory that is
 * not swapped or dumped, and are wiped when the object goes.
 */
#pragma once

#include "base/error.h"

/* A private copy of the secret's bytes, with a NUL behind them that ret_bytes does not count; end it with
 * secret_free(). */
int secret_lookup(const char *id, uint8_t **ret_data, size_t *ret_bytes, Error *err) MUST_CHECK;
/* Wipes and frees what secret_lookup() gave; NULL is fine. */
void secret_free(uint8_t *data, size_t bytes);

/* ---- For other kinds of secrets, and for tests ---- */

/* Zeroed memory of the kind described above, or NULL. One more byte than asked is there. Free with
 * secret_free(). */
uint8_t *secret_alloc(size_t bytes) MUST_CHECK;

/* Secret in such memory; data may be NULL. */
typedef struct Secret {
    uint8_t *data;
    size_t bytes;
} Secret;

static inline Secret secret_new(size_t bytes)
{
    return (Secret){.data = secret_alloc(bytes), .bytes = bytes};
}

static inline void secret_done(Secret *s)
{
    secret_free(s->data, s->bytes);
    *s = (Secret){0};
}
#define AUTO_SECRET CLEANUP(secret_done)

/* Base64 (RFC 4648, line feeds ignored) to bytes in such memory. */
int secret_from_base64(
    const char *text, size_t length, uint8_t **ret_data, size_t *ret_bytes, Error *err) MUST_CHECK;
/* AES-256-CBC with PKCS #7 padding. key: 32 bytes, iv: 16 bytes. */
int secret_decrypt(const uint8_t *key, const uint8_t *iv, const uint8_t *data, size_t bytes,
    uint8_t **ret_data, size_t *ret_bytes, Error *err) MUST_CHECK;
