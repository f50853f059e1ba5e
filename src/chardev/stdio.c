/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The stdio chardev. There can be one. A terminal is put into a mode for programs (no echo, no line editing)
 * and set back when the chardev goes, or at the latest when the process ends.
 *
 * Traps: standard input and output are shared with whoever started us, so they must not be made non-blocking;
 * terminals and pipes are opened anew instead, which gives a description of our own.
 */
#include "chardev/chardev.h"
#include "chardev/options.h"

#include "generated/types.h"
#include "loop/loop.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

typedef struct StdioChardev {
    int in_fd, out_fd;
} StdioChardev;

static bool in_use, forbidden;
static bool terminal_changed;
static struct termios terminal_before;

void chardev_forbid_stdio(void)
{
    forbidden = true;
}

static void restore_terminal(void)
{
    if (terminal_changed)
        (void)tcsetattr(STDIN_FILENO, TCSANOW, &terminal_before);
    terminal_changed = false;
}

static void change_terminal(bool signals)
{
    static bool registered;
    struct termios mode;

    if (tcgetattr(STDIN_FILENO, &terminal_before) < 0)
        return;
    mode = terminal_before;
    mode.c_iflag &= ~(tcflag_t)(IGNBRK | BRKINT | PARMRK | ISTRIP | INLCR | IGNCR | ICRNL | IXON);
    mode.c_oflag |= OPOST;
    mode.c_lflag &= ~(tcflag_t)(ECHO | ECHONL | ICANON | IEXTEN);
    if (!signals)
        mode.c_lflag &= ~(tcflag_t)ISIG;
    mode.c_cflag &= ~(tcflag_t)(CSIZE | PARENB);
    mode.c_cflag |= CS8;
    mode.c_cc[VMIN] = 1;
    mode.c_cc[VTIME] = 0;
    if (!registered)
        atexit(restore_terminal);
    registered = true;
    terminal_changed = tcsetattr(STDIN_FILENO, TCSANOW, &mode) == 0;
}

/* A description of our own of a terminal or pipe, which may be non-blocking; else a second number for the
 * same. */
static int open_own(int fd, int access)
{
    AUTO_FREE char *path = str_printf("/proc/self/fd/%d", fd);
    struct stat st;
    int own = -1;

    if (fstat(fd, &st) < 0)
        return -errno;
    if (S_ISFIFO(st.st_mode) || (S_ISCHR(st.st_mode) && isatty(fd)))
        own = open(path, access | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (own < 0)
        own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    return own < 0 ? -errno : own;
}

static int stdio_create(Chardev *chardev, const ChardevBackend *backend, Error *err)
{
    StdioChardev *state = chardev_state(chardev);
    const ChardevStdio *options = backend->u.stdio.data;

    if (forbidden)
        return err_set(err, -EINVAL, "cannot use stdio with -daemonize");
    if (in_use)
        return err_set(err, -EBUSY, "cannot use stdio by multiple character devices");
    state->in_fd = open_own(STDIN_FILENO, O_RDONLY);
    if (state->in_fd < 0)
        return err_set_errno(err, state->in_fd, "Could not use standard input");
    state->out_fd = open_own(STDOUT_FILENO, O_WRONLY);
    if (state->out_fd < 0) {
        fd_close(state->in_fd);
        return err_set_errno(err, state->out_fd, "Could not use standard output");
    }
    in_use = true;
    change_terminal(!options->has_signal || options->signal);
    return 0;
}

static void stdio_destroy(Chardev *chardev)
{
    StdioChardev *state = chardev_state(chardev);

    restore_terminal();
    fd_close(state->in_fd);
    fd_close(state->out_fd);
    in_use = false;
}

static ssize_t stdio_read(Chardev *chardev, void *data, size_t bytes)
{
    StdioChardev *state = chardev_state(chardev);

    return io_read(state->in_fd, data, bytes);
}

static int stdio_write_all(Chardev *chardev, const void *data, size_t bytes)
{
    StdioChardev *state = chardev_state(chardev);

    return io_write_all(state->out_fd, data, bytes);
}

static int stdio_from_options(const ChardevOptions *options, ChardevBackend *backend, Error *err)
{
    ChardevStdio *stdio = backend->u.stdio.data = mem_new(ChardevStdio);

    stdio->has_signal = chardev_option_bool(options, "signal", &stdio->signal);
    return 0;
}

const ChardevKind chardev_kind_stdio = {
    .name = "stdio",
    .state_size = sizeof(StdioChardev),
    .create = stdio_create,
    .destroy = stdio_destroy,
    .read = stdio_read,
    .write_all = stdio_write_all,
    .from_options = stdio_from_options,
};
