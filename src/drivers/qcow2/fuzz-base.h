/* SPDX-License-Identifier: Apache-2.0 */
/* Sound images of every kind, made by the engine itself, and where in them each field is. */
#pragma once

#include "drivers/qcow2/fuzz-use.h"

#define BASE_SHAPES 24u

typedef enum PlaceKind {
    PLACE_HEADER,
    PLACE_EXTENSION,
    PLACE_L1,
    PLACE_L2,
    PLACE_REFTABLE,
    PLACE_REFBLOCK,
    PLACE_SNAPSHOT, /* the table, and the tables that it names */
    PLACE_BITMAP,   /* the directory, and the tables that it names */
    PLACE_JOURNAL,
    PLACE_LUKS,
    PLACE_COMPRESSED, /* data */
    PLACE_KINDS,
} PlaceKind;

typedef struct Place {
    uint32_t offset;
    uint8_t bytes; /* 1, 2, 4 or 8 */
} Place;

typedef struct Places {
    Place *items;
    size_t count, capacity;
} Places;

typedef struct Base {
    uint8_t *data, *data_file;
    uint64_t bytes, data_file_bytes;
    uint64_t cluster, luks_offset; /* 0: no LUKS header */
    bool encrypted, has_data_file, has_backing;
    Places places[PLACE_KINDS];
} Base;

/* Made once and kept. Aborts when the engine itself finds fault with it. shape < BASE_SHAPES. */
const Base *base_get(unsigned shape);
/* What the image has to be opened with. */
void base_set_options(const Base *base);
