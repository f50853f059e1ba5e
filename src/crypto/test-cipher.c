/* SPDX-License-Identifier: Apache-2.0 */
/* Sector ciphers, hashes, key derivation and the splitter, with published vectors and against another
 * library. */
#include "crypto/cipher.h"
#include "crypto/hash.h"

#include <gnutls/crypto.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#define BYTES (24 * KIB)

static void from_hex(const char *hex, uint8_t *out)
{
    for (unsigned byte; sscanf(hex, "%2x", &byte) == 1; hex += 2)
        *out++ = (uint8_t)byte;
}

static void expect_hex(const uint8_t *data, const char *hex)
{
    uint8_t bytes[128];

    from_hex(hex, bytes);
    assert_memory_equal(data, bytes, strlen(hex) / 2);
}

static SectorCipher *make(const CipherSpec *spec, const uint8_t *key, uint32_t sector_bytes)
{
    AUTO_ERROR Error err = ERROR_INIT;
    SectorCipher *cipher;

    if (sector_cipher_new(spec, key, sector_bytes, &cipher, &err) < 0)
        fail_msg("%s", err.message);
    return cipher;
}

/* ---- Ciphers ---- */

/* IEEE 1619-2007, annex B, vectors 4 (AES-128) and 10 (AES-256). */
static void test_xts(void **state)
{
    static const struct {
        QCryptoCipherAlgo algorithm;
        uint64_t sector;
        const char *key, *first;
    } vectors[] = {
        {QCRYPTO_CIPHER_ALGO_AES_128, 0, "2718281828459045235360287471352631415926535897932384626433832795",
            "27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89c"},
        {QCRYPTO_CIPHER_ALGO_AES_256, 255,
            "2718281828459045235360287471352662497757247093699959574966967627"
            "3141592653589793238462643383279502884197169399375105820974944592",
            "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b"},
    };

    for (unsigned i = 0; i < ARRAY_SIZE(vectors); i++) {
        CipherSpec spec = {vectors[i].algorithm, QCRYPTO_CIPHER_MODE_XTS, QCRYPTO_IV_GEN_ALGO_PLAIN64, 0};
        uint8_t key[64], data[512], plain[512];
        SectorCipher *cipher;

        for (unsigned at = 0; at < sizeof(data); at++)
            plain[at] = data[at] = (uint8_t)at;
        from_hex(vectors[i].key, key);
        cipher = make(&spec, key, 512);
        sector_cipher_encrypt(cipher, vectors[i].sector, data, data, sizeof(data));
        expect_hex(data, vectors[i].first);
        sector_cipher_decrypt(cipher, vectors[i].sector, data, data, sizeof(data));
        assert_memory_equal(data, plain, sizeof(data));
        sector_cipher_free(cipher);
    }
}

static void expect_as_gnutls(
    const CipherSpec *spec, gnutls_cipher_algorithm_t algorithm, const uint8_t *ivs, uint32_t sector)
{
    uint8_t key[64], ours[BYTES], theirs[BYTES];
    SectorCipher *cipher;

    for (unsigned i = 0; i < sizeof(key); i++)
        key[i] = (uint8_t)(7 * i);
    for (unsigned i = 0; i < BYTES; i++)
        theirs[i] = (uint8_t)(i * i >> 3);
    cipher = make(spec, key, sector);
    sector_cipher_encrypt(cipher, 0xfffffff8, ours, theirs, BYTES);
    for (unsigned i = 0; i < BYTES / sector; i++) {
        gnutls_datum_t k = {key, (unsigned)cipher_key_bytes(spec)}, v = {(uint8_t *)ivs + i * 16, 16};
        gnutls_cipher_hd_t h;

        assert_int_equal(gnutls_cipher_init(&h, algorithm, &k, &v), 0);
        assert_int_equal(gnutls_cipher_encrypt(h, theirs + (size_t)i * sector, sector), 0);
        gnutls_cipher_deinit(h);
    }
    assert_memory_equal(ours, theirs, BYTES);
    sector_cipher_free(cipher);
}

/* The number of a sector is cut to 32 bits by one generator, counts 512 bytes, and is little-endian. */
static void test_sector_numbers(void **state)
{
    for (uint32_t sector = 512; sector <= 4096; sector *= 8) {
        uint8_t narrow[BYTES / 512 * 16] = {0}, wide[BYTES / 512 * 16] = {0};
        CipherSpec spec = {.algorithm = QCRYPTO_CIPHER_ALGO_AES_256, .mode = QCRYPTO_CIPHER_MODE_XTS};

        for (unsigned i = 0; i < BYTES / sector; i++) {
            uint64_t number = UINT64_C(0xfffffff8) + i * (sector / 512);

            for (unsigned byte = 0; byte < 8; byte++)
                wide[i * 16 + byte] = (uint8_t)(number >> (8 * byte));
            memcpy(narrow + i * 16, wide + i * 16, 4);
        }
        expect_as_gnutls(&spec, GNUTLS_CIPHER_AES_256_XTS, narrow, sector);
        spec.ivgen = QCRYPTO_IV_GEN_ALGO_PLAIN64;
        expect_as_gnutls(&spec, GNUTLS_CIPHER_AES_256_XTS, wide, sector);
        spec.mode = QCRYPTO_CIPHER_MODE_CBC;
        expect_as_gnutls(&spec, GNUTLS_CIPHER_AES_256_CBC, wide, sector);
        spec.algorithm = QCRYPTO_CIPHER_ALGO_AES_128;
        expect_as_gnutls(&spec, GNUTLS_CIPHER_AES_128_CBC, wide, sector);
    }
}

static void there_and_back(const CipherSpec *spec)
{
    uint8_t key[64], plain[BYTES], flat[BYTES], scattered[BYTES], back[BYTES];
    struct iovec iov[3] = {{back, 100}, {back + 100, 5000}, {back + 5100, BYTES - 5100}};
    IoSlice slice = {iov, 0, BYTES};
    SectorCipher *cipher;

    for (unsigned i = 0; i < sizeof(key); i++)
        key[i] = (uint8_t)(i + spec->algorithm);
    for (unsigned i = 0; i < BYTES; i++)
        plain[i] = (uint8_t)(i >> 9);
    cipher = make(spec, key, 512);
    sector_cipher_encrypt(cipher, 5, flat, plain, BYTES);
    assert_memory_not_equal(flat, plain, BYTES);
    memcpy(back, plain, BYTES);
    sector_cipher_encrypt_slice(cipher, 5, scattered, slice);
    assert_memory_equal(flat, scattered, BYTES);
    memcpy(back, flat, BYTES);
    sector_cipher_decrypt_slice(cipher, 5, slice);
    assert_memory_equal(back, plain, BYTES);
    sector_cipher_free(cipher);
}

static void test_all(void **state)
{
    AUTO_ERROR Error err = ERROR_INIT;
    unsigned tested = 0;

    for (unsigned a = 0; a < QCRYPTO_CIPHER_ALGO__MAX; a++) {
        for (unsigned m = 0; m < QCRYPTO_CIPHER_MODE__MAX; m++) {
            for (unsigned g = 0; g < QCRYPTO_IV_GEN_ALGO__MAX; g++) {
                CipherSpec spec = {a, m, g, QCRYPTO_HASH_ALGO_SHA256};

                if (cipher_check(&spec, &err) == 0) {
                    there_and_back(&spec);
                    tested++;
                }
                err_done(&err);
            }
        }
    }
    assert_int_equal(tested, 9 * 4 * 3 + 3 * 2);
}

static void expect_refused(CipherSpec spec, const char *message)
{
    AUTO_ERROR Error err = ERROR_INIT;

    assert_true(cipher_check(&spec, &err) < 0);
    assert_string_equal(err.message, message);
}

static void test_refused(void **state)
{
    expect_refused((CipherSpec){.algorithm = QCRYPTO_CIPHER_ALGO_SM4}, "Algorithm 'sm4' not supported");
    expect_refused((CipherSpec){.algorithm = QCRYPTO_CIPHER_ALGO_CAST5_128, .mode = QCRYPTO_CIPHER_MODE_XTS},
        "Unsupported cipher mode xts");
    expect_refused((CipherSpec){QCRYPTO_CIPHER_ALGO_AES_256, QCRYPTO_CIPHER_MODE_XTS,
                       QCRYPTO_IV_GEN_ALGO_ESSIV, QCRYPTO_HASH_ALGO_SHA1},
        "No AES cipher with key size 20 available");
}

/* ---- Hashes ---- */

static void expect_key(QCryptoHashAlgo hash, const char *password, const char *salt, uint32_t iterations,
    size_t bytes, const char *hex)
{
    Pbkdf2 job = {
        hash, (const uint8_t *)password, strlen(password), (const uint8_t *)salt, strlen(salt), iterations};
    uint8_t out[64];

    pbkdf2_derive(&job, out, bytes);
    expect_hex(out, hex);
}

/* RFC 6070, and RFC 7914 section 11. */
static void test_pbkdf2(void **state)
{
    expect_key(QCRYPTO_HASH_ALGO_SHA1, "password", "salt", 2, 20, "ea6c014dc72d6f8ccd1ed92ace1d41f0d8de8957");
    expect_key(QCRYPTO_HASH_ALGO_SHA1, "passwordPASSWORDpassword", "saltSALTsaltSALTsaltSALTsaltSALTsalt",
        4096, 25, "3d2eec4fe41c849b80c8d83662c0e44a8b291a964cf2f07038");
    expect_key(QCRYPTO_HASH_ALGO_SHA256, "passwd", "salt", 1, 64,
        "55ac046e56e3089fec1691c22544b605f94185216dde0465e68b9d57c20dacbc"
        "49ca9cccf179b645991664b39d77ef317c71b845b1e30bd509112041d3a19783");
}

/* FIPS 180-4 and the papers of the others: the hash of "abc". */
static void test_hashes(void **state)
{
    static const struct {
        const char *name, *digest;
    } vectors[] = {
        {"md5", "900150983cd24fb0d6963f7d28e17f72"},
        {"sha1", "a9993e364706816aba3e25717850c26c9cd0d89d"},
        {"sha224", "23097d223405d8228642a477bda255b32aadbce4bda0b3f7e36c9da7"},
        {"sha256", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
        {"ripemd160", "8eb208f7e05d987a9b044a8e98c6b087f15a0bfc"},
        {"sm3", "66c7f0f462eeedd9d1f2d46bdc10e4e24167c4875cf2f7a2297da02b8f4ba8e0"},
    };
    QCryptoHashAlgo hash;

    for (unsigned i = 0; i < ARRAY_SIZE(vectors); i++) {
        uint8_t out[HASH_BYTES_MAX];

        assert_true(hash_find(vectors[i].name, &hash));
        assert_int_equal(hash_bytes(hash), strlen(vectors[i].digest) / 2);
        hash_digest(hash, "abc", 3, out);
        expect_hex(out, vectors[i].digest);
    }
    assert_false(hash_find("sha3", &hash));
}

/* All stripes are needed; a key need not be a multiple of a digest. */
static void test_splitter(void **state)
{
    const size_t sizes[] = {16, 24, 32, 64};

    for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
        uint8_t key[64], back[64], material[64 * 50];

        assert_int_equal(random_bytes(key, sizeof(key)), 0);
        assert_int_equal(af_split(QCRYPTO_HASH_ALGO_SHA1, key, sizes[i], 50, material), 0);
        af_merge(QCRYPTO_HASH_ALGO_SHA1, material, sizes[i], 50, back);
        assert_memory_equal(back, key, sizes[i]);
        material[0] ^= 1;
        af_merge(QCRYPTO_HASH_ALGO_SHA1, material, sizes[i], 50, back);
        assert_memory_not_equal(back, key, sizes[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_xts),
        cmocka_unit_test(test_sector_numbers),
        cmocka_unit_test(test_all),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_pbkdf2),
        cmocka_unit_test(test_hashes),
        cmocka_unit_test(test_splitter),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
