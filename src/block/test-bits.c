/* SPDX-License-Identifier: Apache-2.0 */
/* Arrays of bits against a plain array of bytes; and several threads that set bits at once. */
#include "block/bits.h"

#include "base/mem.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#define MODEL_BITS 20000

static uint8_t model[MODEL_BITS];
static unsigned seed;

static uint64_t number_below(uint64_t end)
{
    return (uint64_t)rand_r(&seed) % end;
}

static uint64_t model_next(uint64_t first, uint64_t end, uint8_t wanted)
{
    while (first < end && model[first] != wanted)
        first++;
    return first;
}

static void random_range(uint64_t size, uint64_t *ret_first, uint64_t *ret_end)
{
    uint64_t bytes = number_below(4) ? number_below(100) : number_below(size + 1);

    *ret_first = number_below(size + 1);
    *ret_end = MIN(*ret_first + bytes, size);
}

static void check_searches(const Bits *bits)
{
    uint64_t first, end, set = 0;

    for (unsigned i = 0; i < 8; i++) {
        random_range(bits->size, &first, &end);
        assert_int_equal(bits_next_set(bits, first, end), model_next(first, end, 1));
        assert_int_equal(bits_next_clear(bits, first, end), model_next(first, end, 0));
    }
    for (uint64_t i = 0; i < bits->size; i++)
        set += model[i];
    assert_int_equal(bits->count, set);
}

static void change(Bits *bits)
{
    uint64_t first, end;

    random_range(bits->size, &first, &end);
    switch (number_below(12)) {
    case 0:
        end = number_below(MODEL_BITS);
        memset(model + MIN(end, bits->size), 0, MODEL_BITS - MIN(end, bits->size));
        assert_int_equal(bits_resize(bits, end), 0);
        break;
    case 1 ... 5:
        bits_reset(bits, first, end);
        memset(model + first, 0, end - first);
        break;
    case 6:
        if (first == bits->size)
            break;
        bits_put_word(bits, first / 64, UINT64_MAX);
        memset(model + first / 64 * 64, 1, MIN(bits->size - first / 64 * 64, 64U));
        break;
    default:
        bits_set(bits, first, end);
        memset(model + first, 1, end - first);
    }
}

static void behaves_as_an_array_of_bytes(void **state)
{
    Bits bits;

    seed = getenv("GRANARY_TEST_SEED") ? (unsigned)atoi(getenv("GRANARY_TEST_SEED")) : (unsigned)time(NULL);
    print_message("GRANARY_TEST_SEED=%u\n", seed);
    assert_int_equal(bits_init(&bits, 10000), 0);
    memset(model, 0, sizeof(model));
    for (unsigned i = 0; i < 3000; i++) {
        change(&bits);
        check_searches(&bits);
    }
    bits_done(&bits);
}

static void an_empty_array(void **state)
{
    Bits bits;

    assert_int_equal(bits_init(&bits, 0), 0);
    bits_set(&bits, 0, 0);
    bits_reset(&bits, 0, 0);
    assert_int_equal(bits_next_set(&bits, 0, 0), 0);
    assert_int_equal(bits_resize(&bits, 1), 0);
    bits_set(&bits, 0, 1);
    assert_int_equal(bits.count, 1);
    bits_done(&bits);
}

/* 8 TiB in pieces of 64 KiB; what lies between is skipped by the summary, or this would take minutes. */
static void few_bits_in_a_large_array(void **state)
{
    const uint64_t size = (8 * TIB) / (64 * KIB);
    uint64_t found = 0;
    Bits bits;

    assert_int_equal(bits_init(&bits, size), 0);
    bits_set(&bits, 5, 6);
    bits_set(&bits, size - 1, size);
    for (unsigned i = 0; i < 20000; i++)
        found += bits_next_set(&bits, 6, size) == size - 1;
    assert_int_equal(found, 20000);
    bits_reset(&bits, 0, size);
    assert_int_equal(bits_next_set(&bits, 0, size), size);
    bits_done(&bits);
}

/* ---- Threads ---- */

#define THREADS 4
#define SHARED_BITS 100000

static Bits shared;

static void *set_every_other(void *arg)
{
    uint64_t number = (uintptr_t)arg;

    /* Neighbours share words; every tenth bit is set by all. */
    for (uint64_t i = 0; i < SHARED_BITS; i++)
        if (i % THREADS == number || i % 10 == 0)
            bits_set(&shared, i, i + 1);
    return NULL;
}

static void *look(void *arg)
{
    for (unsigned i = 0; i < 50; i++) {
        uint64_t at = bits_next_set(&shared, 0, SHARED_BITS);

        if (at < SHARED_BITS)
            assert_true(bits_next_clear(&shared, at, SHARED_BITS) > at);
    }
    return NULL;
}

static void threads_set_bits_at_once(void **state)
{
    pthread_t threads[THREADS + 1];

    assert_int_equal(bits_init(&shared, SHARED_BITS), 0);
    for (uintptr_t i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, set_every_other, (void *)i), 0);
    assert_int_equal(pthread_create(&threads[THREADS], NULL, look, NULL), 0);
    for (unsigned i = 0; i <= THREADS; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(shared.count, SHARED_BITS);
    assert_int_equal(bits_next_clear(&shared, 0, SHARED_BITS), SHARED_BITS);
    bits_done(&shared);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(behaves_as_an_array_of_bytes),
        cmocka_unit_test(an_empty_array),
        cmocka_unit_test(few_bits_in_a_large_array),
        cmocka_unit_test(threads_set_bits_at_once),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
