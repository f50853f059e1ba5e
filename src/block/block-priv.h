/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of block/ share. */
#pragma once

#include "block/driver.h"
#include "generated/types.h"

#include <pthread.h>
#include <stdatomic.h>

typedef struct NodePrivate {
    Node *node;
    List graph_link; /* newest first */
    List parents;    /* Edge.node_link, newest first */
    List children;   /* Edge.parent_link */
    bool monitor_owned;
    unsigned held;            /* node_hold() */
    unsigned drained;         /* node_drain_begin(); main loop */
    CoMutex resizing;         /* main loop */
    Node *origin;             /* the parent that has opened it and hands options down to it; or NULL */
    bool loses_writing;       /* a reopening is making it read-only */
    unsigned visited;         /* permission.c */
    unsigned depth;           /* nodes that were being opened around this one */
    bool in_graph;            /* has been opened; false while open() runs */
    BlockdevOptions *options; /* as given, owned; for filename reporting. May be NULL */
    _Atomic uint64_t write_generation;   /* counts writes that have completed */
    _Atomic uint64_t flushed_generation; /* all writes up to here are durable */
    _Atomic uint64_t write_highest;      /* end of the highest write */
    pthread_mutex_t serialise_lock;
    List serialised;        /* requests that others may have to wait for, see serialise.c; with the lock */
    EdgeStats closed_stats; /* of edges that are gone */
    bool corrupt;           /* a fatal corruption was reported */
    List bitmaps;           /* newest first */
    pthread_rwlock_t bitmaps_lock;
    _Atomic unsigned tracking; /* Tracking: what there is to do around a write */
    Object *iothread;          /* on whose loop the node lives, a reference; NULL: the main loop */
} NodePrivate;

/*
 * What an edge counts on one loop. Nothing else touches it, so that several loops can send requests over one
 * edge without sharing counters; only statistics are read from outside, on that loop or after its end.
 */
typedef struct Lane {
    unsigned in_flight; /* root edges */
    CoCond changed;     /* drained or in_flight has reached zero */
    EdgeStats stats;
} Lane;

struct Edge {
    Node *node;
    Node *parent; /* NULL: a root edge, of an export or a job */
    const EdgeUser *user;
    void *opaque;
    char *name;     /* "file", "backing", "root"; owned */
    unsigned roles; /* EdgeRole */
    _Atomic unsigned perm;
    unsigned shared;
    List node_link, parent_link;
    bool fixed_home;          /* root edges: the node must not move */
    _Atomic unsigned drained; /* root edges: new requests wait */
    _Atomic(Lane *)
        lanes[LIMIT_LOOPS]; /* by loop_index(); made by the loop itself when it first uses the edge */
    unsigned pr_in_flight;  /* reservation commands; main loop */
    CoCond pr_done;         /* pr_in_flight has reached zero */
};

/* ---- Graph (node.c, edge.c) ---- */

/* An edge that is not attached yet. */
Edge *edge_new(const char *name);
/* Both with the graph lock. */
void edge_attach(Edge *edge, Node *node);
void edge_detach(Edge *edge);
/* Leads an attached edge, which is at rest, to another node. */
void edge_retarget(Edge *edge, Node *node);
/* Frees an edge that is detached; what it has counted stays with its node. */
void edge_dispose(Edge *edge);
/* Frees the node if nobody needs it any more. */
void node_release(Node *node);
/* An export or job uses the node directly. */
bool node_has_root_edge(const Node *node);

/* Options that a child takes from its parent where its own say nothing. */
typedef struct Inherited {
    Node *parent;
    unsigned roles;
    bool for_check;
} Inherited;

/* Options common to all nodes: what options say, else what the parent hands down. */
void node_set_common_options(Node *node, const BlockdevOptions *options, const Inherited *from);
int node_check_common_options(const Node *node, Error *err) MUST_CHECK;
/* NULL if there is none of that name. */
Edge *node_find_child(const Node *node, const char *name);
/* True if `node` is `below` or can be reached from it. */
bool node_reaches(const Node *below, const Node *node);

int node_open_inherited(
    const BlockdevOptions *options, const Inherited *inherited, Node **ret_node, Error *err) MUST_CHECK;

/* reopen.c: makes a node read-only or writable, and the children that it has opened. */
int node_set_read_only(Node *node, bool read_only, Error *err) MUST_CHECK;

/* ---- Permissions (permission.c) ---- */

/* Makes the permissions in force below node what its parents ask for; on failure nothing has changed. */
int permission_refresh(Node *node, Error *err) MUST_CHECK;
/* The same for several nodes at once. With the graph lock. */
int permission_refresh_locked(Node *const *nodes, size_t count, Error *err) MUST_CHECK;
/* Changes what one edge asks for; on failure nothing has changed. */
int permission_set(Edge *edge, unsigned perm, unsigned shared, Error *err) MUST_CHECK;
/* Between these, edges are taken out of the graph: never while a permission change, which may wait, looks at
 * them. */
void graph_change_begin(void);
void graph_change_end(void);
/* "write, resize"; caller frees. */
char *permission_names(unsigned perm);

/* ---- Drain (drain.c) ---- */

/* An edge has been put into the graph, or is about to leave it, while nodes below are drained. With the graph
 * lock. */
void edge_inherit_drains(Edge *edge);
void edge_disinherit_drains(Edge *edge);

/* Keeps new requests out of a root edge, waits for those in flight, lets new ones in. Nests. Main loop. */
void edge_close_gate(Edge *edge);
void edge_wait_until_idle(Edge *edge);
void edge_open_gate(Edge *edge);
/* Makes the calling loop's lane of edge. */
Lane *edge_new_lane(Edge *edge);

/* ---- Reservation commands (pr.c) ---- */

Loop *block_main_loop(void);
/* Waits for those of the edge. */
void edge_wait_for_pr(Edge *edge);

/* ---- Serialising (serialise.c) ---- */

typedef struct Serialised {
    List link;
    uint64_t offset, bytes;
    bool exclusive; /* others that overlap wait */
    List waiters;
} Serialised;

/* Registers a write to the range and waits for overlapping ones that exclude it, or, if exclusive, for all of
 * them. */
void serialise_begin(Node *node, Serialised *request, uint64_t offset, uint64_t bytes, bool exclusive);
void serialise_end(Node *node, Serialised *request);

/* ---- Dirty bitmaps (bitmap.c) ---- */

typedef enum Tracking {
    TRACK_BITMAPS = 1 << 0, /* some bitmap is enabled */
    TRACK_JOURNAL = 1 << 1, /* the driver wants to know of writes */
} Tracking;

void bitmaps_init(NodePrivate *p);
void bitmaps_done(NodePrivate *p);
/* The node's size has changed. */
void bitmaps_resize(Node *node, uint64_t size);
/* Around writes to a node where `tracking` is not 0. begin: 1 if the driver has been told, which then wants
 * to hear of the end. */
int tracked_write_begin(Node *node, uint64_t offset, uint64_t bytes);
void tracked_write_end(Node *node, uint64_t offset, uint64_t bytes, bool journalled);

/* ---- Aligned requests (align.c): for requests that do not fit node->limits ---- */

bool align_fits(const Node *node, uint64_t offset, IoSlice io);
int align_read(Node *node, uint64_t offset, IoSlice dst);
int align_write(Node *node, uint64_t offset, IoSlice src, unsigned flags);
int align_write_zeroes(Node *node, uint64_t offset, uint64_t bytes, unsigned flags);

/* ---- The node's side of the request path (request.c); on the home loop, range already checked ---- */

int node_read(Node *node, uint64_t offset, IoSlice dst);
int node_flush(Node *node);
/* Aligned; splits to the limits. */
int node_read_aligned(Node *node, uint64_t offset, IoSlice dst);
int node_write_aligned(Node *node, uint64_t offset, IoSlice src, unsigned flags);
int node_write_zeroes_aligned(Node *node, uint64_t offset, uint64_t bytes, unsigned flags);

/* A static buffer of zeroes for writing zeroes; ZERO_BUFFER_BYTES long, page-aligned. */
#define ZERO_BUFFER_BYTES (64 * KIB)
extern const uint8_t zero_buffer[ZERO_BUFFER_BYTES];

/* Of the node's image, or of the nearest one below that has clusters; 0: there are none. Main loop. */
uint64_t node_cluster_size(Node *node);
/* What stands for the node in messages and query results: a path, or json:{...}. Caller frees. */
char *node_filename(const Node *node);
/* Adds what edge has counted on all loops to sum. Main loop. */
void edge_stats_add(EdgeStats *sum, const Edge *edge);
/* The file that may be opened because the image of node names path. Caller frees *ret_path. */
int stored_name_check(Node *node, const char *path, char **ret_path, Error *err) MUST_CHECK;
/* Format of a header, by asking all drivers. Never NULL ("raw" if none is sure). */
const Driver *driver_probe(const uint8_t *header, size_t bytes, const char *filename);
