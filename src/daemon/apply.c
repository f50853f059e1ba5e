/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The second pass over the command line: each option is parsed into the same generated type as the arguments
 * of the command that does the same over the control protocol, and takes the same way from there.
 */
#include "chardev/options.h"
#include "daemon/help.h"
#include "daemon/options.h"
#include "exports/nbd/server.h"
#include "generated/commands.h"
#include "monitor/monitor.h"
#include "schema/keyval.h"

/* Frees a value of a generated type when the scope ends. */
typedef struct Parsed {
    const SchemaType *type;
    void *value;
} Parsed;

static void parsed_done(Parsed *parsed)
{
    schema_free(parsed->type, parsed->value);
}

/* text: key=value parts or a JSON object. ret_help: as keyval_parse(). */
static int parse(Parsed *parsed, const char *text, const char *implied_key, Error *err)
{
    AUTO_JSON JsonValue *tree = NULL;
    bool is_json = *text == '{';
    int r = is_json ? json_parse(text, &tree, err) : keyval_parse(text, implied_key, &tree, NULL, err);

    if (r < 0)
        return r;
    return schema_from_json(parsed->type, tree, is_json ? SCHEMA_JSON : SCHEMA_KEYVAL, &parsed->value, err);
}

#define PARSED(name, c_type) CLEANUP(parsed_done) Parsed name = {.type = &schema_type_##c_type}

static int apply_blockdev(const char *text, Error *err)
{
    PARSED(options, BlockdevOptions);
    int r = parse(&options, text, "driver", err);

    return r < 0 ? r : qmp_blockdev_add(options.value, err);
}

static int apply_chardev(const char *text, Error *err)
{
    int r = chardev_add_cmdline(text, err);

    if (r < 0)
        return r;
    switch ((ChardevCmdline)r) {
    case CHARDEV_CMDLINE_ADDED:
        break;
    case CHARDEV_CMDLINE_LISTED_KINDS:
        return OPTION_HELPED;
    case CHARDEV_CMDLINE_LISTED_OPTIONS:
        return OPTION_HELPED_FAILED;
    }
    return OPTION_APPLIED;
}

static int apply_export(const char *text, Error *err)
{
    PARSED(options, BlockExportOptions);
    int r = parse(&options, text, "type", err);

    return r < 0 ? r : qmp_block_export_add(options.value, err);
}

static int apply_monitor(const char *text, Error *err)
{
    PARSED(options, MonitorOptions);
    int r = parse(&options, text, "chardev", err);

    return r < 0 ? r : monitor_add(options.value, err);
}

static int apply_nbd_server(const char *text, Error *err)
{
    PARSED(options, NbdServerOptions);
    int r = parse(&options, text, NULL, err);

    return r < 0 ? r : nbd_server_start(options.value, err);
}

static int apply_object(const char *text, Error *err)
{
    PARSED(options, ObjectOptions);
    int r;

    if (help_print_object(text))
        return OPTION_HELPED;
    r = parse(&options, text, "qom-type", err);
    return r < 0 ? r : qmp_object_add(options.value, err);
}

int option_apply(const OptionItem *item, Error *err)
{
    switch (item->kind) {
    case OPTION_STRAY:
        return err_set(err, -EINVAL, "Unexpected argument");
    case OPTION_BLOCKDEV:
        return apply_blockdev(item->argument, err);
    case OPTION_CHARDEV:
        return apply_chardev(item->argument, err);
    case OPTION_EXPORT:
        return apply_export(item->argument, err);
    case OPTION_MONITOR:
        return apply_monitor(item->argument, err);
    case OPTION_NBD_SERVER:
        return apply_nbd_server(item->argument, err);
    case OPTION_OBJECT:
        return apply_object(item->argument, err);
    }
    return err_set(err, -EINVAL, "Unknown option");
}
