/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The error of a control-path function: protocol class, message and hint, owned by the caller and never NULL.
 *
 *     Error err = ERROR_INIT;
 *     int r = node_open(..., &err);
 *     if (r < 0)
 *         return err_prefix(&err, r, "node '%s'", name);
 *
 * Every function that creates an error returns the (negative) code it was given, so that creating and
 * returning is one statement. An Error that was set must be ended with err_done() or moved with err_move().
 */
#pragma once

#include "base/macros.h"

#include <errno.h>

/* Error classes of QMP (QEMU docs/interop/qmp-spec, "Error response"). */
typedef enum ErrorClass {
    ERROR_GENERIC,
    ERROR_COMMAND_NOT_FOUND,
    ERROR_DEVICE_NOT_ACTIVE,
    ERROR_DEVICE_NOT_FOUND,
} ErrorClass;

typedef struct Error {
    int code; /* -errno, 0 while no error is set */
    ErrorClass class;
    char *message;
    char *hint; /* further lines for a command-line user; may be NULL */
} Error;

#define ERROR_INIT ((Error){0})
#define AUTO_ERROR CLEANUP(err_done)

/* Sets err and returns code, which must be negative. err must not be set yet. */
int err_set(Error *err, int code, const char *fmt, ...) PRINTF(3, 4);
int err_set_class(Error *err, ErrorClass class, int code, const char *fmt, ...) PRINTF(4, 5);
/* As err_set, with ": " and the text of the system error -code appended. */
int err_set_errno(Error *err, int code, const char *fmt, ...) PRINTF(3, 4);
/* Puts "text: " in front of the message that is already set; returns code. */
int err_prefix(Error *err, int code, const char *fmt, ...) PRINTF(3, 4);
/* Adds a line that tells a command-line user what to do; no newline at the end of the text. */
void err_hint(Error *err, const char *fmt, ...) PRINTF(2, 3);
/* Moves an error to an unset one; from is unset afterwards. */
void err_move(Error *to, Error *from);
/* Frees what the error holds and makes it unset; idempotent. */
void err_done(Error *err);

/* Lets the compiler know what the functions above promise: the result is negative. */
static inline int err_negative(int code)
{
    if (code >= 0)
        __builtin_unreachable();
    return code;
}
#define err_set(...) err_negative(err_set(__VA_ARGS__))
#define err_set_class(...) err_negative(err_set_class(__VA_ARGS__))
#define err_set_errno(...) err_negative(err_set_errno(__VA_ARGS__))
#define err_prefix(...) err_negative(err_prefix(__VA_ARGS__))

static inline bool err_is_set(const Error *err)
{
    return err->code != 0;
}

/* The name of a class on the wire: "GenericError", ... */
const char *error_class_name(ErrorClass class);
