/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Encrypted images: LUKS, whose header lies in clusters of the image and whose initialisation vectors come
 * from the offset in the file, and the old AES, keyed by the password itself and counted by the guest's
 * sectors, which is only read. Compressed clusters are plain in such images, so none are written.
 *
 * Nothing here changes while the image is open: reads on other loops use it, too.
 */
#include "base/mem.h"
#include "crypto/luks.h"
#include "crypto/parallel.h"
#include "crypto/secret.h"
#include "drivers/qcow2/qcow2-priv.h"
#include "generated/types.h"
#include "loop/buffer-pool.h"

#define SECTOR_BYTES 512u
#define AES_KEY_BYTES 16u
/* Encrypted at once on its way to the file. */
#define WRITE_BYTES (1 * MIB)

struct Crypt {
    SectorCipher *cipher;
    bool luks;
    Luks volume; /* if luks */
};

/* ---- Opening ---- */

/* Within the header's clusters; what they do not have reads as zeroes. */
static int header_read(void *opaque, uint64_t offset, void *data, size_t bytes)
{
    Qcow2 *q = opaque;
    uint64_t size = q->crypt_bytes;
    size_t valid = offset < size ? (size_t)MIN(size - offset, (uint64_t)bytes) : 0;

    memset((uint8_t *)data + valid, 0, bytes - valid);
    return valid ? child_pread(q->file, q->crypt_offset + offset, data, valid) : 0;
}

static int open_luks(Qcow2 *q, const char *secret, Error *err)
{
    LuksIo io = {header_read, NULL, q};
    Crypt *c = q->crypt;
    uint8_t *key;
    int r;

    if (!q->crypt_bytes)
        return err_set(
            err, -EINVAL, "Missing CRYPTO header for crypt method %" PRIu32, q->header.crypt_method);
    c->luks = true;
    r = luks_read(&io, false, &c->volume, err);
    if (r == 0)
        r = luks_unlock(&c->volume, &io, secret, &key, err);
    if (r < 0)
        return r;
    r = sector_cipher_new(&c->volume.spec, key, SECTOR_BYTES, &c->cipher, err);
    secret_free(key, c->volume.header.key_bytes);
    return r;
}

static int open_aes(Qcow2 *q, const char *secret, Error *err)
{
    CipherSpec spec = {QCRYPTO_CIPHER_ALGO_AES_128, QCRYPTO_CIPHER_MODE_CBC, QCRYPTO_IV_GEN_ALGO_PLAIN64,
        QCRYPTO_HASH_ALGO_SHA256};
    uint8_t *password, key[AES_KEY_BYTES] = {0};
    size_t bytes;
    int r;

    if (!q->node->read_only)
        return err_set(err, -ENOTSUP,
            "Images with the old AES encryption are not safe and can only be read: open it with "
            "read-only=on, and "
            "convert it to one with LUKS");
    r = secret_lookup(secret, &password, &bytes, err);
    if (r < 0)
        return r;
    memcpy(key, password, MIN(bytes, sizeof(key)));
    secret_free(password, bytes);
    r = sector_cipher_new(&spec, key, SECTOR_BYTES, &q->crypt->cipher, err);
    explicit_bzero(key, sizeof(key));
    return r;
}

static int check_format(const Qcow2 *q, const BlockdevQcow2Encryption *o, Error *err)
{
    uint32_t method = q->header.crypt_method;
    BlockdevQcow2EncryptionFormat format = method == QCOW2_CRYPT_LUKS ? BLOCKDEV_QCOW2_ENCRYPTION_FORMAT_LUKS
                                                                      : BLOCKDEV_QCOW2_ENCRYPTION_FORMAT_AES;

    if (!o)
        return 0;
    if (!method)
        return err_set(err, -EINVAL, "No encryption in image header, but options specified format '%s'",
            blockdev_qcow2_encryption_format_name(o->format));
    if (o->format != format)
        return err_set(err, -EINVAL, "Header reported '%s' encryption format but options specify '%s'",
            blockdev_qcow2_encryption_format_name(format), blockdev_qcow2_encryption_format_name(o->format));
    return 0;
}

int crypt_open(Qcow2 *q, const BlockdevQcow2Encryption *options, Error *err)
{
    const char *secret = NULL;
    int r = check_format(q, options, err);

    if (r < 0 || !q->header.crypt_method)
        return r;
    if (options)
        secret = options->format == BLOCKDEV_QCOW2_ENCRYPTION_FORMAT_LUKS ? options->u.luks.key_secret
                                                                          : options->u.aes.key_secret;
    if (!secret)
        return err_set(err, -EINVAL, "Parameter 'encrypt.key-secret' is required for cipher");
    q->crypt = mem_new(Crypt);
    return q->header.crypt_method == QCOW2_CRYPT_LUKS ? open_luks(q, secret, err) : open_aes(q, secret, err);
}

void crypt_done(Qcow2 *q)
{
    if (q->crypt)
        sector_cipher_free(q->crypt->cipher);
    free(TAKE(q->crypt));
}

/* ---- Requests ---- */

int crypt_read(Qcow2 *q, uint64_t guest, uint64_t host, IoSlice dst)
{
    const Crypt *c = q->crypt;
    int r = child_read(q->data, host, dst);

    if (r == 0)
        parallel_decrypt(c->cipher, (c->luks ? host : guest) / SECTOR_BYTES, dst);
    return r;
}

int crypt_write(Qcow2 *q, uint64_t host, IoSlice src, unsigned flags)
{
    size_t room = MIN(src.bytes, (size_t)WRITE_BYTES);
    BufferPool *pool = buffer_pool_get();
    uint8_t *buffer = buffer_alloc(pool, room);
    int r = buffer ? 0 : -ENOMEM;

    for (size_t done = 0; r == 0 && done < src.bytes; done += room) {
        size_t bytes = MIN(src.bytes - done, room);

        parallel_encrypt(
            q->crypt->cipher, (host + done) / SECTOR_BYTES, buffer, io_slice_part(src, done, bytes));
        r = edge_pwrite(q->data, host + done, buffer, bytes, flags);
    }
    buffer_free(pool, buffer, room);
    buffer_pool_put(pool);
    return r;
}

/* ---- Information ---- */

ImageInfoSpecificQCow2Encryption *crypt_info(const Qcow2 *q)
{
    ImageInfoSpecificQCow2Encryption *info = mem_new(ImageInfoSpecificQCow2Encryption);
    QCryptoBlockInfoLUKS *luks;

    info->format = BLOCKDEV_QCOW2_ENCRYPTION_FORMAT_AES;
    if (!q->crypt->luks)
        return info;
    luks = luks_info(&q->crypt->volume);
    info->format = BLOCKDEV_QCOW2_ENCRYPTION_FORMAT_LUKS;
    info->u.luks = *luks;
    free(luks); /* what it owned is the copy's */
    return info;
}
