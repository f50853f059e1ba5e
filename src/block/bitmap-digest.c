/* SPDX-License-Identifier: Apache-2.0 */
/* x-debug-block-dirty-bitmap-sha256: what a bitmap contains in one line, for tests. */
#include "base/mem.h"
#include "block/bitmap.h"
#include "generated/commands.h"

#include <errno.h>
#include <gnutls/crypto.h>

#define SHA256_BYTES 32
#define PIECE_BYTES ((size_t)64 * 1024)

/* The reference hashes whole words, at least one. */
static int digest(const DirtyBitmap *bitmap, uint8_t out[SHA256_BYTES])
{
    uint64_t bytes = MAX(align_up(dirty_bitmap_stored_bytes(bitmap), 8), UINT64_C(8));
    AUTO_FREE uint8_t *piece = mem_zalloc(PIECE_BYTES);
    gnutls_hash_hd_t hash;
    int r = gnutls_hash_init(&hash, GNUTLS_DIG_SHA256);

    if (r < 0)
        return -ENOTSUP;
    for (uint64_t at = 0; r >= 0 && at < bytes; at += PIECE_BYTES) {
        size_t length = MIN(bytes - at, PIECE_BYTES);

        dirty_bitmap_to_bytes(bitmap, at, piece, length);
        r = gnutls_hash(hash, piece, length);
    }
    gnutls_hash_deinit(hash, out);
    return r < 0 ? -EIO : 0;
}

int qmp_x_debug_block_dirty_bitmap_sha256(
    const BlockDirtyBitmap *arg, BlockDirtyBitmapSha256 **ret_result, Error *err)
{
    uint8_t bytes[SHA256_BYTES];
    StrBuf text = {0};
    DirtyBitmap *bitmap;
    int r = dirty_bitmap_lookup(arg->node, arg->name, &bitmap, err);

    if (r < 0)
        return r;
    r = digest(bitmap, bytes);
    if (r < 0)
        return err_set_errno(err, r, "Could not hash bitmap '%s'", arg->name);
    for (size_t i = 0; i < sizeof(bytes); i++)
        strbuf_printf(&text, "%02x", bytes[i]);
    *ret_result = mem_new(BlockDirtyBitmapSha256);
    (*ret_result)->sha256 = strbuf_take(&text);
    return 0;
}
