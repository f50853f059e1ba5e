/* SPDX-License-Identifier: Apache-2.0 */
/* blockdev-create of LUKS volumes. The header goes last, so that a failed attempt does not look like a
 * volume. */
#include "base/mem.h"
#include "crypto/secret.h"
#include "drivers/luks/luks-priv.h"
#include "generated/types.h"

static QCryptoBlockCreateOptionsLUKS crypto_options(const BlockdevCreateOptionsLUKS *o)
{
    return (QCryptoBlockCreateOptionsLUKS){
        .key_secret = o->key_secret,
        .has_cipher_alg = o->has_cipher_alg,
        .cipher_alg = o->cipher_alg,
        .has_cipher_mode = o->has_cipher_mode,
        .cipher_mode = o->cipher_mode,
        .has_ivgen_alg = o->has_ivgen_alg,
        .ivgen_alg = o->ivgen_alg,
        .has_ivgen_hash_alg = o->has_ivgen_hash_alg,
        .ivgen_hash_alg = o->ivgen_hash_alg,
        .has_hash_alg = o->has_hash_alg,
        .hash_alg = o->hash_alg,
        .has_iter_time = o->has_iter_time,
        .iter_time = o->iter_time,
    };
}

/* A header of its own has a payload in another file, which need not be named. */
static int check_refs(const BlockdevCreateOptionsLUKS *o, Error *err)
{
    int r = 0;

    if (!o->file && !o->header)
        return err_set(err, -EINVAL, "Either the parameter 'header' or 'file' must be specified");
    if (o->file)
        r = creation_check_ref(o->file, err);
    if (r == 0 && o->header)
        r = creation_check_ref(o->header, err);
    return r;
}

static int size_children(
    const BlockdevCreateOptionsLUKS *o, Edge *file, Edge *header, uint64_t head, Error *err)
{
    /* There is no metadata to allocate but the header. */
    Preallocation prealloc = o->has_preallocation && o->preallocation != PREALLOC_MODE_METADATA
                                 ? (Preallocation)o->preallocation
                                 : PREALLOCATION_OFF;
    int r = 0;

    if (header)
        r = edge_resize(header, head, false, PREALLOCATION_OFF, 0, err);
    if (r == 0 && file)
        r = edge_resize(
            file, align_up(o->size, LUKS_SECTOR_BYTES) + (header ? 0 : head), false, prealloc, 0, err);
    return r;
}

static void edge_close_ptr(Edge **edge)
{
    edge_close(*edge);
}

static int create_in(const BlockdevCreateOptionsLUKS *o, Luks *luks, const uint8_t *key, Error *err)
{
    CLEANUP(edge_close_ptr) Edge *file = NULL, *header = NULL;
    int r = o->file ? creation_open_ref(o->file, &file, err) : 0;
    LuksIo io;

    if (r == 0 && o->header)
        r = creation_open_ref(o->header, &header, err);
    if (r == 0)
        r = size_children(o, file, header, luks_head_bytes(luks), err);
    if (r < 0)
        return r;
    io = luks_edge_io(header ? header : file);
    return luks_slot_set(
        luks, &io, 0, key, o->key_secret, o->has_iter_time ? (uint64_t)o->iter_time : LUKS_ITER_TIME_MS, err);
}

int luks_create(const BlockdevCreateOptions *options, Error *err)
{
    const BlockdevCreateOptionsLUKS *o = &options->u.luks;
    QCryptoBlockCreateOptionsLUKS crypto = crypto_options(o);
    uint8_t *key;
    Luks luks;
    int r = check_refs(o, err);

    if (r < 0)
        return r;
    if (o->size > LIMIT_NODE_BYTES - 64 * MIB)
        return err_set(err, -EFBIG, "The requested file size is too large");
    r = luks_new(&crypto, o->header, &luks, &key, err);
    if (r < 0)
        return r;
    r = create_in(o, &luks, key, err);
    secret_free(key, luks.header.key_bytes);
    return r;
}
