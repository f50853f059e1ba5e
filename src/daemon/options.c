/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/options.h"

#include "base/log.h"
#include "base/mem.h"
#include "base/trace.h"
#include "block/stored-names.h"
#include "daemon/help.h"

#include <getopt.h>

enum { /* beyond any character */
    KEY_DAEMONIZE = 256,
    KEY_PIDFILE,
    KEY_STORED_NAMES,
    KEY_ITEM, /* + OptionKind */
};

static const struct option long_options[] = {
    {"blockdev", required_argument, NULL, KEY_ITEM + OPTION_BLOCKDEV},
    {"chardev", required_argument, NULL, KEY_ITEM + OPTION_CHARDEV},
    {"daemonize", no_argument, NULL, KEY_DAEMONIZE},
    {"export", required_argument, NULL, KEY_ITEM + OPTION_EXPORT},
    {"help", no_argument, NULL, 'h'},
    {"monitor", required_argument, NULL, KEY_ITEM + OPTION_MONITOR},
    {"nbd-server", required_argument, NULL, KEY_ITEM + OPTION_NBD_SERVER},
    {"object", required_argument, NULL, KEY_ITEM + OPTION_OBJECT},
    {"pidfile", required_argument, NULL, KEY_PIDFILE},
    {"stored-names", required_argument, NULL, KEY_STORED_NAMES},
    {"trace", required_argument, NULL, 'T'},
    {"version", no_argument, NULL, 'V'},
    {0},
};

/* argv[first..end) with a blank in front of each. */
static char *location_of(char **argv, int first, int end)
{
    StrBuf text = {0};

    for (int i = first; i < end; i++)
        strbuf_printf(&text, " %s", argv[i]);
    return strbuf_take(&text);
}

static void add_item(Options *options, OptionKind kind, const char *argument, char *take_location)
{
    VEC_GROW(options->items, options->count, options->capacity);
    options->items[options->count++] =
        (OptionItem){.kind = kind, .argument = argument, .location = take_location};
}

static OptionsOutcome set_trace(const char *text, const char *location)
{
    Error err = ERROR_INIT;
    bool help = false;
    int r;

    log_set_location(location);
    r = trace_set_from_option(text, &help, &err);
    if (r < 0)
        log_report(&err);
    log_set_location(NULL);
    if (r < 0)
        return OPTIONS_FAILED;
    if (!help)
        return OPTIONS_RUN;
    trace_list(stdout);
    return OPTIONS_DONE;
}

static OptionsOutcome allow_stored_names(const char *folder, const char *location)
{
    Error err = ERROR_INIT;
    int r = stored_names_allow(folder, &err);

    if (r == 0)
        return OPTIONS_RUN;
    log_set_location(location);
    log_report(&err);
    log_set_location(NULL);
    return OPTIONS_FAILED;
}

static OptionsOutcome take_option(Options *options, int key, char *take_location)
{
    AUTO_FREE char *location = take_location;

    switch (key) {
    case '?':
        return OPTIONS_FAILED;
    case 'h':
        help_print_usage();
        return OPTIONS_DONE;
    case 'V':
        help_print_version();
        return OPTIONS_DONE;
    case 'T':
        return set_trace(optarg, location);
    case KEY_DAEMONIZE:
        options->daemonize = true;
        return OPTIONS_RUN;
    case KEY_PIDFILE:
        options->pidfile = optarg;
        return OPTIONS_RUN;
    case KEY_STORED_NAMES:
        return allow_stored_names(optarg, location);
    case 1:
        add_item(options, OPTION_STRAY, optarg, TAKE(location));
        return OPTIONS_RUN;
    default:
        add_item(options, (OptionKind)(key - KEY_ITEM), optarg, TAKE(location));
        return OPTIONS_RUN;
    }
}

OptionsOutcome options_scan(int argc, char **argv, Options *options)
{
    optind = 1;
    for (;;) {
        int first = optind;
        /* '-': arguments are taken in their order, those without an option as key 1. */
        int key = getopt_long(argc, argv, "-hT:V", long_options, NULL);

        if (key == -1)
            break;
        OptionsOutcome outcome = take_option(options, key, location_of(argv, first, optind));

        if (outcome != OPTIONS_RUN)
            return outcome;
    }
    /* What follows "--" is left alone, as users of the reference know it. */
    return OPTIONS_RUN;
}

void options_done(Options *options)
{
    for (size_t i = 0; i < options->count; i++)
        free(options->items[i].location);
    free(options->items);
    *options = (Options){0};
}
