/* SPDX-License-Identifier: Apache-2.0 */
#include "base/background.h"

#include "base/mem.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

/* Waits for the word of the process in the background, or its end. */
static NORETURN void wait_and_exit(int fd)
{
    uint8_t status;
    sigset_t none;
    ssize_t n;

    /* The signals that the other blocks for itself still end this one. */
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);

    do
        n = read(fd, &status, 1);
    while (n < 0 && errno == EINTR);
    _exit(n == 1 && status == 0 ? EXIT_SUCCESS : EXIT_FAILURE);
}

int background_start(int *ret_fd, Error *err)
{
    int fds[2];
    pid_t pid;

    if (pipe2(fds, O_CLOEXEC) < 0)
        return err_set_errno(err, -errno, "Cannot make a pipe");
    pid = fork();
    if (pid < 0)
        return err_set_errno(err, -errno, "Cannot fork");
    if (pid > 0) {
        close(fds[1]);
        wait_and_exit(fds[0]);
    }
    close(fds[0]);

    /* A session of its own, and no leader of it: no terminal can become ours. */
    if (setsid() < 0)
        return err_set_errno(err, -errno, "Cannot start a session");
    pid = fork();
    if (pid < 0)
        return err_set_errno(err, -errno, "Cannot fork");
    if (pid > 0)
        _exit(EXIT_SUCCESS);

    umask(027);
    signal(SIGTSTP, SIG_IGN);
    signal(SIGTTIN, SIG_IGN);
    signal(SIGTTOU, SIG_IGN);
    *ret_fd = fds[1];
    return 0;
}

int background_detach(Error *err)
{
    AUTO_CLOSE int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);

    if (null_fd < 0)
        return err_set_errno(err, -errno, "Cannot open '/dev/null'");
    if (chdir("/") < 0)
        return err_set_errno(err, -errno, "Cannot leave the working directory");
    for (int fd = 0; fd <= 2; fd++) {
        if (dup2(null_fd, fd) < 0)
            return err_set_errno(err, -errno, "Cannot redirect standard input and output");
    }
    return 0;
}

int background_report(int take_fd, Error *err)
{
    AUTO_CLOSE int status_fd = take_fd;
    uint8_t status = 0;

    /* If the first process was killed meanwhile, nobody is left to tell. */
    if (write(status_fd, &status, 1) < 0 && errno != EPIPE)
        return err_set_errno(err, -errno, "Cannot report the end of start-up");
    return 0;
}

int background_complete(int take_fd, Error *err)
{
    AUTO_CLOSE int status_fd = take_fd;
    int r = background_detach(err);

    return r < 0 ? r : background_report(TAKE_FD(status_fd), err);
}
