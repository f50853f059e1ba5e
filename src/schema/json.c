/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The JSON value tree. Objects are arrays of members; one with many members also has an index, a hash table
 * over the keys with a secret seed, so that text from outside cannot make look-ups slow.
 */
#include "schema/json-priv.h"

#include <string.h>
#include <sys/random.h>

/* Objects with more members than this are indexed. */
#define INDEX_THRESHOLD 16

typedef struct JsonIndex {
    uint32_t *slots; /* position + 1; 0: free */
    size_t mask;
} JsonIndex;

/* ---- Hash of a key: SipHash-1-3 ---- */

static uint64_t rotate_left(uint64_t value, unsigned bits)
{
    return value << bits | value >> (64 - bits);
}

static void sip_round(uint64_t v[4])
{
    v[0] += v[1];
    v[1] = rotate_left(v[1], 13) ^ v[0];
    v[0] = rotate_left(v[0], 32);
    v[2] += v[3];
    v[3] = rotate_left(v[3], 16) ^ v[2];
    v[0] += v[3];
    v[3] = rotate_left(v[3], 21) ^ v[0];
    v[2] += v[1];
    v[1] = rotate_left(v[1], 17) ^ v[2];
    v[2] = rotate_left(v[2], 32);
}

static uint64_t key_hash(const char *key)
{
    static uint64_t seed[2];
    size_t length = strlen(key), i;
    uint64_t v[4], word;

    if (!seed[0] && getrandom(seed, sizeof(seed), GRND_NONBLOCK) != sizeof(seed))
        seed[0] = (uintptr_t)&word;
    v[0] = seed[0] ^ UINT64_C(0x736f6d6570736575);
    v[1] = seed[1] ^ UINT64_C(0x646f72616e646f6d);
    v[2] = seed[0] ^ UINT64_C(0x6c7967656e657261);
    v[3] = seed[1] ^ UINT64_C(0x7465646279746573);
    for (i = 0; i <= length; i += 8) {
        size_t part = MIN(length - i, (size_t)8);

        word = part < 8 ? (uint64_t)length << 56 : 0;
        memcpy(&word, key + i, part);
        v[3] ^= word;
        sip_round(v);
        v[0] ^= word;
    }
    v[2] ^= 0xff;
    for (i = 0; i < 3; i++)
        sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

static void index_add(JsonIndex *index, const char *key, size_t position)
{
    size_t slot = key_hash(key) & index->mask;

    while (index->slots[slot])
        slot = (slot + 1) & index->mask;
    index->slots[slot] = (uint32_t)position + 1;
}

static void index_free(JsonValue *object)
{
    if (object->u.object.index) {
        free(object->u.object.index->slots);
        free(object->u.object.index);
        object->u.object.index = NULL;
    }
}

/* Makes the index anew with room for twice the members. */
static void index_build(JsonValue *object)
{
    size_t slots = INDEX_THRESHOLD;

    index_free(object);
    while (slots < object->u.object.count * 4)
        slots *= 2;
    object->u.object.index = mem_new(JsonIndex);
    object->u.object.index->slots = mem_zalloc(slots * sizeof(uint32_t));
    object->u.object.index->mask = slots - 1;
    for (size_t i = 0; i < object->u.object.count; i++)
        index_add(object->u.object.index, object->u.object.members[i].key, i);
}

static JsonMember *find_member(const JsonValue *object, const char *key)
{
    const JsonIndex *index = object->u.object.index;
    JsonMember *members = object->u.object.members;

    if (!index) {
        for (size_t i = 0; i < object->u.object.count; i++)
            if (strcmp(members[i].key, key) == 0)
                return &members[i];
        return NULL;
    }
    for (size_t slot = key_hash(key) & index->mask; index->slots[slot]; slot = (slot + 1) & index->mask)
        if (strcmp(members[index->slots[slot] - 1].key, key) == 0)
            return &members[index->slots[slot] - 1];
    return NULL;
}

/* ---- Making ---- */

static JsonValue *value_new(JsonType type)
{
    JsonValue *value = mem_new(JsonValue);

    value->type = type;
    return value;
}

JsonValue *json_null_new(void)
{
    return value_new(JSON_NULL);
}

JsonValue *json_bool_new(bool boolean)
{
    JsonValue *value = value_new(JSON_BOOL);

    value->u.boolean = boolean;
    return value;
}

JsonValue *json_int_new(int64_t integer)
{
    JsonValue *value = value_new(JSON_INT);

    value->u.integer = integer;
    return value;
}

JsonValue *json_uint_new(uint64_t uinteger)
{
    JsonValue *value;

    if (uinteger <= INT64_MAX)
        return json_int_new((int64_t)uinteger);
    value = value_new(JSON_UINT);
    value->u.uinteger = uinteger;
    return value;
}

JsonValue *json_double_new(double number)
{
    JsonValue *value = value_new(JSON_DOUBLE);

    value->u.number = number;
    return value;
}

JsonValue *json_string_take(char *take_text)
{
    JsonValue *value = value_new(JSON_STRING);

    value->u.string = take_text;
    return value;
}

JsonValue *json_string_new(const char *text)
{
    return json_string_take(str_dup(text));
}

JsonValue *json_string_printf(const char *fmt, ...)
{
    va_list args;
    char *text;

    va_start(args, fmt);
    text = str_vprintf(fmt, args);
    va_end(args);
    return json_string_take(text);
}

JsonValue *json_object_new(void)
{
    return value_new(JSON_OBJECT);
}

JsonValue *json_array_new(void)
{
    return value_new(JSON_ARRAY);
}

void json_object_add(JsonValue *object, char *take_key, JsonValue *take_value)
{
    size_t count = object->u.object.count;

    VEC_GROW(object->u.object.members, count, object->u.object.capacity);
    object->u.object.members[count] = (JsonMember){.key = take_key, .value = take_value};
    object->u.object.count = ++count;
    if (object->u.object.index && count * 2 <= object->u.object.index->mask)
        index_add(object->u.object.index, take_key, count - 1);
    else if (count > INDEX_THRESHOLD)
        index_build(object);
}

void json_object_put(JsonValue *object, const char *key, JsonValue *take_value)
{
    JsonMember *member = find_member(object, key);

    if (!member) {
        json_object_add(object, str_dup(key), take_value);
        return;
    }
    json_free(member->value);
    member->value = take_value;
}

void json_array_append(JsonValue *array, JsonValue *take_value)
{
    VEC_GROW(array->u.array.items, array->u.array.count, array->u.array.capacity);
    array->u.array.items[array->u.array.count++] = take_value;
}

static JsonValue *clone_container(const JsonValue *value)
{
    JsonValue *copy = value_new(value->type);

    if (value->type == JSON_ARRAY) {
        for (size_t i = 0; i < value->u.array.count; i++)
            json_array_append(copy, json_clone(value->u.array.items[i]));
        return copy;
    }
    for (size_t i = 0; i < value->u.object.count; i++)
        json_object_add(
            copy, str_dup(value->u.object.members[i].key), json_clone(value->u.object.members[i].value));
    return copy;
}

JsonValue *json_clone(const JsonValue *value)
{
    JsonValue *copy;

    if (!value)
        return NULL;
    if (value->type == JSON_ARRAY || value->type == JSON_OBJECT)
        return clone_container(value);
    if (value->type == JSON_STRING)
        return json_string_new(value->u.string);
    copy = mem_new(JsonValue);
    *copy = *value;
    return copy;
}

void json_free(JsonValue *value)
{
    if (!value)
        return;
    if (value->type == JSON_STRING) {
        str_free_wiped(value->u.string);
    } else if (value->type == JSON_ARRAY) {
        for (size_t i = 0; i < value->u.array.count; i++)
            json_free(value->u.array.items[i]);
        free(value->u.array.items);
    } else if (value->type == JSON_OBJECT) {
        for (size_t i = 0; i < value->u.object.count; i++) {
            free(value->u.object.members[i].key);
            json_free(value->u.object.members[i].value);
        }
        free(value->u.object.members);
        index_free(value);
    }
    free(value);
}

void json_free_ptr(JsonValue **value)
{
    json_free(*value);
}

/* ---- Reading ---- */

JsonValue *json_get(const JsonValue *object, const char *key)
{
    JsonMember *member = json_is(object, JSON_OBJECT) ? find_member(object, key) : NULL;

    return member ? member->value : NULL;
}

const char *json_get_string(const JsonValue *object, const char *key)
{
    const JsonValue *value = json_get(object, key);

    return json_is(value, JSON_STRING) ? value->u.string : NULL;
}

JsonValue *json_object_take(JsonValue *object, const char *key)
{
    JsonMember *member = json_is(object, JSON_OBJECT) ? find_member(object, key) : NULL;
    JsonValue *value;
    size_t after;

    if (!member)
        return NULL;
    value = member->value;
    free(member->key);
    after = object->u.object.count - (size_t)(member - object->u.object.members) - 1;
    memmove(member, member + 1, after * sizeof(*member));
    object->u.object.count--;
    if (object->u.object.index)
        index_build(object);
    return value;
}

static bool is_number(const JsonValue *value)
{
    return value->type == JSON_INT || value->type == JSON_UINT || value->type == JSON_DOUBLE;
}

static double as_double(const JsonValue *value)
{
    if (value->type == JSON_DOUBLE)
        return value->u.number;
    return value->type == JSON_INT ? (double)value->u.integer : (double)value->u.uinteger;
}

static bool numbers_equal(const JsonValue *a, const JsonValue *b)
{
    if (a->type == b->type && a->type != JSON_DOUBLE)
        return a->u.integer == b->u.integer;
    if (a->type != JSON_DOUBLE && b->type != JSON_DOUBLE)
        return false; /* an INT and a UINT: different ranges */
    return as_double(a) == as_double(b);
}

static bool objects_equal(const JsonValue *a, const JsonValue *b)
{
    if (a->u.object.count != b->u.object.count)
        return false;
    for (size_t i = 0; i < a->u.object.count; i++) {
        const JsonMember *other = find_member(b, a->u.object.members[i].key);

        if (!other || !json_equal(a->u.object.members[i].value, other->value))
            return false;
    }
    return true;
}

static bool arrays_equal(const JsonValue *a, const JsonValue *b)
{
    if (a->u.array.count != b->u.array.count)
        return false;
    for (size_t i = 0; i < a->u.array.count; i++)
        if (!json_equal(a->u.array.items[i], b->u.array.items[i]))
            return false;
    return true;
}

bool json_equal(const JsonValue *a, const JsonValue *b)
{
    if (!a || !b)
        return a == b;
    if (is_number(a) && is_number(b))
        return numbers_equal(a, b);
    if (a->type != b->type)
        return false;
    switch (a->type) {
    case JSON_BOOL:
        return a->u.boolean == b->u.boolean;
    case JSON_STRING:
        return strcmp(a->u.string, b->u.string) == 0;
    case JSON_ARRAY:
        return arrays_equal(a, b);
    case JSON_OBJECT:
        return objects_equal(a, b);
    default:
        return true;
    }
}
