/* SPDX-License-Identifier: Apache-2.0 */
#include "base/mem.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static NORETURN void out_of_memory(size_t size)
{
    fprintf(stderr, "granary: out of memory while allocating %zu bytes\n", size);
    abort();
}

void *mem_zalloc(size_t size)
{
    void *ptr = calloc(1, size ? size : 1);

    if (!ptr)
        out_of_memory(size);
    return ptr;
}

void *mem_realloc(void *ptr, size_t size)
{
    void *moved = realloc(ptr, size);

    if (!moved && size)
        out_of_memory(size);
    return moved;
}

void *mem_try_zalloc(size_t count, size_t size)
{
    return calloc(count ? count : 1, size ? size : 1);
}

void *mem_try_aligned(size_t align, size_t size)
{
    void *ptr;

    return posix_memalign(&ptr, align, size ? size : align) ? NULL : ptr;
}

char *str_dup(const char *text)
{
    return text ? str_ndup(text, strlen(text)) : NULL;
}

char *str_ndup(const char *text, size_t length)
{
    char *copy;

    if (!text)
        return NULL;
    copy = mem_zalloc(length + 1);
    memcpy(copy, text, length);
    return copy;
}

char *str_vprintf(const char *fmt, va_list args)
{
    char *text;

    if (vasprintf(&text, fmt, args) < 0)
        out_of_memory(0);
    return text;
}

char *str_printf(const char *fmt, ...)
{
    va_list args;
    char *text;

    va_start(args, fmt);
    text = str_vprintf(fmt, args);
    va_end(args);
    return text;
}

void str_free_wiped(char *text)
{
    if (text)
        explicit_bzero(text, strlen(text));
    free(text);
}

bool str_eq(const char *a, const char *b)
{
    return a == b || (a && b && strcmp(a, b) == 0);
}

bool str_starts(const char *text, const char *prefix)
{
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

int fd_close(int fd)
{
    int saved = errno;

    if (fd >= 0)
        close(fd);
    errno = saved;
    return -1;
}

void fd_close_ptr(int *fd)
{
    *fd = fd_close(*fd);
}

/* realloc() would leave a copy where the text was. */
static char *move_wiped(StrBuf *buf, size_t capacity)
{
    char *moved = mem_realloc(NULL, capacity);

    if (buf->text) {
        memcpy(moved, buf->text, buf->length + 1);
        explicit_bzero(buf->text, buf->length);
        free(buf->text);
    }
    return moved;
}

/* Out of line: most appends have room. */
__attribute__((noinline)) static void grow(StrBuf *buf, size_t needed)
{
    buf->capacity = MAX(needed, buf->capacity * 2);
    buf->capacity = MAX(buf->capacity, (size_t)64);
    buf->text = buf->wiped ? move_wiped(buf, buf->capacity) : mem_realloc(buf->text, buf->capacity);
}

static void strbuf_reserve(StrBuf *buf, size_t extra)
{
    size_t needed = buf->length + extra + 1;

    if (needed > buf->capacity)
        grow(buf, needed);
}

void strbuf_append_bytes(StrBuf *buf, const void *data, size_t length)
{
    strbuf_reserve(buf, length);
    memcpy(buf->text + buf->length, data, length);
    buf->length += length;
    buf->text[buf->length] = '\0';
}

void strbuf_append(StrBuf *buf, const char *text)
{
    strbuf_append_bytes(buf, text, strlen(text));
}

void strbuf_append_char(StrBuf *buf, char c)
{
    strbuf_append_bytes(buf, &c, 1);
}

void strbuf_printf(StrBuf *buf, const char *fmt, ...)
{
    va_list args;
    AUTO_FREE char *text = NULL;

    va_start(args, fmt);
    text = str_vprintf(fmt, args);
    va_end(args);
    strbuf_append(buf, text);
}

char *strbuf_take(StrBuf *buf)
{
    char *text = buf->text ? buf->text : str_dup("");

    *buf = (StrBuf){.wiped = buf->wiped};
    return text;
}

void strbuf_clear(StrBuf *buf)
{
    if (buf->wiped && buf->text)
        explicit_bzero(buf->text, buf->length);
    buf->length = 0;
}

void strbuf_done(StrBuf *buf)
{
    strbuf_clear(buf);
    free(buf->text);
    *buf = (StrBuf){.wiped = buf->wiped};
}
