/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bytes -> tokens of JSON text. Tokens that nothing delimits (numbers, words) end at the first byte that
 * cannot belong to them. A byte that no token can have makes an error token of what was read so far; then
 * everything is dropped up to the next structural or control character, from where reading resumes.
 */
#pragma once

#include "base/mem.h"

typedef enum JsonToken {
    JSON_TOKEN_OPEN_OBJECT,
    JSON_TOKEN_CLOSE_OBJECT,
    JSON_TOKEN_OPEN_ARRAY,
    JSON_TOKEN_CLOSE_ARRAY,
    JSON_TOKEN_COLON,
    JSON_TOKEN_COMMA,
    JSON_TOKEN_INTEGER,
    JSON_TOKEN_DOUBLE,
    JSON_TOKEN_WORD,
    JSON_TOKEN_STRING, /* the text includes the quotes; escapes are as written */
    JSON_TOKEN_ERROR,
    JSON_TOKEN_TOO_LONG,
} JsonToken;

typedef struct JsonLexer {
    /* text is valid during the call. */
    void (*token)(void *opaque, JsonToken token, const char *text, size_t length);
    void *opaque;
    int state;
    StrBuf text; /* of the token so far */
} JsonLexer;

void json_lexer_feed(JsonLexer *lexer, const char *data, size_t bytes);
/* The text ends here: the token so far is complete, or an error. */
void json_lexer_end(JsonLexer *lexer);
