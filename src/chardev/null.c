/* SPDX-License-Identifier: Apache-2.0 */
/* The null chardev: swallows output, has no input. */
#include "chardev/chardev.h"

static int null_create(Chardev *chardev, const ChardevBackend *backend, Error *err)
{
    return 0;
}

const ChardevKind chardev_kind_null = {
    .name = "null",
    .create = null_create,
};
