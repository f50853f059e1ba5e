/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client's session: one coroutine reads and parses, one runs the commands in order, one writes. A session
 * whose client has gone while a command still runs leaves its monitor free for the next client and ends by
 * itself.
 *
 * Memory is bounded on both sides: reading stops while LIMIT_MONITOR_REQUESTS commands wait, the next command
 * waits until the client has taken most of what it was sent, and a client that lets events pile up beyond
 * LIMIT_MONITOR_OUTPUT_BYTES loses its connection.
 *
 * What a client sends may hold passwords: it is wiped everywhere on its way, here and in JSON values.
 *
 * Traps: everything that appends output may run in any coroutine and must not wait. An overflowing session is
 * only marked (session->lost) and kicked; its own coroutines take it down.
 */
#include "base/limits.h"
#include "base/log.h"
#include "generated/trace.h"
#include "loop/loop.h"
#include "monitor/monitor-priv.h"

#include <string.h>

/* Bytes read at once: small, because all commands within are kept. */
#define INPUT_BYTES 4096
/* How long a client that has closed its sending side is still sent replies to what it had asked. */
#define LINGER_NS (5 * UINT64_C(1000000000))
/* How long a client is given to take what is left when the program ends. */
#define FLUSH_NS (2 * UINT64_C(1000000000))
/* A client that sends nothing for so long then is not in the middle of sending. */
#define QUIET_NS UINT64_C(1000000)

/* What the parser found: a value or the reply to text that is no JSON. */
typedef struct Input {
    List link;
    JsonValue *value;
    bool is_reply;
} Input;

struct Session {
    List link; /* in sessions */
    Monitor *monitor;
    Negotiation negotiation;
    JsonParser *parser;
    List inputs;
    unsigned input_count;
    size_t bytes_read;
    bool input_ended; /* the client sends no more */
    bool lost;        /* nothing can be sent any more */
    bool commands_ended;
    bool command_runs;
    Co *dispatcher;
    StrBuf output;
    size_t unsent;  /* bytes in output and in the write that is under way */
    CoCond changed; /* any of the above */
    CoGroup io;     /* reader and writer */
    CoGroup group;  /* who runs the commands */
};

static List sessions = LIST_INIT(sessions);
static bool commands_run; /* the gate in front of all commands: start-up is complete */
static bool program_ends;
static CoCond command_ended;

/* ---- Output ---- */

static void append_lines(StrBuf *out, const char *text)
{
    for (const char *end; (end = strchr(text, '\n')); text = end + 1) {
        strbuf_append_bytes(out, text, (size_t)(end - text));
        strbuf_append(out, "\r\n");
    }
    strbuf_append(out, text);
    strbuf_append(out, "\r\n");
}

static void lose(Session *session)
{
    session->lost = true;
    session->input_ended = true;
    co_cond_broadcast(&session->changed);
    chardev_hang_up(session->monitor->chardev);
}

static void send_text(Session *session, const char *text)
{
    size_t before = session->output.length;

    if (session->lost)
        return;
    append_lines(&session->output, text);
    session->unsent += session->output.length - before;
    co_cond_broadcast(&session->changed);
}

static void send_value(Session *session, const JsonValue *value)
{
    AUTO_FREE char *text = json_text(value, session->monitor->pretty);

    send_text(session, text);
}

static void write_output(void *opaque)
{
    Session *session = opaque;

    for (;;) {
        while (!session->output.length && !session->lost) {
            if (co_cond_wait(&session->changed, NULL) < 0)
                return;
        }
        if (session->lost)
            return;
        AUTO_STRBUF StrBuf chunk = session->output;
        session->output = (StrBuf){0};
        int r = chardev_write_all(session->monitor->chardev, chunk.text, chunk.length);
        trace_monitor_output(session->monitor->id, chunk.length);
        session->unsent -= chunk.length;
        if (r == -ECANCELED)
            return;
        if (r < 0)
            lose(session);
        co_cond_broadcast(&session->changed);
    }
}

void sessions_send_event(const JsonValue *event)
{
    LIST_FOREACH_SAFE (link, &sessions) {
        Session *session = LIST_ENTRY(link, Session, link);

        if (!session->negotiation.complete || session->lost)
            continue;
        send_value(session, event);
        if (session->unsent <= LIMIT_MONITOR_OUTPUT_BYTES)
            continue;
        trace_monitor_overflow(session->monitor->id, session->unsent);
        log_warn(
            "monitor '%s': the client does not read its events; connection closed", session->monitor->id);
        lose(session);
    }
}

void session_flush(Session *session)
{
    CoDeadline deadline;
    int r = 0;

    co_deadline_begin(&deadline, FLUSH_NS);
    while (session->unsent && !session->lost && r == 0)
        r = co_cond_wait(&session->changed, NULL);
    for (size_t before = SIZE_MAX; r == 0 && session->bytes_read != before && !session->input_ended;) {
        before = session->bytes_read;
        r = co_sleep_ns(QUIET_NS);
    }
    co_deadline_end(&deadline);
}

/* ---- Input ---- */

static void take_input(void *opaque, JsonValue *take_value, const Error *err)
{
    Session *session = opaque;
    Input *input;

    if (program_ends) {
        json_free(take_value);
        return;
    }
    input = mem_new(Input);
    input->is_reply = !take_value;
    input->value = take_value ? take_value : dispatch_error_reply(NULL, err);
    list_append(&session->inputs, &input->link);
    session->input_count++;
    co_cond_broadcast(&session->changed);
}

/* At the end of the program input is read and dropped: a connection that is closed on unread input is reset,
 * and the client would lose what it was sent. */
static bool input_is_full(const Session *session)
{
    return session->input_count >= LIMIT_MONITOR_REQUESTS && !program_ends;
}

static int read_more(Session *session)
{
    char data[INPUT_BYTES];
    ssize_t n;

    if (input_is_full(session))
        trace_monitor_input_paused(session->monitor->id, session->input_count);
    while (input_is_full(session)) {
        int r = co_cond_wait(&session->changed, NULL);

        if (r < 0)
            return r;
    }
    n = chardev_read(session->monitor->chardev, data, sizeof(data));
    if (n <= 0)
        return n < 0 ? (int)n : -ECONNRESET;
    trace_monitor_input(session->monitor->id, (size_t)n);
    session->bytes_read += (size_t)n;
    json_parser_feed(session->parser, data, (size_t)n);
    explicit_bzero(data, (size_t)n);
    return 0;
}

static void read_input(void *opaque)
{
    Session *session = opaque;

    while (!session->input_ended && read_more(session) == 0) {
    }
    session->input_ended = true;
    co_cond_broadcast(&session->changed);
}

/* ---- Commands ---- */

/* The next input, or NULL when there will be none. */
static Input *next_input(Session *session)
{
    List *link;

    for (;;) {
        if (program_ends || session->lost)
            return NULL;
        link =
            commands_run && session->unsent <= LIMIT_MONITOR_UNREAD_BYTES ? list_pop(&session->inputs) : NULL;
        if (link)
            return LIST_ENTRY(link, Input, link);
        if (session->input_ended && list_empty(&session->inputs))
            return NULL;
        if (co_cond_wait(&session->changed, NULL) < 0)
            return NULL;
    }
}

static void handle_input(Session *session, Input *input)
{
    session->input_count--;
    co_cond_broadcast(&session->changed);
    if (input->is_reply) {
        send_value(session, input->value);
    } else {
        Negotiation negotiation = session->negotiation;

        session->command_runs = true;
        AUTO_JSON JsonValue *reply = dispatch_request(&negotiation, input->value);
        session->command_runs = false;
        co_cond_broadcast(&command_ended);
        send_value(session, reply);
        /* Only now: no event may come before the reply that ends the negotiation. */
        session->negotiation = negotiation;
    }
    json_free(input->value);
    free(input);
}

static void run_commands(void *opaque)
{
    Session *session = opaque;
    Input *input;

    session->dispatcher = co_self();
    while ((input = next_input(session)))
        handle_input(session, input);
    session->dispatcher = NULL;
    session->commands_ended = true;
    co_cond_broadcast(&session->changed);
}

static void wake_all(void)
{
    LIST_FOREACH (link, &sessions)
        co_cond_broadcast(&LIST_ENTRY(link, Session, link)->changed);
}

void sessions_start_commands(void)
{
    commands_run = true;
    wake_all();
}

void sessions_refuse_commands(void)
{
    program_ends = true;
    wake_all();
}

static bool any_command_runs(void)
{
    LIST_FOREACH (link, &sessions) {
        if (LIST_ENTRY(link, Session, link)->command_runs)
            return true;
    }
    return false;
}

void sessions_end_commands(void)
{
    sessions_refuse_commands();
    LIST_FOREACH (link, &sessions) {
        Session *session = LIST_ENTRY(link, Session, link);

        if (session->command_runs)
            co_cancel(session->dispatcher);
    }
    while (any_command_runs())
        co_cond_wait_shielded(&command_ended, NULL);
}

/* ---- Life ---- */

static Session *session_new(Monitor *monitor)
{
    Session *session = mem_new(Session);

    session->monitor = monitor;
    session->parser = json_parser_new(take_input, session);
    list_init(&session->inputs);
    co_group_init(&session->io);
    co_group_init(&session->group);
    list_append(&sessions, &session->link);
    return session;
}

static void session_free(Session *session)
{
    List *link;

    list_remove(&session->link);
    while ((link = list_pop(&session->inputs))) {
        Input *input = LIST_ENTRY(link, Input, link);

        json_free(input->value);
        free(input);
    }
    json_parser_free(session->parser);
    strbuf_done(&session->output);
    free(session);
}

/* The client has gone: its last command may take its time, without keeping the next client waiting. */
static void reap(void *opaque)
{
    Session *session = opaque;

    co_group_join(&session->group);
    session_free(session);
}

static void wait_for_end(Session *session)
{
    CoDeadline deadline;
    int r = 0;

    while (!session->input_ended && !session->lost && r == 0)
        r = co_cond_wait(&session->changed, NULL);
    if (r < 0)
        return;
    co_deadline_begin(&deadline, LINGER_NS);
    while ((!session->commands_ended || session->unsent) && !session->lost && r == 0)
        r = co_cond_wait(&session->changed, NULL);
    co_deadline_end(&deadline);
}

void session_serve(Monitor *monitor)
{
    Session *session = session_new(monitor);
    AUTO_JSON JsonValue *greeting = dispatch_greeting();

    trace_monitor_connected(monitor->id);
    monitor->session = session;
    send_value(session, greeting);
    co_start(&session->io, "monitor-read", read_input, session);
    co_start(&session->io, "monitor-write", write_output, session);
    co_start(&session->group, "monitor-run", run_commands, session);
    wait_for_end(session);

    trace_monitor_disconnected(monitor->id, session->lost);
    monitor->session = NULL;
    session->lost = true;
    session->input_ended = true;
    co_cond_broadcast(&session->changed);
    co_group_cancel(&session->io);
    co_group_join(&session->io);
    co_start(&monitor->group, "monitor-reap", reap, session);
}
