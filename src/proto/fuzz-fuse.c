/* SPDX-License-Identifier: Apache-2.0 */
/* Decoding of FUSE requests: whatever passes keeps what the decoder promises. */
#include "proto/fuse.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void require(bool condition)
{
    if (!condition)
        abort();
}

static void require_range(uint64_t offset, uint64_t bytes)
{
    require(offset <= INT64_MAX && bytes <= INT64_MAX - offset);
}

static void check(const FuseRequest *request, size_t payload_bytes)
{
    const FuseCopyIn *copy = &request->copy;

    switch (request->header.opcode) {
    case FUSE_OP_WRITE:
        require(request->io.bytes == payload_bytes);
        __attribute__((fallthrough));
    case FUSE_OP_READ:
        require(request->io.bytes <= FUSE_PAYLOAD_BYTES);
        require_range(request->io.offset, request->io.bytes);
        break;
    case FUSE_OP_FALLOCATE:
        require(request->fallocate.bytes);
        require_range(request->fallocate.offset, request->fallocate.bytes);
        break;
    case FUSE_OP_LSEEK:
        require_range(request->lseek.offset, 0);
        break;
    case FUSE_OP_COPY_FILE_RANGE:
        require_range(copy->offset_in, copy->bytes);
        require_range(copy->offset_out, copy->bytes);
        require(!copy->bytes || copy->offset_in != copy->offset_out);
        break;
    default:
        break;
    }
}

static void negotiate(const FuseInitIn *in, uint64_t wanted)
{
    FuseInitOut out;

    if (fuse_negotiate(in, wanted, &out) == 0)
        require(out.major == FUSE_MAJOR && out.minor <= in->minor &&
                !(fuse_agreed(&out) & ~(wanted | FUSE_CAP_INIT_EXTENDED)));
}

static void body(const FuseHeader *header, const uint8_t *data, size_t bytes, size_t payload_bytes)
{
    uint8_t *copy = malloc(bytes + 1); /* ends where the bytes end */
    FuseRequest request;

    memcpy(copy + 1, data, bytes);
    if (fuse_request_decode(header, copy + 1, bytes, payload_bytes, &request) == 0) {
        check(&request, payload_bytes);
        if (header->opcode == FUSE_OP_INIT)
            negotiate(&request.init, header->unique);
    }
    free(copy);
}

static void over_io_uring(const uint8_t *data, size_t bytes)
{
    FuseUringHeaders headers = {0};
    FuseHeader header;
    size_t body_bytes;

    memcpy(&headers, data, bytes < sizeof(headers) ? bytes : sizeof(headers));
    if (fuse_uring_decode(&headers, &header, &body_bytes) < 0)
        return;
    require(body_bytes <= sizeof(headers.body));
    body(&header, headers.body, body_bytes, headers.payload_bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    FuseHeader header;

    if (bytes < sizeof(header))
        return 0;
    over_io_uring(data, bytes);
    if (fuse_header_decode(data, bytes, &header) < 0) {
        memcpy(&header, data, sizeof(header)); /* go on with what else may be wrong */
        body(&header, data + sizeof(header), bytes - sizeof(header), header.pid);
        return 0;
    }
    body(&header, data + sizeof(header), bytes - sizeof(header), 0);
    return 0;
}
