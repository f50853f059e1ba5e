/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pipe chardev: a pair of named pipes, PATH.in (our input) and PATH.out, or one named pipe or terminal
 * for both.
 *
 * They are opened for reading and writing, so that opening waits for nobody and other processes may come and
 * go without the stream ending.
 */
#include "chardev/chardev.h"
#include "chardev/options.h"

#include "generated/types.h"
#include "loop/loop.h"

#include <fcntl.h>

typedef struct PipeChardev {
    int in_fd, out_fd; /* may be the same */
} PipeChardev;

static int open_one(const char *path, const char *suffix)
{
    AUTO_FREE char *name = str_printf("%s%s", path, suffix);
    int fd = open(name, O_RDWR | O_CLOEXEC | O_NONBLOCK);

    return fd < 0 ? -errno : fd;
}

static int pipe_create(Chardev *chardev, const ChardevBackend *backend, Error *err)
{
    PipeChardev *state = chardev_state(chardev);
    const char *path = backend->u.pipe.data->device;
    int in_fd = open_one(path, ".in"), out_fd = open_one(path, ".out");

    if (in_fd < 0 || out_fd < 0) {
        fd_close(MAX(in_fd, -1));
        fd_close(MAX(out_fd, -1));
        in_fd = out_fd = open_one(path, "");
        if (in_fd < 0)
            return err_set_errno(err, in_fd, "Could not open '%s'", path);
    }
    state->in_fd = in_fd;
    state->out_fd = out_fd;
    return 0;
}

static void pipe_destroy(Chardev *chardev)
{
    PipeChardev *state = chardev_state(chardev);

    if (state->out_fd != state->in_fd)
        fd_close(state->out_fd);
    fd_close(state->in_fd);
}

static ssize_t pipe_read(Chardev *chardev, void *data, size_t bytes)
{
    PipeChardev *state = chardev_state(chardev);

    return io_read(state->in_fd, data, bytes);
}

static int pipe_write_all(Chardev *chardev, const void *data, size_t bytes)
{
    PipeChardev *state = chardev_state(chardev);

    return io_write_all(state->out_fd, data, bytes);
}

static int pipe_from_options(const ChardevOptions *options, ChardevBackend *backend, Error *err)
{
    const char *path = chardev_option(options, "path");

    if (!path)
        return err_set(err, -EINVAL, "chardev: pipe: no device path given");
    backend->u.pipe.data = mem_new(ChardevHostdev);
    backend->u.pipe.data->device = str_dup(path);
    return 0;
}

const ChardevKind chardev_kind_pipe = {
    .name = "pipe",
    .state_size = sizeof(PipeChardev),
    .create = pipe_create,
    .destroy = pipe_destroy,
    .read = pipe_read,
    .write_all = pipe_write_all,
    .from_options = pipe_from_options,
};
