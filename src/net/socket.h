/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stream sockets by the addresses of the schema: connecting, addresses as text, passing descriptors.
 * Listening is in net/listener.h.
 *
 * Everything that waits is interruptible and returns -ECANCELED or -ETIMEDOUT then (with err set).
 */
#pragma once

#include "base/error.h"
#include "base/mem.h"

#include <sys/socket.h>
#include <sys/un.h>

typedef struct SocketAddress SocketAddress;             /* generated */
typedef struct SocketAddressLegacy SocketAddressLegacy; /* generated */
typedef struct UnixSocketAddress UnixSocketAddress;     /* generated */
typedef struct VsockSocketAddress VsockSocketAddress;   /* generated */
typedef struct InetSocketAddress InetSocketAddress;     /* generated */
typedef struct FdSocketAddress FdSocketAddress;         /* generated */
struct sockaddr_vm;

/* ---- Addresses ---- */

/* The wrapped form as the plain one; the caller frees it (socket_address_free). */
SocketAddress *socket_address_flatten(const SocketAddressLegacy *legacy) MUST_CHECK;
/* Where a socket is bound, or whom it is connected to. NULL when it has no such address or one of an unknown
 * family. */
SocketAddress *socket_address_local(int fd) MUST_CHECK;
SocketAddress *socket_address_peer(int fd) MUST_CHECK;
/* Appends "tcp:host:port", "unix:path,abstract=on,tight=on", "vsock:cid:port" or "fd:N". */
void socket_address_append(StrBuf *out, const SocketAddress *address);
/* Refuses descriptors by number in an address that came over the control protocol: only those who start us
 * pass any. */
int socket_address_check_remote(const SocketAddress *address, Error *err) MUST_CHECK;

/* The system's form of an address. */
int socket_unix_sockaddr(const UnixSocketAddress *address, struct sockaddr_un *ret_address,
    socklen_t *ret_length, Error *err) MUST_CHECK;
int socket_vsock_sockaddr(
    const VsockSocketAddress *address, struct sockaddr_vm *ret_address, Error *err) MUST_CHECK;

/* ---- Connecting ---- */

/* A connected, close-on-exec socket; for an address of type fd the passed descriptor, which is then ours.
 * Waits. */
int socket_connect(const SocketAddress *address, int *ret_fd, Error *err) MUST_CHECK;
/*
 * The descriptor that text numbers, if it was passed at start, is a socket and was not taken before. It is
 * the caller's then. (What was passed is not close-on-exec and what we open is: so that mark tells which is
 * which.)
 */
int socket_take_passed(const char *text, int *ret_fd, Error *err) MUST_CHECK;

/* No delay for small writes; without effect on sockets that are not TCP. */
void socket_set_nodelay(int fd);

/* ---- Descriptors over Unix sockets (unix(7), SCM_RIGHTS) ---- */

/* Sends all bytes (at least one), the descriptors with the first of them. At most LIMIT_PASSED_FDS. Waits. */
int socket_send_fds(int fd, const void *data, size_t bytes, const int *fds, unsigned count) MUST_CHECK;
/*
 * Receives up to `bytes` bytes and up to `max` descriptors (close-on-exec, the caller's). Returns the bytes,
 * 0 at the end. A peer that sends more descriptors than max gets -EMSGSIZE and all of them closed. Waits.
 */
ssize_t socket_recv_fds(
    int fd, void *data, size_t bytes, int *ret_fds, unsigned max, unsigned *ret_count) MUST_CHECK;
