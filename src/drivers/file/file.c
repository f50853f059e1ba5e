/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The drivers `file` (regular files) and `host_device` (block and character devices).
 *
 * Options that are accepted and need nothing here: `aio` beyond its checks (how a request reaches the kernel
 * is chosen in io.c), `aio-max-batch` (the loop has its own), `drop-cache` and `x-check-cache-dropped` (they
 * concern migration).
 */
#include "drivers/file/file-priv.h"

#include "base/log.h"
#include "base/mem.h"
#include "generated/trace.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

static const BlockdevOptionsFile *options_of(const BlockdevOptions *options)
{
    return options->driver == BLOCKDEV_DRIVER_FILE ? &options->u.file : &options->u.host_device;
}

/* O_NONBLOCK: opening a pipe or a device without medium must not wait. */
static int open_flags(const Node *node, bool writable)
{
    return (writable ? O_RDWR : O_RDONLY) | (node->direct ? O_DIRECT : 0) | O_NONBLOCK;
}

static int open_file(Node *node, Error *err)
{
    FileState *s = node->state;

    s->writable = !node->read_only && !node->auto_read_only;
    s->direct = node->direct;
    s->fd = file_open_path(node->filename, open_flags(node, s->writable), 0);
    if (s->fd >= 0) {
        fcntl(s->fd, F_SETFL, fcntl(s->fd, F_GETFL) & ~O_NONBLOCK);
        return 0;
    }
    if (s->fd == -EINVAL && node->direct)
        return err_set(
            err, -EINVAL, "Could not open '%s': filesystem does not support O_DIRECT", node->filename);
    return err_set_errno(err, s->fd == -EROFS ? -EACCES : s->fd, "Could not open '%s'", node->filename);
}

static int check_aio(const Node *node, const BlockdevOptionsFile *o, Error *err)
{
    if (!o->has_aio)
        return 0;
    if (o->aio == BLOCKDEV_AIO_OPTIONS_NATIVE && !node->direct)
        return err_set(err, -EINVAL,
            "aio=native was specified, but it requires cache.direct=on, which was not specified.");
    if (o->aio == BLOCKDEV_AIO_OPTIONS_IO_URING && !loop_is_io_uring(node->home))
        return err_set(err, -ENOTSUP, "aio=io_uring was specified, but io_uring is not available here");
    return 0;
}

static int check_type(Node *node, Error *err)
{
    FileState *s = node->state;
    struct stat st;

    if (fstat(s->fd, &st) < 0)
        return err_set_errno(err, -errno, "Could not stat file");
    s->type = st.st_mode & S_IFMT;
    if (str_eq(node->driver->name, "file") && !S_ISREG(st.st_mode))
        return err_set(err, -EINVAL, "'file' driver requires '%s' to be a regular file", node->filename);
    if (str_eq(node->driver->name, "host_device") && !S_ISBLK(st.st_mode) && !S_ISCHR(st.st_mode))
        return err_set(err, -EINVAL,
            "'host_device' driver requires '%s' to be either a character or block device", node->filename);
    return 0;
}

static int set_up(Node *node, const BlockdevOptionsFile *o, Error *err)
{
    FileState *s = node->state;
    OnOffAuto locking = o->has_locking ? o->locking : ON_OFF_AUTO_AUTO;
    int64_t length;

    s->use_locks = locking == ON_OFF_AUTO_ON || (locking == ON_OFF_AUTO_AUTO && file_locks_supported(s->fd));
    s->memory = s->type == S_IFREG && file_probe_memory(s->fd);
    length = file_probe_size(s->fd, s->type);
    if (length < 0 && s->type == S_IFCHR) /* has no size */
        length = 0;
    if (length < 0)
        return err_set_errno(err, (int)length, "Could not refresh total sector count");
    node->size = file_node_size((uint64_t)length);
    node->write_flags = REQ_FUA;
    node->zeroes_flags = REQ_MAY_UNMAP | REQ_NO_FALLBACK;
    return file_probe_limits(node, s->fd, &node->limits, err);
}

/* Locks go with the descriptor. */
static void file_close(Node *node)
{
    FileState *s = node->state;

    s->next_fd = fd_close(s->next_fd);
    s->fd = fd_close(s->fd);
    pr_manager_put(TAKE(s->pr_manager));
}

static int file_open(Node *node, const BlockdevOptions *options, Error *err)
{
    const BlockdevOptionsFile *o = options_of(options);
    FileState *s = node->state;
    int r = 0;

    s->fd = s->next_fd = -1;
    node->filename = str_dup(o->filename);
    if (!node->filename[0])
        return err_set(err, -EINVAL, "The '%s' block driver requires a file name", node->driver->name);
    if (o->pr_manager)
        r = pr_manager_get(o->pr_manager, &s->pr_manager, err);
    if (r == 0)
        r = open_file(node, err);
    if (r == 0)
        r = check_aio(node, o, err);
    if (r == 0)
        r = check_type(node, err);
    if (r == 0)
        r = set_up(node, o, err);
    if (r < 0)
        file_close(node);
    else
        trace_file_open(node->filename, s->fd, s->memory ? "plain calls" : "the loop");
    return r;
}

static int file_pr_execute(Node *node, const PrRequest *request, PrReply *ret_reply)
{
    FileState *s = node->state;
    int r;

    if (!s->pr_manager)
        return -ENOTSUP;
    r = co_mutex_lock(&s->pr_order);
    if (r < 0)
        return r;
    r = pr_manager_execute(s->pr_manager, s->fd, request, ret_reply);
    co_mutex_unlock(&s->pr_order);
    return r;
}

static int64_t file_allocated_size(Node *node)
{
    FileState *s = node->state;
    struct stat st;

    return fstat(s->fd, &st) < 0 ? -errno : (int64_t)st.st_blocks * 512;
}

static int file_info(Node *node, ImageInfo *info, Error *err)
{
    FileState *s = node->state;
    ImageInfoSpecificFile *file = mem_new(ImageInfoSpecificFile);
    struct fsxattr attributes;

    if (s->type == S_IFREG && ioctl(s->fd, FS_IOC_FSGETXATTR, &attributes) == 0 && attributes.fsx_extsize) {
        file->has_extent_size_hint = true;
        file->extent_size_hint = attributes.fsx_extsize;
    }
    info->has_dirty_flag = true;
    info->format_specific = mem_new(ImageInfoSpecific);
    info->format_specific->type = IMAGE_INFO_SPECIFIC_KIND_FILE;
    info->format_specific->u.file.data = file;
    return 0;
}

static BlockStatsSpecific *file_stats(Node *node)
{
    FileState *s = node->state;
    BlockStatsSpecific *stats = mem_new(BlockStatsSpecific);
    BlockStatsSpecificFile *file;

    stats->driver = str_eq(node->driver->name, "file") ? BLOCKDEV_DRIVER_FILE : BLOCKDEV_DRIVER_HOST_DEVICE;
    file = stats->driver == BLOCKDEV_DRIVER_FILE ? &stats->u.file : &stats->u.host_device;
    file->discard_nb_ok = atomic_load(&s->discards_ok);
    file->discard_nb_failed = atomic_load(&s->discards_failed);
    file->discard_bytes_ok = atomic_load(&s->discard_bytes);
    return stats;
}

/* The descriptor follows with the permissions. */
static int file_reopen_prepare(Node *node, const BlockdevOptions *options, Error *err)
{
    return check_aio(node, options_of(options), err);
}

/* Somebody else may have made the file longer, or the device. */
static void file_reopen_commit(Node *node)
{
    const FileState *s = node->state;
    int64_t length = file_probe_size(s->fd, s->type);

    if (length >= 0)
        node->size = file_node_size((uint64_t)length);
}

static const char *const reopen_options[] = {"drop-cache", "x-check-cache-dropped", NULL};

/* Both drivers differ in name and in what they can make. */
#define FILE_DRIVER                                                                                        \
    .state_size = sizeof(FileState), .flags = DRIVER_PROTOCOL | DRIVER_ANY_LOOP, .open = file_open,        \
    .close = file_close, .read = file_read, .write = file_write, .write_zeroes = file_write_zeroes,        \
    .discard = file_discard, .flush = file_flush, .status = file_status, .resize = file_resize,            \
    .permissions_check = file_permissions_check, .permissions_commit = file_permissions_commit,            \
    .permissions_abort = file_permissions_abort, .allocated_size = file_allocated_size, .info = file_info, \
    .reopen_prepare = file_reopen_prepare, .reopen_commit = file_reopen_commit,                            \
    .reopen_options = reopen_options, .pr_execute = file_pr_execute, .stats = file_stats

extern const Driver driver_file, driver_host_device;
const Driver driver_file = {.name = "file", FILE_DRIVER, .create = file_create};
const Driver driver_host_device = {.name = "host_device", FILE_DRIVER};
