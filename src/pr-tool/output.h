/* SPDX-License-Identifier: Apache-2.0 */
/* JSON text: just enough for what granary-pr prints. */
#pragma once

#include "base/mem.h"

/* Begins as {0}. Members get their name; elements of arrays and the outermost value NULL. */
typedef struct JsonText {
    StrBuf text;
    bool follows; /* something stands before in the same brackets */
} JsonText;

void json_text_open(JsonText *json, const char *name, char bracket);
void json_text_close(JsonText *json, char bracket);
/* value NULL: null. Bytes beyond ASCII become \u00XX, so that any file name makes valid JSON. */
void json_text_string(JsonText *json, const char *name, const char *value);
void json_text_number(JsonText *json, const char *name, uint64_t value);
void json_text_bool(JsonText *json, const char *name, bool value);
/* A reservation key: "0x..." because 64 bits are too much for the numbers of many readers. */
void json_text_key(JsonText *json, const char *name, uint64_t key);
/* Prints it as one line and ends it. */
void json_text_print(JsonText *json);
