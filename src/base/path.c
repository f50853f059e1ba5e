/* SPDX-License-Identifier: Apache-2.0 */
#include "base/path.h"

#include "base/mem.h"

#include <unistd.h>

char *path_absolute(const char *path)
{
    AUTO_FREE char *directory = !path || *path == '/' ? NULL : get_current_dir_name();

    return directory ? str_printf("%s/%s", directory, path) : str_dup(path);
}
