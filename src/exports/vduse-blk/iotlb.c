/* SPDX-License-Identifier: Apache-2.0 */
/* Fetching the ranges of a VDUSE device's IOTLB. */
#include "exports/vduse-blk/iotlb.h"

#include "base/limits.h"
#include "base/mem.h"

#include <fcntl.h>
#include <inttypes.h>
#include <string.h>

static int map_range(VduseIotlb *iotlb, const struct vduse_iotlb_entry *entry, int take_fd, Error *err)
{
    VirtioRegion region = {
        .guest = entry->start,
        .user = entry->start,
        .bytes = entry->last - entry->start + 1,
        .file_offset = entry->offset,
    };

    fcntl(take_fd, F_SETFD, FD_CLOEXEC); /* the kernel does not offer it */
    VEC_GROW(iotlb->ranges, iotlb->count, iotlb->capacity);
    iotlb->ranges[iotlb->count++] = (VduseRange){entry->start, entry->last, entry->offset};
    /* What may only be read or only be written cannot be mapped as the rest is, and nothing of a ring is of
     * that kind: a request with such an address is answered like any other one that lies nowhere. */
    if (entry->perm != VDUSE_ACCESS_RW) {
        fd_close(take_fd);
        return 0;
    }
    return virtio_memory_add(iotlb->memory, &region, take_fd, err);
}

/* The first range that ends at or behind `from`. 0: there is none. */
static int next_range(
    const VduseHandle *handle, uint64_t from, struct vduse_iotlb_entry *ret_entry, int *ret_fd, Error *err)
{
    struct vduse_iotlb_entry entry = {.start = from, .last = UINT64_MAX};
    int fd = vduse_control(handle, VDUSE_IOTLB_GET_FD, &entry);

    if (fd == -EINVAL)
        return 0;
    if (fd < 0)
        return err_set_errno(
            err, fd, "Failed to get memory at 0x%" PRIx64 " of vduse device %s", from, handle->name);
    if (entry.last < from || entry.last < entry.start || entry.last - entry.start == UINT64_MAX) {
        fd_close(fd);
        return err_set(err, -EPROTO, "Range 0x%" PRIx64 " to 0x%" PRIx64 " of vduse device %s makes no sense",
            (uint64_t)entry.start, (uint64_t)entry.last, handle->name);
    }
    *ret_entry = entry;
    *ret_fd = fd;
    return 1;
}

static int fetch(VduseIotlb *iotlb, const VduseHandle *handle, Error *err)
{
    struct vduse_iotlb_entry entry = {.last = UINT64_MAX}; /* the next one begins at 0 */
    int r, fd = -1;

    do {
        r = next_range(handle, entry.last + 1, &entry, &fd, err);
        if (r <= 0)
            return r;
        if (iotlb->count == LIMIT_VIRTIO_REGIONS) {
            fd_close(fd);
            return err_set(err, -ENOSPC, "vduse device %s has more than %u ranges of memory", handle->name,
                LIMIT_VIRTIO_REGIONS);
        }
        r = map_range(iotlb, &entry, fd, err);
    } while (r == 0 && entry.last != UINT64_MAX);
    return r;
}

int vduse_iotlb_fetch(VduseIotlb *iotlb, const VduseHandle *handle, bool *ret_changed, Error *err)
{
    VduseIotlb new = {.memory = virtio_memory_new()};
    int r = fetch(&new, handle, err);

    if (r < 0) {
        vduse_iotlb_done(&new);
        return r;
    }
    *ret_changed = new.count != iotlb->count ||
                   (new.count &&memcmp(new.ranges, iotlb->ranges, new.count * sizeof(*new.ranges)) != 0);
    vduse_iotlb_done(iotlb);
    *iotlb = new;
    return 0;
}

void vduse_iotlb_done(VduseIotlb *iotlb)
{
    virtio_memory_free(iotlb->memory);
    free(iotlb->ranges);
    *iotlb = (VduseIotlb){0};
}
