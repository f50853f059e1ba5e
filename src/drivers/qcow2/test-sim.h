/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The simulator of the engine: what its files share. test-sim.c: seeds, lives, what is done by hand;
 * test-sim-world.c: images, crashes; test-sim-operations.c: requests.
 */
#pragma once

#include "drivers/qcow2/test-graph.h"
#include "drivers/qcow2/test-sim-model.h"
#include "generated/types.h"

extern const Driver driver_qcow2;

typedef struct Shape {
    bool v2, extended, backing, data_file, raw, lazy, zstd, preallocated;
    uint64_t cluster, refcount_bits, sectors, backing_sectors;
    uint64_t l2_cache, refcount_cache, slice; /* bytes; 0: default */
    unsigned outlives;                        /* of a hundred writes */
    bool faults, crashes;
} Shape;

#define MAX_SNAPSHOTS 3

typedef enum SnapshotState { SNAPSHOT_NONE, SNAPSHOT_MAYBE, SNAPSHOT_SURE } SnapshotState;

typedef struct SimSnapshot {
    SnapshotState state;
    char name[16];
    uint64_t size;    /* sectors */
    uint64_t *values; /* of each */
} SimSnapshot;

typedef struct Sim {
    Shape shape;
    Model model;
    Node *node;
    SimSnapshot snapshots[MAX_SNAPSHOTS];
    CoRwLock lock; /* who needs the node for himself writes */
    unsigned left; /* operations */
    unsigned done; /* so far */
    uint64_t next_value;
    bool over;           /* this life of the image */
    bool crashed;        /* it has ended by itself */
    bool power;          /* and took the host with it */
    bool blemished;      /* since a crash or a failure there may be leaks */
    uint64_t failures;   /* of the disk, before the image was opened */
    uint64_t faults_end; /* when the disk recovers, in steps */
    uint64_t crash_step;
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

/* ---- test-sim-snapshots.c ---- */

void op_snapshot(Sim *sim);
bool snapshots_any(const Sim *sim);
/* After opening: those that must be there are there. */
void snapshots_compare(Sim *sim);
void snapshots_forget(Sim *sim);
