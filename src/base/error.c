/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"

#include "base/mem.h"

#include <assert.h>
#include <string.h>

static int set(Error *err, ErrorClass class, int code, char *message)
{
    assert(code < 0 && !err_is_set(err));
    *err = (Error){.code = code, .class = class, .message = message};
    return code;
}

int(err_set)(Error *err, int code, const char *fmt, ...)
{
    va_list args;
    char *message;

    va_start(args, fmt);
    message = str_vprintf(fmt, args);
    va_end(args);
    return set(err, ERROR_GENERIC, code, message);
}

int(err_set_class)(Error *err, ErrorClass class, int code, const char *fmt, ...)
{
    va_list args;
    char *message;

    va_start(args, fmt);
    message = str_vprintf(fmt, args);
    va_end(args);
    return set(err, class, code, message);
}

int(err_set_errno)(Error *err, int code, const char *fmt, ...)
{
    va_list args;
    AUTO_FREE char *text = NULL;

    va_start(args, fmt);
    text = str_vprintf(fmt, args);
    va_end(args);
    return set(err, ERROR_GENERIC, code, str_printf("%s: %s", text, strerror(-code)));
}

int(err_prefix)(Error *err, int code, const char *fmt, ...)
{
    va_list args;
    AUTO_FREE char *prefix = NULL, *message = err->message;

    assert(err_is_set(err));
    va_start(args, fmt);
    prefix = str_vprintf(fmt, args);
    va_end(args);
    err->message = str_printf("%s: %s", prefix, message);
    return code;
}

void err_hint(Error *err, const char *fmt, ...)
{
    va_list args;
    AUTO_FREE char *line = NULL, *old = err->hint;

    va_start(args, fmt);
    line = str_vprintf(fmt, args);
    va_end(args);
    err->hint = old ? str_printf("%s\n%s", old, line) : TAKE(line);
}

void err_move(Error *to, Error *from)
{
    assert(!err_is_set(to));
    *to = *from;
    *from = ERROR_INIT;
}

void err_done(Error *err)
{
    free(err->message);
    free(err->hint);
    *err = ERROR_INIT;
}

const char *error_class_name(ErrorClass class)
{
    static const char *const names[] = {
        [ERROR_GENERIC] = "GenericError",
        [ERROR_COMMAND_NOT_FOUND] = "CommandNotFound",
        [ERROR_DEVICE_NOT_ACTIVE] = "DeviceNotActive",
        [ERROR_DEVICE_NOT_FOUND] = "DeviceNotFound",
    };

    return names[class];
}
