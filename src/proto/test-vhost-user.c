/* SPDX-License-Identifier: Apache-2.0 */
/* The vhost-user protocol over bytes. */
#include "proto/vhost-user.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum {
    VERSION = 1,
    REPLY = 4,
    NEED_REPLY = 8,
};

static uint8_t header_bytes[VHOST_USER_HEADER_BYTES];
static uint8_t payload[VHOST_USER_PAYLOAD_BYTES];
static char text[VHOST_USER_TEXT_BYTES];

static void put32(uint8_t *at, uint32_t value)
{
    memcpy(at, &value, sizeof(value));
}

static void put64(uint8_t *at, uint64_t value)
{
    memcpy(at, &value, sizeof(value));
}

static uint32_t get32(const uint8_t *at)
{
    uint32_t value;

    memcpy(&value, at, sizeof(value));
    return value;
}

static int decode_header(uint32_t request, uint32_t flags, uint32_t bytes, VhostUserHeader *ret_header)
{
    put32(header_bytes, request);
    put32(header_bytes + 4, flags);
    put32(header_bytes + 8, bytes);
    return vhost_user_header_decode(header_bytes, ret_header, text);
}

/* Decodes a request with what lies in `payload`. */
static int decode(uint32_t request, uint32_t bytes, unsigned fds, VhostUserMessage *ret_message)
{
    VhostUserHeader header;
    int r = decode_header(request, VERSION, bytes, &header);

    return r < 0 ? r : vhost_user_payload_decode(&header, payload, fds, ret_message, text);
}

static void test_header(void **state)
{
    VhostUserHeader header;

    assert_int_equal(decode_header(VHOST_USER_SET_FEATURES, VERSION | NEED_REPLY, 8, &header), 0);
    assert_int_equal(header.request, VHOST_USER_SET_FEATURES);
    assert_int_equal(header.bytes, 8);
    assert_true(header.need_reply);
    assert_int_equal(decode_header(VHOST_USER_GET_FEATURES, VERSION, 0, &header), 0);
    assert_false(header.need_reply);
    assert_int_equal(vhost_user_header_request(header_bytes), VHOST_USER_GET_FEATURES);
}

static void test_header_refused(void **state)
{
    VhostUserHeader header = {.bytes = 77};

    assert_int_equal(decode_header(VHOST_USER_GET_FEATURES, 0, 0, &header), -EPROTO);
    assert_int_equal(decode_header(VHOST_USER_GET_FEATURES, 2, 0, &header), -EPROTO);
    assert_int_equal(decode_header(VHOST_USER_GET_FEATURES, VERSION | REPLY, 0, &header), -EPROTO);
    assert_string_equal(text, "flags 0x5 are not those of a request of version 1");
    assert_int_equal(decode_header(0, VERSION, 0, &header), -EPROTO);
    assert_int_equal(decode_header(19, VERSION, 8, &header), -EPROTO);
    assert_int_equal(decode_header(UINT32_MAX, VERSION, 8, &header), -EPROTO);
    assert_string_equal(text, "number 4294967295 is not known");
    assert_int_equal(decode_header(VHOST_USER_SET_FEATURES, VERSION, 7, &header), -EPROTO);
    assert_int_equal(decode_header(VHOST_USER_SET_FEATURES, VERSION, 9, &header), -EPROTO);
    assert_int_equal(decode_header(VHOST_USER_GET_FEATURES, VERSION, UINT32_MAX, &header), -EPROTO);
    assert_int_equal(decode_header(VHOST_USER_GET_CONFIG, VERSION, 11, &header), -EPROTO);
    assert_string_equal(text, "11 bytes of payload; it has 12 or more");
    assert_int_equal(decode_header(VHOST_USER_GET_CONFIG, VERSION, 269, &header), -EPROTO);
    assert_int_equal(header.bytes, 77);
}

static void put_region(uint8_t *at, uint64_t base)
{
    for (unsigned i = 0; i < 4; i++)
        put64(at + 8 * i, base + i);
}

static void expect_region(const VhostUserRegion *region, uint64_t base)
{
    assert_true(region->guest == base && region->bytes == base + 1);
    assert_true(region->user == base + 2 && region->file_offset == base + 3);
}

static void test_table(void **state)
{
    VhostUserMessage message;

    put32(payload, 2);
    put_region(payload + 8, 100);
    put_region(payload + 40, UINT64_MAX - 3);
    assert_int_equal(decode(VHOST_USER_SET_MEM_TABLE, 72, 2, &message), 0);
    assert_int_equal(message.table.count, 2);
    expect_region(&message.table.regions[0], 100);
    expect_region(&message.table.regions[1], UINT64_MAX - 3);
    assert_int_equal(decode(VHOST_USER_SET_MEM_TABLE, 264, 2, &message), 0);
    assert_int_equal(decode(VHOST_USER_SET_MEM_TABLE, 71, 2, &message), -EPROTO);
    assert_string_equal(text, "2 regions do not fit into 71 bytes of payload");
    assert_int_equal(decode(VHOST_USER_SET_MEM_TABLE, 72, 1, &message), -EPROTO);
    assert_string_equal(text, "1 descriptors came with 2 regions");
    assert_int_equal(decode(VHOST_USER_SET_MEM_TABLE, 72, 3, &message), -EPROTO);
    put32(payload, 9);
    assert_int_equal(decode(VHOST_USER_SET_MEM_TABLE, 264, 8, &message), -EPROTO);
    put32(payload, UINT32_MAX);
    assert_int_equal(decode(VHOST_USER_SET_MEM_TABLE, 264, 8, &message), -EPROTO);
    put64(payload, UINT64_C(1) << 32); /* what is padding */
    assert_int_equal(decode(VHOST_USER_SET_MEM_TABLE, 8, 0, &message), 0);
    assert_int_equal(message.table.count, 0);
    assert_false(message.confirms);
    put64(payload, 0);
    assert_int_equal(decode(VHOST_USER_SET_MEM_TABLE, 8, 0, &message), 0);
    assert_true(message.confirms);
}

static void test_region(void **state)
{
    VhostUserMessage message;

    put64(payload, 0);
    put_region(payload + 8, 4096);
    assert_int_equal(decode(VHOST_USER_ADD_MEM_REG, 40, 1, &message), 0);
    expect_region(&message.region, 4096);
    assert_false(message.confirms);
    assert_int_equal(decode(VHOST_USER_ADD_MEM_REG, 40, 0, &message), -EPROTO);
    assert_string_equal(text, "0 descriptors came with 40 bytes of payload; it has 1 with 40");
    assert_int_equal(decode(VHOST_USER_ADD_MEM_REG, 39, 1, &message), -EPROTO);
    assert_int_equal(decode(VHOST_USER_ADD_MEM_REG, 8, 1, &message), -EPROTO);
    assert_int_equal(decode(VHOST_USER_ADD_MEM_REG, 8, 0, &message), 0);
    assert_true(message.confirms);
    assert_int_equal(decode(VHOST_USER_REM_MEM_REG, 40, 0, &message), 0);
    assert_int_equal(decode(VHOST_USER_REM_MEM_REG, 40, 1, &message), 0);
    assert_int_equal(decode(VHOST_USER_REM_MEM_REG, 40, 2, &message), -EPROTO);
}

static void test_vring(void **state)
{
    VhostUserMessage message;

    put32(payload, 3);
    put32(payload + 4, 256);
    assert_int_equal(decode(VHOST_USER_SET_VRING_NUM, 8, 0, &message), 0);
    assert_int_equal(message.vring.index, 3);
    assert_int_equal(message.vring.value, 256);
    put32(payload + 4, 1);
    for (unsigned i = 0; i < 4; i++)
        put64(payload + 8 + 8 * i, 1000 + i);
    assert_int_equal(decode(VHOST_USER_SET_VRING_ADDR, 40, 0, &message), 0);
    assert_int_equal(message.address.index, 3);
    assert_true(message.address.log);
    assert_true(message.address.descriptors == 1000 && message.address.used == 1001);
    assert_true(message.address.available == 1002 && message.address.log_guest == 1003);
}

static void test_vring_descriptors(void **state)
{
    VhostUserMessage message;

    put64(payload, 5);
    assert_int_equal(decode(VHOST_USER_SET_VRING_KICK, 8, 1, &message), 0);
    assert_int_equal(message.vring_fd.index, 5);
    assert_false(message.vring_fd.none);
    assert_int_equal(decode(VHOST_USER_SET_VRING_KICK, 8, 0, &message), -EPROTO);
    assert_string_equal(text, "no descriptor came with it");
    assert_int_equal(decode(VHOST_USER_SET_VRING_CALL, 8, 2, &message), -EPROTO);
    put64(payload, 0x105);
    assert_int_equal(decode(VHOST_USER_SET_VRING_ERR, 8, 0, &message), 0);
    assert_int_equal(message.vring_fd.index, 5);
    assert_true(message.vring_fd.none);
}

static void put_config(uint32_t offset, uint32_t bytes)
{
    put32(payload, offset);
    put32(payload + 4, bytes);
    put32(payload + 8, 1);
    memset(payload + 12, 0xab, VHOST_USER_CONFIG_BYTES);
}

static void test_config(void **state)
{
    VhostUserMessage message;

    put_config(32, 1);
    assert_int_equal(decode(VHOST_USER_SET_CONFIG, 13, 0, &message), 0);
    assert_int_equal(message.config.offset, 32);
    assert_int_equal(message.config.bytes, 1);
    assert_int_equal(message.config.flags, 1);
    assert_int_equal(message.config.data[0], 0xab);
    assert_int_equal(decode(VHOST_USER_SET_CONFIG, 12, 0, &message), -EPROTO);
    assert_string_equal(text, "1 bytes of configuration in 12 bytes of payload");
    assert_int_equal(decode(VHOST_USER_GET_CONFIG, 12, 0, &message), 0);
    put_config(0, 256);
    assert_int_equal(decode(VHOST_USER_GET_CONFIG, 268, 0, &message), 0);
    put_config(0, 257);
    assert_int_equal(decode(VHOST_USER_GET_CONFIG, 268, 0, &message), -EPROTO);
    put_config(0, UINT32_MAX);
    assert_int_equal(decode(VHOST_USER_GET_CONFIG, 12, 0, &message), -EPROTO);
}

static void test_inflight(void **state)
{
    static const uint16_t queues = 4, size = 128;
    uint8_t out[VHOST_USER_HEADER_BYTES + VHOST_USER_PAYLOAD_BYTES];
    VhostUserMessage message;

    put64(payload, 8192);
    put64(payload + 8, 64);
    memcpy(payload + 16, &queues, 2);
    memcpy(payload + 18, &size, 2);
    assert_int_equal(decode(VHOST_USER_SET_INFLIGHT_FD, 20, 1, &message), 0);
    assert_true(message.inflight.bytes == 8192 && message.inflight.file_offset == 64);
    assert_int_equal(message.inflight.queues, 4);
    assert_int_equal(message.inflight.queue_size, 128);
    assert_int_equal(decode(VHOST_USER_SET_INFLIGHT_FD, 24, 0, &message), -EPROTO);
    for (uint32_t bytes = 20; bytes <= 24; bytes += 4) {
        assert_int_equal(decode(VHOST_USER_GET_INFLIGHT_FD, bytes, 0, &message), 0);
        assert_int_equal(vhost_user_encode_inflight(out, &message, &message.inflight), 12 + bytes);
        assert_memory_equal(out + 12, payload, 20);
    }
}

static void expect_reply(const uint8_t *out, uint32_t request, uint32_t bytes)
{
    assert_int_equal(get32(out), request);
    assert_int_equal(get32(out + 4), VERSION | REPLY);
    assert_int_equal(get32(out + 8), bytes);
}

static void test_replies(void **state)
{
    uint8_t out[VHOST_USER_HEADER_BYTES + VHOST_USER_PAYLOAD_BYTES];
    VhostUserConfig config = {.offset = 1, .bytes = 3, .flags = 2};

    assert_int_equal(vhost_user_encode_number(out, VHOST_USER_GET_FEATURES, 0x1122334455667788), 20);
    expect_reply(out, VHOST_USER_GET_FEATURES, 8);
    assert_int_equal(get32(out + 12), 0x55667788);
    assert_int_equal(vhost_user_encode_empty(out, VHOST_USER_GET_CONFIG), 12);
    expect_reply(out, VHOST_USER_GET_CONFIG, 0);
    assert_int_equal(
        vhost_user_encode_vring(out, VHOST_USER_GET_VRING_BASE, &(VhostUserVring){.index = 2, .value = 9}),
        20);
    expect_reply(out, VHOST_USER_GET_VRING_BASE, 8);
    assert_int_equal(get32(out + 16), 9);
    assert_int_equal(vhost_user_encode_config(out, &config, (const uint8_t *)"abc"), 27);
    expect_reply(out, VHOST_USER_GET_CONFIG, 15);
    assert_memory_equal(out + 24, "abc", 3);
    assert_int_equal(vhost_user_encode_backend_request(out, VHOST_USER_BACKEND_CONFIG_CHANGE), 12);
    assert_int_equal(get32(out + 4), VERSION);
}

static void test_names(void **state)
{
    assert_string_equal(vhost_user_request_name(VHOST_USER_SET_MEM_TABLE), "SET_MEM_TABLE");
    assert_string_equal(vhost_user_request_name(19), "request");
    assert_string_equal(vhost_user_request_name(UINT32_MAX), "request");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_header),
        cmocka_unit_test(test_header_refused),
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_region),
        cmocka_unit_test(test_vring),
        cmocka_unit_test(test_vring_descriptors),
        cmocka_unit_test(test_config),
        cmocka_unit_test(test_inflight),
        cmocka_unit_test(test_replies),
        cmocka_unit_test(test_names),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
