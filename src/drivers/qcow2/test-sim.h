/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The simulator of the engine: what its files share. test-sim.c: seeds, lives, what is done by hand;
 * test-sim-world.c: images, crashes; test-sim-operations.c: requests; test-sim-bitmaps.c,
 * test-sim-snapshots.c.
 */
#pragma once

#include "crypto/cipher.h"
#include "drivers/qcow2/test-graph.h"
#include "drivers/qcow2/test-sim-model.h"
#include "generated/types.h"

extern const Driver driver_qcow2;

typedef struct Shape {
    bool v2, extended, backing, data_file, raw, lazy, zstd, preallocated, encrypted;
    bool grows; /* to where the refcount table has to become larger, or the first refcount block is full */
    uint64_t cluster, refcount_bits, sectors, backing_sectors;
    uint64_t l2_cache, refcount_cache, slice; /* bytes; 0: default */
    unsigned outlives;                        /* of a hundred writes */
    bool faults, crashes;
} Shape;

#define MAX_SNAPSHOTS 8
#define MAX_BITMAPS 5
#define SIM_NAME_BYTES 240

/* A snapshot, a bitmap: is it in the image? */
typedef enum Stored { STORED_NOT, STORED_MAYBE, STORED_SURE } Stored;

typedef struct SimSnapshot {
    Stored state;
    char name[SIM_NAME_BYTES];
    uint64_t size;    /* sectors */
    uint64_t *values; /* of each */
} SimSnapshot;

typedef struct SimBitmap {
    Stored state;
    bool lost;     /* it is inconsistent: only to be removed */
    bool counts;   /* it is enabled: writes are marked */
    bool changing; /* it may be enabled on disk, or not */
    char name[SIM_NAME_BYTES];
    uint32_t granularity;
    uint8_t *must; /* for each granule: is shown, even after a crash */
    uint8_t *may;  /* for each granule: may be shown */
    uint8_t *last; /* for each granule: whether it was shown when the image was about to be closed; or NULL */
    bool last_counts;
} SimBitmap;

typedef struct Sim {
    Shape shape;
    Model model;
    SectorCipher *cipher; /* of an encrypted image, for its judge */
    Node *node;
    SimSnapshot snapshots[MAX_SNAPSHOTS];
    SimBitmap bitmaps[MAX_BITMAPS];
    uint8_t touched[1024];         /* regions of the disk, since the image was closed */
    bool resized;                  /* since then no write has begun: bitmaps have no journal */
    bool excused;                  /* they may have been lost before the image was opened */
    char names[2][SIM_NAME_BYTES]; /* of the backing file: one of them is in the image */
    bool name_unsure;
    bool crowded;  /* the header's cluster is too small for all that belongs there */
    CoRwLock lock; /* who needs the node for himself writes */
    unsigned left; /* operations */
    unsigned done; /* so far */
    uint64_t next_value;
    bool open;           /* or being opened or closed */
    bool over;           /* this life of the image */
    bool crashed;        /* it has ended by itself */
    bool power;          /* and took the host with it */
    bool blemished;      /* since a crash or a failure there may be leaks */
    uint64_t failures;   /* of the disk, before the image was opened */
    uint64_t faults_end; /* when the disk recovers, in steps */
    uint64_t crash_step;
    bool watched;                   /* something is done that no crash may disturb: look often */
    unsigned watch;                 /* the header has just changed: steps to look at closely */
    uint8_t head[128];              /* as it was */
    MemFile *left_file, *left_data; /* by a crash */
    uint8_t *buffer;                /* the largest request */
} Sim;

typedef struct Operation {
    const char *name;
    unsigned weight;
    bool alone; /* nothing else is in flight */
    void (*run)(Sim *sim);
} Operation;

/* ---- test-sim.c ---- */

/* Takes part in the digest: may not depend on addresses or real time. */
void note(uint64_t a, uint64_t b, uint64_t c);
/* A line of the trace. */
void say(const char *fmt, ...) PRINTF(1, 2);

/* ---- test-sim-world.c ---- */

uint64_t any_of(const uint64_t *choices, size_t count);
#define ANY_OF(...) \
    any_of((const uint64_t[]){__VA_ARGS__}, sizeof((const uint64_t[]){__VA_ARGS__}) / sizeof(uint64_t))
bool one_in(uint64_t n);

extern BlockdevRef any_file;

void draw_shape(Shape *s);
/* Draws what the image is opened with. */
void set_options(const Shape *s);
/* The files of a new image, with the model of what they hold. */
void make_files(Sim *sim);
void open_image(Sim *sim);
/* Without failures, closing loses nothing; nor after a flush. */
void close_image(Sim *sim);
void end_faults(Sim *sim);
/* Before each step of the disk: crashes and recovers as it is due. */
void simulate_step(Sim *sim);
/* After a crash: the host, or the daemon, is started again. */
void recover(Sim *sim);

/* Everything is in the file, and nothing but that. */
void judge_closed(Sim *sim);

/* ---- test-sim-operations.c ---- */

/* Chance decides which. */
const Operation *draw_operation(void);
/* Its number in the digest. */
uint64_t operation_number(const Operation *op);
/* Whether an error has an excuse. */
void expect(Sim *sim, const char *what, int r);
int flush(Sim *sim);
/* Compares the whole disk. */
void read_all(Sim *sim);

/* A name that no snapshot and no bitmap has had, of any length. */
void draw_name(Sim *sim, char *name);
/* Something has been done, well. what: a literal. */
void happened(const char *what);

/* ---- test-sim-bitmaps.c ---- */

void op_bitmap(Sim *sim);
/* Around each change of the disk; bitmaps_end() only if bitmaps_begin() has succeeded. */
int bitmaps_begin(Sim *sim, uint64_t offset, uint64_t bytes) MUST_CHECK;
void bitmaps_end(Sim *sim, uint64_t offset, uint64_t bytes);
/* Bitmaps that only can be removed keep the disk from being resized. */
bool bitmaps_lost(const Sim *sim);
bool bitmaps_may_be_lost(const Sim *sim);
bool bitmaps_any(const Sim *sim);
/* The disk has been resized, or a try has failed. */
void bitmaps_resized(Sim *sim);
/* What would be found if all ended now. */
void bitmaps_judge_crash(Sim *sim, const Image *image);
/* Everything is about to be written and closed; then, it is, without a failure. */
void bitmaps_remember(Sim *sim);
void bitmaps_judge_closed(Sim *sim, const Image *image);
/* The image has been opened; image is what it was before. settled: it will not become another one. */
void bitmaps_compare(Sim *sim, const Image *image, bool settled);
void bitmaps_forget(Sim *sim);

/* ---- test-sim-snapshots.c ---- */

void op_snapshot(Sim *sim);
bool snapshots_any(const Sim *sim);
/* After opening: those that must be there are there. settled: none of them will go. */
void snapshots_compare(Sim *sim, bool settled);
void snapshots_forget(Sim *sim);
