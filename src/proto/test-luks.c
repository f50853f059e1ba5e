/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/luks.h"

#include "base/endian.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static LuksHeader make(uint32_t key_bytes)
{
    LuksHeader header = {.cipher = "aes",
        .mode = "xts-plain64",
        .hash = "sha256",
        .key_bytes = key_bytes,
        .digest_iterations = 1000,
        .uuid = "905315ed-c4f3-4ff9-ae04-ebb18d4238f5"};

    luks_header_place(&header, false);
    header.slots[3].active = true;
    header.slots[3].iterations = 7;
    memset(header.slots[3].salt, 0x5a, LUKS_SALT_BYTES);
    return header;
}

/* The places are those that other programs use. */
static void test_round_trip(void **state)
{
    AUTO_ERROR Error err = ERROR_INIT;
    LuksHeader header = make(64), again;
    uint8_t bytes[LUKS_HEADER_BYTES];

    assert_int_equal(header.slots[0].sector, 8);
    assert_int_equal(header.slots[1].sector, 512);
    assert_int_equal(header.payload_sector, 4040);
    luks_header_encode(&header, bytes);
    assert_true(luks_is_version(bytes, sizeof(bytes), 1));
    assert_false(luks_is_version(bytes, 7, 1));
    assert_int_equal(luks_header_decode(bytes, false, &again, &err), 0);
    assert_string_equal(again.cipher, header.cipher);
    assert_string_equal(again.mode, header.mode);
    assert_string_equal(again.hash, header.hash);
    assert_string_equal(again.uuid, header.uuid);
    assert_int_equal(again.key_bytes, 64);
    assert_int_equal(again.payload_sector, header.payload_sector);
    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        assert_int_equal(again.slots[i].active, i == 3);
        assert_int_equal(again.slots[i].sector, header.slots[i].sector);
        assert_memory_equal(again.slots[i].salt, header.slots[i].salt, LUKS_SALT_BYTES);
    }
}

static void expect_refused(unsigned at, uint32_t value, bool detached, const char *message)
{
    AUTO_ERROR Error err = ERROR_INIT;
    LuksHeader header = make(64);
    uint8_t bytes[LUKS_HEADER_BYTES];

    luks_header_encode(&header, bytes);
    put_be32(bytes + at, value);
    if (message) {
        assert_true(luks_header_decode(bytes, detached, &header, &err) < 0);
        assert_string_equal(err.message, message);
    } else {
        assert_int_equal(luks_header_decode(bytes, detached, &header, &err), 0);
    }
}

/* Each number at its bounds: the offsets are those of the specification. */
static void test_bounds(void **state)
{
    expect_refused(104, 0, false, "LUKS payload is overlapping with the header");
    expect_refused(104, 0, true, NULL);
    expect_refused(104, 1, true, "LUKS payload is overlapping with the header");
    expect_refused(104, 4035, false, "Keyslot 7 is overlapping with the encrypted payload");
    expect_refused(104, 4036, false, NULL);
    expect_refused(104, UINT32_MAX, false, NULL);
    expect_refused(108, UINT32_MAX, true, "Keyslot 0 is overlapping with the encrypted payload");
    expect_refused(164, 0, false, "LUKS key iteration count is zero");
    expect_refused(208 + 3 * 48 + 4, 0, false, "Keyslot 3 iteration count is zero");
    expect_refused(208 + 2 * 48 + 4, 0, false, NULL);
    expect_refused(208 + 40, 1, false, "Keyslot 0 is overlapping with the LUKS header");
    expect_refused(208 + 40, 2, false, NULL);
    expect_refused(208 + 40, 13, false, "Keyslots 0 and 1 are overlapping in the header");
    expect_refused(208 + 40, 12, false, NULL);
    expect_refused(208 + 40, UINT32_MAX, false, "Keyslot 0 is overlapping with the encrypted payload");
    expect_refused(208 + 44, 3999, false, "Keyslot 0 is corrupted (stripes 3999 != 4000)");
    expect_refused(208, 1, false, "Keyslot 0 state (active/disable) is corrupted");
    expect_refused(0, 0, false, "Volume is not in LUKS format");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_bounds),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
