/* SPDX-License-Identifier: Apache-2.0 */
/* The NBD protocol over bytes. */
#include "proto/nbd.h"

#include "base/endian.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

static const NbdRequestRules rules = {
    .mode = NBD_MODE_STRUCTURED, .contexts = 1, .size = 1 << 20, .max_bytes = 32 << 20};

static void put_request(uint8_t *out, uint16_t flags, uint16_t type, uint64_t offset, uint32_t bytes)
{
    put_be32(out, NBD_REQUEST_MAGIC);
    put_be16(out + 4, flags);
    put_be16(out + 6, type);
    put_be64(out + 8, 77);
    put_be64(out + 16, offset);
    put_be32(out + 24, bytes);
}

static void test_request_header(void **state)
{
    uint8_t data[NBD_EXTENDED_REQUEST_BYTES] = {0};
    NbdRequest request;
    uint32_t magic;

    put_request(data, NBD_CMD_FLAG_FUA, NBD_CMD_WRITE, 4096, 512);
    assert_int_equal(nbd_request_decode(data, NBD_MODE_SIMPLE, &request, &magic), 0);
    assert_int_equal(request.flags, NBD_CMD_FLAG_FUA);
    assert_int_equal(request.type, NBD_CMD_WRITE);
    assert_int_equal(request.cookie, 77);
    assert_int_equal(request.offset, 4096);
    assert_int_equal(request.bytes, 512);
    assert_int_equal(nbd_request_payload_bytes(&request, NBD_MODE_SIMPLE), 512);
    assert_int_equal(nbd_request_decode(data, NBD_MODE_EXTENDED, &request, &magic), -EPROTO);
    assert_int_equal(magic, NBD_REQUEST_MAGIC);
    put_be32(data, NBD_EXTENDED_REQUEST_MAGIC);
    put_be64(data + 24, UINT64_C(1) << 40);
    assert_int_equal(nbd_request_decode(data, NBD_MODE_EXTENDED, &request, &magic), 0);
    assert_true(request.bytes == UINT64_C(1) << 40);
}

static void expect_error(NbdRequest request, const NbdRequestRules *with, const char *expected)
{
    char text[NBD_ERROR_TEXT_BYTES] = "";

    assert_int_equal(nbd_request_check(&request, with, text), expected ? NBD_EINVAL : NBD_OK);
    if (expected)
        assert_string_equal(text, expected);
}

static void test_request_check(void **state)
{
    NbdRequestRules read_only = rules, bare = rules;

    read_only.read_only = true;
    bare.contexts = 0;
    expect_error((NbdRequest){.type = NBD_CMD_READ, .bytes = 1 << 20}, &rules, NULL);
    expect_error((NbdRequest){.type = NBD_CMD_READ, .offset = 1 << 20, .bytes = 1}, &rules,
        "operation past EOF; From: 1048576, Len: 1, Size: 1048576");
    expect_error((NbdRequest){.type = NBD_CMD_READ, .offset = UINT64_MAX, .bytes = 2}, &rules,
        "operation past EOF; From: 18446744073709551615, Len: 2, Size: 1048576");
    expect_error((NbdRequest){.type = NBD_CMD_WRITE, .bytes = 1}, &read_only, "Export is read-only");
    expect_error((NbdRequest){.type = NBD_CMD_TRIM, .bytes = 1}, &read_only, "Export is read-only");
    expect_error((NbdRequest){.type = NBD_CMD_WRITE, .bytes = 1, .flags = NBD_CMD_FLAG_DF}, &rules,
        "unsupported flags for command write (got 0x4)");
    expect_error((NbdRequest){.type = 99}, &rules, "invalid request type (99) received");
    expect_error((NbdRequest){.type = NBD_CMD_BLOCK_STATUS, .bytes = 1}, &rules, NULL);
    expect_error(
        (NbdRequest){.type = NBD_CMD_BLOCK_STATUS, .bytes = 1}, &bare, "CMD_BLOCK_STATUS not negotiated");
}

static void test_too_long(void **state)
{
    char text[NBD_ERROR_TEXT_BYTES];
    NbdRequest request = {.type = NBD_CMD_CACHE, .bytes = (32 << 20) + 1};

    assert_true(nbd_request_too_long(&request, &rules, text));
    assert_string_equal(text, "len (33554433) is larger than max len (33554432)");
    request.type = NBD_CMD_TRIM;
    assert_false(nbd_request_too_long(&request, &rules, text));
    request.type = NBD_CMD_WRITE;
    request.bytes--;
    assert_false(nbd_request_too_long(&request, &rules, text));
}

static void test_status_payload(void **state)
{
    NbdStatusPayload payload;
    uint8_t data[16];

    put_be64(data, 12345);
    put_be32(data + 8, NBD_CONTEXT_DEPTH);
    put_be32(data + 12, NBD_CONTEXT_ALLOCATION);
    nbd_status_payload_decode(data, 16, 3, &payload);
    assert_true(payload.valid);
    assert_int_equal(payload.contexts, 3);
    assert_int_equal(payload.bytes, 12345);
    nbd_status_payload_decode(data, 16, 1, &payload); /* depth was not negotiated */
    assert_false(payload.valid);
    nbd_status_payload_decode(data, 11, 3, &payload);
    assert_false(payload.valid);
    put_be32(data + 12, NBD_CONTEXT_DEPTH);
    nbd_status_payload_decode(data, 16, 3, &payload); /* twice the same */
    assert_false(payload.valid);
    assert_int_equal(payload.contexts, 0);
    nbd_status_payload_decode(data, 4, 3, &payload);
    assert_false(payload.valid);
}

static void test_info_option(void **state)
{
    static const uint8_t good[] = {0, 0, 0, 2, 'e', '0', 0, 2, 0, 1, 0, 3};
    static const uint8_t nul[] = {0, 0, 0, 2, 'e', 0, 0, 0};
    NbdInfoOption info;

    assert_int_equal(nbd_info_option_decode(good, sizeof(good), &info), NBD_PARSE_OK);
    assert_int_equal(info.name.bytes, 2);
    assert_true(info.want_name && info.want_block_size && !info.want_description);
    for (size_t i = 0; i < sizeof(good); i++)
        assert_int_equal(nbd_info_option_decode(good, i, &info), NBD_PARSE_SHORT);
    assert_int_equal(nbd_info_option_decode(nul, sizeof(nul), &info), NBD_PARSE_NUL);
    assert_int_equal(nbd_info_option_decode((const uint8_t[]){0, 0, 0x10, 1}, 4, &info), NBD_PARSE_LONG_NAME);
    assert_int_equal(info.name.bytes, 4097);
}

static void add_query(uint8_t *data, size_t *at, const char *query)
{
    put_be32(data + *at, (uint32_t)strlen(query));
    memcpy(data + *at + 4, query, strlen(query));
    *at += 4 + strlen(query);
}

static void test_meta_option(void **state)
{
    static const NbdBitmapNames no_bitmaps = {0};
    uint8_t data[128] = {0};
    NbdMetaOption meta;
    size_t at = 0;

    add_query(data, &at, "e0");
    put_be32(data + at, 3);
    at += 4;
    add_query(data, &at, "qemu:");
    add_query(data, &at, "base:allocation");
    add_query(data, &at, "base:allocations");
    assert_int_equal(nbd_meta_option_decode(data, at, &meta), NBD_PARSE_OK);
    assert_int_equal(meta.queries, 3);
    assert_int_equal(nbd_meta_option_match(&meta, &no_bitmaps, false), 1 << NBD_CONTEXT_ALLOCATION);
    assert_int_equal(nbd_meta_option_match(&meta, &no_bitmaps, true),
        1 << NBD_CONTEXT_ALLOCATION | 1 << NBD_CONTEXT_DEPTH);
    for (size_t i = 0; i < at; i++)
        assert_int_equal(nbd_meta_option_decode(data, i, &meta), NBD_PARSE_SHORT);
    assert_int_equal(nbd_meta_option_decode(data, at + 1, &meta), NBD_PARSE_TRAILING);
    put_be32(data + 6, UINT32_MAX); /* more queries than there are bytes */
    assert_int_equal(nbd_meta_option_decode(data, at, &meta), NBD_PARSE_SHORT);
}

/* What one query means for an export with the bitmaps a and all 61 others. */
static NbdContexts match(const char *query, bool wildcards)
{
    static const char *names[LIMIT_NBD_BITMAPS];
    const NbdBitmapNames bitmaps = {.names = names, .count = ARRAY_SIZE(names)};
    uint8_t data[128] = {0};
    NbdMetaOption meta;
    size_t at = 0;

    for (unsigned i = 0; i < ARRAY_SIZE(names); i++)
        names[i] = i ? "other" : "a";
    add_query(data, &at, "");
    put_be32(data + at, 1);
    at += 4;
    add_query(data, &at, query);
    assert_int_equal(nbd_meta_option_decode(data, at, &meta), NBD_PARSE_OK);
    return nbd_meta_option_match(&meta, &bitmaps, wildcards);
}

static void test_bitmap_contexts(void **state)
{
    const NbdContexts all = UINT64_MAX << NBD_CONTEXT_BITMAPS;

    assert_true(match("qemu:dirty-bitmap:a", false) == NBD_CONTEXT_BIT(NBD_CONTEXT_BITMAPS));
    assert_true(match("qemu:dirty-bitmap:other", true) == NBD_CONTEXT_BIT(NBD_CONTEXT_BITMAPS + 1));
    assert_true(match("qemu:dirty-bitmap:", false) == 0);
    assert_true(match("qemu:dirty-bitmap:", true) == all);
    assert_true(match("qemu:", true) == (all | NBD_CONTEXT_BIT(NBD_CONTEXT_DEPTH)));
    assert_true(match("qemu:", false) == 0);
    assert_true(match("qemu:dirty-bitmap", true) == 0);
    assert_true(match("qemu:dirty-bitmap:ab", true) == 0);
    assert_true(match("base:", true) == NBD_CONTEXT_BIT(NBD_CONTEXT_ALLOCATION));
}

static void test_chunks(void **state)
{
    NbdRequest request = {.cookie = 7, .offset = 4096, .bytes = 8192};
    uint8_t out[NBD_ERROR_CHUNK_BYTES];
    char text[2 * NBD_ERROR_TEXT_BYTES];

    assert_int_equal(nbd_data_chunk_encode(out, &request, NBD_MODE_STRUCTURED, 1, 8192, 4096), 28);
    assert_int_equal(get_be32(out), NBD_CHUNK_MAGIC);
    assert_int_equal(get_be32(out + 16), 4104);
    assert_int_equal(get_be64(out + 20), 8192);
    assert_int_equal(nbd_hole_chunk_encode(out, &request, NBD_MODE_EXTENDED, 0, 8192, 4096), 44);
    assert_int_equal(get_be64(out + 16), 4096);
    assert_int_equal(get_be64(out + 24), 12);
    assert_int_equal(nbd_status_chunk_encode(out, &request, NBD_MODE_STRUCTURED, 1, 1, 3), 24);
    assert_int_equal(get_be32(out + 16), 4 + 3 * 8);
    assert_int_equal(nbd_status_chunk_encode(out, &request, NBD_MODE_EXTENDED, 1, 1, 3), 40);
    assert_int_equal(get_be64(out + 24), 8 + 3 * 16);
    memset(text, 'x', sizeof(text) - 1);
    text[sizeof(text) - 1] = 0;
    assert_int_equal(
        nbd_error_chunk_encode(out, &request, NBD_MODE_EXTENDED, NBD_EIO, text), NBD_ERROR_CHUNK_BYTES);
    assert_int_equal(get_be16(out + 36), NBD_ERROR_TEXT_BYTES);
}

static void test_errors(void **state)
{
    assert_int_equal(nbd_error_from_errno(0), NBD_OK);
    assert_int_equal(nbd_error_from_errno(-EROFS), NBD_EPERM);
    assert_int_equal(nbd_error_from_errno(-EDQUOT), NBD_ENOSPC);
    assert_int_equal(nbd_error_from_errno(-ENOTSUP), NBD_ENOTSUP);
    assert_int_equal(nbd_error_from_errno(-EXDEV), NBD_EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_request_header),
        cmocka_unit_test(test_request_check),
        cmocka_unit_test(test_too_long),
        cmocka_unit_test(test_status_payload),
        cmocka_unit_test(test_info_option),
        cmocka_unit_test(test_meta_option),
        cmocka_unit_test(test_bitmap_contexts),
        cmocka_unit_test(test_chunks),
        cmocka_unit_test(test_errors),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
