/* SPDX-License-Identifier: Apache-2.0 */
/* What the files about LUKS share. */
#pragma once

#include "crypto/luks.h"
#include "crypto/secret.h"

/* The secret with the id, which users must give. */
int luks_password(const char *id, Secret *ret_password, Error *err) MUST_CHECK;

/* Checks what a user asks for. */
int luks_iter_time(int64_t iter_time, uint64_t *ret_ms, Error *err) MUST_CHECK;
/* 1: the secret opens the slot, 0: it does not, or the slot is empty. */
int luks_slot_opens(
    const Luks *luks, const LuksIo *io, unsigned slot, const char *secret_id, Error *err) MUST_CHECK;
/* Overwrites the key material, and says so in the header first. */
int luks_slot_erase(Luks *luks, const LuksIo *io, unsigned slot, Error *err) MUST_CHECK;
