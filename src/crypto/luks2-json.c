/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The JSON area of LUKS2, to a struct whose numbers are checked. Numbers of 64 bits are decimal strings
 * there, numbers of 32 bits are JSON's. What is not needed for opening the volume is not looked at.
 */
#include "base/limits.h"
#include "crypto/luks2.h"
#include "crypto/secret.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define DECIMAL_DIGITS_MAX 20u
#define TEXT_MAX 128u
#define PRIORITY_IGNORE 0
#define PRIORITY_PREFER 2

/* ---- Values ---- */

static int get_text(const JsonValue *object, const char *key, const char **ret_text, Error *err)
{
    const char *text = json_get_string(object, key);

    if (!text || strlen(text) > TEXT_MAX)
        return err_set(err, -EINVAL, "'%s' is missing or no short string", key);
    *ret_text = text;
    return 0;
}

static int expect_text(const JsonValue *object, const char *key, const char *expected, Error *err)
{
    const char *text = NULL;
    int r = get_text(object, key, &text, err);

    if (r == 0 && strcmp(text, expected) != 0)
        return err_set(err, -ENOTSUP, "%s '%s' is not supported", key, text);
    return r;
}

static int get_container(
    const JsonValue *object, const char *key, JsonType type, const JsonValue **ret_value, Error *err)
{
    const JsonValue *value = json_get(object, key);

    if (!json_is(value, type))
        return err_set(
            err, -EINVAL, "'%s' is missing or no %s", key, type == JSON_OBJECT ? "object" : "array");
    *ret_value = value;
    return 0;
}

static int get_small(
    const JsonValue *object, const char *key, uint32_t min, uint32_t max, uint32_t *ret_value, Error *err)
{
    const JsonValue *value = json_get(object, key);

    if (!json_is(value, JSON_INT) || value->u.integer < min || value->u.integer > max)
        return err_set(err, -EINVAL, "'%s' is no number between %" PRIu32 " and %" PRIu32, key, min, max);
    *ret_value = (uint32_t)value->u.integer;
    return 0;
}

static bool parse_decimal(const char *text, uint64_t *ret_value)
{
    size_t digits = strspn(text, "0123456789");
    uint64_t value = 0;

    if (!digits || digits > DECIMAL_DIGITS_MAX || text[digits])
        return false;
    for (size_t i = 0; i < digits; i++)
        if (__builtin_mul_overflow(value, 10u, &value) ||
            __builtin_add_overflow(value, (uint64_t)(text[i] - '0'), &value))
            return false;
    *ret_value = value;
    return true;
}

static int get_large(const JsonValue *object, const char *key, uint64_t *ret_value, Error *err)
{
    const char *text = json_get_string(object, key);

    if (!text || !parse_decimal(text, ret_value))
        return err_set(err, -EINVAL, "'%s' is no decimal number in a string", key);
    return 0;
}

static int get_hash(const JsonValue *object, QCryptoHashAlgo *ret_hash, Error *err)
{
    const char *name = NULL;
    int r = get_text(object, "hash", &name, err);

    if (r == 0 && !hash_find(name, ret_hash))
        return err_set(err, -ENOTSUP, "Hash algorithm '%s' not supported", name);
    return r;
}

/* Text to at most max bytes. */
static int get_base64(
    const JsonValue *object, const char *key, uint8_t *out, size_t max, size_t *ret_bytes, Error *err)
{
    const char *text = NULL;
    uint8_t *data;
    size_t bytes;
    int r = get_text(object, key, &text, err);

    if (r < 0)
        return r;
    r = secret_from_base64(text, strlen(text), &data, &bytes, err);
    if (r < 0)
        return err_prefix(err, r, "'%s'", key);
    if (bytes && bytes <= max)
        memcpy(out, data, bytes);
    else
        r = err_set(err, -EINVAL, "'%s' has %zu bytes", key, bytes);
    secret_free(data, bytes);
    *ret_bytes = bytes;
    return r;
}

static int get_salt(const JsonValue *object, LuksSalt *ret_salt, Error *err)
{
    return get_base64(object, "salt", ret_salt->data, sizeof(ret_salt->data), &ret_salt->bytes, err);
}

static bool contains(const JsonValue *array, const char *text)
{
    for (size_t i = 0; i < array->u.array.count; i++) {
        const JsonValue *item = array->u.array.items[i];

        if (json_is(item, JSON_STRING) && strcmp(item->u.string, text) == 0)
            return true;
    }
    return false;
}

/* "aes-xts-plain64" */
static int find_encryption(const JsonValue *object, uint32_t key_bytes, CipherSpec *ret_spec, Error *err)
{
    char family[LUKS_NAME_BYTES] = "";
    const char *text = NULL, *mode;
    int r = get_text(object, "encryption", &text, err);

    if (r < 0)
        return r;
    mode = strchr(text, '-');
    if (!mode || (size_t)(mode - text) >= sizeof(family) || strlen(mode + 1) >= LUKS_NAME_BYTES)
        return err_set(err, -ENOTSUP, "Encryption '%s' is not supported", text);
    memcpy(family, text, (size_t)(mode - text));
    r = luks_find_cipher(family, mode + 1, key_bytes, ret_spec, err);
    if (r == 0 && cipher_key_bytes(ret_spec) != key_bytes) /* half a byte too many for XTS */
        return err_set(
            err, -EINVAL, "A key of %" PRIu32 " bytes does not fit encryption '%s'", key_bytes, text);
    return r;
}

/* ---- Key slots ---- */

static int decode_argon2(const JsonValue *kdf, Luks2Slot *slot, Error *err)
{
    int r = get_small(kdf, "time", 1, INT32_MAX, &slot->iterations, err);

    if (r == 0)
        r = get_small(kdf, "memory", 1, INT32_MAX, &slot->memory_kib, err);
    if (r == 0)
        r = get_small(kdf, "cpus", 1, INT32_MAX, &slot->lanes, err);
    if (r < 0)
        return r;
    if (slot->memory_kib > LIMIT_LUKS_ARGON2_KIB)
        return err_set(err, -EFBIG,
            "its password takes %" PRIu32 " KiB of memory to try, more than %u; 'cryptsetup luksConvertKey' "
            "with '--pbkdf-memory' changes that",
            slot->memory_kib, LIMIT_LUKS_ARGON2_KIB);
    if (slot->lanes > LIMIT_LUKS_ARGON2_LANES)
        return err_set(err, -EFBIG, "its password takes %" PRIu32 " processors to try, more than %u",
            slot->lanes, LIMIT_LUKS_ARGON2_LANES);
    if ((uint64_t)slot->iterations * slot->memory_kib > LIMIT_LUKS_ARGON2_COST)
        return err_set(err, -EFBIG,
            "its password would take too long to try: %" PRIu32 " passes over %" PRIu32 " KiB of memory",
            slot->iterations, slot->memory_kib);
    return 0;
}

static int decode_pbkdf2(const JsonValue *kdf, Luks2Slot *slot, Error *err)
{
    int r = get_hash(kdf, &slot->kdf_hash, err);

    if (r == 0)
        r = get_small(kdf, "iterations", 1, INT32_MAX, &slot->iterations, err);
    if (r == 0 && slot->iterations > LIMIT_LUKS_ITERATIONS)
        return err_set(err, -EFBIG, "its password would take too long to try: more than %u iterations",
            LIMIT_LUKS_ITERATIONS);
    return r;
}

static int decode_kdf(const JsonValue *object, Luks2Slot *slot, Error *err)
{
    const JsonValue *kdf = NULL;
    const char *type = NULL;
    int r = get_container(object, "kdf", JSON_OBJECT, &kdf, err);

    if (r == 0)
        r = get_text(kdf, "type", &type, err);
    if (r == 0)
        r = get_salt(kdf, &slot->salt, err);
    if (r < 0)
        return r;
    if (strcmp(type, "pbkdf2") == 0) {
        slot->kdf = LUKS_KDF_PBKDF2;
        return decode_pbkdf2(kdf, slot, err);
    }
    if (strcmp(type, "argon2i") != 0 && strcmp(type, "argon2id") != 0)
        return err_set(err, -ENOTSUP, "Key derivation '%s' is not supported", type);
    slot->kdf = strcmp(type, "argon2i") == 0 ? LUKS_KDF_ARGON2I : LUKS_KDF_ARGON2ID;
    return decode_argon2(kdf, slot, err);
}

static int decode_af(const JsonValue *object, Luks2Slot *slot, Error *err)
{
    const JsonValue *af = NULL;
    uint32_t stripes;
    int r = get_container(object, "af", JSON_OBJECT, &af, err);

    if (r == 0)
        r = expect_text(af, "type", "luks1", err);
    if (r == 0)
        r = get_small(af, "stripes", LUKS_STRIPES, LUKS_STRIPES, &stripes, err);
    return r < 0 ? r : get_hash(af, &slot->af_hash, err);
}

/* "Keyslots Area": behind both copies, as long as the configuration says. */
typedef struct Bounds {
    uint64_t begin, end;
} Bounds;

uint64_t luks2_material_bytes(const Luks2Slot *slot)
{
    return align_up((uint64_t)slot->key_bytes * LUKS_STRIPES, LUKS_SECTOR_BYTES);
}

static int decode_area(const JsonValue *object, const Bounds *bounds, Luks2Slot *slot, Error *err)
{
    const JsonValue *area = NULL;
    uint64_t bytes = 0, end;
    uint32_t key_bytes = 0;
    int r = get_container(object, "area", JSON_OBJECT, &area, err);

    if (r == 0)
        r = expect_text(area, "type", "raw", err);
    if (r == 0)
        r = get_large(area, "offset", &slot->area_offset, err);
    if (r == 0)
        r = get_large(area, "size", &bytes, err);
    if (r == 0)
        r = get_small(area, "key_size", 1, CIPHER_KEY_BYTES_MAX, &key_bytes, err);
    if (r == 0)
        r = find_encryption(area, key_bytes, &slot->area_spec, err);
    if (r < 0)
        return r;
    if (slot->area_offset < bounds->begin || __builtin_add_overflow(slot->area_offset, bytes, &end) ||
        end > bounds->end || luks2_material_bytes(slot) > bytes)
        return err_set(err, -EINVAL,
            "its area of %" PRIu64 " bytes at %" PRIu64 " does not fit its key, or the area of keys", bytes,
            slot->area_offset);
    return 0;
}

static int decode_usable_slot(const JsonValue *object, const Bounds *bounds, Luks2Slot *slot, Error *err)
{
    uint32_t priority = 1;
    int r = expect_text(object, "type", "luks2", err);

    if (r == 0)
        r = get_small(object, "key_size", 1, CIPHER_KEY_BYTES_MAX, &slot->key_bytes, err);
    if (r == 0)
        r = decode_area(object, bounds, slot, err);
    if (r == 0)
        r = decode_af(object, slot, err);
    if (r == 0)
        r = decode_kdf(object, slot, err);
    if (r == 0 && json_get(object, "priority"))
        r = get_small(object, "priority", PRIORITY_IGNORE, PRIORITY_PREFER, &priority, err);
    slot->avoided = priority == PRIORITY_IGNORE;
    slot->preferred = priority == PRIORITY_PREFER;
    return r;
}

static void decode_slot(const JsonValue *object, const Bounds *bounds, Luks2Slot *slot)
{
    AUTO_ERROR Error err = ERROR_INIT;

    slot->active = true;
    if (decode_usable_slot(object, bounds, slot, &err) < 0)
        snprintf(slot->problem, sizeof(slot->problem), "%s", err.message);
}

/* The slots that the digest is of; those of other keys do not matter. */
static int decode_slots(
    const JsonValue *json, const JsonValue *digest, const Bounds *bounds, Luks2 *luks, Error *err)
{
    const JsonValue *slots = NULL, *names = NULL;
    int r = get_container(json, "keyslots", JSON_OBJECT, &slots, err);

    if (r == 0)
        r = get_container(digest, "keyslots", JSON_ARRAY, &names, err);
    if (r < 0)
        return r;
    for (unsigned i = 0; i < LUKS2_SLOTS; i++) {
        Luks2Slot *slot = &luks->slots[i];
        const JsonValue *object;
        char name[12];

        snprintf(name, sizeof(name), "%u", i);
        object = json_get(slots, name);
        if (!object || !contains(names, name))
            continue;
        decode_slot(object, bounds, slot);
        if (!slot->problem[0] && !luks->key_bytes)
            luks->key_bytes = slot->key_bytes;
        else if (!slot->problem[0] && luks->key_bytes != slot->key_bytes)
            snprintf(
                slot->problem, sizeof(slot->problem), "its key has another size than that of other slots");
    }
    return 0;
}

static int explain_no_slot(const Luks2 *luks, Error *err)
{
    for (unsigned i = 0; i < LUKS2_SLOTS; i++)
        if (luks->slots[i].active)
            return err_set(err, -ENOTSUP, "Keyslot %u cannot be used: %s", i, luks->slots[i].problem);
    return err_set(err, -EINVAL, "The LUKS2 volume has no keyslot for its data");
}

/* ---- The rest ---- */

static int decode_digest(const JsonValue *object, Luks2Digest *digest, Error *err)
{
    size_t bytes = 0;
    int r = expect_text(object, "type", "pbkdf2", err);

    if (r == 0)
        r = get_hash(object, &digest->hash, err);
    if (r == 0)
        r = get_small(object, "iterations", 1, INT32_MAX, &digest->iterations, err);
    if (r == 0)
        r = get_salt(object, &digest->salt, err);
    if (r == 0)
        r = get_base64(object, "digest", digest->value, sizeof(digest->value), &bytes, err);
    if (r < 0)
        return r;
    if (bytes != hash_bytes(digest->hash))
        return err_set(err, -EINVAL, "'digest' has %zu bytes", bytes);
    if (digest->iterations > LIMIT_LUKS_ITERATIONS)
        return err_set(err, -EFBIG, "it would take too long: more than %u iterations", LIMIT_LUKS_ITERATIONS);
    return 0;
}

/* The digest of the segment's key. */
static int find_digest(
    const JsonValue *json, const char *segment, const JsonValue **ret_digest, Luks2 *luks, Error *err)
{
    const JsonValue *digests = NULL;
    int r = get_container(json, "digests", JSON_OBJECT, &digests, err);

    if (r < 0)
        return r;
    for (size_t i = 0; i < digests->u.object.count; i++) {
        const JsonMember *member = &digests->u.object.members[i];
        const JsonValue *segments = json_get(member->value, "segments");

        if (!json_is(segments, JSON_ARRAY) || !contains(segments, segment))
            continue;
        *ret_digest = member->value;
        r = decode_digest(member->value, &luks->digest, err);
        return r < 0 ? err_prefix(err, r, "LUKS2 digest %.20s", member->key) : 0;
    }
    return err_set(err, -EINVAL, "LUKS2 segment %.20s has no digest", segment);
}

static int decode_segment_size(const JsonValue *segment, Luks2 *luks, Error *err)
{
    const char *size = NULL;
    uint64_t end;
    int r = get_text(segment, "size", &size, err);

    if (r < 0 || strcmp(size, "dynamic") == 0)
        return r;
    r = get_large(segment, "size", &luks->payload_bytes, err);
    if (r < 0)
        return r;
    if (!luks->payload_bytes || !is_aligned(luks->payload_bytes, luks->sector_bytes) ||
        __builtin_add_overflow(luks->payload, luks->payload_bytes, &end) || end > LIMIT_NODE_BYTES)
        return err_set(err, -EINVAL, "size %" PRIu64 " is not valid", luks->payload_bytes);
    return 0;
}

static int decode_segment(const JsonValue *segment, Luks2 *luks, Error *err)
{
    const JsonValue *flags = json_get(segment, "flags");
    uint64_t iv_tweak = 0;
    int r = expect_text(segment, "type", "crypt", err);

    if (r == 0 && json_get(segment, "integrity"))
        return err_set(err, -ENOTSUP, "Volumes with integrity protection are not supported");
    if (r == 0 && flags && !(json_is(flags, JSON_ARRAY) && !flags->u.array.count))
        return err_set(err, -ENOTSUP, "Segments with flags are not supported");
    if (r == 0)
        r = get_small(segment, "sector_size", CIPHER_IV_SECTOR_BYTES, CIPHER_SECTOR_BYTES_MAX,
            &luks->sector_bytes, err);
    if (r == 0)
        r = get_large(segment, "offset", &luks->payload, err);
    if (r == 0)
        r = get_large(segment, "iv_tweak", &iv_tweak, err);
    if (r < 0)
        return r;
    /* The format adds it to the numbers of the sectors, cryptsetup does not unless it reencrypts: each would
     * destroy what the other one writes. */
    if (iv_tweak)
        return err_set(err, -ENOTSUP, "iv_tweak %" PRIu64 " is not supported, only 0", iv_tweak);
    if (!is_power_of_2(luks->sector_bytes))
        return err_set(err, -EINVAL, "sector size %" PRIu32 " is not valid", luks->sector_bytes);
    if (!is_aligned(luks->payload, CIPHER_IV_SECTOR_BYTES) || luks->payload > LIMIT_NODE_BYTES)
        return err_set(err, -EINVAL, "offset %" PRIu64 " is not valid", luks->payload);
    return decode_segment_size(segment, luks, err);
}

static int find_segment(const JsonValue *json, const JsonMember **ret_segment, Luks2 *luks, Error *err)
{
    const JsonValue *segments = NULL;
    const JsonMember *segment;
    int r = get_container(json, "segments", JSON_OBJECT, &segments, err);

    if (r < 0)
        return r;
    if (segments->u.object.count != 1)
        return err_set(err, -ENOTSUP, "LUKS2 volumes with %zu data segments are not supported, only with one",
            segments->u.object.count);
    segment = &segments->u.object.members[0];
    r = decode_segment(segment->value, luks, err);
    if (r < 0)
        return err_prefix(err, r, "LUKS2 segment %.20s", segment->key);
    *ret_segment = segment;
    return 0;
}

/* "Config Object": what a program must know to touch the volume, and where the area of the keys ends. */
static int check_requirements(const JsonValue *config, Error *err)
{
    const JsonValue *mandatory = json_get(json_get(config, "requirements"), "mandatory");
    const char *name;

    if (!mandatory || (json_is(mandatory, JSON_ARRAY) && !mandatory->u.array.count))
        return 0;
    name = json_is(mandatory, JSON_ARRAY) && json_is(mandatory->u.array.items[0], JSON_STRING)
               ? mandatory->u.array.items[0]->u.string
               : "?";
    if (strstr(name, "reencrypt"))
        return err_set(err, -EBUSY,
            "The LUKS2 volume is being reencrypted ('%.64s'); finish that with 'cryptsetup reencrypt'", name);
    return err_set(err, -ENOTSUP, "LUKS2 requirement '%.64s' is not supported", name);
}

static int decode_config(const JsonValue *json, uint64_t copy_bytes, Bounds *ret_bounds, Error *err)
{
    Bounds bounds = {.begin = 2 * copy_bytes};
    const JsonValue *config = NULL;
    uint64_t bytes = 0;
    int r = get_container(json, "config", JSON_OBJECT, &config, err);

    if (r == 0)
        r = check_requirements(config, err);
    if (r == 0)
        r = get_large(config, "keyslots_size", &bytes, err);
    if (r < 0)
        return r;
    if (__builtin_add_overflow(bounds.begin, bytes, &bounds.end) || bounds.end > LIMIT_NODE_BYTES)
        return err_set(err, -EINVAL, "LUKS2 'keyslots_size' %" PRIu64 " is not valid", bytes);
    *ret_bounds = bounds;
    return 0;
}

int luks2_decode(const JsonValue *json, uint64_t copy_bytes, Luks2 *luks, Error *err)
{
    const JsonMember *segment = NULL;
    const JsonValue *digest = NULL;
    Bounds bounds;
    int r = decode_config(json, copy_bytes, &bounds, err);

    if (r == 0)
        r = find_segment(json, &segment, luks, err);
    if (r == 0)
        r = find_digest(json, segment->key, &digest, luks, err);
    if (r == 0)
        r = decode_slots(json, digest, &bounds, luks, err);
    if (r < 0)
        return r;
    if (!luks->detached && luks->payload < bounds.end)
        return err_set(err, -EINVAL, "LUKS payload is overlapping with the header");
    if (!luks->key_bytes)
        return explain_no_slot(luks, err);
    r = find_encryption(segment->value, luks->key_bytes, &luks->spec, err);
    return r < 0 ? err_prefix(err, r, "LUKS2 segment %.20s", segment->key) : 0;
}
