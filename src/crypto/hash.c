/* SPDX-License-Identifier: Apache-2.0 */
#include "crypto/hash.h"

#include "base/endian.h"
#include "crypto/secret.h"

#include <assert.h>
#include <nettle/hmac.h>
#include <nettle/md5.h>
#include <nettle/nettle-meta.h>
#include <nettle/pbkdf2.h>
#include <nettle/ripemd160.h>
#include <nettle/sha1.h>
#include <nettle/sha2.h>
#include <nettle/sm3.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* What getentropy() gives at once. */
#define ENTROPY_BYTES 256u
/* The first guess of a measurement, and how long one must last to be trusted. */
#define MEASURE_ITERATIONS 4096u
#define MEASURE_NS 50000000u

typedef union HashState {
    struct md5_ctx md5;
    struct ripemd160_ctx ripemd160;
    struct sha1_ctx sha1;
    struct sha256_ctx sha256;
    struct sha512_ctx sha512;
    struct sm3_ctx sm3;
} HashState;

typedef struct Hmac {
    const struct nettle_hash *hash;
    HashState outer, inner, state;
} Hmac;

static const struct nettle_hash *const hashes[QCRYPTO_HASH_ALGO__MAX] = {
    [QCRYPTO_HASH_ALGO_MD5] = &nettle_md5,
    [QCRYPTO_HASH_ALGO_SHA1] = &nettle_sha1,
    [QCRYPTO_HASH_ALGO_SHA224] = &nettle_sha224,
    [QCRYPTO_HASH_ALGO_SHA256] = &nettle_sha256,
    [QCRYPTO_HASH_ALGO_SHA384] = &nettle_sha384,
    [QCRYPTO_HASH_ALGO_SHA512] = &nettle_sha512,
    [QCRYPTO_HASH_ALGO_RIPEMD160] = &nettle_ripemd160,
    [QCRYPTO_HASH_ALGO_SM3] = &nettle_sm3,
};

/* ---- Hashes ---- */

size_t hash_bytes(QCryptoHashAlgo hash)
{
    return hashes[hash]->digest_size;
}

bool hash_find(const char *name, QCryptoHashAlgo *ret_hash)
{
    for (unsigned i = 0; i < ARRAY_SIZE(hashes); i++) {
        if (strcmp(name, qcrypto_hash_algo_name(i)) == 0) {
            *ret_hash = i;
            return true;
        }
    }
    return false;
}

void hash_digest(QCryptoHashAlgo hash, const void *data, size_t bytes, uint8_t *out)
{
    const struct nettle_hash *h = hashes[hash];
    HashState state;

    h->init(&state);
    h->update(&state, bytes, data);
    h->digest(&state, h->digest_size, out);
    explicit_bzero(&state, sizeof(state));
}

/* ---- PBKDF2 ---- */

static void mac_update(void *ctx, size_t bytes, const uint8_t *data)
{
    Hmac *mac = ctx;

    hmac_update(&mac->state, mac->hash, bytes, data);
}

static void mac_digest(void *ctx, size_t bytes, uint8_t *out)
{
    Hmac *mac = ctx;

    hmac_digest(&mac->outer, &mac->inner, &mac->state, mac->hash, bytes, out);
}

void pbkdf2_derive(const Pbkdf2 *job, uint8_t *out, size_t bytes)
{
    Hmac mac = {.hash = hashes[job->hash]};

    assert(job->iterations);
    hmac_set_key(&mac.outer, &mac.inner, &mac.state, mac.hash, job->password_bytes, job->password);
    pbkdf2(&mac, mac_update, mac_digest, mac.hash->digest_size, job->iterations, job->salt_bytes, job->salt,
        bytes, out);
    explicit_bzero(&mac, sizeof(mac));
}

static uint64_t thread_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t pbkdf2_measure(QCryptoHashAlgo hash, size_t bytes, uint64_t time_ms)
{
    static const uint8_t text[32];
    uint8_t out[HASH_BYTES_MAX * 2];
    Pbkdf2 job = {hash, text, sizeof(text), text, sizeof(text), MEASURE_ITERATIONS};

    assert(bytes <= sizeof(out));
    for (;;) {
        uint64_t begin = thread_ns(), taken;

        pbkdf2_derive(&job, out, bytes);
        taken = thread_ns() - begin;
        if (taken >= MEASURE_NS || job.iterations > UINT32_MAX / 2)
            return (uint64_t)((long double)job.iterations * 1000000 * time_ms / MAX(taken, (uint64_t)1));
        job.iterations *= 2;
    }
}

/* ---- Anti-forensic splitter ---- */

/* Each digest's worth of the block is replaced by the hash of its number and itself; the last may be shorter.
 */
static void diffuse(QCryptoHashAlgo hash, uint8_t *block, size_t bytes)
{
    const struct nettle_hash *h = hashes[hash];
    HashState state;

    for (uint32_t i = 0; (size_t)i * h->digest_size < bytes; i++) {
        uint8_t *piece = block + (size_t)i * h->digest_size;
        size_t length = MIN((size_t)h->digest_size, bytes - (size_t)i * h->digest_size);
        uint8_t number[4];

        put_be32(number, i);
        h->init(&state);
        h->update(&state, sizeof(number), number);
        h->update(&state, length, piece);
        h->digest(&state, length, piece);
    }
    explicit_bzero(&state, sizeof(state));
}

static void add(uint8_t *to, const uint8_t *from, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        to[i] ^= from[i];
}

int af_split(QCryptoHashAlgo hash, const uint8_t *key, size_t key_bytes, uint32_t stripes, uint8_t *out)
{
    uint8_t *block = secret_alloc(key_bytes), *last = out + (size_t)(stripes - 1) * key_bytes;
    int r = block ? random_bytes(out, (size_t)(stripes - 1) * key_bytes) : -ENOMEM;

    for (uint32_t i = 0; r == 0 && i + 1 < stripes; i++) {
        add(block, out + (size_t)i * key_bytes, key_bytes);
        diffuse(hash, block, key_bytes);
    }
    if (r == 0) {
        memcpy(last, key, key_bytes);
        add(last, block, key_bytes);
    }
    secret_free(block, key_bytes);
    return r;
}

void af_merge(
    QCryptoHashAlgo hash, const uint8_t *material, size_t key_bytes, uint32_t stripes, uint8_t *ret_key)
{
    memset(ret_key, 0, key_bytes);
    for (uint32_t i = 0; i < stripes; i++) {
        add(ret_key, material + (size_t)i * key_bytes, key_bytes);
        if (i + 1 < stripes)
            diffuse(hash, ret_key, key_bytes);
    }
}

/* ---- Random ---- */

int random_bytes(void *out, size_t bytes)
{
    for (size_t done = 0; done < bytes; done += ENTROPY_BYTES)
        if (getentropy((uint8_t *)out + done, MIN((size_t)ENTROPY_BYTES, bytes - done)) < 0)
            return -errno;
    return 0;
}
