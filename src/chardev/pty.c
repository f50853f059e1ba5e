/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pty chardev: a new pseudo terminal. It is connected while some process has the terminal's other end
 * open.
 *
 * The kernel reports a hang-up on our end while nobody has the other end open (and somebody had: create()
 * opens and closes it once). The way back is found through inotify, so that waiting costs nothing.
 */
#include "chardev/chardev.h"
#include "chardev/options.h"

#include "base/path.h"
#include "generated/types.h"
#include "loop/loop.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <string.h>
#include <sys/inotify.h>
#include <termios.h>
#include <unistd.h>

#define POLL_PAUSE_NS UINT64_C(1000000000) /* where inotify cannot be had */

typedef struct PtyChardev {
    int fd;
    int open_fd; /* inotify: somebody opened the other end; -1: not available */
    char path[64];
    char *link; /* the symbolic link that we made, or NULL */
} PtyChardev;

static void set_raw_mode(int fd)
{
    struct termios mode;

    if (tcgetattr(fd, &mode) < 0)
        return;
    cfmakeraw(&mode);
    (void)tcsetattr(fd, TCSANOW, &mode);
}

static int open_terminal(PtyChardev *pty)
{
    AUTO_CLOSE int fd = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    AUTO_CLOSE int other_fd = -1;

    if (fd < 0 || grantpt(fd) < 0 || unlockpt(fd) < 0)
        return -errno;
    if (ptsname_r(fd, pty->path, sizeof(pty->path)) != 0)
        return -errno;
    other_fd = open(pty->path, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (other_fd < 0)
        return -errno;
    set_raw_mode(other_fd);
    pty->fd = TAKE_FD(fd);
    return 0;
}

static int watch_opens(const char *path)
{
    AUTO_CLOSE int fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);

    if (fd < 0 || inotify_add_watch(fd, path, IN_OPEN) < 0)
        return -1;
    return TAKE_FD(fd);
}

static int pty_create(Chardev *chardev, const ChardevBackend *backend, Error *err)
{
    PtyChardev *pty = chardev_state(chardev);
    const char *link = backend->u.pty.data->path;
    int r = open_terminal(pty);

    if (r < 0)
        return err_set_errno(err, r, "Failed to create PTY");
    if (link && symlink(pty->path, link) < 0) {
        err_set_errno(err, -errno, "Failed to create PTY symlink");
        fd_close(pty->fd);
        return err->code;
    }
    pty->link = path_absolute(link);
    pty->open_fd = watch_opens(pty->path);
    return 0;
}

/* Removes the link, unless it is somebody else's by now. */
static void remove_link(const PtyChardev *pty)
{
    char target[sizeof(pty->path)];
    ssize_t n = readlink(pty->link, target, sizeof(target));

    if (n == (ssize_t)strlen(pty->path) && memcmp(target, pty->path, (size_t)n) == 0)
        unlink(pty->link);
}

static void pty_destroy(Chardev *chardev)
{
    PtyChardev *pty = chardev_state(chardev);

    if (pty->link)
        remove_link(pty);
    free(pty->link);
    fd_close(pty->open_fd);
    fd_close(pty->fd);
}

static bool is_open(const PtyChardev *pty)
{
    struct pollfd p = {.fd = pty->fd};

    return poll(&p, 1, 0) == 0 || !(p.revents & POLLHUP);
}

/*
 * Drops what the process that has gone did not read, which is not for the next one. Some of it waits on our
 * side of the terminal and the rest on the other, which can be emptied from there only.
 */
static void discard_unread(const PtyChardev *pty)
{
    AUTO_CLOSE int other_fd = -1;

    (void)tcflush(pty->fd, TCOFLUSH);
    other_fd = open(pty->path, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (other_fd >= 0)
        (void)tcflush(other_fd, TCIFLUSH);
}

static int pty_open_wait(Chardev *chardev)
{
    PtyChardev *pty = chardev_state(chardev);
    char events[sizeof(struct inotify_event) + NAME_MAX + 1];

    if (!is_open(pty))
        discard_unread(pty);
    for (;;) {
        int r;

        /* News from before the look is old news. */
        while (pty->open_fd >= 0 && read(pty->open_fd, events, sizeof(events)) > 0)
            continue;
        r = is_open(pty) ? co_interrupted() : -EAGAIN;
        if (r != -EAGAIN)
            return r;
        r = pty->open_fd >= 0 ? io_poll(pty->open_fd, POLLIN) : co_sleep_ns(POLL_PAUSE_NS);
        if (r < 0)
            return r;
    }
}

static ssize_t pty_read(Chardev *chardev, void *data, size_t bytes)
{
    PtyChardev *pty = chardev_state(chardev);

    return io_read(pty->fd, data, bytes);
}

/* A terminal that nobody has open takes nothing and never becomes writable: that ends the writing. */
static int pty_write_all(Chardev *chardev, const void *data, size_t bytes)
{
    PtyChardev *pty = chardev_state(chardev);
    const char *next = data;

    while (bytes) {
        int r = io_poll(pty->fd, POLLOUT);
        ssize_t n;

        if (r < 0)
            return r;
        if (!is_open(pty)) /* r may tell of the moment in discard_unread() when it was open */
            return -ENOTCONN;
        n = write(pty->fd, next, bytes);
        if (n < 0 && errno != EAGAIN && errno != EINTR)
            return -errno;
        if (n > 0) {
            next += n;
            bytes -= (size_t)n;
        }
    }
    return 0;
}

static const char *pty_path(const Chardev *chardev)
{
    const PtyChardev *pty = chardev_state(chardev);

    return pty->path;
}

static char *pty_filename(const Chardev *chardev)
{
    return str_printf("pty:%s", pty_path(chardev));
}

static int pty_from_options(const ChardevOptions *options, ChardevBackend *backend, Error *err)
{
    backend->u.pty.data = mem_new(ChardevPty);
    backend->u.pty.data->path = str_dup(chardev_option(options, "path"));
    return 0;
}

const ChardevKind chardev_kind_pty = {
    .name = "pty",
    .state_size = sizeof(PtyChardev),
    .create = pty_create,
    .destroy = pty_destroy,
    .open_wait = pty_open_wait,
    .read = pty_read,
    .write_all = pty_write_all,
    .filename = pty_filename,
    .pty_path = pty_path,
    .from_options = pty_from_options,
};
