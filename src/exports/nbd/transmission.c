/* SPDX-License-Identifier: Apache-2.0 */
/* Start and end of a transmission; see transmission-priv.h for its parts. */
#include "exports/nbd/transmission-priv.h"

#include "base/limits.h"
#include "base/mem.h"

#include <sys/socket.h>

/* How long a client that has said goodbye may take to read the replies it is owed. */
#define LAST_REPLIES_NS UINT64_C(10000000000)
/* A client that broke the protocol is still sending: what it sends is read for a while, because closing a
 * socket with unread bytes would take the error reply from it. */
#define LINGER_NS UINT64_C(1000000000)

static Transmission *transmission_new(const TransmissionOptions *options)
{
    Transmission *t = mem_new(Transmission);

    t->options = *options;
    t->rules = (NbdRequestRules){
        .mode = options->mode,
        .read_only = options->read_only,
        .contexts = options->contexts,
        .size = options->size,
        .max_bytes = LIMIT_REQUEST_BYTES,
    };
    t->pool = buffer_pool_get();
    t->direct = node_request_alignment(edge_node(options->edge)) > 1;
    list_init(&t->out);
    list_init(&t->idle_requests);
    co_group_init(&t->requests);
    co_group_init(&t->sender);
    return t;
}

static void transmission_free(Transmission *t)
{
    List *link;

    while ((link = list_pop(&t->idle_requests)))
        free(LIST_ENTRY(link, Request, link));
    rx_free_idle(t);
    buffer_pool_put(t->pool);
    free(t);
}

/* No request is in flight any more. */
static void finish_sending(Transmission *t)
{
    CoDeadline deadline;
    int r;

    t->ending = true;
    send_wake(t);
    co_deadline_begin(&deadline, LAST_REPLIES_NS);
    r = co_group_wait(&t->sender);
    co_deadline_end(&deadline);
    if (r < 0)
        shutdown(t->options.fd, SHUT_RDWR);
    co_group_join(&t->sender);
}

static void linger(Transmission *t)
{
    CoDeadline deadline;

    shutdown(t->options.fd, SHUT_WR);
    co_deadline_begin(&deadline, LINGER_NS);
    receive_and_discard(t);
    co_deadline_end(&deadline);
}

int transmission_run(const TransmissionOptions *options)
{
    Transmission *t = transmission_new(options);

    co_start(&t->sender, "nbd-sender", send_main, t);
    receive_all(t);
    finish_sending(t);
    if (t->violated && !t->broken)
        linger(t);
    rx_unref(t, TAKE(t->rx));
    transmission_free(t);
    return 0;
}
