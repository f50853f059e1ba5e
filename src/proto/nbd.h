/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The NBD protocol (https://github.com/NetworkBlockDevice/nbd, doc/proto.md): constants, and encoding and
 * decoding of messages as pure functions over bytes. Nothing here waits, allocates or keeps state; everything
 * that is decoded comes from a peer and is checked against the length that was passed in.
 *
 * Everything on the wire is big-endian. A decoder leaves its out-parameters alone when it fails.
 */
#pragma once

#include "base/limits.h"

#include <assert.h>

#define NBD_MAGIC UINT64_C(0x4e42444d41474943)        /* "NBDMAGIC" */
#define NBD_OPTION_MAGIC UINT64_C(0x49484156454f5054) /* "IHAVEOPT" */
#define NBD_OPTION_REPLY_MAGIC UINT64_C(0x0003e889045565a9)
#define NBD_REQUEST_MAGIC UINT32_C(0x25609513)
#define NBD_EXTENDED_REQUEST_MAGIC UINT32_C(0x21e41c71)
#define NBD_SIMPLE_REPLY_MAGIC UINT32_C(0x67446698)
#define NBD_CHUNK_MAGIC UINT32_C(0x668e33ef)
#define NBD_EXTENDED_CHUNK_MAGIC UINT32_C(0x6e8a278c)

enum {
    NBD_GREETING_BYTES = 18,
    NBD_CLIENT_FLAGS_BYTES = 4,
    NBD_OPTION_BYTES = 16,
    NBD_OPTION_REPLY_BYTES = 20,
    NBD_REQUEST_BYTES = 28,
    NBD_EXTENDED_REQUEST_BYTES = 32,
    NBD_SIMPLE_REPLY_BYTES = 16,
    NBD_CHUNK_BYTES = 20,
    NBD_EXTENDED_CHUNK_BYTES = 32,
    NBD_EXPORT_NAME_REPLY_BYTES = 134, /* 10 without the padding */
    NBD_STRING_BYTES = 4096,           /* longest string ("Conventions") */
    NBD_ERROR_TEXT_BYTES = 160,        /* enough for every text made here */
};

/* Handshake flags of both sides ("Newstyle negotiation"). */
enum {
    NBD_FIXED_NEWSTYLE = 1 << 0,
    NBD_NO_ZEROES = 1 << 1,
};

/* Transmission flags. */
enum {
    NBD_FLAG_HAS_FLAGS = 1 << 0,
    NBD_FLAG_READ_ONLY = 1 << 1,
    NBD_FLAG_FLUSH = 1 << 2,
    NBD_FLAG_FUA = 1 << 3,
    NBD_FLAG_ROTATIONAL = 1 << 4,
    NBD_FLAG_TRIM = 1 << 5,
    NBD_FLAG_WRITE_ZEROES = 1 << 6,
    NBD_FLAG_DF = 1 << 7,
    NBD_FLAG_MULTI_CONN = 1 << 8,
    NBD_FLAG_RESIZE = 1 << 9,
    NBD_FLAG_CACHE = 1 << 10,
    NBD_FLAG_FAST_ZERO = 1 << 11,
    NBD_FLAG_BLOCK_STATUS_PAYLOAD = 1 << 12,
};

typedef enum NbdOption {
    NBD_OPT_EXPORT_NAME = 1,
    NBD_OPT_ABORT = 2,
    NBD_OPT_LIST = 3,
    NBD_OPT_STARTTLS = 5,
    NBD_OPT_INFO = 6,
    NBD_OPT_GO = 7,
    NBD_OPT_STRUCTURED_REPLY = 8,
    NBD_OPT_LIST_META_CONTEXT = 9,
    NBD_OPT_SET_META_CONTEXT = 10,
    NBD_OPT_EXTENDED_HEADERS = 11,
} NbdOption;

#define NBD_REP_ERROR(n) (UINT32_C(1) << 31 | (n))
#define NBD_REP_ACK UINT32_C(1)
#define NBD_REP_SERVER UINT32_C(2)
#define NBD_REP_INFO UINT32_C(3)
#define NBD_REP_META_CONTEXT UINT32_C(4)
#define NBD_REP_ERR_UNSUP NBD_REP_ERROR(1)
#define NBD_REP_ERR_POLICY NBD_REP_ERROR(2)
#define NBD_REP_ERR_INVALID NBD_REP_ERROR(3)
#define NBD_REP_ERR_UNKNOWN NBD_REP_ERROR(6)
#define NBD_REP_ERR_SHUTDOWN NBD_REP_ERROR(7)
#define NBD_REP_ERR_BLOCK_SIZE_REQD NBD_REP_ERROR(8)
#define NBD_REP_ERR_TOO_BIG NBD_REP_ERROR(9)
#define NBD_REP_ERR_EXT_HEADER_REQD NBD_REP_ERROR(10)

enum {
    NBD_INFO_EXPORT = 0,
    NBD_INFO_NAME = 1,
    NBD_INFO_DESCRIPTION = 2,
    NBD_INFO_BLOCK_SIZE = 3,
};

typedef enum NbdCommand {
    NBD_CMD_READ = 0,
    NBD_CMD_WRITE = 1,
    NBD_CMD_DISC = 2,
    NBD_CMD_FLUSH = 3,
    NBD_CMD_TRIM = 4,
    NBD_CMD_CACHE = 5,
    NBD_CMD_WRITE_ZEROES = 6,
    NBD_CMD_BLOCK_STATUS = 7,
} NbdCommand;

enum {
    NBD_CMD_FLAG_FUA = 1 << 0,
    NBD_CMD_FLAG_NO_HOLE = 1 << 1,
    NBD_CMD_FLAG_DF = 1 << 2,
    NBD_CMD_FLAG_REQ_ONE = 1 << 3,
    NBD_CMD_FLAG_FAST_ZERO = 1 << 4,
    NBD_CMD_FLAG_PAYLOAD_LEN = 1 << 5,
};

enum {
    NBD_CHUNK_FLAG_DONE = 1 << 0,
};

enum {
    NBD_CHUNK_NONE = 0,
    NBD_CHUNK_DATA = 1,
    NBD_CHUNK_HOLE = 2,
    NBD_CHUNK_STATUS = 5,
    NBD_CHUNK_STATUS_EXTENDED = 6,
    NBD_CHUNK_ERROR = 0x8001,
};

/* Values of the error field ("Error values"); they equal Linux's on the architectures that matter, but not by
 * right. */
enum {
    NBD_OK = 0,
    NBD_EPERM = 1,
    NBD_EIO = 5,
    NBD_ENOMEM = 12,
    NBD_EINVAL = 22,
    NBD_ENOSPC = 28,
    NBD_EOVERFLOW = 75,
    NBD_ENOTSUP = 95,
    NBD_ESHUTDOWN = 108,
};

/* Block status flags of the context base:allocation. */
enum {
    NBD_STATE_HOLE = 1 << 0,
    NBD_STATE_ZERO = 1 << 1,
    NBD_STATE_DIRTY = 1 << 0, /* of a dirty bitmap */
};

/* What the two sides have agreed on for replies. */
typedef enum NbdMode {
    NBD_MODE_SIMPLE,
    NBD_MODE_STRUCTURED,
    NBD_MODE_EXTENDED,
} NbdMode;

/* The contexts that this server knows, by their id on the wire; a set is a mask of bits. */
typedef enum NbdContext {
    NBD_CONTEXT_ALLOCATION,
    NBD_CONTEXT_DEPTH,
    NBD_CONTEXT_BITMAPS, /* the first of the export's dirty bitmaps */
    NBD_CONTEXT__COUNT = NBD_CONTEXT_BITMAPS + LIMIT_NBD_BITMAPS,
} NbdContext;

typedef uint64_t NbdContexts;
#define NBD_CONTEXT_BIT(context) (UINT64_C(1) << (context))
static_assert(NBD_CONTEXT__COUNT <= 64, "a mask has a bit for each context");

/* Names of an export's dirty bitmaps, which are the names of its contexts behind "qemu:dirty-bitmap:". */
typedef struct NbdBitmapNames {
    const char *const *names;
    unsigned count;
} NbdBitmapNames;

/* Of a dirty bitmap's context: what comes before the bitmap's name. */
const char *nbd_context_name(unsigned context);
const char *nbd_option_name(uint32_t option);
const char *nbd_command_name(uint16_t command);
/* The error value for a negative errno, 0 for 0. */
uint32_t nbd_error_from_errno(int error);

/* ---- Handshake ---- */

void nbd_greeting_encode(uint8_t out[NBD_GREETING_BYTES]);
/* The option's number and the length of its data; -EPROTO if the magic is wrong. */
int nbd_option_decode(
    const uint8_t data[NBD_OPTION_BYTES], uint32_t *ret_option, uint32_t *ret_bytes) MUST_CHECK;
void nbd_option_reply_encode(
    uint8_t out[NBD_OPTION_REPLY_BYTES], uint32_t option, uint32_t type, uint32_t bytes);

/* A part of the option's data; not NUL-terminated. */
typedef struct NbdString {
    const char *text;
    uint32_t bytes;
} NbdString;

/* What went wrong with an option's data; each has its own text in the reply. */
typedef enum NbdParse {
    NBD_PARSE_OK,
    NBD_PARSE_SHORT,    /* lengths inside do not fit the length of the whole */
    NBD_PARSE_TRAILING, /* bytes after the end */
    NBD_PARSE_LONG_NAME,
    NBD_PARSE_NUL,
} NbdParse;

/* Data of NBD_OPT_INFO and NBD_OPT_GO. */
typedef struct NbdInfoOption {
    NbdString name;
    bool want_name, want_description, want_block_size;
} NbdInfoOption;

/* name.bytes is set for NBD_PARSE_LONG_NAME, too. */
NbdParse nbd_info_option_decode(const uint8_t *data, size_t bytes, NbdInfoOption *ret_info);

/* Data of NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT. */
typedef struct NbdMetaOption {
    NbdString name;
    uint32_t queries; /* 0 in a LIST: all */
    const uint8_t *query_data;
    size_t query_bytes;
} NbdMetaOption;

NbdParse nbd_meta_option_decode(const uint8_t *data, size_t bytes, NbdMetaOption *ret_meta);
/* The contexts that a query names or, with wildcards ("base:", "qemu:", "qemu:dirty-bitmap:"), matches. */
NbdContexts nbd_meta_option_match(
    const NbdMetaOption *meta, const NbdBitmapNames *bitmaps, bool wildcards) MUST_CHECK;

/* ---- Requests ---- */

typedef struct NbdRequest {
    uint16_t flags;
    uint16_t type;
    uint64_t cookie;
    uint64_t offset;
    uint64_t
        bytes; /* of the range; for a request with a payload of another kind first the payload's length */
} NbdRequest;

static inline unsigned nbd_request_header_bytes(NbdMode mode)
{
    return mode == NBD_MODE_EXTENDED ? NBD_EXTENDED_REQUEST_BYTES : NBD_REQUEST_BYTES;
}

/*
 * Decodes the header that starts at data (nbd_request_header_bytes() long). Returns -EPROTO if the magic is
 * wrong; the other fields are filled in nevertheless and *ret_magic says what was there.
 */
int nbd_request_decode(
    const uint8_t *data, NbdMode mode, NbdRequest *ret_request, uint32_t *ret_magic) MUST_CHECK;

/* How many bytes of payload follow the header. May be any number; check it against the limits before use. */
uint64_t nbd_request_payload_bytes(const NbdRequest *request, NbdMode mode);

/* What a request is checked against. */
typedef struct NbdRequestRules {
    NbdMode mode;
    bool read_only;
    NbdContexts contexts; /* negotiated */
    uint64_t size;        /* of the export */
    uint64_t max_bytes;   /* of a read, write, cache request and of a payload that is skipped */
} NbdRequestRules;

/* Contexts and range of a block status request with payload; request->bytes becomes the range's length. */
typedef struct NbdStatusPayload {
    bool valid;
    NbdContexts contexts; /* to report, a subset of the negotiated ones */
    uint64_t bytes;
} NbdStatusPayload;

void nbd_status_payload_decode(
    const uint8_t *data, size_t bytes, NbdContexts negotiated, NbdStatusPayload *ret_payload);

/*
 * Checks a request that was received completely (the payload of a block status request has been put into
 * request->bytes). Returns NBD_OK, or the error to reply with its text in ret_text.
 */
uint32_t nbd_request_check(
    const NbdRequest *request, const NbdRequestRules *rules, char ret_text[NBD_ERROR_TEXT_BYTES]);
/*
 * The part of the check that must precede the payload: true when the request is larger than allowed and
 * nothing of its payload will be used. The error's text is in ret_text.
 */
bool nbd_request_too_long(
    const NbdRequest *request, const NbdRequestRules *rules, char ret_text[NBD_ERROR_TEXT_BYTES]);

/* ---- Replies. Each returns how many bytes it has written. ---- */

size_t nbd_simple_reply_encode(uint8_t *out, uint32_t error, uint64_t cookie);
/* offset is the request's and goes into extended headers only; bytes is the payload's length. */
size_t nbd_chunk_encode(uint8_t *out, NbdMode mode, uint16_t flags, uint16_t type, uint64_t cookie,
    uint64_t offset, uint64_t bytes);
/* Header and the chunk's own offset in front of the data: NBD_DATA_CHUNK_BYTES at most. */
size_t nbd_data_chunk_encode(
    uint8_t *out, const NbdRequest *request, NbdMode mode, uint16_t flags, uint64_t offset, uint64_t bytes);
size_t nbd_hole_chunk_encode(
    uint8_t *out, const NbdRequest *request, NbdMode mode, uint16_t flags, uint64_t offset, uint32_t bytes);
/* The text is cut at NBD_ERROR_TEXT_BYTES. */
size_t nbd_error_chunk_encode(
    uint8_t *out, const NbdRequest *request, NbdMode mode, uint32_t error, const char *text);
/* Header and context id (and count) of a block status chunk with `count` extents. */
size_t nbd_status_chunk_encode(
    uint8_t *out, const NbdRequest *request, NbdMode mode, uint16_t flags, uint32_t context, uint32_t count);
/* One extent of a block status chunk; lengths beyond 32 bits only in extended mode. */
size_t nbd_extent_encode(uint8_t *out, NbdMode mode, uint64_t bytes, uint64_t flags);

enum {
    NBD_DATA_CHUNK_BYTES = NBD_EXTENDED_CHUNK_BYTES + 8,
    NBD_HOLE_CHUNK_BYTES = NBD_EXTENDED_CHUNK_BYTES + 12,
    NBD_STATUS_CHUNK_BYTES = NBD_EXTENDED_CHUNK_BYTES + 8,
    NBD_ERROR_CHUNK_BYTES = NBD_EXTENDED_CHUNK_BYTES + 6 + NBD_ERROR_TEXT_BYTES,
    NBD_EXTENT_BYTES = 16,
};
