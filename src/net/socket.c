/* SPDX-License-Identifier: Apache-2.0 */
/* See socket.h. */
#include "net/socket.h"

#include "base/limits.h"
#include "generated/types.h"
#include "loop/loop.h"
#include "net/resolve.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* ---- Addresses ---- */

/* Copies a struct that the schema made into place, deeply. */
static void copy_into(const SchemaType *type, const void *from, void *to)
{
    AUTO_FREE void *copy = schema_clone(type, from);

    memcpy(to, copy, type->size);
}

SocketAddress *socket_address_flatten(const SocketAddressLegacy *legacy)
{
    SocketAddress *address = mem_new(SocketAddress);

    address->type = legacy->type;
    switch (legacy->type) {
    case SOCKET_ADDRESS_TYPE_INET:
        copy_into(&schema_type_InetSocketAddress, legacy->u.inet.data, &address->u.inet);
        break;
    case SOCKET_ADDRESS_TYPE_UNIX:
        copy_into(&schema_type_UnixSocketAddress, legacy->u.unix_.data, &address->u.unix_);
        break;
    case SOCKET_ADDRESS_TYPE_VSOCK:
        copy_into(&schema_type_VsockSocketAddress, legacy->u.vsock.data, &address->u.vsock);
        break;
    default:
        copy_into(&schema_type_FdSocketAddress, legacy->u.fd.data, &address->u.fd);
        break;
    }
    return address;
}

static SocketAddress *address_of_inet(const struct sockaddr *sockaddr, socklen_t length)
{
    char host[NI_MAXHOST], port[NI_MAXSERV];
    SocketAddress *address;

    if (getnameinfo(
            sockaddr, length, host, sizeof(host), port, sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV))
        return NULL;
    address = mem_new(SocketAddress);
    address->type = SOCKET_ADDRESS_TYPE_INET;
    address->u.inet.host = str_dup(host);
    address->u.inet.port = str_dup(port);
    return address;
}

static SocketAddress *address_of_unix(const struct sockaddr_un *sockaddr, socklen_t length)
{
    SocketAddress *address = mem_new(SocketAddress);
    UnixSocketAddress *to = &address->u.unix_;
    size_t bytes = MIN(length - offsetof(struct sockaddr_un, sun_path), sizeof(sockaddr->sun_path));

    address->type = SOCKET_ADDRESS_TYPE_UNIX;
    if (bytes && !sockaddr->sun_path[0]) {
        to->has_abstract = to->abstract = true;
        to->has_tight = true;
        to->tight = length < sizeof(*sockaddr);
        to->path = str_ndup(sockaddr->sun_path + 1, strnlen(sockaddr->sun_path + 1, bytes - 1));
    } else {
        to->path = str_ndup(sockaddr->sun_path, strnlen(sockaddr->sun_path, bytes));
    }
    return address;
}

static SocketAddress *address_of_vsock(const struct sockaddr_vm *sockaddr)
{
    SocketAddress *address = mem_new(SocketAddress);

    address->type = SOCKET_ADDRESS_TYPE_VSOCK;
    address->u.vsock.cid = str_printf("%u", sockaddr->svm_cid);
    address->u.vsock.port = str_printf("%u", sockaddr->svm_port);
    return address;
}

typedef int AddressCall(int fd, struct sockaddr *address, socklen_t *length);

static SocketAddress *ask_address(int fd, AddressCall *call)
{
    union {
        struct sockaddr any;
        struct sockaddr_un un;
        struct sockaddr_vm vm;
        struct sockaddr_storage storage;
    } sockaddr = {0};
    socklen_t length = sizeof(sockaddr);

    if (call(fd, &sockaddr.any, &length) < 0 || length < sizeof(sa_family_t))
        return NULL;
    switch (sockaddr.any.sa_family) {
    case AF_INET:
    case AF_INET6:
        return address_of_inet(&sockaddr.any, length);
    case AF_UNIX:
        return address_of_unix(&sockaddr.un, length);
    case AF_VSOCK:
        return address_of_vsock(&sockaddr.vm);
    default:
        return NULL;
    }
}

SocketAddress *socket_address_local(int fd)
{
    return ask_address(fd, getsockname);
}

SocketAddress *socket_address_peer(int fd)
{
    return ask_address(fd, getpeername);
}

void socket_address_append(StrBuf *out, const SocketAddress *address)
{
    const UnixSocketAddress *local = &address->u.unix_;

    switch (address->type) {
    case SOCKET_ADDRESS_TYPE_INET:
        strbuf_printf(out, "tcp:%s:%s", address->u.inet.host, address->u.inet.port);
        break;
    case SOCKET_ADDRESS_TYPE_UNIX:
        strbuf_printf(out, "unix:%s", local->path);
        if (local->has_abstract && local->abstract)
            strbuf_append(out, local->has_tight && !local->tight ? ",abstract=on" : ",abstract=on,tight=on");
        break;
    case SOCKET_ADDRESS_TYPE_VSOCK:
        strbuf_printf(out, "vsock:%s:%s", address->u.vsock.cid, address->u.vsock.port);
        break;
    default:
        strbuf_printf(out, "fd:%s", address->u.fd.str);
        break;
    }
}

int socket_address_check_remote(const SocketAddress *address, Error *err)
{
    if (address->type == SOCKET_ADDRESS_TYPE_FD)
        return err_set(err, -EINVAL, "only QEMU supports file descriptor passing");
    return 0;
}

int socket_unix_sockaddr(
    const UnixSocketAddress *address, struct sockaddr_un *ret_address, socklen_t *ret_length, Error *err)
{
    bool abstract = address->has_abstract && address->abstract;
    bool tight = !address->has_tight || address->tight;
    /* The system needs no NUL behind a path; an abstract name has one in front. */
    size_t length = strlen(address->path), max = sizeof(ret_address->sun_path) - abstract;
    struct sockaddr_un sockaddr = {.sun_family = AF_UNIX};

    if (length > max) {
        err_set(err, -ENAMETOOLONG, "UNIX socket path '%s' is too long", address->path);
        err_hint(err, "Path must be less than %zu bytes", max);
        return -ENAMETOOLONG;
    }
    memcpy(sockaddr.sun_path + abstract, address->path, length);
    *ret_length = sizeof(sockaddr);
    if (abstract && tight)
        *ret_length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + length);
    *ret_address = sockaddr;
    return 0;
}

/* A whole number of 32 bits, in the notations of C. */
static bool parse_u32(const char *text, unsigned *ret_value)
{
    char *end;
    unsigned long long value;

    errno = 0;
    value = strtoull(text, &end, 0);
    if (errno || end == text || *end || strchr(text, '-') || value > UINT32_MAX)
        return false;
    *ret_value = (unsigned)value;
    return true;
}

int socket_vsock_sockaddr(const VsockSocketAddress *address, struct sockaddr_vm *ret_address, Error *err)
{
    unsigned cid, port;

    if (!parse_u32(address->cid, &cid))
        return err_set(err, -EINVAL, "Failed to parse cid '%s'", address->cid);
    if (!parse_u32(address->port, &port))
        return err_set(err, -EINVAL, "Failed to parse port '%s'", address->port);
    *ret_address = (struct sockaddr_vm){.svm_family = AF_VSOCK, .svm_cid = cid, .svm_port = port};
    return 0;
}

/* ---- Connecting ---- */

/* A new socket that is connected to one address; the descriptor or -errno. */
static int connect_one(const struct sockaddr *address, socklen_t length)
{
    AUTO_CLOSE int fd = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int r;

    if (fd < 0)
        return -errno;
    r = io_connect(fd, address, length);
    return r < 0 ? r : TAKE_FD(fd);
}

static void addrinfo_free_ptr(struct addrinfo **list)
{
    if (*list)
        freeaddrinfo(*list);
}

static int connect_inet(const InetSocketAddress *address, int *ret_fd, Error *err)
{
    CLEANUP(addrinfo_free_ptr) struct addrinfo *list = NULL;
    int on = 1, r = resolve_inet(address, false, &list, err);

    if (r < 0)
        return r;
    for (struct addrinfo *one = list; one; one = one->ai_next) {
        r = connect_one(one->ai_addr, one->ai_addrlen);
        if (r >= 0 || r == -ECANCELED || r == -ETIMEDOUT)
            break;
    }
    if (r < 0)
        return err_set_errno(err, r, "Failed to connect to '%s:%s'", address->host, address->port);
    if (address->has_keep_alive && address->keep_alive)
        (void)setsockopt(r, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    *ret_fd = r;
    return 0;
}

static int connect_unix(const UnixSocketAddress *address, int *ret_fd, Error *err)
{
    struct sockaddr_un sockaddr;
    socklen_t length;
    int r = socket_unix_sockaddr(address, &sockaddr, &length, err);

    if (r < 0)
        return r;
    r = connect_one((struct sockaddr *)&sockaddr, length);
    if (r < 0)
        return err_set_errno(err, r, "Failed to connect to '%s'", address->path);
    *ret_fd = r;
    return 0;
}

static int connect_vsock(const VsockSocketAddress *address, int *ret_fd, Error *err)
{
    struct sockaddr_vm sockaddr;
    int r = socket_vsock_sockaddr(address, &sockaddr, err);

    if (r < 0)
        return r;
    r = connect_one((struct sockaddr *)&sockaddr, sizeof(sockaddr));
    if (r < 0)
        return err_set_errno(err, r, "Failed to connect to '%s:%s'", address->cid, address->port);
    *ret_fd = r;
    return 0;
}

int socket_connect(const SocketAddress *address, int *ret_fd, Error *err)
{
    switch (address->type) {
    case SOCKET_ADDRESS_TYPE_INET:
        return connect_inet(&address->u.inet, ret_fd, err);
    case SOCKET_ADDRESS_TYPE_UNIX:
        return connect_unix(&address->u.unix_, ret_fd, err);
    case SOCKET_ADDRESS_TYPE_VSOCK:
        return connect_vsock(&address->u.vsock, ret_fd, err);
    default:
        return socket_take_passed(address->u.fd.str, ret_fd, err);
    }
}

int socket_take_passed(const char *text, int *ret_fd, Error *err)
{
    socklen_t length = sizeof(int);
    int type, flags;
    char *end;
    long number;

    errno = 0;
    number = strtol(text, &end, 10);
    if (errno || end == text || *end || number < INT32_MIN || number > INT32_MAX)
        return err_set(err, -EINVAL, "Unable to parse FD number %s", text);
    if (getsockopt((int)number, SOL_SOCKET, SO_TYPE, &type, &length) < 0)
        return err_set(err, -EINVAL, "File descriptor '%s' is not a socket", text);
    flags = fcntl((int)number, F_GETFD);
    if (flags & FD_CLOEXEC)
        return err_set(err, -EBUSY, "File descriptor '%s' is already in use", text);
    (void)fcntl((int)number, F_SETFD, flags | FD_CLOEXEC);
    *ret_fd = (int)number;
    return 0;
}

void socket_set_nodelay(int fd)
{
    int on = 1;

    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

/* ---- Descriptors over Unix sockets ---- */

typedef union FdControl {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(LIMIT_PASSED_FDS * sizeof(int))];
} FdControl;

static void put_fds(struct msghdr *message, FdControl *control, const int *fds, unsigned count)
{
    struct cmsghdr *header;

    message->msg_control = control;
    message->msg_controllen = CMSG_SPACE(count * sizeof(int));
    header = CMSG_FIRSTHDR(message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(count * sizeof(int));
    memcpy(CMSG_DATA(header), fds, count * sizeof(int));
}

int socket_send_fds(int fd, const void *data, size_t bytes, const int *fds, unsigned count)
{
    struct iovec iov = {.iov_base = (void *)data, .iov_len = bytes};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
    FdControl control = {0};

    if (count > LIMIT_PASSED_FDS || !bytes)
        return -EINVAL;
    if (count)
        put_fds(&message, &control, fds, count);
    while (iov.iov_len) {
        ssize_t n = io_sendmsg(fd, &message, 0);

        if (n < 0)
            return (int)n;
        message.msg_control = NULL;
        message.msg_controllen = 0;
        iov.iov_base = (char *)iov.iov_base + n;
        iov.iov_len -= (size_t)n;
    }
    return 0;
}

/* Collects what came; what does not fit is closed, and counted all the same. */
static unsigned get_fds(struct msghdr *message, int *fds, unsigned max)
{
    unsigned count = 0;

    for (struct cmsghdr *header = CMSG_FIRSTHDR(message); header; header = CMSG_NXTHDR(message, header)) {
        size_t here = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);

        if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS)
            continue;
        for (size_t i = 0; i < here; i++, count++) {
            int fd;

            memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof(fd));
            if (count < max)
                fds[count] = fd;
            else
                fd_close(fd);
        }
    }
    return count;
}

ssize_t socket_recv_fds(int fd, void *data, size_t bytes, int *ret_fds, unsigned max, unsigned *ret_count)
{
    struct iovec iov = {.iov_base = data, .iov_len = bytes};
    FdControl control = {0};
    struct msghdr message = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    ssize_t n = io_recvmsg(fd, &message, MSG_CMSG_CLOEXEC);
    unsigned count;

    if (n < 0)
        return n;
    count = get_fds(&message, ret_fds, max);
    if (count > max || (message.msg_flags & MSG_CTRUNC)) {
        for (unsigned i = 0; i < MIN(count, max); i++)
            fd_close(ret_fds[i]);
        return -EMSGSIZE;
    }
    *ret_count = count;
    return n;
}
