/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by json.c, json-parse.c and json-write.c. */
#pragma once

#include "schema/json.h"

/*
 * Strings inside are "modified UTF-8": as UTF-8, but U+0000 is C0 80, so that a string is NUL-terminated and
 * may hold it.
 *
 * Decodes one character at *text (before end) and moves *text behind it. Returns the code point, or -1 for
 * what is not a valid character: overlong, surrogate, non-character, beyond U+10FFFF, cut short.
 */
int utf8_decode(const char **text, const char *end);
/* Appends a code point; false when it is not a valid character. */
bool utf8_append(StrBuf *out, int64_t code_point);

/* As json_object_put(), taking the key as well. The key must not be a member yet. */
void json_object_add(JsonValue *object, char *take_key, JsonValue *take_value);
/* A string value from a text that it takes. */
JsonValue *json_string_take(char *take_text);
