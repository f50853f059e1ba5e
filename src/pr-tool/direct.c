/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The helper gets a listening socket as a service manager would pass it (sd_listen_fds(3)). The socket has a
 * name that the kernel chooses and no file, so nothing is left behind whatever happens; as anybody could
 * connect to it, the helper serves this user only.
 */
#include "pr-tool/direct.h"

#include "base/log.h"
#include "base/mem.h"

#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define HELPER "granary-pr-helper"
/* Where the passed socket is expected (sd_listen_fds(3)). */
#define LISTEN_FD 3
#define STOP_MS 5000

/* Beside this program, in libexec beside that directory, else by PATH. */
static char *find_helper(void)
{
    static const char *const places[] = {"%s/" HELPER, "%s/../libexec/" HELPER};
    char self[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", self, sizeof(self) - 1);

    if (length > 0) {
        const char *folder;

        self[length] = '\0';
        folder = dirname(self);
        for (unsigned i = 0; i < ARRAY_SIZE(places); i++) {
            char *path = NULL;

            if (asprintf(&path, places[i], folder) >= 0 && access(path, X_OK) == 0)
                return path;
            free(path);
        }
    }
    return str_dup(HELPER);
}

/* A listening socket with a name from the kernel, which goes to ret_path as "@name". */
static int listen_anywhere(char *ret_path, Error *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    socklen_t bytes = sizeof(address);
    AUTO_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    /* Only the family: the kernel binds to a free abstract name (unix(7), "Autobind feature"). */
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address.sun_family)) < 0 ||
        getsockname(fd, (struct sockaddr *)&address, &bytes) < 0 || listen(fd, 1) < 0)
        return err_set_errno(err, -errno, "Cannot listen for a helper");
    snprintf(ret_path, sizeof(address.sun_path), "@%.*s",
        (int)(bytes - offsetof(struct sockaddr_un, sun_path)) - 1, address.sun_path + 1);
    return TAKE_FD(fd);
}

static NORETURN void become_helper(const char *program, int listen_fd)
{
    char pid[16], uid[16];

    prctl(PR_SET_PDEATHSIG, SIGTERM);
    snprintf(pid, sizeof(pid), "%d", (int)getpid());
    snprintf(uid, sizeof(uid), "%u", (unsigned)getuid());
    setenv("LISTEN_PID", pid, 1);
    setenv("LISTEN_FDS", "1", 1);
    unsetenv("LISTEN_FDNAMES");
    unsetenv("NOTIFY_SOCKET"); /* it is not our service that becomes ready */
    if (listen_fd == LISTEN_FD ? fcntl(listen_fd, F_SETFD, 0) == 0 : dup2(listen_fd, LISTEN_FD) >= 0)
        execlp(program, program, "--quiet", "--allow-uid", uid, (char *)NULL);
    log_error("Cannot run %s: %s", program, strerror(errno));
    _exit(127);
}

int direct_start(Direct *direct, const char *program, Error *err)
{
    AUTO_FREE char *path = program ? str_dup(program) : find_helper();
    AUTO_CLOSE int listen_fd = listen_anywhere(direct->path, err);
    pid_t pid;

    if (listen_fd < 0)
        return listen_fd;
    pid = fork();
    if (pid < 0)
        return err_set_errno(err, -errno, "Cannot start %s", path);
    if (pid == 0)
        become_helper(path, listen_fd);
    direct->pid = pid;
    return 0;
}

void direct_stop(Direct *direct)
{
    struct pollfd ended = {.events = POLLIN};

    if (!direct->pid)
        return;
    ended.fd = pidfd_open(direct->pid, 0);
    kill(direct->pid, SIGTERM);
    if (poll(&ended, 1, STOP_MS) != 1)
        kill(direct->pid, SIGKILL);
    /* Not waiting: a process that the kernel holds in a device would hold us too. */
    waitpid(direct->pid, NULL, WNOHANG);
    close(ended.fd);
    direct->pid = 0;
}
