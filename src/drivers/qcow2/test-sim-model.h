/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The simulator of the engine (test-sim.c), its model (test-sim-model.c: what each sector may hold) and its
 * judge of image files (test-sim-image.c: a reader of the format that knows nothing of the engine).
 */
#pragma once

#include "base/macros.h"

#define SECTOR UINT64_C(512)

/* Ends the run of this seed: says what is wrong. */
NORETURN void sim_fail(const char *fmt, ...) PRINTF(1, 2);

/* ---- Model ---- */

/*
 * What a sector holds is a value: 0 (zeroes), a word that fills the sector, or, with VALUE_KEPT, the number
 * of contents that the model keeps. Writes leave versions behind. A version ends when its request does, and
 * it is gone when another one that began later is surely there. What a flush has covered survives a power
 * cut, what was written with REQ_OUTLIVES the end of the process.
 */
#define VALUE_KEPT (UINT64_C(1) << 63)
#define MAX_VERSIONS 12
#define NEVER UINT64_MAX

typedef struct Version {
    uint64_t value;
    uint64_t start, end; /* in the model's time; NEVER: in flight */
    bool sure;           /* it has got there; else it may or may not have */
    bool outlives;       /* the process, once it is sure */
    bool durable;
} Version;

typedef struct Sector {
    Version versions[MAX_VERSIONS];
    unsigned count;
    bool exclusive; /* a request that changes a part of it is in flight */
} Sector;

typedef struct Model {
    Sector *sectors;
    uint64_t capacity;         /* sectors that the disk may have */
    uint64_t size, other_size; /* in sectors; a power cut now may leave either */
    uint64_t now;
    uint64_t reads, reads_since; /* in flight; when the oldest of them may have begun */
    uint8_t (*kept)[SECTOR];
    size_t kept_count, kept_capacity;
} Model;

typedef struct Change {
    uint64_t first, count; /* sectors */
    uint64_t start;        /* names the versions */
    bool edges[2];
} Change;

void model_init(Model *m, uint64_t capacity, uint64_t size);
void model_done(Model *m);
/* The whole of the disk's past, before anything else. */
void model_set_initial(Model *m, uint64_t sector, uint64_t value);
/* Keeps contents as a value. */
uint64_t model_keep(Model *m, const uint8_t *contents);
void model_fill(const Model *m, uint64_t value, uint8_t *contents);

/*
 * A request is about to put data (NULL: zeroes) into bytes [offset, offset + bytes). False: not now, since a
 * sector has too many versions already or others change a part of it. Where the range does not cover a sector
 * as a whole, that must be settled: it holds one known value.
 */
bool model_begin(
    Model *m, uint64_t offset, uint64_t bytes, const uint8_t *data, bool outlives, Change *ret_change);
void model_end(Model *m, const Change *change, bool sure, bool durable);

uint64_t model_begin_read(Model *m);
/* Compares what a read that began then has returned. */
void model_end_read(Model *m, uint64_t began, uint64_t offset, uint64_t bytes, const uint8_t *data);

uint64_t model_begin_flush(Model *m);
void model_end_flush(Model *m, uint64_t began);

/* Resizing: nothing else is in flight. hidden is what shows where a mapping was dropped, for each sector.
 * False: not now, as with model_begin(). */
bool model_begin_resize(Model *m, uint64_t size, const uint64_t *hidden);
void model_end_resize(Model *m, bool done);

/* What each sector of the disk holds, for the caller to free; NULL: that is not known. */
uint64_t *model_values(const Model *m);
/* The disk becomes what it was once, in size, too. model_end() and model_end_resize() follow; false: as with
 * model_begin(). */
bool model_begin_apply(Model *m, uint64_t size, const uint64_t *values, Change *ret_change);

/* Whether a sector may be found so after a crash now: of the host (power), or of the process. */
bool model_survives(const Model *m, uint64_t sector, const uint8_t *contents, bool power);
/* For messages: the versions of a sector. */
const char *model_describe(const Model *m, uint64_t sector);
/* Crashes happen. size: what was found. */
void model_power_cut(Model *m, uint64_t size);
void model_killed(Model *m, uint64_t size);
/* The image was closed, and all is in the file. */
void model_closed(Model *m);

/* ---- Image files ---- */

typedef struct ImageFile {
    const uint8_t *data;
    uint64_t size;
} ImageFile;

typedef struct Image {
    ImageFile file, data, backing; /* data: also without a data file; then as file */
    bool has_data_file;
    const struct SectorCipher *cipher; /* of the data, or NULL */
} Image;

/* Where the LUKS header is. */
void image_key_place(const Image *image, uint64_t *ret_offset, uint64_t *ret_bytes);

typedef struct ImageFacts {
    uint64_t disk_size;
    uint64_t leaks; /* references that nobody holds */
    uint64_t bitmaps;
    uint64_t snapshot_bytes; /* of their table */
    bool dirty;              /* refcounts may be anything */
} ImageFacts;

/* Fails the run unless the image is sound but for leaks; exact: and without any, and with each entry marked
 * as COPIED whose cluster has one reference. */
void image_check(const Image *image, bool exact, ImageFacts *ret_facts);
/* Calls fn for each sector of the disk, but for those that are compressed. */
typedef void ImageSectorFn(void *arg, uint64_t sector, const uint8_t *contents);
void image_sectors(const Image *image, ImageSectorFn *fn, void *arg);

/* A dirty bitmap as a reader of the image has to understand it, the journal included. */
typedef struct ImageBitmap {
    uint32_t granularity;
    bool in_use;
    bool usable; /* what it says can be trusted */
    bool counts; /* it is enabled */
    uint64_t granules;
    uint8_t *dirty; /* for each granule; owned; NULL unless usable */
} ImageBitmap;

/* False: there is none of that name. The image is sound (image_check()). */
bool image_bitmap(const Image *image, const char *name, ImageBitmap *ret_bitmap);
void image_backing_name(const Image *image, char *name, size_t room);
