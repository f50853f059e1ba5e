/* SPDX-License-Identifier: Apache-2.0 */
/* The QMP client: one command at a time, waiting for its answer. */
#include "base/mem.h"
#include "ctl/ctl.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define DAEMON "granaryd"

struct CtlClient {
    int fd;
    pid_t daemon; /* started for this session; or 0 */
    JsonParser *parser;
    JsonValue *message; /* the last one that was complete and no event */
    bool broken;        /* what came was not JSON */
};

/* ---- Messages ---- */

static void take_message(void *opaque, JsonValue *take_value, const Error *err)
{
    CtlClient *client = opaque;

    client->broken |= err != NULL;
    if (!take_value || json_get(take_value, "event")) {
        json_free(take_value);
        return;
    }
    json_free(client->message);
    client->message = take_value;
}

/* The next message that is no event. */
static int receive(CtlClient *client, JsonValue **ret_message, Error *err)
{
    char buffer[4096];

    while (!client->message && !client->broken) {
        ssize_t bytes = recv(client->fd, buffer, sizeof(buffer), 0);

        if (bytes < 0 && errno == EINTR)
            continue;
        if (bytes < 0)
            return err_set_errno(err, -errno, "The connection to the daemon has failed");
        if (bytes == 0)
            return err_set(err, -EPIPE, "The daemon has ended the connection; its messages tell why");
        json_parser_feed(client->parser, buffer, (size_t)bytes);
    }
    if (client->broken)
        return err_set(err, -EPROTO, "What answers is not the monitor of a storage daemon (QMP)");
    *ret_message = TAKE(client->message);
    return 0;
}

static int send_text(CtlClient *client, const char *text, Error *err)
{
    size_t length = strlen(text);

    while (length) {
        ssize_t bytes = send(client->fd, text, length, MSG_NOSIGNAL);

        if (bytes < 0 && errno == EINTR)
            continue;
        if (bytes < 0)
            return err_set_errno(err, -errno, "The connection to the daemon has failed");
        text += bytes;
        length -= (size_t)bytes;
    }
    return 0;
}

int ctl_run(
    CtlClient *client, const char *command, JsonValue *take_arguments, JsonValue **ret_result, Error *err)
{
    AUTO_JSON JsonValue *request = json_object_new(), *reply = NULL;
    AUTO_FREE char *text = NULL;
    const char *desc;
    int r;

    json_object_put(request, "execute", json_string_new(command));
    if (take_arguments)
        json_object_put(request, "arguments", take_arguments);
    text = json_text(request, false);
    r = send_text(client, text, err);
    if (r == 0)
        r = receive(client, &reply, err);
    if (r < 0)
        return r;
    desc = json_get_string(json_get(reply, "error"), "desc");
    if (desc)
        return err_set(err, -EIO, "%s", desc);
    *ret_result = json_object_take(reply, "return");
    return *ret_result ? 0 : err_set(err, -EPROTO, "The answer to '%s' is no answer", command);
}

/* ---- Beginning and end ---- */

static CtlClient *client_new(int fd, pid_t daemon)
{
    CtlClient *client = mem_new(CtlClient);

    client->fd = fd;
    client->daemon = daemon;
    client->parser = json_parser_new(take_message, client);
    return client;
}

static int negotiate(CtlClient *client, CtlClient **ret_client, Error *err)
{
    AUTO_JSON JsonValue *greeting = NULL, *result = NULL;
    int r = receive(client, &greeting, err);

    if (r == 0 && !json_get(greeting, "QMP"))
        r = err_set(err, -EPROTO, "What answers is not the monitor of a storage daemon (QMP)");
    if (r == 0)
        r = ctl_run(client, "qmp_capabilities", NULL, &result, err);
    if (r < 0)
        ctl_close(client);
    else
        *ret_client = client;
    return r;
}

int ctl_connect(const char *path, CtlClient **ret_client, Error *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    AUTO_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return err_set_errno(err, -errno, "Cannot make a socket");
    if (strlen(path) >= sizeof(address.sun_path))
        return err_set(err, -ENAMETOOLONG, "The path of the socket is too long: %s", path);
    strcpy(address.sun_path, path);
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        return err_set_errno(
            err, -errno, "Cannot connect to the monitor at '%s' (does the daemon run, with --monitor?)", path);
    return negotiate(client_new(TAKE_FD(fd), 0), ret_client, err);
}

/* The daemon in this program's folder. */
static int find_daemon(char *path, size_t size, Error *err)
{
    ssize_t length = readlink("/proc/self/exe", path, size - 1);
    char *slash;

    if (length < 0)
        return err_set_errno(err, -errno, "Cannot find out where this program is");
    path[length] = '\0';
    slash = strrchr(path, '/');
    if (!slash || (size_t)(slash + 1 - path) + sizeof(DAEMON) > size)
        return err_set(err, -ENAMETOOLONG, "The path of this program is too long");
    strcpy(slash + 1, DAEMON);
    if (access(path, X_OK) < 0)
        return err_set_errno(err, -errno, "'%s' is needed", path);
    return 0;
}

/* In the child: only standard error and the socket are the daemon's. Does not return. */
static void NORETURN become_daemon(const char *path, int fd, pid_t parent)
{
    AUTO_FREE char *chardev = str_printf("socket,id=ctl,fd=%d", fd);

    (void)prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() == parent && dup2(STDERR_FILENO, STDOUT_FILENO) >= 0)
        (void)execl(path, DAEMON, "--chardev", chardev, "--monitor", "chardev=ctl", (char *)NULL);
    _exit(127);
}

int ctl_start(CtlClient **ret_client, Error *err)
{
    char path[PATH_MAX];
    pid_t parent = getpid(), child;
    int fds[2], r = find_daemon(path, sizeof(path), err);

    if (r < 0)
        return r;
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds) < 0)
        return err_set_errno(err, -errno, "Cannot make a socket");
    child = fork();
    if (child == 0) {
        (void)close(fds[0]);
        become_daemon(path, fds[1], parent);
    }
    (void)close(fds[1]);
    if (child < 0) {
        (void)close(fds[0]);
        return err_set_errno(err, -errno, "Cannot start '%s'", path);
    }
    return negotiate(client_new(fds[0], child), ret_client, err);
}

void ctl_close(CtlClient *client)
{
    Error ignored = ERROR_INIT;
    int status;

    if (!client)
        return;
    if (client->daemon) {
        (void)!send_text(client, "{\"execute\":\"quit\"}", &ignored);
        err_done(&ignored);
    }
    (void)close(client->fd);
    while (client->daemon && waitpid(client->daemon, &status, 0) < 0 && errno == EINTR)
        ;
    json_parser_free(client->parser);
    json_free(client->message);
    free(client);
}
