/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sound images with a few fields changed. Input: the kind of image (fuzz-base.h), a seed for the requests,
 * how it is used (use_of()), then edits of 8 bytes: kind of field, which one (2 bytes), what happens to it,
 * and 4 bytes for that. With FUZZ_BITMAPS only images with bitmaps, whose directory, tables and journal are
 * changed. Run it with -close_fd_mask=2.
 */
#include "base/mem.h"
#include "drivers/qcow2/fuzz-base.h"

#define HEAD_BYTES 3
#define EDIT_BYTES 8
#define MAX_EDITS 12
#define MAX_FILE_BYTES (8 * MIB)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const PlaceKind kinds[] = {
#ifdef FUZZ_BITMAPS
    PLACE_BITMAP,
    PLACE_JOURNAL,
    PLACE_EXTENSION,
    PLACE_BITMAP,
    PLACE_L2,
    PLACE_REFBLOCK,
    PLACE_BITMAP,
    PLACE_JOURNAL,
#else
    PLACE_HEADER,
    PLACE_EXTENSION,
    PLACE_L1,
    PLACE_L2,
    PLACE_REFTABLE,
    PLACE_REFBLOCK,
    PLACE_SNAPSHOT,
    PLACE_BITMAP,
    PLACE_JOURNAL,
    PLACE_LUKS,
    PLACE_COMPRESSED,
#endif
};

static const uint64_t interesting[] = {0, 1, 2, 3, 4, 8, 9, 16, 21, 22, 63, 64, 255, 511, 512, 513, 1023,
    1024, 1025, 4095, 4096, 0x7fff, 0x8000, 0xffff, 0x10000, 0x7fffffff, 0x80000000, 0xfffffff8, 0xffffffff,
    UINT64_C(1) << 32, UINT64_C(1) << 40, (UINT64_C(1) << 56) - 512, UINT64_C(1) << 56, UINT64_C(1) << 61,
    UINT64_C(1) << 62, UINT64_C(1) << 63, INT64_MAX, INT64_MAX - 511, UINT64_MAX - 65535, UINT64_MAX};

enum {
    EDIT_INTERESTING,
    EDIT_FLIP,
    EDIT_ADD,
    EDIT_COPY,  /* another field */
    EDIT_POINT, /* to another field's cluster */
    EDIT_END,   /* to where the file ends */
    EDIT_LOW,
    EDIT_HIGH,
    EDIT_CLUSTERS,
    EDIT_FILE_SIZE, /* the file's own */
    EDITS,
};

static uint64_t get_field(const uint8_t *at, unsigned bytes)
{
    uint64_t value = 0;

    for (unsigned i = 0; i < bytes; i++)
        value = value << 8 | at[i];
    return value;
}

static void put_field(uint8_t *at, unsigned bytes, uint64_t value)
{
    for (unsigned i = bytes; i-- > 0; value >>= 8)
        at[i] = (uint8_t)value;
}

/* Whatever the number, there is one: every image has a header. */
static const Place *place_of(const Base *base, unsigned kind, unsigned index)
{
    const Places *places = &base->places[kinds[kind % ARRAY_SIZE(kinds)]];

    if (!places->count)
        places = &base->places[PLACE_HEADER];
    return &places->items[index % places->count];
}

static uint64_t edited(const Base *base, const uint8_t *edit, uint64_t old)
{
    uint32_t arg = get_be32(edit + 4);
    const Place *other = place_of(base, arg & 0xff, arg >> 8 & 0xffff);

    switch (edit[3] % EDITS) {
    case EDIT_INTERESTING:
        return interesting[arg % ARRAY_SIZE(interesting)];
    case EDIT_FLIP:
        return old ^ UINT64_C(1) << arg % 64;
    case EDIT_ADD:
        return old + (uint64_t)(int64_t)(int32_t)arg;
    case EDIT_COPY:
        return get_field(base->data + other->offset, other->bytes);
    case EDIT_POINT:
        return align_down(other->offset, base->cluster) | (uint64_t)(arg >> 30) << 62;
    case EDIT_END:
        return base->bytes + base->cluster * (uint64_t)(int64_t)(int8_t)arg;
    case EDIT_LOW:
        return arg;
    case EDIT_HIGH:
        return (uint64_t)arg << 32 | (uint32_t)old;
    default:
        return old + base->cluster * (uint64_t)(int64_t)(int8_t)arg;
    }
}

static void apply(const Base *base, const uint8_t *edit)
{
    const Place *place = place_of(base, edit[0], get_be16(edit + 1));
    uint8_t *at = mem_file->data + place->offset;

    if (edit[3] % EDITS != EDIT_FILE_SIZE) {
        put_field(at, place->bytes, edited(base, edit, get_field(at, place->bytes)));
        return;
    }
    /* What was edited behind a shorter end shows when the file grows again, as on a real disk it would not.
     */
    mem_file->size = MIN(base->bytes - 512 + get_be16(edit + 6) % 1024, (uint64_t)mem_file->capacity);
}

static const Base *choose(uint8_t choice)
{
#ifdef FUZZ_BITMAPS
    static const uint8_t with_bitmaps[] = {6, 8, 9, 10, 12, 14, 18, 21, 22, 23};

    return base_get(with_bitmaps[choice % ARRAY_SIZE(with_bitmaps)]);
#else
    return base_get(choice % BASE_SHAPES);
#endif
}

static void run(void *arg)
{
    use_image(arg);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t backing[8192] = {9};
    const Base *base;
    Use use;

    if (size < HEAD_BYTES)
        return 0;
    base = choose(data[0]);
    use = use_of(data[2]);
    use.bitmaps = true;
    test_random_seed(data[1] + 1);
    mem_limit = MAX_FILE_BYTES;
    mem_file = mem_file_new(base->data, base->bytes, false);
    mem_data_file = base->has_data_file ? mem_file_new(base->data_file, base->data_file_bytes, false) : NULL;
    mem_backing = mem_file_new(backing, sizeof(backing), false);
    base_set_options(base);
    for (size_t at = HEAD_BYTES, n = 0; at + EDIT_BYTES <= size && n < MAX_EDITS; at += EDIT_BYTES, n++)
        apply(base, data + at);
    test_run(run, &use);
    mem_file_free(mem_file);
    mem_file_free(mem_data_file);
    mem_file_free(mem_backing);
    return 0;
}
