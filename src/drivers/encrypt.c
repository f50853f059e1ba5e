/* SPDX-License-Identifier: Apache-2.0 */
#include "drivers/encrypt.h"

#include "crypto/parallel.h"
#include "loop/buffer-pool.h"

/* Encrypted at once on its way to the file. */
#define WRITE_BYTES (1 * MIB)

int encrypt_write(
    Edge *edge, uint64_t offset, const SectorCipher *cipher, uint64_t number, IoSlice src, unsigned flags)
{
    size_t room = MIN(src.bytes, (size_t)WRITE_BYTES);
    BufferPool *pool = buffer_pool_get();
    uint8_t *buffer = buffer_alloc(pool, room);
    int r = buffer ? 0 : -ENOMEM;

    for (size_t done = 0; r == 0 && done < src.bytes; done += room) {
        size_t bytes = MIN(src.bytes - done, room);

        parallel_encrypt(
            cipher, number + done / CIPHER_IV_SECTOR_BYTES, buffer, io_slice_part(src, done, bytes));
        r = edge_pwrite(edge, offset + done, buffer, bytes, flags);
    }
    buffer_free(pool, buffer, room);
    buffer_pool_put(pool);
    return r;
}
