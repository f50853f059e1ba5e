/* SPDX-License-Identifier: Apache-2.0 */
/*
 * multipathd's control socket. A message either way is its length in the host's order and width of size_t,
 * then so many bytes of text with the NUL at the end.
 */
#include "pr-device/pr-device-priv.h"

#include "base/limits.h"
#include "base/mem.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* Since multipath-tools 0.12, for containers with a network of their own; and the one of all versions. */
#define SOCKET_PATH "/run/multipathd.socket"
#define SOCKET_ABSTRACT "@/org/kernel/linux/storage/multipathd"

/* '@' in front: abstract. */
static int connect_to(const char *name)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    AUTO_CLOSE int fd = -1;
    size_t length = strlen(name);

    if (length == 0 || length >= sizeof(address.sun_path))
        return -EINVAL;
    memcpy(address.sun_path, name, length);
    if (name[0] == '@')
        address.sun_path[0] = '\0';
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 ||
        connect(fd, (struct sockaddr *)&address, offsetof(struct sockaddr_un, sun_path) + length) < 0)
        return -errno;
    return TAKE_FD(fd);
}

int pr_multipathd_connect(void)
{
    const char *name = secure_getenv("MULTIPATH_SOCKET_NAME");
    int fd;

    if (name && *name)
        return connect_to(name);
    fd = connect_to(SOCKET_PATH);
    return fd >= 0 ? fd : connect_to(SOCKET_ABSTRACT);
}

static int64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Waits until the socket can be used; 0 or -errno. */
static int wait_for(int fd, short events, int64_t deadline_ms)
{
    for (;;) {
        int64_t left = deadline_ms - now_ms();
        struct pollfd entry = {.fd = fd, .events = events};
        int r = left <= 0 ? 0 : poll(&entry, 1, (int)MIN(left, (int64_t)INT32_MAX));

        if (r == 0)
            return -ETIMEDOUT;
        if (r > 0)
            return 0;
        if (errno != EINTR)
            return -errno;
    }
}

static int send_all(int fd, const void *data, size_t bytes, int64_t deadline_ms)
{
    for (size_t done = 0; done < bytes;) {
        int r = wait_for(fd, POLLOUT, deadline_ms);
        ssize_t sent;

        if (r < 0)
            return r;
        sent = send(fd, (const uint8_t *)data + done, bytes - done, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno != EINTR && errno != EAGAIN)
            return -errno;
        done += sent > 0 ? (size_t)sent : 0;
    }
    return 0;
}

static int receive_all(int fd, void *data, size_t bytes, int64_t deadline_ms)
{
    for (size_t done = 0; done < bytes;) {
        int r = wait_for(fd, POLLIN, deadline_ms);
        ssize_t got;

        if (r < 0)
            return r;
        got = recv(fd, (uint8_t *)data + done, bytes - done, MSG_DONTWAIT);
        if (got == 0)
            return -ECONNRESET;
        if (got < 0 && errno != EINTR && errno != EAGAIN)
            return -errno;
        done += got > 0 ? (size_t)got : 0;
    }
    return 0;
}

int pr_multipathd_ask_fd(
    int fd, const char *command, unsigned timeout_ms, char *ret_answer, size_t answer_size)
{
    int64_t deadline_ms = now_ms() + timeout_ms;
    AUTO_FREE char *answer = NULL;
    size_t length = strlen(command) + 1;
    int r = send_all(fd, &length, sizeof(length), deadline_ms);

    if (r == 0)
        r = send_all(fd, command, length, deadline_ms);
    if (r == 0)
        r = receive_all(fd, &length, sizeof(length), deadline_ms);
    if (r < 0)
        return r;
    if (length > LIMIT_MULTIPATHD_ANSWER_BYTES)
        return -EMSGSIZE;
    answer = mem_try_zalloc(length + 1, 1);
    if (!answer)
        return -ENOMEM;
    r = receive_all(fd, answer, length, deadline_ms);
    if (r < 0)
        return r;
    answer[strcspn(answer, "\n")] = '\0';
    snprintf(ret_answer, answer_size, "%s", answer);
    return 0;
}

int pr_multipathd_ask(const char *command, unsigned timeout_ms, char *ret_answer, size_t answer_size)
{
    AUTO_CLOSE int fd = pr_multipathd_connect();

    if (fd < 0)
        return fd;
    return pr_multipathd_ask_fd(fd, command, timeout_ms, ret_answer, answer_size);
}
