/* SPDX-License-Identifier: Apache-2.0 */
#include "base/io-slice.h"

#include <assert.h>
#include <string.h>

/* Moves past whole iovecs that lie before the view, so that walking starts in the first one that matters. */
static IoSlice normalise(IoSlice slice)
{
    while (slice.bytes && slice.skip >= slice.iov->iov_len) {
        slice.skip -= slice.iov->iov_len;
        slice.iov++;
    }
    return slice;
}

/* Takes the first contiguous piece off a non-empty slice. */
static struct iovec take_piece(IoSlice *slice)
{
    struct iovec piece;

    *slice = normalise(*slice);
    piece.iov_base = (char *)slice->iov->iov_base + slice->skip;
    piece.iov_len = MIN(slice->iov->iov_len - slice->skip, slice->bytes);
    slice->skip += piece.iov_len;
    slice->bytes -= piece.iov_len;
    return piece;
}

IoSlice io_slice_part(IoSlice slice, size_t offset, size_t bytes)
{
    assert(offset <= slice.bytes && bytes <= slice.bytes - offset);
    return normalise((IoSlice){.iov = slice.iov, .skip = slice.skip + offset, .bytes = bytes});
}

unsigned io_slice_to_iov(IoSlice slice, struct iovec *out, unsigned max, size_t *ret_bytes)
{
    size_t total = slice.bytes;
    unsigned count = 0;

    while (slice.bytes && count < max)
        out[count++] = take_piece(&slice);
    *ret_bytes = total - slice.bytes;
    return count;
}

void io_slice_copy_from(IoSlice slice, void *dst, size_t bytes)
{
    char *to = dst;

    slice.bytes = MIN(slice.bytes, bytes);
    while (slice.bytes) {
        struct iovec piece = take_piece(&slice);

        memcpy(to, piece.iov_base, piece.iov_len);
        to += piece.iov_len;
    }
}

void io_slice_copy_to(IoSlice slice, const void *src, size_t bytes)
{
    const char *from = src;

    slice.bytes = MIN(slice.bytes, bytes);
    while (slice.bytes) {
        struct iovec piece = take_piece(&slice);

        memcpy(piece.iov_base, from, piece.iov_len);
        from += piece.iov_len;
    }
}

/* Up to this size a plain loop beats the set-up of the string instruction that memset() picks. */
#define SHORT_FILL_BYTES ((size_t)4096)

typedef uint8_t Vector __attribute__((vector_size(64), aligned(1), may_alias));

static void fill(uint8_t *p, size_t bytes, uint8_t byte)
{
    Vector pattern = (Vector){0} + byte;

    if (bytes <= SHORT_FILL_BYTES) {
        for (; bytes >= sizeof(pattern); p += sizeof(pattern), bytes -= sizeof(pattern))
            *(Vector *)p = pattern;
    }
    memset(p, byte, bytes);
}

void io_slice_fill(IoSlice slice, uint8_t byte)
{
    while (slice.bytes) {
        struct iovec piece = take_piece(&slice);

        fill(piece.iov_base, piece.iov_len, byte);
    }
}

bool buffer_is_zero(const void *data, size_t bytes)
{
    const unsigned char *p = data;
    size_t head = MIN(bytes, (size_t)16);

    for (size_t i = 0; i < head; i++)
        if (p[i])
            return false;
    /* The first 16 bytes are zero; the rest is zero exactly when each byte equals the one 16 bytes before it.
     */
    return bytes <= 16 || memcmp(p, p + 16, bytes - 16) == 0;
}

bool io_slice_is_zero(IoSlice slice)
{
    while (slice.bytes) {
        struct iovec piece = take_piece(&slice);

        if (!buffer_is_zero(piece.iov_base, piece.iov_len))
            return false;
    }
    return true;
}

bool io_slice_is_aligned(IoSlice slice, size_t align)
{
    while (slice.bytes) {
        struct iovec piece = take_piece(&slice);

        if (!is_aligned((uintptr_t)piece.iov_base, align) || !is_aligned(piece.iov_len, align))
            return false;
    }
    return true;
}
