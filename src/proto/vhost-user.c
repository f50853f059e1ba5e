/* SPDX-License-Identifier: Apache-2.0 */
/* The vhost-user protocol over bytes; see vhost-user.h. */
#include "proto/vhost-user.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define FLAG_VERSION_MASK UINT32_C(3)
#define FLAG_VERSION UINT32_C(1)
#define FLAG_REPLY (UINT32_C(1) << 2)
#define FLAG_NEED_REPLY (UINT32_C(1) << 3)
#define VRING_INDEX_MASK UINT64_C(0xff)
#define VRING_NO_FD (UINT64_C(1) << 8)
#define VRING_ADDRESS_LOG UINT32_C(1)

/* The lengths of what a payload consists of. */
enum {
    TABLE_HEADER_BYTES = 8,
    REGION_BYTES = 32,
    INFLIGHT_BYTES = 20,
    INFLIGHT_PADDED_BYTES = 24,
};

typedef enum PayloadKind {
    PAYLOAD_NONE,
    PAYLOAD_NUMBER,
    PAYLOAD_VRING,
    PAYLOAD_ADDRESS,
    PAYLOAD_VRING_FD,
    PAYLOAD_TABLE,
    PAYLOAD_REGION,
    PAYLOAD_NEW_REGION, /* or a zero that confirms */
    PAYLOAD_AREA,
    PAYLOAD_CONFIG,
    PAYLOAD_INFLIGHT,
} PayloadKind;

static const struct {
    uint16_t min, max;
} payload_bytes[] = {
    [PAYLOAD_NONE] = {0, 0},
    [PAYLOAD_NUMBER] = {8, 8},
    [PAYLOAD_VRING] = {8, 8},
    [PAYLOAD_ADDRESS] = {40, 40},
    [PAYLOAD_VRING_FD] = {8, 8},
    /* Some front ends send the whole array, whatever the count. */
    [PAYLOAD_TABLE] = {TABLE_HEADER_BYTES, TABLE_HEADER_BYTES + VHOST_USER_TABLE_REGIONS *REGION_BYTES},
    [PAYLOAD_REGION] = {8 + REGION_BYTES, 8 + REGION_BYTES},
    [PAYLOAD_NEW_REGION] = {8, 8 + REGION_BYTES},
    [PAYLOAD_AREA] = {16, 16},
    [PAYLOAD_CONFIG] = {VHOST_USER_CONFIG_HEADER_BYTES, VHOST_USER_PAYLOAD_BYTES},
    [PAYLOAD_INFLIGHT] = {INFLIGHT_BYTES, INFLIGHT_PADDED_BYTES},
};

typedef struct Rule {
    const char *name;
    PayloadKind payload;
    uint8_t min_fds, max_fds; /* where the payload does not say it */
} Rule;

static const Rule rules[] = {
    [VHOST_USER_GET_FEATURES] = {.name = "GET_FEATURES"},
    [VHOST_USER_SET_FEATURES] = {"SET_FEATURES", PAYLOAD_NUMBER, 0, 0},
    [VHOST_USER_SET_OWNER] = {.name = "SET_OWNER"},
    [VHOST_USER_RESET_OWNER] = {.name = "RESET_OWNER"},
    [VHOST_USER_SET_MEM_TABLE] = {"SET_MEM_TABLE", PAYLOAD_TABLE, 0, VHOST_USER_TABLE_REGIONS},
    [VHOST_USER_SET_LOG_BASE] = {"SET_LOG_BASE", PAYLOAD_AREA, 1, 1},
    [VHOST_USER_SET_LOG_FD] = {"SET_LOG_FD", PAYLOAD_NONE, 0, 1},
    [VHOST_USER_SET_VRING_NUM] = {"SET_VRING_NUM", PAYLOAD_VRING, 0, 0},
    [VHOST_USER_SET_VRING_ADDR] = {"SET_VRING_ADDR", PAYLOAD_ADDRESS, 0, 0},
    [VHOST_USER_SET_VRING_BASE] = {"SET_VRING_BASE", PAYLOAD_VRING, 0, 0},
    [VHOST_USER_GET_VRING_BASE] = {"GET_VRING_BASE", PAYLOAD_VRING, 0, 0},
    [VHOST_USER_SET_VRING_KICK] = {"SET_VRING_KICK", PAYLOAD_VRING_FD, 0, 1},
    [VHOST_USER_SET_VRING_CALL] = {"SET_VRING_CALL", PAYLOAD_VRING_FD, 0, 1},
    [VHOST_USER_SET_VRING_ERR] = {"SET_VRING_ERR", PAYLOAD_VRING_FD, 0, 1},
    [VHOST_USER_GET_PROTOCOL_FEATURES] = {.name = "GET_PROTOCOL_FEATURES"},
    [VHOST_USER_SET_PROTOCOL_FEATURES] = {"SET_PROTOCOL_FEATURES", PAYLOAD_NUMBER, 0, 0},
    [VHOST_USER_GET_QUEUE_NUM] = {.name = "GET_QUEUE_NUM"},
    [VHOST_USER_SET_VRING_ENABLE] = {"SET_VRING_ENABLE", PAYLOAD_VRING, 0, 0},
    [VHOST_USER_SET_BACKEND_REQ_FD] = {"SET_BACKEND_REQ_FD", PAYLOAD_NONE, 1, 1},
    [VHOST_USER_GET_CONFIG] = {"GET_CONFIG", PAYLOAD_CONFIG, 0, 0},
    [VHOST_USER_SET_CONFIG] = {"SET_CONFIG", PAYLOAD_CONFIG, 0, 0},
    [VHOST_USER_POSTCOPY_ADVISE] = {.name = "POSTCOPY_ADVISE"},
    [VHOST_USER_POSTCOPY_LISTEN] = {.name = "POSTCOPY_LISTEN"},
    [VHOST_USER_POSTCOPY_END] = {.name = "POSTCOPY_END"},
    [VHOST_USER_GET_INFLIGHT_FD] = {"GET_INFLIGHT_FD", PAYLOAD_INFLIGHT, 0, 0},
    [VHOST_USER_SET_INFLIGHT_FD] = {"SET_INFLIGHT_FD", PAYLOAD_INFLIGHT, 1, 1},
    [VHOST_USER_GET_MAX_MEM_SLOTS] = {.name = "GET_MAX_MEM_SLOTS"},
    [VHOST_USER_ADD_MEM_REG] = {"ADD_MEM_REG", PAYLOAD_NEW_REGION, 0, 1},
    [VHOST_USER_REM_MEM_REG] = {"REM_MEM_REG", PAYLOAD_REGION, 0, 1}, /* older front ends pass one */
    [VHOST_USER_SET_STATUS] = {"SET_STATUS", PAYLOAD_NUMBER, 0, 0},
    [VHOST_USER_GET_STATUS] = {.name = "GET_STATUS"},
};

static const Rule *find_rule(uint32_t request)
{
    return request < ARRAY_SIZE(rules) && rules[request].name ? &rules[request] : NULL;
}

const char *vhost_user_request_name(uint32_t request)
{
    const Rule *rule = find_rule(request);

    return rule ? rule->name : "request";
}

/* ---- Bytes ---- */

static uint32_t get32(const uint8_t *at)
{
    uint32_t value;

    memcpy(&value, at, sizeof(value));
    return value;
}

static uint64_t get64(const uint8_t *at)
{
    uint64_t value;

    memcpy(&value, at, sizeof(value));
    return value;
}

static void put32(uint8_t *at, uint32_t value)
{
    memcpy(at, &value, sizeof(value));
}

static void put64(uint8_t *at, uint64_t value)
{
    memcpy(at, &value, sizeof(value));
}

/* ---- Decoding ---- */

uint32_t vhost_user_header_request(const uint8_t data[VHOST_USER_HEADER_BYTES])
{
    return get32(data);
}

int vhost_user_header_decode(const uint8_t data[VHOST_USER_HEADER_BYTES], VhostUserHeader *ret_header,
    char text[VHOST_USER_TEXT_BYTES])
{
    uint32_t request = get32(data), flags = get32(data + 4), bytes = get32(data + 8), min, max;
    const Rule *rule = find_rule(request);

    if ((flags & FLAG_VERSION_MASK) != FLAG_VERSION || flags & FLAG_REPLY) {
        snprintf(text, VHOST_USER_TEXT_BYTES, "flags 0x%" PRIx32 " are not those of a request of version 1",
            flags);
        return -EPROTO;
    }
    if (!rule) {
        snprintf(text, VHOST_USER_TEXT_BYTES, "number %" PRIu32 " is not known", request);
        return -EPROTO;
    }
    min = payload_bytes[rule->payload].min;
    max = payload_bytes[rule->payload].max;
    if (bytes < min || bytes > max) {
        snprintf(text, VHOST_USER_TEXT_BYTES, "%" PRIu32 " bytes of payload; it has %" PRIu32 "%s", bytes,
            min, max > min ? " or more" : "");
        return -EPROTO;
    }
    *ret_header =
        (VhostUserHeader){.request = request, .bytes = bytes, .need_reply = flags & FLAG_NEED_REPLY};
    return 0;
}

static VhostUserRegion decode_region(const uint8_t *at)
{
    return (VhostUserRegion){
        .guest = get64(at), .bytes = get64(at + 8), .user = get64(at + 16), .file_offset = get64(at + 24)};
}

static int decode_table(const VhostUserHeader *header, const uint8_t *payload, unsigned fds,
    VhostUserTable *ret_table, char *text)
{
    uint32_t count = get32(payload);

    if (count > (header->bytes - TABLE_HEADER_BYTES) / REGION_BYTES) {
        snprintf(text, VHOST_USER_TEXT_BYTES,
            "%" PRIu32 " regions do not fit into %" PRIu32 " bytes of payload", count, header->bytes);
        return -EPROTO;
    }
    if (count != fds) {
        snprintf(text, VHOST_USER_TEXT_BYTES, "%u descriptors came with %" PRIu32 " regions", fds, count);
        return -EPROTO;
    }
    ret_table->count = count;
    for (uint32_t i = 0; i < count; i++)
        ret_table->regions[i] = decode_region(payload + TABLE_HEADER_BYTES + i * REGION_BYTES);
    return 0;
}

static int decode_new_region(const VhostUserHeader *header, const uint8_t *payload, unsigned fds,
    VhostUserMessage *message, char *text)
{
    bool whole = header->bytes == 8 + REGION_BYTES;

    message->confirms = header->bytes == 8 && !fds && get64(payload) == 0;
    if (!message->confirms && !(whole && fds)) {
        snprintf(text, VHOST_USER_TEXT_BYTES,
            "%u descriptors came with %" PRIu32 " bytes of payload; it has 1 with %d", fds, header->bytes,
            8 + REGION_BYTES);
        return -EPROTO;
    }
    if (whole)
        message->region = decode_region(payload + 8); /* behind padding */
    return 0;
}

static int decode_vring_fd(const uint8_t *payload, unsigned fds, VhostUserVringFd *ret_vring_fd, char *text)
{
    uint64_t number = get64(payload);
    bool none = number & VRING_NO_FD;

    if (!none && !fds) {
        snprintf(text, VHOST_USER_TEXT_BYTES, "no descriptor came with it");
        return -EPROTO;
    }
    *ret_vring_fd = (VhostUserVringFd){.index = (uint32_t)(number & VRING_INDEX_MASK), .none = none};
    return 0;
}

static int decode_config(
    const VhostUserHeader *header, const uint8_t *payload, VhostUserConfig *ret_config, char *text)
{
    uint32_t bytes = get32(payload + 4), there = header->bytes - VHOST_USER_CONFIG_HEADER_BYTES;

    /* What is asked for need not come along as empty bytes, but what is to be set must. */
    if (bytes > VHOST_USER_CONFIG_BYTES || (header->request == VHOST_USER_SET_CONFIG && bytes > there)) {
        snprintf(text, VHOST_USER_TEXT_BYTES,
            "%" PRIu32 " bytes of configuration in %" PRIu32 " bytes of payload", bytes, header->bytes);
        return -EPROTO;
    }
    ret_config->offset = get32(payload);
    ret_config->bytes = bytes;
    ret_config->flags = get32(payload + 8);
    memcpy(ret_config->data, payload + VHOST_USER_CONFIG_HEADER_BYTES, MIN(bytes, there));
    return 0;
}

static VhostUserVringAddress decode_address(const uint8_t *payload)
{
    return (VhostUserVringAddress){
        .index = get32(payload),
        .log = get32(payload + 4) & VRING_ADDRESS_LOG,
        .descriptors = get64(payload + 8),
        .used = get64(payload + 16),
        .available = get64(payload + 24),
        .log_guest = get64(payload + 32),
    };
}

static VhostUserInflight decode_inflight(const uint8_t *payload)
{
    VhostUserInflight inflight = {.bytes = get64(payload), .file_offset = get64(payload + 8)};

    memcpy(&inflight.queues, payload + 16, sizeof(inflight.queues));
    memcpy(&inflight.queue_size, payload + 18, sizeof(inflight.queue_size));
    return inflight;
}

static int decode_into(const VhostUserHeader *header, PayloadKind kind, const uint8_t *payload, unsigned fds,
    VhostUserMessage *message, char *text)
{
    switch (kind) {
    case PAYLOAD_NONE:
        break;
    case PAYLOAD_NUMBER:
        message->number = get64(payload);
        break;
    case PAYLOAD_VRING:
        message->vring = (VhostUserVring){.index = get32(payload), .value = get32(payload + 4)};
        break;
    case PAYLOAD_ADDRESS:
        message->address = decode_address(payload);
        break;
    case PAYLOAD_VRING_FD:
        return decode_vring_fd(payload, fds, &message->vring_fd, text);
    case PAYLOAD_TABLE:
        message->confirms = header->bytes == TABLE_HEADER_BYTES && get64(payload) == 0;
        return decode_table(header, payload, fds, &message->table, text);
    case PAYLOAD_NEW_REGION:
        return decode_new_region(header, payload, fds, message, text);
    case PAYLOAD_REGION:
        message->region = decode_region(payload + 8); /* behind padding */
        break;
    case PAYLOAD_AREA:
        message->area = (VhostUserArea){.bytes = get64(payload), .file_offset = get64(payload + 8)};
        break;
    case PAYLOAD_CONFIG:
        return decode_config(header, payload, &message->config, text);
    case PAYLOAD_INFLIGHT:
        message->inflight = decode_inflight(payload);
        break;
    }
    return 0;
}

int vhost_user_payload_decode(const VhostUserHeader *header, const uint8_t *payload, unsigned fds,
    VhostUserMessage *ret_message, char text[VHOST_USER_TEXT_BYTES])
{
    const Rule *rule = &rules[header->request];
    VhostUserMessage message = {
        .request = header->request, .need_reply = header->need_reply, .bytes = header->bytes};
    int r;

    if (fds < rule->min_fds || fds > rule->max_fds) {
        snprintf(text, VHOST_USER_TEXT_BYTES, "%u descriptors came with it; it has %u%s", fds, rule->min_fds,
            rule->max_fds > rule->min_fds ? " or more" : "");
        return -EPROTO;
    }
    r = decode_into(header, rule->payload, payload, fds, &message, text);
    if (r == 0)
        *ret_message = message;
    return r;
}

/* ---- Encoding ---- */

static size_t put_header(uint8_t *out, uint32_t request, uint32_t flags, size_t bytes)
{
    put32(out, request);
    put32(out + 4, FLAG_VERSION | flags);
    put32(out + 8, (uint32_t)bytes);
    return VHOST_USER_HEADER_BYTES + bytes;
}

size_t vhost_user_encode_number(uint8_t *out, uint32_t request, uint64_t number)
{
    put64(out + VHOST_USER_HEADER_BYTES, number);
    return put_header(out, request, FLAG_REPLY, 8);
}

size_t vhost_user_encode_empty(uint8_t *out, uint32_t request)
{
    return put_header(out, request, FLAG_REPLY, 0);
}

size_t vhost_user_encode_vring(uint8_t *out, uint32_t request, const VhostUserVring *vring)
{
    put32(out + VHOST_USER_HEADER_BYTES, vring->index);
    put32(out + VHOST_USER_HEADER_BYTES + 4, vring->value);
    return put_header(out, request, FLAG_REPLY, 8);
}

size_t vhost_user_encode_config(uint8_t *out, const VhostUserConfig *config, const uint8_t *data)
{
    uint8_t *payload = out + VHOST_USER_HEADER_BYTES;

    put32(payload, config->offset);
    put32(payload + 4, config->bytes);
    put32(payload + 8, config->flags);
    memcpy(payload + VHOST_USER_CONFIG_HEADER_BYTES, data, config->bytes);
    return put_header(out, VHOST_USER_GET_CONFIG, FLAG_REPLY, VHOST_USER_CONFIG_HEADER_BYTES + config->bytes);
}

size_t vhost_user_encode_inflight(
    uint8_t *out, const VhostUserMessage *request, const VhostUserInflight *inflight)
{
    uint8_t *payload = out + VHOST_USER_HEADER_BYTES;

    memset(payload, 0, INFLIGHT_PADDED_BYTES);
    put64(payload, inflight->bytes);
    put64(payload + 8, inflight->file_offset);
    memcpy(payload + 16, &inflight->queues, sizeof(inflight->queues));
    memcpy(payload + 18, &inflight->queue_size, sizeof(inflight->queue_size));
    return put_header(out, request->request, FLAG_REPLY, request->bytes);
}

static void put_region(uint8_t *at, const VhostUserRegion *region)
{
    put64(at, region->guest);
    put64(at + 8, region->bytes);
    put64(at + 16, region->user);
    put64(at + 24, region->file_offset);
}

size_t vhost_user_encode_table(uint8_t *out, const VhostUserTable *table)
{
    uint8_t *payload = out + VHOST_USER_HEADER_BYTES;

    put32(payload, table->count);
    put32(payload + 4, 0);
    for (unsigned i = 0; i < table->count; i++)
        put_region(payload + TABLE_HEADER_BYTES + i * REGION_BYTES, &table->regions[i]);
    return put_header(
        out, VHOST_USER_SET_MEM_TABLE, FLAG_REPLY, TABLE_HEADER_BYTES + table->count * REGION_BYTES);
}

size_t vhost_user_encode_region(uint8_t *out, const VhostUserRegion *region)
{
    put64(out + VHOST_USER_HEADER_BYTES, 0);
    put_region(out + VHOST_USER_HEADER_BYTES + 8, region);
    return put_header(out, VHOST_USER_ADD_MEM_REG, FLAG_REPLY, 8 + REGION_BYTES);
}

size_t vhost_user_encode_backend_request(uint8_t *out, uint32_t request)
{
    return put_header(out, request, 0, 0);
}
