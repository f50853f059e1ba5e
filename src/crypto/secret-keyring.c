/* SPDX-License-Identifier: Apache-2.0 */
/* The object type `secret_keyring`: a secret that is read from the kernel's keys (keyctl(2)) when it is made.
 */
#include "crypto/secret-priv.h"

#include "base/limits.h"

#include <errno.h>
#include <linux/keyctl.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef struct KeyringSecret {
    SecretObject common;
    int32_t serial;
} KeyringSecret;

/* Bytes of the key, of which as many as fit are copied. */
static long read_key(int32_t serial, uint8_t *data, size_t bytes)
{
    long n = syscall(SYS_keyctl, KEYCTL_READ, serial, data, bytes, 0);

    return n < 0 ? -errno : n;
}

static int load(int32_t serial, Secret *ret_bytes, Error *err)
{
    AUTO_SECRET Secret b = {0};
    long length = read_key(serial, NULL, 0);

    if (length > (long)LIMIT_SECRET_BYTES)
        return err_set(err, -EFBIG, "The secret is longer than %d bytes", (int)LIMIT_SECRET_BYTES);
    if (length >= 0) {
        b = secret_new((size_t)length);
        if (!b.data)
            return err_set(err, -ENOMEM, "Out of memory");
        length = read_key(serial, b.data, b.bytes);
    }
    if (length < 0)
        return err_set_errno(err, (int)length, "Unable to read serial key %08x", (unsigned)serial);
    if ((size_t)length != b.bytes)
        return err_set(err, -EAGAIN, "Serial key %08x has changed while it was read", (unsigned)serial);
    *ret_bytes = b;
    b = (Secret){0};
    return 0;
}

static int keyring_create(Object *object, const ObjectOptions *options, Error *err)
{
    const SecretKeyringProperties *o = &options->u.secret_keyring;
    SecretCommonProperties common = {o->has_format, o->format, o->keyid, o->iv};
    KeyringSecret *s = object_state(object, &object_kind_secret_keyring);
    Secret b = {0};
    int r;

    if (!o->serial)
        return err_set(err, -EINVAL, "'serial' should not be equal to 0");
    r = load(o->serial, &b, err);
    if (r == 0)
        r = secret_object_init(&s->common, &common, &b, err);
    s->serial = o->serial;
    return r;
}

static void keyring_destroy(Object *object)
{
    KeyringSecret *s = object_state(object, &object_kind_secret_keyring);

    secret_object_done(&s->common);
}

static int get_serial(Object *object, const ObjectProperty *property, JsonValue **ret_value, Error *err)
{
    const KeyringSecret *s = object_state(object, &object_kind_secret_keyring);

    *ret_value = json_int_new(s->serial);
    return 0;
}

static const ObjectProperty properties[] = {
    SECRET_COMMON_PROPERTIES,
    {.name = "serial", .type = "int32_t", .get = get_serial},
    {0},
};

const ObjectKind object_kind_secret_keyring = {
    .name = "secret_keyring",
    .state_size = sizeof(KeyringSecret),
    .create = keyring_create,
    .destroy = keyring_destroy,
    .properties = properties,
};
