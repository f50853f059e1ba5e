/* SPDX-License-Identifier: Apache-2.0 */
/* The handshake; see negotiate.h. The texts are those that users of QEMU's server know. */
#include "exports/nbd/negotiate.h"

#include "base/endian.h"
#include "base/limits.h"

#include <stdio.h>

#define SHOWN_NAME_BYTES 80

void negotiation_init(Negotiation *negotiation, const NegotiateHost *host, void *opaque)
{
    *negotiation = (Negotiation){.host = host, .opaque = opaque};
}

/* ---- Replies ---- */

static void reply(StrBuf *replies, uint32_t option, uint32_t type, const void *data, size_t bytes)
{
    uint8_t header[NBD_OPTION_REPLY_BYTES];

    nbd_option_reply_encode(header, option, type, (uint32_t)bytes);
    strbuf_append_bytes(replies, header, sizeof(header));
    if (bytes)
        strbuf_append_bytes(replies, data, bytes);
}

static NegotiateStep reply_ack(StrBuf *replies, uint32_t option)
{
    reply(replies, option, NBD_REP_ACK, NULL, 0);
    return NEGOTIATE_NEXT;
}

PRINTF(4, 5)
static NegotiateStep reply_error(StrBuf *replies, uint32_t option, uint32_t type, const char *fmt, ...)
{
    AUTO_FREE char *text = NULL;
    va_list args;

    va_start(args, fmt);
    text = str_vprintf(fmt, args);
    va_end(args);
    reply(replies, option, type, text, strlen(text));
    return NEGOTIATE_NEXT;
}

static NegotiateStep reply_unknown_export(StrBuf *replies, uint32_t option, NbdString name)
{
    bool cut = name.bytes > SHOWN_NAME_BYTES;
    int shown = cut ? SHOWN_NAME_BYTES : (int)name.bytes;

    return reply_error(replies, option, NBD_REP_ERR_UNKNOWN, "export '%.*s%s' not present", shown, name.text,
        cut ? "..." : "");
}

static NegotiateStep reply_parse_error(StrBuf *replies, uint32_t option, NbdParse parse, NbdString name)
{
    const char *what = nbd_option_name(option);

    switch (parse) {
    case NBD_PARSE_LONG_NAME:
        return reply_error(replies, option, NBD_REP_ERR_INVALID, "Invalid name length: %u", name.bytes);
    case NBD_PARSE_NUL:
        return reply_error(
            replies, option, NBD_REP_ERR_INVALID, "Unexpected embedded NUL in option %s", what);
    case NBD_PARSE_TRAILING:
        return reply_error(replies, option, NBD_REP_ERR_INVALID, "option '%s' has unexpected length", what);
    default:
        return reply_error(replies, option, NBD_REP_ERR_INVALID, "Inconsistent lengths in option %s", what);
    }
}

/* ---- Options ---- */

/* Contexts were negotiated for one export; choosing another drops them. */
static void check_context_export(Negotiation *n, const NegotiateExport *export)
{
    if (n->context_export != export->serial)
        n->contexts = 0;
}

static uint16_t flags_for_client(const Negotiation *n, const NegotiateExport *export)
{
    uint16_t flags = export->flags;

    if (n->mode != NBD_MODE_SIMPLE)
        flags |= NBD_FLAG_DF;
    if (n->mode == NBD_MODE_EXTENDED && n->contexts)
        flags |= NBD_FLAG_BLOCK_STATUS_PAYLOAD;
    return flags;
}

static NegotiateStep handle_list(Negotiation *n, StrBuf *replies)
{
    NegotiateExport export = {0};

    while (n->host->next(n->opaque, &export)) {
        AUTO_STRBUF StrBuf data = {0};
        size_t name_bytes = strlen(export.name);
        uint8_t length[4];

        put_be32(length, (uint32_t)name_bytes);
        strbuf_append_bytes(&data, length, sizeof(length));
        strbuf_append_bytes(&data, export.name, name_bytes);
        if (export.description)
            strbuf_append(&data, export.description);
        reply(replies, NBD_OPT_LIST, NBD_REP_SERVER, data.text, data.length);
    }
    return reply_ack(replies, NBD_OPT_LIST);
}

static NegotiateStep handle_export_name(Negotiation *n, const uint8_t *data, size_t bytes, StrBuf *replies)
{
    NbdString name = {(const char *)data, (uint32_t)bytes};
    uint8_t out[NBD_EXPORT_NAME_REPLY_BYTES] = {0};

    /* There is no way to report an error. */
    if (bytes > NBD_STRING_BYTES || n->mode == NBD_MODE_EXTENDED ||
        !n->host->find(n->opaque, name, &n->chosen))
        return NEGOTIATE_DROP;
    check_context_export(n, &n->chosen);
    put_be64(out, n->chosen.size);
    put_be16(out + 8, flags_for_client(n, &n->chosen));
    strbuf_append_bytes(replies, out, n->no_zeroes ? 10 : sizeof(out));
    return NEGOTIATE_TRANSMIT;
}

static void reply_info(StrBuf *replies, uint32_t option, uint16_t info, const void *data, size_t bytes)
{
    AUTO_STRBUF StrBuf buf = {0};
    uint8_t head[2];

    put_be16(head, info);
    strbuf_append_bytes(&buf, head, sizeof(head));
    strbuf_append_bytes(&buf, data, bytes);
    reply(replies, option, NBD_REP_INFO, buf.text, buf.length);
}

static void reply_infos(Negotiation *n, uint32_t option, const NbdInfoOption *info,
    const NegotiateExport *export, StrBuf *replies)
{
    uint8_t sizes[12], geometry[10];

    if (info->want_name)
        reply_info(replies, option, NBD_INFO_NAME, export->name, strlen(export->name));
    if (export->description)
        reply_info(replies, option, NBD_INFO_DESCRIPTION, export->description, strlen(export->description));
    /* A client that did not ask may ignore the smallest size, so it is told that there is none. */
    put_be32(sizes, option == NBD_OPT_INFO || info->want_block_size ? export->block_min : 1);
    put_be32(sizes + 4, export->block_preferred);
    put_be32(sizes + 8, export->block_max);
    reply_info(replies, option, NBD_INFO_BLOCK_SIZE, sizes, sizeof(sizes));
    put_be64(geometry, export->size);
    put_be16(geometry + 8, flags_for_client(n, export));
    reply_info(replies, option, NBD_INFO_EXPORT, geometry, sizeof(geometry));
}

static NegotiateStep handle_info(
    Negotiation *n, uint32_t option, const uint8_t *data, size_t bytes, StrBuf *replies)
{
    NegotiateExport export = {0};
    NbdInfoOption info;
    NbdParse parse = nbd_info_option_decode(data, bytes, &info);

    if (parse != NBD_PARSE_OK)
        return reply_parse_error(replies, option, parse, info.name);
    if (!n->host->find(n->opaque, info.name, &export))
        return reply_unknown_export(replies, option, info.name);
    if (option == NBD_OPT_GO)
        check_context_export(n, &export);
    reply_infos(n, option, &info, &export, replies);
    if (option == NBD_OPT_INFO && !info.want_block_size && export.block_min > 1)
        return reply_error(
            replies, option, NBD_REP_ERR_BLOCK_SIZE_REQD, "request NBD_INFO_BLOCK_SIZE to use this export");
    reply_ack(replies, option);
    if (option == NBD_OPT_INFO)
        return NEGOTIATE_NEXT;
    n->chosen = export;
    return NEGOTIATE_TRANSMIT;
}

static void reply_contexts(
    StrBuf *replies, uint32_t option, NbdContexts contexts, const NbdBitmapNames *bitmaps)
{
    for (unsigned i = 0; i < NBD_CONTEXT__COUNT; i++) {
        AUTO_STRBUF StrBuf data = {0};
        uint8_t id[4];

        if (!(contexts & NBD_CONTEXT_BIT(i)))
            continue;
        put_be32(id, option == NBD_OPT_SET_META_CONTEXT ? i : 0);
        strbuf_append_bytes(&data, id, sizeof(id));
        strbuf_append(&data, nbd_context_name(i));
        if (i >= NBD_CONTEXT_BITMAPS)
            strbuf_append(&data, bitmaps->names[i - NBD_CONTEXT_BITMAPS]);
        reply(replies, option, NBD_REP_META_CONTEXT, data.text, data.length);
    }
}

static NegotiateStep handle_meta(
    Negotiation *n, uint32_t option, const uint8_t *data, size_t bytes, StrBuf *replies)
{
    bool set = option == NBD_OPT_SET_META_CONTEXT;
    NegotiateExport export = {0};
    NbdMetaOption meta;
    NbdContexts contexts;
    NbdParse parse;

    if (set && n->mode == NBD_MODE_SIMPLE)
        return reply_error(replies, option, NBD_REP_ERR_INVALID,
            "request option '%s' when structured reply is not negotiated", nbd_option_name(option));
    if (set)
        n->contexts = 0;
    parse = nbd_meta_option_decode(data, bytes, &meta);
    if (parse != NBD_PARSE_OK)
        return reply_parse_error(replies, option, parse, meta.name);
    if (!n->host->find(n->opaque, meta.name, &export))
        return reply_unknown_export(replies, option, meta.name);
    contexts = export.contexts;
    if (set || meta.queries)
        contexts &= nbd_meta_option_match(&meta, &export.bitmaps, !set);
    if (set) {
        n->context_export = export.serial;
        n->contexts = contexts;
    }
    reply_contexts(replies, option, contexts, &export.bitmaps);
    return reply_ack(replies, option);
}

static NegotiateStep handle_mode(Negotiation *n, uint32_t option, StrBuf *replies)
{
    NbdMode mode = option == NBD_OPT_EXTENDED_HEADERS ? NBD_MODE_EXTENDED : NBD_MODE_STRUCTURED;

    if (n->mode == NBD_MODE_EXTENDED)
        return reply_error(replies, option,
            mode == NBD_MODE_EXTENDED ? NBD_REP_ERR_INVALID : NBD_REP_ERR_EXT_HEADER_REQD,
            "extended headers already negotiated");
    if (n->mode == mode)
        return reply_error(replies, option, NBD_REP_ERR_INVALID, "structured reply already negotiated");
    n->mode = mode;
    return reply_ack(replies, option);
}

/* Options that carry no data. */
static NegotiateStep handle_bare(Negotiation *n, uint32_t option, size_t bytes, StrBuf *replies)
{
    if (bytes && option != NBD_OPT_ABORT)
        return reply_parse_error(replies, option, NBD_PARSE_TRAILING, (NbdString){0});
    switch (option) {
    case NBD_OPT_ABORT:
        reply_ack(replies, option);
        return NEGOTIATE_END;
    case NBD_OPT_LIST:
        return handle_list(n, replies);
    case NBD_OPT_STARTTLS:
        return reply_error(replies, option, NBD_REP_ERR_POLICY, "TLS not configured");
    default:
        return handle_mode(n, option, replies);
    }
}

/* Checks that hold for every option; NEGOTIATE_NEXT to go on. */
static NegotiateStep check_option(Negotiation *n, uint32_t option)
{
    if (++n->options > LIMIT_NBD_OPTIONS)
        return NEGOTIATE_DROP;
    return n->fixed || option == NBD_OPT_EXPORT_NAME ? NEGOTIATE_NEXT : NEGOTIATE_DROP;
}

NegotiateStep negotiate_flags(Negotiation *n, uint32_t client_flags)
{
    n->fixed = client_flags & NBD_FIXED_NEWSTYLE;
    n->no_zeroes = client_flags & NBD_NO_ZEROES;
    return client_flags & ~(uint32_t)(NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES) ? NEGOTIATE_DROP : NEGOTIATE_NEXT;
}

static NegotiateStep reply_unsupported(StrBuf *replies, uint32_t option)
{
    return reply_error(
        replies, option, NBD_REP_ERR_UNSUP, "Unsupported option %u (%s)", option, nbd_option_name(option));
}

NegotiateStep negotiate_option(
    Negotiation *n, uint32_t option, const uint8_t *data, size_t bytes, StrBuf *replies)
{
    NegotiateStep step = check_option(n, option);

    if (step != NEGOTIATE_NEXT)
        return step;
    switch (option) {
    case NBD_OPT_EXPORT_NAME:
        return handle_export_name(n, data, bytes, replies);
    case NBD_OPT_INFO:
    case NBD_OPT_GO:
        return handle_info(n, option, data, bytes, replies);
    case NBD_OPT_LIST_META_CONTEXT:
    case NBD_OPT_SET_META_CONTEXT:
        return handle_meta(n, option, data, bytes, replies);
    case NBD_OPT_ABORT:
    case NBD_OPT_LIST:
    case NBD_OPT_STARTTLS:
    case NBD_OPT_STRUCTURED_REPLY:
    case NBD_OPT_EXTENDED_HEADERS:
        return handle_bare(n, option, bytes, replies);
    default:
        return reply_unsupported(replies, option);
    }
}

NegotiateStep negotiate_long_option(Negotiation *n, uint32_t option, StrBuf *replies)
{
    NegotiateStep step = check_option(n, option);

    if (step != NEGOTIATE_NEXT || option == NBD_OPT_EXPORT_NAME)
        return NEGOTIATE_DROP;
    if (str_eq(nbd_option_name(option), "<unknown>"))
        return reply_unsupported(replies, option);
    return reply_error(
        replies, option, NBD_REP_ERR_TOO_BIG, "option '%s' is too long", nbd_option_name(option));
}
