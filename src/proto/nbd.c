/* SPDX-License-Identifier: Apache-2.0 */
/* The NBD protocol over bytes; see nbd.h. */
#include "proto/nbd.h"

#include "base/endian.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#define BITMAP_NAMESPACE "qemu:dirty-bitmap:"

static const char *const context_names[NBD_CONTEXT_BITMAPS] = {
    [NBD_CONTEXT_ALLOCATION] = "base:allocation",
    [NBD_CONTEXT_DEPTH] = "qemu:allocation-depth",
};

const char *nbd_context_name(unsigned context)
{
    return context < NBD_CONTEXT_BITMAPS ? context_names[context] : BITMAP_NAMESPACE;
}

const char *nbd_option_name(uint32_t option)
{
    static const char *const names[] = {
        [NBD_OPT_EXPORT_NAME] = "export name",
        [NBD_OPT_ABORT] = "abort",
        [NBD_OPT_LIST] = "list",
        [NBD_OPT_STARTTLS] = "starttls",
        [NBD_OPT_INFO] = "info",
        [NBD_OPT_GO] = "go",
        [NBD_OPT_STRUCTURED_REPLY] = "structured reply",
        [NBD_OPT_LIST_META_CONTEXT] = "list meta context",
        [NBD_OPT_SET_META_CONTEXT] = "set meta context",
        [NBD_OPT_EXTENDED_HEADERS] = "extended headers",
    };

    return option < ARRAY_SIZE(names) && names[option] ? names[option] : "<unknown>";
}

const char *nbd_command_name(uint16_t command)
{
    static const char *const names[] = {
        [NBD_CMD_READ] = "read",
        [NBD_CMD_WRITE] = "write",
        [NBD_CMD_DISC] = "disconnect",
        [NBD_CMD_FLUSH] = "flush",
        [NBD_CMD_TRIM] = "trim",
        [NBD_CMD_CACHE] = "cache",
        [NBD_CMD_WRITE_ZEROES] = "write zeroes",
        [NBD_CMD_BLOCK_STATUS] = "block status",
    };

    return command < ARRAY_SIZE(names) ? names[command] : "<unknown>";
}

uint32_t nbd_error_from_errno(int error)
{
    switch (-error) {
    case 0:
        return NBD_OK;
    case EPERM:
    case EROFS:
        return NBD_EPERM;
    case EIO:
        return NBD_EIO;
    case ENOMEM:
        return NBD_ENOMEM;
    case EDQUOT:
    case EFBIG:
    case ENOSPC:
        return NBD_ENOSPC;
    case EOVERFLOW:
        return NBD_EOVERFLOW;
    case ENOTSUP:
        return NBD_ENOTSUP;
    case ESHUTDOWN:
        return NBD_ESHUTDOWN;
    default:
        return NBD_EINVAL;
    }
}

/* ---- Handshake ---- */

void nbd_greeting_encode(uint8_t out[NBD_GREETING_BYTES])
{
    put_be64(out, NBD_MAGIC);
    put_be64(out + 8, NBD_OPTION_MAGIC);
    put_be16(out + 16, NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES);
}

int nbd_option_decode(const uint8_t data[NBD_OPTION_BYTES], uint32_t *ret_option, uint32_t *ret_bytes)
{
    if (get_be64(data) != NBD_OPTION_MAGIC)
        return -EPROTO;
    *ret_option = get_be32(data + 8);
    *ret_bytes = get_be32(data + 12);
    return 0;
}

void nbd_option_reply_encode(
    uint8_t out[NBD_OPTION_REPLY_BYTES], uint32_t option, uint32_t type, uint32_t bytes)
{
    put_be64(out, NBD_OPTION_REPLY_MAGIC);
    put_be32(out + 8, option);
    put_be32(out + 12, type);
    put_be32(out + 16, bytes);
}

/* What is left of an option's data. */
typedef struct Reader {
    const uint8_t *data;
    size_t bytes;
} Reader;

static bool read_u16(Reader *reader, uint16_t *ret_value)
{
    if (reader->bytes < 2)
        return false;
    *ret_value = get_be16(reader->data);
    reader->data += 2;
    reader->bytes -= 2;
    return true;
}

static bool read_u32(Reader *reader, uint32_t *ret_value)
{
    if (reader->bytes < 4)
        return false;
    *ret_value = get_be32(reader->data);
    reader->data += 4;
    reader->bytes -= 4;
    return true;
}

static bool read_bytes(Reader *reader, uint32_t bytes, NbdString *ret_string)
{
    if (reader->bytes < bytes)
        return false;
    *ret_string = (NbdString){(const char *)reader->data, bytes};
    reader->data += bytes;
    reader->bytes -= bytes;
    return true;
}

/* A string with its length in front. */
static NbdParse read_name(Reader *reader, NbdString *ret_name)
{
    uint32_t bytes;

    if (!read_u32(reader, &bytes))
        return NBD_PARSE_SHORT;
    if (bytes > NBD_STRING_BYTES) {
        ret_name->bytes = bytes;
        return NBD_PARSE_LONG_NAME;
    }
    if (!read_bytes(reader, bytes, ret_name))
        return NBD_PARSE_SHORT;
    return memchr(ret_name->text, 0, bytes) ? NBD_PARSE_NUL : NBD_PARSE_OK;
}

NbdParse nbd_info_option_decode(const uint8_t *data, size_t bytes, NbdInfoOption *ret_info)
{
    Reader reader = {data, bytes};
    uint16_t count, info;
    NbdParse parse;

    *ret_info = (NbdInfoOption){0};
    parse = read_name(&reader, &ret_info->name);
    if (parse != NBD_PARSE_OK)
        return parse;
    if (!read_u16(&reader, &count))
        return NBD_PARSE_SHORT;
    while (count--) {
        if (!read_u16(&reader, &info))
            return NBD_PARSE_SHORT;
        ret_info->want_name |= info == NBD_INFO_NAME;
        ret_info->want_description |= info == NBD_INFO_DESCRIPTION;
        ret_info->want_block_size |= info == NBD_INFO_BLOCK_SIZE;
    }
    return reader.bytes ? NBD_PARSE_TRAILING : NBD_PARSE_OK;
}

static bool string_is(NbdString string, const char *text)
{
    return string.bytes == strlen(text) && memcmp(string.text, text, string.bytes) == 0;
}

/* "base:" and the like: a namespace that the context's name starts with. */
static bool string_is_namespace_of(NbdString string, const char *name)
{
    size_t bytes = (size_t)(strchr(name, ':') - name) + 1;

    return string.bytes == bytes && memcmp(string.text, name, bytes) == 0;
}

static NbdContexts match_bitmaps(NbdString query, const NbdBitmapNames *bitmaps, bool wildcards)
{
    const size_t prefix = strlen(BITMAP_NAMESPACE);

    if (wildcards && (string_is(query, "qemu:") || string_is(query, BITMAP_NAMESPACE)))
        return (NBD_CONTEXT_BIT(bitmaps->count) - 1) << NBD_CONTEXT_BITMAPS;
    if (query.bytes < prefix || memcmp(query.text, BITMAP_NAMESPACE, prefix) != 0)
        return 0;
    query.text += prefix;
    query.bytes -= (uint32_t)prefix;
    for (unsigned i = 0; i < bitmaps->count; i++)
        if (string_is(query, bitmaps->names[i]))
            return NBD_CONTEXT_BIT(NBD_CONTEXT_BITMAPS + i);
    return 0;
}

static NbdContexts match_query(NbdString query, const NbdBitmapNames *bitmaps, bool wildcards)
{
    NbdContexts found = match_bitmaps(query, bitmaps, wildcards);

    for (unsigned i = 0; i < NBD_CONTEXT_BITMAPS; i++)
        if (string_is(query, context_names[i]) ||
            (wildcards && string_is_namespace_of(query, context_names[i])))
            found |= NBD_CONTEXT_BIT(i);
    return found;
}

/* A query may have any length: it is skipped if it is none that is known. */
static bool read_query(Reader *reader, NbdString *ret_query)
{
    uint32_t length;

    return read_u32(reader, &length) && read_bytes(reader, length, ret_query);
}

NbdParse nbd_meta_option_decode(const uint8_t *data, size_t bytes, NbdMetaOption *ret_meta)
{
    Reader reader = {data, bytes};
    NbdString query;
    NbdParse parse;

    *ret_meta = (NbdMetaOption){0};
    parse = read_name(&reader, &ret_meta->name);
    if (parse != NBD_PARSE_OK)
        return parse;
    if (!read_u32(&reader, &ret_meta->queries))
        return NBD_PARSE_SHORT;
    ret_meta->query_data = reader.data;
    ret_meta->query_bytes = reader.bytes;
    for (uint32_t i = 0; i < ret_meta->queries; i++)
        if (!read_query(&reader, &query))
            return NBD_PARSE_SHORT;
    return reader.bytes ? NBD_PARSE_TRAILING : NBD_PARSE_OK;
}

NbdContexts nbd_meta_option_match(const NbdMetaOption *meta, const NbdBitmapNames *bitmaps, bool wildcards)
{
    Reader reader = {meta->query_data, meta->query_bytes};
    NbdContexts found = 0;
    NbdString query;

    while (read_query(&reader, &query))
        found |= match_query(query, bitmaps, wildcards);
    return found;
}

/* ---- Requests ---- */

int nbd_request_decode(const uint8_t *data, NbdMode mode, NbdRequest *ret_request, uint32_t *ret_magic)
{
    bool extended = mode == NBD_MODE_EXTENDED;

    *ret_magic = get_be32(data);
    ret_request->flags = get_be16(data + 4);
    ret_request->type = get_be16(data + 6);
    ret_request->cookie = get_be64(data + 8);
    ret_request->offset = get_be64(data + 16);
    ret_request->bytes = extended ? get_be64(data + 24) : get_be32(data + 24);
    return *ret_magic == (extended ? NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC) ? 0 : -EPROTO;
}

static bool has_payload_flag(const NbdRequest *request, NbdMode mode)
{
    return mode == NBD_MODE_EXTENDED && (request->flags & NBD_CMD_FLAG_PAYLOAD_LEN);
}

uint64_t nbd_request_payload_bytes(const NbdRequest *request, NbdMode mode)
{
    return request->type == NBD_CMD_WRITE || has_payload_flag(request, mode) ? request->bytes : 0;
}

bool nbd_request_too_long(
    const NbdRequest *request, const NbdRequestRules *rules, char ret_text[NBD_ERROR_TEXT_BYTES])
{
    bool limited = request->type == NBD_CMD_READ || request->type == NBD_CMD_WRITE ||
                   request->type == NBD_CMD_CACHE || has_payload_flag(request, rules->mode);

    if (!limited || request->bytes <= rules->max_bytes)
        return false;
    snprintf(ret_text, NBD_ERROR_TEXT_BYTES, "len (%" PRIu64 ") is larger than max len (%" PRIu64 ")",
        request->bytes, rules->max_bytes);
    return true;
}

void nbd_status_payload_decode(
    const uint8_t *data, size_t bytes, NbdContexts negotiated, NbdStatusPayload *ret_payload)
{
    *ret_payload = (NbdStatusPayload){0};
    if (bytes < 8 || (bytes - 8) % 4 || (bytes - 8) / 4 > NBD_CONTEXT__COUNT)
        return;
    for (size_t at = 8; at < bytes; at += 4) {
        uint32_t id = get_be32(data + at);

        if (id >= NBD_CONTEXT__COUNT || !(negotiated & ~ret_payload->contexts & NBD_CONTEXT_BIT(id))) {
            ret_payload->contexts = 0;
            return;
        }
        ret_payload->contexts |= NBD_CONTEXT_BIT(id);
    }
    ret_payload->valid = true;
    ret_payload->bytes = get_be64(data);
}

static unsigned valid_flags(const NbdRequest *request, NbdMode mode)
{
    unsigned flags = NBD_CMD_FLAG_FUA;
    unsigned payload = mode == NBD_MODE_EXTENDED ? NBD_CMD_FLAG_PAYLOAD_LEN : 0;

    switch (request->type) {
    case NBD_CMD_READ:
        return flags | (mode != NBD_MODE_SIMPLE ? NBD_CMD_FLAG_DF : 0);
    case NBD_CMD_WRITE:
        return flags | payload;
    case NBD_CMD_WRITE_ZEROES:
        return flags | NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO;
    case NBD_CMD_BLOCK_STATUS:
        return flags | NBD_CMD_FLAG_REQ_ONE | payload;
    default:
        return flags;
    }
}

static bool command_writes(uint16_t type)
{
    return type == NBD_CMD_WRITE || type == NBD_CMD_TRIM || type == NBD_CMD_WRITE_ZEROES;
}

uint32_t nbd_request_check(
    const NbdRequest *request, const NbdRequestRules *rules, char ret_text[NBD_ERROR_TEXT_BYTES])
{
    if (rules->read_only && command_writes(request->type)) {
        snprintf(ret_text, NBD_ERROR_TEXT_BYTES, "Export is read-only");
    } else if (out_of_range(request->offset, request->bytes, rules->size)) {
        snprintf(ret_text, NBD_ERROR_TEXT_BYTES,
            "operation past EOF; From: %" PRIu64 ", Len: %" PRIu64 ", Size: %" PRIu64, request->offset,
            request->bytes, rules->size);
    } else if (request->flags & ~valid_flags(request, rules->mode)) {
        snprintf(ret_text, NBD_ERROR_TEXT_BYTES, "unsupported flags for command %s (got 0x%x)",
            nbd_command_name(request->type), request->flags);
    } else if (request->type > NBD_CMD_BLOCK_STATUS) {
        snprintf(ret_text, NBD_ERROR_TEXT_BYTES, "invalid request type (%u) received", request->type);
    } else if (request->type == NBD_CMD_BLOCK_STATUS && !rules->contexts) {
        snprintf(ret_text, NBD_ERROR_TEXT_BYTES, "CMD_BLOCK_STATUS not negotiated");
    } else {
        return NBD_OK;
    }
    return NBD_EINVAL;
}

/* ---- Replies ---- */

size_t nbd_simple_reply_encode(uint8_t *out, uint32_t error, uint64_t cookie)
{
    put_be32(out, NBD_SIMPLE_REPLY_MAGIC);
    put_be32(out + 4, error);
    put_be64(out + 8, cookie);
    return NBD_SIMPLE_REPLY_BYTES;
}

size_t nbd_chunk_encode(uint8_t *out, NbdMode mode, uint16_t flags, uint16_t type, uint64_t cookie,
    uint64_t offset, uint64_t bytes)
{
    bool extended = mode == NBD_MODE_EXTENDED;

    put_be32(out, extended ? NBD_EXTENDED_CHUNK_MAGIC : NBD_CHUNK_MAGIC);
    put_be16(out + 4, flags);
    put_be16(out + 6, type);
    put_be64(out + 8, cookie);
    if (!extended) {
        put_be32(out + 16, (uint32_t)bytes);
        return NBD_CHUNK_BYTES;
    }
    put_be64(out + 16, offset);
    put_be64(out + 24, bytes);
    return NBD_EXTENDED_CHUNK_BYTES;
}

static size_t request_chunk(
    uint8_t *out, const NbdRequest *request, NbdMode mode, uint16_t flags, uint16_t type, uint64_t bytes)
{
    return nbd_chunk_encode(out, mode, flags, type, request->cookie, request->offset, bytes);
}

size_t nbd_data_chunk_encode(
    uint8_t *out, const NbdRequest *request, NbdMode mode, uint16_t flags, uint64_t offset, uint64_t bytes)
{
    size_t at = request_chunk(out, request, mode, flags, NBD_CHUNK_DATA, bytes + 8);

    put_be64(out + at, offset);
    return at + 8;
}

size_t nbd_hole_chunk_encode(
    uint8_t *out, const NbdRequest *request, NbdMode mode, uint16_t flags, uint64_t offset, uint32_t bytes)
{
    size_t at = request_chunk(out, request, mode, flags, NBD_CHUNK_HOLE, 12);

    put_be64(out + at, offset);
    put_be32(out + at + 8, bytes);
    return at + 12;
}

size_t nbd_error_chunk_encode(
    uint8_t *out, const NbdRequest *request, NbdMode mode, uint32_t error, const char *text)
{
    size_t length = strnlen(text, NBD_ERROR_TEXT_BYTES);
    size_t at = request_chunk(out, request, mode, NBD_CHUNK_FLAG_DONE, NBD_CHUNK_ERROR, 6 + length);

    put_be32(out + at, error);
    put_be16(out + at + 4, (uint16_t)length);
    memcpy(out + at + 6, text, length);
    return at + 6 + length;
}

size_t nbd_status_chunk_encode(
    uint8_t *out, const NbdRequest *request, NbdMode mode, uint16_t flags, uint32_t context, uint32_t count)
{
    size_t at;

    if (mode != NBD_MODE_EXTENDED) {
        at = request_chunk(out, request, mode, flags, NBD_CHUNK_STATUS, 4 + (uint64_t)count * 8);
        put_be32(out + at, context);
        return at + 4;
    }
    at = request_chunk(out, request, mode, flags, NBD_CHUNK_STATUS_EXTENDED, 8 + (uint64_t)count * 16);
    put_be32(out + at, context);
    put_be32(out + at + 4, count);
    return at + 8;
}

size_t nbd_extent_encode(uint8_t *out, NbdMode mode, uint64_t bytes, uint64_t flags)
{
    if (mode != NBD_MODE_EXTENDED) {
        put_be32(out, (uint32_t)bytes);
        put_be32(out + 4, (uint32_t)flags);
        return 8;
    }
    put_be64(out, bytes);
    put_be64(out + 8, flags);
    return 16;
}
