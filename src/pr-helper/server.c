/* SPDX-License-Identifier: Apache-2.0 */
/* The event loop, connections as they come, signals, the service manager, and the orderly end. */
#include "base/limits.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/notify.h"
#include "pr-helper/keeper.h"
#include "pr-helper/options.h"
#include "pr-helper/server-priv.h"
#include "pr-helper/server.h"

#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_SECOND UINT64_C(1000000000)

enum {
    OWN_FDS = 48, /* standard streams, sockets, the log, workers on the way, what one message can bring */
    FDS_PER_CLIENT = 2,  /* its connection, and a device that waits for a worker */
    FDS_PER_COMMAND = 1, /* the worker's socket */
    CLIENTS_PER_COMMAND = 4,
};

/* Until accepting is tried again after a failure: the system lacks descriptors or memory, or the socket that
 * was passed to us was shut down. */
#define PAUSE_NS (NS_PER_SECOND / 10)

static uint64_t clock_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_SECOND + (uint64_t)now.tv_nsec;
}

void source_watch(Server *server, Source *source, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = source};
    int op = !events ? EPOLL_CTL_DEL : source->events ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;

    if (events == source->events)
        return;
    if (epoll_ctl(server->epoll_fd, op, source->fd, &event) == 0)
        source->events = events;
    else /* kernel memory: its time limit ends it */
        log_warn("cannot watch a descriptor: %s", strerror(errno));
}

/* ---- Connections ---- */

static bool user_is_allowed(const Options *options, uid_t user)
{
    for (unsigned i = 0; i < options->allowed_count; i++) {
        if (options->allowed[i] == user)
            return true;
    }
    return !options->allowed_count;
}

static void greet(Server *server, int take_fd, Client *victim)
{
    AUTO_CLOSE int fd = take_fd;
    struct ucred peer;
    socklen_t length = sizeof(peer);

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) < 0)
        return;
    if (!user_is_allowed(server->options, peer.uid)) {
        audit_complaint(server->options, &peer, "User %u (process %d) may not connect (--allow-uid).",
            peer.uid, (int)peer.pid);
        return;
    }
    if (victim)
        client_free(victim);
    client_new(server, TAKE_FD(fd), &peer);
}

/* No new clients before that time. */
static void close_door(Server *server, uint64_t until_ns)
{
    source_watch(server, &server->listener, 0);
    server->door_ns = until_ns;
}

static void listener_ready(Server *server, Source *source, uint32_t events)
{
    Client *victim = NULL;
    int fd;

    if (server->clients >= server->max_clients) {
        if (!server->crowded)
            log_warn("%u connections are as many as there can be; the longest idle ones make room",
                server->clients);
        server->crowded = true;
        victim = client_to_evict(server);
        if (!victim) {
            close_door(server, 0); /* until one goes */
            return;
        }
    }
    fd = accept4(source->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0)
        greet(server, fd, victim);
    else
        close_door(server, server->now_ns + PAUSE_NS);
}

/* Lets new clients in again when there is room. Returns the time to look again in ns, or UINT64_MAX. */
static uint64_t open_door(Server *server)
{
    if (server->listener.events || server->stopping || server->clients >= server->max_clients)
        return UINT64_MAX;
    if (server->door_ns > server->now_ns)
        return server->door_ns;
    source_watch(server, &server->listener, EPOLLIN);
    if (server->listener.events)
        return UINT64_MAX;
    server->door_ns = server->now_ns + PAUSE_NS;
    return server->door_ns;
}

/* ---- The end ---- */

static void begin_stop(Server *server)
{
    if (server->stopping) {
        server->stop_now = true;
        return;
    }
    notify_service_manager("STOPPING=1");
    server->stopping = true;
    server->stop_ns = server->now_ns + server->options->stop_timeout * NS_PER_SECOND;
    source_watch(server, &server->listener, 0);
    /* Its answer is waited for at the very end (keeper_wait_removed). */
    source_watch(server, &server->keeper, 0);
    keeper_ask_remove(server->keeper.fd);
    client_free_idle(server);
}

static void signals_ready(Server *server, Source *source, uint32_t events)
{
    struct signalfd_siginfo info;

    if (read(source->fd, &info, sizeof(info)) == sizeof(info))
        begin_stop(server);
}

static void keeper_ready(Server *server, Source *source, uint32_t events)
{
    if (dispatch_keeper_answer(server))
        return;
    log_error("the process that keeps the privileges has gone");
    server->broken = server->stopping = server->stop_now = true;
}

static bool is_over(const Server *server)
{
    if (!server->stopping)
        return false;
    return server->stop_now || server->now_ns >= server->stop_ns || !dispatch_busy(server);
}

/* ---- The loop ---- */

static int timeout_ms(const Server *server, uint64_t next_ns)
{
    uint64_t ms;

    if (server->stopping)
        next_ns = MIN(next_ns, server->stop_ns);
    if (server->watchdog_ns)
        next_ns = MIN(next_ns, server->next_watchdog_ns);
    if (next_ns == UINT64_MAX)
        return -1;
    ms = next_ns <= server->now_ns ? 0 : div_round_up(next_ns - server->now_ns, 1000000);
    return (int)MIN(ms, (uint64_t)INT32_MAX);
}

static void feed_watchdog(Server *server)
{
    if (!server->watchdog_ns || server->now_ns < server->next_watchdog_ns)
        return;
    notify_service_manager("WATCHDOG=1");
    server->next_watchdog_ns = server->now_ns + server->watchdog_ns;
}

static void turn(Server *server)
{
    struct epoll_event event;
    uint64_t next = client_expire(server), commands = dispatch_expire(server), door = open_door(server);
    int n;

    next = MIN(next, commands);
    next = MIN(next, door);
    n = epoll_wait(server->epoll_fd, &event, 1, timeout_ms(server, next));
    server->now_ns = clock_ns();
    if (n == 1) {
        Source *source = event.data.ptr;
        source->ready(server, source, event.events);
    }
    if (!server->stopping)
        dispatch_run(server);
    feed_watchdog(server);
}

/* ---- Set-up ---- */

void server_block_signals(void)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
}

static int open_signals(void)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

/* As many connections as descriptors allow when every command has all of its own. */
static void choose_limits(Server *server)
{
    struct rlimit limit;
    unsigned fds;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur > INT32_MAX)
        limit.rlim_cur = INT32_MAX;
    fds = (unsigned)limit.rlim_cur;
    fds = fds > 2 * OWN_FDS ? fds - OWN_FDS : OWN_FDS;
    server->max_commands = MIN(
        (unsigned)LIMIT_PR_HELPER_COMMANDS, fds / (CLIENTS_PER_COMMAND * FDS_PER_CLIENT + FDS_PER_COMMAND));
    server->max_clients = MIN(
        (unsigned)LIMIT_PR_HELPER_CLIENTS, (fds - server->max_commands * FDS_PER_COMMAND) / FDS_PER_CLIENT);
    if (server->options->max_clients)
        server->max_clients = MIN(server->max_clients, server->options->max_clients);
}

/* sd_watchdog_enabled(3) */
static void choose_watchdog(Server *server)
{
    const char *text = getenv("WATCHDOG_USEC"), *pid = getenv("WATCHDOG_PID");

    if (!text || (pid && strtol(pid, NULL, 10) != getpid()))
        return;
    server->watchdog_ns = strtoull(text, NULL, 10) * 1000 / 2;
    server->next_watchdog_ns = server->now_ns;
}

static int prepare(Server *server, Error *err)
{
    for (unsigned wait = 0; wait < WAIT_COUNT; wait++)
        list_init(&server->waits[wait]);
    list_init(&server->users);
    list_init(&server->queue);
    list_init(&server->workers);
    server->now_ns = clock_ns();
    choose_limits(server);
    choose_watchdog(server);
    server->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    server->signals.fd = open_signals();
    if (server->epoll_fd < 0 || server->signals.fd < 0)
        return err_set_errno(err, -errno, "Cannot prepare the event loop");
    source_watch(server, &server->signals, EPOLLIN);
    source_watch(server, &server->keeper, EPOLLIN);
    dispatch_begin(server);
    return 0;
}

int server_run(const Options *options, int listen_fd, int keeper_fd, int (*ready)(void *opaque, Error *err),
    void *opaque, Error *err)
{
    Server server = {
        .options = options,
        .epoll_fd = -1,
        .listener = {.fd = listen_fd, .ready = listener_ready},
        .signals = {.fd = -1, .ready = signals_ready},
        .keeper = {.fd = keeper_fd, .ready = keeper_ready},
    };
    int r = prepare(&server, err);

    if (r == 0)
        r = ready(opaque, err);
    if (r == 0) {
        log_never_wait();
        source_watch(&server, &server.listener, EPOLLIN);
        notify_service_manager("READY=1");
        while (!is_over(&server))
            turn(&server);
        client_free_all(&server);
        dispatch_end(&server);
        if (server.broken)
            r = err_set(err, -ECHILD, "Cannot go on without privileges");
    }
    fd_close(server.epoll_fd);
    fd_close(server.signals.fd);
    return r;
}
