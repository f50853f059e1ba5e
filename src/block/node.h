/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The block graph, as its users see it: nodes, the edges between them and from exports and jobs, permissions,
 * and the request path.
 *
 * A node lives while the monitor owns it or while an edge points to it. All graph changes happen in
 * coroutines of the main loop. Requests may be sent over an edge from every loop, on several at once. Drivers
 * that can are called on the loop that sends; for others the request is posted to the node's home loop and
 * awaited.
 *
 * Request functions return 0 or -errno. Offsets and lengths are bytes; a request may have any alignment and
 * must lie within the node. They are called from coroutines and are not interruptible.
 */
#pragma once

#include "base/error.h"
#include "base/io-slice.h"
#include "co/co.h"
#include "loop/loop.h"

typedef struct Node Node;
typedef struct Edge Edge;
typedef struct Driver Driver;
typedef struct BlockdevOptions BlockdevOptions; /* generated */
typedef struct BlockdevRef BlockdevRef;         /* generated */
typedef struct Object Object;                   /* schema/object.h */
typedef struct PrRequest PrRequest;             /* proto/pr-wire.h */
typedef struct PrReply PrReply;

/* ---- Permissions (QEMU docs/devel, "Permissions"; texts in compatibility.md) ---- */

typedef enum Permission {
    PERM_CONSISTENT_READ = 1 << 0,
    PERM_WRITE = 1 << 1,
    PERM_WRITE_UNCHANGED = 1 << 2,
    PERM_RESIZE = 1 << 3,
    PERM_ALL = (1 << 4) - 1,
} Permission;

/* What a child is to its parent; a set. */
typedef enum EdgeRole {
    EDGE_DATA = 1 << 0,     /* holds guest data of the parent */
    EDGE_METADATA = 1 << 1, /* holds the parent's own structures */
    EDGE_FILTERED = 1 << 2, /* the parent shows the child's data unchanged */
    EDGE_COW = 1 << 3,      /* backing: shows through where the parent has nothing */
    EDGE_PRIMARY = 1 << 4,  /* the child that names the parent's image */
} EdgeRole;

/* ---- Status of a range ---- */

typedef enum BlockStatusFlags {
    BLOCK_STATUS_DATA = 1 << 0,      /* reads come from data that is stored in this layer */
    BLOCK_STATUS_ZERO = 1 << 1,      /* reads as zeroes */
    BLOCK_STATUS_ALLOCATED = 1 << 2, /* this layer decides the contents (data or zeroes) */
    BLOCK_STATUS_OFFSET = 1 << 3,    /* map_offset in map_node holds the bytes unencoded */
    BLOCK_STATUS_EOF = 1 << 4,       /* the range reaches the end of this layer */
    BLOCK_STATUS_COMPRESSED = 1 << 5,
    BLOCK_STATUS_RECURSE = 1 << 6, /* driver to block layer: ask map_node for holes, too */
} BlockStatusFlags;

typedef struct BlockStatus {
    uint64_t bytes; /* length of the uniform range, > 0 unless at the end */
    unsigned flags; /* BlockStatusFlags */
    uint64_t map_offset;
    Node *map_node;
    unsigned depth; /* edge_status_above: layers below the top at which it was found, from 1; 0 if in none */
} BlockStatus;

/* ---- Requests ---- */

typedef enum RequestFlags {
    REQ_FUA = 1 << 0,       /* durable when it returns */
    REQ_MAY_UNMAP = 1 << 1, /* write_zeroes: the range may be deallocated */
    REQ_NO_FALLBACK =
        1 << 2, /* write_zeroes: -ENOTSUP rather than writing buffers of zeroes (NBD FAST_ZERO) */
    REQ_COMPRESSED = 1 << 3, /* write: store compressed */
    REQ_UNCHANGED = 1 << 4,  /* does not change the visible contents (copy on read) */
    REQ_OUTLIVES =
        1 << 5, /* survives the end of this process when it returns; of the host only after a flush */
} RequestFlags;

int edge_read(Edge *edge, uint64_t offset, IoSlice dst);
int edge_write(Edge *edge, uint64_t offset, IoSlice src, unsigned flags);
int edge_write_zeroes(Edge *edge, uint64_t offset, uint64_t bytes, unsigned flags);
int edge_discard(Edge *edge, uint64_t offset, uint64_t bytes);
/* Everything written before is durable when it returns. */
int edge_flush(Edge *edge);
/* Status of this node only: !ALLOCATED where a backing file shows through. bytes > 0. */
int edge_status(Edge *edge, uint64_t offset, uint64_t bytes, BlockStatus *ret_status);
/* Status through the whole chain of backing files; never "not allocated" unless no layer has it (then ZERO).
 */
int edge_status_above(Edge *edge, uint64_t offset, uint64_t bytes, BlockStatus *ret_status);
/* Flat-buffer forms of the above, for metadata. */
int edge_pread(Edge *edge, uint64_t offset, void *data, size_t bytes);
int edge_pwrite(Edge *edge, uint64_t offset, const void *data, size_t bytes, unsigned flags);

/*
 * Carries a SCSI PERSISTENT RESERVE command out on the disk below edge. 0 with a complete reply (a failure of
 * the disk or of its reservation manager is a reply, too), or -ENOTSUP: no node below has a manager. Unlike
 * requests interruptible (-ECANCELED, -ETIMEDOUT: may have been executed) and not held by drain; who closes
 * the edge cancels its commands first. Any loop.
 */
int edge_pr_execute(Edge *edge, const PrRequest *request, PrReply *ret_reply) MUST_CHECK;

typedef enum Preallocation { /* values equal those of the generated PreallocMode */
    PREALLOCATION_OFF,
    PREALLOCATION_METADATA,
    PREALLOCATION_FALLOC,
    PREALLOCATION_FULL,
} Preallocation;

/* exact: a device or file that ends up larger than asked is an error. Needs PERM_RESIZE. A root edge's user
 * calls it on the main loop; requests are drained meanwhile. */
int edge_resize(
    Edge *edge, uint64_t size, bool exact, Preallocation prealloc, unsigned flags, Error *err) MUST_CHECK;

/* ---- Edges from outside the graph (exports, jobs): a root edge ---- */

typedef struct EdgeUser {
    /* Names the user in messages, for example "block-export 'e0'"; the caller frees the text. */
    char *(*describe)(void *opaque);
    /* The node's size has changed. May be NULL. */
    void (*resized)(void *opaque, uint64_t size);
    /* The node has another home loop. The graph cannot change meanwhile. May be NULL. */
    void (*moved)(void *opaque);
} EdgeUser;

/* Attaches to node with the permissions; a conflict is an error with the texts that users know. */
int edge_open(Node *node, const EdgeUser *user, void *opaque, unsigned perm, unsigned shared, Edge **ret_edge,
    Error *err) MUST_CHECK;
/* Waits for the edge's requests, detaches it and frees it; the node goes with its last user. NULL is fine. */
void edge_close(Edge *edge);
int edge_set_permissions(Edge *edge, unsigned perm, unsigned shared, Error *err) MUST_CHECK;
Node *edge_node(const Edge *edge);
/* Bytes of the host's storage that the node uses, or -errno. Any loop; waits. */
int64_t edge_allocated_size(Edge *edge);
/* The node stays on its loop for as long as the root edge exists. */
void edge_fix_home(Edge *edge);

/* Counters of one edge, for query-blockstats and the export's own statistics. */
typedef struct EdgeStats {
    uint64_t read_bytes, write_bytes, discard_bytes, zeroes_bytes;
    uint64_t read_ops, write_ops, flush_ops, discard_ops, zeroes_ops;
    uint64_t read_ns, write_ns, flush_ns, discard_ns;
    uint64_t failed_reads, failed_writes, failed_flushes, failed_discards;
    uint64_t write_highest; /* end of the highest write */
} EdgeStats;

/* ---- Nodes ---- */

/* Makes the calling loop the main loop of the graph. Before anything else here. */
void block_init(void);

/* The one graph of the process. */
Node *node_find(const char *name); /* NULL if there is none */
/* Opens the node that options describe, owned by the monitor when they come from blockdev-add. */
int node_open(const BlockdevOptions *options, Node **ret_node, Error *err) MUST_CHECK;
/* blockdev-add: node-name is required, the monitor owns the node. */
int node_add(const BlockdevOptions *options, Error *err) MUST_CHECK;
/* blockdev-del */
int node_del(const char *name, Error *err) MUST_CHECK;
/* Closes every node that only the monitor owns (shutdown, after exports and jobs are gone). */
void node_close_all(void);

const char *node_name(const Node *node);
const Driver *node_driver(const Node *node);
uint64_t node_size(const Node *node);
bool node_is_read_only(const Node *node);
Loop *node_home(const Node *node);
/*
 * Moves node, and all nodes that hang together with it, to the loop of an iothread object (NULL: the main
 * loop). Waits for the requests of all users, then tells them (EdgeUser.moved). -EBUSY if one has fixed it.
 * Each node holds a reference to its iothread.
 */
int node_set_iothread(Node *node, Object *iothread, Error *err) MUST_CHECK;
/* NULL: the main loop. Borrowed. */
Object *node_iothread(const Node *node);
/* Smallest alignment that requests to this node need to avoid a read-modify-write; a power of two. */
uint32_t node_request_alignment(const Node *node);
/* The node stays in between, and counts as in use: for a job that is not one of its users. */
void node_hold(Node *node);
void node_let_go(Node *node);
/* Calls fn for each node, newest first. */
void node_foreach(void (*fn)(Node *node, void *arg), void *arg);

/* Keeps new requests of all parents out of node and waits for those in flight. Nests. */
void node_drain_begin(Node *node);
void node_drain_end(Node *node);
