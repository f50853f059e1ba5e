/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Names of images: how a node is called in messages and query results, and what may follow from a name that
 * is stored inside an image. Such a name is outside data: it is a local path or it is refused.
 */
#include "block/block-priv.h"

#include "base/mem.h"
#include "schema/json.h"
#include "schema/visit.h"

#include <errno.h>
#include <string.h>

/* Bytes of an image that the drivers look at to recognise their format. */
#define PROBE_BYTES 2048

/* ---- Display ---- */

/* Members that say how a node is used, not which image it shows. */
static bool describes_use(const char *member)
{
    static const char *const names[] = {"node-name", "discard", "cache", "active", "read-only",
        "auto-read-only", "force-share", "detect-zeroes", "locking", "aio", "aio-max-batch", "drop-cache",
        "x-check-cache-dropped", "pr-manager", "latency-ns", "lazy-refcounts", "pass-discard-request",
        "pass-discard-snapshot", "pass-discard-other", "discard-no-unref", "overlap-check", "cache-size",
        "l2-cache-size", "l2-cache-entry-size", "refcount-cache-size", "cache-clean-interval"};

    for (size_t i = 0; i < ARRAY_SIZE(names); i++)
        if (str_eq(member, names[i]))
            return true;
    return false;
}

static bool backing_is_overridden(const Node *node);

static JsonValue *image_options(const Node *node);

/* What the image says itself is left out of how it is encrypted; spelled as users of these names know it. */
static void show_encryption(JsonValue *shown, const JsonValue *options)
{
    const JsonValue *secret = json_get(options, "key-secret");

    if (secret)
        json_object_put(shown, "encrypt.key-secret", json_clone(secret));
}

static void show_member(const Node *node, const JsonMember *member, JsonValue *shown)
{
    const Edge *child = node_find_child(node, member->key);

    if (describes_use(member->key))
        return;
    if (str_eq(member->key, "encrypt"))
        show_encryption(shown, member->value);
    else
        json_object_put(shown, member->key, child ? image_options(child->node) : json_clone(member->value));
}

/* A child that the image has named, and the options have not. */
static void show_child(const Node *node, const char *name, JsonValue *shown)
{
    const Edge *child = node_find_child(node, name);

    if (child && !json_get(shown, name))
        json_object_put(shown, name, image_options(child->node));
}

/* The options that make the same image appear again. */
static JsonValue *image_options(const Node *node)
{
    JsonValue *all, *shown = json_object_new();

    if (!node->private->options) {
        json_object_put(shown, "driver", json_string_new(node->driver->name));
        return shown;
    }
    all = schema_to_json(&schema_type_BlockdevOptions, node->private->options);
    for (size_t i = 0; i < all->u.object.count; i++)
        show_member(node, &all->u.object.members[i], shown);
    json_free(all);
    show_child(node, "data-file", shown);
    if (backing_is_overridden(node))
        show_child(node, "backing", shown);
    return shown;
}

/* What a path in the image is relative to. */
static char *image_path(const Node *node)
{
    return node_filename(node->file ? node->file->node : node);
}

static char *resolve(const Node *node, const char *stored)
{
    AUTO_FREE char *image = image_path(node);
    const char *slash = strrchr(image, '/');

    if (stored[0] == '/' || !slash || str_starts(image, "json:"))
        return str_dup(stored);
    return str_printf("%.*s%s", (int)(slash + 1 - image), image, stored);
}

/* The backing file is another one than the image names. */
static bool backing_is_overridden(const Node *node)
{
    bool named = node->backing_filename && node->backing_filename[0];
    AUTO_FREE char *stored = named ? resolve(node, node->backing_filename) : NULL;
    AUTO_FREE char *shown = node->backing ? node_filename(node->backing->node) : NULL;

    return !str_eq(stored, shown);
}

/* A format on top of a file is recognised when the file is opened; anything else must be spelled out. */
static bool filename_is_plain(const Node *node)
{
    if (node->driver->filename_is_plain && !node->driver->filename_is_plain((Node *)node))
        return false;
    if ((node->driver->flags & DRIVER_BACKING) && backing_is_overridden(node))
        return false;
    return node->filename || !node->file || (node->file->node->driver->flags & DRIVER_PROTOCOL);
}

char *node_filename(const Node *node)
{
    AUTO_STRBUF StrBuf text = {0};
    JsonValue *options;

    if (filename_is_plain(node)) {
        if (node->filename)
            return str_dup(node->filename);
        return node->file ? node_filename(node->file->node) : str_printf("%s://", node->driver->name);
    }
    options = image_options(node);
    strbuf_append(&text, "json:");
    json_write(options, &text, false);
    json_free(options);
    return strbuf_take(&text);
}

/* ---- Names inside images ---- */

/* "nbd://host", "json:{...}", "ssh:x": a colon before the first slash. */
static bool has_protocol(const char *name)
{
    const char *colon = strchr(name, ':'), *slash = strchr(name, '/');

    return colon && (!slash || colon < slash);
}

char *node_resolve_path(Node *node, const char *stored, Error *err)
{
    AUTO_FREE char *image = image_path(node);

    if (!has_protocol(stored))
        return resolve(node, stored);
    err_set(err, -EPERM,
        "Image '%s' refers to '%s': only paths of local files are followed; name the node explicitly instead",
        image, stored);
    return NULL;
}

const Driver *driver_probe(const uint8_t *header, size_t bytes, const char *filename)
{
    const Driver *best = driver_find("raw");
    size_t count;
    const Driver *const *drivers = driver_list(&count);
    int best_score = 0;

    for (size_t i = 0; i < count; i++) {
        int score = drivers[i]->probe ? drivers[i]->probe(header, bytes, filename) : 0;

        if (score > best_score) {
            best_score = score;
            best = drivers[i];
        }
    }
    return best;
}

static int parse_options(JsonValue *json, BlockdevOptions **ret_options, Error *err)
{
    int r = schema_from_json(&schema_type_BlockdevOptions, json, SCHEMA_JSON, ret_options, err);

    json_free(json);
    return r;
}

static JsonValue *file_options(const char *filename)
{
    JsonValue *file = json_object_new();

    json_object_put(file, "driver", json_string_new("file"));
    json_object_put(file, "filename", json_string_new(filename));
    return file;
}

/* Reads the head of the file through a node of its own, which is closed again. */
static int probe_file(Node *parent, const char *filename, unsigned roles, const char **ret_format, Error *err)
{
    Inherited inherited = {.parent = parent, .roles = roles | EDGE_COW};
    CLEANUP(blockdev_options_free_ptr) BlockdevOptions *options = NULL;
    uint8_t header[PROBE_BYTES] = {0};
    Node *node;
    Edge *edge;
    size_t bytes;
    int r = parse_options(file_options(filename), &options, err);

    if (r < 0 || (r = node_open_inherited(options, &inherited, &node, err)) < 0)
        return r;
    r = edge_open(node, &(EdgeUser){0}, NULL, PERM_CONSISTENT_READ, PERM_ALL, &edge, err);
    if (r < 0) {
        node_release(node);
        return r;
    }
    bytes = MIN(node->size, (uint64_t)sizeof(header));
    r = edge_pread(edge, 0, header, bytes);
    edge_close(edge);
    if (r < 0)
        return err_set_errno(err, r, "Could not read image '%s' for determining its format", filename);
    *ret_format = driver_probe(header, bytes, filename)->name;
    return 0;
}

int node_open_child_file(Node *node, const char *name, const char *filename, const char *format,
    unsigned roles, Edge **ret_edge, Error *err)
{
    CLEANUP(blockdev_options_free_ptr) BlockdevOptions *options = NULL;
    JsonValue *json, *outer;
    AUTO_FREE char *path = NULL;
    int r = stored_name_check(node, filename, &path, err);

    if (r == 0 && !format)
        r = probe_file(node, path, roles, &format, err);
    if (r < 0)
        return r;
    json = file_options(path);
    if (!str_eq(format, "file")) {
        outer = json_object_new();
        json_object_put(outer, "driver", json_string_new(format));
        json_object_put(outer, "file", json);
        json = outer;
    }
    r = parse_options(json, &options, err);
    return r < 0 ? r : node_open_child_options(node, name, options, roles, ret_edge, err);
}
