/* SPDX-License-Identifier: Apache-2.0 */
/* The header is in host byte order (a record does not outlive the running kernel) and its magic is written
 * last, so that a record whose making was interrupted counts as none. */
#include "exports/vduse-blk/record.h"

#include "base/mem.h"
#include "proto/virtio-blk.h"
#include "virtio/queue.h"

#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAGIC UINT64_C(0x6b6c422d65737564) /* "duse-Blk" */
#define VERSION 1
#define AREA_ALIGN 64

typedef struct Header {
    uint64_t magic;
    uint32_t version;
    uint32_t queue_count, queue_size, block_bytes;
    uint64_t features;
    uint64_t queue_bytes;
    uint8_t padding[AREA_ALIGN - 40];
} Header;

_Static_assert(sizeof(Header) == AREA_ALIGN, "in-flight areas begin aligned");

char *vduse_record_folder(void)
{
    const char *folder = getenv("TMPDIR");

    if (access("/run", W_OK) == 0)
        return str_dup("/run");
    return str_dup(folder && *folder ? folder : "/tmp");
}

static Header describe(const VduseSpec *spec)
{
    size_t split = virtqueue_inflight_bytes(spec->queue_size, false);
    size_t packed = virtqueue_inflight_bytes(spec->queue_size, true);

    return (Header){
        .magic = MAGIC,
        .version = VERSION,
        .queue_count = spec->queue_count,
        .queue_size = spec->queue_size,
        .block_bytes = spec->block_bytes,
        .features = spec->features,
        .queue_bytes = align_up(MAX(split, packed), AREA_ALIGN),
    };
}

static int map_record(int fd, const Header *header, VduseRecord *record)
{
    record->features = header->features;
    record->queue_count = header->queue_count;
    record->queue_bytes = header->queue_bytes;
    record->bytes = sizeof(*header) + header->queue_count * record->queue_bytes;
    record->data = mmap(NULL, record->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (record->data == MAP_FAILED) {
        record->data = NULL;
        return -errno;
    }
    return 0;
}

/* An existing file is ours and nobody else's. */
static int check_file(int fd, const char *path, struct stat *ret_info, Error *err)
{
    if (fstat(fd, ret_info) < 0)
        return err_set_errno(err, -errno, "Record '%s' cannot be looked at", path);
    if (!S_ISREG(ret_info->st_mode) || ret_info->st_uid != geteuid() || ret_info->st_nlink != 1 ||
        (ret_info->st_mode & 077))
        return err_set(
            err, -EPERM, "Record '%s' is not a file that this process alone may write: remove it", path);
    return 0;
}

static int open_existing(const char *path, struct stat *ret_info, Error *err)
{
    AUTO_CLOSE int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
    int r;

    if (fd < 0)
        return err_set_errno(err, -errno, "Record '%s' cannot be opened", path);
    r = check_file(fd, path, ret_info, err);
    return r < 0 ? r : TAKE_FD(fd);
}

/* Makes way for a new record. */
static int remove_stale(const char *path, Error *err)
{
    struct stat info;
    int fd = open_existing(path, &info, err);

    if (fd == -ENOENT) {
        err_done(err);
        return 0;
    }
    if (fd < 0)
        return fd;
    fd_close(fd);
    return unlink(path) < 0 && errno != ENOENT
               ? err_set_errno(err, -errno, "Record '%s' cannot be removed", path)
               : 0;
}

static int make_file(const char *path, Error *err)
{
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);

    return fd < 0 ? err_set_errno(err, -errno, "Record '%s' cannot be made", path) : fd;
}

static char *record_path(const char *folder, const VduseSpec *spec)
{
    return str_printf("%s/vduse-blk-%s", folder, spec->name);
}

int vduse_record_create(const char *folder, const VduseSpec *spec, VduseRecord *ret_record, Error *err)
{
    VduseRecord record = {.path = record_path(folder, spec)};
    Header header = describe(spec);
    AUTO_CLOSE int fd = -1;
    int r = remove_stale(record.path, err);

    if (r == 0)
        r = fd = make_file(record.path, err);
    if (fd >= 0) {
        /* All of it now: a full file system must not be noticed by a write to the mapping. */
        r = -posix_fallocate(fd, 0, (off_t)(sizeof(header) + header.queue_count * header.queue_bytes));
        if (r == 0)
            r = map_record(fd, &header, &record);
        if (r < 0)
            r = err_set_errno(err, r, "Record '%s' cannot be made", record.path);
    }
    if (r < 0) {
        vduse_record_done(&record, fd >= 0);
        return r;
    }
    header.magic = 0;
    memcpy(record.data, &header, sizeof(header));
    *(volatile uint64_t *)record.data = MAGIC;
    *ret_record = record;
    return 0;
}

static int read_header(
    int fd, const struct stat *info, const char *path, const VduseSpec *spec, Header *ret_header, Error *err)
{
    Header header, expected = describe(spec);

    if (pread(fd, &header, sizeof(header), 0) != sizeof(header) || header.magic != MAGIC ||
        header.version != VERSION)
        return err_set(err, -ENOENT, "'%s' is not a complete record", path);
    expected.features = header.features;
    if (memcmp(&header, &expected, sizeof(header)) != 0 || (header.features & ~spec->features) ||
        (header.features ^ spec->features) & VIRTIO_BLK_FEATURE_RO)
        return err_set(err, -EINVAL,
            "vduse device %s is in use with num-queues=%" PRIu32 ", queue-size=%" PRIu32
            ", logical-block-size=%" PRIu32 ", writable=%s (features 0x%" PRIx64
            "), and must be served on with the same",
            spec->name, header.queue_count, header.queue_size, header.block_bytes,
            header.features & VIRTIO_BLK_FEATURE_RO ? "off" : "on", header.features);
    if (info->st_size < 0 ||
        (uint64_t)info->st_size < sizeof(header) + header.queue_count * header.queue_bytes)
        return err_set(err, -ENOENT, "'%s' is not a complete record", path);
    *ret_header = header;
    return 0;
}

int vduse_record_open(const char *folder, const VduseSpec *spec, VduseRecord *ret_record, Error *err)
{
    VduseRecord record = {.path = record_path(folder, spec)};
    struct stat info;
    Header header;
    AUTO_CLOSE int fd = open_existing(record.path, &info, err);
    int r = fd;

    if (fd >= 0)
        r = read_header(fd, &info, record.path, spec, &header, err);
    if (r == 0) {
        r = map_record(fd, &header, &record);
        if (r < 0)
            r = err_set_errno(err, r, "Record '%s' cannot be mapped", record.path);
    }
    if (r < 0) {
        vduse_record_done(&record, false);
        return r;
    }
    *ret_record = record;
    return 0;
}

void *vduse_record_inflight(const VduseRecord *record, unsigned index)
{
    return (uint8_t *)record->data + sizeof(Header) + index * record->queue_bytes;
}

void vduse_record_clear(VduseRecord *record)
{
    memset((uint8_t *)record->data + sizeof(Header), 0, record->bytes - sizeof(Header));
}

void vduse_record_done(VduseRecord *record, bool remove)
{
    if (record->data)
        munmap(record->data, record->bytes);
    if (remove && record->path)
        unlink(record->path);
    free(record->path);
    *record = (VduseRecord){0};
}
