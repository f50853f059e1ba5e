/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which files may be opened because an image names them (--stored-names). Whoever wrote an image chose the
 * name, so it must not reach what only the operator may open. By default it is any file but those of /proc,
 * where the names of this program's own descriptors are.
 *
 * With folders, the name is resolved first and what it resolves to is opened, so that no link below an
 * allowed folder leads out of it.
 */
#include "block/stored-names.h"

#include "base/mem.h"
#include "block/block-priv.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static bool restricted;
static char **folders;
static size_t folder_count, folder_capacity;

int stored_names_allow(const char *folder, Error *err)
{
    char *real = NULL;

    if (!str_eq(folder, "none")) {
        real = realpath(folder, NULL);
        if (!real)
            return err_set_errno(err, -errno, "Could not resolve the folder '%s'", folder);
        VEC_GROW(folders, folder_count, folder_capacity);
        folders[folder_count++] = real;
    }
    restricted = true;
    return 0;
}

static bool is_below(const char *path, const char *folder)
{
    size_t length = strlen(folder);

    while (length && folder[length - 1] == '/')
        length--;
    return strncmp(path, folder, length) == 0 && path[length] == '/';
}

static bool is_allowed(const char *real)
{
    for (size_t i = 0; i < folder_count; i++)
        if (is_below(real, folders[i]))
            return true;
    return false;
}

/* "/dev/fd/3" and "/proc/self/fd/3" are a link in a folder of /proc. */
static bool is_in_proc(const char *path)
{
    const char *slash = strrchr(path, '/');
    AUTO_FREE char *folder = slash ? str_ndup(path, MAX((size_t)(slash - path), (size_t)1)) : str_dup(".");
    AUTO_FREE char *real = realpath(folder, NULL);

    return real && (str_eq(real, "/proc") || is_below(real, "/proc"));
}

int stored_name_check(Node *node, const char *path, char **ret_path, Error *err)
{
    AUTO_FREE char *image = node_filename(node), *real = NULL;

    if (is_in_proc(path))
        return err_set(err, -EPERM,
            "Image '%s' refers to '%s': names that lead into /proc are not followed; name the node "
            "explicitly "
            "instead",
            image, path);
    if (!restricted) {
        *ret_path = str_dup(path);
        return 0;
    }
    real = folder_count ? realpath(path, NULL) : NULL;
    if (folder_count && !real)
        return err_set_errno(err, -errno, "Could not open '%s'", path);
    if (!real || !is_allowed(real))
        return err_set(err, -EPERM,
            "Image '%s' refers to '%s', which --stored-names does not allow; name the node explicitly "
            "instead",
            image, path);
    *ret_path = TAKE(real);
    return 0;
}
