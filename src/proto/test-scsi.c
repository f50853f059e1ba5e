/* SPDX-License-Identifier: Apache-2.0 */
/* SCSI status and sense data: bytes as the standard's tables lay them out. */
#include "proto/scsi.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* Decodes a copy that ends where the bytes end, so that a read behind them shows. */
static bool get(const uint8_t *bytes, size_t count, ScsiSense *ret_what)
{
    uint8_t *copy = test_malloc(count + 1);
    uint8_t *start = copy + 1;
    bool found;

    memcpy(start, bytes, count);
    found = scsi_sense_get(start, count, ret_what);
    test_free(copy);
    return found;
}

static void expect(const uint8_t *bytes, size_t count, uint8_t key, uint8_t asc, uint8_t ascq)
{
    ScsiSense what = {0xee, 0xee, 0xee};

    assert_true(get(bytes, count, &what));
    assert_int_equal(what.key, key);
    assert_int_equal(what.asc, asc);
    assert_int_equal(what.ascq, ascq);
}

static void expect_none(const uint8_t *bytes, size_t count)
{
    ScsiSense what = {0xee, 0xee, 0xee};

    assert_false(get(bytes, count, &what));
    assert_int_equal(what.key, 0xee);
    assert_int_equal(what.asc, 0xee);
    assert_int_equal(what.ascq, 0xee);
}

static void test_put(void **state)
{
    static const uint8_t expected[18] = {0x70, 0, 0x05, 0, 0, 0, 0, 0x0a, 0, 0, 0, 0, 0x24, 0x01};
    static const uint8_t zeros[SCSI_SENSE_BYTES - 18];
    uint8_t sense[SCSI_SENSE_BYTES];

    memset(sense, 0xff, sizeof(sense));
    scsi_sense_put(sense, (ScsiSense){SCSI_KEY_ILLEGAL_REQUEST, 0x24, 0x01});
    assert_memory_equal(sense, expected, sizeof(expected));
    assert_memory_equal(sense + 18, zeros, sizeof(zeros));
    scsi_sense_put(sense, SCSI_SENSE_IO_TERMINATED);
    expect(sense, sizeof(sense), 0xb, 0x00, 0x06);
}

/* Fixed format: VALID in bit 7 of byte 0; FILEMARK, EOM and ILI above the key in byte 2. */
static void test_fixed(void **state)
{
    uint8_t sense[18] = {0xf0, 0, 0xe6, 1, 2, 3, 4, 0x0a, 5, 6, 7, 8, 0x2a, 0x05, 9, 0x80, 0, 1};

    for (size_t count = 0; count < 14; count++)
        expect_none(sense, count);
    for (size_t count = 14; count <= sizeof(sense); count++)
        expect(sense, count, 6, 0x2a, 0x05);
    sense[0] = 0x71; /* deferred */
    expect(sense, sizeof(sense), 6, 0x2a, 0x05);
}

static void test_descriptor(void **state)
{
    uint8_t sense[12] = {0x72, 0xf2, 0x04, 0x0b, 0, 0, 0, 4, 0x0e, 2, 0, 0};

    for (size_t count = 0; count < 4; count++)
        expect_none(sense, count);
    for (size_t count = 4; count <= sizeof(sense); count++)
        expect(sense, count, 2, 0x04, 0x0b);
    sense[0] = 0x73;
    expect(sense, sizeof(sense), 2, 0x04, 0x0b);
}

static void test_neither(void **state)
{
    uint8_t sense[SCSI_SENSE_BYTES] = {0};

    for (unsigned code = 0; code < 0x100; code++) {
        ScsiSense what;

        sense[0] = (uint8_t)code;
        assert_int_equal(
            scsi_sense_get(sense, sizeof(sense), &what), (code & 0x7f) >= 0x70 && (code & 0x7f) <= 0x73);
    }
    assert_false(scsi_sense_get(NULL, 0, NULL));
}

static void test_status_names(void **state)
{
    static const struct {
        unsigned status;
        const char *name;
    } names[] = {
        {0x00, "GOOD"},
        {0x02, "CHECK CONDITION"},
        {0x04, "CONDITION MET"},
        {0x08, "BUSY"},
        {0x18, "RESERVATION CONFLICT"},
        {0x28, "TASK SET FULL"},
        {0x30, "ACA ACTIVE"},
        {0x40, "TASK ABORTED"},
    };
    unsigned named = 0;

    for (size_t i = 0; i < ARRAY_SIZE(names); i++)
        assert_string_equal(scsi_status_name(names[i].status), names[i].name);
    for (unsigned status = 0; status < 0x200; status++)
        named += scsi_status_name(status) != NULL;
    assert_int_equal(named, ARRAY_SIZE(names));
    assert_null(scsi_status_name(0x118));
}

/* The codes that reservations meet have a text of their own, each a different one. */
static void test_sense_text(void **state)
{
    static const ScsiSense known[] = {
        SCSI_SENSE_INVALID_OPCODE,
        SCSI_SENSE_INVALID_FIELD_IN_CDB,
        SCSI_SENSE_PARAMETER_LENGTH,
        SCSI_SENSE_INVALID_PARAMETER,
        SCSI_SENSE_NOT_READY_INTERVENTION,
        SCSI_SENSE_NO_MEDIUM,
        SCSI_SENSE_READ_ERROR,
        SCSI_SENSE_TARGET_FAILURE,
        SCSI_SENSE_SPACE_ALLOCATION,
        SCSI_SENSE_IO_TERMINATED,
        SCSI_SENSE_NO_LUN,
        SCSI_SENSE_COMMUNICATION_FAILURE,
        SCSI_SENSE_COMMAND_TIMEOUT,
        SCSI_SENSE_ABORTED_BY_TARGET,
        SCSI_SENSE_BUS_RESET,
        SCSI_SENSE_TRANSPORT_DISRUPTED,
        SCSI_SENSE_RESERVATIONS_RELEASED,
        {2, 0x04, 0x0a},
        {2, 0x04, 0x0b},
        {2, 0x04, 0x0c},
        {5, 0x25, 0x00},
        {5, 0x26, 0x04},
        {5, 0x55, 0x04},
        {6, 0x29, 0x01},
        {6, 0x29, 0x02},
        {6, 0x29, 0x03},
        {6, 0x29, 0x04},
        {6, 0x2a, 0x03},
        {6, 0x2a, 0x05},
        {6, 0x2a, 0x06},
        {6, 0x2f, 0x00},
        {6, 0x3f, 0x0e},
    };

    for (size_t i = 0; i < ARRAY_SIZE(known); i++) {
        const char *text = scsi_sense_text(known[i]);

        assert_string_not_equal(text, scsi_sense_text((ScsiSense){known[i].key, 0xff, 0xff}));
        for (size_t j = 0; j < i; j++)
            assert_string_not_equal(text, scsi_sense_text(known[j]));
    }
    assert_string_equal(scsi_sense_text((ScsiSense){6, 0x2a, 0x03}), "reservations were preempted");
    assert_string_equal(scsi_sense_text((ScsiSense){6, 0x2a, 0x05}), "registrations were preempted");
    assert_string_equal(scsi_sense_text((ScsiSense){5, 0x55, 0x04}), "no room for another registration");
}

static void test_key_text(void **state)
{
    for (unsigned key = 0; key < 0x100; key++)
        assert_non_null(scsi_sense_text((ScsiSense){(uint8_t)key, 0xff, 0xff}));
    assert_string_equal(scsi_sense_text((ScsiSense){SCSI_KEY_NO_SENSE, 0, 0}), "no sense");
    assert_string_equal(scsi_sense_text((ScsiSense){SCSI_KEY_UNIT_ATTENTION, 0x2a, 0x01}), "unit attention");
    assert_string_equal(scsi_sense_text((ScsiSense){SCSI_KEY_ABORTED_COMMAND, 0x47, 0}), "aborted command");
    assert_string_equal(scsi_sense_text((ScsiSense){0xf, 0, 0}), "completed");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_put),
        cmocka_unit_test(test_fixed),
        cmocka_unit_test(test_descriptor),
        cmocka_unit_test(test_neither),
        cmocka_unit_test(test_status_names),
        cmocka_unit_test(test_sense_text),
        cmocka_unit_test(test_key_text),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
