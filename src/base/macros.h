/* SPDX-License-Identifier: Apache-2.0 */
/* Small macros that every file may use: attributes, cleanup, ownership transfer, arithmetic on constants. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define MUST_CHECK __attribute__((warn_unused_result))
#define PRINTF(fmt_index, first_arg) __attribute__((format(printf, fmt_index, first_arg)))
#define NORETURN __attribute__((noreturn))
#define UNUSED __attribute__((unused))
#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)

/* Runs fn(&variable) when the variable goes out of scope. */
#define CLEANUP(fn) __attribute__((cleanup(fn)))

/* Moves ownership out of a pointer variable: yields its value and leaves NULL behind. */
#define TAKE(ptr)                              \
    ({                                         \
        typeof(ptr) *take_from_ = &(ptr);      \
        typeof(ptr) take_value_ = *take_from_; \
        *take_from_ = NULL;                    \
        take_value_;                           \
    })

/* The same for a file descriptor: leaves -1 behind. */
#define TAKE_FD(fd)                    \
    ({                                 \
        int *take_from_ = &(fd);       \
        int take_value_ = *take_from_; \
        *take_from_ = -1;              \
        take_value_;                   \
    })

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

#define MIN(a, b)                          \
    ({                                     \
        typeof(a) min_a_ = (a);            \
        typeof(b) min_b_ = (b);            \
        min_a_ < min_b_ ? min_a_ : min_b_; \
    })
#define MAX(a, b)                          \
    ({                                     \
        typeof(a) max_a_ = (a);            \
        typeof(b) max_b_ = (b);            \
        max_a_ > max_b_ ? max_a_ : max_b_; \
    })

#define CONTAINER_OF(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

#define KIB (UINT64_C(1) << 10)
#define MIB (UINT64_C(1) << 20)
#define GIB (UINT64_C(1) << 30)
#define TIB (UINT64_C(1) << 40)

/* Alignment to a power of two. align_up() must not overflow: check with align_up_overflows() for outside
 * values. */
static inline uint64_t align_down(uint64_t value, uint64_t align)
{
    return value & ~(align - 1);
}

static inline uint64_t align_up(uint64_t value, uint64_t align)
{
    return (value + align - 1) & ~(align - 1);
}

static inline bool align_up_overflows(uint64_t value, uint64_t align)
{
    return value > UINT64_MAX - (align - 1);
}

static inline bool is_aligned(uint64_t value, uint64_t align)
{
    return (value & (align - 1)) == 0;
}

static inline bool is_power_of_2(uint64_t value)
{
    return value && !(value & (value - 1));
}

static inline uint64_t div_round_up(uint64_t value, uint64_t by)
{
    return value / by + (value % by != 0);
}

/* True when [offset, offset + bytes) does not lie within [0, size). Cannot overflow. */
static inline bool out_of_range(uint64_t offset, uint64_t bytes, uint64_t size)
{
    return offset > size || bytes > size - offset;
}
