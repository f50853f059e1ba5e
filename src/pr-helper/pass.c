/* SPDX-License-Identifier: Apache-2.0 */
#include "pr-helper/pass.h"

#include "base/mem.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

/* Room for a second descriptor, so that a client that sends several is noticed; the kernel closes the rest.
 */
typedef union Control {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(2 * sizeof(int))];
} Control;

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

/* Takes the first descriptor into *fd and closes the others; returns how many there were. */
static unsigned take_fds(const struct cmsghdr *header, int *fd)
{
    unsigned count = (unsigned)((header->cmsg_len - CMSG_LEN(0)) / sizeof(int));

    for (unsigned i = 0; i < count; i++) {
        int one;

        memcpy(&one, CMSG_DATA(header) + i * sizeof(int), sizeof(one));
        if (*fd < 0)
            *fd = one;
        else
            fd_close(one);
    }
    return count;
}

ssize_t pass_recv(int socket, void *data, size_t bytes, int *ret_fd)
{
    struct iovec iov = {.iov_base = data, .iov_len = bytes};
    Control control;
    struct msghdr message = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    AUTO_CLOSE int fd = -1;
    unsigned count = 0;
    ssize_t n;

    do
        n = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return -errno;
    for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header)) {
        if (header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS)
            count += take_fds(header, &fd);
    }
    if (count > 1 || (message.msg_flags & MSG_CTRUNC))
        return -EBADMSG;
    *ret_fd = TAKE_FD(fd);
    return n;
}
