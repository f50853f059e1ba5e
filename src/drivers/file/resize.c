/* SPDX-License-Identifier: Apache-2.0 */
/* Changing the length of a file, with or without reserving the space. */
#include "drivers/file/file-priv.h"

#include "base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define SECTOR_BYTES 512
/* A new file gets its first block, so that the alignment of direct I/O can be found out by reading it. */
#define FIRST_BLOCK_BYTES 4096
/* Unit of writing zeroes for preallocation=full. */
#define FILL_BYTES (64 * KIB)

uint64_t file_node_size(uint64_t length)
{
    return align_up(length, SECTOR_BYTES);
}

/* The same file without O_DIRECT, so that any length can be written; -1 where /proc is missing. */
static int open_buffered(int fd)
{
    AUTO_FREE char *path = str_printf("/proc/self/fd/%d", fd);

    return open(path, O_RDWR | O_CLOEXEC);
}

/* Blocks; for worker threads. */
static int write_zeroes_plain(int fd, uint64_t offset, uint64_t bytes)
{
    AUTO_FREE uint8_t *zeroes = mem_zalloc(FILL_BYTES);
    AUTO_CLOSE int buffered = open_buffered(fd);

    while (bytes) {
        ssize_t n =
            pwrite(buffered < 0 ? fd : buffered, zeroes, (size_t)MIN(bytes, FILL_BYTES), (off_t)offset);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -ENOSPC;
        offset += (uint64_t)n;
        bytes -= (uint64_t)n;
    }
    return 0;
}

static int set_length(int fd, uint64_t size, Error *err)
{
    int r;

    if (size > INT64_MAX)
        return err_set_errno(err, -EINVAL, "Could not resize file");
    do {
        r = ftruncate(fd, (off_t)size) < 0 ? -errno : 0;
    } while (r == -EINTR);
    return r < 0 ? err_set_errno(err, r, "Could not resize file") : 0;
}

static int allocate(int fd, uint64_t old, uint64_t size, Error *err)
{
    int r;

    if (size == old)
        return 0;
    if (size > INT64_MAX)
        return err_set_errno(err, -EFBIG, "Could not preallocate new data");
    r = -posix_fallocate(fd, (off_t)old, (off_t)(size - old));
    return r < 0 ? err_set_errno(err, r, "Could not preallocate new data") : 0;
}

static int fill(int fd, uint64_t old, uint64_t size, Error *err)
{
    int r = set_length(fd, size, err);

    if (r < 0)
        return r;
    r = write_zeroes_plain(fd, old, size - old);
    if (r < 0)
        return err_set_errno(err, r, "Could not write zeros for preallocation");
    return fsync(fd) < 0 ? err_set_errno(err, -errno, "Could not flush file to disk") : 0;
}

static int grow_plain(int fd, uint64_t old, uint64_t size, Error *err)
{
    int r = set_length(fd, size, err);

    if (r == 0 && old == 0 && size > 0)
        r = write_zeroes_plain(fd, 0, MIN(size, (uint64_t)FIRST_BLOCK_BYTES));
    return r < 0 && !err_is_set(err) ? err_set_errno(err, r, "Could not resize file") : r;
}

int file_truncate(int fd, uint64_t size, PreallocMode prealloc, Error *err)
{
    struct stat st;
    uint64_t old;
    int r;

    if (fstat(fd, &st) < 0)
        return err_set_errno(err, -errno, "Could not stat file");
    old = (uint64_t)st.st_size;
    if (size < old && prealloc != PREALLOC_MODE_OFF)
        return err_set(err, -ENOTSUP, "Cannot use preallocation for shrinking files");
    switch (prealloc) {
    case PREALLOC_MODE_OFF:
        r = grow_plain(fd, old, size, err);
        break;
    case PREALLOC_MODE_FALLOC:
        r = allocate(fd, old, size, err);
        break;
    case PREALLOC_MODE_FULL:
        r = fill(fd, old, size, err);
        break;
    default:
        return err_set(err, -ENOTSUP, "Unsupported preallocation mode: %s", prealloc_mode_name(prealloc));
    }
    if (r < 0 && size > old && ftruncate(fd, st.st_size) < 0)
        err_hint(err, "The file keeps a wrong length: %s", strerror(errno));
    return r;
}

/* ---- Of an open node ---- */

typedef struct TruncateCall {
    int fd;
    uint64_t size;
    PreallocMode prealloc;
    Error *err;
} TruncateCall;

static int do_truncate(void *arg)
{
    TruncateCall *call = arg;

    return file_truncate(call->fd, call->size, call->prealloc, call->err);
}

static int resize_file(Node *node, uint64_t size, Preallocation prealloc, Error *err)
{
    FileState *s = node->state;
    TruncateCall call = {.fd = s->fd, .size = size, .prealloc = (PreallocMode)prealloc, .err = err};
    int r = loop_work(do_truncate, &call);

    if (r == 0)
        node->size = file_node_size(size);
    return r;
}

/* A device has the size that it has; it may have changed since it was opened. */
static int resize_device(Node *node, uint64_t size, bool exact, Preallocation prealloc, Error *err)
{
    FileState *s = node->state;
    int64_t length;

    if (prealloc != PREALLOCATION_OFF)
        return err_set(err, -ENOTSUP, "Preallocation mode '%s' unsupported for this non-regular file",
            prealloc_mode_name((PreallocMode)prealloc));
    length = file_probe_size(s->fd, s->type);
    if (length < 0)
        return err_set_errno(err, (int)length, "Could not get size of '%s'", node->filename);
    if (size != (uint64_t)length && exact)
        return err_set(err, -ENOTSUP, "Cannot resize device files");
    if (size > (uint64_t)length)
        return err_set(err, -EINVAL, "Cannot grow device files");
    node->size = (uint64_t)length;
    return 0;
}

int file_resize(Node *node, uint64_t size, bool exact, Preallocation prealloc, unsigned flags, Error *err)
{
    FileState *s = node->state;

    return s->type == S_IFREG ? resize_file(node, size, prealloc, err)
                              : resize_device(node, size, exact, prealloc, err);
}
