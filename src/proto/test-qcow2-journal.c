/* SPDX-License-Identifier: Apache-2.0 */
#include "base/mem.h"
#include "proto/qcow2-journal.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static void test_extension(void **state)
{
    uint8_t data[QCOW2_JOURNAL_EXT_BYTES];
    uint64_t offset = 0;

    qcow2_journal_ext_encode(0x50000, data);
    assert_int_equal(qcow2_journal_ext_decode(data, sizeof(data), 16, &offset), 0);
    assert_int_equal(offset, 0x50000);
    assert_int_equal(qcow2_journal_ext_decode(data, 16, 16, &offset), -EINVAL);
    assert_int_equal(qcow2_journal_ext_decode(data, sizeof(data), 20, &offset), -EINVAL);
    for (unsigned i = 0; i < sizeof(data); i++) { /* no byte but those of the offset may differ */
        data[i] ^= 1;
        assert_int_equal(
            qcow2_journal_ext_decode(data, sizeof(data), 16, &offset), i >= 8 && i < 14 ? 0 : -EINVAL);
        data[i] ^= 1;
    }
    qcow2_journal_ext_encode(0, data);
    assert_int_equal(qcow2_journal_ext_decode(data, sizeof(data), 16, &offset), -EINVAL);
    qcow2_journal_ext_encode(UINT64_C(0xffffffffffff0000), data);
    assert_int_equal(qcow2_journal_ext_decode(data, sizeof(data), 16, &offset), -EINVAL);
}

static void test_regions(void **state)
{
    assert_int_equal(qcow2_journal_region_bits(0), 16);
    assert_int_equal(qcow2_journal_region_bits(64 << 20), 16);
    assert_int_equal(qcow2_journal_region_bits((64 << 20) + 512), 17);
    assert_int_equal(qcow2_journal_region_bits(1 << 30), 20);
    assert_int_equal(qcow2_journal_region_bits(UINT64_C(32) << 30), 20);
    assert_int_equal(qcow2_journal_region_bits((UINT64_C(32) << 30) + 512), 21);
    assert_int_equal(qcow2_journal_region_bits(UINT64_C(1) << 40), 25);
    assert_int_equal(qcow2_journal_region_bits(INT64_MAX), 48);
}

static void test_head(void **state)
{
    Qcow2JournalHead head = {.region_bits = 16, .disk_bytes = 1 << 20}, decoded;
    uint8_t page[QCOW2_JOURNAL_PAGE_BYTES];

    head.slots[0] = 0x30000;
    head.slots[QCOW2_JOURNAL_SLOTS - 1] = 0x40000;
    qcow2_journal_head_encode(&head, page);
    assert_int_equal(qcow2_journal_head_decode(page, 1 << 20, &decoded), 0);
    assert_memory_equal(&decoded.slots, &head.slots, sizeof(head.slots));
    assert_int_equal(decoded.region_bits, 16);
    assert_int_equal(qcow2_journal_head_decode(page, (1 << 20) + 512, &decoded), -EINVAL);
    page[15] = 15;
    assert_int_equal(qcow2_journal_head_decode(page, 1 << 20, &decoded), -EINVAL);
    page[15] = 48;
    assert_int_equal(qcow2_journal_head_decode(page, 1 << 20, &decoded), 0);
    page[15] = 49;
    assert_int_equal(qcow2_journal_head_decode(page, 1 << 20, &decoded), -EINVAL);
    page[15] = 16;
    for (unsigned i = 0; i < 12; i++) { /* magic and version */
        page[i] ^= 1;
        assert_int_equal(qcow2_journal_head_decode(page, 1 << 20, &decoded), -EINVAL);
        page[i] ^= 1;
    }
    head.disk_bytes = UINT64_C(2) << 30;
    qcow2_journal_head_encode(&head, page);
    assert_int_equal(qcow2_journal_head_decode(page, head.disk_bytes, &decoded), 0);
    head.disk_bytes += 512; /* more than the regions cover */
    qcow2_journal_head_encode(&head, page);
    assert_int_equal(qcow2_journal_head_decode(page, head.disk_bytes, &decoded), -EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_extension), cmocka_unit_test(test_regions), cmocka_unit_test(test_head)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
