/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Encrypted images: LUKS, whose header lies in clusters of the image and whose initialisation vectors come
 * from the offset in the file, and the old AES, keyed by the password itself and counted by the guest's
 * sectors, which is only read. Compressed clusters are plain in such images, so none are written.
 *
 * What requests use does not change while the image is open: reads on other loops use it, too. Key slots do
 * (crypt_amend()): who looks at them does so on the node's home loop.
 */
#include "base/log.h"
#include "base/mem.h"
#include "crypto/luks.h"
#include "crypto/parallel.h"
#include "crypto/secret.h"
#include "drivers/encrypt.h"
#include "drivers/qcow2/qcow2-priv.h"
#include "generated/types.h"

#define SECTOR_BYTES 512u
#define AES_KEY_BYTES 16u

struct Crypt {
    SectorCipher *cipher;
    bool luks;
    Luks volume; /* if luks */
    char *key_secret;
    CoMutex amend_lock; /* main loop */
};

/* ---- The LUKS header ---- */

/* Within the header's clusters; what they do not have reads as zeroes. */
static int header_read(void *opaque, uint64_t offset, void *data, size_t bytes)
{
    Qcow2 *q = opaque;
    uint64_t size = q->crypt_bytes;
    size_t valid = offset < size ? (size_t)MIN(size - offset, (uint64_t)bytes) : 0;

    memset((uint8_t *)data + valid, 0, bytes - valid);
    return valid ? child_pread(q->file, q->crypt_offset + offset, data, valid) : 0;
}

/* Key slots may be anywhere in front of the volume's data, of which there is none here. */
static int header_write(void *opaque, uint64_t offset, const void *data, size_t bytes)
{
    Qcow2 *q = opaque;

    if (out_of_range(offset, bytes, q->crypt_bytes))
        return -EINVAL;
    return child_write_durably(q->file, q->crypt_offset + offset, data, bytes);
}

/* ---- Opening ---- */

static int open_luks(Qcow2 *q, const char *secret, Error *err)
{
    LuksIo io = {header_read, header_write, q};
    Crypt *c = q->crypt;
    uint8_t *key;
    int r;

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

    r = secret_lookup(secret, &password, &bytes, err);
    if (r < 0)
        return r;
    log_warn(
        "node '%s': the old AES encryption of qcow2 does not protect what is in the image; convert it to "
        "one with LUKS",
        q->node->name);
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
    if (q->header.crypt_method == QCOW2_CRYPT_LUKS && !q->crypt_bytes)
        return err_set(
            err, -EINVAL, "Missing CRYPTO header for crypt method %" PRIu32, q->header.crypt_method);
    if (options)
        secret = options->format == BLOCKDEV_QCOW2_ENCRYPTION_FORMAT_LUKS ? options->u.luks.key_secret
                                                                          : options->u.aes.key_secret;
    if (!secret)
        return err_set(err, -EINVAL, "Parameter 'encrypt.key-secret' is required for cipher");
    q->crypt = mem_new(Crypt);
    q->crypt->key_secret = str_dup(secret);
    return q->header.crypt_method == QCOW2_CRYPT_LUKS ? open_luks(q, secret, err) : open_aes(q, secret, err);
}

int crypt_check_writable(const Qcow2 *q, Error *err)
{
    if (q->header.crypt_method != QCOW2_CRYPT_AES)
        return 0;
    return err_set(err, -ENOTSUP,
        "Images with the old AES encryption are not safe and can only be read: open it with read-only=on, "
        "and "
        "convert it to one with LUKS");
}

void crypt_done(Qcow2 *q)
{
    if (q->crypt) {
        sector_cipher_free(q->crypt->cipher);
        free(q->crypt->key_secret);
    }
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
    return encrypt_write(q->data, host, q->crypt->cipher, host / SECTOR_BYTES, src, flags);
}

/* ---- Changing keys ---- */

/* On the home loop, where the set of metadata is. A damaged image may have anything where its header ought to
 * be. */
static int check_amendable(void *arg)
{
    Qcow2 *q = arg;

    if (!q->writable)
        return -EPERM;
    return q->corrupt ? -EIO : write_overlap_check(q, q->crypt_offset, q->crypt_bytes, META_HEADER);
}

static int amend_keys(Qcow2 *q, const QCryptoBlockAmendOptionsLUKS *options, bool force, Error *err)
{
    LuksIo io = {header_read, header_write, q};
    Crypt *c = q->crypt;
    int r;

    if (q->node->read_only)
        return err_set(err, -EACCES, "Node '%s' is read-only: its keys cannot be changed", q->node->name);
    r = loop_call(q->node->home, check_amendable, q);
    if (r < 0)
        return err_set_errno(err, r, "Cannot change the keys of node '%s'", q->node->name);
    return luks_amend(&c->volume, q->node->home, &io, options, c->key_secret, force, err);
}

int crypt_amend(Qcow2 *q, const QCryptoBlockAmendOptions *options, bool force, Error *err)
{
    int r;

    if (!q->crypt)
        return err_set(err, -ENOTSUP, "image is not encrypted, can't amend");
    if (options->format != QCRYPTO_BLOCK_FORMAT_LUKS)
        return err_set(err, -ENOTSUP, "Amend can't be used to change the qcow2 encryption format");
    if (!q->crypt->luks)
        return err_set(
            err, -ENOTSUP, "Only LUKS encryption options can be amended for qcow2 with blockdev-amend");
    co_mutex_lock_shielded(&q->crypt->amend_lock);
    r = amend_keys(q, &options->u.luks, force, err);
    co_mutex_unlock(&q->crypt->amend_lock);
    return r;
}

/* ---- Creation ---- */

struct NewCrypt {
    const QCryptoBlockCreateOptionsLUKS *options;
    Luks volume;
    uint8_t *key;
    Edge *file;
    uint64_t offset;
};

int crypt_new(const QCryptoBlockCreateOptions *options, NewCrypt **ret_crypt, Error *err)
{
    const QCryptoBlockCreateOptionsLUKS *luks = &options->u.luks;
    NewCrypt *c;
    int r;

    if (options->format != QCRYPTO_BLOCK_FORMAT_LUKS)
        return err_set(err, -ENOTSUP,
            "The old AES encryption is not safe, no images are made with it any more: use format 'luks'");
    if (!luks->key_secret)
        return err_set(err, -EINVAL, "Parameter 'encrypt.key-secret' is required for cipher");
    c = mem_new(NewCrypt);
    c->options = luks;
    r = luks_new(luks, false, &c->volume, &c->key, err);
    if (r < 0)
        free(c);
    else
        *ret_crypt = c;
    return r;
}

uint64_t crypt_new_bytes(const NewCrypt *c)
{
    return luks_head_bytes(&c->volume);
}

static int new_write(void *opaque, uint64_t offset, const void *data, size_t bytes)
{
    const NewCrypt *c = opaque;

    return child_write_durably(c->file, c->offset + offset, data, bytes);
}

int crypt_new_write(NewCrypt *c, Edge *file, uint64_t offset, Error *err)
{
    LuksIo io = {NULL, new_write, c};

    int r = child_write_zeroes(file, offset, luks_head_bytes(&c->volume));

    if (r < 0)
        return err_set_errno(err, r, "Unable to zero fill encryption header");
    c->file = file;
    c->offset = offset;
    return luks_slot_set(&c->volume, &io, 0, c->key, c->options->key_secret,
        c->options->has_iter_time ? (uint64_t)c->options->iter_time : LUKS_ITER_TIME_MS, err);
}

void crypt_new_free(NewCrypt *c)
{
    if (c)
        secret_free(c->key, c->volume.header.key_bytes);
    free(c);
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
