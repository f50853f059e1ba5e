/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Exports: what makes a node visible outside of the process. This is the contract between the common part
 * (ids, options of all kinds, permissions, home loop, removal, events) and a kind of export.
 *
 * A kind is one folder below exports/ and one word in its meson.build: it defines `const ExportKind
 * export_kind_NAME` (dashes as underscores), found through a generated registry, and a schema fragment with
 * its branch of BlockExportOptions.
 *
 * Everything here runs in coroutines of the main loop. A kind serves its clients on export_home().
 */
#pragma once

#include "base/error.h"
#include "base/list.h"
#include "block/node.h"

typedef struct Export Export;
typedef struct ExportKind ExportKind;
typedef struct BlockExportOptions BlockExportOptions; /* generated */

struct Export {
    const ExportKind *kind;
    char *id;
    int type;    /* BlockExportType */
    void *state; /* kind's own, kind->state_size zeroed bytes */
    Edge *edge;
    struct Object **iothreads; /* of the option; references */
    unsigned iothread_count;
    bool spreads; /* it was a list */
    bool writable;
    bool writethrough; /* writes are durable when they are answered */
    bool starting;     /* create() has not returned yet */
    bool shutting_down;
    bool serving;    /* create() has succeeded, shutdown() has not begun */
    CoMutex control; /* moved() and shutdown() exclude each other */
    List link;       /* newest first */
};

struct ExportKind {
    const char *name;
    size_t state_size;
    bool allows_inactive;
    /* What other users of the node may do. A kind that needs more permissions than consistent-read (and
     * write, if writable) itself asks with edge_set_permissions() in create(). */
    unsigned shared;
    /* Starts serving. On failure releases what it acquired; shutdown() is then not called. */
    int (*create)(Export *export, const BlockExportOptions *options, Error *err);
    /* True if removing the export now would disconnect somebody (removal mode `safe` refuses). NULL: never.
     */
    bool (*in_use)(const Export *export);
    /* Disconnects clients, waits for the last request, and releases what create() acquired. */
    void (*shutdown)(Export *export);
    /* At the end of the daemon, after the last export is gone: releases what all exports of the kind share.
     * May be NULL. */
    void (*stop)(void);
    /* See EdgeUser. May be NULL. */
    void (*resized)(Export *export, uint64_t size);
    /* The loops are other ones from now on (export_loop()), because the node has moved. Requests from the old
     * ones still work, they only cost more. Not called during shutdown(). May be NULL. */
    void (*moved)(Export *export);
};

/* The registry (generated): NULL if no such kind is built in. */
const ExportKind *export_kind_find(const char *name);
const ExportKind *const *export_kind_list(size_t *ret_count);

/* block-export-add */
int export_add(const BlockExportOptions *options, Error *err) MUST_CHECK;
/*
 * Removes export: refuses if hard is false and it is in use. An export that is not in use is gone (and
 * BLOCK_EXPORT_DELETED sent) when this returns; another goes in the background once its clients' last
 * requests have ended.
 */
int export_remove(Export *export, bool hard, Error *err) MUST_CHECK;
/* The export of that id, or NULL. */
Export *export_find(const char *id);
/* The export that is the next older one than export (NULL: the newest), or NULL. */
Export *export_next(Export *export);
/* Removes all exports of a kind (NULL: of every kind), newest first, and waits until they are gone. */
void exports_close(const ExportKind *kind);
/* At the end of the daemon: removes all exports and stops what they shared. */
void exports_shutdown(void);

/* The loop that serves the export's node now. */
Loop *export_home(const Export *export);
/* The loops to serve clients on, in the order of the option `iothread`; without it the node's home alone. */
unsigned export_loop_count(const Export *export);
/* i modulo the count. */
Loop *export_loop(const Export *export, unsigned i);
/* The iothread object of that loop, or NULL for the main loop. Who stays on a loop after moved() holds a
 * reference. */
struct Object *export_iothread(const Export *export, unsigned i);
