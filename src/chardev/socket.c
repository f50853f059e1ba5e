/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The socket chardev: a server that takes one client at a time (others wait in the backlog), or a client,
 * which may come back after a while when its peer has gone.
 *
 * One coroutine per chardev (keep_connected) makes the connections. A connection's descriptor stays open as
 * long as a reader or writer is inside a call on it (users); hang_up() shuts it down, which sends them away,
 * and the last of them closes it.
 */
#include "chardev/chardev.h"
#include "chardev/options.h"

#include "base/log.h"
#include "generated/trace.h"
#include "generated/types.h"
#include "loop/loop.h"
#include "net/listener.h"
#include "net/socket.h"

#include <string.h>

#define BACKLOG 1

typedef struct SocketChardev {
    SocketAddress *address; /* as it is shown: with the true port once we listen */
    Listener listener;
    bool server;
    bool wait; /* for a first client */
    bool nodelay;
    uint64_t reconnect_ns; /* 0: never */
    bool failure_reported; /* of connecting, since the last success */
    int fd;                /* -1: not connected */
    bool closing;
    unsigned users;
    CoCond changed;
    CoGroup group;
} SocketChardev;

/* ---- Options ---- */

static int check_protocols(const ChardevSocket *options, bool server, Error *err)
{
    if (options->tls_authz && !options->tls_creds)
        return err_set(err, -EINVAL, "'tls_authz' option requires 'tls_creds' option");
    if (options->tls_creds)
        return err_set(err, -ENOENT, "No TLS credentials with id '%s'", options->tls_creds);
    if (options->has_websocket && options->websocket && !server)
        return err_set(err, -EINVAL, "Websocket client is not implemented");
    if (options->has_websocket && options->websocket)
        return err_set(err, -ENOTSUP, "The 'websocket' protocol is not supported");
    if (options->has_telnet && options->telnet)
        return err_set(err, -ENOTSUP, "The 'telnet' protocol is not supported");
    if (options->has_tn3270 && options->tn3270)
        return err_set(err, -ENOTSUP, "The 'tn3270' protocol is not supported");
    return 0;
}

/* In the order in which existing users see the messages. */
static int check_options(const ChardevSocket *options, bool server, Error *err)
{
    bool passed = options->addr->type == SOCKET_ADDRESS_TYPE_FD;
    int r = check_protocols(options, server, err);

    if (r < 0)
        return r;
    if ((options->has_reconnect || options->has_reconnect_ms) && passed)
        return err_set(err, -EINVAL, "'reconnect' option is incompatible with 'fd' address type");
    if (options->has_reconnect && server)
        return err_set(err, -EINVAL, "'reconnect' option is incompatible with socket in server listen mode");
    if (options->has_wait && !server)
        return err_set(err, -EINVAL, "'wait' option is incompatible with socket in client connect mode");
    if (options->has_reconnect && options->has_reconnect_ms)
        return err_set(err, -EINVAL, "'reconnect' and 'reconnect-ms' are mutually exclusive");
    return 0;
}

/* A count of time units as nanoseconds; what is not positive means never. */
static uint64_t to_ns(int64_t count, uint64_t unit_ns)
{
    if (count <= 0)
        return 0;
    return MIN((uint64_t)count, (uint64_t)INT64_MAX / unit_ns) * unit_ns;
}

/* ---- Connections ---- */

static void set_connection(const Chardev *chardev, int fd)
{
    SocketChardev *s = chardev_state(chardev);

    trace_chardev_connect(chardev_id(chardev), fd);
    s->fd = fd;
    if (s->nodelay)
        socket_set_nodelay(fd);
    co_cond_broadcast(&s->changed);
}

/* Connects as a client; -errno when that failed this time. */
static int try_connect(const Chardev *chardev, SocketChardev *s)
{
    AUTO_ERROR Error err = ERROR_INIT;
    int fd, r = socket_connect(s->address, &fd, &err);

    if (r == 0) {
        s->failure_reported = false;
        return fd;
    }
    trace_chardev_reconnect_failed(chardev_id(chardev), r);
    if (!s->failure_reported && !co_interrupted())
        log_error("Unable to connect character device %s: %s", chardev_id(chardev), err.message);
    s->failure_reported = true;
    return r;
}

/* The next connection, or an error when there will be none. */
static int next_connection(const Chardev *chardev, SocketChardev *s)
{
    if (s->server)
        return listener_accept(&s->listener);
    if (!s->reconnect_ns)
        return -ENOTCONN;
    for (;;) {
        int fd = try_connect(chardev, s), r;

        if (fd >= 0)
            return fd;
        r = co_sleep_ns(s->reconnect_ns);
        if (r < 0)
            return r;
    }
}

static void keep_connected(void *arg)
{
    Chardev *chardev = arg;
    SocketChardev *s = chardev_state(chardev);

    for (;;) {
        int fd;

        while (s->fd >= 0) {
            if (co_cond_wait(&s->changed, NULL) < 0)
                return;
            if (s->fd < 0 && s->reconnect_ns && co_sleep_ns(s->reconnect_ns) < 0)
                return;
        }
        fd = next_connection(chardev, s);
        if (fd < 0)
            return;
        set_connection(chardev, fd);
    }
}

static void close_connection(const Chardev *chardev)
{
    SocketChardev *s = chardev_state(chardev);

    trace_chardev_disconnect(chardev_id(chardev), s->fd);
    s->fd = fd_close(s->fd);
    s->closing = false;
    co_cond_broadcast(&s->changed);
}

static void user_leaves(const Chardev *chardev)
{
    SocketChardev *s = chardev_state(chardev);

    if (--s->users == 0 && s->closing)
        close_connection(chardev);
}

static void socket_hang_up(Chardev *chardev)
{
    SocketChardev *s = chardev_state(chardev);

    if (s->fd < 0 || s->closing)
        return;
    s->closing = true;
    shutdown(s->fd, SHUT_RDWR);
    if (!s->users)
        close_connection(chardev);
}

static int socket_open_wait(Chardev *chardev)
{
    SocketChardev *s = chardev_state(chardev);
    int r = co_interrupted();

    while (r == 0 && (s->fd < 0 || s->closing))
        r = co_cond_wait(&s->changed, NULL);
    return r;
}

static ssize_t socket_read(Chardev *chardev, void *data, size_t bytes)
{
    SocketChardev *s = chardev_state(chardev);
    ssize_t n;

    if (s->fd < 0 || s->closing)
        return 0;
    s->users++;
    n = io_recv(s->fd, data, bytes);
    user_leaves(chardev);
    return n;
}

static int send_all(int fd, const void *data, size_t bytes)
{
    struct iovec iov = {.iov_base = (void *)data, .iov_len = bytes};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};

    while (iov.iov_len) {
        ssize_t n = io_sendmsg(fd, &message, 0);

        if (n < 0)
            return (int)n;
        iov.iov_base = (char *)iov.iov_base + n;
        iov.iov_len -= (size_t)n;
    }
    return 0;
}

static int socket_write_all(Chardev *chardev, const void *data, size_t bytes)
{
    SocketChardev *s = chardev_state(chardev);
    int r;

    if (s->fd < 0 || s->closing)
        return -ENOTCONN;
    s->users++;
    r = send_all(s->fd, data, bytes);
    user_leaves(chardev);
    return r;
}

/* ---- Life ---- */

static int start_server(SocketChardev *s, Error *err)
{
    SocketAddress *bound;
    int r = listener_open(&s->listener, s->address, BACKLOG, err);

    if (r < 0)
        return r;
    bound = listener_address(&s->listener);
    if (bound) {
        socket_address_free(s->address);
        s->address = bound;
    }
    return 0;
}

static int start_client(const Chardev *chardev, SocketChardev *s, Error *err)
{
    int fd, r;

    if (s->reconnect_ns)
        return 0; /* the first attempt may fail like any other */
    r = socket_connect(s->address, &fd, err);
    if (r == 0)
        set_connection(chardev, fd);
    return r;
}

static int socket_create(Chardev *chardev, const ChardevBackend *backend, Error *err)
{
    SocketChardev *s = chardev_state(chardev);
    const ChardevSocket *options = backend->u.socket.data;
    int r;

    s->server = !options->has_server || options->server;
    r = check_options(options, s->server, err);
    if (r < 0)
        return r;
    s->fd = -1;
    s->wait = s->server && options->has_wait && options->wait;
    s->nodelay = options->has_nodelay && options->nodelay;
    if (!s->server)
        s->reconnect_ns = options->has_reconnect_ms ? to_ns(options->reconnect_ms, 1000000)
                                                    : to_ns(options->reconnect, 1000000000);
    s->address = socket_address_flatten(options->addr);
    r = s->server ? start_server(s, err) : start_client(chardev, s, err);
    if (r < 0) {
        socket_address_free(s->address);
        return r;
    }
    co_group_init(&s->group);
    co_start(&s->group, "chardev-socket", keep_connected, chardev);
    return 0;
}

static void socket_destroy(Chardev *chardev)
{
    SocketChardev *s = chardev_state(chardev);

    co_group_cancel(&s->group);
    co_group_join(&s->group);
    socket_hang_up(chardev);
    listener_close(&s->listener);
    socket_address_free(s->address);
}

static bool socket_wants_client(const Chardev *chardev)
{
    const SocketChardev *s = chardev_state(chardev);

    return s->wait;
}

/* ---- Its name in query-chardev ---- */

static void append_host_port(StrBuf *out, const SocketAddress *address)
{
    const char *host = address ? address->u.inet.host : "", *port = address ? address->u.inet.port : "";

    strbuf_printf(out, strchr(host, ':') ? "[%s]:%s" : "%s:%s", host, port);
}

static char *connected_filename(const SocketChardev *s)
{
    AUTO_STRBUF StrBuf out = {0};
    CLEANUP(socket_address_free_ptr) SocketAddress *local = socket_address_local(s->fd);
    CLEANUP(socket_address_free_ptr) SocketAddress *peer = socket_address_peer(s->fd);
    const char *role = s->server ? ",server=on" : "";

    if (local && local->type == SOCKET_ADDRESS_TYPE_UNIX) {
        const SocketAddress *named = s->server || !peer ? local : peer;

        strbuf_printf(&out, "unix:%s%s", named->u.unix_.has_abstract ? "" : named->u.unix_.path, role);
    } else if (local && local->type == SOCKET_ADDRESS_TYPE_INET) {
        strbuf_append(&out, "tcp:");
        append_host_port(&out, local);
        strbuf_printf(&out, "%s <-> ", role);
        append_host_port(&out, peer);
    } else {
        strbuf_append(&out, "unknown");
    }
    return strbuf_take(&out);
}

static char *disconnected_filename(const SocketChardev *s)
{
    AUTO_STRBUF StrBuf out = {0};
    bool shows_role =
        s->address->type == SOCKET_ADDRESS_TYPE_UNIX || s->address->type == SOCKET_ADDRESS_TYPE_INET;

    strbuf_append(&out, "disconnected:");
    socket_address_append(&out, s->address);
    if (s->server && shows_role)
        strbuf_append(&out, ",server=on");
    return strbuf_take(&out);
}

static char *socket_filename(const Chardev *chardev)
{
    const SocketChardev *s = chardev_state(chardev);

    return s->fd >= 0 ? connected_filename(s) : disconnected_filename(s);
}

/* ---- Command line ---- */

static SocketAddressLegacy *unix_from_options(const ChardevOptions *options)
{
    SocketAddressLegacy *address = mem_new(SocketAddressLegacy);
    UnixSocketAddress *local = address->u.unix_.data = mem_new(UnixSocketAddress);

    address->type = SOCKET_ADDRESS_TYPE_UNIX;
    local->path = str_dup(chardev_option(options, "path"));
    local->has_abstract = chardev_option_bool(options, "abstract", &local->abstract);
    local->has_tight = chardev_option_bool(options, "tight", &local->tight);
    return address;
}

static SocketAddressLegacy *inet_from_options(const ChardevOptions *options)
{
    SocketAddressLegacy *address = mem_new(SocketAddressLegacy);
    InetSocketAddress *inet = address->u.inet.data = mem_new(InetSocketAddress);
    uint64_t to;

    address->type = SOCKET_ADDRESS_TYPE_INET;
    inet->host = str_dup(chardev_option(options, "host"));
    inet->port = str_dup(chardev_option(options, "port"));
    inet->has_to = chardev_option_number(options, "to", &to);
    inet->to = inet->has_to ? (uint16_t)to : 0;
    inet->has_ipv4 = chardev_option_bool(options, "ipv4", &inet->ipv4);
    inet->has_ipv6 = chardev_option_bool(options, "ipv6", &inet->ipv6);
    return address;
}

static SocketAddressLegacy *fd_from_options(const ChardevOptions *options)
{
    SocketAddressLegacy *address = mem_new(SocketAddressLegacy);
    const char *fd = chardev_option(options, "fd");

    address->type = SOCKET_ADDRESS_TYPE_FD;
    address->u.fd.data = mem_new(FdSocketAddress);
    address->u.fd.data->str = str_dup(fd ? fd : "");
    return address;
}

static int address_from_options(const ChardevOptions *options, SocketAddressLegacy **ret_address, Error *err)
{
    const char *path = chardev_option(options, "path"), *host = chardev_option(options, "host");
    const char *fd = chardev_option(options, "fd");

    if ((path != NULL) + (host != NULL) + (fd != NULL) > 1)
        return err_set(err, -EINVAL, "None or one of 'path', 'fd' or 'host' option required.");
    if (host && !chardev_option(options, "port"))
        return err_set(err, -EINVAL, "chardev: socket: no port given");
    *ret_address = path   ? unix_from_options(options)
                   : host ? inet_from_options(options)
                          : fd_from_options(options);
    return 0;
}

/* Here a socket is a client unless told, and a server waits for its first client unless told. */
static void roles_from_options(const ChardevOptions *options, ChardevSocket *to)
{
    bool delay;
    uint64_t number;

    to->has_server = true;
    (void)chardev_option_bool(options, "server", &to->server);
    to->wait = true;
    to->has_wait = chardev_option_bool(options, "wait", &to->wait) || to->server;
    to->has_nodelay = true;
    if (chardev_option_bool(options, "delay", &delay))
        to->nodelay = !delay;
    (void)chardev_option_bool(options, "nodelay", &to->nodelay);
    to->has_telnet = chardev_option_bool(options, "telnet", &to->telnet);
    to->has_tn3270 = chardev_option_bool(options, "tn3270", &to->tn3270);
    to->has_websocket = chardev_option_bool(options, "websocket", &to->websocket);
    to->has_reconnect = chardev_option_number(options, "reconnect", &number);
    to->reconnect = to->has_reconnect ? (int64_t)number : 0;
    to->has_reconnect_ms = chardev_option_number(options, "reconnect-ms", &number);
    to->reconnect_ms = to->has_reconnect_ms ? (int64_t)number : 0;
    to->tls_creds = str_dup(chardev_option(options, "tls-creds"));
    to->tls_authz = str_dup(chardev_option(options, "tls-authz"));
}

static int socket_from_options(const ChardevOptions *options, ChardevBackend *backend, Error *err)
{
    SocketAddressLegacy *address = NULL;
    ChardevSocket *to;
    int r = address_from_options(options, &address, err);

    if (r < 0)
        return r;
    to = backend->u.socket.data = mem_new(ChardevSocket);
    to->addr = address;
    roles_from_options(options, to);
    return 0;
}

const ChardevKind chardev_kind_socket = {
    .name = "socket",
    .state_size = sizeof(SocketChardev),
    .create = socket_create,
    .destroy = socket_destroy,
    .open_wait = socket_open_wait,
    .read = socket_read,
    .write_all = socket_write_all,
    .hang_up = socket_hang_up,
    .filename = socket_filename,
    .wants_client = socket_wants_client,
    .from_options = socket_from_options,
};
