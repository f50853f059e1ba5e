/* SPDX-License-Identifier: Apache-2.0 */
#include "pr-helper/keeper.h"

#include "base/background.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/mem.h"
#include "pr-helper/options.h"
#include "pr-helper/pass.h"
#include "pr-helper/privileges.h"
#include "pr-helper/sandbox.h"
#include "pr-helper/worker.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    ANSWER_SECONDS = 10,
    MAX_WORKERS = 2 * LIMIT_PR_HELPER_COMMANDS, /* of the server, and those that are about to end */
};

typedef struct Keeper {
    const Options *options;
    const ListenSocket *socket;
    const Pidfile *pidfile;
    int fd;
    unsigned workers; /* that have not been reaped */
    bool removed;
} Keeper;

/* ---- Files ---- */

/* While the server lives the lock is its own. Without it, a lock tells that a new instance has taken the file
 * over.
 */
static void remove_files(Keeper *keeper, bool server_lives)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    Pidfile *pidfile = (Pidfile *)keeper->pidfile;

    if (keeper->removed)
        return;
    keeper->removed = true;
    listen_remove(keeper->socket);
    if (server_lives || (pidfile->fd >= 0 && fcntl(pidfile->fd, F_SETLK, &lock) == 0))
        pidfile_remove(pidfile);
}

/* ---- Workers ---- */

static void reap(Keeper *keeper)
{
    while (waitpid(-1, NULL, WNOHANG) > 0)
        keeper->workers--;
}

static NORETURN void be_worker(const Keeper *keeper, int fd)
{
    AUTO_ERROR Error err = ERROR_INIT;

    sigset_t none;

    close(keeper->fd);
    fd_close(keeper->pidfile->fd);
    fd_close(keeper->socket->file_fd);
    signal(SIGCHLD, SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    prctl(PR_SET_NAME, "pr-worker");
    if (privileges_become_worker(&err) < 0) {
        log_report(&err);
        _exit(EXIT_FAILURE);
    }
    /* Whatever a worker waits for, it goes with the keeper - and did so already if that is gone. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    worker_run(fd, keeper->options);
    _exit(EXIT_SUCCESS);
}

/* Returns the server's end of a new worker's socket, or -errno. */
static int fork_worker(Keeper *keeper)
{
    int fds[2];
    pid_t pid;

    /* Those that hang in the kernel add up. */
    if (keeper->workers >= MAX_WORKERS)
        return -EAGAIN;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) < 0)
        return -errno;
    pid = fork();
    if (pid < 0) {
        int r = -errno;
        close(fds[0]);
        close(fds[1]);
        return r;
    }
    if (pid == 0) {
        close(fds[0]);
        be_worker(keeper, fds[1]);
    }
    close(fds[1]);
    keeper->workers++;
    return fds[0];
}

static void answer_worker(Keeper *keeper)
{
    uint8_t word = KEEPER_WORKER;
    AUTO_CLOSE int fd = fork_worker(keeper);

    if (fd < 0) {
        log_warn("cannot start a worker process: %s", strerror(-fd));
        fd = -1;
    }
    pass_send(keeper->fd, &word, 1, fd);
}

/* ---- The process ---- */

static void on_child(int number)
{
    /* Only there to interrupt the wait for a word. */
}

/* Reaps workers until there is a word. SIGCHLD is blocked but for the wait, so that none is missed. */
static void wait_for_word(Keeper *keeper)
{
    struct pollfd entry = {.fd = keeper->fd, .events = POLLIN};
    sigset_t none;

    sigemptyset(&none);
    do
        reap(keeper);
    while (ppoll(&entry, 1, NULL, &none) < 0 && errno == EINTR);
}

static NORETURN void be_keeper(Keeper *keeper)
{
    uint8_t word;
    ssize_t n;

    for (;;) {
        wait_for_word(keeper);
        n = recv(keeper->fd, &word, 1, 0);
        if (n <= 0)
            break;
        if (word == KEEPER_WORKER) {
            answer_worker(keeper);
        } else if (word == KEEPER_REMOVE) {
            remove_files(keeper, true);
            pass_send(keeper->fd, &word, 1, -1);
        }
    }
    remove_files(keeper, false);
    _exit(EXIT_SUCCESS);
}

static int prepare(const Keeper *keeper, Error *err)
{
    struct sigaction child = {.sa_handler = on_child};
    sigset_t blocked;
    int r;

    /* Signals meant for the program are the server's business, also when they go to all of its processes. */
    setpgid(0, 0);
    signal(SIGTERM, SIG_IGN);
    signal(SIGINT, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    sigaction(SIGCHLD, &child, NULL);
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGCHLD);
    sigprocmask(SIG_SETMASK, &blocked, NULL);
    prctl(PR_SET_NAME, "pr-keeper");
    /* Nobody can connect any more once the server is gone. */
    close(keeper->socket->fd);
    r = keeper->options->daemonize ? background_detach(err) : 0;
    if (r == 0 && keeper->options->daemonize)
        log_use_syslog();
    if (r == 0)
        r = privileges_become_keeper(err);
    if (r == 0 && keeper->options->sandbox)
        r = sandbox_enter_keeper(err);
    return r;
}

int keeper_start(const Options *options, const ListenSocket *socket, const Pidfile *pidfile, int server_fd,
    int *ret_fd, Error *err)
{
    uint8_t ready = 0;
    int fds[2];
    pid_t pid;

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) < 0)
        return err_set_errno(err, -errno, "Cannot make a pair of sockets");
    pid = fork();
    if (pid < 0) {
        close(fds[0]);
        close(fds[1]);
        return err_set_errno(err, -errno, "Cannot start a process");
    }
    if (pid == 0) {
        Keeper keeper = {.options = options, .socket = socket, .pidfile = pidfile, .fd = fds[1]};

        close(fds[0]);
        fd_close(server_fd);
        if (prepare(&keeper, err) < 0) {
            log_report(err);
            _exit(EXIT_FAILURE);
        }
        pass_send(keeper.fd, &ready, 1, -1);
        be_keeper(&keeper);
    }
    close(fds[1]);
    /* A keeper that cannot remove the files, because their file system does not answer, does not keep the
     * server from ending. */
    setsockopt(
        fds[0], SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){.tv_sec = ANSWER_SECONDS}, sizeof(struct timeval));
    if (recv(fds[0], &ready, 1, 0) != 1) {
        close(fds[0]);
        return err_set(err, -ECHILD, "Cannot start the process that keeps the privileges");
    }
    *ret_fd = fds[0];
    return 0;
}

void keeper_ask_remove(int fd)
{
    uint8_t word = KEEPER_REMOVE;

    pass_send(fd, &word, 1, -1);
}

void keeper_wait_removed(int fd)
{
    uint8_t word = 0;
    ssize_t n;

    do { /* a worker that is on the way is of no use any more */
        AUTO_CLOSE UNUSED int worker_fd = -1;
        n = pass_recv(fd, &word, 1, &worker_fd);
    } while (n == 1 && word != KEEPER_REMOVE);
}
