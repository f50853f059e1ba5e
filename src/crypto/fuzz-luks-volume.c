/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opening LUKS volumes of both versions whose header is the input. Byte 0 says what is built of it: a header
 * of version 1, or both copies of version 2 from 512 bytes of binary header and the text of the JSON area,
 * with the right checksums. Half of the mutations change one value of that JSON.
 *
 * The key material is zeroes, so no password opens a slot; the volume's cipher is tried with a key of zeroes.
 */
#include "crypto/luks2.h"

#include "base/endian.h"
#include "base/limits.h"
#include "crypto/luks-priv.h"
#include "loop/loop.h"
#include "schema/fuzz-options.h"
#include "schema/object.h"

#include <assert.h>
#include <string.h>

#define BINARY_BYTES 512u
#define COPY_BYTES_AT 8u
#define SEQUENCE_AT 16u
#define HASH_AT 72u
#define OFFSET_AT 256u
#define COPY_BYTES_MAX (64 * KIB)
#define MUTATED_BYTES 65536u
/* What one input may take to try. */
#define CHEAP_ITERATIONS 64u
#define CHEAP_KIB 256u

enum { DETACHED = 1, VERSION_2 = 2, NO_FIRST = 4, SECOND_NEWER = 8, WRONG_CHECKSUM = 16 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);

typedef struct Volume {
    uint8_t bytes[2 * COPY_BYTES_MAX];
} Volume;

static int volume_read(void *opaque, uint64_t offset, void *data, size_t bytes)
{
    const Volume *volume = opaque;
    size_t valid =
        offset < sizeof(volume->bytes) ? (size_t)MIN(sizeof(volume->bytes) - offset, (uint64_t)bytes) : 0;

    memset((uint8_t *)data + valid, 0, bytes - valid);
    if (valid)
        memcpy(data, volume->bytes + offset, valid);
    return 0;
}

/* ---- Building ---- */

static void set_checksum(uint8_t *copy, size_t bytes)
{
    uint8_t digest[HASH_BYTES_MAX] = {0};
    char name[LUKS2_HASH_NAME_BYTES + 1] = "";
    QCryptoHashAlgo hash;

    memcpy(name, copy + HASH_AT, LUKS2_HASH_NAME_BYTES);
    luks2_binary_set_checksum(copy, digest, sizeof(digest));
    if (!hash_find(name, &hash))
        return;
    hash_digest(hash, copy, bytes, digest);
    luks2_binary_set_checksum(copy, digest, hash_bytes(hash));
}

static void build_copy(Volume *volume, uint64_t at, const uint8_t *data, size_t size, unsigned choice)
{
    size_t bytes = get_be64(data + COPY_BYTES_AT), text = size - BINARY_BYTES;
    uint8_t *copy = volume->bytes + at;

    memcpy(copy, data, BINARY_BYTES);
    memcpy(copy + LUKS2_BINARY_BYTES, data + BINARY_BYTES, MIN(text, bytes - LUKS2_BINARY_BYTES));
    if (at) {
        memcpy(copy, "SKUL", 4);
        put_be64(copy + OFFSET_AT, at);
        put_be64(copy + SEQUENCE_AT, get_be64(data + SEQUENCE_AT) + (choice & SECOND_NEWER ? 1 : 0));
    }
    if (!(choice & WRONG_CHECKSUM) || at)
        set_checksum(copy, bytes);
}

static void build(Volume *volume, unsigned choice, const uint8_t *data, size_t size)
{
    uint64_t bytes;

    memset(volume, 0, sizeof(*volume));
    if (!(choice & VERSION_2) || size < BINARY_BYTES) {
        memcpy(volume->bytes, data, MIN(size, sizeof(volume->bytes)));
        return;
    }
    bytes = get_be64(data + COPY_BYTES_AT);
    if (bytes < LUKS2_COPY_BYTES_MIN || bytes > COPY_BYTES_MAX) {
        memcpy(volume->bytes, data, BINARY_BYTES);
        return;
    }
    build_copy(volume, bytes, data, size, choice);
    if (choice & NO_FIRST)
        memset(volume->bytes, 0, LUKS2_BINARY_BYTES);
    else
        build_copy(volume, 0, data, size, choice);
}

/* ---- Opening ---- */

static void try_cipher(const CipherSpec *spec, uint32_t sector_bytes)
{
    AUTO_ERROR Error err = ERROR_INIT;
    const uint8_t key[CIPHER_KEY_BYTES_MAX] = {0};
    uint8_t plain[2 * CIPHER_SECTOR_BYTES_MAX], data[2 * CIPHER_SECTOR_BYTES_MAX];
    SectorCipher *cipher;

    assert(cipher_key_bytes(spec) <= sizeof(key));
    require(sector_cipher_new(spec, key, sector_bytes, &cipher, &err), &err);
    memset(plain, 0x5a, sizeof(plain));
    sector_cipher_encrypt(cipher, UINT64_MAX, data, plain, 2 * sector_bytes);
    sector_cipher_decrypt(cipher, UINT64_MAX, data, data, 2 * sector_bytes);
    assert(memcmp(data, plain, 2 * sector_bytes) == 0);
    sector_cipher_free(cipher);
}

static void make_cheap(Luks2 *luks)
{
    luks->digest.iterations = MIN(luks->digest.iterations, CHEAP_ITERATIONS);
    for (unsigned i = 0; i < LUKS2_SLOTS; i++) {
        Luks2Slot *slot = &luks->slots[i];

        assert(!slot->active || slot->problem[0] ||
               (slot->memory_kib <= LIMIT_LUKS_ARGON2_KIB && slot->lanes <= LIMIT_LUKS_ARGON2_LANES &&
                   luks2_material_bytes(slot) <= LIMIT_SECRET_BYTES));
        slot->iterations = MIN(slot->iterations, CHEAP_ITERATIONS);
        slot->memory_kib = MIN(slot->memory_kib, CHEAP_KIB);
    }
}

static void open_second(const LuksIo *io, Luks2 *luks)
{
    AUTO_ERROR Error err = ERROR_INIT;
    uint8_t *key;

    qcrypto_block_info_luks_free(luks2_info(luks));
    assert(luks->detached || luks->payload >= 2 * LUKS2_COPY_BYTES_MIN);
    try_cipher(&luks->spec, luks->sector_bytes);
    make_cheap(luks);
    if (luks2_unlock(luks, io, "s", &key, &err) == 0)
        secret_free(key, luks->key_bytes);
}

static void open_first(const LuksIo *io, bool detached)
{
    AUTO_ERROR Error err = ERROR_INIT;
    uint8_t *key;
    Luks luks;

    if (luks_read(io, detached, &luks, &err) < 0)
        return;
    qcrypto_block_info_luks_free(luks_info(&luks));
    try_cipher(&luks.spec, LUKS_SECTOR_BYTES);
    luks.header.digest_iterations = MIN(luks.header.digest_iterations, CHEAP_ITERATIONS);
    for (unsigned i = 0; i < LUKS_SLOTS; i++)
        luks.header.slots[i].iterations = MIN(luks.header.slots[i].iterations, CHEAP_ITERATIONS);
    if (luks_unlock(&luks, io, "s", &key, &err) == 0)
        secret_free(key, luks.header.key_bytes);
}

typedef struct Input {
    const LuksIo *io;
    Luks2 *second; /* NULL: version 1 */
    bool detached;
} Input;

static int run(void *arg)
{
    CLEANUP(object_options_free_ptr)
    ObjectOptions *options =
        options_from(&schema_type_ObjectOptions, "{'qom-type': 'secret', 'id': 's', 'data': 'pw'}");
    AUTO_ERROR Error err = ERROR_INIT;
    const Input *input = arg;

    require(object_add(options, &err), &err);
    if (input->second)
        open_second(input->io, input->second);
    else
        open_first(input->io, input->detached);
    object_del_all();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static Volume volume;
    static Luks2 second;
    AUTO_ERROR Error err = ERROR_INIT;
    const LoopOptions options = LOOP_OPTIONS_DEFAULT;
    LuksIo io = {volume_read, NULL, &volume};
    Input input = {.io = &io};
    int r;

    if (!size)
        return 0;
    build(&volume, data[0], data + 1, size - 1);
    input.detached = data[0] & DETACHED;
    r = luks2_read(&io, input.detached, &second, &err);
    if (r == 0)
        input.second = &second;
    if (r == 0 || (r > 0 && luks_is_version(volume.bytes, sizeof(volume.bytes), 1)))
        loop_run_main(LOOP_BACKEND_EPOLL, &options, run, &input);
    return 0;
}

/* ---- Mutations of the JSON area ---- */

static JsonValue *some_value(unsigned n)
{
    static const char *const texts[] = {"0", "1", "511", "512", "4095", "4096", "16384", "32768", "258048",
        "16777216", "9223372036854775807", "18446744073709551615", "18446744073709551616", "-1", "",
        "dynamic", "luks1", "luks2", "raw", "crypt", "linear", "pbkdf2", "argon2i", "argon2id", "sha1",
        "sha256", "sha512", "ripemd160", "aes-xts-plain64", "aes-cbc-essiv:sha256", "aes-ecb-plain",
        "cast5-cbc-plain64", "serpent-xts-plain64", "twofish-ctr-plain", "online-reencrypt-v2",
        "AAAAAAAAAAAAAAAAAAAAAA=="};
    static const int64_t numbers[] = {-1, 0, 1, 2, 4, 8, 16, 17, 31, 32, 48, 63, 64, 65, 512, 4000, 4001,
        4096, 8192, 1 << 20, (1 << 20) + 1, INT32_MAX, INT64_C(1) << 32, INT64_MAX};

    switch (n % 8) {
    case 0:
        return json_null_new();
    case 1:
        return json_object_new();
    case 2:
        return json_array_new();
    case 3:
    case 4:
        return json_int_new(numbers[n / 8 % ARRAY_SIZE(numbers)]);
    default:
        return json_string_new(texts[n / 8 % ARRAY_SIZE(texts)]);
    }
}

/* Steps down at random and changes the member that it ends at. */
static void mutate_value(JsonValue *value, unsigned *seed)
{
    for (;;) {
        unsigned n = (unsigned)rand_r(seed);
        JsonMember *member;

        if (value->type != JSON_OBJECT || !value->u.object.count)
            return;
        member = &value->u.object.members[n / 16 % value->u.object.count];
        if (json_is(member->value, JSON_OBJECT) && n % 16 < 14) {
            value = member->value;
            continue;
        }
        if (n % 16 == 15)
            json_free(json_object_take(value, member->key));
        else if (n % 16 == 14)
            json_object_put(value, n & 16 ? "1" : "31", json_clone(member->value));
        else
            json_object_put(value, member->key, some_value((unsigned)rand_r(seed)));
        return;
    }
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
    AUTO_ERROR Error err = ERROR_INIT;
    AUTO_JSON JsonValue *json = NULL;
    AUTO_FREE char *text = NULL;
    size_t head = 1 + BINARY_BYTES, bytes;

    if (seed % 2 && size > head && size < MUTATED_BYTES && (data[0] & VERSION_2)) {
        AUTO_FREE char *old = str_ndup((const char *)data + head, size - head);

        if (json_parse(old, &json, &err) == 0) {
            mutate_value(json, &seed);
            text = json_text(json, false);
        }
    }
    bytes = text ? strlen(text) : 0;
    if (!text || head + bytes > max_size)
        return LLVMFuzzerMutate(data, size, max_size);
    memcpy(data + head, text, bytes);
    return head + bytes;
}
