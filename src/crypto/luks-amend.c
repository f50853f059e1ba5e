/* SPDX-License-Identifier: Apache-2.0 */
/* Adding and erasing keys of a LUKS volume, with the rules and texts of the reference. */
#include "crypto/luks-priv.h"

#include "crypto/secret.h"

#include <inttypes.h>

typedef struct Amend {
    Luks *luks;
    const LuksIo *io;
    const QCryptoBlockAmendOptionsLUKS *options;
    const char *key_secret; /* that the volume was opened with */
    bool force;
} Amend;

static int check_slot(const QCryptoBlockAmendOptionsLUKS *o, Error *err)
{
    if (o->has_keyslot && (o->keyslot < 0 || o->keyslot >= LUKS_SLOTS))
        return err_set(err, -EINVAL, "Invalid keyslot %" PRIu32 " specified, must be between 0 and %u",
            (uint32_t)o->keyslot, LUKS_SLOTS - 1);
    return 0;
}

static unsigned count_active(const Luks *luks)
{
    unsigned count = 0;

    for (unsigned i = 0; i < LUKS_SLOTS; i++)
        count += luks->header.slots[i].active;
    return count;
}

/* ---- Adding ---- */

static bool free_slot(const Luks *luks, unsigned *ret_slot)
{
    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        if (!luks->header.slots[i].active) {
            *ret_slot = i;
            return true;
        }
    }
    return false;
}

static int choose_slot(const Amend *a, unsigned *ret_slot, Error *err)
{
    const QCryptoBlockAmendOptionsLUKS *o = a->options;
    const LuksSlot *slots = a->luks->header.slots;

    if (o->has_keyslot) {
        *ret_slot = (unsigned)o->keyslot;
        if (slots[o->keyslot].active && !a->force)
            return err_set(
                err, -EBUSY, "Refusing to overwrite active keyslot %u - please erase it first", *ret_slot);
        return 0;
    }
    return free_slot(a->luks, ret_slot)
               ? 0
               : err_set(err, -ENOSPC, "Can't add a keyslot - all keyslots are in use");
}

/* A slot in use is no key while it is overwritten, and may be the only one: another one has the new key
 * until that is done. */
static int set_slot(const Amend *a, unsigned slot, const uint8_t *key, uint64_t iter_time_ms, Error *err)
{
    const char *secret = a->options->new_secret;
    unsigned spare = slot;
    bool detour = a->luks->header.slots[slot].active && free_slot(a->luks, &spare);
    int r = detour ? luks_slot_set(a->luks, a->io, spare, key, secret, iter_time_ms, err) : 0;

    if (r == 0)
        r = luks_slot_set(a->luks, a->io, slot, key, secret, iter_time_ms, err);
    return r == 0 && detour ? luks_slot_erase(a->luks, a->io, spare, err) : r;
}

static int add_key(const Amend *a, Error *err)
{
    const QCryptoBlockAmendOptionsLUKS *o = a->options;
    uint64_t iter_time_ms;
    unsigned slot = 0;
    uint8_t *key;
    int r;

    if (!o->new_secret)
        return err_set(err, -EINVAL, "'new-secret' is required to activate a keyslot");
    if (o->old_secret)
        return err_set(err, -EINVAL, "'old-secret' must not be given when activating keyslots");
    r = luks_iter_time(o->has_iter_time ? o->iter_time : LUKS_ITER_TIME_MS, &iter_time_ms, err);
    if (r == 0)
        r = check_slot(o, err);
    if (r == 0)
        r = choose_slot(a, &slot, err);
    if (r == 0)
        r = luks_unlock(a->luks, a->io, o->secret ? o->secret : a->key_secret, &key, err);
    if (r < 0)
        return r;
    r = set_slot(a, slot, key, iter_time_ms, err);
    secret_free(key, a->luks->header.key_bytes);
    return r;
}

/* ---- Erasing ---- */

static int erase_slot(const Amend *a, unsigned slot, Error *err)
{
    if (!a->force && count_active(a->luks) == 1)
        return err_set(err, -EPERM,
            "Attempt to erase the only active keyslot %u which will erase all the data in the image "
            "irreversibly - refusing operation",
            slot);
    return luks_slot_erase(a->luks, a->io, slot, err);
}

static int erase_numbered(const Amend *a, Error *err)
{
    const QCryptoBlockAmendOptionsLUKS *o = a->options;
    unsigned slot = (unsigned)o->keyslot;
    int r = check_slot(o, err);

    if (r < 0)
        return r;
    if (!a->luks->header.slots[slot].active)
        return err_set(err, -EINVAL, "Given keyslot %u is already erased (inactive) ", slot);
    if (o->old_secret) {
        r = luks_slot_opens(a->luks, a->io, slot, o->old_secret, err);
        if (r < 0)
            return r;
        if (!r)
            return err_set(err, -EINVAL,
                "Given keyslot %u doesn't contain the given old password for erase operation", slot);
    }
    return erase_slot(a, slot, err);
}

static int erase_matching(const Amend *a, Error *err)
{
    bool matches[LUKS_SLOTS];
    unsigned count = 0;
    int r = 0;

    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        r = luks_slot_opens(a->luks, a->io, i, a->options->old_secret, err);
        if (r < 0)
            return r;
        matches[i] = r;
        count += matches[i];
    }
    if (!count)
        return err_set(err, -EINVAL, "No keyslots match given (old) password for erase operation");
    if (!a->force && count == count_active(a->luks))
        return err_set(err, -EINVAL,
            "All the active keyslots match the (old) password that was given and erasing them will erase "
            "all the data in the image irreversibly - refusing operation");
    r = 0;
    for (unsigned i = 0; r == 0 && i < LUKS_SLOTS; i++)
        if (matches[i])
            r = luks_slot_erase(a->luks, a->io, i, err);
    return r;
}

static int erase_keys(const Amend *a, Error *err)
{
    const QCryptoBlockAmendOptionsLUKS *o = a->options;
    const char *extra = o->new_secret      ? "new-secret"
                        : o->has_iter_time ? "iter-time"
                        : o->secret        ? "secret"
                                           : NULL;

    if (extra)
        return err_set(err, -EINVAL, "'%s' must not be given when erasing keyslots", extra);
    if (o->has_keyslot)
        return erase_numbered(a, err);
    if (o->old_secret)
        return erase_matching(a, err);
    return err_set(err, -EINVAL,
        "To erase keyslot(s), either explicit keyslot index or the password currently contained in them must "
        "be given");
}

/* ---- Both ---- */

typedef struct Amended {
    Luks *luks;
    const Luks *changed;
} Amended;

static int set_amended(void *arg)
{
    const Amended *amended = arg;

    *amended->luks = *amended->changed;
    return 0;
}

int luks_amend(Luks *luks, Loop *home, const LuksIo *io, const QCryptoBlockAmendOptionsLUKS *options,
    const char *key_secret, bool force, Error *err)
{
    Luks changed = *luks;
    Amend a = {&changed, io, options, key_secret, force};
    Amended amended = {luks, &changed};
    int r =
        options->state == QCRYPTO_BLOCK_LUKS_KEYSLOT_STATE_ACTIVE ? add_key(&a, err) : erase_keys(&a, err);

    /* Some slots may have changed before it failed. */
    loop_call(home, set_amended, &amended);
    return r;
}
