/* SPDX-License-Identifier: Apache-2.0 */
/* The set of metadata clusters against a plain array, over many additions and removals. */
#include "base/mem.h"
#include "drivers/qcow2/qcow2-priv.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#define CLUSTERS 512

static void test_like_an_array(void **state)
{
    uint8_t expected[CLUSTERS] = {0};
    MetaSet set = {0};
    uint32_t random = 1;

    for (unsigned i = 0; i < 20000; i++) {
        uint64_t cluster;
        unsigned kind;

        random = random * 1103515245 + 12345;
        cluster = random >> 16 & (CLUSTERS - 1);
        kind = 1U << (random >> 12 & 3);
        if (random >> 28 & 1) {
            assert_int_equal(metaset_add(&set, cluster, kind), 0);
            expected[cluster] |= (uint8_t)kind;
        } else {
            kind = random >> 27 & 1 ? ~0U : kind;
            metaset_remove(&set, cluster, kind);
            expected[cluster] &= (uint8_t)~kind;
        }
        for (uint64_t at = i % 64; at < CLUSTERS; at += 64)
            assert_int_equal(metaset_kinds(&set, at), expected[at]);
    }
    metaset_done(&set);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_like_an_array)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
