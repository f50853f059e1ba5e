/* SPDX-License-Identifier: Apache-2.0 */
/*
 * JSON as the control protocol speaks it: a value tree, a parser that is fed bytes as they come, a writer.
 *
 * The dialect is part of the contract (compatibility.md 1.4), which is why this is not a library's: strings
 * may be in single quotes, a key may appear only once, integers are 64 bits signed, then unsigned, then
 * double; error texts are those that clients know.
 *
 * Values are owned by the value that holds them. Members of an object keep the order in which they were put.
 */
#pragma once

#include "base/error.h"
#include "base/mem.h"

typedef enum JsonType {
    JSON_NULL,
    JSON_BOOL,
    JSON_INT,  /* fits int64_t */
    JSON_UINT, /* above INT64_MAX */
    JSON_DOUBLE,
    JSON_STRING,
    JSON_ARRAY,
    JSON_OBJECT,
} JsonType;

typedef struct JsonValue JsonValue;

typedef struct JsonMember {
    char *key;
    JsonValue *value;
} JsonMember;

struct JsonValue {
    JsonType type;
    union {
        bool boolean;
        int64_t integer;
        uint64_t uinteger;
        double number;
        char *string; /* UTF-8, NUL-terminated */
        struct {
            JsonValue **items;
            size_t count, capacity;
        } array;
        struct {
            JsonMember *members;
            size_t count, capacity;
            struct JsonIndex *index; /* of the keys, once there are many */
        } object;
    } u;
};

/* ---- Making ---- */

JsonValue *json_null_new(void) MUST_CHECK;
JsonValue *json_bool_new(bool value) MUST_CHECK;
JsonValue *json_int_new(int64_t value) MUST_CHECK;
/* JSON_INT where the value fits, else JSON_UINT. */
JsonValue *json_uint_new(uint64_t value) MUST_CHECK;
JsonValue *json_double_new(double value) MUST_CHECK;
/* Copies text, which must be valid UTF-8. */
JsonValue *json_string_new(const char *text) MUST_CHECK;
JsonValue *json_string_printf(const char *fmt, ...) PRINTF(1, 2) MUST_CHECK;
JsonValue *json_object_new(void) MUST_CHECK;
JsonValue *json_array_new(void) MUST_CHECK;
/* Both take value. Putting a key again replaces its value in place. */
void json_object_put(JsonValue *object, const char *key, JsonValue *take_value);
void json_array_append(JsonValue *array, JsonValue *take_value);

JsonValue *json_clone(const JsonValue *value) MUST_CHECK;
/* Strings are wiped: they may be passwords. NULL is fine. */
void json_free(JsonValue *value);
void json_free_ptr(JsonValue **value);
#define AUTO_JSON CLEANUP(json_free_ptr)

/* ---- Reading ---- */

/* The member's value, or NULL; also NULL when object is NULL or no object. */
JsonValue *json_get(const JsonValue *object, const char *key);
/* The member's text, or NULL when it is missing or no string. */
const char *json_get_string(const JsonValue *object, const char *key);
/* Removes a member and returns its value (the caller's then), or NULL. */
JsonValue *json_object_take(JsonValue *object, const char *key) MUST_CHECK;
/* Same type and contents; the order of an object's members does not matter; numbers compare by value. */
bool json_equal(const JsonValue *a, const JsonValue *b);
static inline bool json_is(const JsonValue *value, JsonType type)
{
    return value && value->type == type;
}

/* ---- Writing ---- */

/* ASCII text; pretty: one member a line, indented by four blanks, as existing clients know it. */
void json_write(const JsonValue *value, StrBuf *out, bool pretty);
/* The same as a new string. */
char *json_text(const JsonValue *value, bool pretty) MUST_CHECK;

/* ---- Parsing ---- */

/*
 * Takes a value, or, when the text was not JSON, an error (the parser has then resumed after it). Exactly one
 * of take_value (the callee's then) and err is non-NULL. err is valid during the call. Called from
 * json_parser_feed() and json_parser_end(); it may not call these.
 */
typedef void JsonSink(void *opaque, JsonValue *take_value, const Error *err);

typedef struct JsonParser JsonParser;

JsonParser *json_parser_new(JsonSink *sink, void *opaque) MUST_CHECK;
void json_parser_free(JsonParser *parser);
void json_parser_free_ptr(JsonParser **parser);
/* Takes the next bytes of the stream. A number or word at the end of the bytes is complete only when more
 * follow. */
void json_parser_feed(JsonParser *parser, const void *data, size_t bytes);
/* The stream has ended: completes what is pending. The parser is then as new. */
void json_parser_end(JsonParser *parser);

/* Parses text that holds exactly one value. */
int json_parse(const char *text, JsonValue **ret_value, Error *err) MUST_CHECK;
