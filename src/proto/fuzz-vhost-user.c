/* SPDX-License-Identifier: Apache-2.0 */
/* Requests from bytes: a byte with the number of descriptors, the header, its payload, and so on. */
#include "proto/vhost-user.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void require(bool holds)
{
    if (!holds)
        abort();
}

static void check(const VhostUserMessage *message, unsigned fds)
{
    uint8_t out[VHOST_USER_HEADER_BYTES + VHOST_USER_PAYLOAD_BYTES];

    switch (message->request) {
    case VHOST_USER_SET_MEM_TABLE:
        require(message->table.count == fds && fds <= VHOST_USER_TABLE_REGIONS);
        break;
    case VHOST_USER_SET_VRING_KICK:
    case VHOST_USER_SET_VRING_CALL:
    case VHOST_USER_SET_VRING_ERR:
        require(message->vring_fd.index <= UINT8_MAX && (fds || message->vring_fd.none));
        break;
    case VHOST_USER_GET_CONFIG:
    case VHOST_USER_SET_CONFIG:
        require(message->config.bytes <= VHOST_USER_CONFIG_BYTES);
        require(vhost_user_encode_config(out, &message->config, message->config.data) <= sizeof(out));
        break;
    case VHOST_USER_GET_INFLIGHT_FD:
        require(vhost_user_encode_inflight(out, message, &message->inflight) <= sizeof(out));
        break;
    case VHOST_USER_ADD_MEM_REG:
        require(fds == !message->confirms);
        break;
    case VHOST_USER_SET_INFLIGHT_FD:
    case VHOST_USER_SET_LOG_BASE:
    case VHOST_USER_SET_BACKEND_REQ_FD:
        require(fds == 1);
        break;
    default:
        require(fds <= 1);
    }
}

static size_t one(const uint8_t *data, size_t bytes)
{
    char text[VHOST_USER_TEXT_BYTES] = "";
    VhostUserMessage message;
    VhostUserHeader header;
    unsigned fds = data[0];

    if (bytes <= VHOST_USER_HEADER_BYTES)
        return bytes;
    if (vhost_user_header_decode(data + 1, &header, text) < 0) {
        require(strlen(text) > 0);
        return 1 + VHOST_USER_HEADER_BYTES;
    }
    bytes -= 1 + VHOST_USER_HEADER_BYTES;
    require(header.bytes <= VHOST_USER_PAYLOAD_BYTES);
    require(strcmp(vhost_user_request_name(header.request), "request") != 0);
    if (header.bytes > bytes)
        return 1 + VHOST_USER_HEADER_BYTES + bytes;
    /* A copy of that very length, so that reading behind it is seen. */
    uint8_t *copy = malloc(header.bytes ? header.bytes : 1);

    require(copy);
    memcpy(copy, data + 1 + VHOST_USER_HEADER_BYTES, header.bytes);
    if (vhost_user_payload_decode(&header, copy, fds, &message, text) == 0)
        check(&message, fds);
    else
        require(strlen(text) > 0);
    free(copy);
    return 1 + VHOST_USER_HEADER_BYTES + header.bytes;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    for (size_t at = 0; at < bytes;)
        at += one(data + at, bytes - at);
    return 0;
}
