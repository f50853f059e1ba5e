/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Listening and the limit of connections. While there are as many connections as allowed nothing is accepted,
 * so that further clients wait in the kernel's backlog until their own patience ends.
 */
#include "exports/nbd/nbd-priv.h"

#include "base/log.h"
#include "base/mem.h"
#include "generated/types.h"
#include "schema/object.h"

#include <string.h>
#include <string.h>
#include <sys/socket.h>

#define HANDSHAKE_SECONDS 10
#define MAX_CONNECTIONS 100
#define NS_PER_S UINT64_C(1000000000)

static NbdServer *server;
/* True while a server is being started or stopped, both of which wait. */
static bool busy;

NbdServer *nbd_server(void)
{
    return server;
}

static bool is_full(const NbdServer *s)
{
    return s->max_connections && s->count >= s->max_connections;
}

static void accept_main(void *arg)
{
    NbdServer *s = arg;

    for (;;) {
        int fd, r = 0;

        while (r >= 0 && is_full(s))
            r = co_cond_wait(&s->slot_free, NULL);
        if (r < 0)
            return;
        fd = listener_accept(&s->listener);
        if (fd == -ECANCELED)
            return;
        if (fd < 0) {
            log_error("NBD server: cannot accept connections any more: %s", strerror(-fd));
            return;
        }
        co_start(&s->sessions, "nbd-session", nbd_session_main, nbd_session_new(s, fd));
    }
}

static int check_tls(const NbdServerOptions *options, Error *err)
{
    if (!options->tls_creds)
        return 0;
    if (!object_find(options->tls_creds))
        return err_set(err, -ENOENT, "No TLS credentials with id '%s'", options->tls_creds);
    return err_set(err, -EINVAL, "Object with id '%s' is not TLS credentials", options->tls_creds);
}

static NbdServer *server_new(const NbdServerOptions *options)
{
    NbdServer *s = mem_new(NbdServer);

    s->max_connections = options->has_max_connections ? options->max_connections : MAX_CONNECTIONS;
    s->handshake_ns =
        (options->has_handshake_max_seconds ? options->handshake_max_seconds : HANDSHAKE_SECONDS) * NS_PER_S;
    list_init(&s->connections);
    co_group_init(&s->acceptor);
    co_group_init(&s->sessions);
    return s;
}

int nbd_server_start(const NbdServerOptions *options, Error *err)
{
    NbdServer *s;
    int r;

    if (server || busy)
        return err_set(err, -EBUSY, "NBD server already running");
    r = check_tls(options, err);
    if (r < 0)
        return r;
    s = server_new(options);
    busy = true;
    r = listener_open(&s->listener, options->addr, SOMAXCONN, err);
    busy = false;
    if (r < 0) {
        free(s);
        return r;
    }
    server = s;
    co_start(&s->acceptor, "nbd-accept", accept_main, s);
    return 0;
}

static void disconnect_all(NbdServer *s)
{
    LIST_FOREACH (link, &s->connections)
        nbd_session_disconnect(LIST_ENTRY(link, NbdSession, link));
}

void nbd_server_stop(void)
{
    NbdServer *s = server;

    if (!s || busy)
        return;
    busy = true;
    s->stopping = true;
    co_group_cancel(&s->acceptor);
    co_group_join(&s->acceptor);
    listener_close(&s->listener);
    disconnect_all(s);
    exports_close(export_kind_find("nbd"));
    co_group_join(&s->sessions);
    server = NULL;
    busy = false;
    free(s);
}
