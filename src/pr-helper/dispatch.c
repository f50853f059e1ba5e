/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Commands and workers. A command that hangs in the kernel keeps its worker, and counts against its device
 * and its user until the kernel lets go, so that one dead device can use up its own share only.
 */
#include "base/limits.h"
#include "base/log.h"
#include "base/mem.h"
#include "pr-helper/closer.h"
#include "pr-helper/keeper.h"
#include "pr-helper/options.h"
#include "pr-helper/pass.h"
#include "pr-helper/server-priv.h"
#include "pr-helper/trace.h"

#include <string.h>
#include <sys/epoll.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define NS_PER_SECOND UINT64_C(1000000000)

enum {
    IDLE_WORKERS = 2,   /* that are kept for good */
    IDLE_SECONDS = 10,  /* for how long the others are */
    COMING_WORKERS = 8, /* asked for at once: the queue may hold many commands of few devices */
    LATE_SECONDS = 2,   /* beyond the worker's own deadline: it does not die, so the kernel holds it */
};

/* ---- Ends of commands ---- */

/* Tells the client, if it is still there, and the log. */
static void finish(Server *server, Exchange *exchange, const PrDevice *device)
{
    audit_command(server->options, exchange, device);
    if (exchange->client)
        client_answer(exchange->client, exchange);
    else
        exchange_free(exchange);
}

/* What a command gets that no device has answered. */
static void fail(Server *server, Exchange *exchange, ScsiSense sense)
{
    const PrDevice unknown = {.number = exchange->device};

    pr_reply_check(&exchange->reply, sense);
    finish(server, exchange, &unknown);
}

/* ---- Workers ---- */

static void worker_free(Server *server, Worker *worker)
{
    source_watch(server, &worker->source, 0);
    close(worker->source.fd);
    list_remove(&worker->link);
    server->worker_count--;
    free(worker);
}

static bool worker_is_idle(const Worker *worker)
{
    return !worker->exchange && !worker->lost;
}

/* The worker's process has ended without an answer. */
static void worker_died(Server *server, Worker *worker)
{
    Exchange *exchange = TAKE(worker->exchange);
    uint64_t deadline = worker_deadline_seconds(server->options) * NS_PER_SECOND;

    trace_worker_died(worker->source.fd);
    worker_free(server, worker);
    if (!exchange)
        return;
    if (server->now_ns - exchange->since_ns < deadline) {
        log_warn("a worker process ended in the middle of a command");
        fail(server, exchange, SCSI_SENSE_IO_TERMINATED);
    } else {
        fail(server, exchange, SCSI_SENSE_COMMAND_TIMEOUT);
    }
}

static void worker_ready(Server *server, Source *source, uint32_t events)
{
    Worker *worker = CONTAINER_OF(source, Worker, source);
    Exchange *exchange = worker->exchange;
    WorkerReply answer;
    ssize_t n = recv(source->fd, &answer, sizeof(answer), 0);

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n < (ssize_t)WORKER_REPLY_BYTES || (size_t)n != WORKER_REPLY_BYTES + answer.reply.data_bytes ||
        !exchange) {
        worker_died(server, worker);
        return;
    }
    worker->exchange = NULL;
    worker->idle_since_ns = server->now_ns;
    if (answer.last)
        worker_free(server, worker);
    memcpy(&exchange->reply, &answer.reply, offsetof(PrReply, data) + answer.reply.data_bytes);
    finish(server, exchange, &answer.device);
}

static void want_worker(Server *server)
{
    uint8_t word = KEEPER_WORKER;

    if (pass_send(server->keeper.fd, &word, 1, -1) == 1)
        server->workers_coming++;
}

void dispatch_begin(Server *server)
{
    want_worker(server);
}

bool dispatch_keeper_answer(Server *server)
{
    uint8_t word = 0;
    int fd = -1;
    ssize_t n = pass_recv(server->keeper.fd, &word, 1, &fd);

    if (n == 0 || (n < 0 && n != -EAGAIN && n != -EBADMSG))
        return false;
    if (n == -EAGAIN || (n == 1 && word != KEEPER_WORKER))
        return true;
    server->workers_coming--;
    if (fd < 0) { /* out of processes, memory or descriptors: who waits longest is told to try again */
        if (!list_empty(&server->queue))
            fail(server, LIST_ENTRY(list_pop(&server->queue), Exchange, link), SCSI_SENSE_IO_TERMINATED);
        return true;
    }
    Worker *worker = mem_new(Worker);
    *worker = (Worker){.source = {.fd = fd, .ready = worker_ready}, .idle_since_ns = server->now_ns};
    list_append(&server->workers, &worker->link);
    server->worker_count++;
    source_watch(server, &worker->source, EPOLLIN);
    return true;
}

/* ---- The queue ---- */

void dispatch_submit(Server *server, Exchange *exchange)
{
    exchange->since_ns = server->now_ns;
    list_append(&server->queue, &exchange->link);
}

void dispatch_abandon(Exchange *take_exchange)
{
    take_exchange->client = NULL;
    if (list_empty(&take_exchange->link))
        return; /* a worker has it */
    list_remove(&take_exchange->link);
    exchange_free(take_exchange);
}

static bool changes(const Exchange *exchange)
{
    return exchange->request.cdb[0] != PR_IN_OPCODE;
}

static bool within_limits(const Server *server, const Exchange *exchange)
{
    unsigned device = 0, user = 0, all = 0;

    LIST_FOREACH (link, &server->workers) {
        const Worker *worker = LIST_ENTRY(link, Worker, link);

        if (worker_is_idle(worker))
            continue;
        /* One change of a device after the other: the multipath library cannot do two at once. */
        if (worker->changes && !worker->lost && worker->device == exchange->device && changes(exchange))
            return false;
        all++;
        device += worker->device == exchange->device;
        user += worker->user == exchange->peer.uid;
    }
    return all < server->max_commands && device < LIMIT_PR_HELPER_DEVICE_COMMANDS &&
           user < MIN((unsigned)LIMIT_PR_HELPER_USER_COMMANDS, MAX(server->max_commands / 2, 1u));
}

static Worker *idle_worker(const Server *server)
{
    LIST_FOREACH (link, &server->workers) {
        Worker *worker = LIST_ENTRY(link, Worker, link);

        if (worker_is_idle(worker))
            return worker;
    }
    return NULL;
}

/* False: the worker has died. */
static bool give(Server *server, Worker *worker, Exchange *exchange)
{
    ssize_t n = pass_send(
        worker->source.fd, &exchange->request, worker_request_bytes(&exchange->request), exchange->device_fd);

    if (n == -EPIPE || n == -ECONNRESET)
        return false;
    list_remove(&exchange->link);
    if (n < 0) { /* out of memory, or the user has too many descriptors under way: no other worker helps */
        fail(server, exchange, SCSI_SENSE_IO_TERMINATED);
        return true;
    }
    /* The worker's is still open, so nothing of a device is written back by this. */
    if (exchange->is_device)
        exchange->device_fd = fd_close(exchange->device_fd);
    else
        closer_close(TAKE_FD(exchange->device_fd), exchange->peer.uid);
    exchange->since_ns = server->now_ns;
    worker->exchange = exchange;
    worker->device = exchange->device;
    worker->user = exchange->peer.uid;
    worker->changes = changes(exchange);
    return true;
}

void dispatch_run(Server *server)
{
    unsigned waiting = 0;

    LIST_FOREACH_SAFE (link, &server->queue) {
        Exchange *exchange = LIST_ENTRY(link, Exchange, link);
        Worker *worker;

        if (!within_limits(server, exchange))
            continue;
        while ((worker = idle_worker(server)) && !give(server, worker, exchange))
            worker_free(server, worker);
        if (!worker && ++waiting > server->workers_coming && server->workers_coming < COMING_WORKERS &&
            server->worker_count + server->workers_coming < server->max_commands)
            want_worker(server);
    }
}

/* ---- Time ---- */

static uint64_t expire_queue(Server *server)
{
    uint64_t limit = server->options->command_timeout * NS_PER_SECOND;

    while (!list_empty(&server->queue)) {
        Exchange *exchange = LIST_ENTRY(server->queue.next, Exchange, link);

        if (exchange->since_ns + limit > server->now_ns)
            return exchange->since_ns + limit;
        list_remove(&exchange->link);
        /* It has not begun: unlike after a time-out the initiator may just send it again. */
        pr_reply_status(&exchange->reply, SCSI_BUSY);
        finish(server, exchange, &(PrDevice){.number = exchange->device});
    }
    return UINT64_MAX;
}

static uint64_t expire_workers(Server *server)
{
    uint64_t limit = (worker_deadline_seconds(server->options) + LATE_SECONDS) * NS_PER_SECOND;
    uint64_t next = UINT64_MAX;

    LIST_FOREACH_SAFE (link, &server->workers) {
        Worker *worker = LIST_ENTRY(link, Worker, link);

        if (!worker->exchange)
            continue;
        if (worker->exchange->since_ns + limit > server->now_ns) {
            next = MIN(next, worker->exchange->since_ns + limit);
            continue;
        }
        worker->lost = true;
        log_warn(
            "a command on device %u:%u hangs in the kernel", major(worker->device), minor(worker->device));
        fail(server, TAKE(worker->exchange), SCSI_SENSE_COMMAND_TIMEOUT);
    }
    return next;
}

/* A burst of commands leaves more workers than are needed later. */
static uint64_t expire_idle_workers(Server *server)
{
    uint64_t next = UINT64_MAX;
    unsigned idle = 0;

    LIST_FOREACH_SAFE (link, &server->workers) {
        Worker *worker = LIST_ENTRY(link, Worker, link);

        if (!worker_is_idle(worker) || ++idle <= IDLE_WORKERS)
            continue;
        if (worker->idle_since_ns + IDLE_SECONDS * NS_PER_SECOND > server->now_ns)
            next = MIN(next, worker->idle_since_ns + IDLE_SECONDS * NS_PER_SECOND);
        else
            worker_free(server, worker);
    }
    return next;
}

uint64_t dispatch_expire(Server *server)
{
    uint64_t next = expire_queue(server), workers = expire_workers(server),
             idle = expire_idle_workers(server);

    next = MIN(next, workers);
    return MIN(next, idle);
}

bool dispatch_busy(const Server *server)
{
    LIST_FOREACH (link, &server->workers) {
        if (LIST_ENTRY(link, Worker, link)->exchange)
            return true;
    }
    return !list_empty(&server->waits[WAIT_REQUEST]);
}

void dispatch_end(Server *server)
{
    while (!list_empty(&server->workers)) {
        Worker *worker = LIST_ENTRY(server->workers.next, Worker, link);

        if (worker->exchange) /* may have been executed, so it is in the log */
            fail(server, TAKE(worker->exchange), SCSI_SENSE_IO_TERMINATED);
        worker_free(server, worker);
    }
}
