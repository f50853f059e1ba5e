/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A block graph in memory for tests of the engine: stands in for block/. Files remember what has been written
 * since the last flush, so that a test can cut the power. Requests let other coroutines run at random.
 *
 * test-sched.c stands in for the loop: one thread, no time. Tests that need real loops do without it.
 */
#pragma once

#include "drivers/qcow2/qcow2-priv.h"
#include "generated/types.h"

typedef struct MemWrite {
    uint64_t offset, bytes;
    uint8_t *data;
    uint64_t number; /* never used twice, unlike the place of the data */
    bool completed;
} MemWrite;

typedef struct MemFile {
    uint8_t *data;    /* as requests see it */
    uint8_t *durable; /* what a flush has made safe; NULL: not recorded */
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
/* How many of a thousand writes and flushes fail, without any effect. */
extern unsigned mem_faults;
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
/* Lets other coroutines run, mostly for a moment. */
void test_pause(void);

/* Opens mem_file with the driver; NULL with err set. */
Node *test_open(bool read_only, Error *err);
void test_close(Node *node);
/* test-sched.c: runs fn(arg) in a coroutine of a scheduler of its own. */
void test_run(void (*fn)(void *arg), void *arg);
