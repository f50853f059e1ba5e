/* SPDX-License-Identifier: Apache-2.0 */
/*
 * XTS is put together here from the library's block cipher: that works on many blocks at once with the
 * processor's AES instructions, ten times as fast as the library's own XTS function, which takes one block at
 * a time.
 */
#include "crypto/cipher.h"

#include "base/endian.h"
#include "base/mem.h"
#include "crypto/hash.h"
#include "crypto/secret.h"

#include <assert.h>
#include <nettle/cbc.h>
#include <nettle/ctr.h>
#include <nettle/nettle-meta.h>
#include <string.h>

#define BLOCK_BYTES 16u /* of all ciphers but CAST5; XTS is for these only */
/* Vectors of so many sectors are made at once; so much is encrypted at once in XTS mode. */
#define BATCH_SECTORS 8u
#define XTS_CHUNK_BYTES 512u
#define KEY_ALIGNMENT 64u
#define FAST_PIECE_BYTES (64 * KIB)
#define SLOW_PIECE_BYTES (8 * KIB)

struct SectorCipher {
    const struct nettle_cipher *cipher;
    const struct nettle_cipher *essiv; /* or NULL */
    QCryptoCipherMode mode;
    bool narrow; /* 32 bits of the sector's number */
    uint32_t sector_bytes;
    size_t bytes; /* of this allocation */
    void *encrypt_key, *decrypt_key, *tweak_key, *essiv_key;
};

typedef struct CipherName {
    const char *family;
    const struct nettle_cipher *cipher;
} CipherName;

static const CipherName ciphers[QCRYPTO_CIPHER_ALGO__MAX] = {
    [QCRYPTO_CIPHER_ALGO_AES_128] = {"aes", &nettle_aes128},
    [QCRYPTO_CIPHER_ALGO_AES_192] = {"aes", &nettle_aes192},
    [QCRYPTO_CIPHER_ALGO_AES_256] = {"aes", &nettle_aes256},
    [QCRYPTO_CIPHER_ALGO_CAST5_128] = {"cast5", &nettle_cast128},
    [QCRYPTO_CIPHER_ALGO_SERPENT_128] = {"serpent", &nettle_serpent128},
    [QCRYPTO_CIPHER_ALGO_SERPENT_192] = {"serpent", &nettle_serpent192},
    [QCRYPTO_CIPHER_ALGO_SERPENT_256] = {"serpent", &nettle_serpent256},
    [QCRYPTO_CIPHER_ALGO_TWOFISH_128] = {"twofish", &nettle_twofish128},
    [QCRYPTO_CIPHER_ALGO_TWOFISH_192] = {"twofish", &nettle_twofish192},
    [QCRYPTO_CIPHER_ALGO_TWOFISH_256] = {"twofish", &nettle_twofish256},
};

/* ---- Names ---- */

bool cipher_supported(QCryptoCipherAlgo algorithm)
{
    return ciphers[algorithm].cipher;
}

size_t cipher_key_bytes(const CipherSpec *spec)
{
    const struct nettle_cipher *cipher = ciphers[spec->algorithm].cipher;

    return cipher ? cipher->key_size * (spec->mode == QCRYPTO_CIPHER_MODE_XTS ? 2 : 1) : 0;
}

const char *cipher_family(QCryptoCipherAlgo algorithm)
{
    return ciphers[algorithm].family;
}

bool cipher_find(const char *family, size_t key_bytes, QCryptoCipherAlgo *ret_algorithm)
{
    for (unsigned i = 0; i < ARRAY_SIZE(ciphers); i++) {
        const CipherName *c = &ciphers[i];

        if (c->cipher && strcmp(c->family, family) == 0 && c->cipher->key_size == key_bytes) {
            *ret_algorithm = i;
            return true;
        }
    }
    return false;
}

/* ---- Keys ---- */

/* ESSIV encrypts the number with a hash of the key; that must be a key of a cipher of the same family. */
static int find_essiv(const CipherSpec *spec, const struct nettle_cipher **ret_cipher, Error *err)
{
    const char *name = qcrypto_cipher_algo_name(spec->algorithm), *family = cipher_family(spec->algorithm);
    size_t bytes = hash_bytes(spec->ivgen_hash);
    QCryptoCipherAlgo found;

    if (cipher_find(family, bytes, &found)) {
        *ret_cipher = ciphers[found].cipher;
        return 0;
    }
    if (spec->algorithm == QCRYPTO_CIPHER_ALGO_CAST5_128)
        return err_set(err, -ENOTSUP, "Cipher %s not supported with essiv", name);
    return err_set(err, -ENOTSUP, "No %s cipher with key size %zu available",
        family[0] == 'a'   ? "AES"
        : family[0] == 's' ? "Serpent"
                           : "Twofish",
        bytes);
}

/* The cipher of the vectors, NULL if they are not encrypted. */
static int check(const CipherSpec *spec, const struct nettle_cipher **ret_essiv, Error *err)
{
    const struct nettle_cipher *cipher = ciphers[spec->algorithm].cipher;
    int r = 0;

    *ret_essiv = NULL;
    if (!cipher)
        return err_set(
            err, -ENOTSUP, "Algorithm '%s' not supported", qcrypto_cipher_algo_name(spec->algorithm));
    if (spec->ivgen == QCRYPTO_IV_GEN_ALGO_ESSIV)
        r = find_essiv(spec, ret_essiv, err);
    if (r == 0 && spec->mode == QCRYPTO_CIPHER_MODE_XTS && cipher->block_size != BLOCK_BYTES)
        return err_set(err, -ENOTSUP, "Unsupported cipher mode %s", qcrypto_cipher_mode_name(spec->mode));
    return r;
}

int cipher_check(const CipherSpec *spec, Error *err)
{
    const struct nettle_cipher *essiv;

    return check(spec, &essiv, err);
}

static void set_keys(SectorCipher *c, const CipherSpec *spec, const uint8_t *key)
{
    c->cipher->set_encrypt_key(c->encrypt_key, key);
    c->cipher->set_decrypt_key(c->decrypt_key, key);
    if (c->mode == QCRYPTO_CIPHER_MODE_XTS)
        c->cipher->set_encrypt_key(c->tweak_key, key + c->cipher->key_size);
    if (c->essiv) {
        uint8_t hashed[HASH_BYTES_MAX];

        hash_digest(spec->ivgen_hash, key, cipher_key_bytes(spec), hashed);
        c->essiv->set_encrypt_key(c->essiv_key, hashed);
        explicit_bzero(hashed, sizeof(hashed));
    }
}

int sector_cipher_new(
    const CipherSpec *spec, const uint8_t *key, uint32_t sector_bytes, SectorCipher **ret_cipher, Error *err)
{
    const struct nettle_cipher *essiv;
    size_t room, head = align_up(sizeof(SectorCipher), KEY_ALIGNMENT), bytes;
    SectorCipher *c;
    uint8_t *keys;
    int r = check(spec, &essiv, err);

    assert(is_power_of_2(sector_bytes) && sector_bytes >= 512 && sector_bytes <= CIPHER_SECTOR_BYTES_MAX);
    if (r < 0)
        return r;
    room = ciphers[spec->algorithm].cipher->context_size;
    room = align_up(MAX(room, essiv ? (size_t)essiv->context_size : 0), KEY_ALIGNMENT);
    bytes = head + 4 * room;
    keys = secret_alloc(bytes);
    if (!keys)
        return err_set(err, -ENOMEM, "Out of memory");
    c = (SectorCipher *)keys;
    *c = (SectorCipher){.cipher = ciphers[spec->algorithm].cipher,
        .essiv = essiv,
        .mode = spec->mode,
        .narrow = spec->ivgen == QCRYPTO_IV_GEN_ALGO_PLAIN,
        .sector_bytes = sector_bytes,
        .bytes = bytes,
        .encrypt_key = keys + head,
        .decrypt_key = keys + head + room,
        .tweak_key = keys + head + 2 * room,
        .essiv_key = keys + head + 3 * room};
    set_keys(c, spec, key);
    *ret_cipher = c;
    return 0;
}

void sector_cipher_free(SectorCipher *c)
{
    if (c)
        secret_free((uint8_t *)c, c->bytes);
}

size_t sector_cipher_piece(const SectorCipher *c)
{
    /* The processor's AES makes some GiB/s, all else some 100 MiB/s; a worker costs some 10 us. */
    return str_starts(c->cipher->name, "aes") ? FAST_PIECE_BYTES : SLOW_PIECE_BYTES;
}

/* ---- Modes ---- */

/* A block of the cipher; eight bytes are enough for the shorter one's vectors. */
static void make_vectors(const SectorCipher *c, uint64_t number, unsigned count, uint8_t *vectors)
{
    size_t block = c->cipher->block_size;

    memset(vectors, 0, count * block);
    for (unsigned i = 0; i < count; i++) {
        uint64_t n = number + (uint64_t)i * (c->sector_bytes / CIPHER_IV_SECTOR_BYTES);

        put_le64(vectors + i * block, c->narrow ? (uint32_t)n : n);
    }
    if (c->essiv)
        c->essiv->encrypt(c->essiv_key, count * block, vectors, vectors);
    if (c->mode == QCRYPTO_CIPHER_MODE_XTS)
        c->cipher->encrypt(c->tweak_key, count * block, vectors, vectors);
}

typedef struct XtsBlock {
    uint64_t low, high;
} XtsBlock;

/* dst = src ^ tweaks; dst may be src. */
static void mask(uint8_t *dst, const uint8_t *src, const XtsBlock *tweaks, size_t bytes)
{
    typedef uint64_t Pair __attribute__((vector_size(16), aligned(1), may_alias));

    for (size_t at = 0; at < bytes; at += sizeof(Pair))
        *(Pair *)(dst + at) = *(const Pair *)(src + at) ^ *(const Pair *)((const uint8_t *)tweaks + at);
}

/* IEEE 1619: the tweak of each block is that of the one before times x in GF(2^128), little-endian. */
static void xts(nettle_cipher_func *fn, const void *key, const uint8_t *vector, uint8_t *dst,
    const uint8_t *src, size_t bytes)
{
    uint64_t low = get_le64(vector), high = get_le64(vector + 8);
    XtsBlock tweaks[XTS_CHUNK_BYTES / BLOCK_BYTES];

    for (size_t done = 0; done < bytes; done += XTS_CHUNK_BYTES) {
        for (unsigned i = 0; i < ARRAY_SIZE(tweaks); i++) {
            uint64_t carry = high >> 63 ? 0x87 : 0;

            tweaks[i] = (XtsBlock){htole64(low), htole64(high)};
            high = high << 1 | low >> 63;
            low = low << 1 ^ carry;
        }
        mask(dst + done, src + done, tweaks, XTS_CHUNK_BYTES);
        fn(key, XTS_CHUNK_BYTES, dst + done, dst + done);
        mask(dst + done, dst + done, tweaks, XTS_CHUNK_BYTES);
    }
}

static void encrypt_sector(const SectorCipher *c, uint8_t *vector, uint8_t *dst, const uint8_t *src)
{
    size_t block = c->cipher->block_size;

    switch (c->mode) {
    case QCRYPTO_CIPHER_MODE_XTS:
        xts(c->cipher->encrypt, c->encrypt_key, vector, dst, src, c->sector_bytes);
        break;
    case QCRYPTO_CIPHER_MODE_CBC:
        cbc_encrypt(c->encrypt_key, c->cipher->encrypt, block, vector, c->sector_bytes, dst, src);
        break;
    case QCRYPTO_CIPHER_MODE_CTR:
        ctr_crypt(c->encrypt_key, c->cipher->encrypt, block, vector, c->sector_bytes, dst, src);
        break;
    default:
        c->cipher->encrypt(c->encrypt_key, c->sector_bytes, dst, src);
    }
}

static void decrypt_sector(const SectorCipher *c, uint8_t *vector, uint8_t *dst, const uint8_t *src)
{
    size_t block = c->cipher->block_size;

    switch (c->mode) {
    case QCRYPTO_CIPHER_MODE_XTS:
        xts(c->cipher->decrypt, c->decrypt_key, vector, dst, src, c->sector_bytes);
        break;
    case QCRYPTO_CIPHER_MODE_CBC:
        cbc_decrypt(c->decrypt_key, c->cipher->decrypt, block, vector, c->sector_bytes, dst, src);
        break;
    case QCRYPTO_CIPHER_MODE_CTR:
        ctr_crypt(c->encrypt_key, c->cipher->encrypt, block, vector, c->sector_bytes, dst, src);
        break;
    default:
        c->cipher->decrypt(c->decrypt_key, c->sector_bytes, dst, src);
    }
}

/* ---- Runs of sectors ---- */

typedef void SectorFn(const SectorCipher *c, uint8_t *vector, uint8_t *dst, const uint8_t *src);

static inline void run(
    const SectorCipher *c, SectorFn *fn, uint64_t number, uint8_t *dst, const uint8_t *src, size_t bytes)
{
    uint8_t vectors[BATCH_SECTORS * BLOCK_BYTES];
    size_t sector = c->sector_bytes;

    assert(is_aligned(bytes, sector));
    for (size_t done = 0; done < bytes;) {
        unsigned count = (unsigned)MIN((bytes - done) / sector, (size_t)BATCH_SECTORS);

        make_vectors(c, number + done / CIPHER_IV_SECTOR_BYTES, count, vectors);
        for (unsigned i = 0; i < count; i++, done += sector)
            fn(c, vectors + i * c->cipher->block_size, dst + done, src + done);
    }
}

void sector_cipher_encrypt(
    const SectorCipher *c, uint64_t number, uint8_t *dst, const uint8_t *src, size_t bytes)
{
    run(c, encrypt_sector, number, dst, src, bytes);
}

void sector_cipher_decrypt(
    const SectorCipher *c, uint64_t number, uint8_t *dst, const uint8_t *src, size_t bytes)
{
    run(c, decrypt_sector, number, dst, src, bytes);
}

/* ---- Scattered bytes ---- */

/* Whole sectors that lie together at the beginning of a slice; bytes 0: the first one is in pieces. */
static struct iovec whole_sectors(const SectorCipher *c, IoSlice slice)
{
    struct iovec piece;
    size_t covered;

    (void)io_slice_to_iov(slice, &piece, 1, &covered);
    piece.iov_len = (size_t)align_down(piece.iov_len, c->sector_bytes);
    return piece;
}

void sector_cipher_encrypt_slice(const SectorCipher *c, uint64_t number, uint8_t *dst, IoSlice src)
{
    while (src.bytes) {
        struct iovec piece = whole_sectors(c, src);
        const uint8_t *from = piece.iov_base;
        size_t bytes = piece.iov_len;

        if (!bytes) {
            bytes = c->sector_bytes;
            io_slice_copy_from(src, dst, bytes);
            from = dst;
        }
        sector_cipher_encrypt(c, number, dst, from, bytes);
        src = io_slice_part(src, bytes, src.bytes - bytes);
        dst += bytes;
        number += bytes / CIPHER_IV_SECTOR_BYTES;
    }
}

void sector_cipher_decrypt_slice(const SectorCipher *c, uint64_t number, IoSlice data)
{
    uint8_t sector[CIPHER_SECTOR_BYTES_MAX];

    while (data.bytes) {
        struct iovec piece = whole_sectors(c, data);
        size_t bytes = piece.iov_len;

        if (bytes) {
            sector_cipher_decrypt(c, number, piece.iov_base, piece.iov_base, bytes);
        } else {
            bytes = c->sector_bytes;
            io_slice_copy_from(data, sector, bytes);
            sector_cipher_decrypt(c, number, sector, sector, bytes);
            io_slice_copy_to(data, sector, bytes);
        }
        data = io_slice_part(data, bytes, data.bytes - bytes);
        number += bytes / CIPHER_IV_SECTOR_BYTES;
    }
}
