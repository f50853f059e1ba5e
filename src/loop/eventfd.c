/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Eventfds that somebody else has made.
 *
 * A plain write() blocks when the count is at its maximum, unless the descriptor is non-blocking, which its
 * owner can change at any time because the flag is shared. So the kernel itself signals, which never waits:
 * the eventfd is registered with a small io_uring, where a no-op makes a completion. That costs some 0.4 us
 * more than a write.
 *
 * Where io_uring is refused a write must do. It is preceded by a look whether there is room, which an owner
 * who wants to can get past.
 */
#include "loop/loop-priv.h"

#include "base/mem.h"

#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <stdio.h>
#include <unistd.h>

struct EventSignal {
    bool has_ring;
    struct io_uring ring;
    int fd; /* without ring */
};

int eventfd_check(int fd, Error *err)
{
    char name[64], link[32] = "";

    snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
    if (readlink(name, link, sizeof(link) - 1) < 0)
        return err_set_errno(err, -errno, "cannot tell what descriptor %d is", fd);
    if (!str_eq(link, "anon_inode:[eventfd]"))
        return err_set(err, -EINVAL, "descriptor %d is not an eventfd", fd);
    return 0;
}

static int open_ring(EventSignal *signal)
{
    int r;

    if (!loop_is_io_uring(loop_current()))
        return -ENOSYS;
    r = io_uring_queue_init(1, &signal->ring, 0);
    if (r < 0)
        return r;
    r = io_uring_register_eventfd(&signal->ring, signal->fd);
    if (r < 0) {
        io_uring_queue_exit(&signal->ring);
        return r;
    }
    io_uring_ring_dontfork(&signal->ring);
    return 0;
}

int event_signal_new(int fd, EventSignal **ret_signal, Error *err)
{
    EventSignal *signal;
    int r = eventfd_check(fd, err);

    if (r < 0)
        return r;
    signal = mem_new(EventSignal);
    signal->fd = fd;
    signal->has_ring = open_ring(signal) == 0;
    *ret_signal = signal;
    return 0;
}

void event_signal_free(EventSignal *signal)
{
    if (signal && signal->has_ring)
        io_uring_queue_exit(&signal->ring);
    free(signal);
}

static void write_if_there_is_room(int fd)
{
    static const uint64_t one = 1;
    struct pollfd room = {.fd = fd, .events = POLLOUT};

    if (poll(&room, 1, 0) > 0 && room.revents & POLLOUT)
        (void)!write(fd, &one, sizeof(one));
}

void event_signal_send(EventSignal *signal)
{
    if (!signal->has_ring) {
        write_if_there_is_room(signal->fd);
        return;
    }
    io_uring_prep_nop(io_uring_get_sqe(&signal->ring));
    io_uring_submit(&signal->ring);
    io_uring_cq_advance(&signal->ring, io_uring_cq_ready(&signal->ring));
}
