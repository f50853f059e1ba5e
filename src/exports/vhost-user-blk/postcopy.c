/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Postcopy migration (vhost-user.rst, "Migration"; userfaultfd(2)): a guest runs here while its memory is
 * still on another machine, and whoever touches a page that has not arrived waits until the client brings it.
 *
 * Only the queues may wait like that, on a thread of their own: a loop that is shared would stop for
 * everybody. The client can keep a page for ever. So whoever ends a queue takes the memory away from the
 * userfaultfd first, which lets the waiting thread go on; a client that hangs up is watched for, because the
 * request of it that is being carried out may wait for a queue.
 */
#include "exports/vhost-user-blk/vhost-user-priv.h"

#include "base/mem.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define DEVICE "/dev/userfaultfd"

/* ---- The descriptor ---- */

/* The system call is for who may trace others; the device for whom its owner admits. */
static int open_userfaultfd(void)
{
    AUTO_CLOSE int device = -1;
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

    if (fd >= 0)
        return fd;
    device = open(DEVICE, O_RDWR | O_CLOEXEC);
    fd = device < 0 ? -1 : ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
    return fd < 0 ? -errno : fd;
}

static int make_userfaultfd(int *ret_fd, Error *err)
{
    AUTO_CLOSE int fd = open_userfaultfd();
    struct uffdio_api api = {.api = UFFD_API};

    if (fd < 0)
        return err_set_errno(err, fd, "cannot make a userfaultfd");
    if (ioctl(fd, UFFDIO_API, &api) < 0)
        return err_set_errno(err, -errno, "cannot set the userfaultfd up");
    *ret_fd = TAKE_FD(fd);
    return 0;
}

bool vhost_user_postcopy_is_possible(void)
{
    AUTO_ERROR Error ignored = ERROR_INIT;
    AUTO_CLOSE int fd = -1;

    return make_userfaultfd(&fd, &ignored) == 0;
}

/* ---- Memory ---- */

int vhost_user_postcopy_register(VhostUserSession *session, VhostUserRegion *region, Error *err)
{
    VhostUserPostcopy *postcopy = &session->postcopy;
    uintptr_t at = (uintptr_t)virtio_memory_at_user(session->memory, region->user, region->bytes);
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), start = align_down(at, page);
    struct uffdio_register change = {
        .range = {start, align_up(at + region->bytes, page) - start}, .mode = UFFDIO_REGISTER_MODE_MISSING};

    if (ioctl(postcopy->fd, UFFDIO_REGISTER, &change) < 0)
        return err_set_errno(err, -errno, "memory that cannot be waited for");
    VEC_GROW(postcopy->ranges, postcopy->range_count, postcopy->range_capacity);
    postcopy->ranges[postcopy->range_count++] = (struct iovec){(void *)(uintptr_t)start, change.range.len};
    region->user = at;
    postcopy->unconfirmed = true;
    return 0;
}

void vhost_user_postcopy_forget(VhostUserSession *session)
{
    session->postcopy.range_count = 0;
}

void vhost_user_postcopy_release(VhostUserSession *session)
{
    VhostUserPostcopy *postcopy = &session->postcopy;

    for (size_t i = 0; i < postcopy->range_count; i++) {
        struct uffdio_range range = {(uintptr_t)postcopy->ranges[i].iov_base, postcopy->ranges[i].iov_len};

        (void)ioctl(postcopy->fd, UFFDIO_UNREGISTER, &range);
    }
    postcopy->range_count = 0;
}

/* ---- Life ---- */

void vhost_user_postcopy_init(VhostUserPostcopy *postcopy)
{
    *postcopy = (VhostUserPostcopy){.fd = -1};
    co_group_init(&postcopy->watcher);
}

void vhost_user_postcopy_done(VhostUserSession *session)
{
    VhostUserPostcopy *postcopy = &session->postcopy;

    co_group_cancel(&postcopy->watcher);
    co_group_join(&postcopy->watcher);
    loop_free(postcopy->loop);
    fd_close(postcopy->fd);
    free(postcopy->ranges);
    vhost_user_postcopy_init(postcopy);
}

static void watch_client(void *arg)
{
    VhostUserSession *session = arg;

    if (io_poll(session->fd, POLLRDHUP) >= 0)
        vhost_user_postcopy_release(session);
}

Loop *vhost_user_postcopy_loop(const VhostUserSession *session)
{
    return session->postcopy.loop;
}

/* ---- Requests ---- */

int vhost_user_postcopy_advise(
    VhostUserSession *session, VhostUserIncoming *in, VhostUserReply *reply, Error *err)
{
    VhostUserPostcopy *postcopy = &session->postcopy;
    int r;

    if (postcopy->fd >= 0)
        return err_set(err, -EBUSY, "it came before");
    r = make_userfaultfd(&postcopy->fd, err);
    if (r < 0)
        return r;
    reply->fd = fcntl(postcopy->fd, F_DUPFD_CLOEXEC, 0);
    if (reply->fd < 0)
        return err_set_errno(err, -errno, "cannot pass the userfaultfd on");
    reply->bytes = vhost_user_encode_empty(reply->data, in->message.request);
    return 0;
}

int vhost_user_postcopy_listen(
    VhostUserSession *session, VhostUserIncoming *in, VhostUserReply *reply, Error *err)
{
    const LoopOptions options = {.thread_pool_max = 64};
    VhostUserPostcopy *postcopy = &session->postcopy;
    int r;

    if (postcopy->fd < 0 || postcopy->loop)
        return err_set(err, -EINVAL, "it did not follow POSTCOPY_ADVISE");
    if (virtio_memory_count(session->memory))
        return err_set(err, -EBUSY, "there is memory already");
    r = loop_new("vhost-user-postcopy", LOOP_BACKEND_AUTO, &options, &postcopy->loop, err);
    if (r == 0)
        co_start(&postcopy->watcher, "vhost-user-postcopy", watch_client, session);
    return r;
}

/* Every page is there now, and the queues go where they belong. */
int vhost_user_postcopy_end(
    VhostUserSession *session, VhostUserIncoming *in, VhostUserReply *reply, Error *err)
{
    if (!session->postcopy.loop)
        return err_set(err, -EINVAL, "it did not follow POSTCOPY_LISTEN");
    vhost_user_postcopy_release(session);
    vhost_user_rings_pause(session);
    vhost_user_postcopy_done(session);
    reply->bytes = vhost_user_encode_number(reply->data, in->message.request, 0);
    return vhost_user_rings_resume(session, err);
}
