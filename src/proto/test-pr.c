/* SPDX-License-Identifier: Apache-2.0 */
/* PERSISTENT RESERVE IN and OUT: bytes as the standard's tables lay them out, whole and cut off anywhere. */
#include "proto/pr.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define KEY_A UINT64_C(0x0123456789abcdef)
#define KEY_B UINT64_C(0xfedcba9876543210)

/* A copy on the heap that ends where the bytes end, so that a read behind them shows; test_free(it). */
static uint8_t *cut(const uint8_t *bytes, size_t count)
{
    uint8_t *copy = test_malloc(count ? count : 1);

    memcpy(copy, bytes, count);
    return copy;
}

/* ---- Names ---- */

static void test_action_names(void **state)
{
    static const char *const in[] = {
        "read-keys", "read-reservation", "report-capabilities", "read-full-status"};
    static const char *const out[] = {"register", "reserve", "release", "clear", "preempt",
        "preempt-and-abort", "register-and-ignore", "register-and-move", "replace-lost"};

    for (unsigned action = 0; action < 0x40; action++) {
        if (action < ARRAY_SIZE(in))
            assert_string_equal(pr_in_action_name(action), in[action]);
        else
            assert_null(pr_in_action_name(action));
        if (action < ARRAY_SIZE(out))
            assert_string_equal(pr_out_action_name(action), out[action]);
        else
            assert_null(pr_out_action_name(action));
    }
}

static void test_type_names(void **state)
{
    static const char *const names[9] = {
        [1] = "write-exclusive",
        [3] = "exclusive-access",
        [5] = "write-exclusive-registrants",
        [6] = "exclusive-access-registrants",
        [7] = "write-exclusive-all",
        [8] = "exclusive-access-all",
    };
    static const char *const wrong[] = {"", "0", "2", "4", "9", "05", "+5", "5 ", "0x5", "15", "-1", "write",
        "write-exclusive-", "Write-Exclusive", "exclusive-access-all "};
    unsigned type;

    for (type = 0; type < 0x40; type++) {
        const char *name = type < ARRAY_SIZE(names) ? names[type] : NULL;

        if (!name) {
            assert_null(pr_type_name(type));
            continue;
        }
        assert_string_equal(pr_type_name(type), name);
        assert_int_equal(pr_type_from_name(name), type);
        assert_int_equal(pr_type_from_name((char[]){(char)('0' + type), '\0'}), type);
    }
    for (type = 0; type < ARRAY_SIZE(wrong); type++)
        assert_int_equal(pr_type_from_name(wrong[type]), PR_TYPE_NONE);
}

/* ---- Commands ---- */

static void test_in_cdb(void **state)
{
    static const uint8_t expected[SCSI_CDB_BYTES] = {0x5e, 0x03, 0, 0, 0, 0, 0, 0x1f, 0xf8};
    uint8_t cdb[SCSI_CDB_BYTES];

    memset(cdb, 0xff, sizeof(cdb));
    pr_in_cdb_put(cdb, PR_IN_READ_FULL_STATUS, 0x1ff8);
    assert_memory_equal(cdb, expected, sizeof(cdb));
    assert_int_equal(pr_cdb_action(cdb), PR_IN_READ_FULL_STATUS);
    assert_int_equal(pr_cdb_data_bytes(cdb), 0x1ff8);
}

static void test_out_cdb(void **state)
{
    static const uint8_t expected[SCSI_CDB_BYTES] = {0x5f, 0x04, 0x05, 0, 0, 0, 0, 0, 0x18};
    uint8_t cdb[SCSI_CDB_BYTES];

    memset(cdb, 0xff, sizeof(cdb));
    pr_out_cdb_put(cdb, PR_OUT_PREEMPT, PR_TYPE_WRITE_EXCLUSIVE_REGISTRANTS, 24);
    assert_memory_equal(cdb, expected, sizeof(cdb));
    pr_out_cdb_put(cdb, PR_OUT_RESERVE, 0xf8, 24); /* a type cannot become a scope */
    assert_int_equal(cdb[2], 0x08);
}

/* What surrounds the fields is not part of them. */
static void test_cdb_fields(void **state)
{
    static const uint8_t cdb[SCSI_CDB_BYTES] = {
        0x5f, 0xe6, 0x37, 0xff, 0xff, 0xff, 0xff, 0xab, 0xcd, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff};

    assert_int_equal(pr_cdb_action(cdb), PR_OUT_REGISTER_AND_IGNORE);
    assert_int_equal(pr_cdb_scope(cdb), 3);
    assert_int_equal(pr_cdb_type(cdb), PR_TYPE_WRITE_EXCLUSIVE_ALL);
    assert_int_equal(pr_cdb_data_bytes(cdb), 0xabcd);
}

/* ---- Parameter lists ---- */

static const uint8_t out_list[24] = {
    0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0xfe, 0xdc, 0xba, 0x98, 0x76, 0x54, 0x32, 0x10};

static void expect_out_list(uint8_t flags, bool spec_i_pt, bool all_tg_pt, bool aptpl)
{
    const PrOutList expected = {KEY_A, KEY_B, spec_i_pt, all_tg_pt, aptpl};
    uint8_t list[24], again[24];
    PrOutList what;

    memcpy(list, out_list, sizeof(list));
    list[20] = flags;
    assert_true(pr_out_list_get(list, sizeof(list), &what));
    assert_int_equal(what.key, KEY_A);
    assert_int_equal(what.service_key, KEY_B);
    assert_int_equal(what.spec_i_pt, spec_i_pt);
    assert_int_equal(what.all_tg_pt, all_tg_pt);
    assert_int_equal(what.aptpl, aptpl);
    memset(again, 0xff, sizeof(again));
    pr_out_list_put(again, &expected);
    list[20] &= 0x0d;
    assert_memory_equal(again, list, sizeof(list));
}

static void test_out_list(void **state)
{
    PrOutList what = {.key = 7};

    expect_out_list(0x00, false, false, false);
    expect_out_list(0x01, false, false, true);
    expect_out_list(0x04, false, true, false);
    expect_out_list(0x08, true, false, false);
    expect_out_list(0x0d, true, true, true);
    expect_out_list(0xf2, false, false, false);
    for (size_t bytes = 0; bytes < sizeof(out_list); bytes++) {
        uint8_t *copy = cut(out_list, bytes);

        assert_false(pr_out_list_get(copy, bytes, &what));
        test_free(copy);
    }
    assert_int_equal(what.key, 7);
    assert_false(pr_out_list_get(NULL, 0, &what));
}

/* REGISTER AND MOVE: UNREG and APTPL in byte 17, port in 18..19, TransportID length in 20..23. */
static void expect_move_list(uint8_t flags, bool unregister, bool aptpl)
{
    const PrMoveList expected = {KEY_A, KEY_B, unregister, aptpl, 0x1234, 0x00010030};
    uint8_t list[24] = {0}, again[24];
    PrMoveList what;

    memcpy(list, out_list, sizeof(list));
    memcpy(list + 16, (uint8_t[]){0, flags, 0x12, 0x34, 0x00, 0x01, 0x00, 0x30}, 8);
    assert_true(pr_move_list_get(list, sizeof(list), &what));
    assert_int_equal(what.key, KEY_A);
    assert_int_equal(what.service_key, KEY_B);
    assert_int_equal(what.unregister, unregister);
    assert_int_equal(what.aptpl, aptpl);
    assert_int_equal(what.relative_port, 0x1234);
    assert_int_equal(what.transport_id_bytes, 0x10030);
    memset(again, 0xff, sizeof(again));
    pr_move_list_put(again, &expected);
    list[17] &= 0x03;
    assert_memory_equal(again, list, sizeof(list));
}

static void test_move_list(void **state)
{
    PrMoveList what = {.key = 7};

    expect_move_list(0x00, false, false);
    expect_move_list(0x01, false, true);
    expect_move_list(0x02, true, false);
    expect_move_list(0x03, true, true);
    expect_move_list(0xfc, false, false);
    for (size_t bytes = 0; bytes < sizeof(out_list); bytes++) {
        uint8_t *copy = cut(out_list, bytes);

        assert_false(pr_move_list_get(copy, bytes, &what));
        test_free(copy);
    }
    assert_int_equal(what.key, 7);
}

/* ---- Parameter data ---- */

static const uint8_t two_keys[24] = {0x00, 0x00, 0x01, 0x05, 0x00, 0x00, 0x00, 0x10, 0x01, 0x23, 0x45, 0x67,
    0x89, 0xab, 0xcd, 0xef, 0xfe, 0xdc, 0xba, 0x98, 0x76, 0x54, 0x32, 0x10};

static void test_header(void **state)
{
    PrInHeader header = {7, 7};
    uint8_t again[8];

    for (size_t bytes = 0; bytes < 8; bytes++) {
        uint8_t *copy = cut(two_keys, bytes);

        assert_false(pr_in_header_get(copy, bytes, &header));
        test_free(copy);
    }
    assert_int_equal(header.generation, 7);
    assert_true(pr_in_header_get(two_keys, 8, &header));
    assert_int_equal(header.generation, 0x105);
    assert_int_equal(header.additional_bytes, 16);
    pr_in_header_put(again, header);
    assert_memory_equal(again, two_keys, sizeof(again));
}

static void test_keys(void **state)
{
    static const unsigned none[] = {2, 3, 0x1fffffff, 0x20000000, UINT32_MAX};
    uint64_t key = 7;

    for (size_t bytes = 0; bytes <= sizeof(two_keys); bytes++) {
        uint8_t *copy = cut(two_keys, bytes);

        key = 7;
        assert_int_equal(pr_key_get(copy, bytes, 0, &key), bytes >= 16);
        assert_true(key == (bytes >= 16 ? KEY_A : 7));
        assert_int_equal(pr_key_get(copy, bytes, 1, &key), bytes >= 24);
        for (size_t i = 0; i < ARRAY_SIZE(none); i++)
            assert_false(pr_key_get(copy, bytes, none[i], &key));
        test_free(copy);
    }
    assert_true(key == KEY_B);
    assert_false(pr_key_get(NULL, 0, 0, &key));
}

/* The device's own length ends the list, however much follows; a length of more than is there does not help.
 */
static void test_keys_length(void **state)
{
    uint8_t data[24];
    uint64_t key;

    memcpy(data, two_keys, sizeof(data));
    for (unsigned length = 0; length <= 16; length++) {
        data[7] = (uint8_t)length;
        assert_int_equal(pr_key_get(data, sizeof(data), 0, &key), length >= 8);
        assert_int_equal(pr_key_get(data, sizeof(data), 1, &key), length >= 16);
    }
    memset(data + 4, 0xff, 4);
    assert_true(pr_key_get(data, sizeof(data), 1, &key));
    assert_false(pr_key_get(data, sizeof(data), 2, &key));
}

static const uint8_t held[24] = {0x00, 0x00, 0x00, 0x02, 0x00, 0x00, 0x00, 0x10, 0x01, 0x23, 0x45, 0x67, 0x89,
    0xab, 0xcd, 0xef, 0, 0, 0, 0, 0, 0x06, 0, 0};

static void test_reservation(void **state)
{
    uint8_t data[25];
    PrReservation what = {.key = 7};

    for (size_t bytes = 0; bytes < sizeof(held); bytes++) {
        uint8_t *copy = cut(held, bytes);

        assert_false(pr_reservation_get(copy, bytes, &what));
        test_free(copy);
    }
    assert_int_equal(what.key, 7);
    assert_false(pr_reservation_get(NULL, 0, &what));
    assert_true(pr_reservation_get(held, sizeof(held), &what));
    assert_true(what.key == KEY_A);
    assert_int_equal(what.scope, 0);
    assert_int_equal(what.type, PR_TYPE_EXCLUSIVE_ACCESS_REGISTRANTS);

    memset(data, 0xff, sizeof(data));
    pr_reservation_put(data, 2, &what);
    assert_memory_equal(data, held, sizeof(held));
    assert_int_equal(data[24], 0xff);
    data[21] = 0x27;
    assert_true(pr_reservation_get(data, sizeof(data), &what));
    assert_int_equal(what.scope, 2);
    assert_int_equal(what.type, 7);
    pr_reservation_put(data, 0xffffffff, &what);
    assert_int_equal(data[21], 0x27);
}

/* No reservation: the header says so, alone or in a buffer with room for more. A length that holds no
 * descriptor is not the same. */
static void test_no_reservation(void **state)
{
    uint8_t data[24];
    PrReservation what = {.key = 7, .type = 7};

    memcpy(data, held, sizeof(data));
    for (unsigned length = 1; length < 16; length++) {
        data[7] = (uint8_t)length;
        assert_false(pr_reservation_get(data, sizeof(data), &what));
    }
    assert_int_equal(what.key, 7);
    data[7] = 0;
    for (size_t bytes = 0; bytes <= sizeof(data); bytes++) {
        uint8_t *copy = cut(data, bytes);

        what = (PrReservation){7, 7, 7};
        assert_int_equal(pr_reservation_get(copy, bytes, &what), bytes >= 8);
        assert_int_equal(what.key, bytes >= 8 ? 0 : 7);
        assert_int_equal(what.type, bytes >= 8 ? PR_TYPE_NONE : 7);
        assert_int_equal(what.scope, bytes >= 8 ? 0 : 7);
        test_free(copy);
    }
    data[4] = 0xff; /* much is claimed, nothing that fits is there */
    assert_true(pr_reservation_get(data, sizeof(data), &what));
    assert_false(pr_reservation_get(data, sizeof(data) - 1, &what));
    assert_false(pr_reservation_get(data, 8, &what));
}

static void test_capabilities(void **state)
{
    /* What the Linux target answers: SIP_C, ATP_C, PTPL_C; TMV, PTPL_A; all six types. */
    static const uint8_t target[8] = {0x00, 0x08, 0x0d, 0x81, 0xea, 0x01, 0, 0};
    static const uint8_t none[8] = {0x00, 0x08};
    PrCapabilities what = {.type_mask = 7};
    uint8_t again[8];

    for (size_t bytes = 0; bytes < 8; bytes++) {
        uint8_t *copy = cut(target, bytes);

        assert_false(pr_capabilities_get(copy, bytes, &what));
        test_free(copy);
    }
    assert_false(pr_capabilities_get((uint8_t[8]){0x00, 0x07, 0x0d}, 8, &what));
    assert_int_equal(what.type_mask, 7);
    assert_true(pr_capabilities_get(target, sizeof(target), &what));
    assert_true(what.specify_ports && what.all_ports && what.persist_through_power_loss);
    assert_true(what.type_mask_valid && what.persist_active);
    assert_false(what.replace_lost || what.compatible_handling);
    assert_int_equal(what.allow_commands, 0);
    assert_int_equal(what.type_mask, 0xea01);
    memset(again, 0xff, sizeof(again));
    pr_capabilities_put(again, &what);
    assert_memory_equal(again, target, sizeof(again));
    pr_capabilities_put(again, &(PrCapabilities){0});
    assert_memory_equal(again, none, sizeof(again));
}

/* Each bit alone. */
static void test_capability_bits(void **state)
{
    static const struct {
        uint8_t bytes[8];
        PrCapabilities what;
    } bits[] = {
        {{0, 8, 0x80}, {.replace_lost = true}},
        {{0, 8, 0x10}, {.compatible_handling = true}},
        {{0, 8, 0x08}, {.specify_ports = true}},
        {{0, 8, 0x04}, {.all_ports = true}},
        {{0, 8, 0x01}, {.persist_through_power_loss = true}},
        {{0, 8, 0, 0x80}, {.type_mask_valid = true}},
        {{0, 8, 0, 0x01}, {.persist_active = true}},
        {{0, 8, 0, 0x50}, {.allow_commands = 5}},
        {{0, 8, 0, 0, 0x80, 0x01}, {.type_mask = 0x8001}},
    };

    for (size_t i = 0; i < ARRAY_SIZE(bits); i++) {
        const PrCapabilities *expected = &bits[i].what;
        PrCapabilities what;
        uint8_t again[8];

        pr_capabilities_put(again, expected);
        assert_memory_equal(again, bits[i].bytes, sizeof(again));
        assert_true(pr_capabilities_get(bits[i].bytes, 8, &what));
        assert_int_equal(what.replace_lost, expected->replace_lost);
        assert_int_equal(what.compatible_handling, expected->compatible_handling);
        assert_int_equal(what.specify_ports, expected->specify_ports);
        assert_int_equal(what.all_ports, expected->all_ports);
        assert_int_equal(what.persist_through_power_loss, expected->persist_through_power_loss);
        assert_int_equal(what.type_mask_valid, expected->type_mask_valid);
        assert_int_equal(what.persist_active, expected->persist_active);
        assert_int_equal(what.allow_commands, expected->allow_commands);
        assert_int_equal(what.type_mask, expected->type_mask);
    }
}

/* WR_EX_AR, EX_AC_RO, WR_EX_RO, EX_AC and WR_EX are bits 7, 6, 5, 3 and 1 of byte 4, EX_AC_AR bit 0 of
 * byte 5. */
static void test_type_mask(void **state)
{
    static const uint16_t bits[9] = {
        [1] = 0x0200, [3] = 0x0800, [5] = 0x2000, [6] = 0x4000, [7] = 0x8000, [8] = 0x0001};
    static const PrType all[] = {1, 3, 5, 6, 7, 8, PR_TYPE_NONE}, odd[] = {2, 4, 9, 40, PR_TYPE_NONE};

    for (unsigned type = 0; type < 40; type++) {
        uint16_t bit = type < ARRAY_SIZE(bits) ? bits[type] : 0;

        assert_int_equal(pr_type_mask_has(0xffff, type), bit != 0);
        assert_int_equal(pr_type_mask_has(bit, type), bit != 0);
        assert_false(pr_type_mask_has((uint16_t)~bit, type));
        assert_int_equal(pr_type_mask((PrType[]){type, PR_TYPE_NONE}), bit);
    }
    assert_int_equal(pr_type_mask(all), 0xea01);
    assert_int_equal(pr_type_mask(all + 6), 0);
    assert_int_equal(pr_type_mask(odd), 0);
}

/* Two registrants: a holder behind iSCSI with a session, one behind SAS with all ports. */
static const uint8_t full_status[8 + 24 + 48 + 24 + 24] = {0x00, 0x00, 0x00, 0x09, 0x00, 0x00, 0x00,
    0x78,                                                                                           /* */
    0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0, 0, 0, 0, 0x01, 0x05, 0, 0, 0, 0, 0x00, 0x01, /* */
    0x00, 0x00, 0x00, 0x30, 0x45, 0x00, 0x00, 0x2c,                                                 /* */
    'i', 'q', 'n', '.', '2', '0', '2', '6', '-', '0', '1', '.', 'o', 'r', 'g', '.', 'e', 'x', 'a', 'm', 'p',
    'l', 'e', ':', 'a', ',', 'i', ',', '0', 'x', '0', '0', '0', '2', '3', 'd', '0', '0', '0', '0', '0', '1',
    0, 0,                                                                                           /* */
    0xfe, 0xdc, 0xba, 0x98, 0x76, 0x54, 0x32, 0x10, 0, 0, 0, 0, 0x02, 0x00, 0, 0, 0, 0, 0x00, 0x00, /* */
    0x00, 0x00, 0x00, 0x18, 0x06, 0, 0, 0, 0x50, 0x01, 0x40, 0x51, 0x23, 0x45, 0x67, 0x89};

static void test_full_status(void **state)
{
    char text[PR_TRANSPORT_ID_TEXT];
    PrRegistrant what;
    size_t offset = 0;

    assert_true(pr_registrant_next(full_status, sizeof(full_status), &offset, &what));
    assert_true(what.key == KEY_A);
    assert_true(what.holder && !what.all_ports);
    assert_int_equal(what.scope, 0);
    assert_int_equal(what.type, PR_TYPE_WRITE_EXCLUSIVE_REGISTRANTS);
    assert_int_equal(what.relative_port, 1);
    assert_ptr_equal(what.transport_id, full_status + 32);
    assert_int_equal(what.transport_id_bytes, 48);
    pr_transport_id_text(what.transport_id, what.transport_id_bytes, text);
    assert_string_equal(text, "iqn.2026-01.org.example:a,i,0x00023d000001");

    assert_true(pr_registrant_next(full_status, sizeof(full_status), &offset, &what));
    assert_true(what.key == KEY_B);
    assert_true(!what.holder && what.all_ports);
    assert_int_equal(what.type, 0);
    assert_int_equal(what.relative_port, 0);
    pr_transport_id_text(what.transport_id, what.transport_id_bytes, text);
    assert_string_equal(text, "naa.5001405123456789");
    assert_int_equal(offset, sizeof(full_status) - 8);

    what.key = 7;
    assert_false(pr_registrant_next(full_status, sizeof(full_status), &offset, &what));
    assert_int_equal(what.key, 7);
    assert_int_equal(offset, sizeof(full_status) - 8);
}

static void test_full_status_cut(void **state)
{
    for (size_t bytes = 0; bytes <= sizeof(full_status); bytes++) {
        uint8_t *copy = cut(full_status, bytes);
        size_t offset = 0, found = 0;
        PrRegistrant what;

        while (pr_registrant_next(copy, bytes, &offset, &what))
            found++;
        assert_int_equal(found, bytes == sizeof(full_status) ? 2 : bytes >= 80 ? 1 : 0);
        test_free(copy);
    }
    assert_false(pr_registrant_next(NULL, 0, &(size_t){0}, NULL));
}

/* Lengths that do not fit, offsets that nobody gave out, and a registrant without TransportID. */
static void test_full_status_hostile(void **state)
{
    static const size_t offsets[] = {97, 119, 120, 121, sizeof(full_status), SIZE_MAX - 8, SIZE_MAX};
    static const uint32_t lengths[] = {97, 0x7fffffff, 0xffffffe8, 0xffffffff};
    uint8_t data[sizeof(full_status)];
    PrRegistrant what;
    size_t offset;

    memcpy(data, full_status, sizeof(data));
    for (size_t i = 0; i < ARRAY_SIZE(offsets); i++) {
        offset = offsets[i];
        assert_false(pr_registrant_next(data, sizeof(data), &offset, &what));
        assert_true(offset == offsets[i]);
    }
    for (size_t i = 0; i < ARRAY_SIZE(lengths); i++) {
        for (unsigned byte = 0; byte < 4; byte++)
            data[28 + byte] = (uint8_t)(lengths[i] >> (24 - 8 * byte));
        offset = 0;
        assert_false(pr_registrant_next(data, sizeof(data), &offset, &what));
        assert_int_equal(offset, 0);
    }
    memcpy(data + 28, (uint8_t[]){0, 0, 0, 96}, 4); /* the whole rest */
    assert_true(pr_registrant_next(data, sizeof(data), &offset, &what));
    assert_int_equal(what.transport_id_bytes, 96);
    assert_int_equal(offset, 120);
    memset(data + 28, 0, 4);
    offset = 0;
    assert_true(pr_registrant_next(data, sizeof(data), &offset, &what));
    assert_int_equal(what.transport_id_bytes, 0);
    assert_int_equal(offset, 24);
    data[7] = 23; /* the device says that less than one descriptor follows */
    assert_false(pr_registrant_next(data, sizeof(data), &(size_t){0}, &what));
}

/* ---- TransportIDs ---- */

static void expect_text(const uint8_t *id, size_t bytes, const char *expected)
{
    uint8_t *copy = cut(id, bytes);
    char text[PR_TRANSPORT_ID_TEXT];

    memset(text, 0x55, sizeof(text));
    pr_transport_id_text(copy, bytes, text);
    assert_string_equal(text, expected);
    test_free(copy);
}

static void test_transport_ids(void **state)
{
    static const struct {
        uint8_t id[24];
        const char *text;
    } ids[] = {
        {{0x00, 0, 0, 0, 0, 0, 0, 0, 0x21, 0, 0, 0xe0, 0x8b, 1, 2, 3}, "naa.210000e08b010203"},
        {{0x01, 0, 0x00, 0x07, 0, 0, 0x01, 0x02}, "scsi.7,258"},
        {{0x03, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7}, "eui.0001020304050607"},
        {{0x04, 0, 0, 0, 0, 0, 0, 0, 0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 2, 0xc9, 3, 0, 0x4f, 0x1a, 0xbc},
            "0xfe800000000000000002c903004f1abc"},
        {{0x06, 0, 0, 0, 0x50, 0x01, 0x40, 0x5a, 0xbc, 0xde, 0xf0, 0x12}, "naa.5001405abcdef012"},
        {{0x0a, 0, 0x03, 0x08}, "pci.0308"},
        /* No format of that protocol, or no such protocol. */
        {{0x46, 0, 0, 0, 0x50}, "0x460000005000000000000000000000000000000000000000"},
        {{0x02, 1}, "0x020100000000000000000000000000000000000000000000"},
        {{0x0f, 1}, "0x0f0100000000000000000000000000000000000000000000"},
        {{0x85, 0, 0, 20, 'a'}, "0x850000146100000000000000000000000000000000000000"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(ids); i++)
        expect_text(ids[i].id, sizeof(ids[i].id), ids[i].text);
    /* Bytes behind the fields do not matter; with one too few it is no TransportID. */
    expect_text((uint8_t[28]){0x16, 0, 0, 0, 0x50, [25] = 9}, 28, "naa.5000000000000000");
    expect_text(ids[4].id, 23, "0x060000005001405abcdef0120000000000000000000000");
    expect_text(ids[4].id, 1, "0x06");
    expect_text(ids[4].id, 0, "0x");
}

static void test_transport_id_iscsi(void **state)
{
    static const uint8_t name[24] = "\x05\0\0\x14iqn.2026-01.a.b:c",
                         session[28] = "\x45\0\0\x18iqn.2026-01:c,i,0x1a2b3c";
    static const uint8_t unended[8] = "\x05\0\0\x04iqn.", early[8] = "\x05\0\0\x02iqn.";
    static const uint8_t claims_more[8] = "\x05\0\xff\xffiqn.", empty[8] = "\x05\0\0\x14",
                         no_length[8] = "\x05\0\0\0iqn.";
    static const uint8_t odd[12] = "\x05\0\0\x08 \n\x1b\x7f\x80\xff~!";

    expect_text(name, sizeof(name), "iqn.2026-01.a.b:c");
    expect_text(session, sizeof(session), "iqn.2026-01:c,i,0x1a2b3c");
    expect_text(unended, sizeof(unended), "iqn.");
    expect_text(early, sizeof(early), "iq");
    expect_text(claims_more, sizeof(claims_more), "iqn.");
    expect_text(empty, sizeof(empty), "0x0500001400000000");
    expect_text(no_length, sizeof(no_length), "0x0500000069716e2e");
    expect_text(odd, sizeof(odd), "??????~!");
    for (size_t bytes = 5; bytes < 22; bytes++) {
        char text[18] = "";

        memcpy(text, name + 4, bytes - 4);
        expect_text(name, bytes, text);
    }
    expect_text(name, 4, "0x05000014");
    expect_text(name, 1, "0x05");
}

/* More than fits is cut, never run over. */
static void test_transport_id_long(void **state)
{
    uint8_t id[1024];
    char text[PR_TRANSPORT_ID_TEXT + 1];

    memset(id, 'x', sizeof(id));
    text[PR_TRANSPORT_ID_TEXT] = 0x55;
    memcpy(id, (uint8_t[]){0x05, 0, 0x03, 0xfc}, 4);
    pr_transport_id_text(id, sizeof(id), text);
    assert_int_equal(strlen(text), PR_TRANSPORT_ID_TEXT - 1);
    id[0] = 0x0f;
    pr_transport_id_text(id, sizeof(id), text);
    assert_int_equal(strlen(text), PR_TRANSPORT_ID_TEXT - 2);
    assert_memory_equal(text, "0x0f0003fc7878", 14);
    assert_int_equal(text[PR_TRANSPORT_ID_TEXT], 0x55);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_action_names),
        cmocka_unit_test(test_type_names),
        cmocka_unit_test(test_in_cdb),
        cmocka_unit_test(test_out_cdb),
        cmocka_unit_test(test_cdb_fields),
        cmocka_unit_test(test_out_list),
        cmocka_unit_test(test_move_list),
        cmocka_unit_test(test_header),
        cmocka_unit_test(test_keys),
        cmocka_unit_test(test_keys_length),
        cmocka_unit_test(test_reservation),
        cmocka_unit_test(test_no_reservation),
        cmocka_unit_test(test_capabilities),
        cmocka_unit_test(test_capability_bits),
        cmocka_unit_test(test_type_mask),
        cmocka_unit_test(test_full_status),
        cmocka_unit_test(test_full_status_cut),
        cmocka_unit_test(test_full_status_hostile),
        cmocka_unit_test(test_transport_ids),
        cmocka_unit_test(test_transport_id_iscsi),
        cmocka_unit_test(test_transport_id_long),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
