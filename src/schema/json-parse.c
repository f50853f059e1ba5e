/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tokens -> values, as they come. A value is handed over when its brackets balance; a syntax error inside is
 * remembered and reported then, so that one bad command gives one error. A token that is no JSON at all is
 * reported at once.
 */
#include "schema/json-lex.h"
#include "schema/json-priv.h"

#include "base/limits.h"

#include <ctype.h>
#include <string.h>

/* What the innermost open container waits for. */
typedef enum Expect {
    EXPECT_KEY_OR_END,
    EXPECT_KEY,
    EXPECT_COLON,
    EXPECT_MEMBER,
    EXPECT_OBJECT_COMMA,
    EXPECT_ITEM_OR_END,
    EXPECT_ITEM,
    EXPECT_ARRAY_COMMA,
} Expect;

typedef struct Frame {
    JsonValue *container;
    char *key; /* of the member whose value is next */
    Expect expect;
} Frame;

struct JsonParser {
    JsonLexer lexer;
    JsonSink *sink;
    void *opaque;
    Frame *frames;
    size_t depth, capacity;
    JsonValue *root; /* complete */
    Error error;     /* first syntax error of this value */
    int64_t braces, brackets;
    size_t tokens, token_bytes;
};

static void drop_frames(JsonParser *parser)
{
    while (parser->depth) {
        Frame *frame = &parser->frames[--parser->depth];

        json_free(frame->container);
        free(frame->key);
    }
}

static void parser_clear(JsonParser *parser)
{
    drop_frames(parser);
    json_free(TAKE(parser->root));
    err_done(&parser->error);
    parser->braces = parser->brackets = 0;
    parser->tokens = parser->token_bytes = 0;
}

/* Hands over the value or the error and starts afresh. */
static void emit(JsonParser *parser)
{
    JsonValue *root = err_is_set(&parser->error) ? NULL : TAKE(parser->root);
    AUTO_ERROR Error error = ERROR_INIT;

    if (err_is_set(&parser->error))
        err_move(&error, &parser->error);
    parser_clear(parser);
    parser->sink(parser->opaque, root, root ? NULL : &error);
}

static void fail(JsonParser *parser, const char *fmt, ...) PRINTF(2, 3);

/* Remembers the first error of a value; what was built so far is of no use any more. */
static void fail(JsonParser *parser, const char *fmt, ...)
{
    AUTO_FREE char *message = NULL;
    va_list args;

    va_start(args, fmt);
    message = str_vprintf(fmt, args);
    va_end(args);
    drop_frames(parser);
    if (!err_is_set(&parser->error))
        err_set(&parser->error, -EINVAL, "%s", message);
}

/* ---- Values ---- */

/* A key is a value like any other until it is complete. */
static void complete_key(JsonParser *parser, Frame *frame, JsonValue *take_key)
{
    if (take_key->type != JSON_STRING) {
        json_free(take_key);
        fail(parser, "JSON parse error, key is not a string in object");
        return;
    }
    frame->key = TAKE(take_key->u.string);
    json_free(take_key);
    frame->expect = EXPECT_COLON;
}

static void complete_value(JsonParser *parser, JsonValue *take_value)
{
    Frame *frame = parser->depth ? &parser->frames[parser->depth - 1] : NULL;

    if (!frame) {
        parser->root = take_value;
    } else if (frame->expect == EXPECT_KEY || frame->expect == EXPECT_KEY_OR_END) {
        complete_key(parser, frame, take_value);
    } else if (frame->expect == EXPECT_MEMBER) {
        if (json_get(frame->container, frame->key)) {
            json_free(take_value);
            fail(parser, "JSON parse error, duplicate key");
            return;
        }
        json_object_add(frame->container, TAKE(frame->key), take_value);
        frame->expect = EXPECT_OBJECT_COMMA;
    } else {
        json_array_append(frame->container, take_value);
        frame->expect = EXPECT_ARRAY_COMMA;
    }
}

static void open_container(JsonParser *parser, bool object)
{
    VEC_GROW(parser->frames, parser->depth, parser->capacity);
    parser->frames[parser->depth++] = (Frame){
        .container = object ? json_object_new() : json_array_new(),
        .expect = object ? EXPECT_KEY_OR_END : EXPECT_ITEM_OR_END,
    };
}

static void close_container(JsonParser *parser)
{
    complete_value(parser, parser->frames[--parser->depth].container);
}

/* Four hexadecimal digits, or -1. */
static int hex4(const char *text, const char *end)
{
    int value = 0;

    if (end - text < 4)
        return -1;
    for (int i = 0; i < 4; i++) {
        int c = (unsigned char)text[i];

        if (!isxdigit(c))
            return -1;
        value = value << 4 | (isdigit(c) ? c - '0' : tolower(c) - 'a' + 10);
    }
    return value;
}

/* \uXXXX, two of them for a character beyond U+FFFF; *text is behind the u. */
static bool unicode_escape(JsonParser *parser, const char **text, const char *end, StrBuf *out)
{
    const char *start = *text - 2;
    int64_t code_point = hex4(*text, end);

    *text += MIN((ptrdiff_t)4, end - *text);
    if (code_point >= 0xd800 && code_point <= 0xdbff && end - *text >= 2 && (*text)[0] == '\\' &&
        (*text)[1] == 'u') {
        int low = hex4(*text + 2, end);

        if (low >= 0xdc00 && low <= 0xdfff) {
            code_point = 0x10000 + ((code_point & 0x3ff) << 10 | (low & 0x3ff));
            *text += 6;
        }
    }
    if (utf8_append(out, code_point))
        return true;
    fail(parser, "JSON parse error, %.*s is not a valid Unicode character", (int)(*text - start), start);
    return false;
}

/* An escape; *text is behind the backslash. */
static bool string_escape(JsonParser *parser, const char **text, const char *end, StrBuf *out)
{
    static const char letters[] = "\"'\\/bfnrt", meaning[] = "\"'\\/\b\f\n\r\t";
    char letter = *(*text)++;
    const char *found = letter ? strchr(letters, letter) : NULL;

    if (letter == 'u')
        return unicode_escape(parser, text, end, out);
    if (!found) {
        fail(parser, "JSON parse error, invalid escape sequence in string");
        return false;
    }
    strbuf_append_char(out, meaning[found - letters]);
    return true;
}

/* Characters that stand for themselves; checks that they are UTF-8. */
static bool string_run(JsonParser *parser, const char **text, const char *end, StrBuf *out)
{
    const char *start = *text;

    while (*text < end && **text != '\\') {
        if (!(**text & 0x80)) {
            (*text)++;
        } else if (utf8_decode(text, end) < 0) {
            fail(parser, "JSON parse error, invalid UTF-8 sequence in string");
            return false;
        }
    }
    strbuf_append_bytes(out, start, (size_t)(*text - start));
    return true;
}

static void string_token(JsonParser *parser, const char *text, size_t length)
{
    const char *end = text + length - 1; /* the closing quote */
    StrBuf out = {.wiped = true};

    text++;
    while (text < end) {
        bool fine;

        if (*text == '\\') {
            text++;
            /* a cut escape shows the closing quote in its message, as clients know it */
            fine = string_escape(parser, &text, *text == 'u' ? end + 1 : end, &out);
        } else {
            fine = string_run(parser, &text, end, &out);
        }
        if (!fine) {
            strbuf_done(&out);
            return;
        }
    }
    complete_value(parser, json_string_take(strbuf_take(&out)));
}

static void integer_token(JsonParser *parser, const char *text)
{
    long long integer;

    errno = 0;
    integer = strtoll(text, NULL, 10);
    if (errno != ERANGE) {
        complete_value(parser, json_int_new(integer));
        return;
    }
    if (text[0] != '-') {
        unsigned long long uinteger;

        errno = 0;
        uinteger = strtoull(text, NULL, 10);
        if (errno != ERANGE) {
            complete_value(parser, json_uint_new(uinteger));
            return;
        }
    }
    complete_value(parser, json_double_new(strtod(text, NULL)));
}

static void word_token(JsonParser *parser, const char *text)
{
    if (strcmp(text, "true") == 0)
        complete_value(parser, json_bool_new(true));
    else if (strcmp(text, "false") == 0)
        complete_value(parser, json_bool_new(false));
    else if (strcmp(text, "null") == 0)
        complete_value(parser, json_null_new());
    else
        fail(parser, "JSON parse error, invalid keyword '%s'", text);
}

/* A token where a value must start. */
static void value_token(JsonParser *parser, JsonToken token, const char *text, size_t length)
{
    switch (token) {
    case JSON_TOKEN_OPEN_OBJECT:
    case JSON_TOKEN_OPEN_ARRAY:
        open_container(parser, token == JSON_TOKEN_OPEN_OBJECT);
        return;
    case JSON_TOKEN_STRING:
        string_token(parser, text, length);
        return;
    case JSON_TOKEN_INTEGER:
        integer_token(parser, text);
        return;
    case JSON_TOKEN_DOUBLE:
        complete_value(parser, json_double_new(strtod(text, NULL)));
        return;
    case JSON_TOKEN_WORD:
        word_token(parser, text);
        return;
    default:
        fail(parser, "JSON parse error, expecting value");
    }
}

/* ---- Structure ---- */

static void syntax_token(JsonParser *parser, JsonToken token, const char *text, size_t length)
{
    Frame *frame = parser->depth ? &parser->frames[parser->depth - 1] : NULL;
    Expect expect = frame ? frame->expect : EXPECT_ITEM;

    if ((expect == EXPECT_KEY_OR_END || expect == EXPECT_OBJECT_COMMA) && token == JSON_TOKEN_CLOSE_OBJECT)
        close_container(parser);
    else if ((expect == EXPECT_ITEM_OR_END || expect == EXPECT_ARRAY_COMMA) &&
             token == JSON_TOKEN_CLOSE_ARRAY)
        close_container(parser);
    else if (expect == EXPECT_OBJECT_COMMA || expect == EXPECT_ARRAY_COMMA) {
        bool object = expect == EXPECT_OBJECT_COMMA;

        if (token != JSON_TOKEN_COMMA)
            fail(parser, "JSON parse error, expected separator in %s", object ? "dict" : "list");
        else
            frame->expect = object ? EXPECT_KEY : EXPECT_ITEM;
    } else if (expect == EXPECT_COLON) {
        if (token != JSON_TOKEN_COLON)
            fail(parser, "JSON parse error, missing : in object pair");
        else
            frame->expect = EXPECT_MEMBER;
    } else {
        value_token(parser, token, text, length);
    }
}

static void count_brackets(JsonParser *parser, JsonToken token)
{
    parser->braces += (token == JSON_TOKEN_OPEN_OBJECT) - (token == JSON_TOKEN_CLOSE_OBJECT);
    parser->brackets += (token == JSON_TOKEN_OPEN_ARRAY) - (token == JSON_TOKEN_CLOSE_ARRAY);
}

/* The message when one value has grown beyond what is taken, or NULL. */
static const char *limit_message(JsonParser *parser, JsonToken token, size_t length)
{
    if (token == JSON_TOKEN_TOO_LONG || parser->token_bytes + length + 1 > LIMIT_JSON_TOKEN_BYTES)
        return "JSON token size limit exceeded";
    if (parser->tokens + 1 > LIMIT_JSON_TOKENS)
        return "JSON token count limit exceeded";
    if (parser->brackets + parser->braces > LIMIT_JSON_DEPTH)
        return "JSON nesting depth limit exceeded";
    return NULL;
}

/* Reports an error at once and instead of any other. */
static void fail_now(JsonParser *parser, const char *message)
{
    err_done(&parser->error);
    fail(parser, "%s", message);
    emit(parser);
}

static void on_token(void *opaque, JsonToken token, const char *text, size_t length)
{
    JsonParser *parser = opaque;
    const char *limit;

    if (token == JSON_TOKEN_ERROR) {
        AUTO_FREE char *message = str_printf("JSON parse error, stray '%s'", text);

        fail_now(parser, message);
        return;
    }
    count_brackets(parser, token);
    limit = limit_message(parser, token, length);
    if (limit) {
        fail_now(parser, limit);
        return;
    }
    parser->tokens++;
    parser->token_bytes += length;
    if (!err_is_set(&parser->error))
        syntax_token(parser, token, text, length);
    if ((parser->braces > 0 || parser->brackets > 0) && parser->braces >= 0 && parser->brackets >= 0)
        return;
    emit(parser);
}

/* ---- The parser ---- */

JsonParser *json_parser_new(JsonSink *sink, void *opaque)
{
    JsonParser *parser = mem_new(JsonParser);

    parser->lexer.token = on_token;
    parser->lexer.opaque = parser;
    parser->lexer.text.wiped = true;
    parser->sink = sink;
    parser->opaque = opaque;
    return parser;
}

void json_parser_free(JsonParser *parser)
{
    if (!parser)
        return;
    parser_clear(parser);
    strbuf_done(&parser->lexer.text);
    free(parser->frames);
    free(parser);
}

void json_parser_free_ptr(JsonParser **parser)
{
    json_parser_free(*parser);
}

void json_parser_feed(JsonParser *parser, const void *data, size_t bytes)
{
    json_lexer_feed(&parser->lexer, data, bytes);
}

void json_parser_end(JsonParser *parser)
{
    json_lexer_end(&parser->lexer);
    if (!parser->tokens)
        return;
    if (!err_is_set(&parser->error))
        fail(parser, "JSON parse error, premature EOI");
    emit(parser);
}

/* ---- One value from a whole text ---- */

typedef struct Single {
    JsonValue *value;
    Error *error;
} Single;

static void take_single(void *opaque, JsonValue *take_value, const Error *err)
{
    Single *single = opaque;

    if (!single->value && !err_is_set(single->error)) {
        single->value = take_value;
        if (err)
            err_set(single->error, -EINVAL, "%s", err->message);
        return;
    }
    json_free(take_value);
    if (!err_is_set(single->error))
        err_set(single->error, -EINVAL, "Expecting at most one JSON value");
}

int json_parse(const char *text, JsonValue **ret_value, Error *err)
{
    Single single = {.error = err};
    CLEANUP(json_parser_free_ptr) JsonParser *parser = json_parser_new(take_single, &single);

    json_parser_feed(parser, text, strlen(text));
    json_parser_end(parser);
    if (!single.value && !err_is_set(err))
        return err_set(err, -EINVAL, "Expecting a JSON value");
    if (err_is_set(err)) {
        json_free(single.value);
        return err->code;
    }
    *ret_value = single.value;
    return 0;
}
