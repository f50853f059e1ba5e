/* SPDX-License-Identifier: Apache-2.0 */
#include "pr-tool/options.h"

#include "base/log.h"
#include "base/version.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TIMEOUT_DEFAULT_S 60
#define TIMEOUT_MAX_S 86400

enum { /* beyond any character and OPTION_ bit */
    KEY_SOCKET = 1 << 16,
    KEY_DIRECT,
    KEY_HELPER,
    KEY_JSON,
    KEY_TIMEOUT,
    KEY_QUIET,
    KEY_HELP,
    KEY_VERSION,
};

static const struct option long_options[] = {
    {"socket", required_argument, NULL, KEY_SOCKET},
    {"direct", no_argument, NULL, KEY_DIRECT},
    {"helper", required_argument, NULL, KEY_HELPER},
    {"json", no_argument, NULL, KEY_JSON},
    {"timeout", required_argument, NULL, KEY_TIMEOUT},
    {"quiet", no_argument, NULL, KEY_QUIET},
    {"help", no_argument, NULL, KEY_HELP},
    {"version", no_argument, NULL, KEY_VERSION},
    /* Of single commands: the value is the bit. */
    {"key", required_argument, NULL, OPTION_KEY},
    {"new-key", required_argument, NULL, OPTION_NEW_KEY},
    {"victim", required_argument, NULL, OPTION_VICTIM},
    {"type", required_argument, NULL, OPTION_TYPE},
    {"aptpl", no_argument, NULL, OPTION_APTPL},
    {"all-target-ports", no_argument, NULL, OPTION_ALL_TARGET_PORTS},
    {"ignore", no_argument, NULL, OPTION_IGNORE},
    {"abort", no_argument, NULL, OPTION_ABORT},
    {"to", required_argument, NULL, OPTION_TO},
    {"unregister", no_argument, NULL, OPTION_UNREGISTER},
    {0},
};

static void print_help(const ToolCommand *commands)
{
    printf("Usage: granary-pr COMMAND [OPTIONS] DEVICE\n"
           "Shows and changes the SCSI persistent reservations of a disk.\n"
           "\n"
           "Commands:\n");
    for (const ToolCommand *c = commands; c->name; c++)
        printf("  %-18s %s\n", c->name, c->summary);
    printf("\n"
           "Options of commands:\n"
           "  --key=KEY           the key that is registered for this host (register: default 0, none)\n"
           "  --new-key=KEY       register: the key from now on, 0 unregisters; register-and-move: of the "
           "new holder\n"
           "  --victim=KEY        preempt: the key to remove\n"
           "  --type=TYPE         a type of reservation, by name or number:\n");
    for (unsigned type = PR_TYPE_WRITE_EXCLUSIVE; type <= PR_TYPE_EXCLUSIVE_ACCESS_ALL; type++)
        if (pr_type_name(type))
            printf("                        %u %s\n", type, pr_type_name(type));
    printf("  --ignore            register: whatever key is registered now\n"
           "  --aptpl             register: the device keeps keys and reservation when it loses power\n"
           "  --all-target-ports  register: through all ports of the device\n"
           "  --abort             preempt: also abort the commands of the victim\n"
           "  --to=TRANSPORT-ID   register-and-move: the new holder, as `status` shows it\n"
           "  --unregister        register-and-move: give up the own key\n"
           "\n"
           "Options:\n"
           "  --socket=PATH       the helper's socket (default: $GRANARY_PR_SOCKET, then those in /run)\n"
           "  --direct            start a helper for this command only; needs privileges\n"
           "  --helper=PROGRAM    the helper that --direct starts\n"
           "  --timeout=SECONDS   how long a command may take (default %d)\n"
           "  --json              print JSON\n"
           "  -q, --quiet         print no messages\n"
           "  --help, --version\n"
           "\n"
           "Keys are hexadecimal. Exit status: 0 done, 1 usage, 2 no device or no helper, 3 reservation "
           "conflict,\n"
           "4 refused, 5 try again, 6 outcome unknown.\n",
        TIMEOUT_DEFAULT_S);
}

static ExitCode usage(const char *fmt, const char *what)
{
    log_error(fmt, what);
    log_error("try --help");
    return EXIT_USAGE;
}

static bool parse_key(const char *text, uint64_t *ret_key)
{
    const char *digits = strncasecmp(text, "0x", 2) == 0 ? text + 2 : text;
    size_t length = strlen(digits);

    if (length == 0 || length > 16 || strspn(digits, "0123456789abcdefABCDEF") != length)
        return false;
    *ret_key = strtoull(digits, NULL, 16);
    return true;
}

static bool parse_timeout(const char *text, int *ret_ms)
{
    size_t length = strlen(text);
    unsigned long seconds;

    if (length == 0 || strspn(text, "0123456789") != length)
        return false;
    errno = 0;
    seconds = strtoul(text, NULL, 10);
    if (errno || seconds == 0 || seconds > TIMEOUT_MAX_S)
        return false;
    *ret_ms = (int)seconds * 1000;
    return true;
}

static ExitCode take_command_option(Options *options, unsigned bit)
{
    bool ok = true;

    options->given |= bit;
    if (bit == OPTION_KEY)
        ok = parse_key(optarg, &options->key);
    else if (bit == OPTION_NEW_KEY)
        ok = parse_key(optarg, &options->new_key);
    else if (bit == OPTION_VICTIM)
        ok = parse_key(optarg, &options->victim);
    else if (bit == OPTION_TO)
        options->to = optarg;
    else if (bit == OPTION_TYPE) {
        options->type = pr_type_from_name(optarg);
        if (options->type == PR_TYPE_NONE)
            return usage("'%s' is no type of reservation", optarg);
    }
    return ok ? EXIT_DONE : usage("'%s' is no key: up to 16 hexadecimal digits", optarg);
}

static ExitCode take_option(Options *options, int option)
{
    switch (option) {
    case KEY_SOCKET:
        options->socket = optarg;
        return EXIT_DONE;
    case KEY_DIRECT:
        options->direct = true;
        return EXIT_DONE;
    case KEY_HELPER:
        options->helper = optarg;
        return EXIT_DONE;
    case KEY_JSON:
        options->json = true;
        return EXIT_DONE;
    case 'q':
    case KEY_QUIET:
        options->quiet = true;
        return EXIT_DONE;
    case KEY_TIMEOUT:
        if (parse_timeout(optarg, &options->timeout_ms))
            return EXIT_DONE;
        return usage("--timeout: '%s' is no number of seconds between 1 and 86400", optarg);
    case '?': /* getopt has said what is wrong */
        log_error("try --help");
        return EXIT_USAGE;
    default:
        return take_command_option(options, (unsigned)option);
    }
}

static const char *option_name(unsigned bits)
{
    for (const struct option *o = long_options; o->name; o++)
        if (o->val < KEY_SOCKET && ((unsigned)o->val & bits))
            return o->name;
    return "";
}

static ExitCode check(const Options *options)
{
    unsigned wrong = options->given & ~options->command->options;
    unsigned missing = options->command->needed & ~options->given;

    if (wrong) {
        log_error("%s takes no --%s", options->command->name, option_name(wrong));
        return EXIT_USAGE;
    }
    if (missing) {
        log_error("%s needs --%s", options->command->name, option_name(missing));
        return EXIT_USAGE;
    }
    if (options->given & OPTION_IGNORE && options->given & OPTION_KEY)
        return usage("%s and --key exclude each other", "--ignore");
    if (options->direct && options->socket)
        return usage("%s and --socket exclude each other", "--direct");
    return EXIT_DONE;
}

static ExitCode take_arguments(int argc, char *argv[], const ToolCommand *commands, Options *options)
{
    if (argc != 2)
        return usage("%s", argc < 2 ? "a command and a device are needed" : "too many arguments");
    while (commands->name && strcmp(commands->name, argv[0]) != 0)
        commands++;
    if (!commands->name)
        return usage("there is no command '%s'", argv[0]);
    options->command = commands;
    options->device = argv[1];
    return check(options);
}

ExitCode options_read(
    int argc, char *argv[], const ToolCommand *commands, Options *ret_options, bool *ret_over)
{
    Options options = {.timeout_ms = TIMEOUT_DEFAULT_S * 1000};
    int option;
    ExitCode code;

    *ret_over = false;
    while ((option = getopt_long(argc, argv, "q", long_options, NULL)) != -1) {
        if (option == KEY_HELP || option == KEY_VERSION) {
            if (option == KEY_HELP)
                print_help(commands);
            else
                printf("granary-pr %s\n", VERSION);
            *ret_over = true;
            return EXIT_DONE;
        }
        code = take_option(&options, option);
        if (code != EXIT_DONE)
            return code;
    }
    code = take_arguments(argc - optind, argv + optind, commands, &options);
    if (code == EXIT_DONE)
        *ret_options = options;
    return code;
}
