/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The descriptors of a client: its socket, and the epoll instance with the timer and the cancel event beside
 * it, so that a caller has one descriptor to wait for.
 *
 * Traps: after a fork the child's copies refer to the parent's epoll, timer and connection, so that a child
 * only closes them. While a child holds a copy, closing does not tell the helper anything and does not leave
 * the epoll instance: both are done explicitly. An unconnected socket always polls as hung up: it joins the
 * epoll instance when it is connected.
 */
#include "pr-client/pr-client-priv.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S UINT64_C(1000000000)

uint64_t connection_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

static int poll_add(const granary_pr *pr, int fd, uint32_t events)
{
    struct epoll_event event = {.events = events};

    return epoll_ctl(pr->poll_fd, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

int connection_init(granary_pr *pr)
{
    int r;

    pr->poll_fd = pr->timer_fd = pr->cancel_fd = pr->socket_fd = -1;
    pr->owner = getpid();
    pr->poll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (pr->poll_fd < 0)
        return -errno;
    pr->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (pr->timer_fd < 0)
        return -errno;
    pr->cancel_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (pr->cancel_fd < 0)
        return -errno;
    r = poll_add(pr, pr->timer_fd, EPOLLIN);
    return r < 0 ? r : poll_add(pr, pr->cancel_fd, EPOLLIN);
}

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

void connection_done(granary_pr *pr)
{
    connection_close(pr);
    close_fd(&pr->cancel_fd);
    close_fd(&pr->timer_fd);
    close_fd(&pr->poll_fd);
}

int connection_open(granary_pr *pr)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int r = 0;

    if (fd < 0)
        return -errno;
    if (connect(fd, (const struct sockaddr *)&pr->address, pr->address_bytes) < 0)
        r = -errno;
    if (r == 0)
        r = poll_add(pr, fd, EPOLLIN);
    if (r < 0) {
        close(fd);
        return r;
    }
    pr->socket_fd = fd;
    pr->socket_events = EPOLLIN;
    return 0;
}

void connection_close(granary_pr *pr)
{
    if (pr->socket_fd >= 0 && pr->owner == getpid()) {
        epoll_ctl(pr->poll_fd, EPOLL_CTL_DEL, pr->socket_fd, NULL);
        shutdown(pr->socket_fd, SHUT_RDWR);
    }
    close_fd(&pr->socket_fd);
    pr->connected = false;
    pr->features = 0;
}

int connection_lost(const granary_pr *pr)
{
    return pr->sent ? -ECONNRESET : -ECONNREFUSED;
}

/* What a failed send or receive means: once the command was sent all that counts is that its outcome is lost.
 */
static int io_error(const granary_pr *pr, int error)
{
    if (pr->sent || error == EPIPE || error == ECONNRESET)
        return connection_lost(pr);
    return -error;
}

int connection_look(const granary_pr *pr)
{
    uint8_t byte;
    ssize_t n;

    do
        n = recv(pr->socket_fd, &byte, sizeof(byte), MSG_PEEK | MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    if (n > 0)
        return -EPROTO;
    if (n == 0)
        return connection_lost(pr);
    return errno == EAGAIN ? 0 : io_error(pr, errno);
}

static ssize_t send_with_fd(int socket_fd, const void *data, size_t bytes, int fd)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr header; /* for its alignment */
    } control = {0};
    struct iovec iov = {.iov_base = (void *)data, .iov_len = bytes};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};

    if (fd >= 0) {
        struct cmsghdr *header;

        message.msg_control = control.bytes;
        message.msg_controllen = sizeof(control.bytes);
        header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(fd));
        memcpy(CMSG_DATA(header), &fd, sizeof(fd));
    }
    return sendmsg(socket_fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

int connection_send(granary_pr *pr, const void *data, size_t bytes, int fd)
{
    while (pr->done < bytes) {
        ssize_t n = send_with_fd(
            pr->socket_fd, (const uint8_t *)data + pr->done, bytes - pr->done, pr->done ? -1 : fd);

        if (n >= 0)
            pr->done += (size_t)n;
        else if (errno == EAGAIN)
            return EPOLLOUT;
        else if (errno != EINTR)
            return io_error(pr, errno);
    }
    return 0;
}

int connection_receive(granary_pr *pr, void *data, size_t bytes)
{
    while (pr->done < bytes) {
        /* Not recvmsg() with room for control data: descriptors that a helper sends back are closed by the
         * kernel. */
        ssize_t n = recv(pr->socket_fd, (uint8_t *)data + pr->done, bytes - pr->done, MSG_DONTWAIT);

        if (n > 0)
            pr->done += (size_t)n;
        else if (n == 0)
            return connection_lost(pr);
        else if (errno == EAGAIN)
            return EPOLLIN;
        else if (errno != EINTR)
            return io_error(pr, errno);
    }
    return 0;
}

static void set_timer(granary_pr *pr, uint64_t when_ns)
{
    struct itimerspec timer = {
        .it_value = {.tv_sec = (time_t)(when_ns / NS_PER_S), .tv_nsec = (long)(when_ns % NS_PER_S)}};

    if (when_ns == pr->timer_ns)
        return;
    /* Also makes the descriptor unreadable, so that nobody has to read it. */
    timerfd_settime(pr->timer_fd, TFD_TIMER_ABSTIME, &timer, NULL);
    pr->timer_ns = when_ns;
}

void connection_wait_for(granary_pr *pr, uint32_t socket_events, uint64_t when_ns)
{
    struct epoll_event event = {.events = socket_events};

    set_timer(pr, when_ns);
    if (pr->socket_fd < 0 || socket_events == pr->socket_events)
        return;
    epoll_ctl(pr->poll_fd, EPOLL_CTL_MOD, pr->socket_fd, &event);
    pr->socket_events = socket_events;
}

bool connection_take_cancel(granary_pr *pr)
{
    eventfd_t count;

    return eventfd_read(pr->cancel_fd, &count) == 0;
}
