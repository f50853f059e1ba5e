/* SPDX-License-Identifier: Apache-2.0 */
/* See listener.h. */
#include "net/listener.h"

#include "base/mem.h"
#include "base/path.h"
#include "generated/trace.h"
#include "generated/types.h"
#include "loop/loop.h"
#include "net/resolve.h"
#include "net/socket.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* How long to wait when the process or the system has no descriptor or memory for another client. */
#define EXHAUSTED_PAUSE_NS UINT64_C(100000000)

/* ---- TCP ---- */

static unsigned get_port(const struct addrinfo *info)
{
    /* sin_port and sin6_port lie at the same place. */
    return ntohs(((const struct sockaddr_in *)info->ai_addr)->sin_port);
}

static void set_port(struct addrinfo *info, unsigned port)
{
    ((struct sockaddr_in *)info->ai_addr)->sin_port = htons((uint16_t)port);
}

/* Binds; an IPv6 wildcard also takes IPv4 unless that is unwanted or somebody else's. */
static int bind_inet(int fd, const InetSocketAddress *address, const struct addrinfo *info)
{
    int only6 = address->has_ipv4 && !address->ipv4;
    bool must_have_both = address->has_ipv4 && address->ipv4 && address->has_ipv6 && address->ipv6;

    if (info->ai_family != AF_INET6)
        return bind(fd, info->ai_addr, info->ai_addrlen) < 0 ? -errno : 0;
    for (;; only6 = 1) {
        (void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &only6, sizeof(only6));
        if (bind(fd, info->ai_addr, info->ai_addrlen) == 0)
            return 0;
        if (errno != EADDRINUSE || only6 || must_have_both)
            return -errno;
    }
}

/* A socket that listens on exactly the port in info; -EADDRINUSE if it is taken. err is set unless that. */
static int listen_port(const InetSocketAddress *address, const struct addrinfo *info, int backlog, Error *err)
{
    AUTO_CLOSE int fd = socket(info->ai_family, SOCK_STREAM | SOCK_CLOEXEC, info->ai_protocol);
    int on = 1, r;

    if (fd < 0)
        return err_set_errno(err, -errno, "Failed to create a socket");
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (address->has_keep_alive && address->keep_alive)
        (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on)); /* clients inherit it */
    r = bind_inet(fd, address, info);
    if (r < 0)
        return r == -EADDRINUSE ? r : err_set_errno(err, r, "Failed to bind socket");
    if (listen(fd, backlog) < 0)
        return errno == EADDRINUSE ? -EADDRINUSE : err_set_errno(err, -errno, "Failed to listen on socket");
    return TAKE_FD(fd);
}

/* Tries the ports from the one in info up to last. */
static int listen_range(
    const InetSocketAddress *address, struct addrinfo *info, unsigned last, int backlog, Error *err)
{
    unsigned first = get_port(info);

    if (last < first)
        return err_set(err, -EADDRINUSE, "Failed to create a socket");
    for (unsigned port = first; port <= last; port++) {
        int fd;

        set_port(info, port);
        fd = listen_port(address, info, backlog, err);
        if (fd != -EADDRINUSE)
            return fd;
    }
    return err_set_errno(err, -EADDRINUSE, "Failed to find an available port");
}

static unsigned port_of_socket(int fd)
{
    union {
        struct sockaddr any;
        struct sockaddr_in in;
        struct sockaddr_storage storage;
    } sockaddr = {0};
    socklen_t length = sizeof(sockaddr);

    return getsockname(fd, &sockaddr.any, &length) < 0 ? 0 : ntohs(sockaddr.in.sin_port);
}

static void addrinfo_free_ptr(struct addrinfo **list)
{
    if (*list)
        freeaddrinfo(*list);
}

/* Every address of the name that can be listened on; one is enough. All get the port that the first one
 * found. */
static int open_inet(Listener *listener, const InetSocketAddress *address, int backlog, Error *err)
{
    CLEANUP(addrinfo_free_ptr) struct addrinfo *list = NULL;
    AUTO_ERROR Error first_error = ERROR_INIT;
    int r = resolve_inet(address, true, &list, err);

    if (r < 0)
        return r;
    for (struct addrinfo *info = list; info && listener->count < LIMIT_LISTENER_FDS; info = info->ai_next) {
        AUTO_ERROR Error this_error = ERROR_INIT;
        unsigned last = address->has_to ? address->to : get_port(info);
        int fd;

        if (listener->count) {
            last = port_of_socket(listener->fds[0]);
            set_port(info, last);
        }
        fd = listen_range(address, info, last, backlog, &this_error);
        if (fd >= 0)
            listener->fds[listener->count++] = fd;
        else if (!err_is_set(&first_error))
            err_move(&first_error, &this_error);
    }
    if (listener->count)
        return 0;
    r = first_error.code;
    err_move(err, &first_error);
    return r;
}

/* ---- Unix ---- */

/* A name for a caller who gave none. */
static int make_path(char **ret_path, Error *err)
{
    const char *dir = getenv("TMPDIR");
    AUTO_FREE char *path = str_printf("%s/granary-socket-XXXXXX", dir && *dir ? dir : "/tmp");
    AUTO_CLOSE int fd = mkostemp(path, O_CLOEXEC);

    if (fd < 0)
        return err_set_errno(err, -errno, "Failed to make a temporary socket %s", path);
    if (unlink(path) < 0)
        return err_set_errno(err, -errno, "Failed to unlink socket %s", path);
    *ret_path = TAKE(path);
    return 0;
}

static int remove_old_socket(const char *path, Error *err)
{
    struct stat st;

    if (lstat(path, &st) < 0)
        return 0; /* bind() knows better what is wrong */
    if (!S_ISSOCK(st.st_mode) && !S_ISLNK(st.st_mode) && !S_ISDIR(st.st_mode))
        return err_set(
            err, -EEXIST, "Failed to bind socket to %s: the path exists and is not a socket", path);
    if (unlink(path) < 0 && errno != ENOENT)
        return err_set_errno(err, -errno, "Failed to unlink socket %s", path);
    return 0;
}

static int bind_unix(
    Listener *listener, const UnixSocketAddress *address, const char *path, int backlog, Error *err)
{
    bool abstract = address->has_abstract && address->abstract;
    UnixSocketAddress named = *address;
    AUTO_CLOSE int fd = -1;
    struct sockaddr_un sockaddr;
    socklen_t length;
    struct stat st;
    int r;

    named.path = (char *)path;
    r = socket_unix_sockaddr(&named, &sockaddr, &length, err);
    if (r == 0 && !abstract)
        r = remove_old_socket(path, err);
    if (r < 0)
        return r;
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return err_set_errno(err, -errno, "Failed to create Unix socket");
    if (bind(fd, (struct sockaddr *)&sockaddr, length) < 0)
        return err_set_errno(err, -errno, "Failed to bind socket to %s", path);
    if (!abstract && lstat(path, &st) == 0) {
        listener->path = path_absolute(path);
        listener->path_dev = st.st_dev;
        listener->path_inode = st.st_ino;
    }
    if (listen(fd, backlog) < 0)
        return err_set_errno(err, -errno, "Failed to listen on socket");
    listener->fds[listener->count++] = TAKE_FD(fd);
    return 0;
}

static int open_unix(Listener *listener, const UnixSocketAddress *address, int backlog, Error *err)
{
    bool abstract = address->has_abstract && address->abstract;
    AUTO_FREE char *made = NULL;
    int r = 0;

    if (!*address->path && !abstract)
        r = make_path(&made, err);
    if (r < 0)
        return r;
    return bind_unix(listener, address, made ? made : address->path, backlog, err);
}

/* ---- Others ---- */

static int open_vsock(Listener *listener, const VsockSocketAddress *address, int backlog, Error *err)
{
    AUTO_CLOSE int fd = -1;
    struct sockaddr_vm sockaddr;
    int r = socket_vsock_sockaddr(address, &sockaddr, err);

    if (r < 0)
        return r;
    fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return err_set_errno(err, -errno, "Failed to create socket");
    if (bind(fd, (struct sockaddr *)&sockaddr, sizeof(sockaddr)) < 0)
        return err_set_errno(err, -errno, "Failed to bind socket to '%s:%s'", address->cid, address->port);
    if (listen(fd, backlog) < 0)
        return err_set_errno(err, -errno, "Failed to listen on socket");
    listener->fds[listener->count++] = TAKE_FD(fd);
    return 0;
}

static int open_passed(Listener *listener, const char *text, int backlog, Error *err)
{
    int fd, r = socket_take_passed(text, &fd, err);

    if (r < 0)
        return r;
    listener->fds[listener->count++] = fd;
    if (listen(fd, backlog) < 0)
        return err_set_errno(err, -errno, "Failed to listen on fd socket");
    return 0;
}

static int open_any(Listener *listener, const SocketAddress *address, int backlog, Error *err)
{
    switch (address->type) {
    case SOCKET_ADDRESS_TYPE_INET:
        return open_inet(listener, &address->u.inet, backlog, err);
    case SOCKET_ADDRESS_TYPE_UNIX:
        return open_unix(listener, &address->u.unix_, backlog, err);
    case SOCKET_ADDRESS_TYPE_VSOCK:
        return open_vsock(listener, &address->u.vsock, backlog, err);
    default:
        return open_passed(listener, address->u.fd.str, backlog, err);
    }
}

int listener_open(Listener *listener, const SocketAddress *address, int backlog, Error *err)
{
    int r;

    *listener = (Listener){0};
    r = open_any(listener, address, backlog, err);
    if (r < 0)
        listener_close(listener);
    return r;
}

void listener_close(Listener *listener)
{
    struct stat st;

    if (listener->path && lstat(listener->path, &st) == 0 && st.st_dev == listener->path_dev &&
        st.st_ino == listener->path_inode)
        unlink(listener->path);
    for (unsigned i = 0; i < listener->count; i++)
        fd_close(listener->fds[i]);
    free(listener->path);
    *listener = (Listener){0};
}

SocketAddress *listener_address(const Listener *listener)
{
    return listener->count ? socket_address_local(listener->fds[0]) : NULL;
}

/* ---- Accepting ---- */

/* Waits until one of several sockets is readable: a short-lived coroutine for each. */
typedef struct ReadyWait {
    CoCond changed;
    bool ready;
} ReadyWait;

typedef struct ReadyWaiter {
    ReadyWait *all;
    int fd;
} ReadyWaiter;

static void wait_readable(void *arg)
{
    ReadyWaiter *waiter = arg;

    if (io_poll(waiter->fd, POLLIN) == -ECANCELED)
        return;
    waiter->all->ready = true;
    co_cond_signal(&waiter->all->changed);
}

static int wait_any_readable(Listener *listener)
{
    ReadyWait all = {0};
    ReadyWaiter waiters[LIMIT_LISTENER_FDS];
    CoGroup group;
    int r = 0;

    co_group_init(&group);
    for (unsigned i = 0; i < listener->count; i++) {
        waiters[i] = (ReadyWaiter){.all = &all, .fd = listener->fds[i]};
        co_start(&group, "listener-poll", wait_readable, &waiters[i]);
    }
    while (!all.ready && r == 0)
        r = co_cond_wait(&all.changed, NULL);
    co_group_cancel(&group);
    co_group_join(&group);
    return r;
}

/* The first client that is there already, in turn; -EAGAIN if there is none. */
static int accept_ready(Listener *listener)
{
    for (unsigned i = 0; i < listener->count; i++) {
        int listen_fd = listener->fds[listener->next++ % listener->count], fd;

        (void)fcntl(listen_fd, F_SETFL, fcntl(listen_fd, F_GETFL) | O_NONBLOCK);
        fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC);
        if (fd >= 0 || errno != EAGAIN)
            return fd < 0 ? -errno : fd;
    }
    return -EAGAIN;
}

static int accept_once(Listener *listener)
{
    int r;

    if (listener->count == 1)
        return io_accept(listener->fds[0]);
    r = accept_ready(listener);
    if (r != -EAGAIN)
        return r;
    r = wait_any_readable(listener);
    return r < 0 ? r : -EAGAIN;
}

/* A client that could not be accepted is its own trouble; a listener that cannot accept at all is ours. */
static bool is_fatal(int error)
{
    return error == -EBADF || error == -EINVAL || error == -ENOTSOCK || error == -EOPNOTSUPP ||
           error == -EFAULT || error == -ENOSYS || error == -ECANCELED || error == -ETIMEDOUT;
}

static bool is_exhausted(int error)
{
    return error == -EMFILE || error == -ENFILE || error == -ENOBUFS || error == -ENOMEM;
}

int listener_accept(Listener *listener)
{
    for (;;) {
        int fd = accept_once(listener), r = co_interrupted();

        if (fd >= 0) {
            trace_listener_accept(fd);
            return fd;
        }
        if (is_fatal(fd))
            return fd;
        if (is_exhausted(fd)) {
            trace_listener_exhausted(fd);
            r = co_sleep_ns(EXHAUSTED_PAUSE_NS);
        }
        if (r < 0)
            return r;
    }
}
