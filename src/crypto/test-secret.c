/* SPDX-License-Identifier: Apache-2.0 */
#include "crypto/secret.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static void expect_base64(const char *text, const char *bytes)
{
    AUTO_ERROR Error err = ERROR_INIT;
    uint8_t *data;
    size_t length;

    assert_int_equal(secret_from_base64(text, strlen(text), &data, &length, &err), 0);
    assert_int_equal(length, strlen(bytes));
    assert_memory_equal(data, bytes, length + 1);
    secret_free(data, length);
}

static void expect_no_base64(const char *text)
{
    AUTO_ERROR Error err = ERROR_INIT;
    uint8_t *data;
    size_t length;

    assert_true(secret_from_base64(text, strlen(text), &data, &length, &err) < 0);
    assert_string_equal(err.message, "Base64 data contains invalid characters");
}

/* RFC 4648, section 10. */
static void test_base64(void **state)
{
    expect_base64("", "");
    expect_base64("Zg==", "f");
    expect_base64("Zm8=", "fo");
    expect_base64("Zm9v", "foo");
    expect_base64("Zm9vYg==", "foob");
    expect_base64("Zm9vYmE=", "fooba");
    expect_base64("Zm9v\nYmFy\n", "foobar");
}

static void test_base64_refused(void **state)
{
    expect_no_base64("Zm9");
    expect_no_base64("Z");
    expect_no_base64("Z===");
    expect_no_base64("====");
    expect_no_base64("Zg==Zg==");
    expect_no_base64("Zg=v");
    expect_no_base64("Zm9v Zg==");
    expect_no_base64("Zm9-");
}

/* openssl enc -aes-256-cbc -K 00.. -iv 00.. of "hello" */
static const uint8_t encrypted[16] = {
    0xc2, 0x35, 0xde, 0x24, 0xd2, 0x39, 0xe0, 0x3c, 0xc8, 0xe3, 0x77, 0xc6, 0x04, 0xfc, 0xa6, 0x7b};

static void test_decrypt(void **state)
{
    AUTO_ERROR Error err = ERROR_INIT;
    const uint8_t key[32] = {0}, iv[16] = {0};
    uint8_t *data;
    size_t length;

    assert_int_equal(secret_decrypt(key, iv, encrypted, sizeof(encrypted), &data, &length, &err), 0);
    assert_int_equal(length, 5);
    assert_string_equal((char *)data, "hello");
    secret_free(data, length);
}

static void test_decrypt_refused(void **state)
{
    AUTO_ERROR Error err = ERROR_INIT;
    const uint8_t key[32] = {1}, iv[16] = {0};
    uint8_t *data;
    size_t length;

    assert_true(secret_decrypt(key, iv, encrypted, 3, &data, &length, &err) < 0);
    assert_string_equal(err.message, "Length 3 must be a multiple of block size 16");
    err_done(&err);
    assert_true(secret_decrypt(key, iv, encrypted, 0, &data, &length, &err) < 0);
    err_done(&err);
    assert_true(secret_decrypt(key, iv, encrypted, sizeof(encrypted), &data, &length, &err) < 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_base64),
        cmocka_unit_test(test_base64_refused),
        cmocka_unit_test(test_decrypt),
        cmocka_unit_test(test_decrypt_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
