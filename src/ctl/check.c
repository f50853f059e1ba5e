/* SPDX-License-Identifier: Apache-2.0 */
/* granaryctl check: the consistency of an image, or of a node of a daemon that runs. */
#include "base/log.h"
#include "ctl/ctl.h"

#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

/* As those of qemu-img check. */
enum { EXIT_CLEAN = 0, EXIT_FAILED = 1, EXIT_CORRUPT = 2, EXIT_LEAKS = 3 };

typedef struct CheckOptions {
    const char *repair; /* NULL: no */
    const char *socket; /* of a running daemon; or NULL */
    const char *subject;
    bool json;
} CheckOptions;

static const struct option long_options[] = {
    {"repair", required_argument, NULL, 'r'},
    {"connect", required_argument, NULL, 'c'},
    {"json", no_argument, NULL, 'j'},
    {"help", no_argument, NULL, 'h'},
    {0},
};

static void print_help(void)
{
    printf("Usage: granaryctl check [--repair leaks|all] [--json] IMAGE\n"
           "       granaryctl check [--repair leaks|all] [--json] --connect SOCKET NODE\n"
           "Checks the consistency of a qcow2 image, which nothing else may use, or of a node of a running\n"
           "daemon, whose monitor listens at SOCKET and whose clients wait meanwhile.\n"
           "\n"
           "  -r, --repair=WHAT     leaks: free what is lost; all: correct what can be corrected, too\n"
           "  -c, --connect=SOCKET  check a node of the daemon\n"
           "  -j, --json            print the counts as JSON\n"
           "\n"
           "Exit status: 0 clean, 1 the check failed, 2 corruptions are left, 3 only leaks are left.\n");
}

/* True: go on; else *ret_status is the exit status. */
static bool read_options(int argc, char *argv[], CheckOptions *o, int *ret_status)
{
    int key;

    *ret_status = EXIT_FAILED;
    while ((key = getopt_long(argc, argv, "r:c:jh", long_options, NULL)) != -1) {
        switch (key) {
        case 'r':
            o->repair = optarg;
            break;
        case 'c':
            o->socket = optarg;
            break;
        case 'j':
            o->json = true;
            break;
        case 'h':
            print_help();
            *ret_status = EXIT_CLEAN;
            return false;
        default: /* getopt has said what is wrong */
            return false;
        }
    }
    if (o->repair && !str_eq(o->repair, "leaks") && !str_eq(o->repair, "all")) {
        log_error("--repair takes 'leaks' or 'all', not '%s'", o->repair);
        return false;
    }
    if (argc - optind != 1) {
        log_error("check takes one %s; --help tells more", o->socket ? "node" : "image");
        return false;
    }
    o->subject = argv[optind];
    return true;
}

static JsonValue *arguments_of(const CheckOptions *o)
{
    JsonValue *arguments = json_object_new(), *image, *file;

    if (o->repair)
        json_object_put(arguments, "fix", json_string_new(o->repair));
    if (o->socket) {
        json_object_put(arguments, "node-name", json_string_new(o->subject));
        return arguments;
    }
    file = json_object_new();
    json_object_put(file, "driver", json_string_new("file"));
    json_object_put(file, "filename", json_string_new(o->subject));
    image = json_object_new();
    json_object_put(image, "driver", json_string_new("qcow2"));
    json_object_put(image, "file", file);
    json_object_put(arguments, "image", image);
    return arguments;
}

static int64_t count_of(const JsonValue *result, const char *key)
{
    const JsonValue *value = json_get(result, key);

    return json_is(value, JSON_INT) ? value->u.integer : 0;
}

static void print_count(const JsonValue *result, const char *key, const char *fmt)
{
    int64_t count = count_of(result, key);

    if (count)
        printf("%" PRId64 " %s\n", count, fmt);
}

static void print_result(const JsonValue *result)
{
    int64_t total = count_of(result, "total-clusters"), used = count_of(result, "allocated-clusters");

    print_count(result, "corruptions-fixed", "corruptions were repaired.");
    print_count(result, "leaks-fixed", "leaked clusters were freed.");
    print_count(result, "check-errors", "parts of the image could not be checked.");
    print_count(result, "corruptions", "corruptions are in the image: using it may damage its data.");
    print_count(result, "leaks", "clusters are leaked: space is lost, no data is in danger.");
    if (!count_of(result, "check-errors") && !count_of(result, "corruptions") && !count_of(result, "leaks"))
        printf("The image is consistent.\n");
    if (total)
        printf("%" PRId64 " of %" PRId64 " clusters are allocated (%.2f%%), of these %" PRId64
               " fragmented and %" PRId64 " compressed.\n",
            used, total, 100.0 * (double)used / (double)total, count_of(result, "fragmented-clusters"),
            count_of(result, "compressed-clusters"));
    print_count(result, "image-end-offset", "bytes of the file are in use.");
}

static int status_of(const JsonValue *result)
{
    if (count_of(result, "check-errors"))
        return EXIT_FAILED;
    if (count_of(result, "corruptions"))
        return EXIT_CORRUPT;
    return count_of(result, "leaks") ? EXIT_LEAKS : EXIT_CLEAN;
}

static int run(int argc, char *argv[])
{
    AUTO_ERROR Error err = ERROR_INIT;
    AUTO_JSON JsonValue *result = NULL;
    CheckOptions options = {0};
    CtlClient *client = NULL;
    int status, r;

    if (!read_options(argc, argv, &options, &status))
        return status;
    r = options.socket ? ctl_connect(options.socket, &client, &err) : ctl_start(&client, &err);
    if (r == 0)
        r = ctl_run(client, "x-blockdev-check", arguments_of(&options), &result, &err);
    ctl_close(client);
    if (r < 0) {
        (void)!err_prefix(&err, r, "%s", options.subject);
        log_report(&err);
        return EXIT_FAILED;
    }
    if (options.json) {
        AUTO_FREE char *text = json_text(result, true);

        printf("%s\n", text);
    } else {
        print_result(result);
    }
    return status_of(result);
}

const CtlCommand ctl_check = {"check", "check the consistency of an image, and repair it", run};
