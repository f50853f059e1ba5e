/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An array of bits with a summary above it, so that the few set bits of a large array are found fast: one bit
 * of the summary stands for 64 words and is set if any of them is not zero. The number of set bits is always
 * at hand.
 *
 * bits_set() may run on several threads at once, beside the functions that only look. The others need the
 * array for themselves.
 */
#pragma once

#include "base/macros.h"

typedef struct Bits {
    uint64_t size;           /* bits */
    uint64_t capacity;       /* bits that there is memory for */
    _Atomic uint64_t count;  /* set ones */
    _Atomic uint64_t *words; /* bit i is bit i % 64 of words[i / 64]; what lies behind the end is 0 */
    _Atomic uint64_t *summary;
} Bits;

/* 0 or -ENOMEM. Memory is one bit for each and a little, a quarter more after the array has grown. A failed
 * resize has changed nothing. */
int bits_init(Bits *bits, uint64_t size) MUST_CHECK;
int bits_copy(Bits *bits, const Bits *from) MUST_CHECK;
int bits_resize(Bits *bits, uint64_t size) MUST_CHECK;
void bits_done(Bits *bits);

/* Ranges [first, end) lie within the array. */
void bits_set(Bits *bits, uint64_t first, uint64_t end);
void bits_reset(Bits *bits, uint64_t first, uint64_t end);
/* The first set (clear) bit in the range, or end. */
uint64_t bits_next_set(const Bits *bits, uint64_t first, uint64_t end);
uint64_t bits_next_clear(const Bits *bits, uint64_t first, uint64_t end);

/* Words as a whole, for copying. Bits behind the end of the array are dropped. */
uint64_t bits_words(const Bits *bits);
uint64_t bits_word(const Bits *bits, uint64_t index);
void bits_put_word(Bits *bits, uint64_t index, uint64_t value);
