/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/luks.h"

#include "base/endian.h"

#define MAGIC_BYTES 6u
#define SLOT_ACTIVE 0x00ac71f3u
#define SLOT_INACTIVE 0x0000deadu

/* Where the fields lie. */
#define AT_VERSION 6u
#define AT_CIPHER 8u
#define AT_MODE 40u
#define AT_HASH 72u
#define AT_PAYLOAD 104u
#define AT_KEY_BYTES 108u
#define AT_DIGEST 112u
#define AT_DIGEST_SALT 132u
#define AT_DIGEST_ITERATIONS 164u
#define AT_UUID 168u
#define AT_SLOTS 208u
#define SLOT_BYTES 48u
#define SLOT_AT_ITERATIONS 4u
#define SLOT_AT_SALT 8u
#define SLOT_AT_SECTOR 40u
#define SLOT_AT_STRIPES 44u

#define HEADER_SECTORS ((LUKS_HEADER_BYTES + LUKS_SECTOR_BYTES - 1) / LUKS_SECTOR_BYTES)

static const uint8_t magic[MAGIC_BYTES] = {'L', 'U', 'K', 'S', 0xba, 0xbe};

bool luks_is_version(const uint8_t *data, size_t bytes, unsigned version)
{
    return bytes >= AT_CIPHER && memcmp(data, magic, MAGIC_BYTES) == 0 &&
           get_be16(data + AT_VERSION) == version;
}

/* ---- Decoding ---- */

static int decode_name(const uint8_t *data, const char *what, char *name, Error *err)
{
    if (!memchr(data, 0, LUKS_NAME_BYTES))
        return err_set(err, -EINVAL, "LUKS header %s is not NUL terminated", what);
    memcpy(name, data, LUKS_NAME_BYTES);
    return 0;
}

static int decode_slot(const uint8_t *data, unsigned index, LuksSlot *slot, Error *err)
{
    uint32_t state = get_be32(data);

    *slot = (LuksSlot){.active = state == SLOT_ACTIVE,
        .iterations = get_be32(data + SLOT_AT_ITERATIONS),
        .sector = get_be32(data + SLOT_AT_SECTOR),
        .stripes = get_be32(data + SLOT_AT_STRIPES)};
    memcpy(slot->salt, data + SLOT_AT_SALT, LUKS_SALT_BYTES);
    if (slot->stripes != LUKS_STRIPES)
        return err_set(err, -EINVAL, "Keyslot %u is corrupted (stripes %d != %u)", index, (int)slot->stripes,
            LUKS_STRIPES);
    if (state != SLOT_ACTIVE && state != SLOT_INACTIVE)
        return err_set(err, -EINVAL, "Keyslot %u state (active/disable) is corrupted", index);
    if (slot->active && !slot->iterations)
        return err_set(err, -EINVAL, "Keyslot %u iteration count is zero", index);
    return 0;
}

uint64_t luks_material_bytes(const LuksHeader *header)
{
    return align_up((uint64_t)header->key_bytes * LUKS_STRIPES, LUKS_SECTOR_BYTES);
}

static int check_place(const LuksHeader *header, unsigned index, Error *err)
{
    uint64_t sectors = luks_material_bytes(header) / LUKS_SECTOR_BYTES, at = header->slots[index].sector;

    if (at < HEADER_SECTORS)
        return err_set(err, -EINVAL, "Keyslot %u is overlapping with the LUKS header", index);
    if (header->payload_sector && at + sectors > header->payload_sector)
        return err_set(err, -EINVAL, "Keyslot %u is overlapping with the encrypted payload", index);
    for (unsigned i = 0; i < index; i++) {
        uint64_t other = header->slots[i].sector;

        if (at < other + sectors && other < at + sectors)
            return err_set(err, -EINVAL, "Keyslots %u and %u are overlapping in the header", i, index);
    }
    return 0;
}

static int decode_slots(const uint8_t *data, LuksHeader *header, Error *err)
{
    int r = 0;

    for (unsigned i = 0; r == 0 && i < LUKS_SLOTS; i++) {
        r = decode_slot(data + AT_SLOTS + i * SLOT_BYTES, i, &header->slots[i], err);
        if (r == 0)
            r = check_place(header, i, err);
    }
    return r;
}

static int decode_names(const uint8_t *data, LuksHeader *header, Error *err)
{
    int r = decode_name(data + AT_CIPHER, "cipher name", header->cipher, err);

    if (r == 0)
        r = decode_name(data + AT_MODE, "cipher mode", header->mode, err);
    if (r == 0)
        r = decode_name(data + AT_HASH, "hash spec", header->hash, err);
    return r;
}

int luks_header_decode(
    const uint8_t data[static LUKS_HEADER_BYTES], bool detached, LuksHeader *ret_header, Error *err)
{
    LuksHeader header = {0};
    int r;

    if (memcmp(data, magic, MAGIC_BYTES) != 0)
        return err_set(err, -EINVAL, "Volume is not in LUKS format");
    if (get_be16(data + AT_VERSION) != 1)
        return err_set(err, -ENOTSUP, "LUKS version %u is not supported", get_be16(data + AT_VERSION));
    r = decode_names(data, &header, err);
    if (r < 0)
        return r;
    header.payload_sector = get_be32(data + AT_PAYLOAD);
    header.key_bytes = get_be32(data + AT_KEY_BYTES);
    header.digest_iterations = get_be32(data + AT_DIGEST_ITERATIONS);
    memcpy(header.digest, data + AT_DIGEST, LUKS_DIGEST_BYTES);
    memcpy(header.digest_salt, data + AT_DIGEST_SALT, LUKS_SALT_BYTES);
    memcpy(header.uuid, data + AT_UUID, LUKS_UUID_BYTES);
    if (header.payload_sector < HEADER_SECTORS && !(detached && !header.payload_sector))
        return err_set(err, -EINVAL, "LUKS payload is overlapping with the header");
    if (!header.digest_iterations)
        return err_set(err, -EINVAL, "LUKS key iteration count is zero");
    r = decode_slots(data, &header, err);
    if (r == 0)
        *ret_header = header;
    return r;
}

/* ---- Encoding ---- */

static void encode_slot(const LuksSlot *slot, uint8_t *out)
{
    put_be32(out, slot->active ? SLOT_ACTIVE : SLOT_INACTIVE);
    put_be32(out + SLOT_AT_ITERATIONS, slot->iterations);
    memcpy(out + SLOT_AT_SALT, slot->salt, LUKS_SALT_BYTES);
    put_be32(out + SLOT_AT_SECTOR, slot->sector);
    put_be32(out + SLOT_AT_STRIPES, slot->stripes);
}

void luks_header_encode(const LuksHeader *header, uint8_t out[static LUKS_HEADER_BYTES])
{
    memset(out, 0, LUKS_HEADER_BYTES);
    memcpy(out, magic, MAGIC_BYTES);
    put_be16(out + AT_VERSION, 1);
    memcpy(out + AT_CIPHER, header->cipher, LUKS_NAME_BYTES);
    memcpy(out + AT_MODE, header->mode, LUKS_NAME_BYTES);
    memcpy(out + AT_HASH, header->hash, LUKS_NAME_BYTES);
    put_be32(out + AT_PAYLOAD, header->payload_sector);
    put_be32(out + AT_KEY_BYTES, header->key_bytes);
    memcpy(out + AT_DIGEST, header->digest, LUKS_DIGEST_BYTES);
    memcpy(out + AT_DIGEST_SALT, header->digest_salt, LUKS_SALT_BYTES);
    put_be32(out + AT_DIGEST_ITERATIONS, header->digest_iterations);
    memcpy(out + AT_UUID, header->uuid, LUKS_UUID_BYTES);
    for (unsigned i = 0; i < LUKS_SLOTS; i++)
        encode_slot(&header->slots[i], out + AT_SLOTS + i * SLOT_BYTES);
}

uint64_t luks_header_place(LuksHeader *header, bool detached)
{
    uint64_t at = LUKS_ALIGNMENT;

    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        header->slots[i].sector = (uint32_t)(at / LUKS_SECTOR_BYTES);
        header->slots[i].stripes = LUKS_STRIPES;
        at += align_up(luks_material_bytes(header), LUKS_ALIGNMENT);
    }
    header->payload_sector = detached ? 0 : (uint32_t)(at / LUKS_SECTOR_BYTES);
    return at;
}
