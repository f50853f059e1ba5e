/* SPDX-License-Identifier: Apache-2.0 */
#include "pr-helper/options.h"

#include "base/limits.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/trace.h"
#include "base/version.h"

#include <getopt.h>
#include <grp.h>
#include <pwd.h>
#include <stdio.h>
#include <string.h>

/* The name under which existing users call this program. */
#define COMPAT_NAME "qemu-pr-helper"

enum { /* beyond any character */
    KEY_ALLOW_DM_LINEAR = 256,
    KEY_ALLOW_UID,
    KEY_COMMAND_TIMEOUT,
    KEY_HANDSHAKE_TIMEOUT,
    KEY_IDLE_TIMEOUT,
    KEY_MAX_CLIENTS,
    KEY_NO_SANDBOX,
    KEY_REQUEST_TIMEOUT,
    KEY_SOCKET_GROUP,
    KEY_SOCKET_MODE,
    KEY_STOP_TIMEOUT,
};

static const struct option long_options[] = {
    {"allow-dm-linear", no_argument, NULL, KEY_ALLOW_DM_LINEAR},
    {"allow-uid", required_argument, NULL, KEY_ALLOW_UID},
    {"daemon", no_argument, NULL, 'd'},
    {"group", required_argument, NULL, 'g'},
    {"handshake-timeout", required_argument, NULL, KEY_HANDSHAKE_TIMEOUT},
    {"help", no_argument, NULL, 'h'},
    {"idle-timeout", required_argument, NULL, KEY_IDLE_TIMEOUT},
    {"max-clients", required_argument, NULL, KEY_MAX_CLIENTS},
    {"no-sandbox", no_argument, NULL, KEY_NO_SANDBOX},
    {"pidfile", required_argument, NULL, 'f'},
    {"quiet", no_argument, NULL, 'q'},
    {"request-timeout", required_argument, NULL, KEY_REQUEST_TIMEOUT},
    {"sg-timeout", required_argument, NULL, KEY_COMMAND_TIMEOUT},
    {"socket", required_argument, NULL, 'k'},
    {"socket-group", required_argument, NULL, KEY_SOCKET_GROUP},
    {"socket-mode", required_argument, NULL, KEY_SOCKET_MODE},
    {"stop-timeout", required_argument, NULL, KEY_STOP_TIMEOUT},
    {"trace", required_argument, NULL, 'T'},
    {"user", required_argument, NULL, 'u'},
    {"verbose", no_argument, NULL, 'v'},
    {"version", no_argument, NULL, 'V'},
    {0},
};

static void print_help(void)
{
    AUTO_FREE char *socket_path = options_default_path("sock");
    AUTO_FREE char *pidfile_path = options_default_path("pid");

    printf("Usage: %s [options]\n"
           "Carries out SCSI persistent reservation commands for unprivileged clients.\n"
           "\n"
           "  -h, --help                  show this text\n"
           "  -V, --version               show the version\n"
           "\n"
           "  -d, --daemon                go to the background once everything is in place\n"
           "  -f, --pidfile=PATH          write the process id to a file\n"
           "                              (with -d by default '%s')\n"
           "  -k, --socket=PATH           listen on this Unix socket\n"
           "                              (default '%s')\n"
           "      --socket-mode=MODE      its permissions, octal (default: 777 without the umask)\n"
           "      --socket-group=GROUP    its group\n"
           "      --allow-uid=UID[,...]   serve these users only\n"
           "  -u, --user=USER             user to become\n"
           "  -g, --group=GROUP           group to become\n"
           "      --no-sandbox            without system call filter\n"
           "\n"
           "  -q, --quiet                 do not report what clients do wrong\n"
           "  -v, --verbose               report every command\n"
           "  -T, --trace [[enable=]PATTERN][,events=FILE][,file=FILE]\n"
           "                              write trace events; 'help' lists them\n"
           "\n"
           "      --sg-timeout=SECONDS    for a command on a device (default %u)\n"
           "      --handshake-timeout=S   for a new client to say hello (default %u)\n"
           "      --request-timeout=S     for a client to finish a command that it has begun to send,\n"
           "                              or to take its answer (default %u)\n"
           "      --idle-timeout=S        for a client between commands (default: for ever)\n"
           "      --stop-timeout=S        for commands in flight when told to stop (default %u)\n"
           "      --max-clients=N         connections at once\n"
           "      --allow-dm-linear       a linear map of one whole disk counts as that disk\n"
           "\n"
           "See granary-pr-helper(8).\n",
        log_program(), pidfile_path, socket_path, PR_HELPER_COMMAND_SECONDS, PR_HELPER_HANDSHAKE_SECONDS,
        PR_HELPER_REQUEST_SECONDS, PR_HELPER_STOP_SECONDS);
}

static void print_version(void)
{
    if (str_eq(log_program(), COMPAT_NAME))
        printf("%s %s (%s)\n", COMPAT_NAME, VERSION_COMPAT, VERSION_PACKAGE);
    else
        printf("granary-pr-helper %s\nCompatible with %s %s\n", VERSION, COMPAT_NAME, VERSION_COMPAT);
}

char *options_default_path(const char *suffix)
{
    return str_printf(
        "/run/%s.%s", str_eq(log_program(), COMPAT_NAME) ? COMPAT_NAME : "granary-pr-helper", suffix);
}

/* A number from min to max in the given base, and nothing behind it. */
static bool parse_number(const char *text, int base, unsigned long min, unsigned long max, unsigned long *ret)
{
    char *end;
    unsigned long value;

    if (*text < '0' || *text > '9')
        return false;
    errno = 0;
    value = strtoul(text, &end, base);
    if (errno || *end || value < min || value > max)
        return false;
    *ret = value;
    return true;
}

static int take_user(const char *text, uid_t *ret_user, Error *err)
{
    const struct passwd *entry = getpwnam(text);
    unsigned long number;

    if (entry)
        *ret_user = entry->pw_uid;
    else if (parse_number(text, 10, 0, UINT32_MAX - 1, &number))
        *ret_user = (uid_t)number;
    else
        return err_set(err, -EINVAL, "invalid user '%s'", text);
    return 0;
}

static int take_group(const char *text, gid_t *ret_group, Error *err)
{
    const struct group *entry = getgrnam(text);
    unsigned long number;

    if (entry)
        *ret_group = entry->gr_gid;
    else if (parse_number(text, 10, 0, UINT32_MAX - 1, &number))
        *ret_group = (gid_t)number;
    else
        return err_set(err, -EINVAL, "invalid group '%s'", text);
    return 0;
}

static int take_allowed(const char *text, Options *options, Error *err)
{
    AUTO_FREE char *copy = str_dup(text);
    char *rest = copy, *name;

    while ((name = strsep(&rest, ","))) {
        if (options->allowed_count == OPTIONS_UIDS)
            return err_set(err, -E2BIG, "more than %d users in --allow-uid", OPTIONS_UIDS);
        int r = take_user(name, &options->allowed[options->allowed_count], err);
        if (r < 0)
            return r;
        options->allowed_count++;
    }
    return 0;
}

static int take_count(
    const char *name, const char *text, unsigned min, unsigned max, unsigned *ret, Error *err)
{
    unsigned long number;

    if (!parse_number(text, 10, min, max, &number))
        return err_set(err, -EINVAL, "--%s: '%s' is not a number from %u to %u", name, text, min, max);
    *ret = (unsigned)number;
    return 0;
}

static int take_seconds(const char *name, const char *text, unsigned min, unsigned *ret, Error *err)
{
    return take_count(name, text, min, LIMIT_PR_HELPER_SECONDS, ret, err);
}

static int take_socket_path(const char *text, Options *options, Error *err)
{
    if (*text != '/')
        return err_set(err, -EINVAL, "socket path must be absolute");
    free(options->socket_path);
    options->socket_path = str_dup(text);
    return 0;
}

static int take_socket_mode(const char *text, Options *options, Error *err)
{
    unsigned long mode;

    if (!parse_number(text, 8, 0, 0777, &mode))
        return err_set(err, -EINVAL, "--socket-mode: '%s' is not an octal number from 0 to 777", text);
    options->socket_mode = (mode_t)mode;
    options->has_socket_mode = true;
    return 0;
}

/* Options with an argument. */
static int take_argument(int key, const char *text, Options *options, Error *err)
{
    switch (key) {
    case 'f':
        free(options->pidfile_path);
        options->pidfile_path = str_dup(text);
        return 0;
    case 'g':
        options->has_group = true;
        return take_group(text, &options->group, err);
    case 'k':
        return take_socket_path(text, options, err);
    case 'u':
        options->has_user = true;
        return take_user(text, &options->user, err);
    case KEY_ALLOW_UID:
        return take_allowed(text, options, err);
    case KEY_COMMAND_TIMEOUT:
        return take_seconds("sg-timeout", text, 1, &options->command_timeout, err);
    case KEY_HANDSHAKE_TIMEOUT:
        return take_seconds("handshake-timeout", text, 1, &options->handshake_timeout, err);
    case KEY_IDLE_TIMEOUT:
        return take_seconds("idle-timeout", text, 0, &options->idle_timeout, err);
    case KEY_MAX_CLIENTS:
        return take_count("max-clients", text, 1, LIMIT_PR_HELPER_CLIENTS, &options->max_clients, err);
    case KEY_REQUEST_TIMEOUT:
        return take_seconds("request-timeout", text, 1, &options->request_timeout, err);
    case KEY_SOCKET_GROUP:
        options->has_socket_group = true;
        return take_group(text, &options->socket_group, err);
    case KEY_SOCKET_MODE:
        return take_socket_mode(text, options, err);
    default:
        return take_seconds("stop-timeout", text, 0, &options->stop_timeout, err);
    }
}

static OptionsOutcome take_trace(const char *text)
{
    AUTO_ERROR Error err = ERROR_INIT;
    bool help = false;

    if (trace_set_from_option(text, &help, &err) < 0) {
        log_report(&err);
        return OPTIONS_FAILED;
    }
    if (help)
        trace_list(stdout);
    return help ? OPTIONS_DONE : OPTIONS_RUN;
}

static OptionsOutcome take_option(int key, const char *text, Options *options)
{
    AUTO_ERROR Error err = ERROR_INIT;

    switch (key) {
    case 'd':
        options->daemonize = true;
        return OPTIONS_RUN;
    case 'h':
        print_help();
        return OPTIONS_DONE;
    case 'q':
        options->quiet = true;
        return OPTIONS_RUN;
    case 'T':
        return take_trace(text);
    case 'v':
        options->verbose = true;
        return OPTIONS_RUN;
    case 'V':
        print_version();
        return OPTIONS_DONE;
    case KEY_ALLOW_DM_LINEAR:
        options->allow_dm_linear = true;
        return OPTIONS_RUN;
    case KEY_NO_SANDBOX:
        options->sandbox = false;
        return OPTIONS_RUN;
    case '?':
        log_error("Try `%s --help' for more information.", program_invocation_name);
        return OPTIONS_FAILED;
    default:
        if (take_argument(key, text, options, &err) == 0)
            return OPTIONS_RUN;
        log_report(&err);
        return OPTIONS_FAILED;
    }
}

OptionsOutcome options_parse(int argc, char **argv, Options *ret_options)
{
    Options options = {
        .sandbox = true,
        .command_timeout = PR_HELPER_COMMAND_SECONDS,
        .handshake_timeout = PR_HELPER_HANDSHAKE_SECONDS,
        .request_timeout = PR_HELPER_REQUEST_SECONDS,
        .stop_timeout = PR_HELPER_STOP_SECONDS,
    };
    OptionsOutcome outcome = OPTIONS_RUN;
    int key;

    /* Arguments that belong to no option are ignored, as existing users have it. */
    while (outcome == OPTIONS_RUN &&
           (key = getopt_long(argc, argv, "df:g:hk:qT:u:vV", long_options, NULL)) != -1)
        outcome = take_option(key, optarg, &options);
    if (outcome != OPTIONS_RUN) {
        options_done(&options);
        return outcome;
    }
    if (options.daemonize && !options.pidfile_path)
        options.pidfile_path = options_default_path("pid");
    *ret_options = options;
    return OPTIONS_RUN;
}

void options_done(Options *options)
{
    free(options->socket_path);
    free(options->pidfile_path);
    *options = (Options){0};
}
