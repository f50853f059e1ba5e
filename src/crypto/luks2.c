/* SPDX-License-Identifier: Apache-2.0 */
/* Volumes of LUKS version 2: which copy of the metadata is used, and what a password opens. */
#include "crypto/luks2.h"

#include "base/limits.h"
#include "base/mem.h"
#include "crypto/luks-priv.h"
#include "loop/loop.h"

#include <argon2.h>
#include <inttypes.h>
#include <nettle/memops.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

/* ---- Copies of the metadata ---- */

typedef struct Copy {
    Luks2Binary binary;
    JsonValue *json;
} Copy;

static void copy_done(Copy *copy)
{
    json_free(copy->json);
}
#define AUTO_COPY CLEANUP(copy_done)

static int check_sum(const Luks2Binary *binary, uint8_t *data, Error *err)
{
    const uint8_t zeroes[LUKS2_CHECKSUM_BYTES] = {0};
    uint8_t digest[HASH_BYTES_MAX];
    QCryptoHashAlgo hash;

    if (!hash_find(binary->checksum_hash, &hash))
        return err_set(err, -ENOTSUP, "LUKS2 header checksum '%s' is not supported", binary->checksum_hash);
    luks2_binary_set_checksum(data, zeroes, sizeof(zeroes));
    hash_digest(hash, data, binary->copy_bytes, digest);
    return memcmp(digest, binary->checksum, hash_bytes(hash)) == 0
               ? 0
               : err_set(err, -EINVAL, "LUKS2 header checksum is wrong");
}

/* data: a whole copy. The text ends with a NUL within the area. */
static int parse_area(const Luks2Binary *binary, const uint8_t *data, JsonValue **ret_json, Error *err)
{
    const char *text = (const char *)data + LUKS2_BINARY_BYTES;
    size_t room = MIN(binary->copy_bytes - LUKS2_BINARY_BYTES, LIMIT_LUKS_JSON_BYTES);
    int r;

    if (!memchr(text, 0, room))
        return err_set(err, -EINVAL, "LUKS2 metadata does not end within %zu bytes", room);
    r = json_parse(text, ret_json, err);
    return r < 0 ? err_prefix(err, r, "LUKS2 metadata is damaged") : 0;
}

static int read_copy(const LuksIo *io, uint64_t offset, Copy *ret_copy, Error *err)
{
    uint8_t head[LUKS2_BINARY_BYTES];
    AUTO_FREE uint8_t *data = NULL;
    Copy copy = {0};
    int r = io->read(io->opaque, offset, head, sizeof(head));

    if (r < 0)
        return err_set_errno(err, r, "Unable to read LUKS header");
    r = luks2_binary_decode(head, offset, &copy.binary, err);
    if (r < 0)
        return r;
    data = mem_try_zalloc(copy.binary.copy_bytes, 1);
    if (!data)
        return err_set(err, -ENOMEM, "Out of memory");
    /* The head is the one that was checked, whatever the file says by now. */
    memcpy(data, head, sizeof(head));
    r = io->read(
        io->opaque, offset + sizeof(head), data + sizeof(head), copy.binary.copy_bytes - sizeof(head));
    if (r < 0)
        return err_set_errno(err, r, "Unable to read LUKS header");
    r = check_sum(&copy.binary, data, err);
    if (r == 0)
        r = parse_area(&copy.binary, data, &copy.json, err);
    if (r == 0)
        *ret_copy = copy;
    return r;
}

/* "Metadata Recovery": without the first copy nobody knows where the second one is, but there are few places.
 */
static int find_second(const LuksIo *io, Copy *ret_copy)
{
    int r = -ENOENT;

    for (uint64_t at = LUKS2_COPY_BYTES_MIN; r < 0 && at <= LUKS2_COPY_BYTES_MAX; at *= 2) {
        AUTO_ERROR Error ignored = ERROR_INIT;

        r = read_copy(io, at, ret_copy, &ignored);
    }
    return r;
}

static void take_newer(Copy *best, Copy *other)
{
    if (other->json && (!best->json || other->binary.sequence > best->binary.sequence)) {
        Copy swapped = *best;

        *best = *other;
        *other = swapped;
    }
}

/* 1: nothing of version 2 here. */
static int choose_copy(const LuksIo *io, Copy *ret_copy, Error *err)
{
    AUTO_ERROR Error first_err = ERROR_INIT, ignored = ERROR_INIT;
    AUTO_COPY Copy first = {0}, second = {0};
    uint8_t head[LUKS2_BINARY_BYTES];
    bool recognised;
    int r = io->read(io->opaque, 0, head, sizeof(head));

    if (r < 0)
        return err_set_errno(err, r, "Unable to read LUKS header");
    recognised = luks_is_version(head, sizeof(head), 2);
    if (luks_is_version(head, sizeof(head), 1))
        return 1;
    if (recognised)
        r = read_copy(io, 0, &first, &first_err);
    if (recognised && r == 0)
        (void)!read_copy(io, first.binary.copy_bytes, &second, &ignored);
    else
        (void)!find_second(io, &second);
    take_newer(&first, &second);
    if (!first.json && recognised) {
        err_move(err, &first_err);
        return r;
    }
    if (!first.json)
        return 1;
    *ret_copy = first;
    first.json = NULL;
    return 0;
}

int luks2_read(const LuksIo *io, bool detached, Luks2 *ret_luks, Error *err)
{
    AUTO_COPY Copy copy = {0};
    Luks2 luks = {.detached = detached};
    int r = choose_copy(io, &copy, err);

    if (r != 0)
        return r;
    memcpy(luks.uuid, copy.binary.uuid, sizeof(luks.uuid));
    r = luks2_decode(copy.json, copy.binary.copy_bytes, &luks, err);
    if (r == 0)
        *ret_luks = luks;
    return r;
}

/* ---- Work on key slots, in a worker ---- */

typedef struct SlotWork {
    const Luks2 *luks;
    const Luks2Slot *slot;
    const Secret *password;
    uint8_t *key, *material; /* of the volume, and as on disk */
    bool opened;
    Error *err;
} SlotWork;

/* The library wipes its memory itself; it may be too much for locking it. */
static int argon2_memory(uint8_t **ret_memory, size_t bytes)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED)
        return ARGON2_MEMORY_ALLOCATION_ERROR;
    madvise(memory, bytes, MADV_DONTDUMP);
    *ret_memory = memory;
    return ARGON2_OK;
}

static void argon2_memory_free(uint8_t *memory, size_t bytes)
{
    munmap(memory, bytes);
}

static int derive_argon2(const SlotWork *work, Secret *key)
{
    const Luks2Slot *slot = work->slot;
    argon2_context context = {
        .out = key->data,
        .outlen = (uint32_t)key->bytes,
        .pwd = work->password->data,
        .pwdlen = (uint32_t)work->password->bytes,
        .salt = (uint8_t *)slot->salt.data,
        .saltlen = (uint32_t)slot->salt.bytes,
        .t_cost = slot->iterations,
        .m_cost = slot->memory_kib,
        .lanes = slot->lanes,
        .threads = slot->lanes,
        .version = ARGON2_VERSION_13,
        .allocate_cbk = argon2_memory,
        .free_cbk = argon2_memory_free,
    };
    int r = argon2_ctx(&context, slot->kdf == LUKS_KDF_ARGON2I ? Argon2_i : Argon2_id);

    if (r == ARGON2_OK)
        return 0;
    return err_set(work->err, r == ARGON2_MEMORY_ALLOCATION_ERROR ? -ENOMEM : -EINVAL,
        "Keyslot %d: Argon2 with %" PRIu32 " KiB of memory failed: %s", (int)(slot - work->luks->slots),
        slot->memory_kib, argon2_error_message(r));
}

static int derive(const SlotWork *work, Secret *key)
{
    const Luks2Slot *slot = work->slot;
    Pbkdf2 job = {slot->kdf_hash, work->password->data, work->password->bytes, slot->salt.data,
        slot->salt.bytes, slot->iterations};

    if (slot->kdf != LUKS_KDF_PBKDF2)
        return derive_argon2(work, key);
    pbkdf2_derive(&job, key->data, key->bytes);
    return 0;
}

/* The cipher that the slot's material is encrypted with. */
static int slot_cipher(const SlotWork *work, SectorCipher **ret_cipher)
{
    const CipherSpec *spec = &work->slot->area_spec;
    AUTO_SECRET Secret key = secret_new(cipher_key_bytes(spec));
    int r = key.data ? derive(work, &key) : err_set(work->err, -ENOMEM, "Out of memory");

    return r < 0 ? r : sector_cipher_new(spec, key.data, LUKS_SECTOR_BYTES, ret_cipher, work->err);
}

static bool is_volume_key(const Luks2 *luks, const uint8_t *key)
{
    const Luks2Digest *digest = &luks->digest;
    uint8_t value[HASH_BYTES_MAX];
    Pbkdf2 job = {
        digest->hash, key, luks->key_bytes, digest->salt.data, digest->salt.bytes, digest->iterations};

    pbkdf2_derive(&job, value, hash_bytes(digest->hash));
    return memeql_sec(value, digest->value, hash_bytes(digest->hash));
}

static int open_slot(void *arg)
{
    SlotWork *work = arg;
    const Luks2Slot *slot = work->slot;
    SectorCipher *cipher;
    int r = slot_cipher(work, &cipher);

    if (r < 0)
        return r;
    sector_cipher_decrypt(cipher, 0, work->material, work->material, luks2_material_bytes(slot));
    sector_cipher_free(cipher);
    af_merge(slot->af_hash, work->material, slot->key_bytes, LUKS_STRIPES, work->key);
    work->opened = is_volume_key(work->luks, work->key);
    return 0;
}

/* ---- Unlocking ---- */

/* Who waits for it gives up when the program ends. Volumes are opened on the main loop. */
static CoMutex argon2_turn;

/* The memory of Argon2 is for one at a time, however many volumes are opened at once. */
static int run(SlotWork *work)
{
    const Luks2Slot *slot = work->slot;
    int r;

    if (slot->kdf == LUKS_KDF_PBKDF2)
        return loop_work(open_slot, work);
    r = co_mutex_lock(&argon2_turn);
    if (r < 0)
        return err_set_errno(work->err, r, "Keyslot %d was not tried", (int)(slot - work->luks->slots));
    r = loop_work(open_slot, work);
    co_mutex_unlock(&argon2_turn);
    return r;
}

/* 1: the password is this slot's, and key the volume's. */
static int try_slot(const Luks2 *luks, const LuksIo *io, const Luks2Slot *slot, const Secret *password,
    uint8_t *key, Error *err)
{
    AUTO_SECRET Secret material = secret_new(luks2_material_bytes(slot));
    SlotWork work = {luks, slot, password, key, material.data, false, err};
    int r;

    if (!material.data)
        return err_set(err, -ENOMEM, "Out of memory");
    r = io->read(io->opaque, slot->area_offset, material.data, material.bytes);
    if (r < 0)
        return err_set_errno(err, r, "Failed to read key material of keyslot %d", (int)(slot - luks->slots));
    r = run(&work);
    return r < 0 ? r : work.opened;
}

static int try_slots(
    const Luks2 *luks, const LuksIo *io, bool preferred, const Secret *password, uint8_t *key, Error *err)
{
    int r = 0;

    for (unsigned i = 0; r == 0 && i < LUKS2_SLOTS; i++) {
        const Luks2Slot *slot = &luks->slots[i];

        if (slot->active && !slot->problem[0] && !slot->avoided && slot->preferred == preferred)
            r = try_slot(luks, io, slot, password, key, err);
    }
    return r;
}

static int explain_refusal(const Luks2 *luks, Error *err)
{
    for (unsigned i = 0; i < LUKS2_SLOTS; i++)
        if (luks->slots[i].problem[0])
            return err_set(err, -EPERM,
                "Invalid password, cannot unlock any keyslot; keyslot %u was not tried: %s", i,
                luks->slots[i].problem);
    return err_set(err, -EPERM, "Invalid password, cannot unlock any keyslot");
}

int luks2_unlock(const Luks2 *luks, const LuksIo *io, const char *secret_id, uint8_t **ret_key, Error *err)
{
    AUTO_SECRET Secret password = {0}, key = secret_new(luks->key_bytes);
    int r = key.data ? luks_password(secret_id, &password, err) : err_set(err, -ENOMEM, "Out of memory");

    if (r == 0)
        r = try_slots(luks, io, true, &password, key.data, err);
    if (r == 0)
        r = try_slots(luks, io, false, &password, key.data, err);
    if (r == 0)
        return explain_refusal(luks, err);
    if (r < 0)
        return r;
    *ret_key = TAKE(key.data);
    return 0;
}

/* ---- Information ---- */

static unsigned count_slots(const Luks2 *luks)
{
    unsigned count = LUKS2_SLOTS;

    while (count && !luks->slots[count - 1].active)
        count--;
    return count;
}

QCryptoBlockInfoLUKS *luks2_info(const Luks2 *luks)
{
    QCryptoBlockInfoLUKS *info = mem_new(QCryptoBlockInfoLUKS);
    unsigned count = count_slots(luks);

    info->cipher_alg = luks->spec.algorithm;
    info->cipher_mode = luks->spec.mode;
    info->ivgen_alg = luks->spec.ivgen;
    info->has_ivgen_hash_alg = luks->spec.ivgen == QCRYPTO_IV_GEN_ALGO_ESSIV;
    info->ivgen_hash_alg = luks->spec.ivgen_hash;
    info->hash_alg = luks->digest.hash;
    info->detached_header = luks->detached;
    info->payload_offset = (int64_t)luks->payload;
    info->master_key_iters = luks->digest.iterations;
    info->uuid = str_dup(luks->uuid);
    info->slots.items = mem_zalloc(count * sizeof(*info->slots.items));
    info->slots.count = count;
    for (unsigned i = 0; i < count; i++) {
        const Luks2Slot *from = &luks->slots[i];
        QCryptoBlockInfoLUKSSlot *slot = mem_new(QCryptoBlockInfoLUKSSlot);

        slot->active = slot->has_iters = slot->has_stripes = from->active;
        slot->iters = from->iterations;
        slot->stripes = LUKS_STRIPES;
        slot->key_offset = (int64_t)from->area_offset;
        info->slots.items[i] = slot;
    }
    return info;
}
