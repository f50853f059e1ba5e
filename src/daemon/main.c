/* SPDX-License-Identifier: Apache-2.0 */
#include "base/log.h"
#include "base/background.h"
#include "daemon/daemon.h"

#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv)
{
    CLEANUP(options_done) Options options = {0};
    Error err = ERROR_INIT;
    int background_fd = -1;

    log_set_program(basename(argv[0]));
    switch (options_scan(argc, argv, &options)) {
    case OPTIONS_RUN:
        break;
    case OPTIONS_DONE:
        return EXIT_SUCCESS;
    case OPTIONS_FAILED:
        return EXIT_FAILURE;
    }
    daemon_block_signals();
    if (options.daemonize && background_start(&background_fd, &err) < 0) {
        log_report(&err);
        return EXIT_FAILURE;
    }
    return daemon_run(&options, background_fd);
}
