/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The protocol between a reservation helper and its clients (QEMU docs/interop/pr-helper, "Persistent
 * reservation helper protocol") as pure functions over bytes. Everything on the wire is big-endian.
 *
 *   helper: u32 features it supports          client: u32 features it wants
 *   client: 16-byte CDB, one descriptor with any of its bytes; for PERSISTENT RESERVE OUT the parameter list
 *   helper: u32 SCSI status, u32 payload bytes, 96 bytes of sense; payload (only IN with status GOOD)
 *
 * One command at a time on a connection, any number of connections.
 */
#pragma once

#include "proto/pr.h"

enum {
    PR_WIRE_FEATURES_BYTES = 4,
    PR_WIRE_REPLY_BYTES = 8 + SCSI_SENSE_BYTES,
    /* Not a SCSI opcode: the migration source forgets its key (feature PR_FEATURE_CLEANUP). No data either
     * way. Clients exist that send it without having asked for the feature, so a helper accepts it always. */
    PR_WIRE_CLEANUP_OPCODE = 0xff,
};

enum {
    PR_FEATURE_CLEANUP = 1 << 0,
    PR_FEATURES = PR_FEATURE_CLEANUP, /* all that Granary's helper offers */
};

/* A command as it is executed. */
typedef struct PrRequest {
    uint8_t cdb[SCSI_CDB_BYTES];
    uint32_t data_bytes;         /* PR IN: allocation length, PR OUT: length of `data` */
    uint8_t data[PR_DATA_BYTES]; /* PR OUT: the parameter list */
} PrRequest;

/* Its result. */
typedef struct PrReply {
    uint32_t status;     /* ScsiStatus */
    uint32_t data_bytes; /* PR IN with GOOD: bytes of `data`, at most the allocation length; otherwise 0 */
    uint8_t sense[SCSI_SENSE_BYTES]; /* all zero unless the status is CHECK CONDITION */
    uint8_t data[PR_DATA_BYTES];
} PrReply;

typedef enum PrWireRequest {
    PR_WIRE_READY,    /* complete: ret_data_bytes is 0 for what has no parameter list */
    PR_WIRE_LIST,     /* a parameter list of *ret_data_bytes bytes follows */
    PR_WIRE_BAD_OPCODE,
    PR_WIRE_TOO_LONG, /* more than PR_DATA_BYTES */
} PrWireRequest;

/* What a CDB from a client means for the conversation. *ret_data_bytes: PR IN allocation or PR OUT list
 * length; left alone when the opcode is bad. */
PrWireRequest pr_wire_request(const uint8_t cdb[SCSI_CDB_BYTES], uint32_t *ret_data_bytes);

/* The header of a reply. */
void pr_wire_reply_put(uint8_t header[PR_WIRE_REPLY_BYTES], const PrReply *reply);
/*
 * Reads a header that answers a command with that opcode and allocation length: status, data_bytes and sense of
 * *reply. False, with *reply unchanged, when it breaks the protocol: a status of more than eight bits, a
 * payload for anything but PR IN with GOOD, a payload longer than was asked for.
 */
bool pr_wire_reply_get(const uint8_t header[PR_WIRE_REPLY_BYTES], uint8_t opcode, uint32_t allocation_bytes,
    PrReply *reply);

/* ---- Making replies ---- */

void pr_reply_good(PrReply *reply);
/* Status without sense: RESERVATION CONFLICT, BUSY, ... */
void pr_reply_status(PrReply *reply, ScsiStatus status);
/* CHECK CONDITION with fixed-format sense. */
void pr_reply_check(PrReply *reply, ScsiSense sense);
/* Whether the reply is CHECK CONDITION with a sense that can be read. */
bool pr_reply_sense(const PrReply *reply, ScsiSense *ret_sense);
