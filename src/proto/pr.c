/* SPDX-License-Identifier: Apache-2.0 */
/* PERSISTENT RESERVE IN and OUT over bytes; see pr.h. */
#include "proto/pr.h"

#include "base/endian.h"

#include <stdio.h>

/* ---- Names ---- */

static const char *const in_actions[] = {
    [PR_IN_READ_KEYS] = "read-keys",
    [PR_IN_READ_RESERVATION] = "read-reservation",
    [PR_IN_REPORT_CAPABILITIES] = "report-capabilities",
    [PR_IN_READ_FULL_STATUS] = "read-full-status",
};

static const char *const out_actions[] = {
    [PR_OUT_REGISTER] = "register",
    [PR_OUT_RESERVE] = "reserve",
    [PR_OUT_RELEASE] = "release",
    [PR_OUT_CLEAR] = "clear",
    [PR_OUT_PREEMPT] = "preempt",
    [PR_OUT_PREEMPT_AND_ABORT] = "preempt-and-abort",
    [PR_OUT_REGISTER_AND_IGNORE] = "register-and-ignore",
    [PR_OUT_REGISTER_AND_MOVE] = "register-and-move",
    [PR_OUT_REPLACE_LOST] = "replace-lost",
};

static const char *const type_names[] = {
    [PR_TYPE_WRITE_EXCLUSIVE] = "write-exclusive",
    [PR_TYPE_EXCLUSIVE_ACCESS] = "exclusive-access",
    [PR_TYPE_WRITE_EXCLUSIVE_REGISTRANTS] = "write-exclusive-registrants",
    [PR_TYPE_EXCLUSIVE_ACCESS_REGISTRANTS] = "exclusive-access-registrants",
    [PR_TYPE_WRITE_EXCLUSIVE_ALL] = "write-exclusive-all",
    [PR_TYPE_EXCLUSIVE_ACCESS_ALL] = "exclusive-access-all",
};

const char *pr_in_action_name(unsigned action)
{
    return action < ARRAY_SIZE(in_actions) ? in_actions[action] : NULL;
}

const char *pr_out_action_name(unsigned action)
{
    return action < ARRAY_SIZE(out_actions) ? out_actions[action] : NULL;
}

const char *pr_type_name(unsigned type)
{
    return type < ARRAY_SIZE(type_names) ? type_names[type] : NULL;
}

PrType pr_type_from_name(const char *name)
{
    for (unsigned type = 0; type < ARRAY_SIZE(type_names); type++) {
        char number[4];

        snprintf(number, sizeof(number), "%u", type);
        if (type_names[type] && (!strcmp(name, type_names[type]) || !strcmp(name, number)))
            return (PrType)type;
    }
    return PR_TYPE_NONE;
}

/* ---- Commands ---- */

uint32_t pr_cdb_data_bytes(const uint8_t cdb[SCSI_CDB_BYTES])
{
    return get_be16(cdb + 7);
}

unsigned pr_cdb_action(const uint8_t cdb[SCSI_CDB_BYTES])
{
    return cdb[1] & 0x1f;
}

unsigned pr_cdb_scope(const uint8_t cdb[SCSI_CDB_BYTES])
{
    return cdb[2] >> 4;
}

unsigned pr_cdb_type(const uint8_t cdb[SCSI_CDB_BYTES])
{
    return cdb[2] & 0xf;
}

void pr_in_cdb_put(uint8_t cdb[SCSI_CDB_BYTES], PrInAction action, uint16_t allocation_bytes)
{
    memset(cdb, 0, SCSI_CDB_BYTES);
    cdb[0] = PR_IN_OPCODE;
    cdb[1] = (uint8_t)action;
    put_be16(cdb + 7, allocation_bytes);
}

void pr_out_cdb_put(uint8_t cdb[SCSI_CDB_BYTES], PrOutAction action, unsigned type, uint16_t list_bytes)
{
    memset(cdb, 0, SCSI_CDB_BYTES);
    cdb[0] = PR_OUT_OPCODE;
    cdb[1] = (uint8_t)action;
    cdb[2] = (uint8_t)(type & 0xf); /* scope 0: the logical unit, the only one there is */
    put_be16(cdb + 7, list_bytes);
}

/* ---- Parameter lists ---- */

enum {
    LIST_APTPL = 1 << 0,
    LIST_ALL_TG_PT = 1 << 2,
    LIST_SPEC_I_PT = 1 << 3,
    MOVE_APTPL = 1 << 0,
    MOVE_UNREG = 1 << 1,
};

void pr_out_list_put(uint8_t list[PR_OUT_LIST_BYTES], const PrOutList *what)
{
    memset(list, 0, PR_OUT_LIST_BYTES);
    put_be64(list, what->key);
    put_be64(list + 8, what->service_key);
    list[20] = (uint8_t)((what->spec_i_pt ? LIST_SPEC_I_PT : 0) | (what->all_tg_pt ? LIST_ALL_TG_PT : 0) |
                         (what->aptpl ? LIST_APTPL : 0));
}

bool pr_out_list_get(const uint8_t *list, size_t bytes, PrOutList *ret_what)
{
    if (bytes < PR_OUT_LIST_BYTES)
        return false;
    *ret_what = (PrOutList){
        .key = get_be64(list),
        .service_key = get_be64(list + 8),
        .spec_i_pt = list[20] & LIST_SPEC_I_PT,
        .all_tg_pt = list[20] & LIST_ALL_TG_PT,
        .aptpl = list[20] & LIST_APTPL,
    };
    return true;
}

void pr_move_list_put(uint8_t list[PR_OUT_MOVE_LIST_BYTES], const PrMoveList *what)
{
    memset(list, 0, PR_OUT_MOVE_LIST_BYTES);
    put_be64(list, what->key);
    put_be64(list + 8, what->service_key);
    list[17] = (uint8_t)((what->unregister ? MOVE_UNREG : 0) | (what->aptpl ? MOVE_APTPL : 0));
    put_be16(list + 18, what->relative_port);
    put_be32(list + 20, what->transport_id_bytes);
}

bool pr_move_list_get(const uint8_t *list, size_t bytes, PrMoveList *ret_what)
{
    if (bytes < PR_OUT_MOVE_LIST_BYTES)
        return false;
    *ret_what = (PrMoveList){
        .key = get_be64(list),
        .service_key = get_be64(list + 8),
        .unregister = list[17] & MOVE_UNREG,
        .aptpl = list[17] & MOVE_APTPL,
        .relative_port = get_be16(list + 18),
        .transport_id_bytes = get_be32(list + 20),
    };
    return true;
}

/* ---- Parameter data ---- */

bool pr_in_header_get(const uint8_t *data, size_t bytes, PrInHeader *ret_header)
{
    if (bytes < PR_IN_HEADER_BYTES)
        return false;
    *ret_header = (PrInHeader){get_be32(data), get_be32(data + 4)};
    return true;
}

void pr_in_header_put(uint8_t data[PR_IN_HEADER_BYTES], PrInHeader header)
{
    put_be32(data, header.generation);
    put_be32(data + 4, header.additional_bytes);
}

/* How many of the bytes behind the header are there and belong to the answer. */
static size_t body_bytes(const uint8_t *data, size_t bytes)
{
    PrInHeader header;

    if (!pr_in_header_get(data, bytes, &header))
        return 0;
    return MIN((size_t)header.additional_bytes, bytes - PR_IN_HEADER_BYTES);
}

bool pr_key_get(const uint8_t *data, size_t bytes, unsigned index, uint64_t *ret_key)
{
    if (index >= body_bytes(data, bytes) / sizeof(*ret_key))
        return false;
    *ret_key = get_be64(data + PR_IN_HEADER_BYTES + index * sizeof(*ret_key));
    return true;
}

bool pr_reservation_get(const uint8_t *data, size_t bytes, PrReservation *ret_reservation)
{
    const uint8_t *body;
    PrInHeader header;

    if (!pr_in_header_get(data, bytes, &header))
        return false;
    if (!header.additional_bytes) {
        *ret_reservation = (PrReservation){0};
        return true;
    }
    if (body_bytes(data, bytes) < PR_RESERVATION_BYTES)
        return false;
    body = data + PR_IN_HEADER_BYTES;
    *ret_reservation = (PrReservation){.key = get_be64(body), .scope = body[13] >> 4, .type = body[13] & 0xf};
    return true;
}

void pr_reservation_put(uint8_t *data, uint32_t generation, const PrReservation *reservation)
{
    uint8_t *body = data + PR_IN_HEADER_BYTES;

    pr_in_header_put(data, (PrInHeader){generation, PR_RESERVATION_BYTES});
    memset(body, 0, PR_RESERVATION_BYTES);
    put_be64(body, reservation->key);
    body[13] = (uint8_t)(reservation->scope << 4 | (reservation->type & 0xf));
}

enum {
    CAPABILITY_RLR_C = 1 << 7,
    CAPABILITY_CRH = 1 << 4,
    CAPABILITY_SIP_C = 1 << 3,
    CAPABILITY_ATP_C = 1 << 2,
    CAPABILITY_PTPL_C = 1 << 0,
    CAPABILITY_TMV = 1 << 7,
    CAPABILITY_PTPL_A = 1 << 0,
};

bool pr_capabilities_get(const uint8_t *data, size_t bytes, PrCapabilities *ret_capabilities)
{
    if (bytes < PR_CAPABILITIES_BYTES || get_be16(data) < PR_CAPABILITIES_BYTES)
        return false;
    *ret_capabilities = (PrCapabilities){
        .replace_lost = data[2] & CAPABILITY_RLR_C,
        .compatible_handling = data[2] & CAPABILITY_CRH,
        .specify_ports = data[2] & CAPABILITY_SIP_C,
        .all_ports = data[2] & CAPABILITY_ATP_C,
        .persist_through_power_loss = data[2] & CAPABILITY_PTPL_C,
        .persist_active = data[3] & CAPABILITY_PTPL_A,
        .allow_commands = data[3] >> 4 & 7,
        .type_mask_valid = data[3] & CAPABILITY_TMV,
        .type_mask = get_be16(data + 4),
    };
    return true;
}

void pr_capabilities_put(uint8_t data[PR_CAPABILITIES_BYTES], const PrCapabilities *capabilities)
{
    const PrCapabilities *c = capabilities;

    memset(data, 0, PR_CAPABILITIES_BYTES);
    put_be16(data, PR_CAPABILITIES_BYTES);
    data[2] =
        (uint8_t)((c->replace_lost ? CAPABILITY_RLR_C : 0) | (c->compatible_handling ? CAPABILITY_CRH : 0) |
                  (c->specify_ports ? CAPABILITY_SIP_C : 0) | (c->all_ports ? CAPABILITY_ATP_C : 0) |
                  (c->persist_through_power_loss ? CAPABILITY_PTPL_C : 0));
    data[3] = (uint8_t)((c->type_mask_valid ? CAPABILITY_TMV : 0) | (c->allow_commands & 7) << 4 |
                        (c->persist_active ? CAPABILITY_PTPL_A : 0));
    put_be16(data + 4, c->type_mask);
}

/* Types 1 to 7 have the bit of their number in the first byte, type 8 bit 0 of the second. */
static uint16_t type_bit(PrType type)
{
    if (!pr_type_name(type))
        return 0;
    return type == PR_TYPE_EXCLUSIVE_ACCESS_ALL ? 1 : (uint16_t)(1 << (8 + type));
}

bool pr_type_mask_has(uint16_t mask, PrType type)
{
    return mask & type_bit(type);
}

uint16_t pr_type_mask(const PrType *types)
{
    uint16_t mask = 0;

    for (; *types != PR_TYPE_NONE; types++)
        mask |= type_bit(*types);
    return mask;
}

bool pr_registrant_next(const uint8_t *data, size_t bytes, size_t *offset, PrRegistrant *ret_registrant)
{
    size_t body = body_bytes(data, bytes);
    const uint8_t *at;
    uint32_t id_bytes;

    if (*offset > body || body - *offset < PR_FULL_STATUS_BYTES)
        return false;
    at = data + PR_IN_HEADER_BYTES + *offset;
    id_bytes = get_be32(at + 20);
    if (id_bytes > body - *offset - PR_FULL_STATUS_BYTES)
        return false;
    *ret_registrant = (PrRegistrant){
        .key = get_be64(at),
        .holder = at[12] & 1,
        .all_ports = at[12] & 2,
        .scope = at[13] >> 4,
        .type = at[13] & 0xf,
        .relative_port = get_be16(at + 18),
        .transport_id = at + PR_FULL_STATUS_BYTES,
        .transport_id_bytes = id_bytes,
    };
    *offset += PR_FULL_STATUS_BYTES + id_bytes;
    return true;
}

/* ---- TransportIDs ---- */

enum { /* protocol identifiers, SPC-4 section 7.6.1 */
    PROTOCOL_FC = 0,
    PROTOCOL_SPI = 1,
    PROTOCOL_IEEE1394 = 3,
    PROTOCOL_SRP = 4,
    PROTOCOL_ISCSI = 5,
    PROTOCOL_SAS = 6,
    PROTOCOL_SOP = 10,
};

static void hex_text(const char *prefix, const uint8_t *id, size_t bytes, char text[PR_TRANSPORT_ID_TEXT])
{
    size_t done = (size_t)snprintf(text, PR_TRANSPORT_ID_TEXT, "%s", prefix);

    for (size_t i = 0; i < bytes && done + 3 <= PR_TRANSPORT_ID_TEXT; i++)
        done += (size_t)snprintf(text + done, PR_TRANSPORT_ID_TEXT - done, "%02x", id[i]);
}

/* The name, up to its NUL; whatever could disturb a terminal or a log is replaced. */
static void iscsi_text(const uint8_t *id, size_t bytes, char text[PR_TRANSPORT_ID_TEXT])
{
    size_t length = MIN((size_t)get_be16(id + 2), bytes - 4), i;

    for (i = 0; i < length && id[4 + i] && i + 1 < PR_TRANSPORT_ID_TEXT; i++)
        text[i] = id[4 + i] > ' ' && id[4 + i] < 0x7f ? (char)id[4 + i] : '?';
    text[i] = '\0';
}

void pr_transport_id_text(const uint8_t *id, size_t bytes, char text[PR_TRANSPORT_ID_TEXT])
{
    unsigned protocol = bytes ? id[0] & 0xf : 0, format = bytes ? id[0] >> 6 : 0;

    if (protocol == PROTOCOL_ISCSI && format <= 1 && bytes > 4 && get_be16(id + 2) && id[4])
        iscsi_text(id, bytes, text);
    else if (format != 0 || bytes < 24)
        hex_text("0x", id, bytes, text);
    else if (protocol == PROTOCOL_FC)
        hex_text("naa.", id + 8, 8, text);
    else if (protocol == PROTOCOL_SAS)
        hex_text("naa.", id + 4, 8, text);
    else if (protocol == PROTOCOL_IEEE1394)
        hex_text("eui.", id + 8, 8, text);
    else if (protocol == PROTOCOL_SRP)
        hex_text("0x", id + 8, 16, text);
    else if (protocol == PROTOCOL_SPI)
        snprintf(text, PR_TRANSPORT_ID_TEXT, "scsi.%u,%u", get_be16(id + 2), get_be16(id + 6));
    else if (protocol == PROTOCOL_SOP)
        snprintf(text, PR_TRANSPORT_ID_TEXT, "pci.%04x", get_be16(id + 2));
    else
        hex_text("0x", id, bytes, text);
}
