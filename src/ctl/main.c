/* SPDX-License-Identifier: Apache-2.0 */
/* granaryctl: work on images and daemons from the command line. The commands are one file each. */
#include "base/log.h"
#include "base/version.h"
#include "ctl/ctl.h"

#include <stdio.h>

static const CtlCommand *const commands[] = {&ctl_check};

static int help(void)
{
    printf("Usage: granaryctl COMMAND [OPTIONS] ...\n"
           "       granaryctl COMMAND --help | --help | --version\n"
           "\n"
           "Commands:\n");
    for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
        printf("  %-10s %s\n", commands[i]->name, commands[i]->summary);
    return 0;
}

static int run(int argc, char *argv[])
{
    if (argc < 2) {
        log_error("a command is missing; --help lists them");
        return 1;
    }
    if (str_eq(argv[1], "--help"))
        return help();
    if (str_eq(argv[1], "--version")) {
        printf("granaryctl %s\n", VERSION);
        return 0;
    }
    for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
        if (str_eq(argv[1], commands[i]->name))
            return commands[i]->run(argc - 1, argv + 1);
    log_error("there is no command '%s'; --help lists them", argv[1]);
    return 1;
}

int main(int argc, char *argv[])
{
    int status;

    log_set_program("granaryctl");
    status = run(argc, argv);
    if (fflush(stdout) != 0) {
        log_error("cannot write the result");
        status = status ? status : 1;
    }
    return status;
}
