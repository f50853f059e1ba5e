/* SPDX-License-Identifier: Apache-2.0 */
/* The awaitable operations of loop.h, on whichever back end the loop has. */
#include "loop/loop-priv.h"

#include "base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#define CONNECT_RETRY_NS UINT64_C(10000000)

int loop_run_op(IoOp *op, bool interruptible)
{
    Loop *loop = loop_current();
    int r;

    if (interruptible && (r = co_interrupted()) < 0)
        return r;
    loop->backend->submit(loop, op);
    if (!interruptible)
        return co_wait_shielded(&op->wait);
    r = co_wait(&op->wait);
    if (op->wait.done)
        return r;
    loop->backend->cancel(loop, op);
    co_wait_shielded(&op->wait);
    return op->wait.result == -ECANCELED || op->wait.result == -EINTR ? r : op->wait.result;
}

static bool has_all_kinds(void)
{
    return loop_current()->backend->has_all_kinds;
}

/* ---- Files ---- */

static int file_op_blocking(void *arg)
{
    IoOp *op = arg;
    ssize_t r;

    do {
        switch (op->kind) {
        case IO_READV:
            r = preadv(op->fd, op->data, (int)op->count, (off_t)op->offset);
            break;
        case IO_WRITEV:
            r = pwritev2(op->fd, op->data, (int)op->count, (off_t)op->offset, op->flags);
            break;
        case IO_FSYNC:
            r = op->flags ? fdatasync(op->fd) : fsync(op->fd);
            break;
        default:
            r = fallocate(op->fd, op->flags, (off_t)op->offset, (off_t)op->bytes);
            break;
        }
    } while (r < 0 && errno == EINTR);
    return r < 0 ? -errno : (int)r;
}

static int file_op(IoOp *op)
{
    int r;

    if (!has_all_kinds())
        return loop_work(file_op_blocking, op);
    do {
        op->wait = (CoWait){0};
        r = loop_run_op(op, false);
    } while (r == -EINTR || r == -EAGAIN);
    return r;
}

ssize_t io_preadv(int fd, const struct iovec *iov, unsigned count, uint64_t offset)
{
    IoOp op = {.kind = IO_READV, .fd = fd, .data = iov, .count = count, .offset = offset};

    return file_op(&op);
}

ssize_t io_pwritev(int fd, const struct iovec *iov, unsigned count, uint64_t offset, int flags)
{
    IoOp op = {.kind = IO_WRITEV, .fd = fd, .data = iov, .count = count, .offset = offset, .flags = flags};

    return file_op(&op);
}

int io_fsync(int fd, bool datasync)
{
    IoOp op = {.kind = IO_FSYNC, .fd = fd, .flags = datasync};

    return file_op(&op);
}

int io_fallocate(int fd, int mode, uint64_t offset, uint64_t bytes)
{
    IoOp op = {.kind = IO_FALLOCATE, .fd = fd, .flags = mode, .offset = offset, .bytes = bytes};

    return file_op(&op);
}

/* ---- Commands ---- */

bool loop_has_commands(Loop *loop)
{
    return loop->backend->has_commands && loop->backend->has_commands(loop);
}

int io_command(int fd, const IoCommand *command)
{
    IoOp op = {.kind = IO_COMMAND, .fd = fd, .data = command};

    return loop_run_op(&op, false);
}

/* ---- Readiness ---- */

int io_poll(int fd, short events)
{
    IoOp op = {.kind = IO_POLL, .fd = fd, .flags = (unsigned short)events};

    return loop_run_op(&op, true);
}

/* After a non-blocking call failed: waits if it may succeed later. 1: try again; else the error. */
static int wait_to_retry(int r, int fd, short events)
{
    if (r == -EINTR)
        return 1;
    if (r != -EAGAIN)
        return r;
    r = io_poll(fd, events);
    return r < 0 ? r : 1;
}

/* ---- Streams of any kind: readiness first, so that a blocking descriptor does not block the thread ---- */

ssize_t io_read(int fd, void *data, size_t bytes)
{
    for (;;) {
        ssize_t n;
        int r = io_poll(fd, POLLIN);

        if (r < 0)
            return r;
        n = read(fd, data, bytes);
        if (n >= 0 || (errno != EAGAIN && errno != EINTR))
            return n < 0 ? -errno : n;
    }
}

ssize_t io_write(int fd, const void *data, size_t bytes)
{
    /* A pipe that is ready for writing takes this much without blocking. */
    size_t chunk = MIN(bytes, (size_t)4096);

    for (;;) {
        ssize_t n;
        int r = io_poll(fd, POLLOUT);

        if (r < 0)
            return r;
        n = write(fd, data, chunk);
        if (n >= 0 || (errno != EAGAIN && errno != EINTR))
            return n < 0 ? -errno : n;
    }
}

ssize_t io_read_now(int fd, void *data, size_t bytes)
{
    ssize_t n;

    do {
        n = read(fd, data, bytes);
    } while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

ssize_t io_write_now(int fd, const void *data, size_t bytes)
{
    ssize_t n;

    do {
        n = write(fd, data, bytes);
    } while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

int io_write_all(int fd, const void *data, size_t bytes)
{
    const char *next = data;

    while (bytes) {
        ssize_t n = io_write(fd, next, bytes);

        if (n < 0)
            return (int)n;
        next += n;
        bytes -= (size_t)n;
    }
    return 0;
}

/* Without io_uring. The reader must not block even if somebody else takes the count after the wait for it. */
static int eventfd_poll_and_read(int fd, const struct iovec *iov)
{
    int r;

    do {
        ssize_t n;

        r = io_poll(fd, POLLIN);
        if (r < 0)
            return r;
        n = preadv2(fd, iov, 1, -1, RWF_NOWAIT);
        r = n < 0 ? -errno : 0;
    } while (r == -EAGAIN || r == -EINTR);
    return r;
}

int io_eventfd_wait(int fd)
{
    uint64_t count;
    struct iovec iov = {&count, sizeof(count)};
    int r = -EAGAIN;

    if (has_all_kinds()) {
        IoOp op = {.kind = IO_READV, .fd = fd, .data = &iov, .count = 1, .offset = (uint64_t)-1};

        r = loop_run_op(&op, true);
    }
    /* Some kernels do not wait if the descriptor is non-blocking. */
    if (r == -EAGAIN || r == -EINTR)
        r = eventfd_poll_and_read(fd, &iov);
    return MIN(r, 0);
}

/* ---- Sockets ---- */

ssize_t io_recv(int fd, void *data, size_t bytes)
{
    int r;

    do {
        if (has_all_kinds()) {
            IoOp op = {.kind = IO_RECV, .fd = fd, .data = data, .bytes = bytes};

            r = loop_run_op(&op, true);
        } else {
            ssize_t n = recv(fd, data, bytes, MSG_DONTWAIT);

            r = n < 0 ? -errno : (int)n;
        }
    } while (r < 0 && (r = wait_to_retry(r, fd, POLLIN)) > 0);
    return r;
}

ssize_t io_recvmsg(int fd, struct msghdr *message, int flags)
{
    int r;

    do {
        if (has_all_kinds()) {
            IoOp op = {.kind = IO_RECVMSG, .fd = fd, .data = message, .flags = flags};

            r = loop_run_op(&op, true);
        } else {
            ssize_t n = recvmsg(fd, message, flags | MSG_DONTWAIT);

            r = n < 0 ? -errno : (int)n;
        }
    } while (r < 0 && (r = wait_to_retry(r, fd, POLLIN)) > 0);
    return r;
}

/* A socket mostly has room, and then the plain call is cheaper than an operation of the loop. */
ssize_t io_sendmsg(int fd, const struct msghdr *message, int flags)
{
    int r = co_interrupted();

    if (r < 0)
        return r;
    do {
        ssize_t n = sendmsg(fd, message, flags | MSG_NOSIGNAL | MSG_DONTWAIT);

        r = n < 0 ? -errno : (int)n;
    } while (r < 0 && (r = wait_to_retry(r, fd, POLLOUT)) > 0);
    return r;
}

int io_accept(int fd)
{
    int r;

    do {
        if (has_all_kinds()) {
            IoOp op = {.kind = IO_ACCEPT, .fd = fd, .flags = SOCK_CLOEXEC};

            r = loop_run_op(&op, true);
        } else {
            /* A listening socket may be blocking, and its client gone by the time we accept. */
            fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
            r = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
            r = r < 0 ? -errno : r;
        }
    } while (r < 0 && (r = wait_to_retry(r, fd, POLLIN)) > 0);
    return r;
}

static int finish_connect(int fd)
{
    socklen_t length = sizeof(int);
    int error = 0, r = io_poll(fd, POLLOUT);

    if (r < 0)
        return r;
    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) < 0 ? -errno : -error;
}

/* A Unix socket whose backlog is full answers EAGAIN to a non-blocking connect, and cannot be polled for
 * room. */
static int connect_nonblocking(int fd, const struct sockaddr *address, socklen_t length)
{
    int flags = fcntl(fd, F_GETFL), r;

    fcntl(fd, F_SETFL, flags | O_NONBLOCK);
    do {
        r = connect(fd, address, length) < 0 ? -errno : 0;
        if (r == -EAGAIN) {
            r = co_sleep_ns(CONNECT_RETRY_NS);
            r = r < 0 ? r : -EAGAIN;
        }
    } while (r == -EAGAIN || r == -EINTR);
    if (r == -EINPROGRESS)
        r = finish_connect(fd);
    fcntl(fd, F_SETFL, flags);
    return r;
}

int io_connect(int fd, const struct sockaddr *address, socklen_t length)
{
    IoOp op = {.kind = IO_CONNECT, .fd = fd, .data = address, .bytes = length};

    return has_all_kinds() ? loop_run_op(&op, true) : connect_nonblocking(fd, address, length);
}
