/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two programs that start at once could both find a dead socket, and the second would remove the first one's:
 * the look and the replacement are done under a lock of the directory. The lock is a courtesy between
 * helpers; who holds it for long does not keep us from starting.
 */
#include "pr-helper/listen.h"

#include "base/mem.h"
#include "pr-helper/options.h"

#include <fcntl.h>
#include <libgen.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum {
    BACKLOG = 128,
    FIRST_PASSED_FD = 3, /* sd_listen_fds(3) */
    LOCK_ATTEMPTS = 100,
    LOCK_PAUSE_NS = 10 * 1000 * 1000,
};

/* ---- Passed ---- */

static bool variable_is(const char *name, long value)
{
    const char *text = getenv(name);
    char *end;

    return text && *text && strtol(text, &end, 10) == value && !*end;
}

static int check_passed(int fd, Error *err)
{
    struct sockaddr_un address = {0};
    socklen_t length = sizeof(address);
    int listening = 0;
    socklen_t size = sizeof(listening);

    if (getsockname(fd, (struct sockaddr *)&address, &length) < 0)
        return err_set_errno(err, -errno, "The descriptor passed for socket activation is no socket");
    if (address.sun_family != AF_UNIX)
        return err_set(err, -EAFNOSUPPORT, "The socket passed for socket activation is no Unix socket");
    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) < 0 || !listening)
        return err_set(err, -EINVAL, "The socket passed for socket activation does not listen");
    if (fcntl(fd, F_SETFD, FD_CLOEXEC) < 0 || fcntl(fd, F_SETFL, O_NONBLOCK) < 0)
        return err_set_errno(err, -errno, "Cannot prepare the socket passed for socket activation");
    return 0;
}

int listen_take_passed(int *ret_fd, Error *err)
{
    bool ours = getenv("LISTEN_FDS") && variable_is("LISTEN_PID", getpid());
    bool one = variable_is("LISTEN_FDS", 1), none = variable_is("LISTEN_FDS", 0);
    int r;

    unsetenv("LISTEN_PID");
    unsetenv("LISTEN_FDS");
    unsetenv("LISTEN_FDNAMES");
    if (!ours || none) {
        *ret_fd = -1;
        return 0;
    }
    if (!one)
        return err_set(err, -EINVAL, "Socket activation needs exactly one socket");
    r = check_passed(FIRST_PASSED_FD, err);
    if (r == 0)
        *ret_fd = FIRST_PASSED_FD;
    return r;
}

/* ---- Made ---- */

static int lock_directory(const char *path)
{
    AUTO_FREE char *copy = str_dup(path);
    int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    for (unsigned i = 0; fd >= 0 && i < LOCK_ATTEMPTS && flock(fd, LOCK_EX | LOCK_NB) < 0; i++)
        nanosleep(&(struct timespec){.tv_nsec = LOCK_PAUSE_NS}, NULL);
    return fd;
}

/* Whether somebody uses the socket there. Only "refused" proves that its program is dead: a full backlog, a
 * socket of another type, or one that we may not connect to, does not. */
static bool is_live(const struct sockaddr_un *address)
{
    AUTO_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    return fd < 0 || connect(fd, (const struct sockaddr *)address, sizeof(*address)) == 0 ||
           (errno != ECONNREFUSED && errno != ENOENT);
}

static int clear_path(const struct sockaddr_un *address, Error *err)
{
    const char *path = address->sun_path;
    struct stat st;

    if (lstat(path, &st) < 0)
        return 0; /* nothing there, or bind() says what is wrong */
    if (S_ISSOCK(st.st_mode) && is_live(address))
        return err_set(err, -EADDRINUSE,
            "Failed to bind socket to %s: another program already listens there; stop it or choose another "
            "path with --socket",
            path);
    if (!S_ISSOCK(st.st_mode) && !S_ISREG(st.st_mode))
        return err_set(err, -EEXIST, "Failed to bind socket to %s: what is there is no socket", path);
    if (unlink(path) < 0 && errno != ENOENT)
        return err_set_errno(err, -errno, "Failed to bind socket to %s: cannot replace what is there", path);
    return 0;
}

static int bind_path(int fd, const struct sockaddr_un *address, const Options *options, Error *err)
{
    /* Never more permissive than asked for, not even for a moment. */
    mode_t umask_before = options->has_socket_mode ? umask(0777 & ~options->socket_mode) : 0;
    int r = bind(fd, (const struct sockaddr *)address, sizeof(*address)) < 0 ? -errno : 0;

    if (options->has_socket_mode)
        umask(umask_before);
    if (r < 0)
        return err_set_errno(err, r, "Failed to bind socket to %s", address->sun_path);
    return 0;
}

/* The directory may belong to others, who could put something else in the file's place: not to be touched. */
static int finish_socket(ListenSocket *socket, const Options *options, Error *err)
{
    struct stat st;

    socket->file_fd = open(socket->path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (socket->file_fd < 0 || fstat(socket->file_fd, &st) < 0)
        return err_set_errno(err, -errno, "Socket %s is gone", socket->path);
    if (!S_ISSOCK(st.st_mode))
        return err_set(err, -ENOTSOCK, "Socket %s was replaced by another file", socket->path);
    if (options->has_socket_group &&
        fchownat(socket->file_fd, "", (uid_t)-1, options->socket_group, AT_EMPTY_PATH) < 0)
        return err_set_errno(err, -errno, "Cannot set the group of socket %s", socket->path);
    if (listen(socket->fd, BACKLOG) < 0)
        return err_set_errno(err, -errno, "Failed to listen on socket %s", socket->path);
    return 0;
}

int listen_create(const char *path, const Options *options, ListenSocket *ret_socket, Error *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    ListenSocket made = LISTEN_SOCKET_INIT;
    int r;

    if (strlen(path) >= sizeof(address.sun_path)) {
        err_set(err, -ENAMETOOLONG, "UNIX socket path '%s' is too long", path);
        err_hint(err, "Path must be less than %zu bytes", sizeof(address.sun_path));
        return -ENAMETOOLONG;
    }
    memcpy(address.sun_path, path, strlen(path));
    AUTO_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return err_set_errno(err, -errno, "Cannot make a socket");

    AUTO_CLOSE UNUSED int lock_fd = lock_directory(path);
    r = clear_path(&address, err);
    if (r == 0)
        r = bind_path(fd, &address, options, err);
    if (r < 0)
        return r;
    made = (ListenSocket){.fd = fd, .path = str_dup(path), .file_fd = -1};
    r = finish_socket(&made, options, err);
    if (r < 0) {
        unlink(path);
        fd_close(made.file_fd);
        free(made.path);
        return r;
    }
    *ret_socket = made;
    fd = -1;
    return 0;
}

void listen_remove(const ListenSocket *socket)
{
    struct stat made, there;

    if (!socket->path)
        return;
    AUTO_CLOSE UNUSED int lock_fd = lock_directory(socket->path);
    if (fstat(socket->file_fd, &made) == 0 && lstat(socket->path, &there) == 0 &&
        made.st_dev == there.st_dev && made.st_ino == there.st_ino)
        unlink(socket->path);
}
