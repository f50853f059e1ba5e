/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The sender: a coroutine that takes every reply that is queued by the time it runs and sends them together.
 * While a send is under way further replies pile up and go with the next.
 */
#include "exports/nbd/transmission-priv.h"

#include <sys/socket.h>

void send_wake(Transmission *t)
{
    if (t->sender_idle)
        co_wake(TAKE(t->sender_idle), 0);
}

void send_queue(Request *request)
{
    Transmission *t = request->transmission;

    if (t->broken) {
        request_release(request);
        return;
    }
    list_append(&t->out, &request->link);
    send_wake(t);
}

static unsigned gather(Transmission *t)
{
    size_t skip = t->out_sent, covered;
    unsigned count = 0;

    LIST_FOREACH (link, &t->out) {
        Request *request = LIST_ENTRY(link, Request, link);
        IoSlice slice = {request->reply_iov, skip, request->reply_bytes - skip};

        count += io_slice_to_iov(slice, t->send_iov + count, SEND_IOVS - count, &covered);
        if (count == SEND_IOVS || covered < slice.bytes)
            break;
        skip = 0;
    }
    return count;
}

static void consume(Transmission *t, size_t sent)
{
    t->out_sent += sent;
    while (!list_empty(&t->out)) {
        Request *request = LIST_ENTRY(t->out.next, Request, link);

        if (t->out_sent < request->reply_bytes)
            break;
        t->out_sent -= request->reply_bytes;
        list_remove(&request->link);
        request_release(request);
    }
}

/* Nobody will read: lets go of all replies and makes the receiver see the end. */
static void give_up(Transmission *t)
{
    List *link;

    t->broken = true;
    shutdown(t->options.fd, SHUT_RDWR);
    while ((link = list_pop(&t->out)))
        request_release(LIST_ENTRY(link, Request, link));
}

static void send_batch(Transmission *t)
{
    struct msghdr message = {.msg_iov = t->send_iov, .msg_iovlen = gather(t)};
    ssize_t n = io_sendmsg(t->options.fd, &message, 0);

    if (n < 0)
        give_up(t);
    else
        consume(t, (size_t)n);
}

void send_main(void *arg)
{
    Transmission *t = arg;

    for (;;) {
        CoWait idle = {0};

        if (!list_empty(&t->out)) {
            send_batch(t);
            continue;
        }
        if (t->ending)
            break;
        t->sender_idle = &idle;
        co_wait_shielded(&idle);
    }
}
