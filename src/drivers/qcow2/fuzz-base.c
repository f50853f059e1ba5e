/* SPDX-License-Identifier: Apache-2.0 */
#include "drivers/qcow2/fuzz-base.h"

#include "base/mem.h"
#include "crypto/hash.h"
#include "crypto/luks.h"
#include "drivers/qcow2/test-bitmaps.h"
#include "proto/qcow2-bitmap.h"
#include "proto/qcow2-journal.h"

#include <stdlib.h>

#define DISK_BYTES (256 * KIB)
#define PASSWORD "secret" /* secrets are their own ids here */
#define ITERATIONS 1000   /* as few as there may be */
#define MAX_ENTRIES 96    /* places of one table */

extern const Driver driver_qcow2;

typedef struct Shape {
    uint32_t cluster;
    uint8_t refcount_bits; /* 0: version 2 */
    bool extended, zstd, lazy, backing, data_file, raw, luks, preallocated;
    bool bitmaps;
    bool killed; /* while it was open for writing */
} Shape;

static const Shape shapes[BASE_SHAPES] = {
    {512, 16},
    {512, 0},
    {512, 1},
    {512, 64, .lazy = true, .killed = true},
    {1024, 8, .zstd = true},
    {2048, 2, .backing = true},
    {2048, 32, .bitmaps = true},
    {4096, 0, .backing = true},
    {4096, 16, .bitmaps = true},
    {4096, 16, .bitmaps = true, .killed = true},
    {4096, 64, .lazy = true, .bitmaps = true, .killed = true},
    {4096, 16, .data_file = true},
    {4096, 16, .data_file = true, .raw = true, .bitmaps = true},
    {4096, 16, .luks = true},
    {16384, 16, .luks = true, .extended = true, .bitmaps = true, .killed = true},
    {16384, 16, .extended = true, .zstd = true},
    {16384, 4, .extended = true, .backing = true},
    {16384, 16, .extended = true, .data_file = true},
    {16384, 16, .extended = true, .bitmaps = true, .killed = true},
    {32768, 0},
    {32768, 16, .preallocated = true},
    {65536, 16, .bitmaps = true},
    {65536, 16, .zstd = true, .backing = true, .bitmaps = true, .killed = true},
    {65536, 64, .extended = true, .bitmaps = true, .backing = true},
};

static Base bases[BASE_SHAPES];
static BlockdevRef any_file = {.type = BLOCKDEV_REF_KIND_REFERENCE, .u.reference = (char *)"file"};
static BlockdevQcow2Encryption encryption = {
    .format = BLOCKDEV_QCOW2_ENCRYPTION_FORMAT_LUKS, .u.luks.key_secret = (char *)PASSWORD};

static void must(bool condition)
{
    if (!condition)
        abort();
}

/* ---- Making ---- */

static void create(const Shape *s)
{
    AUTO_ERROR Error err = ERROR_INIT;
    BlockdevCreateOptions options = {
        .u.qcow2 = {.file = &any_file,
            .data_file = s->data_file ? &any_file : NULL,
            .has_data_file_raw = s->raw,
            .data_file_raw = s->raw,
            .backing_file = s->backing ? (char *)"backing" : NULL,
            .size = DISK_BYTES,
            .has_version = true,
            .version = s->refcount_bits ? BLOCKDEV_QCOW2_VERSION_V3 : BLOCKDEV_QCOW2_VERSION_V2,
            .has_cluster_size = true,
            .cluster_size = s->cluster,
            .has_refcount_bits = s->refcount_bits,
            .refcount_bits = s->refcount_bits,
            .has_lazy_refcounts = s->lazy,
            .lazy_refcounts = s->lazy,
            .has_preallocation = s->preallocated,
            .preallocation = PREALLOC_MODE_METADATA,
            .has_compression_type = s->zstd,
            .compression_type = QCOW2_COMPRESSION_TYPE_ZSTD,
            .has_extended_l2 = s->extended,
            .extended_l2 = s->extended}};

    must(driver_qcow2.create(&options, &err) == 0);
}

static Node *open_image(void)
{
    AUTO_ERROR Error err = ERROR_INIT;
    Node *node = test_open(false, &err);

    must(node);
    return node;
}

/* Key material may be anything, if the digest is that of the key which comes out of it: here it is all
 * zeroes. */
static void make_luks(LuksHeader *h)
{
    CipherSpec spec = {QCRYPTO_CIPHER_ALGO_AES_128, QCRYPTO_CIPHER_MODE_CBC, QCRYPTO_IV_GEN_ALGO_PLAIN64,
        QCRYPTO_HASH_ALGO_SHA256};
    uint8_t derived[16], key[16];
    Pbkdf2 password = {QCRYPTO_HASH_ALGO_SHA256, (const uint8_t *)PASSWORD, strlen(PASSWORD),
        h->slots[0].salt, LUKS_SALT_BYTES, ITERATIONS};
    Pbkdf2 digest = {QCRYPTO_HASH_ALGO_SHA256, key, sizeof(key), h->digest_salt, LUKS_SALT_BYTES, ITERATIONS};
    AUTO_ERROR Error err = ERROR_INIT;
    AUTO_FREE uint8_t *material = NULL;
    SectorCipher *cipher;

    *h = (LuksHeader){.cipher = "aes", .mode = "cbc-plain64", .hash = "sha256", .key_bytes = sizeof(key)};
    h->digest_iterations = ITERATIONS;
    (void)luks_header_place(h, false);
    h->slots[0].active = true;
    h->slots[0].iterations = ITERATIONS;
    material = mem_zalloc(luks_material_bytes(h));
    pbkdf2_derive(&password, derived, sizeof(derived));
    must(sector_cipher_new(&spec, derived, LUKS_SECTOR_BYTES, &cipher, &err) == 0);
    sector_cipher_decrypt(cipher, 0, material, material, luks_material_bytes(h));
    sector_cipher_free(cipher);
    af_merge(QCRYPTO_HASH_ALGO_SHA256, material, sizeof(key), LUKS_STRIPES, key);
    pbkdf2_derive(&digest, h->digest, LUKS_DIGEST_BYTES);
}

/* The extension goes to where they end now. */
static void put_crypto_extension(Base *base, uint64_t bytes)
{
    uint8_t data[16], *head = mem_file->data;
    size_t at = get_be32(head + 100);

    while (get_be32(head + at))
        at += 8 + align_up(get_be32(head + at + 4), UINT64_C(8));
    put_be64(data, base->luks_offset);
    put_be64(data + 8, bytes);
    must(qcow2_extension_encode(head + at, base->cluster - at, QCOW2_EXT_CRYPTO, data, sizeof(data)));
    put_be32(head + 32, QCOW2_CRYPT_LUKS);
}

static void encrypt(Base *base)
{
    Node *node = open_image();
    uint8_t header[LUKS_HEADER_BYTES];
    LuksHeader luks = {0};
    uint64_t bytes;

    make_luks(&luks);
    bytes = (uint64_t)luks.payload_sector * LUKS_SECTOR_BYTES;
    luks_header_encode(&luks, header);
    must(refcount_alloc_exact(node->state, div_round_up(bytes, base->cluster), &base->luks_offset) == 0);
    test_close(node);
    mem_file_reserve(mem_file, base->luks_offset + align_up(bytes, base->cluster));
    mem_file->size = MAX(mem_file->size, base->luks_offset + align_up(bytes, base->cluster));
    memcpy(mem_file->data + base->luks_offset, header, sizeof(header));
    put_crypto_extension(base, bytes);
    base->encrypted = true;
}

/* ---- Filling ---- */

static void write_at(Node *node, uint64_t offset, uint64_t bytes, int value, unsigned flags)
{
    AUTO_FREE uint8_t *data = mem_zalloc(bytes);
    struct iovec iov;

    memset(data, value, bytes);
    must(test_change_begin(node, offset, bytes) == 0);
    must(driver_qcow2.write(node, offset, io_slice_of(&iov, data, bytes), flags) == 0);
    test_change_end(node, offset, bytes);
}

static void add_bitmap(Node *node, const char *name, uint32_t granularity)
{
    AUTO_ERROR Error err = ERROR_INIT;
    DirtyBitmap *bitmap;

    must(driver_qcow2.bitmaps->can_add(node, name, granularity, &err) == 0);
    must(dirty_bitmap_new(node, name, granularity, &bitmap, &err) == 0);
    dirty_bitmap_set_persistent(bitmap, true);
    must(driver_qcow2.bitmaps->added(node, bitmap, &err) == 0);
}

static void fill(const Shape *s, Node *node)
{
    AUTO_ERROR Error err = ERROR_INIT;
    SnapshotInfo snapshot = {.name = (char *)"first"};

    if (s->bitmaps) {
        add_bitmap(node, "a", 512);
        add_bitmap(node, "b", 65536);
    }
    write_at(node, 0, 5 * KIB, 1, 0);
    write_at(node, 64 * KIB, s->cluster, 2, 0);
    if (!s->luks && !s->data_file && s->refcount_bits != 2) /* no room for a snapshot of these, too */
        for (unsigned i = 0; i < 2; i++)
            write_at(node, 128 * KIB + i * s->cluster, s->cluster, 3 + (int)i, REQ_COMPRESSED);
    if (!s->data_file && s->refcount_bits != 1) {
        must(driver_qcow2.snapshots->create(node, &snapshot, &err) == 0);
        write_at(node, 1 * KIB, 1 * KIB, 5, 0);
    }
    (void)!driver_qcow2.write_zeroes(node, 64 * KIB, s->cluster, 0);
    (void)!driver_qcow2.discard(node, 192 * KIB, s->cluster);
    write_at(node, DISK_BYTES - 1 * KIB, 1 * KIB, 6, 0);
    must(driver_qcow2.flush(node) == 0);
}

static void take(Base *base)
{
    base->bytes = mem_file->size;
    base->data = mem_zalloc(base->bytes);
    memcpy(base->data, mem_file->data, base->bytes);
    if (!base->has_data_file)
        return;
    base->data_file_bytes = mem_data_file->size;
    base->data_file = mem_zalloc(base->data_file_bytes);
    memcpy(base->data_file, mem_data_file->data, base->data_file_bytes);
}

/* ---- Places ---- */

static void add(Base *base, PlaceKind kind, uint64_t offset, unsigned bytes)
{
    Places *places = &base->places[kind];

    if (offset + bytes > base->bytes)
        return;
    VEC_GROW(places->items, places->count, places->capacity);
    places->items[places->count++] = (Place){(uint32_t)offset, (uint8_t)bytes};
}

/* Fields of 1, 2, 4 and 8 bytes, one after the other; a letter for each. Returns where they end. */
static uint64_t add_fields(Base *base, PlaceKind kind, uint64_t offset, const char *layout)
{
    for (; *layout; layout++) {
        unsigned bytes = *layout == 'Q' ? 8 : *layout == 'I' ? 4 : *layout == 'H' ? 2 : 1;

        add(base, kind, offset, bytes);
        offset += bytes;
    }
    return offset;
}

static void add_words(Base *base, PlaceKind kind, uint64_t offset, uint64_t count)
{
    for (uint64_t i = 0; i < MIN(count, (uint64_t)MAX_ENTRIES); i++)
        add(base, kind, offset + i * 8, 8);
}

static uint64_t word_at(const Base *base, uint64_t offset)
{
    return offset + 8 <= base->bytes ? get_be64(base->data + offset) : 0;
}

static bool has_data_at(const Base *base, uint64_t entry)
{
    return (entry & QCOW2_COMPRESSED) && base->cluster <= 64 * KIB;
}

/* Words that say something, and a few that are empty. */
static void add_l2(Base *base, PlaceKind kind, uint64_t table)
{
    unsigned empty = 4;

    for (uint64_t at = table; at < table + base->cluster; at += 8) {
        uint64_t entry = word_at(base, at);

        if (entry ? base->places[kind].count < 4 * MAX_ENTRIES : empty && empty--)
            add(base, kind, at, 8);
        if (has_data_at(base, entry))
            add_words(base, PLACE_COMPRESSED,
                qcow2_compressed_decode(entry, (unsigned)__builtin_ctzll(base->cluster)).offset &
                    ~UINT64_C(7),
                4);
    }
}

static void add_l1(Base *base, PlaceKind kind, PlaceKind l2_kind, uint64_t offset, uint64_t entries)
{
    add_words(base, kind, offset, entries);
    for (uint64_t i = 0; i < entries; i++)
        if (word_at(base, offset + i * 8) & QCOW2_OFFSET_MASK)
            add_l2(base, l2_kind, word_at(base, offset + i * 8) & QCOW2_OFFSET_MASK);
}

static void add_snapshots(Base *base, uint64_t at, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *entry = base->data + (at = align_up(at, UINT64_C(8)));
        uint64_t extra = get_be32(entry + 36), texts = get_be16(entry + 12) + get_be16(entry + 14);

        at = add_fields(base, PLACE_SNAPSHOT, at, "QIHHIIQII");
        add_words(base, PLACE_SNAPSHOT, at, extra / 8);
        add_l1(base, PLACE_SNAPSHOT, PLACE_SNAPSHOT, get_be64(entry), get_be32(entry + 8));
        at += extra + texts;
    }
}

static void add_bitmaps(Base *base, uint64_t directory, uint64_t bytes)
{
    AUTO_ERROR Error err = ERROR_INIT;
    size_t offset = 0, before = 0;
    Qcow2BitmapEntry entry;

    while (qcow2_bitmap_entry_next(base->data + directory, bytes, &offset, &entry, &err) == 1) {
        uint64_t name = add_fields(base, PLACE_BITMAP, directory + before, "QIIBBHI");

        add_fields(base, PLACE_BITMAP, name, "B");
        add_words(base, PLACE_BITMAP, entry.table_offset, entry.table_entries + 1);
        add_words(base, PLACE_BITMAP, word_at(base, entry.table_offset) & QCOW2_BITMAP_OFFSET_MASK, 2);
        before = offset;
    }
}

static void add_journal(Base *base, uint64_t log)
{
    (void)add_fields(base, PLACE_JOURNAL, log, "QIIQQQQQQ");
    add_words(base, PLACE_JOURNAL, log + QCOW2_JOURNAL_AT_SLOTS, 4);
    add_words(base, PLACE_JOURNAL, log + QCOW2_JOURNAL_PAGE_BYTES, 8);
}

static void add_extensions(Base *base)
{
    uint64_t at = get_be32(base->data + 4) == 2 ? QCOW2_HEADER_V2_BYTES : get_be32(base->data + 100);

    for (uint32_t magic = 1, bytes; magic && at + 8 <= base->cluster;
         at += align_up((uint64_t)bytes, UINT64_C(8))) {
        const uint8_t *data = base->data + at + 8;

        magic = get_be32(base->data + at);
        bytes = get_be32(base->data + at + 4);
        at = add_fields(base, PLACE_EXTENSION, at, "II");
        if (magic == QCOW2_EXT_BITMAPS)
            (void)add_fields(base, PLACE_EXTENSION, at, "IIQQ");
        else if (magic == QCOW2_EXT_JOURNAL)
            (void)add_fields(base, PLACE_EXTENSION, at, "IIQQ");
        else
            add_words(base, PLACE_EXTENSION, at, MIN(bytes / 8, 4u));
        if (magic == QCOW2_EXT_BITMAPS)
            add_bitmaps(base, get_be64(data + 16), get_be64(data + 8));
        if (magic == QCOW2_EXT_JOURNAL)
            add_journal(base, get_be64(data + 8));
    }
}

/* All but the iterations: what they may ask for takes longer than a run of the fuzzer has. */
static void add_luks(Base *base)
{
    uint64_t at = add_fields(base, PLACE_LUKS, base->luks_offset, "IHH");

    for (unsigned i = 0; i < 3; i++) /* names */
        add_words(base, PLACE_LUKS, at + i * LUKS_NAME_BYTES, 2);
    (void)add_fields(base, PLACE_LUKS, at + 3 * LUKS_NAME_BYTES, "IIQQ");
    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        add(base, PLACE_LUKS, base->luks_offset + 208 + i * 48, 4);
        (void)add_fields(base, PLACE_LUKS, base->luks_offset + 208 + i * 48 + 40, "II");
    }
}

static void find_places(Base *base)
{
    const uint8_t *h = base->data;

    (void)add_fields(base, PLACE_HEADER, 0, "IIQIIQIIQQIIQ");
    if (get_be32(h + 4) > 2)
        (void)add_fields(base, PLACE_HEADER, QCOW2_HEADER_V2_BYTES, "QQQIIB");
    add_extensions(base);
    add_l1(base, PLACE_L1, PLACE_L2, get_be64(h + 40), get_be32(h + 36));
    add_words(base, PLACE_REFTABLE, get_be64(h + 48), 8);
    add_words(base, PLACE_REFBLOCK, word_at(base, get_be64(h + 48)), base->cluster / 8);
    add_snapshots(base, get_be64(h + 64), get_be32(h + 60));
    if (base->luks_offset)
        add_luks(base);
}

/* ---- All of it ---- */

void base_set_options(const Base *base)
{
    mem_options = (BlockdevOptionsQcow2){
        .data_file = base->has_data_file ? &any_file : NULL, .encrypt = base->encrypted ? &encryption : NULL};
}

static void make(void *arg)
{
    Base *base = arg;
    const Shape *s = &shapes[base - bases];
    Node *node;

    base_set_options(&(Base){0});
    create(s);
    base->cluster = s->cluster;
    base->has_data_file = s->data_file;
    base->has_backing = s->backing;
    base_set_options(base);
    if (s->luks)
        encrypt(base);
    base_set_options(base);
    node = open_image();
    fill(s, node);
    if (s->killed)
        take(base);
    test_close(node);
    if (!s->killed)
        take(base);
    find_places(base);
}

const Base *base_get(unsigned shape)
{
    Base *base = &bases[shape];
    uint8_t backing[8192] = {0};

    if (base->data)
        return base;
    memset(backing, 7, sizeof(backing) / 2);
    test_random_seed(shape + 1);
    mem_limit = 8 * MIB;
    mem_yields = false;
    mem_file = mem_file_new(NULL, 0, false);
    mem_data_file = shapes[shape].data_file ? mem_file_new(NULL, 0, false) : NULL;
    mem_backing = mem_file_new(backing, sizeof(backing), false);
    test_run(make, base);
    mem_file_free(mem_file);
    mem_file_free(mem_data_file);
    mem_file_free(mem_backing);
    mem_yields = true;
    return base;
}
