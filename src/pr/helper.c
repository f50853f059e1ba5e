/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The object `pr-manager-helper`: sends commands to a reservation helper.
 *
 * The first connection stands as long as the helper does; while no command uses it, a coroutine watches it,
 * and makes it anew when it has gone. Whether that connection is up is what clients see as `connected`.
 * Further connections exist only while commands of several disks are in flight.
 *
 * A command has one deadline. Until its CDB has gone out it may be tried again; afterwards nobody
 * knows whether it was executed, so it fails with a sense that makes the initiator look and repeat.
 *
 * Traps: a connection that this side has closed (cancelled command, deadline) is no news about the helper. A
 * helper that accepts and says nothing must not be waited for without a limit.
 */
#include "pr/pr-priv.h"

#include "base/limits.h"
#include "base/mem.h"
#include "generated/trace.h"
#include "generated/types.h"
#include "pr-client/granary-pr.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/un.h>

/* How long the helper may take to greet. */
#define HELLO_NS (5 * UINT64_C(1000000000))
/* Attempts to reach a helper for one command, and the time between them. */
#define ATTEMPTS 5
#define ATTEMPT_PAUSE_NS UINT64_C(1000000000)
/* Time between attempts to reach it in the background: doubles from the first to the second. */
#define RECONNECT_MIN_NS UINT64_C(500000000)
#define RECONNECT_MAX_NS (16 * UINT64_C(1000000000))
#define DEADLINE_DEFAULT_S 60

typedef struct Connection {
    granary_pr *pr; /* the standing one: for the life of the manager; the others: while in use */
    bool busy;
} Connection;

typedef struct PrHelper {
    PrManager manager; /* first */
    char *path;
    uint64_t deadline_ns;
    Connection connections[LIMIT_PR_CONNECTIONS]; /* [0] is the standing one */
    CoMutex queue; /* commands that wait for a connection, in order of arrival */
    CoCond freed;  /* a connection is no longer busy */
    bool dropped;  /* this side has closed the standing connection, or never opened it */
    CoGroup watch;
    CoGroup poll; /* while nobody uses the standing connection: who waits for its end */
} PrHelper;

static PrHelper *helper_of(Object *object)
{
    return object_state(object, &object_kind_pr_manager_helper);
}

static const char *id_of(const PrHelper *helper)
{
    return pr_manager_id(&helper->manager);
}

static Connection *standing(PrHelper *helper)
{
    return &helper->connections[0];
}

static bool is_up(const Connection *connection)
{
    return connection->pr && granary_pr_is_connected(connection->pr) > 0;
}

/* ---- Taking turns ---- */

static Connection *find_idle(PrHelper *helper)
{
    for (unsigned i = 0; i < LIMIT_PR_CONNECTIONS; i++)
        if (!helper->connections[i].busy)
            return &helper->connections[i];
    return NULL;
}

static void stop_poll(PrHelper *helper)
{
    co_group_cancel(&helper->poll);
    co_group_join(&helper->poll);
    co_group_init(&helper->poll);
}

/* Waits, but never for the helper. */
static void take(PrHelper *helper, Connection *connection)
{
    connection->busy = true;
    if (connection == standing(helper))
        stop_poll(helper);
}

/* NULL when interrupted. */
static Connection *take_connection(PrHelper *helper)
{
    Connection *connection = NULL;
    int r = co_mutex_lock(&helper->queue);

    if (r < 0)
        return NULL;
    while (r == 0 && !(connection = find_idle(helper)))
        r = co_cond_wait(&helper->freed, NULL);
    if (connection)
        take(helper, connection);
    co_mutex_unlock(&helper->queue);
    return connection;
}

static void give_connection(PrHelper *helper, Connection *connection)
{
    if (connection != standing(helper))
        granary_pr_free(TAKE(connection->pr));
    connection->busy = false;
    co_cond_broadcast(&helper->freed);
}

/* ---- On one connection, which the caller has taken ---- */

/* Finishes what was started. An interruption ends it at once and closes the connection. */
static int finish(Connection *connection)
{
    for (;;) {
        int r = granary_pr_dispatch(connection->pr);

        if (r != GRANARY_PR_AGAIN)
            return r;
        r = io_poll(granary_pr_fd(connection->pr), POLLIN);
        if (r < 0) {
            granary_pr_disconnect(connection->pr);
            return r;
        }
    }
}

static int greet(PrHelper *helper, Connection *connection)
{
    CoDeadline deadline;
    int r;

    if (!connection->pr && !(connection->pr = granary_pr_new(helper->path)))
        return errno ? -errno : -ENOMEM;
    r = granary_pr_start(connection->pr, -1, NULL, 0, NULL, 0, -1, NULL);
    if (r < 0)
        return r;
    co_deadline_begin(&deadline, HELLO_NS);
    r = finish(connection);
    co_deadline_end(&deadline);
    return r;
}

static int bring_up(PrHelper *helper, Connection *connection)
{
    bool stands = connection == standing(helper);
    int r;

    if (stands && !helper->dropped)
        pr_manager_set_connected(&helper->manager, false);
    r = greet(helper, connection);
    trace_pr_helper_attempt(id_of(helper), (int)(connection - helper->connections), r);
    if (stands && (r == 0 || co_interrupted() == 0)) {
        helper->dropped = false;
        pr_manager_set_connected(&helper->manager, r == 0);
    }
    return r;
}

/* ---- Commands ---- */

typedef struct Command {
    int fd;
    const PrRequest *request;
    PrReply *reply;
    bool sent; /* may have been executed */
} Command;

static int converse(Connection *connection, Command *command)
{
    const PrRequest *request = command->request;
    bool in = request->cdb[0] == PR_IN_OPCODE;
    granary_pr_result result = {0};
    int r;

    r = granary_pr_start(connection->pr, command->fd, request->cdb, sizeof(request->cdb),
        in ? command->reply->data : (void *)request->data, in ? PR_DATA_BYTES : request->data_bytes, -1,
        &result);
    if (r == 0)
        r = finish(connection);
    if (r == 0) {
        command->reply->status = result.status;
        command->reply->data_bytes = result.data_bytes;
        memcpy(command->reply->sense, result.sense, sizeof(command->reply->sense));
    }
    command->sent = r < 0 && granary_pr_was_sent(connection->pr);
    return r;
}

/* Tries until the command has gone out or this was often enough. */
static int carry_out(PrHelper *helper, Connection *connection, Command *command)
{
    for (unsigned attempt = 1;; attempt++) {
        int r = is_up(connection) ? 0 : bring_up(helper, connection);

        if (r == 0)
            r = converse(connection, command);
        if (r == 0 || command->sent || attempt == ATTEMPTS || co_interrupted() < 0)
            return r;
        r = co_sleep_ns(ATTEMPT_PAUSE_NS);
        if (r < 0)
            return r;
    }
}

static int execute_within(PrHelper *helper, Command *command)
{
    Connection *connection = take_connection(helper);
    int r;

    if (!connection)
        return co_interrupted();
    r = carry_out(helper, connection, command);
    if (command->sent && co_interrupted() < 0 && connection == standing(helper))
        helper->dropped = true;
    give_connection(helper, connection);
    return r;
}

static int helper_execute(PrManager *manager, int fd, const PrRequest *request, PrReply *ret_reply)
{
    PrHelper *helper = CONTAINER_OF(manager, PrHelper, manager);
    Command command = {.fd = fd, .request = request, .reply = ret_reply};
    CoDeadline deadline;
    int r;

    co_deadline_begin(&deadline, helper->deadline_ns);
    r = execute_within(helper, &command);
    co_deadline_end(&deadline);
    if (r == 0)
        return 0;
    trace_pr_helper_failed(id_of(helper), fd, command.sent, r);
    r = co_interrupted();
    if (r < 0)
        return r;
    pr_reply_check(ret_reply, command.sent ? SCSI_SENSE_COMMUNICATION_FAILURE : SCSI_SENSE_IO_TERMINATED);
    return 0;
}

/* ---- The watch ---- */

static void wait_for_end(void *opaque)
{
    PrHelper *helper = opaque;

    if (io_poll(granary_pr_fd(standing(helper)->pr), POLLIN) >= 0)
        co_cond_broadcast(&helper->freed);
}

/* Waits for news of a standing connection that is up: it has ended, or a command uses it or has used it. */
static int wait_for_news(PrHelper *helper)
{
    if (!helper->poll.count)
        co_start(&helper->poll, "pr-poll", wait_for_end, helper);
    return co_cond_wait(&helper->freed, NULL);
}

/* Waits for a while, or until a command has used a connection. */
static int pause_for(PrHelper *helper, uint64_t pause_ns)
{
    CoDeadline deadline;
    int r;

    co_deadline_begin(&deadline, pause_ns);
    r = co_cond_wait(&helper->freed, NULL);
    co_deadline_end(&deadline);
    return r == -ECANCELED ? r : 0;
}

static int wait_until_idle(PrHelper *helper)
{
    int r = co_interrupted();

    while (standing(helper)->busy && r == 0)
        r = co_cond_wait(&helper->freed, NULL);
    return r;
}

static void reconnect(PrHelper *helper)
{
    take(helper, standing(helper));
    (void)!bring_up(helper, standing(helper));
    give_connection(helper, standing(helper));
}

/* Brings the standing connection up whenever it is down; lets a command be first. */
static void watch(void *opaque)
{
    PrHelper *helper = opaque;
    Connection *connection = standing(helper);
    uint64_t pause_ns = RECONNECT_MIN_NS;

    while (wait_until_idle(helper) == 0) {
        if (is_up(connection)) {
            pause_ns = RECONNECT_MIN_NS;
            if (wait_for_news(helper) < 0)
                return;
            continue;
        }
        if (!helper->dropped) {
            pr_manager_set_connected(&helper->manager, false);
            if (pause_for(helper, pause_ns) < 0)
                return;
            pause_ns = MIN(pause_ns * 2, RECONNECT_MAX_NS);
            if (connection->busy || is_up(connection))
                continue;
        }
        reconnect(helper);
    }
}

/* ---- Life ---- */

static int check_properties(const PrManagerHelperProperties *given, Error *err)
{
    if (strlen(given->path) >= sizeof(((struct sockaddr_un *)NULL)->sun_path)) {
        err_set(err, -EINVAL, "UNIX socket path '%s' is too long", given->path);
        err_hint(err, "Path must be less than %zu bytes", sizeof(((struct sockaddr_un *)NULL)->sun_path));
        return err->code;
    }
    if (given->has_deadline && given->deadline == 0)
        return err_set(err, -EINVAL, "Parameter 'deadline' expects at least 1 second");
    return 0;
}

static int connect_first(PrHelper *helper, Error *err)
{
    int r = bring_up(helper, standing(helper));

    if (r == -ETIMEDOUT || r == -EPROTO)
        return err_set(err, r, "Failed to connect to '%s': no reservation helper greets there", helper->path);
    return r < 0 ? err_set_errno(err, r, "Failed to connect to '%s'", helper->path) : 0;
}

static void release(PrHelper *helper)
{
    granary_pr_free(TAKE(standing(helper)->pr));
    free(TAKE(helper->path));
}

static int helper_create(Object *object, const ObjectOptions *options, Error *err)
{
    const PrManagerHelperProperties *given = &options->u.pr_manager_helper;
    PrHelper *helper = helper_of(object);
    int r = check_properties(given, err);

    if (r < 0)
        return r;
    pr_manager_init(&helper->manager, object, helper_execute);
    helper->path = str_dup(given->path);
    helper->deadline_ns = (given->has_deadline ? given->deadline : DEADLINE_DEFAULT_S) * UINT64_C(1000000000);
    helper->dropped = true;
    co_group_init(&helper->watch);
    co_group_init(&helper->poll);
    standing(helper)->pr = granary_pr_new(helper->path);
    if (!standing(helper)->pr)
        r = err_set_errno(err, -errno, "Failed to connect to '%s'", helper->path);
    else if (!given->has_connect || given->connect)
        r = connect_first(helper, err);
    if (r < 0) {
        release(helper);
        return r;
    }
    co_start(&helper->watch, "pr-watch", watch, helper);
    helper->manager.ready = true;
    return 0;
}

static void helper_destroy(Object *object)
{
    PrHelper *helper = helper_of(object);

    co_group_cancel(&helper->watch);
    co_group_join(&helper->watch);
    stop_poll(helper);
    release(helper);
}

static int get_path(Object *object, const ObjectProperty *property, JsonValue **ret_value, Error *err)
{
    *ret_value = json_string_new(helper_of(object)->path);
    return 0;
}

static const ObjectProperty helper_properties[] = {
    {.name = "path", .type = "string", .get = get_path},
    {0},
};

const ObjectKind object_kind_pr_manager_helper = {
    .name = "pr-manager-helper",
    .state_size = sizeof(PrHelper),
    .create = helper_create,
    .destroy = helper_destroy,
    .can_be_deleted = pr_manager_can_be_deleted,
    .properties = helper_properties,
};
