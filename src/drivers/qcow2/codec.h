/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The compression of one cluster: raw deflate, or a zstd frame. Pure functions over bytes that run on any
 * thread; each thread keeps its contexts until it ends.
 *
 * Unpacking takes hostile bytes: it succeeds only if they make exactly the cluster, and needs no memory that
 * they could choose the size of. What follows the compressed data is ignored, since its length is known in
 * sectors only.
 */
#pragma once

#include "base/macros.h"

/* Of the image's header (proto/qcow2.h). Exactly out_bytes bytes; 0, -EIO or -ENOMEM. */
int codec_unpack(uint8_t type, const uint8_t *in, size_t in_bytes, uint8_t *out, size_t out_bytes) MUST_CHECK;
/* The first out_bytes bytes of a cluster in raw deflate; what follows them is not looked at. Takes about
 * twice as long for a byte as codec_unpack(). 0, -EIO or -ENOMEM. */
int codec_unpack_start(const uint8_t *in, size_t in_bytes, uint8_t *out, size_t out_bytes) MUST_CHECK;
/* *ret_bytes is how much of `out`, which has room for one byte less than in_bytes, was used; 0: the data does
 * not get smaller. 0 or -ENOMEM. */
int codec_pack(uint8_t type, const uint8_t *in, size_t in_bytes, uint8_t *out, size_t *ret_bytes) MUST_CHECK;
