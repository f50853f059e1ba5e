/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The composition root. One coroutine (daemon_main) is the spine: it waits for start-up, then for the wish to
 * end, then takes everything down in the order in which clients of the control protocol can still watch it:
 * exports, jobs, nodes, monitors, character devices, objects.
 *
 * Start-up is a coroutine of its own so that a signal can end it while it waits (for example for the first
 * client of a character device).
 */
#include "daemon/daemon.h"

#include "base/log.h"
#include "base/mem.h"
#include "block/node.h"
#include "chardev/chardev.h"
#include "base/background.h"
#include "base/notify.h"
#include "base/pidfile.h"
#include "exports/export.h"
#include "jobs/job.h"
#include "loop/loop.h"
#include "monitor/monitor.h"
#include "schema/object.h"

#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

/* From this many signals on, the end is no longer orderly. */
#define IMPATIENT_SIGNALS 3
/* Signals that follow each other faster are one wish: a shell and a supervisor may both pass it on. */
#define SIGNAL_ECHO_NS UINT64_C(1000000000)

typedef struct Daemon {
    const Options *options;
    int background_fd;
    Pidfile pidfile;
    CoGroup startup;
    CoGroup helpers; /* who waits for signals */
    bool stopping;
    CoWait stop;
    bool started; /* start-up is complete: serve */
    int exit_code;
} Daemon;

/* quit comes without an argument. */
static Daemon *the_daemon;

/* ---- The wish to end ---- */

static void request_stop(void)
{
    if (the_daemon->stopping)
        return;
    the_daemon->stopping = true;
    co_group_cancel(&the_daemon->startup);
    co_wake(&the_daemon->stop, 0);
}

static sigset_t ending_signals(void)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    return set;
}

void daemon_block_signals(void)
{
    sigset_t set = ending_signals();

    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
}

static void take_signal(void)
{
    static unsigned number;
    static uint64_t last_ns;
    uint64_t now_ns = clock_monotonic_ns();

    if (number && now_ns - last_ns < SIGNAL_ECHO_NS)
        return;
    last_ns = now_ns;
    number++;
    if (number == 1) {
        request_stop();
    } else if (number < IMPATIENT_SIGNALS) {
        log_warn("still waiting for requests to end; another signal ends the program at once");
    } else {
        log_error("ended before all requests were complete");
        _exit(EXIT_FAILURE);
    }
}

static void wait_for_signals(void *opaque)
{
    sigset_t set = ending_signals();
    AUTO_CLOSE int fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    struct signalfd_siginfo info;

    if (fd < 0) {
        log_error("cannot wait for signals: %s", strerror(errno));
        return;
    }
    while (io_poll(fd, POLLIN) >= 0) {
        while (read(fd, &info, sizeof(info)) == (ssize_t)sizeof(info))
            take_signal();
    }
}

/* ---- Start ---- */

/* Returns 0, or an OptionOutcome that ends the program, or -errno. */
static int apply_options(const Options *options, Error *err)
{
    for (size_t i = 0; i < options->count; i++) {
        log_set_location(options->items[i].location);
        int r = option_apply(&options->items[i], err);

        if (r != OPTION_APPLIED)
            return r;
    }
    log_set_location(NULL);
    return 0;
}

static int finish_startup(Daemon *daemon, Error *err)
{
    int r = 0;

    if (daemon->options->pidfile) {
        r = pidfile_create(daemon->options->pidfile, &daemon->pidfile, err);
        if (r < 0)
            return err_prefix(err, r, "cannot create PID file");
    }
    if (daemon->background_fd >= 0)
        r = background_complete(TAKE_FD(daemon->background_fd), err);
    return r;
}

static void start(void *opaque)
{
    Daemon *daemon = opaque;
    Error err = ERROR_INIT;
    int r = apply_options(daemon->options, &err);

    if (r == OPTION_APPLIED && !daemon->stopping)
        r = finish_startup(daemon, &err);
    if (daemon->stopping)
        err_done(&err); /* a signal came first: that is no failure */
    else if (r < 0)
        log_report(&err);
    log_set_location(NULL);
    daemon->started = r == 0 && !daemon->stopping;
    daemon->exit_code = daemon->stopping || r == 0 || r == OPTION_HELPED ? EXIT_SUCCESS : EXIT_FAILURE;
}

/* ---- Life ---- */

static void shut_down(Daemon *daemon)
{
    monitors_end_commands();
    exports_shutdown();
    jobs_shutdown();
    node_close_all();
    monitors_close();
    chardev_remove_all();
    object_del_all();
    pidfile_remove(&daemon->pidfile);
}

static int daemon_main(void *opaque)
{
    Daemon *daemon = opaque;

    co_group_init(&daemon->startup);
    co_group_init(&daemon->helpers);
    block_init();
    monitors_init(request_stop);
    co_start(&daemon->helpers, "signals", wait_for_signals, daemon);
    co_start(&daemon->startup, "start", start, daemon);
    co_group_join(&daemon->startup);
    if (daemon->started) {
        monitors_start();
        notify_service_manager("READY=1");
        co_wait_shielded(&daemon->stop);
        notify_service_manager("STOPPING=1");
    }
    shut_down(daemon);
    co_group_cancel(&daemon->helpers);
    co_group_join(&daemon->helpers);
    return daemon->exit_code;
}

int daemon_run(const Options *options, int background_fd)
{
    Daemon daemon = {.options = options, .background_fd = background_fd, .pidfile = PIDFILE_INIT};

    the_daemon = &daemon;
    if (options->daemonize)
        chardev_forbid_stdio();
    return loop_run_main(LOOP_BACKEND_AUTO, &LOOP_OPTIONS_DEFAULT, daemon_main, &daemon);
}
