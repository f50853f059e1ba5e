/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The server's side of the handshake as a state machine over complete messages: flags and options go in, the
 * bytes of the replies come out. No I/O, so it is fuzzed alone; what exports there are it learns from a
 * NegotiateHost.
 */
#pragma once

#include "base/mem.h"
#include "proto/nbd.h"

/* What a client may know about an export. Strings are borrowed from the host until it is asked again. */
typedef struct NegotiateExport {
    void *opaque;    /* the host's own */
    uint64_t serial; /* no other export ever has the same; not 0 */
    const char *name;
    const char *description; /* or NULL */
    uint64_t size;
    uint16_t flags; /* without those that depend on the client's options */
    NbdContexts contexts;
    NbdBitmapNames bitmaps;
    uint32_t block_min, block_preferred, block_max;
} NegotiateExport;

typedef struct NegotiateHost {
    /* Fills in the export after the one in *ret_export (opaque NULL: the first); false at the end. */
    bool (*next)(void *opaque, NegotiateExport *ret_export);
    bool (*find)(void *opaque, NbdString name, NegotiateExport *ret_export);
} NegotiateHost;

typedef enum NegotiateStep {
    NEGOTIATE_NEXT,     /* send the replies, receive another option */
    NEGOTIATE_TRANSMIT, /* send the replies, then serve negotiation->chosen */
    NEGOTIATE_END,      /* send the replies, then close */
    NEGOTIATE_DROP,     /* close */
} NegotiateStep;

typedef struct Negotiation {
    const NegotiateHost *host;
    void *opaque;
    bool fixed; /* the client speaks fixed newstyle */
    bool no_zeroes;
    NbdMode mode;
    NbdContexts contexts;    /* negotiated for the export context_export */
    uint64_t context_export; /* its serial; another one of the same name has other bitmaps */
    unsigned options;        /* received so far */
    NegotiateExport chosen;
} Negotiation;

void negotiation_init(Negotiation *negotiation, const NegotiateHost *host, void *opaque);

NegotiateStep negotiate_flags(Negotiation *negotiation, uint32_t client_flags);
/* Appends the replies to an option whose data was received completely. */
NegotiateStep negotiate_option(
    Negotiation *negotiation, uint32_t option, const uint8_t *data, size_t bytes, StrBuf *replies);
/* The same for an option whose data is too long to be kept (and was skipped). */
NegotiateStep negotiate_long_option(Negotiation *negotiation, uint32_t option, StrBuf *replies);
