/* SPDX-License-Identifier: Apache-2.0 */
#include "base/log.h"

#include "base/mem.h"

#include <poll.h>
#include <stdio.h>
#include <syslog.h>
#include <unistd.h>

static const char *program = "granary";
static char *current_location;
static bool to_syslog, never_wait;

void log_set_program(const char *name)
{
    program = name;
}

const char *log_program(void)
{
    return program;
}

void log_set_location(const char *location)
{
    char *copy = str_dup(location);

    free(current_location);
    current_location = copy;
}

const char *log_location(void)
{
    return current_location;
}

void log_use_syslog(void)
{
    openlog(program, LOG_PID | LOG_NDELAY, LOG_DAEMON);
    to_syslog = true;
}

void log_never_wait(void)
{
    never_wait = true;
}

/* Whether a line can be written to standard error: a pipe that polls as writable has room for PIPE_BUF bytes.
 */
static bool has_room(void)
{
    struct pollfd entry = {.fd = STDERR_FILENO, .events = POLLOUT};

    return !never_wait || poll(&entry, 1, 0) != 0;
}

static void line(int priority, const char *kind, const char *fmt, va_list args)
{
    AUTO_FREE char *text = str_vprintf(fmt, args);

    if (to_syslog)
        syslog(priority, "%s%s", kind, text);
    else if (!has_room())
        return;
    else if (current_location)
        fprintf(stderr, "%s:%s: %s%s\n", program, current_location, kind, text);
    else
        fprintf(stderr, "%s: %s%s\n", program, kind, text);
}

#define LOG_FUNCTION(name, priority, kind) \
    void name(const char *fmt, ...)        \
    {                                      \
        va_list args;                      \
        va_start(args, fmt);               \
        line(priority, kind, fmt, args);   \
        va_end(args);                      \
    }

LOG_FUNCTION(log_error, LOG_ERR, "")
LOG_FUNCTION(log_warn, LOG_WARNING, "warning: ")
LOG_FUNCTION(log_info, LOG_INFO, "info: ")

void log_report(Error *err)
{
    log_error("%s", err->message);
    if (err->hint && to_syslog)
        log_info("%s", err->hint);
    else if (err->hint)
        fprintf(stderr, "%s\n", err->hint);
    err_done(err);
}
