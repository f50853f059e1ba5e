/* SPDX-License-Identifier: Apache-2.0 */
/* The file chardev: output to a file, input from another. */
#include "chardev/chardev.h"
#include "chardev/options.h"

#include "generated/types.h"
#include "loop/loop.h"

#include <fcntl.h>

typedef struct FileChardev {
    int in_fd; /* -1: no input */
    int out_fd;
} FileChardev;

/* Not blocking, for the sake of whoever names a pipe. */
static int open_file(const char *path, int flags, int *ret_fd, Error *err)
{
    int fd = open(path, flags | O_CLOEXEC | O_NONBLOCK, 0666);

    if (fd < 0)
        return err_set_errno(err, -errno, "Could not open '%s'", path);
    *ret_fd = fd;
    return 0;
}

static int file_create(Chardev *chardev, const ChardevBackend *backend, Error *err)
{
    FileChardev *file = chardev_state(chardev);
    const ChardevFile *options = backend->u.file.data;
    bool append = options->has_append && options->append;
    AUTO_CLOSE int out_fd = -1;
    int r;

    file->in_fd = -1;
    r = open_file(options->out, O_WRONLY | O_CREAT | (append ? O_APPEND : O_TRUNC), &out_fd, err);
    if (r == 0 && options->in)
        r = open_file(options->in, O_RDONLY, &file->in_fd, err);
    if (r < 0)
        return r;
    file->out_fd = TAKE_FD(out_fd);
    return 0;
}

static void file_destroy(Chardev *chardev)
{
    FileChardev *file = chardev_state(chardev);

    fd_close(file->in_fd);
    fd_close(file->out_fd);
}

static ssize_t file_read(Chardev *chardev, void *data, size_t bytes)
{
    FileChardev *file = chardev_state(chardev);

    return file->in_fd < 0 ? chardev_wait_forever() : io_read(file->in_fd, data, bytes);
}

static int file_write_all(Chardev *chardev, const void *data, size_t bytes)
{
    FileChardev *file = chardev_state(chardev);

    return io_write_all(file->out_fd, data, bytes);
}

static int file_from_options(const ChardevOptions *options, ChardevBackend *backend, Error *err)
{
    const char *path = chardev_option(options, "path");
    ChardevFile *file;

    if (!path)
        return err_set(err, -EINVAL, "chardev: file: no filename given");
    file = backend->u.file.data = mem_new(ChardevFile);
    file->out = str_dup(path);
    file->in = str_dup(chardev_option(options, "input-path"));
    file->has_append = chardev_option_bool(options, "append", &file->append);
    return 0;
}

const ChardevKind chardev_kind_file = {
    .name = "file",
    .state_size = sizeof(FileChardev),
    .create = file_create,
    .destroy = file_destroy,
    .read = file_read,
    .write_all = file_write_all,
    .from_options = file_from_options,
};
