/* SPDX-License-Identifier: Apache-2.0 */
/*
 * granary-pr-helper: carries out SCSI PERSISTENT RESERVE commands for clients that pass a descriptor of the
 * disk.
 *
 *   server   listens, reads and checks what clients send; no capability, no way to open anything
 *   keeper   keeps the privileges, forks workers, removes socket and pid file at the end
 *   worker   carries out one command at a time (pr-device/)
 *
 * The process that was started (or with -d its child) becomes the server.
 */
#include "base/background.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/pidfile.h"
#include "pr-helper/closer.h"
#include "pr-helper/keeper.h"
#include "pr-helper/listen.h"
#include "pr-helper/options.h"
#include "pr-helper/privileges.h"
#include "pr-helper/sandbox.h"
#include "pr-helper/server-priv.h"
#include "pr-helper/server.h"

#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct Helper {
    Options options;
    ListenSocket socket;
    Pidfile pidfile;
    int background_fd;
} Helper;

/* The last step of the start: the rest runs without privileges. */
static int give_up_privileges(void *opaque, Error *err)
{
    Helper *helper = opaque;
    int r = privileges_become_server(&helper->options, err);

    if (r == 0)
        r = closer_start(err);
    if (r == 0 && helper->options.daemonize)
        r = background_detach(err);
    if (r == 0 && helper->options.daemonize)
        log_use_syslog();
    if (r == 0 && helper->options.sandbox)
        r = sandbox_enter_server(err);
    if (r == 0 && helper->options.daemonize)
        r = background_report(TAKE_FD(helper->background_fd), err);
    return r;
}

static int open_socket(Helper *helper, int passed_fd, Error *err)
{
    if (passed_fd < 0)
        return listen_create(helper->options.socket_path, &helper->options, &helper->socket, err);
    helper->socket.fd = passed_fd;
    return 0;
}

static int run(Helper *helper, int passed_fd, Error *err)
{
    const Options *options = &helper->options;
    AUTO_CLOSE int keeper_fd = -1;
    int r = open_socket(helper, passed_fd, err);

    if (r < 0)
        return r;
    if (options->pidfile_path)
        r = pidfile_create(options->pidfile_path, &helper->pidfile, err);
    audit_open();
    if (r == 0)
        r = keeper_start(options, &helper->socket, &helper->pidfile, helper->background_fd, &keeper_fd, err);
    if (r < 0) {
        listen_remove(&helper->socket);
        pidfile_remove(&helper->pidfile);
        return r;
    }
    r = server_run(options, helper->socket.fd, keeper_fd, give_up_privileges, helper, err);
    if (r < 0)
        keeper_ask_remove(keeper_fd);
    keeper_wait_removed(keeper_fd);
    return r;
}

/* The socket is made there, but its mode is a matter of the caller's umask. */
static int start_in_background(Helper *helper, Error *err)
{
    mode_t mask = umask(0);
    int r = background_start(&helper->background_fd, err);

    umask(mask);
    return r;
}

static int start(Helper *helper, Error *err)
{
    Options *options = &helper->options;
    int passed_fd = -1;
    int r = listen_take_passed(&passed_fd, err);

    if (r == 0 && passed_fd >= 0 && options->socket_path)
        r = err_set(err, -EINVAL, "Unix socket can't be set when using socket activation");
    if (r == 0)
        r = privileges_check(err);
    if (r < 0)
        return r;
    if (!options->socket_path)
        options->socket_path = options_default_path("sock");
    if (options->daemonize)
        r = start_in_background(helper, err);
    return r < 0 ? r : run(helper, passed_fd, err);
}

int main(int argc, char **argv)
{
    Helper helper = {.socket = LISTEN_SOCKET_INIT, .pidfile = PIDFILE_INIT, .background_fd = -1};
    AUTO_ERROR Error err = ERROR_INIT;
    int status = EXIT_SUCCESS;

    server_block_signals();
    log_set_program(basename(argv[0]));
    switch (options_parse(argc, argv, &helper.options)) {
    case OPTIONS_RUN:
        break;
    case OPTIONS_DONE:
        return EXIT_SUCCESS;
    case OPTIONS_FAILED:
        return EXIT_FAILURE;
    }
    if (start(&helper, &err) < 0) {
        log_report(&err);
        status = EXIT_FAILURE;
    }
    options_done(&helper.options);
    free(helper.socket.path);
    fd_close(helper.socket.fd); /* a thread that hangs (closer.h) keeps the process from ending */
    fd_close(helper.socket.file_fd);
    fd_close(helper.pidfile.fd);
    free(helper.pidfile.path);
    return status;
}
