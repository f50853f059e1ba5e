/* SPDX-License-Identifier: Apache-2.0 */
#include "pr-tool/output.h"

#include <inttypes.h>
#include <stdio.h>

static void put_string(JsonText *json, const char *text)
{
    strbuf_append_char(&json->text, '"');
    for (const char *c = text; *c; c++) {
        if (*c == '"' || *c == '\\')
            strbuf_printf(&json->text, "\\%c", *c);
        else if ((uint8_t)*c < ' ' || (uint8_t)*c >= 0x7f)
            strbuf_printf(&json->text, "\\u%04x", (uint8_t)*c);
        else
            strbuf_append_char(&json->text, *c);
    }
    strbuf_append_char(&json->text, '"');
}

static void put_name(JsonText *json, const char *name)
{
    if (json->follows)
        strbuf_append(&json->text, ", ");
    json->follows = true;
    if (!name)
        return;
    put_string(json, name);
    strbuf_append(&json->text, ": ");
}

void json_text_open(JsonText *json, const char *name, char bracket)
{
    put_name(json, name);
    strbuf_append_char(&json->text, bracket);
    json->follows = false;
}

void json_text_close(JsonText *json, char bracket)
{
    strbuf_append_char(&json->text, bracket);
    json->follows = true;
}

void json_text_string(JsonText *json, const char *name, const char *value)
{
    put_name(json, name);
    if (value)
        put_string(json, value);
    else
        strbuf_append(&json->text, "null");
}

void json_text_number(JsonText *json, const char *name, uint64_t value)
{
    put_name(json, name);
    strbuf_printf(&json->text, "%" PRIu64, value);
}

void json_text_bool(JsonText *json, const char *name, bool value)
{
    put_name(json, name);
    strbuf_append(&json->text, value ? "true" : "false");
}

void json_text_key(JsonText *json, const char *name, uint64_t key)
{
    put_name(json, name);
    strbuf_printf(&json->text, "\"0x%" PRIx64 "\"", key);
}

void json_text_print(JsonText *json)
{
    printf("%s\n", json->text.text);
    strbuf_done(&json->text);
}
