/* SPDX-License-Identifier: Apache-2.0 */
/* See options.h. Values are checked when they are read, so that a bad one is an error even where nobody uses
 * it. */
#include "chardev/options.h"

#include "base/log.h"
#include "base/id.h"
#include "base/mem.h"
#include "chardev/chardev.h"
#include "generated/types.h"
#include "schema/keyval.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

typedef enum OptionType {
    OPTION_STRING,
    OPTION_BOOL,
    OPTION_NUMBER,
    OPTION_SIZE,
} OptionType;

typedef struct OptionInfo {
    const char *name;
    OptionType type;
} OptionInfo;

/* Sorted: help prints it in this order. "delay" is what the bare word "nodelay" means. */
static const OptionInfo table[] = {
    {"abstract", OPTION_BOOL},
    {"append", OPTION_BOOL},
    {"backend", OPTION_STRING},
    {"chardev", OPTION_STRING},
    {"chardevs.0", OPTION_STRING},
    {"chardevs.1", OPTION_STRING},
    {"chardevs.2", OPTION_STRING},
    {"chardevs.3", OPTION_STRING},
    {"clipboard", OPTION_BOOL},
    {"cols", OPTION_NUMBER},
    {"debug", OPTION_NUMBER},
    {"delay", OPTION_BOOL},
    {"fd", OPTION_STRING},
    {"height", OPTION_NUMBER},
    {"host", OPTION_STRING},
    {"input-path", OPTION_STRING},
    {"ipv4", OPTION_BOOL},
    {"ipv6", OPTION_BOOL},
    {"localaddr", OPTION_STRING},
    {"localport", OPTION_STRING},
    {"logappend", OPTION_BOOL},
    {"logfile", OPTION_STRING},
    {"mouse", OPTION_BOOL},
    {"mux", OPTION_BOOL},
    {"name", OPTION_STRING},
    {"nodelay", OPTION_BOOL},
    {"path", OPTION_STRING},
    {"port", OPTION_STRING},
    {"reconnect-ms", OPTION_NUMBER},
    {"reconnect", OPTION_NUMBER},
    {"rows", OPTION_NUMBER},
    {"server", OPTION_BOOL},
    {"signal", OPTION_BOOL},
    {"size", OPTION_SIZE},
    {"telnet", OPTION_BOOL},
    {"tight", OPTION_BOOL},
    {"tls-authz", OPTION_STRING},
    {"tls-creds", OPTION_STRING},
    {"tn3270", OPTION_BOOL},
    {"to", OPTION_NUMBER},
    {"wait", OPTION_BOOL},
    {"websocket", OPTION_BOOL},
    {"width", OPTION_NUMBER},
};

#define OPTION_COUNT ARRAY_SIZE(table)

struct ChardevOptions {
    char *id;
    struct {
        char *text; /* NULL: not given */
        uint64_t number;
    } values[OPTION_COUNT];
};

static int find_option(const char *name)
{
    for (size_t i = 0; i < OPTION_COUNT; i++) {
        if (strcmp(table[i].name, name) == 0)
            return (int)i;
    }
    return -1;
}

void chardev_options_free(ChardevOptions *options)
{
    if (!options)
        return;
    for (size_t i = 0; i < OPTION_COUNT; i++)
        free(options->values[i].text);
    free(options->id);
    free(options);
}

void chardev_options_free_ptr(ChardevOptions **options)
{
    chardev_options_free(*options);
}

const char *chardev_options_id(const ChardevOptions *options)
{
    return options->id;
}

const char *chardev_option(const ChardevOptions *options, const char *name)
{
    int i = find_option(name);

    assert(i >= 0);
    return options->values[i].text;
}

bool chardev_option_number(const ChardevOptions *options, const char *name, uint64_t *ret_value)
{
    int i = find_option(name);

    assert(i >= 0);
    if (!options->values[i].text)
        return false;
    *ret_value = options->values[i].number;
    return true;
}

bool chardev_option_bool(const ChardevOptions *options, const char *name, bool *ret_value)
{
    uint64_t number;

    if (!chardev_option_number(options, name, &number))
        return false;
    *ret_value = number != 0;
    return true;
}

/* ---- Values ---- */

static int parse_bool(const char *name, const char *text, uint64_t *ret_value, Error *err)
{
    if (strcmp(text, "on") != 0 && strcmp(text, "off") != 0)
        return err_set(err, -EINVAL, "Parameter '%s' expects 'on' or 'off'", name);
    *ret_value = strcmp(text, "on") == 0;
    return 0;
}

static int parse_number(const char *name, const char *text, uint64_t *ret_value, Error *err)
{
    char *end;
    unsigned long long value;

    errno = 0;
    value = strtoull(text, &end, 0);
    if (errno == ERANGE)
        return err_set(err, -EINVAL, "Value '%s' is too large for parameter '%s'", text, name);
    if (errno || end == text || *end)
        return err_set(err, -EINVAL, "Parameter '%s' expects a number", name);
    *ret_value = value;
    return 0;
}

static int parse_size(const char *name, const char *text, uint64_t *ret_value, Error *err)
{
    bool negative = text[strspn(text, " \t")] == '-';
    int r = keyval_parse_size(text, ret_value);

    if (r == -ERANGE || (r < 0 && negative))
        return err_set(err, -EINVAL, "Value '%s' is out of range for parameter '%s'", text, name);
    if (r < 0) {
        err_set(err, -EINVAL, "Parameter '%s' expects a non-negative number below 2^64", name);
        err_hint(err, "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n"
                      "and exabytes, respectively.");
        return -EINVAL;
    }
    return 0;
}

static int set_value(ChardevOptions *options, const char *name, const char *text, Error *err)
{
    int i = find_option(name), r = 0;

    if (strcmp(name, "id") == 0)
        return 0; /* was found before */
    if (i < 0)
        return err_set(err, -EINVAL, "Invalid parameter '%s'", name);
    switch (table[i].type) {
    case OPTION_STRING:
        break;
    case OPTION_BOOL:
        r = parse_bool(name, text, &options->values[i].number, err);
        break;
    case OPTION_NUMBER:
        r = parse_number(name, text, &options->values[i].number, err);
        break;
    case OPTION_SIZE:
        r = parse_size(name, text, &options->values[i].number, err);
        break;
    }
    if (r < 0)
        return r;
    free(options->values[i].text);
    options->values[i].text = str_dup(text);
    return 0;
}

/* ---- Text ---- */

/* Takes one part off the text: up to a comma that is not doubled. False at the end. */
static bool next_part(const char **text, StrBuf *part)
{
    const char *p = *text;

    if (!*p)
        return false;
    part->length = 0;
    strbuf_append(part, "");
    for (; *p; p++) {
        if (*p == ',' && *++p != ',')
            break;
        strbuf_append_char(part, *p);
    }
    *text = p;
    return true;
}

/* The first id counts, and a bad one is reported before anything else. */
static int find_id(ChardevOptions *options, const char *text, Error *err)
{
    AUTO_STRBUF StrBuf part = {0};

    while (!options->id && next_part(&text, &part)) {
        if (str_starts(part.text, "id="))
            options->id = str_dup(part.text + strlen("id="));
    }
    if (options->id && !id_is_valid(options->id)) {
        err_set(err, -EINVAL, "Parameter 'id' expects an identifier");
        err_hint(err, "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.");
        return -EINVAL;
    }
    return 0;
}

static void warn_short_form(const char *word, const char *name, const char *value)
{
    /* The word "nodelay" stands for delay=off, but that option has a name of its own. */
    if (strcmp(name, "delay") == 0 && strcmp(value, "off") == 0) {
        name = word;
        value = "on";
    }
    log_warn("short-form boolean option '%s' deprecated\nPlease use %s=%s instead", word, name, value);
}

static int parse_part(ChardevOptions *options, char *part, bool first, bool *help, Error *err)
{
    char *equals = part + strcspn(part, "=,"); /* a name holds no comma */
    const char *name = part, *value = "on";

    if (*equals == '=') {
        *equals = '\0';
        return set_value(options, part, equals + 1, err);
    }
    if (first)
        return set_value(options, "backend", part, err);
    if (strcmp(part, "help") == 0 || strcmp(part, "?") == 0) {
        *help = true;
        return 0;
    }
    if (str_starts(part, "no")) {
        name = part + strlen("no");
        value = "off";
    }
    warn_short_form(part, name, value);
    return set_value(options, name, value, err);
}

int chardev_options_parse(const char *text, ChardevOptions **ret_options, bool *ret_help, Error *err)
{
    CLEANUP(chardev_options_free_ptr) ChardevOptions *options = mem_new(ChardevOptions);
    AUTO_STRBUF StrBuf part = {0};
    bool help = false, first = true;
    int r;

    r = find_id(options, text, err);
    while (r == 0 && next_part(&text, &part)) {
        r = parse_part(options, part.text, first, &help, err);
        first = false;
    }
    if (r < 0)
        return r;
    *ret_help = help;
    *ret_options = TAKE(options);
    return 0;
}

/* ---- To what chardev-add takes ---- */

static bool is_known_elsewhere(const char *name)
{
    static const char *const names[] = {"udp", "serial", "parallel", "mux", "hub"};

    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        if (strcmp(names[i], name) == 0)
            return true;
    }
    return false;
}

static void set_common(const ChardevOptions *options, ChardevCommon *common)
{
    common->logfile = str_dup(chardev_option(options, "logfile"));
    common->has_logappend = chardev_option_bool(options, "logappend", &common->logappend);
}

int chardev_options_to_backend(const ChardevOptions *options, ChardevBackend **ret_backend, Error *err)
{
    const char *name = chardev_option(options, "backend");
    const ChardevKind *kind = chardev_kind_find(name);
    CLEANUP(chardev_backend_free_ptr) ChardevBackend *backend = NULL;
    bool mux = false;
    int r = 0;

    if (!kind && is_known_elsewhere(name))
        return err_set(err, -ENOTSUP, "Character devices of type '%s' are not supported", name);
    if (!kind)
        return err_set(err, -EINVAL, "'%s' is not a valid char driver name", name);
    if (chardev_option_bool(options, "mux", &mux) && mux)
        return err_set(err, -ENOTSUP, "Character devices with several front ends ('mux') are not supported");
    backend = mem_new(ChardevBackend);
    backend->type = (ChardevBackendKind)schema_enum_value(&schema_type_ChardevBackendKind, name);
    if (kind->from_options)
        r = kind->from_options(options, backend, err);
    else
        backend->u.null.data = mem_new(ChardevCommon);
    if (r < 0)
        return r;
    set_common(options, backend->u.null.data); /* every branch starts with these members */
    *ret_backend = TAKE(backend);
    return 0;
}

/* ---- The command line ---- */

static void print_kinds(void)
{
    size_t count;
    const ChardevKind *const *kinds = chardev_kind_list(&count);

    printf("Available chardev backend types: \n");
    for (size_t i = 0; i < count; i++)
        printf("  %s\n", kinds[i]->name);
}

static void print_options(void)
{
    static const char *const types[] = {
        [OPTION_STRING] = "str",
        [OPTION_BOOL] = "bool (on/off)",
        [OPTION_NUMBER] = "num",
        [OPTION_SIZE] = "size",
    };

    printf("chardev options:\n");
    for (size_t i = 0; i < OPTION_COUNT; i++)
        printf("  %s=<%s>\n", table[i].name, types[table[i].type]);
}

static void announce_wait(const Chardev *chardev)
{
    AUTO_FREE char *filename = chardev_filename(chardev);

    log_info("QEMU waiting for connection on: %s", filename);
}

static int add(const char *id, const ChardevBackend *backend, Error *err)
{
    const char *pty;
    int r = chardev_add(id, backend, announce_wait, err);

    if (r < 0)
        return r;
    pty = chardev_pty_path(chardev_find(id));
    if (pty) {
        printf("char device redirected to %s (label %s)\n", pty, id);
        fflush(stdout);
    }
    return CHARDEV_CMDLINE_ADDED;
}

static int add_json(const char *text, Error *err)
{
    AUTO_JSON JsonValue *value = NULL;
    CLEANUP(chardev_add_arg_free_ptr) ChardevAddArg *arg = NULL;
    int r = json_parse(text, &value, err);

    if (r < 0)
        return r;
    r = schema_from_json(&schema_type_ChardevAddArg, value, SCHEMA_JSON, &arg, err);
    return r < 0 ? r : add(arg->id, arg->backend, err);
}

static bool is_help(const char *word)
{
    return word && (strcmp(word, "help") == 0 || strcmp(word, "?") == 0);
}

int chardev_add_cmdline(const char *text, Error *err)
{
    CLEANUP(chardev_options_free_ptr) ChardevOptions *options = NULL;
    CLEANUP(chardev_backend_free_ptr) ChardevBackend *backend = NULL;
    const char *kind;
    bool help;
    int r;

    if (*text == '{')
        return add_json(text, err);
    r = chardev_options_parse(text, &options, &help, err);
    if (r < 0)
        return r;
    kind = chardev_option(options, "backend");
    if (help) {
        print_options();
        return CHARDEV_CMDLINE_LISTED_OPTIONS;
    }
    if (is_help(kind)) {
        print_kinds();
        return CHARDEV_CMDLINE_LISTED_KINDS;
    }
    if (!options->id)
        return err_set(err, -EINVAL, "chardev: no id specified");
    if (!kind)
        return err_set(err, -EINVAL, "chardev: \"%s\" missing backend", options->id);
    r = chardev_options_to_backend(options, &backend, err);
    return r < 0 ? r : add(options->id, backend, err);
}
