/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/help.h"

#include "base/log.h"
#include "base/mem.h"
#include "base/version.h"
#include "schema/keyval.h"
#include "schema/object.h"

#include <stdio.h>
#include <string.h>

/* The name under which scripts that were written for the reference call this program. */
#define COMPAT_NAME "qemu-storage-daemon"

static const char usage[] =
    "Serves disk images and devices without running a virtual machine.\n"
    "\n"
    "  -h, --help             show this text\n"
    "  -V, --version          show the version\n"
    "  -T, --trace [[enable=]<pattern>][,events=<file>][,file=<file>]\n"
    "                         write trace events to standard error or a file;\n"
    "                         'help' lists the events\n"
    "\n"
    "  --blockdev [driver=]<driver>[,node-name=<name>][,discard=ignore|unmap]\n"
    "             [,cache.direct=on|off][,cache.no-flush=on|off]\n"
    "             [,read-only=on|off][,auto-read-only=on|off]\n"
    "             [,force-share=on|off][,detect-zeroes=on|off|unmap]\n"
    "             [,<option of the driver>=<value>...]\n"
    "                         open a block node\n"
    "\n"
    "  --chardev <backend>,id=<id>[,<option>=<value>...]\n"
    "                         make a character device; 'help' lists the backends\n"
    "\n"
    "  --daemonize            go to the background once everything is in place\n"
    "\n"
    "  --export [type=]nbd,id=<id>,node-name=<name>[,name=<export name>]\n"
    "           [,writable=on|off][,bitmaps.<N>=<bitmap>]\n"
    "                         serve a node over NBD (needs --nbd-server)\n"
    "\n"
    "  --monitor [chardev=]<id>[,mode=control][,pretty=on|off]\n"
    "                         offer the control protocol (QMP) on a character device\n"
    "\n"
    "  --nbd-server addr.type=inet,addr.host=<host>,addr.port=<port>\n"
    "               [,tls-creds=<id>][,tls-authz=<id>][,max-connections=<n>]\n"
    "  --nbd-server addr.type=unix,addr.path=<path>\n"
    "               [,tls-creds=<id>][,tls-authz=<id>][,max-connections=<n>]\n"
    "                         start the NBD server\n"
    "\n"
    "  --object <type>,id=<id>[,<property>=<value>...]\n"
    "                         make an object; 'help' lists the types,\n"
    "                         '<type>,help' the properties of a type\n"
    "\n"
    "  --pidfile <path>       write the process id to a file once everything is in place\n"
    "\n"
    "  --stored-names <folder>|none\n"
    "                         files that an image names (backing and data files) must lie\n"
    "                         below one of these folders\n"
    "\n"
    "Options are handled from left to right. Where <key>=<value> is asked for, a JSON object\n"
    "is taken as well. See granaryd(1).\n";

void help_print_usage(void)
{
    printf("Usage: %s [options]\n%s", log_program(), usage);
}

void help_print_version(void)
{
    if (str_eq(log_program(), COMPAT_NAME))
        printf("%s version %s (%s)\n", COMPAT_NAME, VERSION_COMPAT, VERSION_PACKAGE);
    else
        printf("granaryd version %s\nCompatible with %s %s\n", VERSION, COMPAT_NAME, VERSION_COMPAT);
}

static void print_object_types(void)
{
    size_t count;
    const ObjectKind *const *kinds = object_kind_list(&count);

    printf("List of user creatable objects:\n");
    for (size_t i = 0; i < count; i++)
        printf("  %s\n", kinds[i]->name);
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void print_properties(const ObjectKind *kind)
{
    AUTO_FREE char **lines = NULL;
    size_t count = 0, capacity = 0;

    for (const ObjectProperty *property = kind->properties; property && property->name; property++) {
        VEC_GROW(lines, count, capacity);
        lines[count++] = str_printf("  %s=<%s>%s%s", property->name, property->type,
            property->description ? " - " : "", property->description ? property->description : "");
    }
    if (count)
        qsort(lines, count, sizeof(*lines), by_text);
    printf("%s options:\n", kind->name);
    for (size_t i = 0; i < count; i++) {
        printf("%s\n", lines[i]);
        free(lines[i]);
    }
}

bool help_print_object(const char *argument)
{
    AUTO_JSON JsonValue *tree = NULL;
    AUTO_ERROR Error err = ERROR_INIT;
    bool help = false;
    const char *type;
    const ObjectKind *kind;

    if (*argument == '{' || keyval_parse(argument, "qom-type", &tree, &help, &err) < 0 || !help)
        return false;
    type = json_get_string(tree, "qom-type");
    kind = type ? object_kind_find(type) : NULL;
    if (kind)
        print_properties(kind);
    else
        print_object_types();
    return true;
}
