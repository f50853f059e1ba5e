/* SPDX-License-Identifier: Apache-2.0 */
#include "pr-helper/pass.h"

#include "base/mem.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

typedef union Control {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(PASS_FDS * sizeof(int))];
} Control;
_Static_assert(sizeof(Control) < CMSG_SPACE((PASS_FDS + 1) * sizeof(int)), "no room for more");

ssize_t pass_send(int socket, const void *data, size_t bytes, int fd)
{
    struct iovec iov = {.iov_base = (void *)data, .iov_len = bytes};
    Control control = {0};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
    ssize_t n;

    if (fd >= 0) {
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE(sizeof(fd));
        control.header = (struct cmsghdr){
            .cmsg_len = CMSG_LEN(sizeof(fd)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
        memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
    }
    do
        n = sendmsg(socket, &message, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

ssize_t pass_recv_all(int socket, void *data, size_t bytes, int ret_fds[PASS_FDS])
{
    struct iovec iov = {.iov_base = data, .iov_len = bytes};
    Control control;
    struct msghdr message = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    unsigned count = 0;
    ssize_t n;

    for (unsigned i = 0; i < PASS_FDS; i++)
        ret_fds[i] = -1;
    do
        n = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return -errno;
    for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header)) {
        if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS)
            continue;
        count = (unsigned)((header->cmsg_len - CMSG_LEN(0)) / sizeof(int)); /* there is one such header */
        memcpy(ret_fds, CMSG_DATA(header), MIN(count, (unsigned)PASS_FDS) * sizeof(int));
    }
    return count > 1 || (message.msg_flags & MSG_CTRUNC) ? -EBADMSG : n;
}

ssize_t pass_recv(int socket, void *data, size_t bytes, int *ret_fd)
{
    int fds[PASS_FDS];
    ssize_t n = pass_recv_all(socket, data, bytes, fds);

    if (n >= 0) {
        *ret_fd = fds[0];
        return n;
    }
    for (unsigned i = 0; i < PASS_FDS; i++)
        fd_close(fds[i]);
    return n;
}
