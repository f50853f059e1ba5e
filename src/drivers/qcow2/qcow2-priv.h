/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The qcow2 engine: what its files share.
 *
 * ---- Order of writes (what a crash may find) ----
 *
 * An image on disk is at every moment consistent but for leaked clusters. Metadata is written back (sync.c)
 * in groups, with a flush of the child between them:
 *
 *   1. refcount blocks: they may only count too many so far, because
 *      increments are made in the cache before anything refers to the cluster, and
 *      decrements are not made at all before step 4;
 *      -- flush: increments, guest data and copied data are durable --
 *   2. L2 slices and L1 entries, as they were when the write-back began (a slice that is modified meanwhile
 * is copied first, so that no entry is written whose refcount was not part of step 1);
 *      -- flush: the new mapping is durable --
 *   3. clusters that the new mapping no longer refers to may be freed: their decrements enter the refcount
 * cache.
 *
 * New L2 tables, refcount blocks and refcount tables are written in full before anything points to them.
 *
 * With lazy refcounts the image is marked dirty before the first allocation, and step 1 is only the flush:
 * refcounts are right again when the image is closed, or when a dirty one is repaired (check.c).
 *
 * Snapshots change more than any order could keep consistent: they write all tables anew and switch to them
 * with one write of the header (shadow.c).
 *
 * ---- The end of the process ----
 *
 * A write with REQ_OUTLIVES is answered when its mapping has been written to the file, where the kernel keeps
 * it (sync_publish). A flush for each would be slow; so clusters are allocated ahead, with refcounts that are
 * durable before they are used (q->reserve). A slice may then be written without the flush of step 1 if after
 * a power cut it makes no difference whether the data got there: if zeroes were read before, and a new
 * cluster holds zeroes until it is written. In all other cases (q->unordered), and when there is a new L2
 * table, it is a write-back as above.
 *
 * ---- Freed clusters ----
 *
 * A cluster that lost its reference goes through four lists (free.c): PENDING (mapping changed in the cache),
 * WRITING (part of the running write-back), WAITING (mapping durable, but requests that began before may
 * still read or write the old place: they are counted per epoch), READY (may be decremented). Only then is it
 * reused or punched out.
 *
 * ---- Concurrency ----
 *
 * Everything but reads runs on the node's home loop; between two waits nothing else runs there. There are no
 * locks for lookups: a pointer into a cached table is valid until the next wait, then it must be looked up
 * again.
 * - An allocating write registers the guest clusters it changes (AllocRange); others that would change the
 * mapping of these clusters wait for it and start over. Mapped reads and mapped writes never wait for it.
 * - A cluster may be zeroed or discarded under a write in place. Where it keeps its host cluster, which is
 * then to be filled anew, the filling waits for such writes: they would show up in the middle of it.
 * - Locks, in this order: change_lock (snapshots, checks, resizing, commands for bitmaps, the backing file's
 * name: the node is drained), the bitmaps' and their journal's, l2_lock (a new L2 table), refcount_lock
 * (allocation, decrements), writeback_lock, a cache's write_lock. A write-back takes none of the first two,
 * so that an allocation may need one to make room in a cache.
 *
 * ---- Reads away from home ----
 *
 * A read on another loop looks its range up in copies of L2 entries (away.c) and reads the child itself; what
 * has no copy is looked up at home, which makes one. Four steps are in the one order that all loops see
 * (memory_order_seq_cst):
 *   read:  it counts itself in its loop's counter of the current epoch, then it looks up;
 *   home:  it marks a copy as changing when an entry changes, then, much later, looks at the counters.
 * So a counter that home saw at zero after the change leaves only reads that see the change. A cluster that
 * lost its reference is READY after the counters of both epochs were seen at zero, one before an epoch begins
 * and one before it ends: it does not matter which epoch a read was counted in, nor how old its idea of the
 * current one was. The end of a read releases, the look at the counter acquires: its access to the old place
 * is over before that is used again.
 *
 * ---- Trust ----
 *
 * Nothing read from an image is used before it was checked where it is used: tables are validated lazily,
 * entry by entry. MetaSet knows which host clusters hold metadata; guest data is never written there.
 */
#pragma once

#include "block/driver.h"
#include "proto/qcow2.h"

#include <inttypes.h>
#include <stdatomic.h>

typedef struct Qcow2 Qcow2;
typedef struct Crypt Crypt;
typedef struct NewCrypt NewCrypt;
typedef struct BlockdevOptionsQcow2 BlockdevOptionsQcow2;                         /* generated */
typedef struct BlockdevQcow2Encryption BlockdevQcow2Encryption;                   /* generated */
typedef struct ImageInfoSpecificQCow2 ImageInfoSpecificQCow2;                     /* generated */
typedef struct QCryptoBlockAmendOptions QCryptoBlockAmendOptions;                 /* generated */
typedef struct QCryptoBlockCreateOptions QCryptoBlockCreateOptions;               /* generated */
typedef struct ImageInfoSpecificQCow2Encryption ImageInfoSpecificQCow2Encryption; /* generated */
typedef struct Inflate Inflate;                                                   /* inflate.c */
typedef struct StoredBitmaps StoredBitmaps;

/* ---- Cache of table slices (cache.c) ---- */

typedef struct CacheEntry {
    uint64_t offset; /* of the slice in the image file; 0: free */
    uint8_t *table;  /* as on disk, big-endian */
    uint8_t
        *frozen; /* what a running write-back writes: == table until someone modifies the slice; or NULL */
    List dirty_link, frozen_link;
    uint32_t next; /* in the hash bucket: index + 1, 0 ends */
    bool loading, dirty, used;
    CoCond loaded;
} CacheEntry;

typedef struct Cache {
    Qcow2 *q;
    int (*make_room)(Qcow2 *q); /* writes dirty entries back when no clean one can be evicted */
    CacheEntry *entries;
    uint32_t *buckets;
    uint32_t bucket_bits, count, max, hand;
    unsigned slice_bits;
    List dirty, frozen;
    uint8_t *spare; /* free buffers, chained through their first bytes */
    void **slabs;
    size_t slab_count, slab_capacity;
    CoMutex write_lock; /* one write-back at a time */
    CoCond room;        /* a load has ended */
} Cache;

int cache_init(
    Cache *c, Qcow2 *q, unsigned slice_bits, uint64_t max_bytes, int (*make_room)(Qcow2 *)) MUST_CHECK;
void cache_done(Cache *c);
/* Exchanges the contents of two caches that hold nothing dirty. */
void cache_swap(Cache *a, Cache *b);
/* The slice at offset, read if need be; valid until the next wait. */
int cache_get_slow(Cache *c, uint64_t offset, CacheEntry **ret_entry) MUST_CHECK;
/* Must be called before each change of a slice; returns the table to change and marks it dirty. Does not
 * wait. */
uint8_t *cache_modify(Cache *c, CacheEntry *entry);
/* Forgets slices that lie in a range of the file which holds no metadata any more. */
void cache_forget(Cache *c, uint64_t offset, uint64_t bytes);
/* Takes the current contents of all dirty slices as what cache_write_frozen writes; hold write_lock over
 * both. */
void cache_freeze(Cache *c);
int cache_write_frozen(Cache *c) MUST_CHECK;
/* Gives a write-back up: what was frozen is dirty again. */
void cache_unfreeze(Cache *c);
/* Both, with the lock. */
int cache_write_dirty(Cache *c) MUST_CHECK;
/* Frees the memory of clean slices that were not used since the last call; false: there are no clean ones
 * now. */
bool cache_clean(Cache *c);

static inline uint32_t cache_bucket(const Cache *c, uint64_t offset)
{
    return (uint32_t)((offset >> c->slice_bits) * UINT64_C(0x9e3779b97f4a7c15) >> (64 - c->bucket_bits));
}

static inline CacheEntry *cache_find(Cache *c, uint64_t offset)
{
    for (uint32_t i = c->buckets[cache_bucket(c, offset)]; i; i = c->entries[i - 1].next)
        if (c->entries[i - 1].offset == offset)
            return &c->entries[i - 1];
    return NULL;
}

MUST_CHECK static inline int cache_get(Cache *c, uint64_t offset, CacheEntry **ret_entry)
{
    CacheEntry *entry = cache_find(c, offset);

    if (UNLIKELY(!entry || entry->loading))
        return cache_get_slow(c, offset, ret_entry);
    entry->used = true;
    *ret_entry = entry;
    return 0;
}

/* ---- Which host clusters hold metadata (metaset.c) ---- */

enum {
    META_HEADER = 1 << 0,
    META_L1 = 1 << 1,
    META_L2 = 1 << 2,
    META_REFTABLE = 1 << 3,
    META_REFBLOCK = 1 << 4,
    META_SNAPSHOTS = 1 << 5,
    META_BITMAPS = 1 << 6, /* directory, tables, data, journal */
    /* Of snapshots; known only as far as overlap_check asks for them. */
    META_INACTIVE_L1 = 1 << 7,
    META_INACTIVE_L2 = 1 << 8,
};

typedef struct MetaSet {
    uint64_t *slots; /* cluster index + 1 << 16 | kinds; 0: empty */
    uint64_t used, mask;
} MetaSet;

int metaset_add(MetaSet *set, uint64_t cluster, unsigned kind) MUST_CHECK;
void metaset_remove(MetaSet *set, uint64_t cluster, unsigned kind);
/* Of all clusters. */
void metaset_remove_all(MetaSet *set, unsigned kind);
unsigned metaset_kinds(const MetaSet *set, uint64_t cluster);
void metaset_done(MetaSet *set);

/* ---- Clusters that lost their reference (free.c) ---- */

typedef enum FreeStage {
    FREE_PENDING,
    FREE_WRITING,
    FREE_DURABLE,
    FREE_WAITING,
    FREE_READY,
    FREE_STAGES
} FreeStage;

typedef struct FreeRange {
    uint64_t offset, bytes; /* whole clusters; one decrement each */
    bool discard;           /* give the space back to the file once nothing refers to it */
} FreeRange;

typedef struct FreeList {
    FreeRange *items;
    size_t count, capacity;
} FreeList;

/* ---- Work that many requests wait for together (sync.c) ---- */

typedef struct SharedRun {
    uint64_t begun, done; /* number of the last one; done: that has succeeded */
} SharedRun;

/* ---- The node's state ---- */

typedef struct ClusterRun {
    uint64_t offset;
    uint64_t count;
    bool fresh;   /* reads as zeroes: never written and beyond the end of the file */
    bool durable; /* its refcounts are on disk */
} ClusterRun;

/* Guest clusters whose mapping a request is about to change, or guest bytes that it writes in place; on the
 * request's stack. */
typedef struct AllocRange {
    List link;
    uint64_t start, end; /* guest offsets */
    CoCond done;
} AllocRange;

/* Copies of the entries of consecutive guest clusters. */
typedef struct AwayBlock {
    _Atomic uint64_t sequence;       /* odd while it changes */
    _Atomic uint64_t number;         /* which clusters: see block_number(); 0: none */
    _Atomic uint64_t *_Atomic words; /* as on disk; NULL until it was used once */
} AwayBlock;

/* What home shares with reads on other loops. */
typedef struct Away {
    AwayBlock *blocks;
    uint64_t mask;                       /* number of blocks - 1 */
    unsigned block_bits;                 /* entries in a block */
    _Alignas(64) _Atomic unsigned epoch; /* as q->epoch */
    _Atomic unsigned loops;              /* counters from here on were never used */
    struct {
        _Alignas(64) _Atomic uint64_t of_epoch[2];
    } inflight[LIMIT_LOOPS]; /* reads; written by the loop that has the index */
} Away;

struct Qcow2 {
    Node *node;
    Node *file_node;            /* whose contents are in memory */
    struct Qcow2Before *before; /* a reopening; reopen.c */
    Edge *file;
    Edge *data; /* == file unless there is an external data file */
    Qcow2Header header;

    unsigned cluster_bits, l2_bits /* entries per table */, entry_bytes, sub_bits, refcount_order;
    uint64_t cluster_size, sub_size;
    unsigned subclusters;   /* per cluster: 32 or 1 */
    unsigned slice_l2_bits; /* entries per cached slice */
    unsigned slice_rc_bits; /* refcounts per cached slice */
    unsigned block_rc_bits; /* refcounts per refcount block */
    bool extended, data_file, data_raw, has_zero, has_bitmaps;
    bool writable;                         /* everything a writer needs was prepared */
    bool corrupt;                          /* fatal: all further requests are refused */
    bool preallocated, preallocated_known; /* see status.c */
    bool reported;                         /* corruption: later events are suppressed */
    bool incompatible_unsure; /* changing the feature bits has failed: the file may have either */
    bool autoclear_unsure;
    bool refcounts_lag; /* lazy: the image was marked dirty here, refcounts wait for the end */
    bool checking;      /* a check runs: nobody else may change anything */
    bool pass_discard_request, pass_discard_snapshot, pass_discard_other, discard_no_unref, lazy_refcounts;
    unsigned overlap_check; /* META_ kinds that are protected */
    char *data_filename;
    Crypt *crypt;                       /* NULL: not encrypted */
    uint64_t crypt_offset, crypt_bytes; /* the LUKS header's clusters, if there are any */
    _Atomic(Away *) away;               /* from the first read on another loop on */

    uint64_t *l1; /* host order */
    uint32_t l1_entries;
    uint64_t l1_offset;
    uint8_t *l1_dirty; /* a flag per 512 bytes of the table on disk */
    uint32_t l1_dirty_count;
    struct L1Frozen {
        uint32_t sector;
        uint8_t bytes[512];
    } * l1_frozen;
    size_t l1_frozen_count;

    uint64_t *rt; /* refcount table, host order */
    uint32_t rt_entries;
    uint64_t rt_offset;
    uint64_t rt_twice;     /* a block that the table names more than once, which no sound image has; or 0 */
    bool rt_unsure;        /* a change of the table or of its place failed: the file may hold either state */
    uint64_t free_hint;    /* every cluster with a lower index is in use */
    uint64_t fresh_offset; /* nothing at or beyond was ever written */

    Cache l2, refcounts;
    MetaSet meta;
    CoMutex change_lock; /* of what works on the image as a whole, while the node is drained */
    CoMutex l2_lock, refcount_lock, writeback_lock, header_lock;
    List allocs;
    List in_place; /* AllocRanges of writes in place */
    SharedRun writeback, publish;
    bool mapping_unsynced; /* slices were written, but not flushed */
    bool unordered;        /* a mapping in the cache needs something to be durable before it is written */
    bool reserves;         /* somebody wants writes to outlive the process */
    ClusterRun reserve;    /* allocated ahead of use */

    FreeList frees[FREE_STAGES];
    unsigned epoch;
    uint64_t inflight[2];
    bool reclaiming;

    uint64_t compressed_at; /* where the next compressed cluster may go; 0: in a new cluster */

    Inflate *inflate; /* from the first compressed cluster on that is read */
    unsigned packing; /* clusters that are being compressed */
    CoCond packing_room;

    uint8_t *copy_buffers; /* spare copy-on-write buffers, chained through their first bytes */

    uint64_t clean_interval_ns; /* 0: never */
    bool cleaning;
    CoGroup cleaner;

    StoredBitmaps *stored; /* stored.h */
};

/* ---- qcow2.c, open.c ---- */

/* As edge_pread/edge_read, but what lies beyond the end of the file reads as zeroes. */
int child_pread(Edge *edge, uint64_t offset, void *data, size_t bytes) MUST_CHECK;
int child_read(Edge *edge, uint64_t offset, IoSlice dst) MUST_CHECK;
/* Durable when it returns. */
int child_write_durably(Edge *edge, uint64_t offset, const void *data, size_t bytes) MUST_CHECK;
/* Writes zeroes from a buffer: for what must not depend on what the child does about zeroing. */
int child_fill_zeroes(Edge *edge, uint64_t offset, uint64_t bytes) MUST_CHECK;
/* The same, but many of them are left to the child. */
int child_write_zeroes(Edge *edge, uint64_t offset, uint64_t bytes) MUST_CHECK;
/* Reports corruption; fatal: marks the image corrupt and refuses further writes. Returns -EIO. */
int image_corrupt(Qcow2 *q, bool fatal, int64_t offset, int64_t size, const char *fmt, ...) PRINTF(5, 6);
int image_open(Node *node, const BlockdevOptions *options, Error *err) MUST_CHECK;
void image_close(Node *node);
int image_start_writing(Node *node, Error *err) MUST_CHECK;
int image_stop_writing(Node *node, Error *err) MUST_CHECK;
/* Options that can change; those of the caches are put into force by making caches. */
int image_read_options(Qcow2 *q, const BlockdevOptionsQcow2 *o, Error *err) MUST_CHECK;
int image_init_caches(
    Qcow2 *q, const BlockdevOptionsQcow2 *o, Cache *l2, Cache *refcounts, Error *err) MUST_CHECK;
void image_set_slices(Qcow2 *q);
void image_done(Qcow2 *q);
/* Nothing more is done with the image: what the file holds is not what memory says. */
void image_refuse(Qcow2 *q);
/* Builds what only a writer needs: the set of metadata clusters. */
int image_prepare_writes(Qcow2 *q, Error *err) MUST_CHECK;
/* Adds the clusters of a range to those that hold metadata. */
int image_protect(Qcow2 *q, uint64_t offset, uint64_t bytes, unsigned kind) MUST_CHECK;
/* The refcount table, if it is not in memory yet. */
int image_load_reftable(Qcow2 *q) MUST_CHECK;
int image_create(const BlockdevCreateOptions *options, Error *err) MUST_CHECK;
/* Changes incompatible feature bits, durably; nothing is written when they are so already. */
int image_change_incompatible(Qcow2 *q, uint64_t set, uint64_t clear) MUST_CHECK;
/* check.c: compares refcounts and references, and corrects what fix (CheckFix) says. Nothing else uses the
 * image, and nothing in memory waits for being written. */
int check_run(Qcow2 *q, unsigned fix, CheckResult *ret_result, Error *err) MUST_CHECK;
/* The same for a node in use that is drained. */
int check_run_node(Node *node, unsigned fix, CheckResult *ret_result, Error *err) MUST_CHECK;
/* Where a snapshot's L1 table is. */
typedef struct SnapshotPlace {
    uint64_t l1_offset;
    uint32_t l1_entries;
    uint32_t extra_bytes;
} SnapshotPlace;

/* Reads the entry of the snapshot table at *at, and moves behind it; the fields are not judged. */
int snapshot_next(Qcow2 *q, uint64_t *at, SnapshotPlace *ret_place) MUST_CHECK;
/* The table can be there; where it is not, the image may be used as long as the snapshot is not. */
bool snapshot_l1_is_sound(const Qcow2 *q, uint64_t offset, uint32_t entries);
/* Of the whole table, as far as one may reach. */
int snapshot_table_space(Qcow2 *q, uint64_t *ret_bytes) MUST_CHECK;
/* overlap.c: adds the tables of snapshots to the set of metadata. */
int overlap_protect_snapshots(Qcow2 *q, Error *err) MUST_CHECK;
/* There are other snapshots now. */
void overlap_snapshots_changed(Qcow2 *q);
/* Walks the snapshot table. */
int image_check_snapshots(Qcow2 *q, Error *err) MUST_CHECK;
extern const DriverSnapshots qcow2_snapshots;

/* ---- reopen.c ---- */

int image_reopen_prepare(Node *node, const BlockdevOptions *options, Error *err) MUST_CHECK;
void image_reopen_commit(Node *node);
void image_reopen_abort(Node *node);
extern const char *const image_reopen_options[];

/* ---- backing.c ---- */

int image_change_backing_file(Node *node, const char *filename, const char *format) MUST_CHECK;

/* ---- map.c ---- */

/* What a mapping survives. */
typedef enum Kept {
    KEPT_IN_MEMORY,
    KEPT_BY_KERNEL, /* the end of this process */
    KEPT_ON_DISK,   /* a power cut */
} Kept;

/* A run of guest bytes that are stored in one way. */
typedef struct Map {
    Qcow2Type type;
    uint64_t bytes;
    uint64_t host;  /* of the first byte, with a host cluster */
    uint64_t entry; /* L2 entry of the first cluster */
    bool copied;    /* the host clusters belong to this mapping alone */
    Kept kept;
} Map;

/* Looks up at most bytes bytes from offset. For compressed clusters the run ends with the cluster. */
int map_lookup(Qcow2 *q, uint64_t offset, uint64_t bytes, Map *ret_map) MUST_CHECK;
/* The same in a table that is at hand: index is the entry of offset, and the run ends with the table. False:
 * the entry is bad. Any loop. */
bool map_entries(const Qcow2 *q, const uint8_t *table, uint32_t index, uint32_t entries, uint64_t offset,
    uint64_t bytes, Map *ret_map) MUST_CHECK;
/* The entries of a slice from the one of offset on, NULL: there is no table. False: not in memory, even if
 * map_lookup() has just looked at it, as the table may have moved while it waited for the old one. */
bool map_cached_entries(Qcow2 *q, uint64_t offset, const uint8_t **ret_entries) MUST_CHECK;
/* The slice that maps offset, in a table that belongs to the active image alone (made if need be). */
int map_for_write(Qcow2 *q, uint64_t offset, CacheEntry **ret_slice, uint32_t *ret_index) MUST_CHECK;
uint64_t slice_entry(const Qcow2 *q, const uint8_t *table, uint32_t index);
uint64_t slice_subclusters(const Qcow2 *q, const uint8_t *table, uint32_t index);
/* Changes the entry of the cluster with the guest address guest, also where reads on other loops see it. */
void slice_set(
    const Qcow2 *q, uint64_t guest, uint8_t *table, uint32_t index, uint64_t entry, uint64_t subclusters);
/* Drops the reference that an old L2 entry held. */
void map_release(Qcow2 *q, uint64_t entry, bool discard);
void l1_set(Qcow2 *q, uint32_t index, uint64_t entry);
/* Waits if a request in flight changes the mapping of [start, end); true: it waited, look everything up
 * again. */
bool alloc_wait(Qcow2 *q, uint64_t start, uint64_t end);
/* First guest offset in [start, end) that a request in flight changes, or end. */
uint64_t alloc_first(Qcow2 *q, uint64_t start, uint64_t end);
void alloc_begin(Qcow2 *q, AllocRange *range, uint64_t start, uint64_t end);
void alloc_end(AllocRange *range);
/* A write to where the mapping says so; ends with alloc_end(), too. */
void in_place_begin(Qcow2 *q, AllocRange *range, uint64_t start, uint64_t end);
/* Waits for all that have begun in the range: they may still go where the mapping pointed to before. */
void in_place_wait(Qcow2 *q, uint64_t start, uint64_t end);

static inline uint64_t in_cluster(const Qcow2 *q, uint64_t offset)
{
    return offset & (q->cluster_size - 1);
}

/* ---- refcount.c ---- */

/* Up to want contiguous clusters, refcount 1. */
int refcount_alloc(Qcow2 *q, uint64_t want, ClusterRun *ret_run) MUST_CHECK;
/* Gives back what was allocated ahead. */
void refcount_release_reserve(Qcow2 *q);
/* To be called for every step of a search through cached refcounts, which may not wait for anything: lets
 * others run now and then. */
void refcount_breathe(uint64_t *steps, uint64_t worth);
/* Exactly count contiguous clusters. */
int refcount_alloc_exact(Qcow2 *q, uint64_t count, uint64_t *ret_offset) MUST_CHECK;
/* Adds delta to the refcount of one cluster. Hold refcount_lock. */
int refcount_add(Qcow2 *q, uint64_t cluster, int delta, uint64_t *ret_new) MUST_CHECK;
int refcount_read(Qcow2 *q, uint64_t cluster, uint64_t *ret_count) MUST_CHECK;
/* A place for bytes compressed bytes. */
int refcount_alloc_bytes(Qcow2 *q, uint32_t bytes, uint64_t *ret_offset) MUST_CHECK;
/* The slice that holds the refcount of a cluster. No block yet: made with create, else *ret_slice is NULL.
 * Hold refcount_lock with create. */
int refcount_slice(
    Qcow2 *q, uint64_t cluster, bool create, CacheEntry **ret_slice, uint32_t *ret_index) MUST_CHECK;
/* The same in a block that is known. */
int refcount_slice_of(
    Qcow2 *q, uint64_t block, uint64_t cluster, CacheEntry **ret_slice, uint32_t *ret_index) MUST_CHECK;
/* Fails for a table that no allocation should work with. */
int refcount_check_table(Qcow2 *q) MUST_CHECK;
/* refgrow.c: after a failure makes the file say again what memory holds, before anything is built on it. Hold
 * refcount_lock, or keep others out. */
int refcount_settle_table(Qcow2 *q) MUST_CHECK;
/* refgrow.c: makes the block, and if need be a larger table, for a cluster that has none. Hold refcount_lock.
 */
int refcount_grow(Qcow2 *q, uint64_t table_index) MUST_CHECK;
/* Allocates count clusters behind all that is in use, together with the blocks that count them. Hold
 * refcount_lock. */
int refcount_grow_area(Qcow2 *q, uint64_t count, uint64_t *ret_cluster) MUST_CHECK;

/* ---- free.c ---- */

void free_list_push(FreeList *list, FreeRange range);
void free_range(Qcow2 *q, FreeStage stage, uint64_t offset, uint64_t bytes, bool discard);
/* Every request on the data path runs between these. */
unsigned request_begin(Qcow2 *q);
void request_end(Qcow2 *q, unsigned epoch);
void free_move(Qcow2 *q, FreeStage from, FreeStage to);
/* The mapping that dropped the WRITING ranges is durable. */
void free_durable(Qcow2 *q);
/* Gives space of the file back that still belongs to somebody who does not need it. */
void free_punch(Qcow2 *q, uint64_t offset, uint64_t bytes);
/* Decrements what is READY. */
int free_reclaim(Qcow2 *q) MUST_CHECK;

/* ---- clean.c ---- */

/* Something is in memory that can be given back. At home. */
void clean_begin(Qcow2 *q);
/* Waits until nothing is cleaned any more: the node is to be closed, or to leave its home. */
void clean_end(Qcow2 *q);

/* ---- away.c ---- */

/* On another loop than home: what reads need there; NULL without memory. */
Away *away_get(Qcow2 *q);
/* Such a read runs between these. */
_Atomic uint64_t *away_begin(Away *away);
void away_end(_Atomic uint64_t *inflight);
/* As map_lookup(), and what it finds stays as it is on disk until the read ends. */
int away_lookup(Qcow2 *q, Away *away, uint64_t offset, uint64_t bytes, Map *ret_map) MUST_CHECK;

/* At home. The entry of a guest cluster has changed. */
void away_update(const Qcow2 *q, Away *away, uint64_t guest, const uint8_t *entry);
/* Every lookup has to come home. */
void away_forget(Qcow2 *q);
bool away_in_flight(const Qcow2 *q, unsigned epoch);
void away_done(Qcow2 *q);

/* ---- sync.c ---- */

/* Makes all metadata that is dirty now durable, and all data that was written before. */
int sync_writeback(Qcow2 *q) MUST_CHECK;
/* Makes the mapping as it is now survive the end of this process. */
int sync_publish(Qcow2 *q) MUST_CHECK;
int sync_flush(Qcow2 *q) MUST_CHECK;
/* The last one: nothing is in flight; also writes the decrements. */
int sync_close(Qcow2 *q) MUST_CHECK;
int sync_refcounts(Qcow2 *q) MUST_CHECK;

/* One run serves all who wait for it: one that begins after this call covers everything that was done before.
 */
int run_shared(Qcow2 *q, CoMutex *lock, SharedRun *run, int (*fn)(Qcow2 *q)) MUST_CHECK;

/* ---- header.c ---- */

#define QCOW2_SMALL_EXT_BYTES 24u /* data of the extensions that come and go while an image is open */

/* Replaces an extension of the header, or adds it: durable, and in one step. -ENOSPC: the first cluster is
 * full. */
int header_put_extension(Qcow2 *q, uint32_t type, const uint8_t *data) MUST_CHECK;
int header_remove_extension(Qcow2 *q, uint32_t type) MUST_CHECK;
/* Changes a part of the header durably. After a failure the file surely has the old one; where even that is
 * not known, nothing more is done with the image. */
int header_switch(Qcow2 *q, size_t at, const void *new, const void *old, size_t bytes) MUST_CHECK;
/* Writes feature bits durably, if *stored are others. After a failure *unsure tells that the file may have
 * either. */
int header_write_bits(Qcow2 *q, size_t at, uint64_t bits, uint64_t *stored, bool *unsure) MUST_CHECK;
int header_write_autoclear(Qcow2 *q, uint64_t bits) MUST_CHECK;

/* ---- stored*.c, journal.c: dirty bitmaps in the image (stored.h) ---- */

extern const struct DriverBitmaps qcow2_bitmaps;

StoredBitmaps *image_new_bitmaps(void);
/* While the header is read. */
int image_take_bitmaps_extension(Qcow2 *q, const uint8_t *data, uint32_t bytes, Error *err) MUST_CHECK;
void image_take_journal_extension(Qcow2 *q, const uint8_t *data, uint32_t bytes);
/* Makes the bitmaps that the image has; the node has its size. */
int image_load_bitmaps(Qcow2 *q, Error *err) MUST_CHECK;
/* Autoclear feature bits that are true for what was loaded. */
uint64_t image_bitmaps_autoclear(const Qcow2 *q);
/* Part of image_prepare_writes(): nobody else may write where they are. */
int image_protect_bitmaps(Qcow2 *q) MUST_CHECK;
/* Before anything is written to an image that bitmaps were found in. */
int image_settle_found_bitmaps(Qcow2 *q) MUST_CHECK;
/* The node may be written to from now on. */
void image_start_bitmaps(Qcow2 *q);
/* Stores them: the node is about to become inactive or read-only, or to be closed. Nothing is in flight. */
void image_stop_bitmaps(Qcow2 *q);
/* The file refers to all clusters that memory refers to: somebody wants to count. The node is drained. */
int image_settle_bitmaps(Qcow2 *q) MUST_CHECK;
/* Guest data is durable: now and then, also the bitmaps become so. */
void image_flush_bitmaps(Qcow2 *q);
/* Before the size in the header changes; the node is drained. */
int image_prepare_bitmaps_resize(Qcow2 *q, Error *err) MUST_CHECK;
void image_free_bitmaps(Qcow2 *q);
void image_bitmaps_info(const Qcow2 *q, ImageInfoSpecificQCow2 *info);
/* Calls fn for each range of the file that bitmaps and their journal refer to, as it is on disk: whole
 * structures, one reference for each cluster that they touch. Ends with fn's first failure; -EINVAL: a
 * structure is not sound. */
typedef int BitmapWalkFn(void *arg, uint64_t offset, uint64_t bytes);
int image_walk_bitmaps(Qcow2 *q, BitmapWalkFn *fn, void *arg) MUST_CHECK;

/* ---- read.c, write.c, zero.c, compress.c, resize.c: the driver's operations ---- */

int image_read(Node *node, uint64_t offset, IoSlice dst);
int image_write(Node *node, uint64_t offset, IoSlice src, unsigned flags);
int image_write_zeroes(Node *node, uint64_t offset, uint64_t bytes, unsigned flags);
int image_discard(Node *node, uint64_t offset, uint64_t bytes);
int image_status(Node *node, uint64_t offset, uint64_t bytes, BlockStatus *ret_status);
int image_resize(Node *node, uint64_t size, bool exact, Preallocation prealloc, unsigned flags, Error *err);
/* Reads guest bytes within a request. */
int read_range(Qcow2 *q, uint64_t offset, IoSlice dst) MUST_CHECK;
/* True when [offset, offset + bytes) surely reads as zeroes. May wait for a lookup. */
int read_is_zero(Qcow2 *q, uint64_t offset, uint64_t bytes) MUST_CHECK;
int write_range(Qcow2 *q, uint64_t offset, IoSlice src, unsigned flags, Kept *ret_kept) MUST_CHECK;
/* Fails when guest data would overwrite metadata. */
int write_overlap_check(Qcow2 *q, uint64_t host, uint64_t bytes, unsigned ignore_kinds) MUST_CHECK;
/* Writes zeroes as data. */
int zero_data(Qcow2 *q, uint64_t offset, uint64_t bytes) MUST_CHECK;
/* The same, where the range does not read as zeroes already. */
int zero_by_writing(Qcow2 *q, uint64_t offset, uint64_t bytes, unsigned flags) MUST_CHECK;
/* Makes whole clusters read as zeroes (or, with full, as the backing file). */
int zero_clusters(Qcow2 *q, uint64_t offset, uint64_t end, bool unmap) MUST_CHECK;
/* full: as if they had never been written; pass: the space goes back to the file. */
int discard_clusters(Qcow2 *q, uint64_t offset, uint64_t end, bool full, bool pass) MUST_CHECK;
/* prealloc.c: gives the clusters behind the end of the disk their places, up to size; durable, or undone. */
int preallocate(Qcow2 *q, uint64_t size, Preallocation mode, Error *err) MUST_CHECK;
int write_compressed(Qcow2 *q, uint64_t offset, IoSlice src) MUST_CHECK;

/* ---- inflate.c ---- */

/* Copies decompressed bytes of the cluster that entry describes. */
int inflate_read(Qcow2 *q, uint64_t entry, uint64_t skip, IoSlice dst) MUST_CHECK;
/* Whole clusters whose data lies close together. */
#define INFLATE_PIECE 16
#define INFLATE_PIECE_BYTES (512 * KIB) /* of their data, and of what it unpacks to */
typedef struct InflatePiece {
    uint64_t entries[INFLATE_PIECE];
    unsigned count;
    uint64_t start, end; /* of their data in the file */
} InflatePiece;
/* False: not together with those that are in it already. */
bool inflate_piece_add(const Qcow2 *q, InflatePiece *piece, uint64_t entry);
int inflate_piece(Qcow2 *q, const InflatePiece *piece, IoSlice dst) MUST_CHECK;
/* A host cluster is about to hold something else. */
void inflate_forget(Qcow2 *q, uint64_t cluster);
/* Frees the memory of what was not used since the last call; false: nothing is left. */
bool inflate_clean(Qcow2 *q);
void inflate_done(Qcow2 *q);

/* ---- Encryption (crypt.c) ---- */

/* With the header read. options: NULL if none were given. */
int crypt_open(Qcow2 *q, const BlockdevQcow2Encryption *options, Error *err) MUST_CHECK;
void crypt_done(Qcow2 *q);
/* Fails for an image that may only be read. */
int crypt_check_writable(const Qcow2 *q, Error *err) MUST_CHECK;
/* Adds or erases keys. Main loop. */
int crypt_amend(Qcow2 *q, const QCryptoBlockAmendOptions *options, bool force, Error *err) MUST_CHECK;
/* Guest data of an encrypted image at an offset of q->data: whole sectors. Reads: any loop. */
int crypt_read(Qcow2 *q, uint64_t guest, uint64_t host, IoSlice dst);
int crypt_write(Qcow2 *q, uint64_t host, IoSlice src, unsigned flags);
ImageInfoSpecificQCow2Encryption *crypt_info(const Qcow2 *q);

/* For a new image: a header and a volume key; nothing is written. Keeps options. */
int crypt_new(const QCryptoBlockCreateOptions *options, NewCrypt **ret_crypt, Error *err) MUST_CHECK;
uint64_t crypt_new_bytes(const NewCrypt *crypt);
/* Header and first key slot, durably. */
int crypt_new_write(NewCrypt *crypt, Edge *file, uint64_t offset, Error *err) MUST_CHECK;
void crypt_new_free(NewCrypt *crypt);

static inline int data_write(Qcow2 *q, uint64_t host, IoSlice src, unsigned flags)
{
    return UNLIKELY(q->crypt) ? crypt_write(q, host, src, flags) : edge_write(q->data, host, src, flags);
}
