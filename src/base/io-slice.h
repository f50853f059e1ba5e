/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A view of payload bytes that are scattered over memory: `bytes` bytes of an iovec array, starting `skip`
 * bytes into it. Passed by value; owns nothing. Taking a part of a slice copies no iovec and allocates
 * nothing.
 */
#pragma once

#include "base/macros.h"

#include <sys/uio.h>

typedef struct IoSlice {
    const struct iovec *iov; /* at least skip + bytes bytes in total */
    size_t skip;
    size_t bytes;
} IoSlice;

/* A slice over one buffer; iov is storage that must outlive the slice. */
static inline IoSlice io_slice_of(struct iovec *iov, void *data, size_t bytes)
{
    *iov = (struct iovec){.iov_base = data, .iov_len = bytes};
    return (IoSlice){.iov = iov, .skip = 0, .bytes = bytes};
}

/* The part of slice that starts at offset and is bytes long; both must lie within it. */
IoSlice io_slice_part(IoSlice slice, size_t offset, size_t bytes);
/*
 * Writes the slice out as at most max iovecs for a system call. Returns how many; *ret_bytes is how much of
 * the slice they cover (less than slice.bytes only when max was too small).
 */
unsigned io_slice_to_iov(IoSlice slice, struct iovec *out, unsigned max, size_t *ret_bytes);
/* Copies up to `bytes` bytes between the slice and a plain buffer. */
void io_slice_copy_from(IoSlice slice, void *dst, size_t bytes);
void io_slice_copy_to(IoSlice slice, const void *src, size_t bytes);
/* Fills the slice with a byte. */
void io_slice_fill(IoSlice slice, uint8_t byte);
/* True when every byte is zero. */
bool io_slice_is_zero(IoSlice slice);
/* True when every segment's address and length are multiples of align (a power of two). */
bool io_slice_is_aligned(IoSlice slice, size_t align);

/* True when all bytes are zero; fast for long buffers. */
bool buffer_is_zero(const void *data, size_t bytes);
