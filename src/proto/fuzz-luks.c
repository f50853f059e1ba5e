/* SPDX-License-Identifier: Apache-2.0 */
/* A LUKS header from arbitrary bytes; what is accepted survives being written. */
#include "proto/luks.h"

#include <assert.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    AUTO_ERROR Error err = ERROR_INIT;
    uint8_t bytes[LUKS_HEADER_BYTES] = {0};
    LuksHeader header, again;

    if (!size)
        return 0;
    memcpy(bytes, data + 1, size - 1 < sizeof(bytes) ? size - 1 : sizeof(bytes));
    if (luks_header_decode(bytes, data[0] & 1, &header, &err) < 0)
        return 0;
    luks_header_encode(&header, bytes);
    assert(luks_header_decode(bytes, data[0] & 1, &again, &err) == 0);
    assert(memcmp(&header.slots, &again.slots, sizeof(header.slots)) == 0);
    return 0;
}
