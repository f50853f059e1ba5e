/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Power cuts while an encrypted image is made and while its keys change: what is found afterwards is no image
 * at all, or one that opens.
 */
#include "base/mem.h"
#include "drivers/qcow2/test-graph.h"
#include "generated/types.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#define SEEDS 3
#define DISK (64 * KIB)
#define CUTS 400

extern const Driver driver_qcow2;

static BlockdevRef file_ref = {.type = BLOCKDEV_REF_KIND_REFERENCE, .u.reference = (char *)"file"};
static BlockdevQcow2Encryption opened_with = {.format = BLOCKDEV_QCOW2_ENCRYPTION_FORMAT_LUKS};
static MemFile *cuts[CUTS];
static size_t cut_count;

/* Every moment is as good as any other. */
static void cut(void)
{
    if (cut_count < CUTS)
        cuts[cut_count++] = mem_file_cut(mem_file);
}

/* Into mem_file, or a new file. */
static void make_image(void)
{
    AUTO_ERROR Error err = ERROR_INIT;
    QCryptoBlockCreateOptions encrypt = {.format = QCRYPTO_BLOCK_FORMAT_LUKS,
        .u.luks = {.key_secret = (char *)"old",
            .has_cipher_alg = true,
            .cipher_alg = QCRYPTO_CIPHER_ALGO_AES_128,
            .has_cipher_mode = true,
            .cipher_mode = QCRYPTO_CIPHER_MODE_CBC,
            .has_iter_time = true}};
    BlockdevCreateOptions options = {.u.qcow2 = {.file = &file_ref,
                                         .size = DISK,
                                         .encrypt = &encrypt,
                                         .has_cluster_size = true,
                                         .cluster_size = 512,
                                         .has_preallocation = true,
                                         .preallocation = PREALLOC_MODE_METADATA}};

    if (!mem_file)
        mem_file = mem_file_new(NULL, 0, false);
    assert_int_equal(driver_qcow2.create(&options, &err), 0);
}

/* From now on power cuts find something. */
static void record(void)
{
    MemFile *made = mem_file;

    mem_file = mem_file_new(made->data, made->size, true);
    mem_file_free(made);
}

static Node *open_with(const char *password, Error *err)
{
    opened_with.u.luks.key_secret = (char *)password;
    mem_options = (BlockdevOptionsQcow2){.encrypt = &opened_with};
    return test_open(false, err);
}

static void expect_zeroes(Node *node)
{
    AUTO_FREE uint8_t *data = mem_zalloc(DISK), *zeroes = mem_zalloc(DISK);
    struct iovec iov;

    memset(data, 1, DISK);
    assert_int_equal(driver_qcow2.read(node, 0, io_slice_of(&iov, data, DISK)), 0);
    assert_memory_equal(data, zeroes, DISK);
}

static bool opens(MemFile *file, const char *password)
{
    AUTO_ERROR Error err = ERROR_INIT;
    Node *node;

    mem_file = file;
    node = open_with(password, &err);
    if (!node)
        return false;
    expect_zeroes(node);
    test_close(node);
    return true;
}

/* Calls judge with each of what the power cuts have left. */
static void judge_cuts(bool (*judge)(MemFile *file))
{
    MemFile *whole = mem_file;

    assert_true(cut_count > 10);
    for (size_t i = 0; i < cut_count; i++) {
        assert_true(judge(cuts[i]));
        mem_file_free(cuts[i]);
    }
    cut_count = 0;
    mem_file_free(whole);
    mem_file = NULL;
}

/* ---- Creation ---- */

static bool is_no_image_or_whole(MemFile *file)
{
    return get_be32(file->data) != QCOW2_MAGIC || opens(file, "old");
}

/* In a file that had an image before, which does not shrink: a new image may not look like it. */
static void create(void *opaque)
{
    make_image();
    record();
    mem_device = mem_yields = true;
    test_on_step = cut;
    make_image();
    test_on_step = NULL;
    mem_device = mem_yields = false;
    judge_cuts(is_no_image_or_whole);
}

static void test_creation(void **state)
{
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        test_random_seed(seed);
        test_run(create, NULL);
    }
}

/* ---- Keys ---- */

static bool has_a_key(MemFile *file)
{
    return opens(file, "old") || opens(file, "new");
}

static void amend(Node *node, QCryptoBlockAmendOptionsLUKS luks, bool force)
{
    AUTO_ERROR Error err = ERROR_INIT;
    QCryptoBlockAmendOptions encrypt = {.format = QCRYPTO_BLOCK_FORMAT_LUKS, .u.luks = luks};
    BlockdevAmendOptions options = {.u.qcow2.encrypt = &encrypt};

    assert_int_equal(driver_qcow2.amend(node, &options, force, &err), 0);
}

static void change_keys(void *opaque)
{
    AUTO_ERROR Error err = ERROR_INIT;
    Node *node;

    make_image();
    record();
    node = open_with("old", &err);
    assert_non_null(node);
    mem_yields = true;
    test_on_step = cut;
    amend(node,
        (QCryptoBlockAmendOptionsLUKS){
            .new_secret = (char *)"new", .has_keyslot = true, .keyslot = 0, .has_iter_time = true},
        true);
    amend(node,
        (QCryptoBlockAmendOptionsLUKS){
            .new_secret = (char *)"old", .secret = (char *)"new", .has_iter_time = true},
        false);
    amend(node,
        (QCryptoBlockAmendOptionsLUKS){
            .state = QCRYPTO_BLOCK_LUKS_KEYSLOT_STATE_INACTIVE, .has_keyslot = true, .keyslot = 0},
        false);
    test_on_step = NULL;
    mem_yields = false;
    test_close(node);
    assert_true(opens(mem_file, "old"));
    assert_false(opens(mem_file, "new"));
    judge_cuts(has_a_key);
}

static void test_keys(void **state)
{
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        test_random_seed(seed);
        test_run(change_keys, NULL);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_creation), cmocka_unit_test(test_keys)};

    mem_yields = false;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
