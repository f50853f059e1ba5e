/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Image locks that every program of the QEMU family understands (QEMU's block/file-posix.c): shared
 * open-file-description locks on single bytes that need not exist. Byte 100 + n says "I use permission n",
 * byte 200 + n "I do not share permission n". Whoever wants permission n makes sure that nobody else holds
 * byte 200 + n, and the other way round.
 *
 * All functions are quick system calls without waiting. Masks are sets of Permission.
 */
#pragma once

#include "base/error.h"

#define LOCK_BYTE_USED 100
#define LOCK_BYTE_UNSHARED 200
#define LOCK_PERMISSIONS 4

/* What one open file description holds. */
typedef struct FileLocks {
    unsigned used;
    unsigned unshared;
} FileLocks;

/* The 64-bit set of lock bytes, as bits 0.. (used) and 32.. (unshared). */
static inline uint64_t file_locks_mask(FileLocks locks)
{
    return (uint64_t)locks.used | (uint64_t)locks.unshared << 32;
}

/* The byte of the file that stands for a bit of file_locks_mask(). */
static inline uint64_t file_lock_byte(unsigned bit)
{
    return bit < 32 ? LOCK_BYTE_USED + bit : LOCK_BYTE_UNSHARED + bit - 32;
}

/* Whether the kernel and the file system have locks of this kind. */
bool file_locks_supported(int fd);
/* Takes the locks of `wanted` that `held` lacks; held is updated as far as it went. */
int file_locks_take(int fd, FileLocks *held, FileLocks wanted, Error *err) MUST_CHECK;
/* Drops the locks of `held` that `kept` lacks. */
void file_locks_drop(int fd, FileLocks *held, FileLocks kept);
/* Fails with the text that users know if another open file description stands against `wanted`. */
int file_locks_check(int fd, FileLocks wanted, const char *filename, Error *err) MUST_CHECK;
