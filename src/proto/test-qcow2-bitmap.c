/* SPDX-License-Identifier: Apache-2.0 */
#include "base/mem.h"
#include "proto/qcow2-bitmap.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#define CLUSTER_BITS 16u
#define DISK_BYTES (UINT64_C(10) << 20)

/* ---- Extension ---- */

static void assert_ext(Qcow2BitmapsExt ext, uint32_t reserved, uint32_t bytes, const char *text)
{
    AUTO_ERROR Error err = ERROR_INIT;
    uint8_t data[QCOW2_BITMAPS_EXT_BYTES];
    Qcow2BitmapsExt decoded = {0};
    int r;

    qcow2_bitmaps_ext_encode(&ext, data);
    put_be32(data + 4, reserved);
    r = qcow2_bitmaps_ext_decode(data, bytes, CLUSTER_BITS, &decoded, &err);
    assert_int_equal(r, text ? -EINVAL : 0);
    if (text) {
        assert_string_equal(err.message, text);
        return;
    }
    assert_int_equal(decoded.count, ext.count);
    assert_int_equal(decoded.directory_bytes, ext.directory_bytes);
    assert_int_equal(decoded.directory_offset, ext.directory_offset);
}

static void test_extension(void **state)
{
    Qcow2BitmapsExt ext = {.count = 2, .directory_bytes = 64, .directory_offset = 0x80000};

    assert_ext(ext, 0, 24, NULL);
    assert_ext(ext, 0, 16, "bitmaps_ext: Invalid extension length");
    assert_ext(ext, 1, 24, "bitmaps_ext: Reserved field is not zero");
    ext.count = 0;
    assert_ext(ext, 0, 24, "found bitmaps extension with zero bitmaps");
    ext.count = 65535;
    assert_ext(ext, 0, 24, NULL);
    ext.count = 65536;
    assert_ext(
        ext, 0, 24, "bitmaps_ext: Image has 65536 bitmaps, exceeding the QEMU supported maximum of 65535");
    ext = (Qcow2BitmapsExt){.count = 1, .directory_bytes = 67107840, .directory_offset = 0x80000};
    assert_ext(ext, 0, 24, NULL);
    ext.directory_bytes++;
    assert_ext(ext, 0, 24,
        "bitmaps_ext: bitmap directory size (67107841) exceeds the maximum supported size (67107840)");
    ext.directory_bytes = 0;
    assert_ext(ext, 0, 24, "Requested bitmap directory size is zero");
    ext.directory_bytes = 32;
    ext.directory_offset = 0x80200;
    assert_ext(ext, 0, 24, "bitmaps_ext: invalid bitmap directory offset");
    ext.directory_offset = UINT64_C(0xffffffffffff0000);
    assert_ext(ext, 0, 24, "bitmaps_ext: invalid bitmap directory offset");
}

/* ---- Directory ---- */

static Qcow2BitmapEntry sound_entry(void)
{
    return (Qcow2BitmapEntry){.table_offset = 0x60000,
        .table_entries = 1,
        .flags = QCOW2_BITMAP_AUTO,
        .type = QCOW2_BITMAP_TYPE_DIRTY,
        .granularity_bits = 16,
        .name_bytes = 2,
        .name = "b0"};
}

static void assert_entry(Qcow2BitmapEntry entry, bool sound)
{
    AUTO_ERROR Error err = ERROR_INIT;
    int r = qcow2_bitmap_entry_check(&entry, CLUSTER_BITS, DISK_BYTES, &err);

    assert_int_equal(r, sound ? 0 : -EINVAL);
    if (!sound)
        assert_string_equal(err.message, entry.extra_bytes ? "Bitmap extra data is not supported"
                                         : entry.name_bytes == 2
                                             ? "Bitmap 'b0' doesn't satisfy the constraints"
                                             : "Bitmap '' doesn't satisfy the constraints");
}

#define ASSERT_FIELD(field, value, sound)         \
    do {                                          \
        Qcow2BitmapEntry changed = sound_entry(); \
                                                  \
        changed.field = (value);                  \
        assert_entry(changed, sound);             \
    } while (0)

/* Every field at both sides of each of its bounds. */
static void test_bounds(void **state)
{
    assert_entry(sound_entry(), true);
    ASSERT_FIELD(table_offset, 0, false);
    ASSERT_FIELD(table_offset, 0x60200, false);
    ASSERT_FIELD(table_offset, UINT64_C(0x7fffffffffff0000), false);
    ASSERT_FIELD(table_offset, UINT64_C(0xffffffffffff0000), false);
    ASSERT_FIELD(table_entries, 0, false);
    ASSERT_FIELD(table_entries, 0x2000, true); /* 512 MiB */
    ASSERT_FIELD(table_entries, 0x2001, false);
    ASSERT_FIELD(table_entries, 0x8000001, false);
    ASSERT_FIELD(table_entries, UINT32_MAX, false);
    ASSERT_FIELD(flags, QCOW2_BITMAP_IN_USE, true);
    ASSERT_FIELD(flags, QCOW2_BITMAP_EXTRA_COMPATIBLE, false);
    ASSERT_FIELD(flags, 1u << 31, false);
    ASSERT_FIELD(type, 0, false);
    ASSERT_FIELD(type, 2, false);
    ASSERT_FIELD(granularity_bits, 8, false);
    ASSERT_FIELD(granularity_bits, 9, true);
    ASSERT_FIELD(granularity_bits, 31, true);
    ASSERT_FIELD(granularity_bits, 32, false);
    ASSERT_FIELD(name_bytes, 0, false);
    ASSERT_FIELD(extra_bytes, 8, false);
}

static void test_name_bounds(void **state)
{
    AUTO_FREE char *name = mem_zalloc(1024);
    AUTO_ERROR Error err = ERROR_INIT;
    Qcow2BitmapEntry entry = sound_entry();

    memset(name, 'n', 1024);
    entry.name = name;
    entry.name_bytes = 1023;
    assert_int_equal(qcow2_bitmap_entry_check(&entry, CLUSTER_BITS, DISK_BYTES, &err), 0);
    name[7] = 0;
    assert_int_equal(qcow2_bitmap_entry_check(&entry, CLUSTER_BITS, DISK_BYTES, &err), -EINVAL);
    err_done(&err);
    name[7] = 'n';
    entry.name_bytes = 1024;
    assert_int_equal(qcow2_bitmap_entry_check(&entry, CLUSTER_BITS, DISK_BYTES, &err), -EINVAL);
}

/* A table must cover the disk, but for a bitmap that is in use: its disk may have grown. */
static void test_coverage(void **state)
{
    AUTO_ERROR Error err = ERROR_INIT;
    Qcow2BitmapEntry entry = sound_entry();

    entry.granularity_bits = 9;
    assert_int_equal(qcow2_bitmap_entry_check(&entry, 9, 512 * 4096, &err), 0);
    assert_int_equal(qcow2_bitmap_entry_check(&entry, 9, 512 * 4096 + 1, &err), -EINVAL);
    err_done(&err);
    entry.flags = QCOW2_BITMAP_IN_USE;
    assert_int_equal(qcow2_bitmap_entry_check(&entry, 9, 512 * 4096 + 1, &err), 0);
}

static void test_directory(void **state)
{
    AUTO_ERROR Error err = ERROR_INIT;
    Qcow2BitmapEntry entry = sound_entry(), decoded;
    size_t bytes, offset = 0;
    uint8_t data[128];

    bytes = qcow2_bitmap_entry_encode(&entry, data);
    assert_int_equal(bytes, 32);
    entry.name = "long-name";
    entry.name_bytes = 9;
    bytes += qcow2_bitmap_entry_encode(&entry, data + bytes);
    assert_int_equal(bytes, 72);
    assert_int_equal(qcow2_bitmap_entry_next(data, bytes, &offset, &decoded, &err), 1);
    assert_int_equal(decoded.name_bytes, 2);
    assert_memory_equal(decoded.name, "b0", 2);
    assert_int_equal(decoded.table_offset, 0x60000);
    assert_int_equal(decoded.table_entries, 1);
    assert_int_equal(decoded.flags, QCOW2_BITMAP_AUTO);
    assert_int_equal(decoded.type, QCOW2_BITMAP_TYPE_DIRTY);
    assert_int_equal(decoded.granularity_bits, 16);
    assert_int_equal(qcow2_bitmap_entry_next(data, bytes, &offset, &decoded, &err), 1);
    assert_memory_equal(decoded.name, "long-name", 9);
    assert_int_equal(qcow2_bitmap_entry_next(data, bytes, &offset, &decoded, &err), 0);
    for (size_t cut = 1; cut < 32; cut++) { /* whatever is cut off is missed */
        offset = 0;
        assert_int_equal(qcow2_bitmap_entry_next(data, cut, &offset, &decoded, &err), -EINVAL);
        err_done(&err);
    }
    offset = 0;
    put_be32(data + 20, UINT32_MAX);
    assert_int_equal(qcow2_bitmap_entry_next(data, bytes, &offset, &decoded, &err), -EINVAL);
    assert_string_equal(err.message, "Broken bitmap directory");
}

/* ---- Table ---- */

static void test_table(void **state)
{
    assert_int_equal(qcow2_bitmap_cluster(0, 16), QCOW2_BITMAP_ZEROES);
    assert_int_equal(qcow2_bitmap_cluster(1, 16), QCOW2_BITMAP_ONES);
    assert_int_equal(qcow2_bitmap_cluster(2, 16), QCOW2_BITMAP_INVALID);
    assert_int_equal(qcow2_bitmap_cluster(0x10000, 16), QCOW2_BITMAP_DATA);
    assert_int_equal(qcow2_bitmap_cluster(0x10001, 16), QCOW2_BITMAP_INVALID);
    assert_int_equal(qcow2_bitmap_cluster(0x10200, 16), QCOW2_BITMAP_INVALID);
    assert_int_equal(qcow2_bitmap_cluster(0x10200, 9), QCOW2_BITMAP_DATA);
    assert_int_equal(qcow2_bitmap_cluster(UINT64_C(0x0100000000010000), 16), QCOW2_BITMAP_INVALID);
    assert_int_equal(qcow2_bitmap_cluster(UINT64_C(1) << 63, 16), QCOW2_BITMAP_INVALID);
    assert_int_equal(qcow2_bitmap_entries_for(0, 16, 16), 0);
    assert_int_equal(qcow2_bitmap_entries_for(1, 16, 16), 1);
    assert_int_equal(qcow2_bitmap_entries_for(UINT64_C(32) << 30, 16, 16), 1);
    assert_int_equal(qcow2_bitmap_entries_for((UINT64_C(32) << 30) + 1, 16, 16), 2);
    assert_int_equal(qcow2_bitmap_bytes_for(65536 * 9, 16), 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_extension), cmocka_unit_test(test_bounds),
        cmocka_unit_test(test_name_bounds), cmocka_unit_test(test_coverage), cmocka_unit_test(test_directory),
        cmocka_unit_test(test_table)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
