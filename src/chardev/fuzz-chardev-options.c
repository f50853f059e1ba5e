/* SPDX-License-Identifier: Apache-2.0 */
/* The text of --chardev: parsed and turned into the argument of chardev-add; nothing is created. */
#include "base/mem.h"
#include "chardev/options.h"
#include "generated/types.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    AUTO_FREE char *text = str_ndup((const char *)data, size);
    CLEANUP(chardev_options_free_ptr) ChardevOptions *options = NULL;
    CLEANUP(chardev_backend_free_ptr) ChardevBackend *backend = NULL;
    AUTO_ERROR Error err = ERROR_INIT;
    bool help;

    if (chardev_options_parse(text, &options, &help, &err) == 0 && chardev_option(options, "backend"))
        (void)chardev_options_to_backend(options, &backend, &err);
    return 0;
}
