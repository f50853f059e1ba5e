/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The contract between the graph and a block driver: one Driver table per driver, found by name through a
 * generated registry (`const Driver driver_NAME`, dashes as underscores, NAME as in the driver's branch of
 * BlockdevOptions).
 *
 * What the graph does before it calls a driver, so that drivers stay naive: range, permission and read-only
 * checks; alignment to node->limits (read-modify-write, bounce buffers); splitting to the limits; serialising
 * overlapping unaligned writes; emulating FUA, zeroing and discarding that a driver lacks; statistics; home
 * loop.
 */
#pragma once

#include "base/limits.h"
#include "block/node.h"

typedef struct DriverBitmaps DriverBitmaps;                 /* block/bitmap.h */
typedef struct ImageInfo ImageInfo;                         /* generated */
typedef struct ImageInfoSpecific ImageInfoSpecific;         /* generated */
typedef struct BlockStatsSpecific BlockStatsSpecific;       /* generated */
typedef struct BlockdevCreateOptions BlockdevCreateOptions; /* generated */
typedef struct BlockdevAmendOptions BlockdevAmendOptions;   /* generated */
typedef struct SnapshotInfo SnapshotInfo;                   /* generated */
typedef struct SnapshotInfoList SnapshotInfoList;           /* generated */

typedef enum DriverFlags {
    DRIVER_FORMAT = 1 << 0,        /* interprets a `file` child */
    DRIVER_PROTOCOL = 1 << 1,      /* a leaf: stores bytes itself */
    DRIVER_FILTER = 1 << 2,        /* shows one child's data unchanged */
    DRIVER_ANY_LOOP = 1 << 3,      /* the request functions may be called on every loop at once */
    DRIVER_BACKING = 1 << 4,       /* may have a backing child */
    DRIVER_READ_ANY_LOOP = 1 << 5, /* read() alone may be */
} DriverFlags;

/* What a check may correct; a set. */
typedef enum CheckFix {
    CHECK_FIX_LEAKS = 1 << 0,
    CHECK_FIX_ERRORS = 1 << 1,
} CheckFix;

/* What a check has found, and is left after what it has corrected. */
typedef struct CheckResult {
    uint64_t leaks, corruptions; /* space lost; data in danger */
    uint64_t leaks_fixed, corruptions_fixed;
    uint64_t check_errors;     /* what could not be looked at */
    uint64_t image_end_offset; /* bytes; 0: not known */
    uint64_t total_clusters, allocated_clusters, fragmented_clusters, compressed_clusters; /* of the disk */
} CheckResult;

/* Set by open() and again by refresh; the graph fills defaults from the children before open() returns. */
typedef struct NodeLimits {
    uint32_t request_alignment; /* power of two; offsets and lengths are multiples of it. Default 1 */
    uint32_t memory_alignment;  /* power of two; buffer addresses. Default 1 */
    uint32_t max_transfer;      /* bytes per read or write, 0: no limit; multiple of request_alignment */
    uint32_t max_iov;           /* 0: IOV_MAX */
    uint32_t opt_transfer;      /* 0: unknown */
    uint64_t max_write_zeroes, max_discard;             /* bytes, 0: no limit */
    uint32_t write_zeroes_alignment, discard_alignment; /* 0: request_alignment */
} NodeLimits;

/* Internal snapshots. All on the node's home loop; all but list while the node is drained. */
typedef struct DriverSnapshots {
    /* Appends them, in the order of the image; -ENOTSUP: this image can have none. */
    int (*list)(Node *node, SnapshotInfoList *list, Error *err);
    /* With the name and times of info; the driver chooses the id. */
    int (*create)(Node *node, const SnapshotInfo *info, Error *err);
    /* The one with that id and name; either may be NULL. */
    int (*remove)(Node *node, const char *id, const char *name, Error *err);
    /* Makes the image what it was then; may change node->size. */
    int (*apply)(Node *node, const char *id, const char *name, Error *err);
} DriverSnapshots;

struct Node {
    const Driver *driver;
    char name[LIMIT_NODE_NAME + 1];
    void *state; /* driver's own, driver->state_size zeroed bytes */
    _Atomic(Loop *) home;

    _Atomic uint64_t size;
    NodeLimits limits;
    unsigned write_flags;  /* RequestFlags that driver->write handles itself (REQ_FUA, REQ_COMPRESSED) */
    unsigned zeroes_flags; /* RequestFlags that driver->write_zeroes handles itself (REQ_FUA, REQ_MAY_UNMAP,
                              ...) */

    /* Options common to all nodes, as they are in force. */
    bool read_only, auto_read_only, force_share, direct, no_flush, discard_unmap, active;
    bool for_check;     /* only to be checked: as it is, even if damaged, and without backing file */
    int detect_zeroes; /* BlockdevDetectZeroesOptions */

    char *filename;                          /* of a protocol node; or of the image, for messages. Owned */
    char *backing_filename, *backing_format; /* as stored in the image; owned, NULL if none */

    Edge *file;                  /* primary child, or NULL */
    Edge *backing;               /* or NULL */
    struct NodePrivate *private; /* block/ only */
};

struct Driver {
    const char *name;
    size_t state_size;
    unsigned flags; /* DriverFlags */

    /*
     * Opens. Children are opened from here with node_open_child(); on failure the graph closes them and frees
     * state, but what open() itself acquired it must release. Sets size, limits, write_flags, zeroes_flags.
     */
    int (*open)(Node *node, const BlockdevOptions *options, Error *err);
    /* Flushes own caches and releases what open() acquired; children are closed by the graph afterwards. May
     * be NULL. */
    void (*close)(Node *node);

    /* Data path. Called concurrently by many coroutines. Ranges lie within the node and are aligned to the
     * limits. */
    int (*read)(Node *node, uint64_t offset, IoSlice dst);
    int (*write)(Node *node, uint64_t offset, IoSlice src, unsigned flags); /* NULL: always read-only */
    int (*write_zeroes)(
        Node *node, uint64_t offset, uint64_t bytes, unsigned flags); /* NULL or -ENOTSUP: emulated */
    int (*discard)(Node *node, uint64_t offset, uint64_t bytes);      /* NULL or -ENOTSUP: ignored */
    int (*flush)(Node *node); /* own caches, then durable; the graph flushes children where this is NULL */
    /* NULL: data (protocols), or the file child's (filters). May return a shorter range than asked. */
    int (*status)(Node *node, uint64_t offset, uint64_t bytes, BlockStatus *ret_status);

    /*
     * A reservation command (edge_pr_execute). Called on the main loop wherever the node's home is, also
     * while requests are drained. NULL: filters pass it on, others have none. -ENOTSUP: not with this node's
     * options.
     */
    int (*pr_execute)(Node *node, const PrRequest *request, PrReply *ret_reply);

    /* Control path, main loop; called on the node's home loop. All optional. */
    int (*resize)(Node *node, uint64_t size, bool exact, Preallocation prealloc, unsigned flags, Error *err);
    /* For drivers whose size follows that of the file child, which another parent may have changed: sets
     * node->size. Called when the node gets a parent, and when it is reopened. Does not wait; any loop. */
    void (*refresh_size)(Node *node);
    /* The node gets another home loop: called on the old one before, and on the new one afterwards, at rest. For what a
     * driver has running there by itself. Both or none. */
    void (*leave_home)(Node *node);
    void (*enter_home)(Node *node);
    const DriverSnapshots *snapshots;
    /* The permissions that the node needs on a child, and leaves to others, for what its own parents ask.
     * NULL: default for its role. */
    void (*child_permissions)(
        Node *node, Edge *child, unsigned perm, unsigned shared, unsigned *ret_perm, unsigned *ret_shared);
    /* Permissions are about to change to (perm, shared) in force for all parents: take locks, reopen for
     * writing. check may fail and is followed by commit or abort. */
    int (*permissions_check)(Node *node, unsigned perm, unsigned shared, Error *err);
    void (*permissions_commit)(Node *node, unsigned perm, unsigned shared);
    void (*permissions_abort)(Node *node);
    /* Bytes of the host's storage in use, or -errno. */
    int64_t (*allocated_size)(Node *node);
    /* Format-specific members of ImageInfo; caller frees. */
    int (*info)(Node *node, ImageInfo *info, Error *err);
    /* Looks for inconsistencies of the image, and corrects what fix (CheckFix) says. Requests are drained. */
    int (*check)(Node *node, unsigned fix, CheckResult *ret_result, Error *err);
    BlockStatsSpecific *(*stats)(Node *node);
    /* Lists option names that change what is shown, so that filename reporting must use json:{}. May be NULL.
     */
    bool (*filename_is_plain)(Node *node);

    /* Keeps dirty bitmaps in the image; NULL: cannot. */
    const DriverBitmaps *bitmaps;

    /*
     * blockdev-reopen; on the home loop, while the node is at rest and flushed. Its common options and its
     * children are the new ones already. prepare puts the driver's options into force, as far as that can be
     * undone; it is followed by commit, or by abort, which puts everything back. NULL: none of the driver's
     * options can change.
     */
    int (*reopen_prepare)(Node *node, const BlockdevOptions *options, Error *err);
    void (*reopen_commit)(Node *node);
    void (*reopen_abort)(Node *node);
    const char *const *reopen_options; /* names of options that can change, ends with NULL. May be NULL */
    /*
     * Between stop and start, nothing is written: the node may be made read-only, or its options may change.
     * stop writes out everything that memory owes to the image; start finds the permissions for writing in
     * force. Only of nodes that are (or are to be) writable; on the home loop, at rest. On failure nothing
     * has changed. NULL: nothing to do.
     */
    int (*start_writing)(Node *node, Error *err);
    int (*stop_writing)(Node *node, Error *err);

    /* Writes the name of the backing file into the image ("": none) and format, in one step for whoever looks
     * after a crash, and sets backing_filename and backing_format. On the home loop, at rest. */
    int (*change_backing_file)(Node *node, const char *filename, const char *format);

    /* blockdev-create */
    int (*create)(const BlockdevCreateOptions *options, Error *err);
    /* x-blockdev-amend, while requests run; options are those of this driver. Main loop, so that it may ask
     * for permissions. */
    int (*amend)(Node *node, const BlockdevAmendOptions *options, bool force, Error *err);
    /* 0..100: how sure the driver is that a header (first bytes of a file) is its format. NULL: never probed.
     */
    int (*probe)(const uint8_t *header, size_t bytes, const char *filename);
};

/* The registry (generated): NULL if no such driver is built in. */
const Driver *driver_find(const char *name);
const Driver *const *driver_list(size_t *ret_count);

/* Opens or looks up the child that ref names and attaches it under `name` ("file", "backing", "data-file",
 * ...). With EDGE_PRIMARY also sets node->file, with EDGE_COW node->backing. */
int node_open_child(Node *node, const char *name, const BlockdevRef *ref, unsigned roles, Edge **ret_edge,
    Error *err) MUST_CHECK;
/* The same for options that the driver has made up itself. */
int node_open_child_options(Node *node, const char *name, const BlockdevOptions *options, unsigned roles,
    Edge **ret_edge, Error *err) MUST_CHECK;
/* The same for a child that stored names describe: format (NULL: probed, the child is read-only) over a local
 * file. */
int node_open_child_file(Node *node, const char *name, const char *filename, const char *format,
    unsigned roles, Edge **ret_edge, Error *err) MUST_CHECK;
/* An implicit reading of a path stored in an image, relative to the image's own file; NULL with err set when
 * the policy refuses it (protocol or json: names). Caller frees. */
char *node_resolve_path(Node *node, const char *stored, Error *err) MUST_CHECK;
/* For drivers whose child changes its role with an option. Followed by a change of permissions. */
void node_set_child_roles(Edge *child, unsigned roles);
/* child_permissions() would answer otherwise than before. Main loop. */
int node_refresh_permissions(Node *node, Error *err) MUST_CHECK;
/* For create(): an edge to the node that ref names or describes, with the permissions to make an image in it. A name is
 * looked up before anything else is judged, a definition is opened when all the rest is sound. */
int creation_check_ref(const BlockdevRef *ref, Error *err) MUST_CHECK;
int creation_open_ref(const BlockdevRef *ref, Edge **ret_edge, Error *err) MUST_CHECK;
/* The driver has changed node->size: tells parents. */
void node_size_changed(Node *node);
/* Reports corruption: sends BLOCK_IMAGE_CORRUPTED. offset or size -1: not known. */
void node_report_corruption(Node *node, bool fatal, int64_t offset, int64_t size, const char *message);
/* The permissions that a child needs by its role; for drivers whose child_permissions starts from them. */
void node_default_permissions(
    Node *node, Edge *child, unsigned perm, unsigned shared, unsigned *ret_perm, unsigned *ret_shared);
