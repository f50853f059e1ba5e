/* SPDX-License-Identifier: Apache-2.0 */
/* The handshake from bytes: client flags, then options as on the wire. */
#include "exports/nbd/negotiate.h"

#include "base/endian.h"
#include "base/limits.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void fill_export(NegotiateExport *ret_export)
{
    static const char *const bitmaps[] = {"a", "b"};

    *ret_export = (NegotiateExport){
        .opaque = ret_export,
        .serial = 1,
        .name = "e0",
        .description = "text",
        .size = 1 << 20,
        .flags = NBD_FLAG_HAS_FLAGS,
        .contexts = NBD_CONTEXT_BIT(NBD_CONTEXT_BITMAPS + 2) - 1,
        .bitmaps = {.names = bitmaps, .count = 2},
        .block_min = 512,
        .block_preferred = 4096,
        .block_max = 32 << 20,
    };
}

static bool next(void *opaque, NegotiateExport *ret_export)
{
    if (ret_export->opaque)
        return false;
    fill_export(ret_export);
    return true;
}

static bool find(void *opaque, NbdString name, NegotiateExport *ret_export)
{
    if (name.bytes != 2 || memcmp(name.text, "e0", 2) != 0)
        return false;
    fill_export(ret_export);
    return true;
}

static const NegotiateHost host = {.next = next, .find = find};

/* Whatever was answered must be whole replies. */
static void check_replies(const StrBuf *replies, NegotiateStep step)
{
    size_t at = 0;

    if (step == NEGOTIATE_TRANSMIT && replies->length && get_be64(replies->text) != NBD_OPTION_REPLY_MAGIC)
        return; /* NBD_OPT_EXPORT_NAME */
    while (at < replies->length) {
        if (replies->length - at < NBD_OPTION_REPLY_BYTES ||
            get_be64(replies->text + at) != NBD_OPTION_REPLY_MAGIC)
            abort();
        at += NBD_OPTION_REPLY_BYTES + get_be32(replies->text + at + 16);
    }
    if (at != replies->length)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    Negotiation negotiation;
    NegotiateStep step;
    size_t at = 4;

    if (bytes < 4)
        return 0;
    negotiation_init(&negotiation, &host, NULL);
    step = negotiate_flags(&negotiation, get_be32(data));
    while (step == NEGOTIATE_NEXT && bytes - at >= NBD_OPTION_BYTES) {
        AUTO_STRBUF StrBuf replies = {0};
        uint32_t option, length;

        if (nbd_option_decode(data + at, &option, &length) < 0 || length > bytes - at - NBD_OPTION_BYTES)
            break;
        at += NBD_OPTION_BYTES;
        step = length > LIMIT_NBD_OPTION_BYTES
                   ? negotiate_long_option(&negotiation, option, &replies)
                   : negotiate_option(&negotiation, option, data + at, length, &replies);
        check_replies(&replies, step);
        at += length;
    }
    return 0;
}
