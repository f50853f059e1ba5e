/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One connection: the handshake on the main loop under a deadline, then the transmission on the loop of the
 * export. The session ends when its socket is shut down, by whichever side; that works from the main loop
 * even while another loop uses the socket, because the descriptor is closed only here at the end.
 */
#include "exports/nbd/nbd-priv.h"

#include "base/endian.h"
#include "base/limits.h"
#include "base/mem.h"
#include "exports/nbd/transmission.h"
#include "generated/trace.h"
#include "net/socket.h"
#include "schema/object.h"

#include <sys/socket.h>

#define OPTION_KEEP_BYTES ((size_t)4096)

NbdSession *nbd_session_new(NbdServer *server, int take_fd)
{
    NbdSession *session = mem_new(NbdSession);

    session->server = server;
    session->fd = take_fd;
    negotiation_init(&session->negotiation, &nbd_export_host, server);
    list_append(&server->connections, &session->link);
    server->count++;
    trace_nbd_connected(take_fd, server->count);
    return session;
}

static void session_free(NbdSession *session)
{
    NbdServer *server = session->server;

    list_remove(&session->link);
    server->count--;
    co_cond_signal(&server->slot_free);
    free(session->option);
    fd_close(session->fd);
    object_unref(session->iothread);
    free(session);
}

void nbd_session_disconnect(NbdSession *session)
{
    shutdown(session->fd, SHUT_RDWR);
}

/* ---- Handshake. These return 0, or -errno when the connection is to be closed. ---- */

static int receive(NbdSession *session, void *data, size_t bytes)
{
    uint8_t *next = data;

    while (bytes) {
        ssize_t n = io_recv(session->fd, next, bytes);

        if (n <= 0)
            return n < 0 ? (int)n : -ECONNRESET;
        next += n;
        bytes -= (size_t)n;
    }
    return 0;
}

static int send_all(NbdSession *session, const void *data, size_t bytes)
{
    struct iovec iov = {(void *)data, bytes};

    while (iov.iov_len) {
        struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
        ssize_t n = io_sendmsg(session->fd, &message, 0);

        if (n < 0)
            return (int)n;
        iov.iov_base = (uint8_t *)iov.iov_base + n;
        iov.iov_len -= (size_t)n;
    }
    return 0;
}

static int skip(NbdSession *session, size_t bytes)
{
    int r = 0;

    while (bytes && r >= 0) {
        size_t step = MIN(bytes, session->option_capacity);

        r = receive(session, session->option, step);
        bytes -= step;
    }
    return r;
}

static int reserve_option(NbdSession *session, size_t bytes)
{
    uint8_t *data;

    if (bytes <= session->option_capacity)
        return 0;
    bytes = MAX(bytes, OPTION_KEEP_BYTES);
    data = realloc(session->option, bytes);
    if (!data)
        return -ENOMEM;
    session->option = data;
    session->option_capacity = bytes;
    return 0;
}

static int greet(NbdSession *session)
{
    uint8_t greeting[NBD_GREETING_BYTES], flags[NBD_CLIENT_FLAGS_BYTES];
    int r;

    nbd_greeting_encode(greeting);
    r = send_all(session, greeting, sizeof(greeting));
    if (r >= 0)
        r = receive(session, flags, sizeof(flags));
    if (r >= 0 && negotiate_flags(&session->negotiation, get_be32(flags)) != NEGOTIATE_NEXT)
        r = -EPROTO;
    return r;
}

/* Receives one option and answers it. */
static int handle_option(NbdSession *session, NegotiateStep *ret_step)
{
    AUTO_STRBUF StrBuf replies = {0};
    uint8_t header[NBD_OPTION_BYTES];
    uint32_t option, bytes;
    bool keep;
    int r = receive(session, header, sizeof(header));

    if (r >= 0)
        r = nbd_option_decode(header, &option, &bytes);
    if (r < 0)
        return r;
    trace_nbd_option(session->fd, nbd_option_name(option), bytes);
    if (bytes > LIMIT_NBD_OPTION_SKIP_BYTES)
        return -EMSGSIZE;
    keep = bytes <= LIMIT_NBD_OPTION_BYTES;
    r = reserve_option(session, keep ? bytes : OPTION_KEEP_BYTES);
    if (r >= 0)
        r = keep ? receive(session, session->option, bytes) : skip(session, bytes);
    if (r < 0)
        return r;
    if (session->server->stopping)
        return -ESHUTDOWN;
    *ret_step = keep ? negotiate_option(&session->negotiation, option, session->option, bytes, &replies)
                     : negotiate_long_option(&session->negotiation, option, &replies);
    /* From here on the export cannot go away without waiting for this session. */
    if (*ret_step == NEGOTIATE_TRANSMIT) {
        session->export = session->negotiation.chosen.opaque;
        session->number = session->export->session_count++;
        list_append(&session->export->sessions, &session->export_link);
    }
    return *ret_step == NEGOTIATE_DROP ? -EPROTO : send_all(session, replies.text, replies.length);
}

/* 0 if the client has chosen an export. */
static int negotiate(NbdSession *session)
{
    NegotiateStep step = NEGOTIATE_NEXT;
    int r = greet(session);

    while (r >= 0 && step == NEGOTIATE_NEXT)
        r = handle_option(session, &step);
    return r < 0 ? r : step == NEGOTIATE_TRANSMIT ? 0 : -ECONNABORTED;
}

static int negotiate_in_time(NbdSession *session)
{
    CoDeadline deadline;
    int r;

    if (!session->server->handshake_ns)
        return negotiate(session);
    co_deadline_begin(&deadline, session->server->handshake_ns);
    r = negotiate(session);
    co_deadline_end(&deadline);
    return r;
}

/* ---- Transmission ---- */

static int transmit(void *arg)
{
    return transmission_run(arg);
}

static void serve(NbdSession *session)
{
    const Negotiation *negotiation = &session->negotiation;
    const Export *export = session->export->export;
    TransmissionOptions options = {
        .fd = session->fd,
        .edge = export->edge,
        .mode = negotiation->mode,
        .contexts = negotiation->contexts & negotiation->chosen.contexts,
        .bitmaps = session->export->bitmaps,
        .size = negotiation->chosen.size,
        .read_only = !export->writable,
        .writethrough = export->writethrough,
    };

    /* Keeps the thread for as long as the session runs there, also when the node goes elsewhere. */
    session->iothread = export_iothread(export, session->number);
    if (session->iothread)
        object_ref(session->iothread);
    free(TAKE(session->option));
    trace_nbd_transmission(session->fd, negotiation->chosen.name, (int)options.mode, options.contexts);
    (void)loop_call(export_loop(export, session->number), transmit, &options);
}

void nbd_session_main(void *arg)
{
    NbdSession *session = arg;

    int r;

    socket_set_nodelay(session->fd);
    r = negotiate_in_time(session);
    if (r == 0)
        serve(session);
    trace_nbd_disconnected(session->fd, r);
    if (session->export) {
        list_remove(&session->export_link);
        co_cond_broadcast(&session->export->left);
    }
    session_free(session);
}
