/* SPDX-License-Identifier: Apache-2.0 */
/* The handshake: rules between options that a single message does not show. */
#include "exports/nbd/negotiate.h"

#include "base/endian.h"
#include "base/limits.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

static const char *const export_names[] = {"e0", "e1"};
static uint64_t serials[] = {1, 2};

static void fill_export(size_t i, NegotiateExport *ret_export)
{
    *ret_export = (NegotiateExport){
        .opaque = (void *)(i + 1),
        .serial = serials[i],
        .name = export_names[i],
        .size = 1 << 20,
        .flags = NBD_FLAG_HAS_FLAGS,
        .contexts = 1 << NBD_CONTEXT_ALLOCATION,
        .block_min = 512,
        .block_preferred = 4096,
        .block_max = 32 << 20,
    };
}

static bool next(void *opaque, NegotiateExport *ret_export)
{
    size_t i = (size_t)ret_export->opaque;

    if (i == ARRAY_SIZE(export_names))
        return false;
    fill_export(i, ret_export);
    return true;
}

static bool find(void *opaque, NbdString name, NegotiateExport *ret_export)
{
    for (size_t i = 0; i < ARRAY_SIZE(export_names); i++) {
        if (name.bytes == 2 && memcmp(name.text, export_names[i], 2) == 0) {
            fill_export(i, ret_export);
            return true;
        }
    }
    return false;
}

static const NegotiateHost host = {.next = next, .find = find};

static Negotiation negotiation;
static StrBuf replies;

static int set_up(void **state)
{
    negotiation_init(&negotiation, &host, NULL);
    return negotiate_flags(&negotiation, NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES) == NEGOTIATE_NEXT ? 0 : -1;
}

static int tear_down(void **state)
{
    strbuf_done(&replies);
    return 0;
}

static NegotiateStep send_option(uint32_t option, const void *data, size_t bytes)
{
    strbuf_done(&replies);
    return negotiate_option(&negotiation, option, data, bytes, &replies);
}

/* The type of the last reply. */
static uint32_t last_type(void)
{
    const uint8_t *at = (const uint8_t *)replies.text, *end = at + replies.length;
    uint32_t type = 0;

    while (at < end) {
        assert_true(get_be64(at) == NBD_OPTION_REPLY_MAGIC);
        type = get_be32(at + 12);
        at += NBD_OPTION_REPLY_BYTES + get_be32(at + 16);
    }
    assert_ptr_equal(at, end);
    return type;
}

static const uint8_t go_e0[] = {0, 0, 0, 2, 'e', '0', 0, 0}, go_e1[] = {0, 0, 0, 2, 'e', '1', 0, 0};
static const uint8_t allocation_e0[] = {0, 0, 0, 2, 'e', '0', 0, 0, 0, 1, 0, 0, 0, 15, 'b', 'a', 's', 'e',
    ':', 'a', 'l', 'l', 'o', 'c', 'a', 't', 'i', 'o', 'n'};
static const uint8_t no_context_e0[] = {0, 0, 0, 2, 'e', '0', 0, 0, 0, 0};

static void test_flags(void **state)
{
    assert_int_equal(negotiate_flags(&negotiation, 4), NEGOTIATE_DROP);
    assert_int_equal(negotiate_flags(&negotiation, 0), NEGOTIATE_NEXT);
    assert_int_equal(send_option(NBD_OPT_LIST, NULL, 0), NEGOTIATE_DROP);
    assert_int_equal(send_option(NBD_OPT_EXPORT_NAME, "e0", 2), NEGOTIATE_TRANSMIT);
    assert_int_equal(replies.length, 134);
}

static void test_go(void **state)
{
    assert_int_equal(send_option(NBD_OPT_GO, go_e1, sizeof(go_e1)), NEGOTIATE_TRANSMIT);
    assert_int_equal(last_type(), NBD_REP_ACK);
    assert_ptr_equal(negotiation.chosen.opaque, (void *)2);
}

static void test_contexts_belong_to_an_export(void **state)
{
    assert_int_equal(
        send_option(NBD_OPT_SET_META_CONTEXT, allocation_e0, sizeof(allocation_e0)), NEGOTIATE_NEXT);
    assert_int_equal(last_type(), NBD_REP_ERR_INVALID); /* not without structured replies */
    send_option(NBD_OPT_STRUCTURED_REPLY, NULL, 0);
    send_option(NBD_OPT_SET_META_CONTEXT, allocation_e0, sizeof(allocation_e0));
    assert_int_equal(negotiation.contexts, 1);
    send_option(NBD_OPT_GO, go_e1, sizeof(go_e1));
    assert_int_equal(negotiation.contexts, 0);
}

/* The export was removed, and another one has its name now. */
static void test_contexts_do_not_move_to_another_export(void **state)
{
    send_option(NBD_OPT_STRUCTURED_REPLY, NULL, 0);
    send_option(NBD_OPT_SET_META_CONTEXT, allocation_e0, sizeof(allocation_e0));
    serials[0] = 3;
    send_option(NBD_OPT_GO, go_e0, sizeof(go_e0));
    serials[0] = 1;
    assert_int_equal(negotiation.contexts, 0);
}

static void test_contexts_are_replaced(void **state)
{
    send_option(NBD_OPT_STRUCTURED_REPLY, NULL, 0);
    send_option(NBD_OPT_SET_META_CONTEXT, allocation_e0, sizeof(allocation_e0));
    send_option(NBD_OPT_SET_META_CONTEXT, no_context_e0, sizeof(no_context_e0));
    assert_int_equal(negotiation.contexts, 0);
    send_option(NBD_OPT_SET_META_CONTEXT, allocation_e0, sizeof(allocation_e0));
    send_option(NBD_OPT_GO, go_e0, sizeof(go_e0));
    assert_int_equal(negotiation.contexts, 1);
}

static void test_modes(void **state)
{
    send_option(NBD_OPT_STRUCTURED_REPLY, NULL, 0);
    assert_int_equal(last_type(), NBD_REP_ACK);
    send_option(NBD_OPT_STRUCTURED_REPLY, NULL, 0);
    assert_int_equal(last_type(), NBD_REP_ERR_INVALID);
    send_option(NBD_OPT_EXTENDED_HEADERS, NULL, 0);
    assert_int_equal(last_type(), NBD_REP_ACK);
    send_option(NBD_OPT_STRUCTURED_REPLY, NULL, 0);
    assert_int_equal(last_type(), NBD_REP_ERR_EXT_HEADER_REQD);
    assert_int_equal(send_option(NBD_OPT_EXPORT_NAME, "e0", 2), NEGOTIATE_DROP);
}

static void test_block_size_required(void **state)
{
    send_option(NBD_OPT_INFO, go_e0, sizeof(go_e0));
    assert_int_equal(last_type(), NBD_REP_ERR_BLOCK_SIZE_REQD);
}

static void test_other_options(void **state)
{
    send_option(NBD_OPT_STARTTLS, NULL, 0);
    assert_int_equal(last_type(), NBD_REP_ERR_POLICY);
    send_option(77, "abc", 3);
    assert_int_equal(last_type(), NBD_REP_ERR_UNSUP);
    assert_int_equal(send_option(NBD_OPT_ABORT, "abc", 3), NEGOTIATE_END);
    strbuf_done(&replies);
    assert_int_equal(negotiate_long_option(&negotiation, NBD_OPT_SET_META_CONTEXT, &replies), NEGOTIATE_NEXT);
    assert_int_equal(last_type(), NBD_REP_ERR_TOO_BIG);
    assert_int_equal(negotiate_long_option(&negotiation, NBD_OPT_EXPORT_NAME, &replies), NEGOTIATE_DROP);
}

static void test_option_flood(void **state)
{
    for (unsigned i = 0; i < LIMIT_NBD_OPTIONS; i++)
        assert_int_equal(send_option(77, NULL, 0), NEGOTIATE_NEXT);
    assert_int_equal(send_option(77, NULL, 0), NEGOTIATE_DROP);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_flags, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_go, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_contexts_belong_to_an_export, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_contexts_do_not_move_to_another_export, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_contexts_are_replaced, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_modes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_block_size_required, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_other_options, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_option_flood, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
