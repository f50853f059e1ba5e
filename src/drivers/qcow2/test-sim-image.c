/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads and judges an image file, by the format's specification and nothing else: no cache, no cleverness, no
 * code of the engine. See test-sim-model.h.
 */
#include "drivers/qcow2/test-sim-model.h"

#include "base/endian.h"
#include "base/mem.h"
#include "crypto/cipher.h"

#include <inttypes.h>
#include <string.h>

#define OFFSET UINT64_C(0x00fffffffffffe00)
#define COPIED (UINT64_C(1) << 63)
#define COMPRESSED (UINT64_C(1) << 62)

typedef struct Judge {
    const Image *image;
    const uint8_t *file;
    uint64_t size, cluster, clusters, disk_size;
    unsigned cluster_bits, refcount_order;
    unsigned table_bits; /* entries of an L2 table */
    bool old /* version 2 */, extended, exact, dirty;
    uint64_t l1, l1_entries, table, table_entries;
    uint64_t snapshots, snapshots_at, snapshot_bytes;
    uint64_t bitmaps, directory, directory_bytes; /* bitmaps 0: there are none, whatever lies in the file */
    const uint8_t *log;                           /* of the bitmaps' journal; NULL: none that is valid */
    uint16_t *references;                         /* found, for each cluster */
} Judge;

static uint64_t entry_at(const Judge *j, uint64_t offset)
{
    return offset + 8 <= j->size ? get_be64(j->file + offset) : 0;
}

/* Where the data of a header extension are; NULL: it is not there. */
static const uint8_t *find_extension(const Judge *j, uint32_t type, uint64_t bytes)
{
    uint64_t at = j->old ? 72 : get_be32(j->file + 100), backing = get_be64(j->file + 8);
    uint64_t end = MIN(backing ? backing : j->cluster, j->size);

    while (at + 8 <= end && get_be32(j->file + at)) {
        uint64_t length = get_be32(j->file + at + 4);

        if (length > end - at - 8)
            sim_fail("a header extension is too long");
        if (get_be32(j->file + at) == type && length == bytes)
            return j->file + at + 8;
        at += 8 + align_up(length, 8);
    }
    return NULL;
}

static void find_bitmaps(Judge *j)
{
    uint64_t autoclear = j->old ? 0 : get_be64(j->file + 88), log;
    const uint8_t *ext = autoclear & 1 ? find_extension(j, 0x23852875, 24) : NULL;

    if ((autoclear & 1) && !ext)
        sim_fail("bitmaps are said to be there, but not where");
    if (!ext)
        return;
    j->bitmaps = get_be32(ext);
    j->directory_bytes = get_be64(ext + 8);
    j->directory = get_be64(ext + 16);
    ext = autoclear >> 55 & 1 ? find_extension(j, 0x47724a6c, 24) : NULL;
    if (!ext)
        return;
    log = get_be64(ext + 8);
    if (out_of_range(log, 8192, j->size) || memcmp(j->file + log, "GrnBmLog", 8) != 0)
        sim_fail("the journal of the bitmaps is not a journal");
    if (get_be64(j->file + log + 16) == j->disk_size)
        j->log = j->file + log;
}

static void read_head(Judge *j, const Image *image)
{
    const uint8_t *h = image->file.data;
    uint64_t incompatible;

    *j = (Judge){.image = image, .file = h, .size = image->file.size};
    if (j->size < 104 || get_be32(h) != 0x514649fb)
        sim_fail("the file has no header");
    j->old = get_be32(h + 4) == 2;
    j->cluster_bits = get_be32(h + 20);
    j->cluster = UINT64_C(1) << j->cluster_bits;
    j->clusters = div_round_up(j->size, j->cluster);
    j->disk_size = get_be64(h + 24);
    j->l1_entries = get_be32(h + 36);
    j->l1 = get_be64(h + 40);
    j->table = get_be64(h + 48);
    j->snapshots = get_be32(h + 60);
    j->snapshots_at = get_be64(h + 64);
    j->table_entries = get_be32(h + 56) * j->cluster / 8;
    incompatible = j->old ? 0 : get_be64(h + 72);
    j->dirty = incompatible & 1;
    j->extended = incompatible & 16;
    j->table_bits = j->cluster_bits - (j->extended ? 4 : 3);
    j->refcount_order = j->old ? 4 : get_be32(h + 96);
    if (incompatible & 2)
        sim_fail("the image is marked corrupt");
    if (!!(incompatible & 4) != image->has_data_file)
        sim_fail("the image has lost its data file, or found one");
}

/* ---- References ---- */

static void refer(Judge *j, uint64_t offset, uint64_t count, const char *what, uint64_t index)
{
    if (offset & (j->cluster - 1))
        sim_fail("%s %" PRIu64 ": place %#" PRIx64 " is not aligned", what, index, offset);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t cluster = (offset >> j->cluster_bits) + i;

        if (cluster >= j->clusters)
            sim_fail("%s %" PRIu64 ": place %#" PRIx64 " is not in the file (%#" PRIx64 " bytes)", what,
                index, offset, j->size);
        j->references[cluster]++;
    }
}

static void refer_once(Judge *j, uint64_t offset, uint64_t count, const char *what, uint64_t index)
{
    refer(j, offset, count, what, index);
    for (uint64_t i = 0; i < count; i++)
        if (j->references[offset / j->cluster + i] != 1)
            sim_fail("%s %" PRIu64 ": cluster %#" PRIx64 " is used for something else, too", what, index,
                offset + i * j->cluster);
}

/* Sectors of 512 bytes, from any byte on: each cluster that they touch. */
static void refer_compressed(Judge *j, uint64_t entry, uint64_t index)
{
    unsigned bits = 62 - (j->cluster_bits - 8);
    uint64_t offset = entry & ((UINT64_C(1) << bits) - 1);
    uint64_t sectors = ((entry & (COMPRESSED - 1)) >> bits) + 1,
             last = offset + sectors * 512 - offset % 512 - 1;

    if (entry & COPIED)
        sim_fail("cluster %" PRIu64 " is compressed and COPIED", index);
    for (uint64_t c = offset / j->cluster; c <= last / j->cluster; c++)
        refer(j, c * j->cluster, 1, "compressed cluster", index);
}

static uint64_t refcount_of(const Judge *j, uint64_t cluster)
{
    unsigned block_bits = j->cluster_bits + 3 - j->refcount_order;
    uint64_t index = cluster >> block_bits, block, at, value = 0;
    unsigned bits = 1U << j->refcount_order;

    block = index < j->table_entries ? entry_at(j, j->table + index * 8) : 0;
    if (!block)
        return 0;
    at = (cluster & ((UINT64_C(1) << block_bits) - 1)) * bits;
    if (bits < 8)
        return j->file[block + at / 8] >> at % 8 & ((1U << bits) - 1);
    for (unsigned i = 0; i < bits / 8; i++)
        value = value << 8 | (block + at / 8 + i < j->size ? j->file[block + at / 8 + i] : 0);
    return value;
}

/* ---- Entries ---- */

static uint64_t l2_entry(const Judge *j, uint64_t guest, uint64_t *ret_subs)
{
    uint64_t index = guest >> j->table_bits, in_table = guest & ((UINT64_C(1) << j->table_bits) - 1);
    uint64_t l1 = index < j->l1_entries ? entry_at(j, j->l1 + index * 8) & OFFSET : 0;
    uint64_t at = l1 + in_table * (j->extended ? 16 : 8);

    *ret_subs = l1 && j->extended ? entry_at(j, at + 8) : 0;
    return l1 ? entry_at(j, at) : 0;
}

static void check_subclusters(const Judge *j, uint64_t guest, uint64_t entry, uint64_t subs)
{
    if (!j->extended)
        return;
    if ((entry & COMPRESSED) && subs)
        sim_fail("cluster %" PRIu64 " is compressed and has subclusters", guest);
    if (subs & subs >> 32)
        sim_fail("cluster %" PRIu64 ": subclusters %#" PRIx64 " are both data and zeroes", guest, subs);
    if ((subs & UINT32_MAX) && !(entry & OFFSET) && !(j->image->has_data_file && (entry & COPIED)))
        sim_fail("cluster %" PRIu64 ": subclusters without a cluster", guest);
}

static void refer_guest(Judge *j, uint64_t guest)
{
    uint64_t subs, entry = l2_entry(j, guest, &subs), host = entry & OFFSET;

    check_subclusters(j, guest, entry, subs);
    if (entry & COMPRESSED) {
        refer_compressed(j, entry, guest);
        return;
    }
    if ((entry & 1) && (j->old || j->extended))
        sim_fail("cluster %" PRIu64 ": entry %#" PRIx64 " has a bit that it may not have", guest, entry);
    if (!j->image->has_data_file && host)
        refer(j, host, 1, "cluster", guest);
    if (j->image->has_data_file && host && host != guest * j->cluster)
        sim_fail("cluster %" PRIu64 " lies at %#" PRIx64 " of the data file", guest, host);
}

/* After all references are known. */
static void check_copied(const Judge *j, uint64_t entry, const char *what, uint64_t index)
{
    uint64_t cluster = (entry & OFFSET) >> j->cluster_bits;

    if ((entry & COMPRESSED) || !(entry & OFFSET))
        return;
    if ((entry & COPIED) && j->references[cluster] != 1)
        sim_fail("%s %" PRIu64 " is COPIED, but its cluster %#" PRIx64 " is used %u times", what, index,
            entry & OFFSET, j->references[cluster]);
    if (j->exact && !(entry & COPIED) && refcount_of(j, cluster) == 1)
        sim_fail("%s %" PRIu64 " is not COPIED, but its cluster has one reference", what, index);
}

/* ---- Snapshots ---- */

/* All that an L1 table leads to. */
static void refer_tree(Judge *j)
{
    uint64_t per_table = UINT64_C(1) << j->table_bits;

    for (uint64_t i = 0; i < j->l1_entries; i++)
        for (uint64_t k = 0; (entry_at(j, j->l1 + i * 8) & OFFSET) && k < per_table; k++)
            refer_guest(j, i * per_table + k);
}

static void refer_snapshot(const Judge *j, uint64_t at, uint64_t index)
{
    Judge s = *j;

    s.l1 = entry_at(j, at);
    s.l1_entries = get_be32(j->file + at + 8);
    refer_once(&s, s.l1, div_round_up(s.l1_entries * 8, s.cluster), "L1 table of snapshot", index);
    for (uint64_t i = 0; i < s.l1_entries; i++)
        if (entry_at(&s, s.l1 + i * 8) & OFFSET)
            refer(&s, entry_at(&s, s.l1 + i * 8) & OFFSET, 1, "L2 table of snapshot", index);
    refer_tree(&s);
}

static void refer_snapshots(Judge *j)
{
    uint64_t at = j->snapshots_at;

    for (uint64_t i = 0; i < j->snapshots; i++) {
        const uint8_t *entry = j->file + at;

        if (out_of_range(at, 40, j->size))
            sim_fail("snapshot %" PRIu64 " is not in the file", i);
        refer_snapshot(j, at, i);
        at = align_up(at + 40 + get_be32(entry + 36) + get_be16(entry + 12) + get_be16(entry + 14), 8);
    }
    j->snapshot_bytes = at - j->snapshots_at;
    if (j->snapshots)
        refer_once(j, j->snapshots_at, div_round_up(at - j->snapshots_at, j->cluster), "snapshot table", 0);
}

/* ---- Bitmaps ---- */

/* The next entry of the directory, as bytes. */
static const uint8_t *next_bitmap(const Judge *j, const uint8_t *entry)
{
    return entry + align_up(24 + get_be32(entry + 20) + get_be16(entry + 18), 8);
}

static uint64_t bitmap_granules(const Judge *j, const uint8_t *entry)
{
    return div_round_up(j->disk_size, UINT64_C(1) << entry[17]);
}

static void refer_bitmap(Judge *j, const uint8_t *entry, uint64_t index)
{
    uint64_t table = get_be64(entry), entries = get_be32(entry + 8);

    refer_once(j, table, div_round_up(entries * 8, j->cluster), "bitmap table", index);
    for (uint64_t i = 0; i < entries; i++)
        if (entry_at(j, table + i * 8) & OFFSET)
            refer_once(j, entry_at(j, table + i * 8) & OFFSET, 1, "data of bitmap", index);
}

static void refer_bitmaps(Judge *j)
{
    const uint8_t *entry = j->file + j->directory, *end = entry + j->directory_bytes;

    if (!j->bitmaps)
        return;
    if (out_of_range(j->directory, j->directory_bytes, j->size))
        sim_fail("the directory of the bitmaps is not in the file");
    refer_once(j, j->directory, div_round_up(j->directory_bytes, j->cluster), "bitmap directory", 0);
    if (j->log)
        refer_once(j, (uint64_t)(j->log - j->file), div_round_up(8192, j->cluster), "journal", 0);
    for (uint64_t i = 0; i < j->bitmaps; i++, entry = next_bitmap(j, entry)) {
        if (entry + 24 > end || next_bitmap(j, entry) > end)
            sim_fail("the directory of the bitmaps ends before bitmap %" PRIu64, i);
        refer_bitmap(j, entry, i);
    }
}

/* ---- The whole ---- */

static void find_key(const Judge *j, uint64_t *ret_offset, uint64_t *ret_bytes)
{
    const uint8_t *ext = get_be32(j->file + 32) ? find_extension(j, 0x0537be77, 16) : NULL;

    if (get_be32(j->file + 32) && !ext)
        sim_fail("the image has lost its key");
    *ret_offset = ext ? get_be64(ext) : 0;
    *ret_bytes = ext ? get_be64(ext + 8) : 0;
}

void image_key_place(const Image *image, uint64_t *ret_offset, uint64_t *ret_bytes)
{
    Judge j;

    read_head(&j, image);
    find_key(&j, ret_offset, ret_bytes);
}

static void refer_metadata(Judge *j)
{
    uint64_t key, key_bytes;

    find_key(j, &key, &key_bytes);
    refer_once(j, 0, 1, "header", 0);
    refer_once(j, key, div_round_up(key_bytes, j->cluster), "LUKS header", 0);
    refer_once(j, j->table, j->table_entries * 8 / j->cluster, "refcount table", 0);
    for (uint64_t i = 0; i < j->table_entries; i++)
        if (entry_at(j, j->table + i * 8))
            refer_once(j, entry_at(j, j->table + i * 8), 1, "refcount block", i);
    refer_once(j, j->l1, div_round_up(j->l1_entries * 8, j->cluster), "L1 table", 0);
    for (uint64_t i = 0; i < j->l1_entries; i++)
        if (entry_at(j, j->l1 + i * 8) & OFFSET)
            refer(j, entry_at(j, j->l1 + i * 8) & OFFSET, 1, "L2 table", i);
}

static void check_entries(Judge *j)
{
    uint64_t per_table = UINT64_C(1) << j->table_bits, subs;

    if (div_round_up(div_round_up(j->disk_size, j->cluster), per_table) > j->l1_entries)
        sim_fail("the L1 table has %" PRIu64 " entries, too few for %" PRIu64 " bytes", j->l1_entries,
            j->disk_size);
    refer_tree(j);
    refer_snapshots(j);
    refer_bitmaps(j);
    for (uint64_t i = 0; i < j->l1_entries; i++)
        check_copied(j, entry_at(j, j->l1 + i * 8), "L2 table", i);
    for (uint64_t i = 0; !j->image->has_data_file && i < j->l1_entries * per_table; i++)
        if (entry_at(j, j->l1 + i / per_table * 8) & OFFSET)
            check_copied(j, l2_entry(j, i, &subs), "cluster", i);
}

static void check_refcounts(const Judge *j, uint64_t *ret_leaks)
{
    *ret_leaks = 0;
    for (uint64_t i = 0; i < j->clusters; i++) {
        uint64_t refs = j->references[i], count = refcount_of(j, i);
        bool shared = refs > 1;

        if (count < refs)
            sim_fail("cluster %#" PRIx64 " is used %" PRIu64 " times, its refcount is %" PRIu64,
                i * j->cluster, refs, count);
        if (shared && j->exact && count != refs)
            sim_fail("cluster %#" PRIx64 " is used %" PRIu64 " times, its refcount is %" PRIu64,
                i * j->cluster, refs, count);
        *ret_leaks += count - refs;
    }
    if (j->exact && *ret_leaks)
        sim_fail("%" PRIu64 " references are leaked", *ret_leaks);
}

void image_check(const Image *image, bool exact, ImageFacts *ret_facts)
{
    Judge j;

    read_head(&j, image);
    find_bitmaps(&j);
    j.exact = exact && !j.dirty;
    j.references = mem_zalloc(j.clusters * sizeof(*j.references));
    *ret_facts = (ImageFacts){.disk_size = j.disk_size, .bitmaps = j.bitmaps, .dirty = j.dirty};
    refer_metadata(&j);
    check_entries(&j);
    ret_facts->snapshot_bytes = j.snapshot_bytes;
    if (!j.dirty)
        check_refcounts(&j, &ret_facts->leaks);
    free(j.references);
}

/* ---- Contents ---- */

static void read_file(const ImageFile *f, uint64_t offset, uint8_t *contents)
{
    uint64_t bytes = offset < f->size ? MIN(SECTOR, f->size - offset) : 0;

    memset(contents, 0, SECTOR);
    if (bytes)
        memcpy(contents, f->data + offset, bytes);
}

/* The place in the file is the number of the initialisation vector. */
static void read_stored(const Image *image, uint64_t offset, uint8_t *contents)
{
    read_file(&image->data, offset, contents);
    if (image->cipher)
        sector_cipher_decrypt(image->cipher, offset / SECTOR, contents, contents, SECTOR);
}

static bool read_sector(const Judge *j, uint64_t sector, uint8_t *contents)
{
    uint64_t offset = sector * SECTOR, subs, entry, sub;
    bool zero, stored;

    entry = l2_entry(j, offset >> j->cluster_bits, &subs);
    if (entry & COMPRESSED)
        return false;
    sub = (offset & (j->cluster - 1)) >> (j->cluster_bits - 5);
    zero = j->extended ? subs >> 32 >> sub & 1 : entry & 1;
    stored = (entry & OFFSET) || (j->image->has_data_file && (entry & COPIED));
    if (j->extended)
        stored = stored && (subs >> sub & 1);
    if (zero)
        memset(contents, 0, SECTOR);
    else if (stored)
        read_stored(j->image, (entry & OFFSET) + (offset & (j->cluster - 1)), contents);
    else
        read_file(&j->image->backing, offset, contents);
    return true;
}

void image_sectors(const Image *image, ImageSectorFn *fn, void *arg)
{
    uint8_t contents[SECTOR];
    Judge j;

    read_head(&j, image);
    for (uint64_t i = 0; i < j.disk_size / SECTOR; i++)
        if (read_sector(&j, i, contents))
            fn(arg, i, contents);
}

/* ---- What bitmaps say ---- */

static bool is_covered(const Judge *j, uint64_t table)
{
    for (unsigned i = 0; j->log && i < 504; i++)
        if (get_be64(j->log + 64 + (size_t)i * 8) == table)
            return true;
    return false;
}

static bool stored_bit(const Judge *j, const uint8_t *entry, uint64_t granule)
{
    uint64_t at = entry_at(j, get_be64(entry) + granule / 8 / j->cluster * 8);

    if (!(at & OFFSET))
        return at & 1;
    at = (at & OFFSET) + granule / 8 % j->cluster;
    return at < j->size && (j->file[at] >> granule % 8 & 1);
}

static bool has_intent(const Judge *j, uint64_t offset, uint64_t bytes)
{
    unsigned bits = get_be32(j->log + 12);

    for (uint64_t r = offset >> bits; r <= (offset + bytes - 1) >> bits; r++)
        if (j->log[4096 + r / 8] >> r % 8 & 1)
            return true;
    return false;
}

static void read_bitmap(const Judge *j, const uint8_t *entry, ImageBitmap *b)
{
    uint32_t flags = get_be32(entry + 12);

    *b = (ImageBitmap){.granularity = UINT32_C(1) << entry[17],
        .in_use = flags & 1,
        .counts = flags & 2,
        .usable = !(flags & 1) || is_covered(j, get_be64(entry)),
        .granules = bitmap_granules(j, entry)};
    if (!b->usable)
        return;
    if (div_round_up(b->granules, j->cluster * 8) > get_be32(entry + 8))
        sim_fail("a bitmap is shorter than the disk");
    b->dirty = mem_zalloc(b->granules);
    for (uint64_t g = 0; g < b->granules; g++)
        b->dirty[g] =
            stored_bit(j, entry, g) ||
            (b->in_use && b->counts &&
                has_intent(j, g * b->granularity, MIN(b->granularity, j->disk_size - g * b->granularity)));
}

bool image_bitmap(const Image *image, const char *name, ImageBitmap *ret_bitmap)
{
    const uint8_t *entry;
    Judge j;

    read_head(&j, image);
    find_bitmaps(&j);
    entry = j.file + j.directory;
    for (uint64_t i = 0; i < j.bitmaps; i++, entry = next_bitmap(&j, entry)) {
        size_t bytes = get_be16(entry + 18);

        if (bytes != strlen(name) || memcmp(entry + 24 + get_be32(entry + 20), name, bytes) != 0)
            continue;
        read_bitmap(&j, entry, ret_bitmap);
        return true;
    }
    return false;
}

/* ---- The name of the backing file ---- */

void image_backing_name(const Image *image, char *name, size_t room)
{
    uint64_t offset = get_be64(image->file.data + 8), bytes = get_be32(image->file.data + 16);

    if (bytes >= room || out_of_range(offset, bytes, image->file.size))
        sim_fail("the name of the backing file is not in the file");
    memcpy(name, image->file.data + offset, bytes);
    name[bytes] = '\0';
}
