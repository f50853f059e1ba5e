/* SPDX-License-Identifier: Apache-2.0 */
/* The FUSE protocol over bytes; see fuse.h. */
#include "proto/fuse.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

#define MAX_BACKGROUND 128

static_assert(sizeof(FuseHeader) == FUSE_IN_BYTES && sizeof(FuseOutHeader) == FUSE_OUT_BYTES, "layout");
static_assert(sizeof(FuseIoIn) == FUSE_WRITE_IN_BYTES, "layout");

/* The body that a request has at least. */
static size_t body_bytes_of(uint32_t opcode)
{
    switch (opcode) {
    case FUSE_OP_INIT:
        return offsetof(FuseInitIn, flags2); /* what came later is optional */
    case FUSE_OP_SETATTR:
        return sizeof(FuseSetattrIn);
    case FUSE_OP_OPEN:
        return sizeof(FuseOpenIn);
    case FUSE_OP_READ:
    case FUSE_OP_WRITE:
        return sizeof(FuseIoIn);
    case FUSE_OP_FALLOCATE:
        return sizeof(FuseFallocateIn);
    case FUSE_OP_LSEEK:
        return sizeof(FuseLseekIn);
    case FUSE_OP_COPY_FILE_RANGE:
        return sizeof(FuseCopyIn);
    default:
        return 0;
    }
}

/* Of the others nothing in the body matters. */
static bool is_known(uint32_t opcode)
{
    return fuse_opcode_name(opcode)[0] != '?';
}

static int check_range(uint64_t offset, uint64_t bytes)
{
    return out_of_range(offset, bytes, INT64_MAX) ? -EFBIG : 0;
}

static int check_copy(const FuseCopyIn *copy)
{
    int r = check_range(copy->offset_in, copy->bytes);

    if (r == 0)
        r = check_range(copy->offset_out, copy->bytes);
    if (r < 0)
        return r;
    if (copy->flags || copy->node_out != FUSE_ROOT)
        return -EINVAL;
    if (copy->offset_in < copy->offset_out + copy->bytes && copy->offset_out < copy->offset_in + copy->bytes)
        return -EINVAL; /* they overlap */
    return 0;
}

static int check(const FuseRequest *request, size_t payload_bytes)
{
    if (request->header.opcode != FUSE_OP_WRITE && payload_bytes && body_bytes_of(request->header.opcode))
        return -EINVAL;
    switch (request->header.opcode) {
    case FUSE_OP_WRITE:
        if (request->io.bytes != payload_bytes)
            return -EINVAL;
        return payload_bytes > FUSE_PAYLOAD_BYTES ? -EINVAL : check_range(request->io.offset, payload_bytes);
    case FUSE_OP_READ:
        if (request->io.bytes > FUSE_PAYLOAD_BYTES)
            return -EINVAL;
        return check_range(request->io.offset, request->io.bytes);
    case FUSE_OP_SETATTR:
        return request->setattr.valid & FUSE_SET_SIZE ? check_range(request->setattr.size, 0) : 0;
    case FUSE_OP_FALLOCATE:
        if (!request->fallocate.bytes)
            return -EINVAL;
        return check_range(request->fallocate.offset, request->fallocate.bytes);
    case FUSE_OP_LSEEK:
        if (request->lseek.whence != SEEK_DATA && request->lseek.whence != SEEK_HOLE)
            return -EINVAL;
        return check_range(request->lseek.offset, 0) < 0 ? -ENXIO : 0;
    case FUSE_OP_COPY_FILE_RANGE:
        return check_copy(&request->copy);
    default:
        return 0;
    }
}

int fuse_header_decode(const void *data, size_t bytes, FuseHeader *ret_header)
{
    FuseHeader header;

    if (bytes < sizeof(header))
        return -EPROTO;
    memcpy(&header, data, sizeof(header));
    if (header.bytes != bytes)
        return -EPROTO;
    *ret_header = header;
    return 0;
}

int fuse_request_decode(const FuseHeader *header, const void *body, size_t body_bytes, size_t payload_bytes,
    FuseRequest *ret_request)
{
    FuseRequest request = {.header = *header};
    size_t known = header->opcode == FUSE_OP_INIT ? sizeof(FuseInitIn) : body_bytes_of(header->opcode);
    int r;

    if (!is_known(header->opcode))
        return -ENOSYS;
    if (body_bytes < body_bytes_of(header->opcode))
        return -EINVAL;
    memcpy((uint8_t *)&request + offsetof(FuseRequest, init), body, MIN(known, body_bytes));
    r = check(&request, payload_bytes);
    if (r == 0)
        *ret_request = request;
    return r;
}

int fuse_uring_decode(const FuseUringHeaders *headers, FuseHeader *ret_header, size_t *ret_body_bytes)
{
    FuseHeader header;

    memcpy(&header, headers->header, sizeof(header));
    if (header.bytes < sizeof(header) || headers->payload_bytes > header.bytes - sizeof(header))
        return -EPROTO;
    *ret_body_bytes = MIN(header.bytes - sizeof(header) - headers->payload_bytes, sizeof(headers->body));
    *ret_header = header;
    return 0;
}

bool fuse_wants_reply(uint32_t opcode)
{
    return opcode != FUSE_OP_FORGET && opcode != FUSE_OP_BATCH_FORGET && opcode != FUSE_OP_INTERRUPT;
}

const char *fuse_opcode_name(uint32_t opcode)
{
    switch (opcode) {
    case FUSE_OP_LOOKUP:
        return "lookup";
    case FUSE_OP_FORGET:
    case FUSE_OP_BATCH_FORGET:
        return "forget";
    case FUSE_OP_GETATTR:
        return "getattr";
    case FUSE_OP_SETATTR:
        return "setattr";
    case FUSE_OP_OPEN:
        return "open";
    case FUSE_OP_READ:
        return "read";
    case FUSE_OP_WRITE:
        return "write";
    case FUSE_OP_STATFS:
        return "statfs";
    case FUSE_OP_RELEASE:
        return "release";
    case FUSE_OP_FSYNC:
        return "fsync";
    case FUSE_OP_FLUSH:
        return "flush";
    case FUSE_OP_INIT:
        return "init";
    case FUSE_OP_INTERRUPT:
        return "interrupt";
    case FUSE_OP_DESTROY:
        return "destroy";
    case FUSE_OP_FALLOCATE:
        return "fallocate";
    case FUSE_OP_LSEEK:
        return "lseek";
    case FUSE_OP_COPY_FILE_RANGE:
        return "copy";
    default:
        return "?";
    }
}

int fuse_negotiate(const FuseInitIn *in, uint64_t wanted, FuseInitOut *ret_out)
{
    uint64_t offered = in->flags, agreed;

    if (in->major > FUSE_MAJOR) {
        *ret_out = (FuseInitOut){.major = FUSE_MAJOR, .minor = FUSE_MINOR};
        return 1;
    }
    if (in->major < FUSE_MAJOR || in->minor < FUSE_MINOR_OLDEST)
        return -EPROTO;
    if (offered & FUSE_CAP_INIT_EXTENDED)
        offered |= (uint64_t)in->flags2 << 32;
    agreed = offered & (wanted | FUSE_CAP_INIT_EXTENDED);
    *ret_out = (FuseInitOut){
        .major = FUSE_MAJOR,
        .minor = MIN(in->minor, (uint32_t)FUSE_MINOR),
        .max_readahead = in->max_readahead,
        .flags = (uint32_t)agreed,
        .flags2 = (uint32_t)(agreed >> 32),
        .max_background = MAX_BACKGROUND,
        .congestion_threshold = MAX_BACKGROUND / 4 * 3,
        .max_write = FUSE_PAYLOAD_BYTES,
        .max_pages = (uint16_t)(FUSE_PAYLOAD_BYTES / getpagesize()),
        .time_gran = 1,
    };
    return 0;
}

uint64_t fuse_agreed(const FuseInitOut *out)
{
    return (uint64_t)out->flags2 << 32 | out->flags;
}

FuseInvalidate fuse_invalidate_attributes(void)
{
    enum { NOTIFY_INVALIDATE_INODE = 2 };

    return (FuseInvalidate){
        .header = {.bytes = sizeof(FuseInvalidate), .error = NOTIFY_INVALIDATE_INODE},
        .node = FUSE_ROOT,
        .offset = -1,
    };
}
