/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of this folder share: the server, its exports, its sessions. All of it belongs to the main
 * loop. */
#pragma once

#include "block/bitmap.h"
#include "exports/export.h"
#include "exports/nbd/negotiate.h"
#include "exports/nbd/server.h"
#include "net/listener.h"

typedef struct BlockExportOptionsNbd BlockExportOptionsNbd; /* generated */

typedef struct NbdServer {
    Listener listener;
    CoGroup acceptor;
    CoGroup sessions;         /* one coroutine per connection */
    List connections;         /* NbdSession.link */
    unsigned count;           /* of connections */
    unsigned max_connections; /* 0: no limit */
    uint64_t handshake_ns;    /* 0: no limit */
    CoCond slot_free;
    bool stopping;
} NbdServer;

/* State of an export of kind nbd. */
typedef struct NbdExport {
    Export *export;
    uint64_t serial; /* see NegotiateExport */
    char *name;
    char *description; /* or NULL */
    bool allocation_depth;
    unsigned bitmap_count;
    DirtyBitmap **bitmaps;     /* held while the export exists */
    const char **bitmap_names; /* as the bitmaps know them */
    Edge **bitmap_edges;       /* keep the nodes of those that lie elsewhere; NULL for others */
    uint64_t size;             /* as new clients are told */
    List link;                 /* in nbd_exports, in order of creation */
    List sessions;             /* NbdSession.export_link */
    unsigned session_count;    /* ever */
    CoCond left;               /* a session has left */
} NbdExport;

typedef struct NbdSession {
    NbdServer *server;
    NbdExport *export;       /* once the client has chosen */
    unsigned number;         /* of the export's sessions; spreads them over its loops */
    struct Object *iothread; /* where it transmits: a reference, or NULL */
    int fd;
    List link, export_link;
    Negotiation negotiation;
    uint8_t *option; /* data of the current option */
    size_t option_capacity;
} NbdSession;

/* The running server, or NULL. */
NbdServer *nbd_server(void);

/* Finds the bitmaps that clients may ask for and keeps them as they are until the other. (bitmaps.c) */
int nbd_bitmaps_open(NbdExport *nbd, const BlockExportOptionsNbd *options, Error *err) MUST_CHECK;
void nbd_bitmaps_close(NbdExport *nbd);

/* What the handshake sees of the exports; opaque of the host is the NbdServer. */
extern const NegotiateHost nbd_export_host;

/* Serves one connection: a coroutine in server->sessions; arg is the NbdSession, which it frees. */
void nbd_session_main(void *arg);
NbdSession *nbd_session_new(NbdServer *server, int take_fd);
/* Ends the session soon; from then on it sends and receives nothing. */
void nbd_session_disconnect(NbdSession *session);
