/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A whole image from arbitrary bytes, over a graph in memory. The last byte of the input chooses how it is
 * used (use_of()), the one before it seeds the requests. Run it with -close_fd_mask=2: corruption is
 * reported on standard error each time.
 */
#include "drivers/qcow2/fuzz-use.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void run(void *arg)
{
    use_image(arg);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    Use use;

    if (size < 2)
        return 0;
    use = use_of(data[size - 1]);
    test_random_seed(data[size - 2] + 1);
    mem_limit = 4 * MIB;
    mem_file = mem_file_new(data, size, false);
    mem_data_file = mem_file_new(data, MIN(size, (size_t)4096), false);
    mem_backing = mem_file_new(data, MIN(size, (size_t)8192), false);
    test_run(run, &use);
    mem_file_free(mem_file);
    mem_file_free(mem_data_file);
    mem_file_free(mem_backing);
    return 0;
}
