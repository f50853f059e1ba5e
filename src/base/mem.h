/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory and strings. The plain functions never return NULL: running out of memory for a small, fixed-size
 * object ends the process with a message. Anything whose size outside data can influence uses the mem_try_
 * functions.
 */
#pragma once

#include "base/macros.h"

#include <stdarg.h>
#include <stdlib.h>

/* Zeroed memory; never NULL. */
void *mem_zalloc(size_t size) MUST_CHECK;
/* As realloc(); never NULL unless size is 0. */
void *mem_realloc(void *ptr, size_t size) MUST_CHECK;
/* Zeroed memory for count * size bytes, or NULL (also on overflow). Free with free(). */
void *mem_try_zalloc(size_t count, size_t size) MUST_CHECK;
/* Uninitialised memory aligned to align (a power of two, at least sizeof(void *)), or NULL. Free with free().
 */
void *mem_try_aligned(size_t align, size_t size) MUST_CHECK;

/* A new zeroed T. */
#define mem_new(T) ((T *)mem_zalloc(sizeof(T)))

/* Strings; never NULL unless the source is NULL. Free with free(). */
char *str_dup(const char *text);
char *str_ndup(const char *text, size_t length);
char *str_printf(const char *fmt, ...) PRINTF(1, 2) MUST_CHECK;
char *str_vprintf(const char *fmt, va_list args) MUST_CHECK;
/* Equal, with NULL equal only to NULL. */
bool str_eq(const char *a, const char *b);
bool str_starts(const char *text, const char *prefix);

/* Wipes a string before it is freed, for what may be a secret; NULL is fine. */
void str_free_wiped(char *text);

/* Frees what *ptr points to: AUTO_FREE char *s = ...; */
static inline void mem_free_ptr(void *ptr)
{
    free(*(void **)ptr);
}
#define AUTO_FREE CLEANUP(mem_free_ptr)

/* Closes *fd if it is not -1; keeps errno: AUTO_CLOSE int fd = ...; */
void fd_close_ptr(int *fd);
#define AUTO_CLOSE CLEANUP(fd_close_ptr)
/* Closes fd unless it is -1 and returns -1; keeps errno. */
int fd_close(int fd);

/* A growing text or byte buffer. text is always NUL-terminated once anything was added; {0} is the empty
 * buffer. */
typedef struct StrBuf {
    char *text;
    size_t length;
    size_t capacity;
    bool wiped; /* what it has held is wiped before its memory is freed or used again; stays */
} StrBuf;

void strbuf_append(StrBuf *buf, const char *text);
void strbuf_append_bytes(StrBuf *buf, const void *data, size_t length);
void strbuf_append_char(StrBuf *buf, char c);
void strbuf_printf(StrBuf *buf, const char *fmt, ...) PRINTF(2, 3);
/* Returns the text (never NULL) and leaves the buffer empty; the caller frees it. */
char *strbuf_take(StrBuf *buf);
/* Leaves the buffer empty, with its memory. */
void strbuf_clear(StrBuf *buf);
void strbuf_done(StrBuf *buf);
#define AUTO_STRBUF CLEANUP(strbuf_done)

/* Makes room for one more element in a growing array (items, count, capacity). */
#define VEC_GROW(items, count, capacity)                                   \
    do {                                                                   \
        if ((count) == (capacity)) {                                       \
            (capacity) = (capacity) ? (capacity)*2 : 8;                    \
            (items) = mem_realloc((items), (capacity) * sizeof(*(items))); \
        }                                                                  \
    } while (0)
