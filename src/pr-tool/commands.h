/* SPDX-License-Identifier: Apache-2.0 */
/* The commands of granary-pr. Each has said what is wrong when it does not return EXIT_DONE. */
#pragma once

#include "pr-tool/session.h"
#include "proto/pr-wire.h"

/* Parameter data of PERSISTENT RESERVE IN, with its header. */
typedef struct PrInData {
    PrInHeader header;
    uint32_t bytes; /* of data */
    bool truncated; /* there is more than PR_DATA_BYTES */
    uint8_t data[PR_DATA_BYTES];
} PrInData;

/* Reads all that the device has to say; says nothing itself. */
Outcome read_data(Session *session, PrInAction action, PrInData *ret_data);
/* The reservation; ret_reservation->type is PR_TYPE_NONE when there is none. */
ExitCode read_reservation(Session *session, uint32_t *ret_generation, PrReservation *ret_reservation);

/* show.c */
ExitCode command_keys(Session *session);
ExitCode command_reservation(Session *session);
ExitCode command_status(Session *session);
ExitCode command_capabilities(Session *session);
/* change.c */
ExitCode command_register(Session *session);
ExitCode command_reserve(Session *session);
ExitCode command_release(Session *session);
ExitCode command_preempt(Session *session);
ExitCode command_clear(Session *session);
ExitCode command_register_and_move(Session *session);
