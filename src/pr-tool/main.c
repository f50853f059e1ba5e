/* SPDX-License-Identifier: Apache-2.0 */
/*
 * granary-pr: shows and changes the persistent reservations of a disk from the command line, through a
 * reservation helper.
 *
 * Also an example of a client. The way of a command: options.c reads the command line; session.c opens the
 * disk and connects to the helper with libgranary-pr (direct.c starts one); show.c and change.c build CDBs
 * and parameter lists and read what comes back (proto/pr.h); session_execute() sends them and judges the
 * result.
 */
#include "base/log.h"
#include "pr-tool/commands.h"

#include <stdio.h>

static const ToolCommand commands[] = {
    {"keys", "registered keys, one a line", .run = command_keys},
    {"reservation", "the reservation, if there is one", .run = command_reservation},
    {"status", "the reservation, and who is registered", .run = command_status},
    {"capabilities", "what the device can do", .run = command_capabilities},
    {"register", "register, change or remove the key of this host", .changes = true,
        .options = OPTION_KEY | OPTION_NEW_KEY | OPTION_IGNORE | OPTION_APTPL | OPTION_ALL_TARGET_PORTS,
        .needed = OPTION_NEW_KEY, .run = command_register},
    {"reserve", "reserve the disk", .changes = true, .options = OPTION_KEY | OPTION_TYPE,
        .needed = OPTION_KEY | OPTION_TYPE, .run = command_reserve},
    {"release", "end the own reservation", .changes = true, .options = OPTION_KEY | OPTION_TYPE,
        .needed = OPTION_KEY, .run = command_release},
    {"preempt", "remove another key, and take over what it has reserved", .changes = true,
        .options = OPTION_KEY | OPTION_VICTIM | OPTION_TYPE | OPTION_ABORT,
        .needed = OPTION_KEY | OPTION_VICTIM, .run = command_preempt},
    {"clear", "remove the reservation and all keys", .changes = true, .options = OPTION_KEY,
        .needed = OPTION_KEY, .run = command_clear},
    {"register-and-move", "hand the reservation to another registrant", .changes = true,
        .options = OPTION_KEY | OPTION_NEW_KEY | OPTION_TO | OPTION_UNREGISTER | OPTION_APTPL,
        .needed = OPTION_KEY | OPTION_NEW_KEY | OPTION_TO, .run = command_register_and_move},
    {0},
};

int main(int argc, char *argv[])
{
    Options options;
    Session session;
    bool over;
    ExitCode code;

    log_set_program("granary-pr");
    code = options_read(argc, argv, commands, &options, &over);
    if (code != EXIT_DONE || over)
        return code;
    code = session_open(&session, &options);
    if (code == EXIT_DONE)
        code = options.command->run(&session);
    session_close(&session);
    if (fflush(stdout) != 0) {
        log_error("cannot write the result");
        if (code == EXIT_DONE && !options.command->changes) /* what is changed is changed */
            code = EXIT_TRY_AGAIN;
    }
    return code;
}
