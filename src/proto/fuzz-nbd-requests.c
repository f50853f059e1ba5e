/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests from bytes: every header is decoded in every mode, its payload taken from what follows, and
 * checked. The first byte chooses the rules.
 */
#include "proto/nbd.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static size_t one(const uint8_t *data, size_t bytes, const NbdRequestRules *rules)
{
    size_t header = nbd_request_header_bytes(rules->mode);
    char text[NBD_ERROR_TEXT_BYTES];
    uint8_t out[NBD_ERROR_CHUNK_BYTES];
    NbdRequest request;
    uint32_t magic, error;
    uint64_t payload;

    if (bytes < header)
        return bytes;
    if (nbd_request_decode(data, rules->mode, &request, &magic) < 0)
        return header;
    payload = nbd_request_payload_bytes(&request, rules->mode);
    if (nbd_request_too_long(&request, rules, text) || payload > bytes - header)
        return bytes;
    if (request.type == NBD_CMD_BLOCK_STATUS && payload) {
        NbdStatusPayload status;

        nbd_status_payload_decode(data + header, (size_t)payload, rules->contexts, &status);
        if (status.contexts & ~rules->contexts || (!status.valid && status.contexts))
            abort();
        request.bytes = status.bytes;
    }
    error = nbd_request_check(&request, rules, text);
    if (error && nbd_error_chunk_encode(out, &request, rules->mode, error, text) > sizeof(out))
        abort();
    if (!error && (request.offset > rules->size || request.bytes > rules->size - request.offset))
        abort();
    return header + (size_t)payload;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    if (!bytes)
        return 0;
    NbdRequestRules rules = {
        .mode = data[0] % 3,
        .read_only = data[0] & 4,
        .contexts = data[0] >> 3 & 7,
        .size = 1 << 20,
        .max_bytes = data[0] & 0x80 ? 4096 : 32 << 20,
    };

    for (size_t at = 1; at < bytes;)
        at += one(data + at, bytes - at, &rules);
    return 0;
}
