/* SPDX-License-Identifier: Apache-2.0 */
/*
 * PERSISTENT RESERVE IN and OUT (SPC-4 sections 6.15 and 6.16): commands, parameter lists and parameter data
 * as pure functions over bytes. Nothing here waits or allocates. What is decoded comes from a device or a
 * client and is checked against the length that was passed in; a decoder leaves its out-parameters alone when
 * it fails.
 */
#pragma once

#include "proto/scsi.h"

enum {
    PR_IN_OPCODE = 0x5e,
    PR_OUT_OPCODE = 0x5f,
    PR_CDB_BYTES = 10,           /* the commands' own length; the rest of a 16-byte CDB is zero */
    PR_OUT_LIST_BYTES = 24,      /* basic parameter list (SPC-4 section 6.16.3) */
    PR_OUT_MOVE_LIST_BYTES = 24, /* REGISTER AND MOVE, without the TransportID (section 6.16.4) */
    PR_IN_HEADER_BYTES = 8,
    PR_RESERVATION_BYTES = 16, /* one reservation descriptor of READ RESERVATION, behind the header */
    PR_CAPABILITIES_BYTES = 8,
    PR_FULL_STATUS_BYTES = 24, /* one full status descriptor without the TransportID */
    PR_DATA_BYTES = 8192,      /* most data either way that this project handles */
};

typedef enum PrInAction {
    PR_IN_READ_KEYS = 0,
    PR_IN_READ_RESERVATION = 1,
    PR_IN_REPORT_CAPABILITIES = 2,
    PR_IN_READ_FULL_STATUS = 3,
} PrInAction;

typedef enum PrOutAction {
    PR_OUT_REGISTER = 0,
    PR_OUT_RESERVE = 1,
    PR_OUT_RELEASE = 2,
    PR_OUT_CLEAR = 3,
    PR_OUT_PREEMPT = 4,
    PR_OUT_PREEMPT_AND_ABORT = 5,
    PR_OUT_REGISTER_AND_IGNORE = 6,
    PR_OUT_REGISTER_AND_MOVE = 7,
    PR_OUT_REPLACE_LOST = 8,
} PrOutAction;

/* Reservation types (SPC-4 section 6.15.3.4). */
typedef enum PrType {
    PR_TYPE_NONE = 0,
    PR_TYPE_WRITE_EXCLUSIVE = 1,
    PR_TYPE_EXCLUSIVE_ACCESS = 3,
    PR_TYPE_WRITE_EXCLUSIVE_REGISTRANTS = 5,
    PR_TYPE_EXCLUSIVE_ACCESS_REGISTRANTS = 6,
    PR_TYPE_WRITE_EXCLUSIVE_ALL = 7,
    PR_TYPE_EXCLUSIVE_ACCESS_ALL = 8,
} PrType;

/* ---- Names: one spelling for messages, options and JSON ---- */

/* "read-keys", "register-and-ignore", ... and "write-exclusive-registrants"; NULL if reserved. */
const char *pr_in_action_name(unsigned action);
const char *pr_out_action_name(unsigned action);
const char *pr_type_name(unsigned type);
/* The type of that name, or of a decimal number that is a valid type; PR_TYPE_NONE if neither. */
PrType pr_type_from_name(const char *name);

/* ---- Commands ---- */

/* The data lengths of a PR CDB: allocation length (in) or parameter list length (out), big-endian u16 at
 * bytes 7..8, which is what the kernel, the reference and its helper's protocol use. */
uint32_t pr_cdb_data_bytes(const uint8_t cdb[SCSI_CDB_BYTES]);
/* Service action: the low five bits of byte 1. */
unsigned pr_cdb_action(const uint8_t cdb[SCSI_CDB_BYTES]);
/* Scope and type: byte 2 of PERSISTENT RESERVE OUT. */
unsigned pr_cdb_scope(const uint8_t cdb[SCSI_CDB_BYTES]);
unsigned pr_cdb_type(const uint8_t cdb[SCSI_CDB_BYTES]);

void pr_in_cdb_put(uint8_t cdb[SCSI_CDB_BYTES], PrInAction action, uint16_t allocation_bytes);
void pr_out_cdb_put(uint8_t cdb[SCSI_CDB_BYTES], PrOutAction action, unsigned type, uint16_t list_bytes);

/* The parameter list of every PR OUT action but REGISTER AND MOVE. */
typedef struct PrOutList {
    uint64_t key;         /* RESERVATION KEY: the caller's own */
    uint64_t service_key; /* SERVICE ACTION RESERVATION KEY */
    bool spec_i_pt;       /* TransportIDs follow */
    bool all_tg_pt;
    bool aptpl;
} PrOutList;

void pr_out_list_put(uint8_t list[PR_OUT_LIST_BYTES], const PrOutList *what);
/* False when the list is shorter than PR_OUT_LIST_BYTES. */
bool pr_out_list_get(const uint8_t *list, size_t bytes, PrOutList *ret_what);

/* The parameter list of REGISTER AND MOVE; the TransportID of the new holder follows it. */
typedef struct PrMoveList {
    uint64_t key, service_key;
    bool unregister, aptpl;
    uint16_t relative_port;
    uint32_t transport_id_bytes;
} PrMoveList;

void pr_move_list_put(uint8_t list[PR_OUT_MOVE_LIST_BYTES], const PrMoveList *what);
bool pr_move_list_get(const uint8_t *list, size_t bytes, PrMoveList *ret_what);

/* ---- Parameter data of PERSISTENT RESERVE IN ---- */

/* The header of READ KEYS, READ RESERVATION and READ FULL STATUS. */
typedef struct PrInHeader {
    uint32_t generation;
    uint32_t additional_bytes; /* as the device says it; may be more than was transferred */
} PrInHeader;

bool pr_in_header_get(const uint8_t *data, size_t bytes, PrInHeader *ret_header);
void pr_in_header_put(uint8_t data[PR_IN_HEADER_BYTES], PrInHeader header);

/* Key number `index` of READ KEYS data; false behind the last one that is there completely. */
bool pr_key_get(const uint8_t *data, size_t bytes, unsigned index, uint64_t *ret_key);

typedef struct PrReservation {
    uint64_t key;
    uint8_t scope, type;
} PrReservation;

/* The reservation in READ RESERVATION data, all zero (PR_TYPE_NONE) when the device says that there is none.
 * False when the data does not tell: too short, cut off, or with an additional length that holds no
 * descriptor. Never take that for "not reserved". */
bool pr_reservation_get(const uint8_t *data, size_t bytes, PrReservation *ret_reservation);
/* PR_IN_HEADER_BYTES + PR_RESERVATION_BYTES of data for a held reservation. */
void pr_reservation_put(uint8_t *data, uint32_t generation, const PrReservation *reservation);

/* REPORT CAPABILITIES (SPC-4 section 6.15.4). */
typedef struct PrCapabilities {
    bool replace_lost, compatible_handling, specify_ports, all_ports, persist_through_power_loss;
    bool persist_active; /* PTPL_A */
    uint8_t allow_commands;
    bool type_mask_valid;
    uint16_t type_mask; /* as on the wire: bytes 4 and 5 as a big-endian number */
} PrCapabilities;

bool pr_capabilities_get(const uint8_t *data, size_t bytes, PrCapabilities *ret_capabilities);
void pr_capabilities_put(uint8_t data[PR_CAPABILITIES_BYTES], const PrCapabilities *capabilities);
/* Whether the mask has the bit of a type. */
bool pr_type_mask_has(uint16_t mask, PrType type);
/* The mask with the bits of these types (ends with PR_TYPE_NONE). */
uint16_t pr_type_mask(const PrType *types);

/* One registrant of READ FULL STATUS. */
typedef struct PrRegistrant {
    uint64_t key;
    bool holder, all_ports;
    uint8_t scope, type;
    uint16_t relative_port;
    const uint8_t *transport_id; /* within the data that was passed in */
    uint32_t transport_id_bytes;
} PrRegistrant;

/* The registrant at *offset (start with 0) and moves *offset behind it; false at the end or when the rest is
 * cut off or contradicts itself. At a proper end *offset is the header's additional_bytes. */
bool pr_registrant_next(const uint8_t *data, size_t bytes, size_t *offset, PrRegistrant *ret_registrant);

/* ---- TransportIDs (SPC-4 section 7.6.4) ---- */

enum { PR_TRANSPORT_ID_TEXT = 300 };

/* "iqn.2026-01.org.example:host,i,0x...", "naa.5001405...", ... or hexadecimal where the protocol is not
 * known or the name is empty. Always NUL-terminated, printable and without blanks; what does not fit is cut.
 */
void pr_transport_id_text(const uint8_t *id, size_t bytes, char text[PR_TRANSPORT_ID_TEXT]);
