/* SPDX-License-Identifier: Apache-2.0 */
#include "base/log.h"

#include "base/mem.h"

#include <stdio.h>
#include <syslog.h>

static const char *program = "granary";
static char *current_location;
static bool to_syslog;

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

static void line(int priority, const char *kind, const char *fmt, va_list args)
{
    AUTO_FREE char *text = str_vprintf(fmt, args);

    if (to_syslog)
        syslog(priority, "%s%s", kind, text);
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
