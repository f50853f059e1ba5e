/* SPDX-License-Identifier: Apache-2.0 */
/* What the kinds of secret objects share. */
#pragma once

#include "crypto/secret.h"
#include "generated/types.h"
#include "schema/object.h"

/* The state of each kind begins with it. */
typedef struct SecretObject {
    Secret secret;
    char *keyid, *iv; /* as given, or NULL */
    QCryptoSecretFormat format;
} SecretObject;

extern const ObjectKind object_kind_secret, object_kind_secret_keyring;

/* Fills the zeroed state of a new object with what the bytes mean: takes them in any case. */
int secret_object_init(
    SecretObject *s, const SecretCommonProperties *options, Secret *take_bytes, Error *err) MUST_CHECK;
void secret_object_done(SecretObject *s);

/* Properties of every kind, for the lists of the kinds. */
int secret_get_text(Object *object, const ObjectProperty *property, JsonValue **ret_value, Error *err);
int secret_get_format(Object *object, const ObjectProperty *property, JsonValue **ret_value, Error *err);
extern const size_t secret_iv_offset, secret_keyid_offset;
#define SECRET_COMMON_PROPERTIES                                                                   \
    {.name = "iv", .type = "string", .get = secret_get_text, .data = &secret_iv_offset},           \
        {.name = "keyid", .type = "string", .get = secret_get_text, .data = &secret_keyid_offset}, \
    {                                                                                              \
        .name = "format", .type = "QCryptoSecretFormat", .get = secret_get_format                  \
    }
