/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The vhost-user protocol (QEMU docs/interop/vhost-user.rst) from the side of a back end: which requests
 * there are, how long they may be and how many descriptors go with them, and decoding and encoding as pure
 * functions over bytes.
 *
 * Numbers are in the machine's own byte order, because both ends run on one machine. A decoder leaves its
 * out-parameters alone when it fails, and says in `text` what was wrong, without naming the request.
 */
#pragma once

#include "base/macros.h"

enum {
    VHOST_USER_HEADER_BYTES = 12,
    VHOST_USER_TABLE_REGIONS = 8, /* most regions of one SET_MEM_TABLE, and most descriptors of any message */
    VHOST_USER_CONFIG_BYTES = 256, /* largest configuration space */
    VHOST_USER_CONFIG_HEADER_BYTES = 12,
    VHOST_USER_PAYLOAD_BYTES = VHOST_USER_CONFIG_HEADER_BYTES + VHOST_USER_CONFIG_BYTES, /* largest of all */
    VHOST_USER_TEXT_BYTES = 160, /* enough for every text made here */
};

typedef enum VhostUserRequest {
    VHOST_USER_GET_FEATURES = 1,
    VHOST_USER_SET_FEATURES = 2,
    VHOST_USER_SET_OWNER = 3,
    VHOST_USER_RESET_OWNER = 4,
    VHOST_USER_SET_MEM_TABLE = 5,
    VHOST_USER_SET_LOG_BASE = 6,
    VHOST_USER_SET_LOG_FD = 7,
    VHOST_USER_SET_VRING_NUM = 8,
    VHOST_USER_SET_VRING_ADDR = 9,
    VHOST_USER_SET_VRING_BASE = 10,
    VHOST_USER_GET_VRING_BASE = 11,
    VHOST_USER_SET_VRING_KICK = 12,
    VHOST_USER_SET_VRING_CALL = 13,
    VHOST_USER_SET_VRING_ERR = 14,
    VHOST_USER_GET_PROTOCOL_FEATURES = 15,
    VHOST_USER_SET_PROTOCOL_FEATURES = 16,
    VHOST_USER_GET_QUEUE_NUM = 17,
    VHOST_USER_SET_VRING_ENABLE = 18,
    VHOST_USER_SET_BACKEND_REQ_FD = 21,
    VHOST_USER_GET_CONFIG = 24,
    VHOST_USER_SET_CONFIG = 25,
    VHOST_USER_POSTCOPY_ADVISE = 28,
    VHOST_USER_POSTCOPY_LISTEN = 29,
    VHOST_USER_POSTCOPY_END = 30,
    VHOST_USER_GET_INFLIGHT_FD = 31,
    VHOST_USER_SET_INFLIGHT_FD = 32,
    VHOST_USER_GET_MAX_MEM_SLOTS = 36,
    VHOST_USER_ADD_MEM_REG = 37,
    VHOST_USER_REM_MEM_REG = 38,
    VHOST_USER_SET_STATUS = 39,
    VHOST_USER_GET_STATUS = 40,
} VhostUserRequest;

/* What a back end asks the front end, on the channel of SET_BACKEND_REQ_FD. */
enum {
    VHOST_USER_BACKEND_CONFIG_CHANGE = 2,
};

/* Bits of the virtio features that belong to the transport. */
#define VHOST_USER_F_LOG_ALL (UINT64_C(1) << 26)
#define VHOST_USER_F_PROTOCOL_FEATURES (UINT64_C(1) << 30)

typedef enum VhostUserProtocolFeature {
    VHOST_USER_PROTOCOL_MQ = 1 << 0,
    VHOST_USER_PROTOCOL_LOG_SHMFD = 1 << 1,
    VHOST_USER_PROTOCOL_REPLY_ACK = 1 << 3,
    VHOST_USER_PROTOCOL_BACKEND_REQ = 1 << 5,
    VHOST_USER_PROTOCOL_PAGEFAULT = 1 << 8,
    VHOST_USER_PROTOCOL_CONFIG = 1 << 9,
    VHOST_USER_PROTOCOL_BACKEND_SEND_FD = 1 << 10,
    VHOST_USER_PROTOCOL_HOST_NOTIFIER = 1 << 11,
    VHOST_USER_PROTOCOL_INFLIGHT_SHMFD = 1 << 12,
    VHOST_USER_PROTOCOL_CONFIGURE_MEM_SLOTS = 1 << 15,
    VHOST_USER_PROTOCOL_STATUS = 1 << 16,
} VhostUserProtocolFeature;

typedef struct VhostUserHeader {
    uint32_t request;
    uint32_t bytes; /* of the payload, within the limits of the request */
    bool need_reply;
} VhostUserHeader;

/* A number for one ring. */
typedef struct VhostUserVring {
    uint32_t index;
    uint32_t value;
} VhostUserVring;

/* Where a ring is, in the front end's own addresses. */
typedef struct VhostUserVringAddress {
    uint32_t index;
    bool log; /* writes to the used ring are logged */
    uint64_t descriptors, used, available;
    uint64_t log_guest; /* guest address of the used ring, for the log */
} VhostUserVringAddress;

typedef struct VhostUserVringFd {
    uint32_t index;
    bool none; /* no descriptor: nothing is signalled */
} VhostUserVringFd;

typedef struct VhostUserRegion {
    uint64_t guest, bytes, user, file_offset;
} VhostUserRegion;

typedef struct VhostUserTable {
    unsigned count;
    VhostUserRegion regions[VHOST_USER_TABLE_REGIONS]; /* a descriptor for each, in this order */
} VhostUserTable;

/* A piece of a file that is shared: the log of written pages. */
typedef struct VhostUserArea {
    uint64_t bytes, file_offset;
} VhostUserArea;

typedef struct VhostUserConfig {
    uint32_t offset, bytes, flags;
    uint8_t data[VHOST_USER_CONFIG_BYTES]; /* SET_CONFIG: `bytes` are valid */
} VhostUserConfig;

typedef struct VhostUserInflight {
    uint64_t bytes, file_offset;
    uint16_t queues, queue_size;
} VhostUserInflight;

/* A request. The name of the member is the kind of its payload. */
typedef struct VhostUserMessage {
    VhostUserRequest request;
    bool need_reply;
    uint32_t bytes; /* of the payload */
    /* SET_MEM_TABLE and ADD_MEM_REG without any region: the client has got our addresses (postcopy). */
    bool confirms;
    union {
        uint64_t number;
        VhostUserVring vring;
        VhostUserVringAddress address;
        VhostUserVringFd vring_fd;
        VhostUserTable table;
        VhostUserRegion region;
        VhostUserArea area;
        VhostUserConfig config;
        VhostUserInflight inflight;
    };
} VhostUserMessage;

/* "SET_MEM_TABLE"; "request" for one that is not known here. */
const char *vhost_user_request_name(uint32_t request);
/* The number of the request, of a header that need not make sense otherwise. */
uint32_t vhost_user_header_request(const uint8_t data[VHOST_USER_HEADER_BYTES]);

/* -EPROTO: not this protocol's version, a reply, a request not known here, or a payload of a length that it
 * cannot have. */
int vhost_user_header_decode(const uint8_t data[VHOST_USER_HEADER_BYTES], VhostUserHeader *ret_header,
    char text[VHOST_USER_TEXT_BYTES]) MUST_CHECK;
/* -EPROTO: numbers that contradict each other, or another number of descriptors than the request needs. */
int vhost_user_payload_decode(const VhostUserHeader *header, const uint8_t *payload, unsigned fds,
    VhostUserMessage *ret_message, char text[VHOST_USER_TEXT_BYTES]) MUST_CHECK;

/* Encoders return the length of the whole message. `out` holds VHOST_USER_HEADER_BYTES +
 * VHOST_USER_PAYLOAD_BYTES. */
size_t vhost_user_encode_number(uint8_t *out, uint32_t request, uint64_t number);
size_t vhost_user_encode_empty(uint8_t *out, uint32_t request);
size_t vhost_user_encode_vring(uint8_t *out, uint32_t request, const VhostUserVring *vring);
/* `data` is config->bytes long. */
size_t vhost_user_encode_config(uint8_t *out, const VhostUserConfig *config, const uint8_t *data);
/* As long as the request was (message->bytes): front ends differ in whether the struct is padded. */
size_t vhost_user_encode_inflight(
    uint8_t *out, const VhostUserMessage *request, const VhostUserInflight *inflight);
/* The answers of postcopy: the regions with our own addresses as `user`. */
size_t vhost_user_encode_table(uint8_t *out, const VhostUserTable *table);
size_t vhost_user_encode_region(uint8_t *out, const VhostUserRegion *region);
/* A request of the back end, without payload, that wants no reply. */
size_t vhost_user_encode_backend_request(uint8_t *out, uint32_t request);
