/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of this folder share. */
#pragma once

#include "chardev/chardev.h"
#include "co/co.h"
#include "monitor/monitor.h"
#include "schema/json.h"

typedef struct Session Session;

typedef struct Monitor {
    List link; /* in monitors, newest last */
    char *id;  /* the monitor's or, when it has none, the character device's */
    Chardev *chardev;
    bool pretty;
    Session *session; /* the connected client, or NULL */
    CoGroup group;    /* who waits for clients, and who waits for the end of sessions whose client has gone */
} Monitor;

/* ---- session.c ---- */

/* Serves one client until it is gone. Started sessions are found by the functions below. */
void session_serve(Monitor *monitor);
/* Sends an event to every client that has negotiated. */
void sessions_send_event(const JsonValue *event);
/* Lets the commands run that came and come. */
void sessions_start_commands(void);
/* No further command is taken from any client. */
void sessions_refuse_commands(void);
/* The same; cancels running commands and waits for them. */
void sessions_end_commands(void);
/* Waits, for a limited time, until the client has been sent everything and sends nothing itself. */
void session_flush(Session *session);

/* ---- dispatch.c ---- */

/* What a client has negotiated. */
typedef struct Negotiation {
    bool complete;
    bool oob;
} Negotiation;

/* {"QMP": ...} */
JsonValue *dispatch_greeting(void) MUST_CHECK;
/* Checks a request and runs its command. Returns the reply. */
JsonValue *dispatch_request(Negotiation *negotiation, const JsonValue *request) MUST_CHECK;
/* The reply to input that was no JSON. */
JsonValue *dispatch_error_reply(const JsonValue *id, const Error *err) MUST_CHECK;

/* ---- qmp.c ---- */

/* The negotiation that qmp_capabilities changes: that of the session whose command starts to run. */
void qmp_set_negotiation(Negotiation *negotiation);
/* What the quit command does. */
void qmp_set_quit_handler(void (*quit)(void));
