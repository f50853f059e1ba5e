/* SPDX-License-Identifier: Apache-2.0 */
/* See codec.h. */
#include "drivers/qcow2/codec.h"

#include "base/mem.h"
#include "proto/qcow2.h"

#include <errno.h>
#include <libdeflate.h>
#include <pthread.h>
#include <zlib.h>
#include <zstd.h>

/* Smaller than what zlib makes at its default level of the window of 4 KiB that other writers use, in a third
 * of its time. */
#define DEFLATE_LEVEL 4
#define ZSTD_LEVEL 3

/* ---- What a thread keeps ---- */

typedef struct Contexts {
    struct libdeflate_decompressor *inflate;
    struct libdeflate_compressor *deflate;
    z_stream start;
    bool has_start;
    ZSTD_DCtx *zstd_unpack;
    ZSTD_CCtx *zstd_pack;
} Contexts;

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t key;
static bool have_key;

static void contexts_free(void *arg)
{
    Contexts *c = arg;

    libdeflate_free_decompressor(c->inflate);
    libdeflate_free_compressor(c->deflate);
    if (c->has_start)
        inflateEnd(&c->start);
    ZSTD_freeDCtx(c->zstd_unpack);
    ZSTD_freeCCtx(c->zstd_pack);
    free(c);
}

static void make_key(void)
{
    have_key = pthread_key_create(&key, contexts_free) == 0;
}

/* NULL without memory. */
static Contexts *contexts(void)
{
    Contexts *c;

    pthread_once(&once, make_key);
    if (!have_key)
        return NULL;
    c = pthread_getspecific(key);
    if (c)
        return c;
    c = mem_new(Contexts);
    if (pthread_setspecific(key, c) == 0)
        return c;
    free(c);
    return NULL;
}

/* ---- Unpacking ---- */

static int unpack_deflate(Contexts *c, const uint8_t *in, size_t in_bytes, uint8_t *out, size_t out_bytes)
{
    size_t used;

    if (!c->inflate)
        c->inflate = libdeflate_alloc_decompressor();
    if (!c->inflate)
        return -ENOMEM;
    return libdeflate_deflate_decompress_ex(c->inflate, in, in_bytes, out, out_bytes, &used, NULL) ==
                   LIBDEFLATE_SUCCESS
               ? 0
               : -EIO;
}

/* The library may also know formats from before zstd was released, which no image has. */
static bool is_frame(const uint8_t *in, size_t bytes)
{
    uint32_t magic = bytes >= sizeof(magic) ? get_le32(in) : 0;

    return magic == ZSTD_MAGICNUMBER || (magic & ZSTD_MAGIC_SKIPPABLE_MASK) == ZSTD_MAGIC_SKIPPABLE_START;
}

/* Frame by frame, and each of them at once: so the decoder needs no window of its own, whose size a frame
 * could choose. */
static int unpack_zstd(Contexts *c, const uint8_t *in, size_t in_bytes, uint8_t *out, size_t out_bytes)
{
    if (!c->zstd_unpack)
        c->zstd_unpack = ZSTD_createDCtx();
    if (!c->zstd_unpack)
        return -ENOMEM;
    while (out_bytes) {
        size_t frame = is_frame(in, in_bytes) ? ZSTD_findFrameCompressedSize(in, in_bytes) : 0, made;

        if (!frame || ZSTD_isError(frame))
            return -EIO;
        made = ZSTD_decompressDCtx(c->zstd_unpack, out, out_bytes, in, frame);
        if (ZSTD_isError(made))
            return -EIO;
        in += frame;
        in_bytes -= frame;
        out += made;
        out_bytes -= made;
    }
    return 0;
}

int codec_unpack(uint8_t type, const uint8_t *in, size_t in_bytes, uint8_t *out, size_t out_bytes)
{
    Contexts *c = contexts();

    if (!c)
        return -ENOMEM;
    return type == QCOW2_COMPRESSION_ZSTD ? unpack_zstd(c, in, in_bytes, out, out_bytes)
                                          : unpack_deflate(c, in, in_bytes, out, out_bytes);
}

int codec_unpack_start(const uint8_t *in, size_t in_bytes, uint8_t *out, size_t out_bytes)
{
    Contexts *c = contexts();

    if (!c)
        return -ENOMEM;
    if (!c->has_start)
        c->has_start = inflateInit2(&c->start, -MAX_WBITS) == Z_OK;
    else
        (void)inflateReset(&c->start);
    if (!c->has_start)
        return -ENOMEM;
    c->start.next_in = (Bytef *)in;
    c->start.avail_in = (uInt)in_bytes;
    c->start.next_out = out;
    c->start.avail_out = (uInt)out_bytes;
    (void)inflate(&c->start, Z_SYNC_FLUSH);
    return c->start.avail_out ? -EIO : 0;
}

/* ---- Packing ---- */

static int pack_deflate(Contexts *c, const uint8_t *in, size_t in_bytes, uint8_t *out, size_t *ret_bytes)
{
    if (!c->deflate)
        c->deflate = libdeflate_alloc_compressor(DEFLATE_LEVEL);
    if (!c->deflate)
        return -ENOMEM;
    *ret_bytes = libdeflate_deflate_compress(c->deflate, in, in_bytes, out, in_bytes - 1);
    return 0;
}

static int pack_zstd(Contexts *c, const uint8_t *in, size_t in_bytes, uint8_t *out, size_t *ret_bytes)
{
    size_t used;

    if (!c->zstd_pack)
        c->zstd_pack = ZSTD_createCCtx();
    if (!c->zstd_pack)
        return -ENOMEM;
    used = ZSTD_compressCCtx(c->zstd_pack, out, in_bytes - 1, in, in_bytes, ZSTD_LEVEL);
    *ret_bytes = ZSTD_isError(used) ? 0 : used;
    return 0;
}

int codec_pack(uint8_t type, const uint8_t *in, size_t in_bytes, uint8_t *out, size_t *ret_bytes)
{
    Contexts *c = contexts();

    if (!c)
        return -ENOMEM;
    return type == QCOW2_COMPRESSION_ZSTD ? pack_zstd(c, in, in_bytes, out, ret_bytes)
                                          : pack_deflate(c, in, in_bytes, out, ret_bytes);
}
