/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A block graph in memory for tests of the engine: stands in for block/. Files remember what has been written
 * since the last flush, so that a test can cut the power: of what was not flushed, a cut leaves any sectors.
 *
 * test-sched.c stands in for the loop and its clock: one thread, requests end in random order, time passes
 * when they do. Tests that need real loops do without it. All chance comes from test_random(), so a seed
 * repeats a run.
 */
#pragma once

#include "drivers/qcow2/qcow2-priv.h"
#include "generated/types.h"

typedef struct MemWrite {
    uint64_t offset, bytes; /* whole sectors */
    uint8_t *data;          /* what they held when it was done */
    uint64_t number;        /* never used twice, unlike the place of the data */
    uint64_t file_size;     /* when it was done */
    bool completed, covered /* by a flush that has begun */;
} MemWrite;

typedef struct MemFile {
    uint8_t *data;            /* as requests see it */
    uint8_t *durable;         /* what a flush has made safe; NULL: not recorded */
    uint64_t *durable_number; /* of the last write that is in there, for each sector */
    uint64_t durable_size;
    _Atomic uint64_t size;
    uint64_t capacity;
    MemWrite *writes; /* since then */
    size_t write_count, write_capacity;
} MemFile;

/* The children that open() gets by name ("file", "data-file", "backing"), and what create() writes to. */
extern MemFile *mem_file, *mem_data_file, *mem_backing;
/* What the next image is opened with; the file comes by itself. */
extern BlockdevOptionsQcow2 mem_options;
/* Largest size that a file may grow to; beyond: -ENOSPC. */
extern uint64_t mem_limit;
/* Files are devices: they do not become smaller. */
extern bool mem_device;
/* How many of a thousand writes and flushes fail, and of reads. Without any effect; unless partial, then a
 * part of a write may have been done. */
extern unsigned mem_faults, mem_read_faults;
extern bool mem_partial_faults;
/* From now on every request fails, those in flight included. */
extern bool mem_dead;
/* Requests that have failed so far. */
extern uint64_t mem_failures;
/* False: requests do not yield. */
extern bool mem_yields;
/* Corruptions that were reported. */
extern unsigned mem_corruptions;

MemFile *mem_file_new(const void *data, uint64_t size, bool record);
void mem_file_free(MemFile *file);
/* Has room for size bytes from now on. */
void mem_file_reserve(MemFile *file, uint64_t size);
/* What may be found after a power cut: everything durable, and of the rest any part. */
MemFile *mem_file_cut(const MemFile *file);

uint64_t test_random(uint64_t below);
/* Each thread has numbers of its own. */
void test_random_seed(uint64_t seed);
/* Waits for the disk: others run, for as long as chance has it. The test or test-sched.c says how. */
void test_pause(void);

/* Opens mem_file with the driver; NULL with err set. */
Node *test_open(bool read_only, Error *err);
/* The same, to be checked only. */
Node *test_open_for_check(bool read_only, Error *err);
void test_close(Node *node);
/* test-sched.c: runs fn(arg) in a coroutine of a scheduler of its own. */
void test_run(void (*fn)(void *arg), void *arg);
/* test-sched.c: the clock goes on. */
void test_pass_time(uint64_t ns);
/* test-sched.c: called before each step of the disk, outside of all coroutines; may be NULL. */
extern void (*test_on_step)(void);
/* test-sched.c: steps that the disk has made. */
extern uint64_t test_steps;
