/* SPDX-License-Identifier: Apache-2.0 */
/* Text is taken apart into an object tree with every container an object; lists are recognised afterwards. */
#include "schema/keyval.h"

#include "schema/json-priv.h"

#include "base/limits.h"

#include <ctype.h>
#include <string.h>

/* Length of a vendor's prefix ("__org.example_"), or 0. */
static size_t vendor_prefix(const char *text)
{
    size_t length = 2;

    if (text[0] != '_' || text[1] != '_')
        return 0;
    while (isalnum((unsigned char)text[length]) || text[length] == '-' || text[length] == '.')
        length++;
    return text[length] == '_' ? length + 1 : 0;
}

/* Length of the part of a dotted key at text: a name (letter first) or, not in first place, an index. 0:
 * neither. */
static size_t key_part(const char *text, bool first)
{
    size_t length = 0;

    if (isdigit((unsigned char)*text) && !first) {
        while (isdigit((unsigned char)text[length]))
            length++;
        return length;
    }
    length = vendor_prefix(text);
    if (!isalpha((unsigned char)text[length]))
        return 0;
    while (isalnum((unsigned char)text[length]) || text[length] == '-' || text[length] == '_')
        length++;
    return length;
}

static int inconsistent(const char *key, size_t length, Error *err)
{
    return err_set(err, -EINVAL, "Parameters '%.*s.*' used inconsistently", (int)length, key);
}

/* Puts value at one level; take_value NULL: makes an object there, or goes into the one that exists. */
static int put_part(
    JsonValue **at, const char *key, size_t start, size_t end, JsonValue *take_value, Error *err)
{
    AUTO_FREE char *name = str_ndup(key + start, end - start);
    JsonValue *found = json_get(*at, name);

    if (found && (found->type == JSON_OBJECT) != (take_value == NULL)) {
        json_free(take_value);
        return inconsistent(key, end, err);
    }
    if (take_value) {
        json_object_put(*at, name, take_value);
        return 0;
    }
    if (!found) {
        found = json_object_new();
        json_object_put(*at, name, found);
    }
    *at = found;
    return 0;
}

static bool key_is_valid(const char *key, size_t length)
{
    for (size_t start = 0;;) {
        size_t part = key_part(key + start, start == 0), end = start + part;

        if (!part || (end < length && key[end] != '.'))
            return false;
        if (end >= length)
            return true;
        start = end + 1;
    }
}

/* Stores a value under a dotted key of the given length. */
static int put(JsonValue *object, const char *key, size_t length, JsonValue *take_value, Error *err)
{
    AUTO_JSON JsonValue *value = take_value;
    size_t start = 0, depth = 0;

    for (;;) {
        size_t part = key_part(key + start, start == 0), end = start + part;
        int r;

        if (!part || (end < length && key[end] != '.'))
            return err_set(err, -EINVAL, "Invalid parameter '%.*s'", (int)length, key);
        if (part > LIMIT_KEYVAL_KEY_BYTES)
            return err_set(err, -EINVAL, "Parameter%s '%.*s' is too long", part < length ? " fragment" : "",
                (int)part, key + start);
        if (++depth >= LIMIT_JSON_DEPTH)
            return err_set(err, -EINVAL, "Parameter '%.*s' is nested too deeply", (int)part, key);
        r = put_part(&object, key, start, end, end == length ? TAKE(value) : NULL, err);
        if (r < 0 || end == length)
            return r;
        start = end + 1;
    }
}

/* A value up to a lone comma; doubled commas become one. Moves *text behind it. */
static char *value_text(const char **text)
{
    StrBuf out = {0};

    while (**text && (**text != ',' || (*text)[1] == ',')) {
        if (**text == ',')
            (*text)++;
        strbuf_append_char(&out, *(*text)++);
    }
    return strbuf_take(&out);
}

static bool is_help(const char *text, size_t length)
{
    return (length == 4 && memcmp(text, "help", 4) == 0) || (length == 1 && *text == '?');
}

/* One part of the text, up to its comma. */
static int parse_part(JsonValue *object, const char **text, const char *implied_key, bool *help, Error *err)
{
    const char *key = *text;
    size_t length = strcspn(key, "=,");

    *text += length;
    if (**text == '=') {
        (*text)++;
        return put(object, key, length, json_string_take(value_text(text)), err);
    }
    if (is_help(key, length)) {
        *help = true;
        return 0;
    }
    if (length && implied_key)
        return put(object, implied_key, strlen(implied_key), json_string_take(str_ndup(key, length)), err);
    if (!length || !key_is_valid(key, length))
        return err_set(err, -EINVAL, "Invalid parameter '%.*s'", (int)length, key);
    return err_set(err, -EINVAL, "Expected '=' after parameter '%.*s'", (int)length, key);
}

/* ---- Lists ---- */

/* Prefix of the messages about what lies in a container: the path to it with a dot, or nothing at the top. */
typedef struct Path {
    const struct Path *up;
    const char *name;
} Path;

static void append_path(StrBuf *out, const Path *path)
{
    if (!path)
        return;
    append_path(out, path->up);
    strbuf_printf(out, "%s.", path->name);
}

static int listify(JsonValue **object, const Path *path, Error *err);

static bool all_indexes(const JsonValue *object, bool *ret_mixed)
{
    size_t indexes = 0;

    for (size_t i = 0; i < object->u.object.count; i++)
        indexes += isdigit((unsigned char)object->u.object.members[i].key[0]) != 0;
    *ret_mixed = indexes && indexes < object->u.object.count;
    return indexes && !*ret_mixed;
}

/* "a.b." */
static char *prefix_of(const Path *path)
{
    StrBuf out = {0};

    append_path(&out, path);
    return strbuf_take(&out);
}

/* Makes an array of an object whose keys are indexes. */
static int make_array(JsonValue **object, const Path *path, Error *err)
{
    size_t count = (*object)->u.object.count, last = 0;
    AUTO_FREE JsonValue **items = mem_zalloc(count * sizeof(*items));
    JsonValue *array;

    for (size_t i = 0; i < count; i++) {
        const JsonMember *member = &(*object)->u.object.members[i];
        unsigned long index = strtoul(member->key, NULL, 10);

        last = MAX(last, MIN((size_t)index, count));
        if (index < count)
            items[index] = member->value; /* still owned by the object; "0" and "00" are the same */
    }
    for (size_t i = 0; i < MIN(count, last + 1); i++) {
        AUTO_FREE char *prefix = NULL;

        if (items[i])
            continue;
        prefix = prefix_of(path);
        return err_set(err, -EINVAL, "Parameter '%s%zu' missing", prefix, i);
    }
    array = json_array_new();
    for (size_t i = 0; i < MIN(count, last + 1); i++)
        json_array_append(array, json_clone(items[i]));
    json_free(*object);
    *object = array;
    return 0;
}

/* Turns objects into arrays where the keys are indexes, inside out. */
static int listify(JsonValue **object, const Path *path, Error *err)
{
    bool mixed;

    for (size_t i = 0; i < (*object)->u.object.count; i++) {
        JsonMember *member = &(*object)->u.object.members[i];
        Path here = {.up = path, .name = member->key};
        int r = member->value->type == JSON_OBJECT ? listify(&member->value, &here, err) : 0;

        if (r < 0)
            return r;
    }
    if (all_indexes(*object, &mixed))
        return make_array(object, path, err);
    if (mixed) {
        AUTO_FREE char *prefix = prefix_of(path);

        return err_set(err, -EINVAL, "Parameters '%s*' used inconsistently", prefix);
    }
    return 0;
}

int keyval_parse(
    const char *text, const char *implied_key, JsonValue **ret_object, bool *ret_help, Error *err)
{
    AUTO_JSON JsonValue *object = json_object_new();
    bool help = false;
    int r;

    while (*text) {
        r = parse_part(object, &text, implied_key, &help, err);
        if (r < 0)
            return r;
        implied_key = NULL;
        if (*text)
            text++; /* the comma */
    }
    if (help && !ret_help)
        return err_set(err, -EINVAL, "Help is not available for this option");
    r = listify(&object, NULL, err);
    if (r < 0)
        return r;
    if (ret_help)
        *ret_help = help;
    *ret_object = TAKE(object);
    return 0;
}

/* ---- Sizes ---- */

/* log2 of a suffix, or -1. */
static int suffix_shift(char suffix)
{
    static const char suffixes[] = "bkmgtpe";
    const char *found = suffix ? strchr(suffixes, tolower((unsigned char)suffix)) : NULL;

    return found ? (int)(found - suffixes) * 10 : -1;
}

/* The fraction at *text (".25"); moves *text behind it. */
static long double parse_fraction(const char **text)
{
    long double fraction = 0, digit = 1;

    for ((*text)++; isdigit((unsigned char)**text); (*text)++) {
        digit /= 10;
        fraction += digit * (**text - '0');
    }
    return fraction;
}

/* Digits before the fraction and suffix; moves *text behind them. */
static int parse_whole(const char **text, int base, uint64_t *ret_whole)
{
    char *end;

    errno = 0;
    *ret_whole = strtoull(*text, &end, base);
    *text = end;
    return -errno;
}

static int scale(uint64_t whole, long double fraction, int shift, uint64_t *ret_bytes)
{
    uint64_t part = (uint64_t)(fraction * (long double)(UINT64_C(1) << shift) + 0.5L);

    if (fraction > 0 && !shift)
        return -EINVAL;
    if (whole > UINT64_MAX >> shift || part > UINT64_MAX - (whole << shift))
        return -ERANGE;
    *ret_bytes = (whole << shift) + part;
    return 0;
}

int keyval_parse_size(const char *text, uint64_t *ret_bytes)
{
    long double fraction = 0;
    uint64_t whole = 0;
    int r, shift = 0;

    while (isspace((unsigned char)*text))
        text++;
    text += *text == '+';
    if (!isdigit((unsigned char)text[*text == '.']))
        return -EINVAL;
    if (text[0] == '0' && tolower((unsigned char)text[1]) == 'x') {
        if (!isxdigit((unsigned char)text[2]))
            return -EINVAL;
        r = parse_whole(&text, 16, &whole);
        if (r == 0 && !*text)
            *ret_bytes = whole;
        return r ? r : *text ? -EINVAL : 0;
    }
    r = isdigit((unsigned char)*text) ? parse_whole(&text, 10, &whole) : 0;
    if (r < 0)
        return r;
    if (*text == '.')
        fraction = parse_fraction(&text);
    if (*text) {
        shift = suffix_shift(*text++);
        if (shift < 0 || *text)
            return -EINVAL;
    }
    return scale(whole, fraction, shift, ret_bytes);
}
