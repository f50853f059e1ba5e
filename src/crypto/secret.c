/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Secrets in memory, and the object type `secret`. Unlike in QEMU, the property `data` cannot be read back,
 * and the properties cannot be changed after creation (there, a change has no effect on the secret).
 */
#include "crypto/secret-priv.h"

#include "base/limits.h"
#include "base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define KEY_BYTES 32
#define BLOCK_BYTES 16

typedef struct FileSecret {
    SecretObject common;
    char *file; /* as given, or NULL */
} FileSecret;

/* ---- Memory ---- */

static size_t mapping_bytes(size_t bytes)
{
    return (size_t)align_up(bytes + 1, (uint64_t)sysconf(_SC_PAGESIZE));
}

uint8_t *secret_alloc(size_t bytes)
{
    void *data;

    if (bytes > LIMIT_SECRET_BYTES * 2)
        return NULL;
    data = mmap(NULL, mapping_bytes(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED)
        return NULL;
    /* Both may be refused (limits of the user, old kernels), which is no reason not to work. */
    mlock(data, mapping_bytes(bytes));
    madvise(data, mapping_bytes(bytes), MADV_DONTDUMP);
    return data;
}

void secret_free(uint8_t *data, size_t bytes)
{
    if (!data)
        return;
    explicit_bzero(data, bytes);
    munmap(data, mapping_bytes(bytes));
}

static uint8_t *copy(const void *from, size_t bytes)
{
    uint8_t *data = secret_alloc(bytes);

    if (data)
        memcpy(data, from, bytes);
    return data;
}

static int out_of_memory(Error *err)
{
    return err_set(err, -ENOMEM, "Out of memory");
}

/* ---- Base64 ---- */

/* 0..63, 64 for the padding character, -1 for what is no base64. */
static int sextet(char c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : c == '=' ? 64 : -1;
}

static int decode(const char *text, size_t length, uint8_t *out, size_t *ret_bytes)
{
    uint32_t bits = 0;
    unsigned digits = 0, padding = 0;
    size_t bytes = 0;

    for (size_t i = 0; i < length; i++) {
        int value = sextet(text[i]);

        if (text[i] == '\n')
            continue;
        if (value < 0 || (padding && value != 64) || (value == 64 && digits < 2))
            return -EINVAL;
        padding += value == 64;
        bits = bits << 6 | ((uint32_t)value & 63);
        if (++digits < 4)
            continue;
        for (unsigned n = 0; n < 3 - padding; n++)
            out[bytes++] = (uint8_t)(bits >> (16 - 8 * n));
        bits = 0;
        digits = 0;
        if (padding && i + 1 < length && text[i + 1] != '\n')
            return -EINVAL;
    }
    *ret_bytes = bytes;
    return digits ? -EINVAL : 0;
}

int secret_from_base64(const char *text, size_t length, uint8_t **ret_data, size_t *ret_bytes, Error *err)
{
    size_t capacity = length / 4 * 3 + 3;
    Secret out = secret_new(capacity);
    size_t bytes;
    int r;

    if (!out.data)
        return out_of_memory(err);
    r = decode(text, length, out.data, &bytes);
    if (r == 0) {
        *ret_data = copy(out.data, bytes);
        *ret_bytes = bytes;
        r = *ret_data ? 0 : out_of_memory(err);
    } else {
        err_set(err, r, "Base64 data contains invalid characters");
    }
    secret_done(&out);
    return r;
}

/* ---- Decryption ---- */

static int decrypt_blocks(const uint8_t *key, const uint8_t *iv, uint8_t *data, size_t bytes)
{
    gnutls_datum_t k = {.data = (unsigned char *)key, .size = KEY_BYTES};
    gnutls_datum_t v = {.data = (unsigned char *)iv, .size = BLOCK_BYTES};
    gnutls_cipher_hd_t cipher;
    int r = gnutls_cipher_init(&cipher, GNUTLS_CIPHER_AES_256_CBC, &k, &v);

    if (r == 0) {
        r = gnutls_cipher_decrypt(cipher, data, bytes);
        gnutls_cipher_deinit(cipher);
    }
    return r;
}

static int strip_padding(Secret *b, uint8_t **ret_data, size_t *ret_bytes, Error *err)
{
    unsigned padding = b->bytes ? b->data[b->bytes - 1] : 0;

    if (padding == 0 || padding > BLOCK_BYTES || padding > b->bytes)
        return err_set(
            err, -EINVAL, "Incorrect number of padding bytes (%u) found on decrypted data", padding);
    *ret_data = copy(b->data, b->bytes - padding);
    *ret_bytes = b->bytes - padding;
    return *ret_data ? 0 : out_of_memory(err);
}

int secret_decrypt(const uint8_t *key, const uint8_t *iv, const uint8_t *data, size_t bytes,
    uint8_t **ret_data, size_t *ret_bytes, Error *err)
{
    Secret plain;
    int r;

    if (bytes % BLOCK_BYTES)
        return err_set(err, -EINVAL, "Length %zu must be a multiple of block size %d", bytes, BLOCK_BYTES);
    plain = (Secret){.data = copy(data, bytes), .bytes = bytes};
    if (!plain.data)
        return out_of_memory(err);
    r = bytes ? decrypt_blocks(key, iv, plain.data, bytes) : 0;
    if (r < 0)
        r = err_set(err, -EINVAL, "Cannot decrypt the secret: %s", gnutls_strerror(r));
    else
        r = strip_padding(&plain, ret_data, ret_bytes, err);
    secret_done(&plain);
    return r;
}

/* ---- What the bytes mean ---- */

/* Replaces base64 text by what it says. */
static int from_format(const SecretCommonProperties *o, Secret *b, Error *err)
{
    Secret decoded;
    int r;

    if (!o->has_format || o->format != QCRYPTO_SECRET_FORMAT_BASE64)
        return 0;
    r = secret_from_base64((const char *)b->data, b->bytes, &decoded.data, &decoded.bytes, err);
    if (r < 0)
        return r;
    secret_done(b);
    *b = decoded;
    return 0;
}

static int load_iv(const SecretCommonProperties *o, Secret *ret_iv, Error *err)
{
    int r;

    if (!o->iv)
        return err_set(err, -EINVAL, "IV is required to decrypt secret");
    r = secret_from_base64(o->iv, strlen(o->iv), &ret_iv->data, &ret_iv->bytes, err);
    if (r == 0 && ret_iv->bytes != BLOCK_BYTES)
        return err_set(err, -EINVAL, "IV should be %d bytes in length not %zu", BLOCK_BYTES, ret_iv->bytes);
    return r;
}

static int decrypt(const SecretCommonProperties *o, Secret *b, Error *err)
{
    AUTO_SECRET Secret key = {0}, iv = {0};
    Secret plain;
    int r = secret_lookup(o->keyid, &key.data, &key.bytes, err);

    if (r < 0)
        return r;
    if (key.bytes != KEY_BYTES)
        return err_set(err, -EINVAL, "Key should be %d bytes in length", KEY_BYTES);
    r = load_iv(o, &iv, err);
    if (r == 0)
        r = from_format(o, b, err);
    if (r == 0)
        r = secret_decrypt(key.data, iv.data, b->data, b->bytes, &plain.data, &plain.bytes, err);
    if (r < 0)
        return r;
    secret_done(b);
    *b = plain;
    return 0;
}

int secret_object_init(SecretObject *s, const SecretCommonProperties *options, Secret *take_bytes, Error *err)
{
    AUTO_SECRET Secret b = *take_bytes;
    int r;

    *take_bytes = (Secret){0};
    r = options->keyid ? decrypt(options, &b, err) : from_format(options, &b, err);
    if (r < 0)
        return r;
    s->secret = b;
    b = (Secret){0};
    s->keyid = str_dup(options->keyid);
    s->iv = str_dup(options->iv);
    s->format = options->has_format ? options->format : QCRYPTO_SECRET_FORMAT_RAW;
    return 0;
}

void secret_object_done(SecretObject *s)
{
    secret_done(&s->secret);
    free(s->keyid);
    free(s->iv);
}

/* ---- Creation ---- */

/* Reads from a file or a pipe; one byte more than allowed shows that it is too long. */
static ssize_t read_up_to(int fd, uint8_t *data, size_t max)
{
    size_t bytes = 0;

    while (bytes < max) {
        ssize_t n = read(fd, data + bytes, max - bytes);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            break;
        bytes += (size_t)n;
    }
    return (ssize_t)bytes;
}

static int read_file(const char *name, Secret *ret_bytes, Error *err)
{
    AUTO_CLOSE int fd = open(name, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    AUTO_SECRET Secret all = {0};
    ssize_t n;

    if (fd < 0)
        return err_set(err, -errno, "Unable to read %s: Failed to open file \u201C%s\u201D: %s", name, name,
            strerror(errno));
    all = secret_new(LIMIT_SECRET_BYTES + 1);
    if (!all.data)
        return out_of_memory(err);
    n = read_up_to(fd, all.data, all.bytes);
    if (n < 0)
        return err_set(err, (int)n, "Unable to read %s: Error reading file \u201C%s\u201D: %s", name, name,
            strerror((int)-n));
    if ((size_t)n > LIMIT_SECRET_BYTES)
        return err_set(err, -EFBIG, "Unable to read %s: longer than %d bytes", name, (int)LIMIT_SECRET_BYTES);
    *ret_bytes = (Secret){.data = copy(all.data, (size_t)n), .bytes = (size_t)n};
    return ret_bytes->data ? 0 : out_of_memory(err);
}

static int load(const SecretProperties *o, Secret *ret_bytes, Error *err)
{
    size_t length;

    if (o->file && o->data)
        return err_set(err, -EINVAL, "'file' and 'data' are mutually exclusive");
    if (o->file)
        return read_file(o->file, ret_bytes, err);
    if (!o->data)
        return err_set(err, -EINVAL, "Either 'file' or 'data' must be provided");
    length = strlen(o->data);
    if (length > LIMIT_SECRET_BYTES)
        return err_set(err, -EFBIG, "The secret is longer than %d bytes", (int)LIMIT_SECRET_BYTES);
    *ret_bytes = (Secret){.data = copy(o->data, length), .bytes = length};
    return ret_bytes->data ? 0 : out_of_memory(err);
}

static int secret_create(Object *object, const ObjectOptions *options, Error *err)
{
    const SecretProperties *o = &options->u.secret;
    SecretCommonProperties common = {o->has_format, o->format, o->keyid, o->iv};
    FileSecret *s = object_state(object, &object_kind_secret);
    Secret b = {0};
    int r = load(o, &b, err);

    if (r == 0)
        r = secret_object_init(&s->common, &common, &b, err);
    if (r == 0)
        s->file = str_dup(o->file);
    return r;
}

static void secret_destroy(Object *object)
{
    FileSecret *s = object_state(object, &object_kind_secret);

    secret_object_done(&s->common);
    free(s->file);
}

/* ---- Use ---- */

/* NULL: the object is no secret. */
static const SecretObject *secret_of(Object *object)
{
    const SecretObject *s = object_state(object, &object_kind_secret);

    return s ? s : object_state(object, &object_kind_secret_keyring);
}

int secret_lookup(const char *id, uint8_t **ret_data, size_t *ret_bytes, Error *err)
{
    Object *object = object_find(id);
    const SecretObject *s = secret_of(object);
    uint8_t *data;

    if (!object)
        return err_set(err, -ENOENT, "No secret with id '%s'", id);
    if (!s)
        return err_set(err, -EINVAL, "Object with id '%s' is not a secret", id);
    data = copy(s->secret.data, s->secret.bytes);
    if (!data)
        return out_of_memory(err);
    *ret_data = data;
    *ret_bytes = s->secret.bytes;
    return 0;
}

/* ---- Properties ---- */

int secret_get_text(Object *object, const ObjectProperty *property, JsonValue **ret_value, Error *err)
{
    const SecretObject *s = secret_of(object);
    const char *text = *(char *const *)((const char *)s + *(const size_t *)property->data);

    *ret_value = json_string_new(text ? text : "");
    return 0;
}

int secret_get_format(Object *object, const ObjectProperty *property, JsonValue **ret_value, Error *err)
{
    *ret_value = json_string_new(qcrypto_secret_format_name(secret_of(object)->format));
    return 0;
}

const size_t secret_iv_offset = offsetof(SecretObject, iv),
             secret_keyid_offset = offsetof(SecretObject, keyid);
static const size_t file_offset = offsetof(FileSecret, file);

static const ObjectProperty properties[] = {
    SECRET_COMMON_PROPERTIES,
    {.name = "file", .type = "string", .get = secret_get_text, .data = &file_offset},
    {.name = "data", .type = "string"},
    {0},
};

const ObjectKind object_kind_secret = {
    .name = "secret",
    .state_size = sizeof(FileSecret),
    .create = secret_create,
    .destroy = secret_destroy,
    .properties = properties,
};
