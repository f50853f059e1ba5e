/* SPDX-License-Identifier: Apache-2.0 */
/*
 * key=value text of the command line -> a tree of strings for schema_from_json() in SCHEMA_KEYVAL mode.
 *
 *     driver=qcow2,file.driver=file,file.filename=a,,b.qcow2,bitmaps.0=x
 *
 * Dots descend into objects, a doubled comma is a comma, a repeated key replaces the earlier one. An object
 * whose keys are all numbers is an array; a gap is an error. Texts of errors are those that users know
 * (compatibility.md 4).
 */
#pragma once

#include "schema/json.h"

/*
 * implied_key: the key of a first part without '='; NULL: none. ret_help, if not NULL, becomes true when a
 * part was "help" or "?" (which is then left out); if NULL, help is an error.
 */
int keyval_parse(
    const char *text, const char *implied_key, JsonValue **ret_object, bool *ret_help, Error *err) MUST_CHECK;
/* A size with an optional suffix (b, k, M, G, T, P, E; powers of 1024) and fraction. */
int keyval_parse_size(const char *text, uint64_t *ret_bytes) MUST_CHECK;
