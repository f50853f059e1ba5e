/* SPDX-License-Identifier: Apache-2.0 */
#include "crypto/luks-priv.h"

#include "base/limits.h"
#include "base/mem.h"
#include "crypto/hash.h"
#include "crypto/secret.h"
#include "loop/loop.h"

#include <inttypes.h>
#include <nettle/memops.h>
#include <stdio.h>
#include <string.h>

/* The LUKS specification's least count of iterations. The volume key is checked once for eight slots. */
#define MIN_ITERATIONS 1000u

/* ---- Names ---- */

static int find_mode(const char *name, CipherSpec *spec, Error *err)
{
    for (unsigned i = 0; i < QCRYPTO_CIPHER_MODE__MAX; i++) {
        if (strcmp(name, qcrypto_cipher_mode_name(i)) == 0) {
            spec->mode = i;
            return 0;
        }
    }
    return err_set(err, -EINVAL, "Cipher mode '%s' not supported", name);
}

static int find_hash(const char *name, QCryptoHashAlgo *hash, Error *err)
{
    return hash_find(name, hash) ? 0 : err_set(err, -ENOTSUP, "Hash algorithm '%s' not supported", name);
}

static int find_ivgen(const char *name, const char *hash, CipherSpec *spec, Error *err)
{
    for (unsigned i = 0; i < QCRYPTO_IV_GEN_ALGO__MAX; i++) {
        if (strcmp(name, qcrypto_iv_gen_algo_name(i)) != 0)
            continue;
        spec->ivgen = i;
        if (i != QCRYPTO_IV_GEN_ALGO_ESSIV)
            return 0;
        return hash ? find_hash(hash, &spec->ivgen_hash, err)
                    : err_set(err, -EINVAL, "Missing IV generator hash specification");
    }
    return err_set(err, -ENOTSUP, "IV generator '%s' not supported", name);
}

int luks_find_cipher(const char *family, const char *mode, size_t key_bytes, CipherSpec *ret_spec, Error *err)
{
    char text[LUKS_NAME_BYTES], *ivgen, *hash;
    CipherSpec spec = {0};
    int r;

    snprintf(text, sizeof(text), "%s", mode);
    ivgen = strchr(text, '-');
    if (!ivgen)
        return err_set(err, -EINVAL, "Unexpected cipher mode string format '%s'", text);
    *ivgen++ = '\0';
    hash = strchr(ivgen, ':');
    if (hash)
        *hash++ = '\0';
    r = find_mode(text, &spec, err);
    if (r == 0)
        r = find_ivgen(ivgen, hash, &spec, err);
    if (r < 0)
        return r;
    if (spec.mode == QCRYPTO_CIPHER_MODE_XTS)
        key_bytes /= 2;
    if (!cipher_find(family, key_bytes, &spec.algorithm))
        return err_set(
            err, -ENOTSUP, "Algorithm '%s' with key size %zu bytes not supported", family, key_bytes);
    r = cipher_check(&spec, err);
    if (r == 0)
        *ret_spec = spec;
    return r;
}

/* ---- Reading ---- */

int luks_read(const LuksIo *io, bool detached, Luks *ret_luks, Error *err)
{
    uint8_t bytes[LUKS_HEADER_BYTES];
    Luks luks = {.detached = detached};
    LuksHeader *h = &luks.header;
    int r = io->read(io->opaque, 0, bytes, sizeof(bytes));

    if (r < 0)
        return err_set_errno(err, r, "Unable to read LUKS header");
    r = luks_header_decode(bytes, detached, h, err);
    if (r == 0)
        r = find_hash(h->hash, &luks.hash, err);
    if (r == 0)
        r = luks_find_cipher(h->cipher, h->mode, h->key_bytes, &luks.spec, err);
    if (r < 0)
        return r;
    if (h->key_bytes != cipher_key_bytes(&luks.spec)) /* half a byte too many for XTS */
        return err_set(err, -EINVAL, "Volume key of %" PRIu32 " bytes does not fit cipher '%s'", h->key_bytes,
            qcrypto_cipher_algo_name(luks.spec.algorithm));
    *ret_luks = luks;
    return 0;
}

/* ---- Work on key slots, in a worker ---- */

typedef struct SlotWork {
    const Luks *luks;
    const LuksSlot *slot;
    const Secret *password;
    uint8_t *key, *material; /* of the volume, and as on disk */
    bool opened;
    Error *err;
} SlotWork;

/* The cipher that a slot's material is encrypted with: the volume's with the password's key. */
static int slot_cipher(const SlotWork *work, SectorCipher **ret_cipher)
{
    const Luks *luks = work->luks;
    AUTO_SECRET Secret key = secret_new(luks->header.key_bytes);
    Pbkdf2 job = {luks->hash, work->password->data, work->password->bytes, work->slot->salt, LUKS_SALT_BYTES,
        work->slot->iterations};

    if (!key.data)
        return err_set(work->err, -ENOMEM, "Out of memory");
    pbkdf2_derive(&job, key.data, key.bytes);
    return sector_cipher_new(&luks->spec, key.data, LUKS_SECTOR_BYTES, ret_cipher, work->err);
}

static void digest_key(const Luks *luks, const uint8_t *key, uint8_t *out)
{
    const LuksHeader *h = &luks->header;
    Pbkdf2 job = {luks->hash, key, h->key_bytes, h->digest_salt, LUKS_SALT_BYTES, h->digest_iterations};

    pbkdf2_derive(&job, out, LUKS_DIGEST_BYTES);
}

static int open_slot(void *arg)
{
    SlotWork *work = arg;
    const Luks *luks = work->luks;
    uint8_t digest[LUKS_DIGEST_BYTES];
    SectorCipher *cipher;
    int r = slot_cipher(work, &cipher);

    if (r < 0)
        return r;
    sector_cipher_decrypt(cipher, 0, work->material, work->material, luks_material_bytes(&luks->header));
    af_merge(luks->hash, work->material, luks->header.key_bytes, LUKS_STRIPES, work->key);
    digest_key(luks, work->key, digest);
    work->opened = memeql_sec(digest, luks->header.digest, sizeof(digest));
    sector_cipher_free(cipher);
    return 0;
}

static int fill_slot(void *arg)
{
    SlotWork *work = arg;
    const Luks *luks = work->luks;
    SectorCipher *cipher;
    int r = slot_cipher(work, &cipher);

    if (r < 0)
        return r;
    r = af_split(luks->hash, work->key, luks->header.key_bytes, LUKS_STRIPES, work->material);
    if (r < 0)
        err_set_errno(work->err, r, "No random bytes for a key slot");
    else
        sector_cipher_encrypt(cipher, 0, work->material, work->material, luks_material_bytes(&luks->header));
    sector_cipher_free(cipher);
    return r;
}

/* ---- Unlocking ---- */

int luks_password(const char *id, Secret *ret_password, Error *err)
{
    if (!id)
        return err_set(err, -EINVAL, "Parameter 'key-secret' is required for cipher");
    return secret_lookup(id, &ret_password->data, &ret_password->bytes, err);
}

/* 1: the password is this slot's, and key the volume's. */
static int try_slot(
    const Luks *luks, const LuksIo *io, unsigned index, const Secret *password, uint8_t *key, Error *err)
{
    const LuksSlot *slot = &luks->header.slots[index];
    AUTO_SECRET Secret material = secret_new(luks_material_bytes(&luks->header));
    SlotWork work = {luks, slot, password, key, material.data, false, err};
    int r;

    if (!slot->active)
        return 0;
    if (slot->iterations > LIMIT_LUKS_ITERATIONS || luks->header.digest_iterations > LIMIT_LUKS_ITERATIONS)
        return err_set(err, -EFBIG, "Keyslot %u would take too long: more than %u iterations", index,
            LIMIT_LUKS_ITERATIONS);
    if (!material.data)
        return err_set(err, -ENOMEM, "Out of memory");
    r = io->read(io->opaque, (uint64_t)slot->sector * LUKS_SECTOR_BYTES, material.data, material.bytes);
    if (r < 0)
        return err_set_errno(err, r, "Failed to read key material of keyslot %u", index);
    r = loop_work(open_slot, &work);
    return r < 0 ? r : work.opened;
}

int luks_unlock(const Luks *luks, const LuksIo *io, const char *secret_id, uint8_t **ret_key, Error *err)
{
    AUTO_SECRET Secret password = {0}, key = secret_new(luks->header.key_bytes);
    int r = key.data ? luks_password(secret_id, &password, err) : err_set(err, -ENOMEM, "Out of memory");

    for (unsigned i = 0; r == 0 && i < LUKS_SLOTS; i++)
        r = try_slot(luks, io, i, &password, key.data, err);
    if (r == 0)
        return err_set(err, -EPERM, "Invalid password, cannot unlock any keyslot");
    if (r < 0)
        return r;
    *ret_key = TAKE(key.data);
    return 0;
}

int luks_slot_opens(const Luks *luks, const LuksIo *io, unsigned slot, const char *secret_id, Error *err)
{
    AUTO_SECRET Secret password = {0}, key = secret_new(luks->header.key_bytes);
    int r = key.data ? luks_password(secret_id, &password, err) : err_set(err, -ENOMEM, "Out of memory");

    return r < 0 ? r : try_slot(luks, io, slot, &password, key.data, err);
}

/* ---- Making ---- */

static void new_uuid(const uint8_t *random, char *out)
{
    static const uint8_t dashes[] = {8, 13, 18, 23};
    unsigned dash = 0, at = 0;

    for (unsigned i = 0; i < 16; i++) {
        /* RFC 9562, version 4 */
        unsigned byte = i == 6   ? (random[i] & 0x0fu) | 0x40u
                        : i == 8 ? (random[i] & 0x3fu) | 0x80u
                                 : random[i];

        if (dash < sizeof(dashes) && at == dashes[dash]) {
            out[at++] = '-';
            dash++;
        }
        at += (unsigned)sprintf(out + at, "%02x", byte);
    }
}

static int set_names(const QCryptoBlockCreateOptionsLUKS *o, Luks *luks, Error *err)
{
    CipherSpec *spec = &luks->spec;
    LuksHeader *h = &luks->header;
    int r;

    spec->algorithm = o->has_cipher_alg ? o->cipher_alg : QCRYPTO_CIPHER_ALGO_AES_256;
    spec->mode = o->has_cipher_mode ? o->cipher_mode : QCRYPTO_CIPHER_MODE_XTS;
    spec->ivgen = o->has_ivgen_alg ? o->ivgen_alg : QCRYPTO_IV_GEN_ALGO_PLAIN64;
    spec->ivgen_hash = o->has_ivgen_hash_alg ? o->ivgen_hash_alg : QCRYPTO_HASH_ALGO_SHA256;
    luks->hash = o->has_hash_alg ? o->hash_alg : QCRYPTO_HASH_ALGO_SHA256;
    r = cipher_check(spec, err);
    if (r < 0)
        return r;
    h->key_bytes = (uint32_t)cipher_key_bytes(spec);
    snprintf(h->cipher, sizeof(h->cipher), "%s", cipher_family(spec->algorithm));
    snprintf(h->mode, sizeof(h->mode), "%s-%s%s%s", qcrypto_cipher_mode_name(spec->mode),
        qcrypto_iv_gen_algo_name(spec->ivgen), spec->ivgen == QCRYPTO_IV_GEN_ALGO_ESSIV ? ":" : "",
        spec->ivgen == QCRYPTO_IV_GEN_ALGO_ESSIV ? qcrypto_hash_algo_name(spec->ivgen_hash) : "");
    snprintf(h->hash, sizeof(h->hash), "%s", qcrypto_hash_algo_name(luks->hash));
    return 0;
}

typedef struct Measure {
    QCryptoHashAlgo hash;
    size_t bytes;
    uint64_t time_ms;
    uint32_t iterations;
} Measure;

static int measure(void *arg)
{
    Measure *m = arg;
    uint64_t iterations = pbkdf2_measure(m->hash, m->bytes, m->time_ms);

    m->iterations = (uint32_t)MIN(MAX(iterations, (uint64_t)MIN_ITERATIONS), (uint64_t)LIMIT_LUKS_ITERATIONS);
    return 0;
}

int luks_iter_time(int64_t iter_time, uint64_t *ret_ms, Error *err)
{
    if (iter_time < 0 || iter_time > LIMIT_LUKS_ITER_TIME_MS)
        return err_set(
            err, -ERANGE, "Value '%" PRId64 "' is out of range for parameter 'iter-time'", iter_time);
    *ret_ms = (uint64_t)iter_time;
    return 0;
}

static int new_key(const Luks *luks, Secret *ret_key, uint8_t *salt, char *uuid, Error *err)
{
    AUTO_SECRET Secret key = secret_new(luks->header.key_bytes);
    uint8_t random[16];
    int r = key.data ? random_bytes(key.data, key.bytes) : -ENOMEM;

    if (r == 0)
        r = random_bytes(salt, LUKS_SALT_BYTES);
    if (r == 0)
        r = random_bytes(random, sizeof(random));
    if (r < 0)
        return err_set_errno(err, r, "Cannot make a volume key");
    new_uuid(random, uuid);
    *ret_key = (Secret){.data = TAKE(key.data), .bytes = key.bytes};
    return 0;
}

typedef struct DigestWork {
    const Luks *luks;
    const uint8_t *key;
    uint8_t *digest;
} DigestWork;

static int digest_work(void *arg)
{
    const DigestWork *work = arg;

    digest_key(work->luks, work->key, work->digest);
    return 0;
}

int luks_new(const QCryptoBlockCreateOptionsLUKS *options, bool detached, Luks *ret_luks, uint8_t **ret_key,
    Error *err)
{
    Luks luks = {.detached = detached};
    LuksHeader *h = &luks.header;
    AUTO_SECRET Secret key = {0}, password = {0};
    Measure m = {.bytes = LUKS_DIGEST_BYTES};
    DigestWork work;
    int r = luks_password(options->key_secret, &password, err);

    if (r == 0)
        r = luks_iter_time(options->has_iter_time ? options->iter_time : LUKS_ITER_TIME_MS, &m.time_ms, err);
    if (r == 0)
        r = set_names(options, &luks, err);
    if (r == 0)
        r = new_key(&luks, &key, h->digest_salt, h->uuid, err);
    if (r < 0)
        return r;
    m.hash = luks.hash;
    m.time_ms /= LUKS_SLOTS;
    loop_work(measure, &m);
    h->digest_iterations = m.iterations;
    luks_header_place(h, detached);
    work = (DigestWork){&luks, key.data, h->digest};
    loop_work(digest_work, &work);
    *ret_luks = luks;
    *ret_key = TAKE(key.data);
    return 0;
}

uint64_t luks_head_bytes(const Luks *luks)
{
    LuksHeader placed = luks->header;

    return luks_header_place(&placed, luks->detached);
}

static int write_header(const Luks *luks, const LuksIo *io, Error *err)
{
    uint8_t bytes[LUKS_HEADER_BYTES];
    int r;

    luks_header_encode(&luks->header, bytes);
    r = io->write(io->opaque, 0, bytes, sizeof(bytes));
    return r < 0 ? err_set_errno(err, r, "Unable to write LUKS header") : 0;
}

int luks_slot_set(Luks *luks, const LuksIo *io, unsigned slot, const uint8_t *key, const char *secret_id,
    uint64_t iter_time_ms, Error *err)
{
    AUTO_SECRET Secret password = {0}, material = secret_new(luks_material_bytes(&luks->header));
    LuksSlot filled = luks->header.slots[slot];
    SlotWork work = {luks, &filled, &password, (uint8_t *)key, material.data, false, err};
    Measure m = {luks->hash, luks->header.key_bytes, iter_time_ms, 0};
    int r = luks_password(secret_id, &password, err);

    if (r < 0)
        return r;
    if (!material.data || random_bytes(filled.salt, sizeof(filled.salt)) < 0)
        return err_set(err, -ENOMEM, "Out of memory");
    loop_work(measure, &m);
    filled.iterations = m.iterations;
    filled.active = true;
    r = loop_work(fill_slot, &work);
    if (r < 0)
        return r;
    r = io->write(io->opaque, (uint64_t)filled.sector * LUKS_SECTOR_BYTES, material.data, material.bytes);
    if (r < 0)
        return err_set_errno(err, r, "Unable to write key material of keyslot %u", slot);
    luks->header.slots[slot] = filled;
    return write_header(luks, io, err);
}

int luks_slot_erase(Luks *luks, const LuksIo *io, unsigned slot, Error *err)
{
    AUTO_SECRET Secret noise = secret_new(luks_material_bytes(&luks->header));
    LuksSlot *s = &luks->header.slots[slot];
    int r;

    if (!noise.data || random_bytes(noise.data, noise.bytes) < 0)
        return err_set(err, -ENOMEM, "Out of memory");
    s->active = false;
    s->iterations = 0;
    memset(s->salt, 0, sizeof(s->salt));
    r = write_header(luks, io, err);
    if (r < 0)
        return r;
    r = io->write(io->opaque, (uint64_t)s->sector * LUKS_SECTOR_BYTES, noise.data, noise.bytes);
    return r < 0 ? err_set_errno(err, r, "Unable to erase the key material of keyslot %u", slot) : 0;
}

/* ---- Information ---- */

QCryptoBlockInfoLUKS *luks_info(const Luks *luks)
{
    const LuksHeader *h = &luks->header;
    QCryptoBlockInfoLUKS *info = mem_new(QCryptoBlockInfoLUKS);

    info->cipher_alg = luks->spec.algorithm;
    info->cipher_mode = luks->spec.mode;
    info->ivgen_alg = luks->spec.ivgen;
    info->has_ivgen_hash_alg = luks->spec.ivgen == QCRYPTO_IV_GEN_ALGO_ESSIV;
    info->ivgen_hash_alg = luks->spec.ivgen_hash;
    info->hash_alg = luks->hash;
    info->detached_header = luks->detached;
    info->payload_offset = (int64_t)h->payload_sector * LUKS_SECTOR_BYTES;
    info->master_key_iters = h->digest_iterations;
    info->uuid = str_dup(h->uuid);
    info->slots.items = mem_zalloc(LUKS_SLOTS * sizeof(*info->slots.items));
    info->slots.count = LUKS_SLOTS;
    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        QCryptoBlockInfoLUKSSlot *slot = mem_new(QCryptoBlockInfoLUKSSlot);

        slot->active = slot->has_iters = slot->has_stripes = h->slots[i].active;
        slot->iters = h->slots[i].iterations;
        slot->stripes = h->slots[i].stripes;
        slot->key_offset = (int64_t)h->slots[i].sector * LUKS_SECTOR_BYTES;
        info->slots.items[i] = slot;
    }
    return info;
}
