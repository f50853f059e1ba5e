/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernel says, or shows when asked by trial, about a file: size, kind of file system, alignment of
 * direct I/O. */
#include "drivers/file/file-priv.h"

#include "base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <sys/ioctl.h>
#include <sys/vfs.h>
#include <unistd.h>

/* Alignments that are tried: from that of any disk to the largest block of a file system that is in use. */
#define PROBE_MIN 512
#define PROBE_MAX 65536
/* What is taken where a trial cannot fail. */
#define PROBE_FALLBACK 4096

int64_t file_probe_size(int fd, mode_t type)
{
    uint64_t bytes;
    off_t end;

    if (type == S_IFBLK && ioctl(fd, BLKGETSIZE64, &bytes) == 0)
        return bytes > INT64_MAX ? -EFBIG : (int64_t)bytes;
    end = lseek(fd, 0, SEEK_END);
    return end < 0 ? -errno : (int64_t)end;
}

bool file_probe_memory(int fd)
{
    struct statfs fs;

    return fstatfs(fd, &fs) == 0 && (fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC);
}

/* Alignments as the kernel states them (6.1 and later). */
static bool ask_kernel(int fd, uint32_t *ret_request, uint32_t *ret_memory)
{
#ifdef STATX_DIOALIGN
    struct statx st;

    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &st) == 0 && (st.stx_mask & STATX_DIOALIGN) &&
        is_power_of_2(st.stx_dio_offset_align) && is_power_of_2(st.stx_dio_mem_align)) {
        *ret_request = st.stx_dio_offset_align;
        *ret_memory = st.stx_dio_mem_align;
        return true;
    }
#endif
    return false;
}

static bool can_read(int fd, void *buffer, size_t bytes)
{
    ssize_t n;

    do {
        n = pread(fd, buffer, bytes, 0);
    } while (n < 0 && errno == EINTR);
    /* Other errors than EINVAL say nothing about alignment. */
    return n >= 0 || errno != EINVAL;
}

/* The smallest length of a read that works; 0: none. */
static uint32_t try_request(int fd, mode_t type, uint8_t *buffer)
{
    int sector;

    if (type == S_IFBLK && ioctl(fd, BLKSSZGET, &sector) == 0 && sector > 0 &&
        is_power_of_2((uint64_t)sector))
        return (uint32_t)sector;
    if (can_read(fd, buffer, 1)) /* the file is empty, or alignment does not matter */
        return PROBE_FALLBACK;
    for (uint32_t align = PROBE_MIN; align <= PROBE_MAX; align *= 2)
        if (can_read(fd, buffer, align))
            return align;
    return 0;
}

/* The smallest alignment of a buffer that works; 0: none. */
static uint32_t try_memory(int fd, uint8_t *buffer, uint32_t request)
{
    if (can_read(fd, buffer + 1, request))
        return PROBE_FALLBACK;
    for (uint32_t align = PROBE_MIN; align <= PROBE_MAX; align *= 2)
        if (can_read(fd, buffer + align, request))
            return align;
    return 0;
}

static int probe_direct(const Node *node, int fd, uint32_t *ret_request, uint32_t *ret_memory, Error *err)
{
    FileState *s = node->state;
    AUTO_FREE uint8_t *buffer = NULL;
    uint32_t request, memory;

    if (ask_kernel(fd, ret_request, ret_memory))
        return 0;
    buffer = mem_try_aligned(PROBE_MAX, 2 * PROBE_MAX);
    if (!buffer)
        return err_set(err, -ENOMEM, "Out of memory");
    request = try_request(fd, s->type, buffer);
    memory = request ? try_memory(fd, buffer, MIN(request, (uint32_t)PROBE_MAX)) : 0;
    if (!request || !memory || request > PROBE_MAX) {
        err_set(err, -EINVAL, "Could not find working O_DIRECT alignment");
        err_hint(err, "Try cache.direct=off");
        return -EINVAL;
    }
    *ret_request = request;
    *ret_memory = memory;
    return 0;
}

int file_probe_limits(const Node *node, int fd, NodeLimits *ret_limits, Error *err)
{
    FileState *s = node->state;
    NodeLimits limits = {.request_alignment = 1, .memory_alignment = 1};
    int sector, r;

    if (node->direct && !s->memory) {
        r = probe_direct(node, fd, &limits.request_alignment, &limits.memory_alignment, err);
        if (r < 0)
            return r;
    }
    if (s->type == S_IFBLK && ioctl(fd, BLKSSZGET, &sector) == 0 && sector > 0)
        limits.write_zeroes_alignment = limits.discard_alignment = (uint32_t)sector;
    *ret_limits = limits;
    return 0;
}
