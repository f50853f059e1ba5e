/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/luks2.h"

#include "base/endian.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#define SECOND_AT LUKS2_COPY_BYTES_MIN

/* The offsets are those of the specification. */
static void make(uint8_t *out, uint64_t offset, uint64_t copy_bytes)
{
    memset(out, 0, LUKS2_BINARY_BYTES);
    memcpy(out, offset ? "SKUL\xba\xbe" : "LUKS\xba\xbe", 6);
    put_be16(out + 6, 2);
    put_be64(out + 8, copy_bytes);
    put_be64(out + 16, 7);
    strcpy((char *)out + 72, "sha256");
    strcpy((char *)out + 168, "905315ed-c4f3-4ff9-ae04-ebb18d4238f5");
    put_be64(out + 256, offset);
    memset(out + 448, 0x5a, LUKS2_CHECKSUM_BYTES);
}

static void expect(const uint8_t *bytes, uint64_t offset, const char *message)
{
    AUTO_ERROR Error err = ERROR_INIT;
    Luks2Binary binary;
    int r = luks2_binary_decode(bytes, offset, &binary, &err);

    if (message) {
        assert_true(r < 0);
        assert_string_equal(err.message, message);
    } else {
        assert_int_equal(r, 0);
    }
}

static void test_fields(void **state)
{
    AUTO_ERROR Error err = ERROR_INIT;
    uint8_t bytes[LUKS2_BINARY_BYTES], sum[4] = {1, 2, 3, 4}, zeroes[LUKS2_CHECKSUM_BYTES] = {0};
    Luks2Binary binary;

    make(bytes, SECOND_AT, SECOND_AT);
    assert_int_equal(luks2_binary_decode(bytes, SECOND_AT, &binary, &err), 0);
    assert_int_equal(binary.copy_bytes, SECOND_AT);
    assert_int_equal(binary.sequence, 7);
    assert_string_equal(binary.checksum_hash, "sha256");
    assert_string_equal(binary.uuid, "905315ed-c4f3-4ff9-ae04-ebb18d4238f5");
    assert_int_equal(binary.checksum[63], 0x5a);
    luks2_binary_set_checksum(bytes, sum, sizeof(sum));
    assert_memory_equal(bytes + 448, sum, sizeof(sum));
    assert_memory_equal(bytes + 452, zeroes, LUKS2_CHECKSUM_BYTES - sizeof(sum));
}

static void test_bounds(void **state)
{
    uint8_t bytes[LUKS2_BINARY_BYTES];

    make(bytes, 0, 16 * KIB);
    expect(bytes, 0, NULL);
    expect(bytes, SECOND_AT, "Volume is not in LUKS format");
    make(bytes, 0, 4 * MIB);
    expect(bytes, 0, NULL);
    make(bytes, 0, 8 * MIB);
    expect(bytes, 0, "LUKS2 header size 8388608 is not valid");
    make(bytes, 0, 8 * KIB);
    expect(bytes, 0, "LUKS2 header size 8192 is not valid");
    make(bytes, 0, 16 * KIB + 1);
    expect(bytes, 0, "LUKS2 header size 16385 is not valid");
    make(bytes, 0, UINT64_MAX);
    expect(bytes, 0, "LUKS2 header size 18446744073709551615 is not valid");
    make(bytes, 32 * KIB, 16 * KIB);
    expect(bytes, 32 * KIB, "LUKS2 header at offset 32768 has 16384 bytes");
    make(bytes, 0, 16 * KIB);
    put_be64(bytes + 256, 1);
    expect(bytes, 0, "LUKS2 header at offset 0 says that it is at 1");
    make(bytes, 0, 16 * KIB);
    put_be16(bytes + 6, 1);
    expect(bytes, 0, "LUKS version 1 is not supported");
    make(bytes, 0, 16 * KIB);
    memset(bytes + 72, 'x', LUKS2_HASH_NAME_BYTES);
    expect(bytes, 0, "LUKS2 header checksum name is not NUL terminated");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fields),
        cmocka_unit_test(test_bounds),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
