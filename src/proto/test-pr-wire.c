/* SPDX-License-Identifier: Apache-2.0 */
/* The protocol between a reservation helper and its clients: bytes as they are on the wire. */
#include "proto/pr-wire.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void expect_request(const uint8_t *start, PrWireRequest expected, uint32_t expected_bytes)
{
    uint8_t cdb[SCSI_CDB_BYTES] = {0};
    uint32_t bytes = 77;

    memcpy(cdb, start, PR_CDB_BYTES);
    assert_int_equal(pr_wire_request(cdb, &bytes), expected);
    assert_int_equal(bytes, expected_bytes);
}

static void test_request(void **state)
{
    static const struct {
        uint8_t cdb[PR_CDB_BYTES];
        PrWireRequest expected;
        uint32_t bytes;
    } requests[] = {
        {{0x5e, 0, 0, 0, 0, 0, 0, 0x00, 0x00}, PR_WIRE_READY, 0},
        {{0x5e, 0, 0, 0, 0, 0, 0, 0x00, 0x08}, PR_WIRE_READY, 8},
        {{0x5e, 3, 0, 0, 0, 0, 0, 0x20, 0x00}, PR_WIRE_READY, 8192},
        {{0x5e, 3, 0, 0, 0, 0, 0, 0x20, 0x01}, PR_WIRE_TOO_LONG, 8193},
        {{0x5f, 0, 0, 0, 0, 0, 0, 0x00, 0x00}, PR_WIRE_READY, 0},
        {{0x5f, 0, 0, 0, 0, 0, 0, 0x00, 0x01}, PR_WIRE_LIST, 1},
        {{0x5f, 4, 5, 0, 0, 0, 0, 0x00, 0x18}, PR_WIRE_LIST, 24},
        {{0x5f, 4, 5, 0, 0, 0, 0, 0x20, 0x00}, PR_WIRE_LIST, 8192},
        {{0x5f, 4, 5, 0, 0, 0, 0, 0x20, 0x01}, PR_WIRE_TOO_LONG, 8193},
        {{0x5f, 4, 5, 0, 0, 0, 0, 0xff, 0xff}, PR_WIRE_TOO_LONG, 65535},
        /* Bytes 5 and 6 are no part of the length. */
        {{0x5f, 4, 5, 0, 0, 0xff, 0xff, 0x00, 0x18}, PR_WIRE_LIST, 24},
        {{0x5e, 0x1f, 0, 0, 0, 0xff, 0xff, 0x00, 0x18}, PR_WIRE_READY, 24},
        {{0xff}, PR_WIRE_READY, 0},
        {{0xff, 1, 2, 3, 4, 5, 6, 7, 8, 9}, PR_WIRE_READY, 0},
    };

    for (size_t i = 0; i < ARRAY_SIZE(requests); i++)
        expect_request(requests[i].cdb, requests[i].expected, requests[i].bytes);
    for (unsigned opcode = 0; opcode < 0xff; opcode++) {
        if (opcode != 0x5e && opcode != 0x5f)
            expect_request((uint8_t[PR_CDB_BYTES]){(uint8_t)opcode, [8] = 24}, PR_WIRE_BAD_OPCODE, 77);
    }
}

static void test_reply_put(void **state)
{
    static const uint8_t conflict[PR_WIRE_REPLY_BYTES] = {0, 0, 0, 0x18},
                         good[PR_WIRE_REPLY_BYTES] = {0, 0, 0, 0, 0, 0, 0x1f, 0xf8},
                         check[PR_WIRE_REPLY_BYTES] = {
                             0, 0, 0, 2, 0, 0, 0, 0, 0x70, 0, 5, 0, 0, 0, 0, 0x0a, 0, 0, 0, 0, 0x20, 0};
    uint8_t header[PR_WIRE_REPLY_BYTES];
    static PrReply reply;

    memset(&reply, 0xff, sizeof(reply));
    pr_reply_status(&reply, SCSI_RESERVATION_CONFLICT);
    pr_wire_reply_put(header, &reply);
    assert_memory_equal(header, conflict, sizeof(header));
    pr_reply_check(&reply, SCSI_SENSE_INVALID_OPCODE);
    pr_wire_reply_put(header, &reply);
    assert_memory_equal(header, check, sizeof(header));
    pr_reply_good(&reply);
    reply.data_bytes = 0x1ff8;
    pr_wire_reply_put(header, &reply);
    assert_memory_equal(header, good, sizeof(header));
}

static void test_reply_get(void **state)
{
    uint8_t header[PR_WIRE_REPLY_BYTES] = {
        0, 0, 0, 2, 0, 0, 0, 0, 0x70, 0, 6, 0, 0, 0, 0, 0x0a, 0, 0, 0, 0, 0x2a, 3, [103] = 0x5a};
    static const uint8_t zeros[SCSI_SENSE_BYTES];
    static PrReply reply;
    ScsiSense sense;

    assert_true(pr_wire_reply_get(header, PR_OUT_OPCODE, 24, &reply));
    assert_int_equal(reply.status, SCSI_CHECK_CONDITION);
    assert_int_equal(reply.data_bytes, 0);
    assert_memory_equal(reply.sense, header + 8, SCSI_SENSE_BYTES);
    assert_true(pr_reply_sense(&reply, &sense));
    assert_int_equal(sense.key, SCSI_KEY_UNIT_ATTENTION);
    assert_int_equal(sense.asc, 0x2a);
    assert_int_equal(sense.ascq, 0x03);
    /* Sense with another status means nothing. */
    header[3] = 0x18;
    assert_true(pr_wire_reply_get(header, PR_IN_OPCODE, 24, &reply));
    assert_int_equal(reply.status, SCSI_RESERVATION_CONFLICT);
    assert_memory_equal(reply.sense, zeros, SCSI_SENSE_BYTES);
    assert_false(pr_reply_sense(&reply, &sense));
    header[3] = 0xff; /* unknown, but a status */
    assert_true(pr_wire_reply_get(header, PR_IN_OPCODE, 24, &reply));
    assert_int_equal(reply.status, 0xff);
}

/* status, bytes: of the header; whether that answers a command. */
static void expect_reply(
    uint32_t status, uint32_t bytes, uint8_t opcode, uint32_t allocation_bytes, bool expected)
{
    uint8_t header[PR_WIRE_REPLY_BYTES];
    static PrReply reply, before;

    memset(&before, 0x33, sizeof(before));
    reply = before;
    memset(header, 0xcc, sizeof(header));
    for (unsigned byte = 0; byte < 4; byte++) {
        header[byte] = (uint8_t)(status >> (24 - 8 * byte));
        header[4 + byte] = (uint8_t)(bytes >> (24 - 8 * byte));
    }
    assert_int_equal(pr_wire_reply_get(header, opcode, allocation_bytes, &reply), expected);
    if (expected) {
        assert_int_equal(reply.status, status);
        assert_int_equal(reply.data_bytes, bytes);
    } else {
        assert_memory_equal(&reply, &before, sizeof(reply));
    }
}

static void test_reply_rules(void **state)
{
    expect_reply(0, 0, PR_IN_OPCODE, 0, true);
    expect_reply(0, 0, PR_IN_OPCODE, 24, true);
    expect_reply(0, 8, PR_IN_OPCODE, 24, true);
    expect_reply(0, 24, PR_IN_OPCODE, 24, true);
    expect_reply(0, 25, PR_IN_OPCODE, 24, false);
    expect_reply(0, 1, PR_IN_OPCODE, 0, false);
    expect_reply(0, 8192, PR_IN_OPCODE, 8192, true);
    expect_reply(0, 8193, PR_IN_OPCODE, 8193, false); /* nobody has room for that */
    expect_reply(0, 0xffffffff, PR_IN_OPCODE, 0xffffffff, false);
    expect_reply(2, 1, PR_IN_OPCODE, 24, false);
    expect_reply(0x18, 24, PR_IN_OPCODE, 24, false);
    expect_reply(0, 1, PR_OUT_OPCODE, 24, false);
    expect_reply(0, 0, PR_OUT_OPCODE, 24, true);
    expect_reply(0, 0, PR_WIRE_CLEANUP_OPCODE, 0, true);
    expect_reply(0, 1, PR_WIRE_CLEANUP_OPCODE, 24, false);
    expect_reply(0xff, 0, PR_OUT_OPCODE, 24, true);
    expect_reply(0x100, 0, PR_OUT_OPCODE, 24, false);
    expect_reply(0x118, 0, PR_IN_OPCODE, 24, false);
    expect_reply(0x18000000, 0, PR_IN_OPCODE, 24, false); /* the wrong byte order */
    expect_reply(0xffffffff, 0, PR_IN_OPCODE, 24, false);
}

static void test_replies(void **state)
{
    static const uint8_t zeros[SCSI_SENSE_BYTES];
    static PrReply reply;
    ScsiSense sense = {0xee, 0xee, 0xee};

    memset(&reply, 0xff, sizeof(reply));
    pr_reply_good(&reply);
    assert_int_equal(reply.status, SCSI_GOOD);
    assert_int_equal(reply.data_bytes, 0);
    assert_memory_equal(reply.sense, zeros, sizeof(zeros));
    assert_false(pr_reply_sense(&reply, &sense));

    reply.data_bytes = 9;
    pr_reply_check(&reply, SCSI_SENSE_COMMAND_TIMEOUT);
    assert_int_equal(reply.status, SCSI_CHECK_CONDITION);
    assert_int_equal(reply.data_bytes, 0);
    memset(reply.sense, 0, sizeof(reply.sense));
    assert_false(pr_reply_sense(&reply, &sense)); /* CHECK CONDITION without sense */
    assert_int_equal(sense.key, 0xee);
    scsi_sense_put(reply.sense, SCSI_SENSE_COMMAND_TIMEOUT);
    assert_true(pr_reply_sense(&reply, &sense));
    assert_int_equal(sense.key, 0xb);
    assert_int_equal(sense.asc, 0x2e);
    assert_int_equal(sense.ascq, 0x02);

    pr_reply_status(&reply, SCSI_BUSY);
    assert_int_equal(reply.status, SCSI_BUSY);
    assert_memory_equal(reply.sense, zeros, sizeof(zeros));
    assert_false(pr_reply_sense(&reply, &sense));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_request),
        cmocka_unit_test(test_reply_put),
        cmocka_unit_test(test_reply_get),
        cmocka_unit_test(test_reply_rules),
        cmocka_unit_test(test_replies),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
