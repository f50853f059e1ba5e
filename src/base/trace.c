/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Trap: trace_enabled is written by the main thread while others read it. Each entry is one byte that is only
 * ever compared with zero, so a late or early look is all that can happen.
 */
#include "base/trace.h"

#include "base/log.h"
#include "base/mem.h"

#include <string.h>

static FILE *output; /* NULL: standard error */

void trace_log(const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    AUTO_FREE char *text = str_vprintf(fmt, args);
    va_end(args);
    fprintf(output ? output : stderr, "%s\n", text);
}

bool trace_pattern_matches(const char *pattern, const char *text)
{
    const char *star = NULL, *resume = NULL;

    while (*text) {
        if (*pattern == '*') {
            star = ++pattern;
            resume = text;
        } else if (*pattern == *text) {
            pattern++;
            text++;
        } else if (star) {
            /* Let the last star take one character more. */
            pattern = star;
            text = ++resume;
        } else {
            return false;
        }
    }
    while (*pattern == '*')
        pattern++;
    return !*pattern;
}

unsigned trace_set(const char *pattern)
{
    bool enable = *pattern != '-';
    unsigned found = 0;

    if (!enable)
        pattern++;
    for (unsigned i = 0; i < trace_count; i++) {
        if (trace_pattern_matches(pattern, trace_names[i])) {
            trace_enabled[i] = enable;
            found++;
        }
    }
    return found;
}

static void set_or_warn(const char *pattern)
{
    if (!trace_set(pattern) && !strchr(pattern, '*'))
        log_warn("trace event '%s' does not exist", *pattern == '-' ? pattern + 1 : pattern);
}

static void file_close_ptr(FILE **file)
{
    if (*file)
        fclose(*file);
}

/* The line without its comment and the white space around it. */
static char *trim_line(char *line)
{
    line += strspn(line, " \t");
    if (*line == '#')
        *line = '\0';
    line[strcspn(line, " \t\r\n")] = '\0';
    return line;
}

int trace_set_from_file(const char *path, Error *err)
{
    CLEANUP(file_close_ptr) FILE *file = fopen(path, "re");
    AUTO_FREE char *outer = str_dup(log_location());
    AUTO_FREE char *line = NULL;
    size_t capacity = 0;

    if (!file) {
        int r = -errno;

        log_set_location(path);
        return err_set(err, r, "%s", strerror(-r));
    }
    for (unsigned number = 1; getline(&line, &capacity, file) >= 0; number++) {
        const char *pattern = trim_line(line);
        AUTO_FREE char *location = str_printf("%s:%u", path, number);

        log_set_location(location);
        if (*pattern)
            set_or_warn(pattern);
    }
    log_set_location(outer);
    return 0;
}

int trace_set_output(const char *path, Error *err)
{
    FILE *file = fopen(path, "ae");

    if (!file)
        return err_set_errno(err, -errno, "Error opening logfile %s", path);
    setvbuf(file, NULL, _IOLBF, 0);
    if (output)
        fclose(output);
    output = file;
    return 0;
}

typedef struct TraceOption {
    const char *enable, *events, *file; /* the last of each; may be NULL */
} TraceOption;

static int take_part(TraceOption *option, char *part, bool first, Error *err)
{
    char *value = strchr(part, '=');

    if (!value && first) {
        option->enable = part;
        return 0;
    }
    if (value)
        *value++ = '\0';
    if (value && str_eq(part, "enable"))
        option->enable = value;
    else if (value && str_eq(part, "events"))
        option->events = value;
    else if (value && str_eq(part, "file"))
        option->file = value;
    else
        return err_set(err, -EINVAL, "Invalid parameter '%s'", part);
    return 0;
}

int trace_set_from_option(const char *text, bool *ret_help, Error *err)
{
    AUTO_FREE char *copy = str_dup(text);
    TraceOption option = {0};
    char *rest = copy;
    int r;

    for (bool first = true; rest; first = false) {
        r = take_part(&option, strsep(&rest, ","), first, err);
        if (r < 0)
            return r;
    }
    *ret_help = option.enable && (str_eq(option.enable, "help") || str_eq(option.enable, "?"));
    if (*ret_help)
        return 0;
    if (option.enable && *option.enable)
        set_or_warn(option.enable);
    r = option.events ? trace_set_from_file(option.events, err) : 0;
    return r == 0 && option.file ? trace_set_output(option.file, err) : r;
}

void trace_list(FILE *out)
{
    for (unsigned i = 0; i < trace_count; i++)
        fprintf(out, "%s\n", trace_names[i]);
}
