/* SPDX-License-Identifier: Apache-2.0 */
/* Unaligned big- and little-endian access to bytes of a wire or disk format. */
#pragma once

#include "base/macros.h"

#include <endian.h>
#include <string.h>

#define ENDIAN_ACCESS(bits, order, from, to)                            \
    static inline uint##bits##_t get_##order##bits(const void *p)       \
    {                                                                   \
        uint##bits##_t v;                                               \
        memcpy(&v, p, sizeof(v));                                       \
        return from(v);                                                 \
    }                                                                   \
    static inline void put_##order##bits(void *p, uint##bits##_t value) \
    {                                                                   \
        uint##bits##_t v = to(value);                                   \
        memcpy(p, &v, sizeof(v));                                       \
    }

ENDIAN_ACCESS(16, be, be16toh, htobe16)
ENDIAN_ACCESS(32, be, be32toh, htobe32)
ENDIAN_ACCESS(64, be, be64toh, htobe64)
ENDIAN_ACCESS(16, le, le16toh, htole16)
ENDIAN_ACCESS(32, le, le32toh, htole32)
ENDIAN_ACCESS(64, le, le64toh, htole64)
