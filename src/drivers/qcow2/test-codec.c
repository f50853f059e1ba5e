/* SPDX-License-Identifier: Apache-2.0 */
/* Compressed clusters that are sound, and those that are not. */
#include "drivers/qcow2/codec.h"

#include "base/endian.h"
#include "base/mem.h"
#include "proto/qcow2.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/resource.h>
#include <zlib.h>
#include <zstd.h>

#include <cmocka.h>

#define BYTES 65536
#define SECTOR 512

static const uint8_t types[] = {QCOW2_COMPRESSION_ZLIB, QCOW2_COMPRESSION_ZSTD};

static uint8_t plain[BYTES], packed[2 * BYTES], out[BYTES + 1];

static void fill_plain(void)
{
    uint32_t state = 1;

    for (size_t i = 0; i < BYTES; i++) {
        state = state * 1664525 + 1013904223;
        plain[i] = i / 256 % 2 ? (uint8_t)(state >> 29) : (uint8_t)(i / 512);
    }
}

static size_t pack_plain(uint8_t type, size_t bytes)
{
    size_t used;

    fill_plain();
    memset(packed, 0xa5, sizeof(packed)); /* what follows in the last sector is somebody else's */
    assert_int_equal(codec_pack(type, plain, bytes, packed, &used), 0);
    assert_in_range(used, 1, bytes - 1);
    return used;
}

static void test_both_ways(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(types); i++) {
        size_t used = pack_plain(types[i], BYTES);

        out[BYTES] = 0x77;
        assert_int_equal(codec_unpack(types[i], packed, align_up(used, SECTOR), out, BYTES), 0);
        assert_memory_equal(out, plain, BYTES);
        assert_int_equal(codec_unpack(types[i], packed, used, out, BYTES), 0);
        assert_int_equal(out[BYTES], 0x77);
    }
}

static void test_incompressible(void **state)
{
    uint32_t word = 1;
    size_t used;

    for (size_t i = 0; i < BYTES; i++) {
        word = word * 1664525 + 1013904223;
        plain[i] = (uint8_t)(word >> 24 ^ word >> 13);
    }
    for (size_t i = 0; i < ARRAY_SIZE(types); i++) {
        assert_int_equal(codec_pack(types[i], plain, BYTES, packed, &used), 0);
        assert_int_equal(used, 0);
    }
}

static void test_other_size(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(types); i++) {
        size_t used = pack_plain(types[i], BYTES);

        out[BYTES - 1] = 0x77;
        assert_int_equal(
            codec_unpack(types[i], packed, used, out, BYTES - 1), -EIO); /* more than a cluster */
        assert_int_equal(out[BYTES - 1], 0x77);
        assert_int_equal(codec_unpack(types[i], packed, used, out, BYTES + 1), -EIO); /* less */
    }
}

static void test_truncated(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(types); i++) {
        size_t used = pack_plain(types[i], BYTES);

        for (size_t bytes = 0; bytes < used; bytes += 1 + bytes / 64) {
            AUTO_FREE uint8_t *exact = mem_zalloc(bytes + 1); /* for sanitizers: no byte more */

            memcpy(exact, packed, bytes);
            assert_int_equal(codec_unpack(types[i], exact, bytes, out, BYTES), -EIO);
        }
    }
}

static void test_start(void **state)
{
    size_t used = pack_plain(QCOW2_COMPRESSION_ZLIB, BYTES);

    for (size_t bytes = 1; bytes <= BYTES; bytes = bytes * 3 + 11) {
        memset(out, 0x77, sizeof(out));
        assert_int_equal(codec_unpack_start(packed, used, out, bytes), 0);
        assert_memory_equal(out, plain, bytes);
        assert_int_equal(out[bytes], 0x77);
    }
    assert_int_equal(codec_unpack_start(packed, used, out, BYTES + 1), -EIO);
    assert_int_equal(codec_unpack_start(packed, used / 2, out, BYTES), -EIO);
    assert_int_equal(codec_unpack_start(packed, 0, out, 1), -EIO);
    memset(packed, 0xff, sizeof(packed));
    assert_int_equal(codec_unpack_start(packed, sizeof(packed), out, 512), -EIO);
    used = pack_plain(QCOW2_COMPRESSION_ZLIB, BYTES); /* and after a failure */
    assert_int_equal(codec_unpack_start(packed, used, out, 4096), 0);
    assert_memory_equal(out, plain, 4096);
}

/* Writers before this one used a window of 4 KiB. */
static void test_zlib_stream(void **state)
{
    z_stream z = {0};

    fill_plain();
    assert_int_equal(deflateInit2(&z, Z_DEFAULT_COMPRESSION, Z_DEFLATED, -12, 9, Z_DEFAULT_STRATEGY), Z_OK);
    z.next_in = plain;
    z.avail_in = BYTES;
    z.next_out = packed;
    z.avail_out = sizeof(packed);
    assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
    assert_int_equal(
        codec_unpack(QCOW2_COMPRESSION_ZLIB, packed, sizeof(packed) - z.avail_out, out, BYTES), 0);
    assert_memory_equal(out, plain, BYTES);
    deflateEnd(&z);
}

/* Other decoders hold the whole cluster, whatever window they were told. */
static void test_zlib_reads_ours(void **state)
{
    size_t used = pack_plain(QCOW2_COMPRESSION_ZLIB, BYTES);
    z_stream z = {0};

    assert_int_equal(inflateInit2(&z, -12), Z_OK);
    z.next_in = packed;
    z.avail_in = (uInt)used;
    z.next_out = out;
    z.avail_out = BYTES;
    assert_int_equal(inflate(&z, Z_FINISH), Z_STREAM_END);
    assert_int_equal(z.avail_out, 0);
    assert_memory_equal(out, plain, BYTES);
    inflateEnd(&z);
}

/* ---- zstd ---- */

/* A frame with one block that repeats a byte, which claims a window of 1 << log bytes and not its size. */
static size_t repeating_frame(uint8_t *at, unsigned window_log, uint32_t bytes)
{
    put_le32(at, ZSTD_MAGICNUMBER);
    at[4] = 0; /* no size, no checksum, no dictionary */
    at[5] = (uint8_t)((window_log - 10) << 3);
    at[6] = (uint8_t)(bytes << 3 | 1 << 1 | 1); /* last, repeated */
    at[7] = (uint8_t)(bytes >> 5);
    at[8] = (uint8_t)(bytes >> 13);
    at[9] = 0x42;
    return 10;
}

static size_t skippable_frame(uint8_t *at)
{
    put_le32(at, ZSTD_MAGIC_SKIPPABLE_START + 3);
    put_le32(at + 4, 100);
    memset(at + 8, 0, 100);
    return 108;
}

static void test_frames(void **state)
{
    size_t used = repeating_frame(packed, 17, 1000);

    used += skippable_frame(packed + used);
    used += repeating_frame(packed + used, 17, 3096);
    memset(packed + used, 0x5a, SECTOR);
    assert_int_equal(codec_unpack(QCOW2_COMPRESSION_ZSTD, packed, used + SECTOR, out, 4096), 0);
    for (size_t i = 0; i < 4096; i++)
        assert_int_equal(out[i], 0x42);
    assert_int_equal(codec_unpack(QCOW2_COMPRESSION_ZSTD, packed, used, out, 4095), -EIO);
    assert_int_equal(codec_unpack(QCOW2_COMPRESSION_ZSTD, packed, used, out, 4097), -EIO);
    used = 0;
    while (used + 108 < sizeof(packed)) /* nothing at all, at length */
        used += skippable_frame(packed + used);
    assert_int_equal(codec_unpack(QCOW2_COMPRESSION_ZSTD, packed, used, out, 4096), -EIO);
    put_le32(packed, 0xfd2fb527); /* a format from before */
    assert_int_equal(codec_unpack(QCOW2_COMPRESSION_ZSTD, packed, used, out, 4096), -EIO);
}

/* A frame may ask for a window of terabytes; what it gets is the cluster. */
static void test_window(void **state)
{
    struct rusage before, after;

    getrusage(RUSAGE_SELF, &before);
    for (unsigned log = 10; log <= 41; log++) {
        size_t used = repeating_frame(packed, log, 1024);
        int r = codec_unpack(QCOW2_COMPRESSION_ZSTD, packed, used, out, 1024);

        assert_true(r == 0 || r == -EIO);
        assert_int_equal(codec_unpack(QCOW2_COMPRESSION_ZSTD, packed, used, out, 1023), -EIO);
    }
    getrusage(RUSAGE_SELF, &after);
    assert_true(after.ru_maxrss - before.ru_maxrss < 16 * 1024);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_both_ways),
        cmocka_unit_test(test_incompressible),
        cmocka_unit_test(test_other_size),
        cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_start),
        cmocka_unit_test(test_zlib_stream),
        cmocka_unit_test(test_zlib_reads_ours),
        cmocka_unit_test(test_frames),
        cmocka_unit_test(test_window),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
