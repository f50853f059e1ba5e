/* SPDX-License-Identifier: Apache-2.0 */
/*
 * LUKS version 1 volumes: the meaning of a header (proto/luks.h), its key slots and the volume key. Where
 * header and key material lie is the caller's business: a file of their own, the head of the volume, clusters
 * of an image. Version 2 is in crypto/luks2.h.
 *
 * All functions that take a LuksIo are called from a coroutine of a loop: they wait, and leave what takes
 * long to worker threads.
 */
#pragma once

#include "crypto/cipher.h"
#include "loop/loop.h"
#include "proto/luks.h"

/* Offsets count from the beginning of the header. Bytes that do not exist read as zeroes. */
typedef struct LuksIo {
    int (*read)(void *opaque, uint64_t offset, void *data, size_t bytes);
    int (*write)(void *opaque, uint64_t offset, const void *data, size_t bytes);
    void *opaque;
} LuksIo;

typedef struct Luks {
    LuksHeader header;
    CipherSpec spec;
    QCryptoHashAlgo hash;
    bool detached;
} Luks;

/* The cipher that names mean: "aes", "xts-plain64", with a key of so many bytes. */
int luks_find_cipher(
    const char *family, const char *mode, size_t key_bytes, CipherSpec *ret_spec, Error *err) MUST_CHECK;
/* Reads the header and checks that this program can do what it says. */
int luks_read(const LuksIo *io, bool detached, Luks *ret_luks, Error *err) MUST_CHECK;
/* Tries the secret with the id on all key slots. *ret_key has luks->header.key_bytes bytes; secret_free() it.
 */
int luks_unlock(
    const Luks *luks, const LuksIo *io, const char *secret_id, uint8_t **ret_key, Error *err) MUST_CHECK;

/* A new header and volume key; nothing is written, and no slot has the key yet. */
int luks_new(const QCryptoBlockCreateOptionsLUKS *options, bool detached, Luks *ret_luks, uint8_t **ret_key,
    Error *err) MUST_CHECK;
/* Bytes in front of the payload: header and slots. */
uint64_t luks_head_bytes(const Luks *luks);
/* Puts the volume key into a slot under a secret: writes the key material, then the header. */
int luks_slot_set(Luks *luks, const LuksIo *io, unsigned slot, const uint8_t *key, const char *secret_id,
    uint64_t iter_time_ms, Error *err) MUST_CHECK;
/* What new slots take if nothing else was asked for. */
#define LUKS_ITER_TIME_MS 2000u

/* Adds or erases keys. The volume key comes from the options' secret, or key_secret. luks changes on the loop
 * home, where others look at it; also when it failed half way. One at a time. */
int luks_amend(Luks *luks, Loop *home, const LuksIo *io, const QCryptoBlockAmendOptionsLUKS *options,
    const char *key_secret, bool force, Error *err) MUST_CHECK;

QCryptoBlockInfoLUKS *luks_info(const Luks *luks);
