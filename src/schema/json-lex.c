/* SPDX-License-Identifier: Apache-2.0 */
#include "schema/json-lex.h"

#include "base/limits.h"

#include <string.h>

enum State {
    START,
    RECOVERY, /* after an error */
    DOUBLE_QUOTED,
    DOUBLE_QUOTED_ESCAPE,
    SINGLE_QUOTED,
    SINGLE_QUOTED_ESCAPE,
    MINUS,
    ZERO,
    DIGITS,
    POINT,
    FRACTION,
    EXPONENT,
    EXPONENT_SIGN,
    EXPONENT_DIGITS,
    WORD,
};

/* What a byte does to a token besides going on to another state. */
enum { TOKEN_BEFORE = -1, TOKEN_WITH = -2, BAD = -3 };

static bool is_digit(unsigned char c)
{
    return c >= '0' && c <= '9';
}

static bool is_structural(unsigned char c)
{
    return c && strchr("{}[]:,", c);
}

/* Bytes that may stand in a string. */
static bool is_text(unsigned char c)
{
    return c >= 0x20 && c < 0xfe;
}

static int next_in_string(unsigned char c, unsigned char quote, int state)
{
    if (state == DOUBLE_QUOTED_ESCAPE || state == SINGLE_QUOTED_ESCAPE)
        return is_text(c) ? state - 1 : BAD;
    if (c == quote)
        return TOKEN_WITH;
    if (c == '\\')
        return state + 1;
    return is_text(c) ? state : BAD;
}

/* In a number whose integer part may go on with a point or an exponent. */
static int next_after_integer(unsigned char c)
{
    if (c == '.')
        return POINT;
    return c == 'e' || c == 'E' ? EXPONENT : TOKEN_BEFORE;
}

static int next_in_number(unsigned char c, int state)
{
    bool digit = is_digit(c);

    switch (state) {
    case MINUS:
        return c == '0' ? ZERO : digit ? DIGITS : BAD;
    case ZERO:
        return digit ? BAD : next_after_integer(c);
    case DIGITS:
        return digit ? DIGITS : next_after_integer(c);
    case POINT:
        return digit ? FRACTION : BAD;
    case FRACTION:
        return digit ? FRACTION : c == 'e' || c == 'E' ? EXPONENT : TOKEN_BEFORE;
    case EXPONENT:
        return digit ? EXPONENT_DIGITS : c == '+' || c == '-' ? EXPONENT_SIGN : BAD;
    case EXPONENT_SIGN:
        return digit ? EXPONENT_DIGITS : BAD;
    default:
        return digit ? EXPONENT_DIGITS : TOKEN_BEFORE;
    }
}

static int next_at_start(unsigned char c)
{
    if (c == '"')
        return DOUBLE_QUOTED;
    if (c == '\'')
        return SINGLE_QUOTED;
    if (is_digit(c))
        return c == '0' ? ZERO : DIGITS;
    if (c == '-')
        return MINUS;
    if (c >= 'a' && c <= 'z')
        return WORD;
    return is_structural(c) ? TOKEN_WITH : BAD;
}

static int next_state(int state, unsigned char c)
{
    switch (state) {
    case START:
        return next_at_start(c);
    case DOUBLE_QUOTED:
    case DOUBLE_QUOTED_ESCAPE:
        return next_in_string(c, '"', state);
    case SINGLE_QUOTED:
    case SINGLE_QUOTED_ESCAPE:
        return next_in_string(c, '\'', state);
    case WORD:
        return c >= 'a' && c <= 'z' ? WORD : TOKEN_BEFORE;
    default:
        return next_in_number(c, state);
    }
}

static JsonToken structural_token(char c)
{
    switch (c) {
    case '{':
        return JSON_TOKEN_OPEN_OBJECT;
    case '}':
        return JSON_TOKEN_CLOSE_OBJECT;
    case '[':
        return JSON_TOKEN_OPEN_ARRAY;
    case ']':
        return JSON_TOKEN_CLOSE_ARRAY;
    default:
        return c == ':' ? JSON_TOKEN_COLON : JSON_TOKEN_COMMA;
    }
}

/* The token that ends in a state. */
static JsonToken token_of(int state, char first)
{
    switch (state) {
    case START:
        return structural_token(first);
    case DOUBLE_QUOTED:
    case SINGLE_QUOTED:
        return JSON_TOKEN_STRING;
    case WORD:
        return JSON_TOKEN_WORD;
    case ZERO:
    case DIGITS:
        return JSON_TOKEN_INTEGER;
    default:
        return JSON_TOKEN_DOUBLE;
    }
}

static void finish(JsonLexer *lexer, JsonToken token, int state)
{
    lexer->state = state;
    lexer->token(lexer->opaque, token, lexer->text.text ? lexer->text.text : "", lexer->text.length);
    if (lexer->text.capacity > 64 * KIB)
        strbuf_done(&lexer->text);
    strbuf_clear(&lexer->text);
}

/* How many bytes from data on do nothing but lengthen the string that is being read. */
static size_t plain_run(const char *data, size_t bytes, char quote)
{
    size_t i = 0;

    while (i < bytes && is_text((unsigned char)data[i]) && data[i] != quote && data[i] != '\\')
        i++;
    return i;
}

/* Returns whether the byte was used up. */
static bool feed_byte(JsonLexer *lexer, char byte)
{
    unsigned char c = (unsigned char)byte;
    int next;

    if (lexer->state == RECOVERY) {
        if (c >= 0x20 && c < 0xfe && !is_structural(c))
            return true;
        lexer->state = START;
    }
    if (lexer->state == START && (c == ' ' || c == '\t' || c == '\r' || c == '\n'))
        return true;
    next = next_state(lexer->state, c);
    if (next == TOKEN_BEFORE) {
        finish(lexer, token_of(lexer->state, 0), START);
        return false;
    }
    strbuf_append_char(&lexer->text, byte);
    if (next == BAD)
        finish(lexer, JSON_TOKEN_ERROR, RECOVERY);
    else if (next == TOKEN_WITH)
        finish(lexer, token_of(lexer->state, byte), START);
    else
        lexer->state = next;
    return true;
}

void json_lexer_feed(JsonLexer *lexer, const char *data, size_t bytes)
{
    size_t i = 0;

    while (i < bytes) {
        size_t run = 0;

        if (lexer->state == DOUBLE_QUOTED || lexer->state == SINGLE_QUOTED)
            run = plain_run(data + i, bytes - i, lexer->state == DOUBLE_QUOTED ? '"' : '\'');
        if (run) {
            strbuf_append_bytes(&lexer->text, data + i, run);
            i += run;
        } else if (feed_byte(lexer, data[i])) {
            i++;
        }
        if (lexer->text.length > LIMIT_JSON_TOKEN_BYTES)
            finish(lexer, JSON_TOKEN_TOO_LONG, RECOVERY);
    }
}

void json_lexer_end(JsonLexer *lexer)
{
    if (lexer->state != START && lexer->state != RECOVERY) {
        if (next_state(lexer->state, ' ') == TOKEN_BEFORE)
            finish(lexer, token_of(lexer->state, 0), START);
        else
            finish(lexer, JSON_TOKEN_ERROR, START);
    }
    lexer->state = START;
    strbuf_clear(&lexer->text);
}
