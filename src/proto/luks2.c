/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/luks2.h"

#include "base/endian.h"

#include <inttypes.h>
#include <string.h>

#define MAGIC_BYTES 6u

/* Where the fields lie. */
#define AT_VERSION 6u
#define AT_COPY_BYTES 8u
#define AT_SEQUENCE 16u
#define AT_CHECKSUM_HASH 72u
#define AT_UUID 168u
#define AT_OFFSET 256u
#define AT_CHECKSUM 448u

static const uint8_t first_magic[MAGIC_BYTES] = {'L', 'U', 'K', 'S', 0xba, 0xbe};
static const uint8_t second_magic[MAGIC_BYTES] = {'S', 'K', 'U', 'L', 0xba, 0xbe};

static int check_place(const Luks2Binary *binary, uint64_t stored, uint64_t offset, Error *err)
{
    uint64_t bytes = binary->copy_bytes;

    if (bytes < LUKS2_COPY_BYTES_MIN || bytes > LUKS2_COPY_BYTES_MAX || !is_power_of_2(bytes))
        return err_set(err, -EINVAL, "LUKS2 header size %" PRIu64 " is not valid", bytes);
    if (stored != offset)
        return err_set(
            err, -EINVAL, "LUKS2 header at offset %" PRIu64 " says that it is at %" PRIu64, offset, stored);
    if (offset && offset != bytes)
        return err_set(
            err, -EINVAL, "LUKS2 header at offset %" PRIu64 " has %" PRIu64 " bytes", offset, bytes);
    return 0;
}

int luks2_binary_decode(
    const uint8_t data[static LUKS2_BINARY_BYTES], uint64_t offset, Luks2Binary *ret_binary, Error *err)
{
    Luks2Binary binary = {
        .copy_bytes = get_be64(data + AT_COPY_BYTES), .sequence = get_be64(data + AT_SEQUENCE)};
    int r;

    if (memcmp(data, offset ? second_magic : first_magic, MAGIC_BYTES) != 0)
        return err_set(err, -EINVAL, "Volume is not in LUKS format");
    if (get_be16(data + AT_VERSION) != 2)
        return err_set(err, -ENOTSUP, "LUKS version %u is not supported", get_be16(data + AT_VERSION));
    r = check_place(&binary, get_be64(data + AT_OFFSET), offset, err);
    if (r < 0)
        return r;
    if (!memchr(data + AT_CHECKSUM_HASH, 0, LUKS2_HASH_NAME_BYTES))
        return err_set(err, -EINVAL, "LUKS2 header checksum name is not NUL terminated");
    memcpy(binary.checksum_hash, data + AT_CHECKSUM_HASH, LUKS2_HASH_NAME_BYTES);
    memcpy(binary.checksum, data + AT_CHECKSUM, LUKS2_CHECKSUM_BYTES);
    memcpy(binary.uuid, data + AT_UUID, LUKS2_UUID_BYTES);
    *ret_binary = binary;
    return 0;
}

void luks2_binary_set_checksum(uint8_t data[static LUKS2_BINARY_BYTES], const uint8_t *checksum, size_t bytes)
{
    memset(data + AT_CHECKSUM, 0, LUKS2_CHECKSUM_BYTES);
    memcpy(data + AT_CHECKSUM, checksum, MIN(bytes, (size_t)LUKS2_CHECKSUM_BYTES));
}
