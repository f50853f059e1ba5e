/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An array of bits with a summary (bits.h).
 *
 * A bit of the summary may be set above words that are all zero, never clear above one that is not: setting
 * goes from the word to the summary, and only functions that have the array for themselves clear bits there.
 */
#include "block/bits.h"

#include "base/mem.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define WORD_BITS 64
/* Words below one bit of the summary. */
#define GROUP_WORDS 64
#define GROUP_BITS (WORD_BITS * GROUP_WORDS)

static uint64_t load(const _Atomic uint64_t *word)
{
    return atomic_load_explicit(word, memory_order_relaxed);
}

static void store(_Atomic uint64_t *word, uint64_t value)
{
    atomic_store_explicit(word, value, memory_order_relaxed);
}

uint64_t bits_words(const Bits *bits)
{
    return div_round_up(bits->size, WORD_BITS);
}

static uint64_t summary_words(uint64_t size)
{
    return div_round_up(size, (uint64_t)GROUP_BITS * WORD_BITS);
}

static int allocate(Bits *bits, uint64_t size, uint64_t capacity)
{
    _Atomic uint64_t *words = mem_try_zalloc(div_round_up(capacity, WORD_BITS) + 1, sizeof(*words));
    _Atomic uint64_t *summary = mem_try_zalloc(summary_words(capacity) + 1, sizeof(*summary));

    if (!words || !summary) {
        free(words);
        free(summary);
        return -ENOMEM;
    }
    *bits = (Bits){.size = size, .capacity = capacity, .words = words, .summary = summary};
    return 0;
}

int bits_init(Bits *bits, uint64_t size)
{
    return allocate(bits, size, size);
}

void bits_done(Bits *bits)
{
    free(bits->words);
    free(bits->summary);
    *bits = (Bits){0};
}

static void copy(Bits *to, const Bits *from)
{
    memcpy(to->words, from->words, bits_words(from) * sizeof(*from->words));
    memcpy(to->summary, from->summary, summary_words(from->size) * sizeof(*from->summary));
    store(&to->count, load(&from->count));
}

int bits_copy(Bits *bits, const Bits *from)
{
    int r = bits_init(bits, from->size);

    if (r == 0)
        copy(bits, from);
    return r;
}

/* An array that grows bit by bit is not copied each time. */
static int grow(Bits *bits, uint64_t size)
{
    Bits grown;
    int r = allocate(&grown, size, size + size / 4);

    if (r < 0)
        return r;
    copy(&grown, bits);
    bits_done(bits);
    *bits = grown;
    return 0;
}

int bits_resize(Bits *bits, uint64_t size)
{
    if (size > bits->capacity)
        return grow(bits, size);
    bits_reset(bits, MIN(size, bits->size), bits->size);
    bits->size = size;
    return 0;
}

/* The bits of word `index` that lie in [first, end), which reaches into it. */
static uint64_t mask_in_word(uint64_t index, uint64_t first, uint64_t end)
{
    uint64_t start = index * WORD_BITS, mask = UINT64_MAX;

    if (first > start)
        mask <<= first - start;
    if (end - start < WORD_BITS)
        mask &= (UINT64_C(1) << (end - start)) - 1;
    return mask;
}

static void note_in_summary(Bits *bits, uint64_t index)
{
    _Atomic uint64_t *word = &bits->summary[index / GROUP_WORDS / WORD_BITS];
    uint64_t bit = UINT64_C(1) << (index / GROUP_WORDS % WORD_BITS);

    if (!(load(word) & bit))
        atomic_fetch_or(word, bit);
}

void bits_set(Bits *bits, uint64_t first, uint64_t end)
{
    for (uint64_t i = first / WORD_BITS; first < end && i <= (end - 1) / WORD_BITS; i++) {
        uint64_t mask = mask_in_word(i, first, end), old;

        /* As a rule a guest writes where it has written before: that needs no exclusive cache line. */
        if ((load(&bits->words[i]) & mask) == mask)
            continue;
        old = atomic_fetch_or(&bits->words[i], mask);
        atomic_fetch_add(&bits->count, (uint64_t)__builtin_popcountll(mask & ~old));
        note_in_summary(bits, i);
    }
}

void bits_put_word(Bits *bits, uint64_t index, uint64_t value)
{
    uint64_t old = load(&bits->words[index]);

    value &= mask_in_word(index, index * WORD_BITS, bits->size);
    store(&bits->words[index], value);
    store(&bits->count,
        load(&bits->count) + (uint64_t)__builtin_popcountll(value) - (uint64_t)__builtin_popcountll(old));
    if (value)
        note_in_summary(bits, index);
}

uint64_t bits_word(const Bits *bits, uint64_t index)
{
    return load(&bits->words[index]);
}

/* Whole groups that have become zero, so that searching skips them again. */
static void refresh_summary(Bits *bits, uint64_t first, uint64_t end)
{
    for (uint64_t group = first / GROUP_BITS; group <= (end - 1) / GROUP_BITS; group++) {
        _Atomic uint64_t *word = &bits->summary[group / WORD_BITS];
        uint64_t bit = UINT64_C(1) << (group % WORD_BITS), start = group * GROUP_BITS;
        uint64_t stop = MIN(start + GROUP_BITS, bits->size);

        if ((load(word) & bit) && bits_next_set(bits, start, stop) == stop)
            store(word, load(word) & ~bit);
    }
}

void bits_reset(Bits *bits, uint64_t first, uint64_t end)
{
    if (first >= end)
        return;
    for (uint64_t i = first / WORD_BITS; i <= (end - 1) / WORD_BITS; i++) {
        uint64_t old = load(&bits->words[i]);

        if (old)
            bits_put_word(bits, i, old & ~mask_in_word(i, first, end));
    }
    refresh_summary(bits, first, end);
}

/* The first group from `group` on that is noted in the summary, or `groups`. */
static uint64_t next_group(const Bits *bits, uint64_t group, uint64_t groups)
{
    while (group < groups) {
        uint64_t noted = load(&bits->summary[group / WORD_BITS]) >> (group % WORD_BITS);

        if (noted)
            return MIN(group + (uint64_t)__builtin_ctzll(noted), groups);
        group = align_down(group, WORD_BITS) + WORD_BITS;
    }
    return groups;
}

uint64_t bits_next_set(const Bits *bits, uint64_t first, uint64_t end)
{
    while (first < end) {
        uint64_t index = first / WORD_BITS;
        uint64_t found = load(&bits->words[index]) & mask_in_word(index, first, end);

        if (found)
            return index * WORD_BITS + (uint64_t)__builtin_ctzll(found);
        first = (index + 1) * WORD_BITS;
        if (first % GROUP_BITS == 0)
            first = next_group(bits, first / GROUP_BITS, div_round_up(end, GROUP_BITS)) * GROUP_BITS;
    }
    return end;
}

uint64_t bits_next_clear(const Bits *bits, uint64_t first, uint64_t end)
{
    while (first < end) {
        uint64_t index = first / WORD_BITS;
        uint64_t found = ~load(&bits->words[index]) & mask_in_word(index, first, end);

        if (found)
            return index * WORD_BITS + (uint64_t)__builtin_ctzll(found);
        first = (index + 1) * WORD_BITS;
    }
    return end;
}
