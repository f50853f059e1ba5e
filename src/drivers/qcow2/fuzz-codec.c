/* SPDX-License-Identifier: Apache-2.0 */
/* Compressed clusters from arbitrary bytes. The first byte chooses the compression and the size of a cluster.
 */
#include "base/mem.h"
#include "drivers/qcow2/codec.h"
#include "proto/qcow2.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Two decoders of one format: what both accept must be the same. */
static void compare_start(const uint8_t *in, size_t in_bytes, const uint8_t *whole, size_t bytes)
{
    AUTO_FREE uint8_t *start = mem_zalloc(bytes);

    if (codec_unpack_start(in, in_bytes, start, bytes) == 0 && whole && memcmp(start, whole, bytes) != 0)
        __builtin_trap();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    AUTO_FREE uint8_t *out = NULL;
    size_t bytes;
    uint8_t type;
    int r;

    if (!size)
        return 0;
    type = data[0] & 1 ? QCOW2_COMPRESSION_ZSTD : QCOW2_COMPRESSION_ZLIB;
    bytes = (size_t)512 << (data[0] >> 1) % 8;
    out = mem_zalloc(bytes);
    r = codec_unpack(type, data + 1, size - 1, out, bytes);
    if (type == QCOW2_COMPRESSION_ZLIB) {
        compare_start(data + 1, size - 1, r == 0 ? out : NULL, bytes);
        compare_start(data + 1, size - 1, r == 0 ? out : NULL, bytes / 3);
    }
    return 0;
}
