/* SPDX-License-Identifier: Apache-2.0 */
/* JSON values -> text, and the UTF-8 helpers that reading needs, too. Output is ASCII: clients get \uXXXX for
 * the rest. */
#include "schema/json-priv.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

static bool is_character(int64_t code_point)
{
    if (code_point < 0 || code_point > 0x10ffff)
        return false;
    if (code_point >= 0xd800 && code_point <= 0xdfff)
        return false;
    /* non-characters */
    return !(code_point >= 0xfdd0 && code_point <= 0xfdef) && (code_point & 0xfffe) != 0xfffe;
}

/* How many bytes follow a lead byte, and its payload; -1 when it is no lead byte. */
static int lead_byte(unsigned char byte, int64_t *ret_payload)
{
    int follow = 1;

    while (follow <= 5 && (byte & (0x80 >> follow)))
        follow++;
    if (!(byte & 0x80) || follow == 1 || follow == 6 + 1)
        return -1;
    *ret_payload = byte & (0x7f >> follow);
    return follow - 1;
}

int utf8_decode(const char **text, const char *end)
{
    static const int64_t smallest[] = {0, 0x80, 0x800, 0x10000, 0x200000, 0x4000000};
    const char *p = *text;
    unsigned char first = (unsigned char)*p++;
    int64_t code_point = first;
    int follow = 0, seen;

    *text = p;
    if (first < 0x80)
        return first;
    follow = lead_byte(first, &code_point);
    if (follow < 0)
        return -1;
    for (seen = 0; seen < follow && p < end && ((unsigned char)*p & 0xc0) == 0x80; seen++)
        code_point = code_point << 6 | ((unsigned char)*p++ & 0x3f);
    *text = p;
    if (follow == 1 && seen == 1 && code_point == 0)
        return 0; /* the two-byte spelling of NUL */
    if (seen < follow || code_point < smallest[follow] || !is_character(code_point))
        return -1;
    return (int)code_point;
}

bool utf8_append(StrBuf *out, int64_t c)
{
    char bytes[4];
    size_t count;

    if (!is_character(c))
        return false;
    if (c && c < 0x80) {
        bytes[0] = (char)c;
        count = 1;
    } else if (c < 0x800) {
        bytes[0] = (char)(0xc0 | c >> 6);
        bytes[1] = (char)(0x80 | (c & 0x3f));
        count = 2;
    } else if (c < 0x10000) {
        bytes[0] = (char)(0xe0 | c >> 12);
        bytes[1] = (char)(0x80 | (c >> 6 & 0x3f));
        bytes[2] = (char)(0x80 | (c & 0x3f));
        count = 3;
    } else {
        bytes[0] = (char)(0xf0 | c >> 18);
        bytes[1] = (char)(0x80 | (c >> 12 & 0x3f));
        bytes[2] = (char)(0x80 | (c >> 6 & 0x3f));
        bytes[3] = (char)(0x80 | (c & 0x3f));
        count = 4;
    }
    strbuf_append_bytes(out, bytes, count);
    return true;
}

/* The letter after the backslash of a short escape, or 0. */
static char short_escape(char c)
{
    static const char plain[] = "\"\\\b\f\n\r\t", letter[] = "\"\\bfnrt";
    const char *found = c ? strchr(plain, c) : NULL;

    return found ? letter[found - plain] : 0;
}

static void write_escaped(StrBuf *out, int code_point)
{
    if (code_point < 0)
        code_point = 0xfffd;
    if (code_point <= 0xffff) {
        strbuf_printf(out, "\\u%04X", (unsigned)code_point);
        return;
    }
    code_point -= 0x10000;
    strbuf_printf(out, "\\u%04X\\u%04X", 0xd800u + (unsigned)(code_point >> 10),
        0xdc00u + (unsigned)(code_point & 0x3ff));
}

static void write_string(StrBuf *out, const char *text)
{
    const char *end = text + strlen(text), *run = text;

    strbuf_append_char(out, '"');
    while (text < end) {
        char c = *text;
        char letter = short_escape(c);

        if (c >= 0x20 && c < 0x7f && !letter) {
            text++;
            continue;
        }
        strbuf_append_bytes(out, run, (size_t)(text - run));
        if (letter) {
            char escape[2] = {'\\', letter};

            strbuf_append_bytes(out, escape, 2);
            text++;
        } else {
            write_escaped(out, utf8_decode(&text, end));
        }
        run = text;
    }
    strbuf_append_bytes(out, run, (size_t)(text - run));
    strbuf_append_char(out, '"');
}

/* JSON has no word for what is not finite: beyond every double stays so for whoever reads it, not-a-number is
 * null. */
static void write_double(StrBuf *out, double number)
{
    if (isnan(number))
        strbuf_append(out, "null");
    else if (isinf(number))
        strbuf_append(out, number > 0 ? "1e999" : "-1e999");
    else
        strbuf_printf(out, "%.17g", number);
}

static void new_line(StrBuf *out, unsigned depth)
{
    strbuf_append_char(out, '\n');
    while (depth--)
        strbuf_append_bytes(out, "    ", 4);
}

static void write_value(StrBuf *out, const JsonValue *value, bool pretty, unsigned depth);

/* What comes before the item i of a container. */
static void write_separator(StrBuf *out, size_t i, bool pretty, unsigned depth)
{
    if (i)
        strbuf_append(out, pretty ? "," : ", ");
    if (pretty)
        new_line(out, depth);
}

static void write_array(StrBuf *out, const JsonValue *array, bool pretty, unsigned depth)
{
    strbuf_append_char(out, '[');
    for (size_t i = 0; i < array->u.array.count; i++) {
        write_separator(out, i, pretty, depth + 1);
        write_value(out, array->u.array.items[i], pretty, depth + 1);
    }
    if (pretty)
        new_line(out, depth);
    strbuf_append_char(out, ']');
}

static void write_object(StrBuf *out, const JsonValue *object, bool pretty, unsigned depth)
{
    strbuf_append_char(out, '{');
    for (size_t i = 0; i < object->u.object.count; i++) {
        write_separator(out, i, pretty, depth + 1);
        write_string(out, object->u.object.members[i].key);
        strbuf_append_bytes(out, ": ", 2);
        write_value(out, object->u.object.members[i].value, pretty, depth + 1);
    }
    if (pretty)
        new_line(out, depth);
    strbuf_append_char(out, '}');
}

static void write_value(StrBuf *out, const JsonValue *value, bool pretty, unsigned depth)
{
    switch (value->type) {
    case JSON_NULL:
        strbuf_append(out, "null");
        return;
    case JSON_BOOL:
        strbuf_append(out, value->u.boolean ? "true" : "false");
        return;
    case JSON_INT:
        strbuf_printf(out, "%" PRId64, value->u.integer);
        return;
    case JSON_UINT:
        strbuf_printf(out, "%" PRIu64, value->u.uinteger);
        return;
    case JSON_DOUBLE:
        write_double(out, value->u.number);
        return;
    case JSON_STRING:
        write_string(out, value->u.string);
        return;
    case JSON_ARRAY:
        write_array(out, value, pretty, depth);
        return;
    case JSON_OBJECT:
        write_object(out, value, pretty, depth);
        return;
    }
}

void json_write(const JsonValue *value, StrBuf *out, bool pretty)
{
    write_value(out, value, pretty, 0);
}

char *json_text(const JsonValue *value, bool pretty)
{
    StrBuf out = {0};

    json_write(value, &out, pretty);
    return strbuf_take(&out);
}
