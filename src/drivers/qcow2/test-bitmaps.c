/* SPDX-License-Identifier: Apache-2.0 */
#include "drivers/qcow2/test-bitmaps.h"

#include "base/mem.h"

#include <assert.h>

struct DirtyBitmap {
    DirtyBitmap *next;
    Node *node;
    char *name;
    uint32_t granularity;
    uint64_t size;
    uint8_t *granules;
    bool enabled, inconsistent;
};

static DirtyBitmap *bitmaps; /* of all nodes */
static const Node *journalled[4];

static uint64_t granules_for(uint64_t size, uint32_t granularity)
{
    return div_round_up(size, granularity);
}

/* ---- Making ---- */

int dirty_bitmap_new(Node *node, const char *name, uint32_t granularity, DirtyBitmap **ret_bitmap, Error *err)
{
    DirtyBitmap *bitmap;

    if (granules_for(node->size, granularity) > 1 << 24)
        return err_set(err, -EFBIG, "too large for a test");
    for (const DirtyBitmap *b = bitmaps; b; b = b->next)
        if (b->node == node && str_eq(b->name, name))
            return err_set(err, -EEXIST, "Bitmap already exists: %s", name);
    bitmap = mem_new(DirtyBitmap);
    *bitmap = (DirtyBitmap){.next = bitmaps,
        .node = node,
        .name = str_dup(name),
        .granularity = granularity,
        .size = node->size,
        .granules = mem_zalloc(granules_for(node->size, granularity) + 1),
        .enabled = true};
    bitmaps = bitmap;
    *ret_bitmap = bitmap;
    return 0;
}

void dirty_bitmap_free(DirtyBitmap *bitmap)
{
    DirtyBitmap **at = &bitmaps;

    while (*at != bitmap)
        at = &(*at)->next;
    *at = bitmap->next;
    free(bitmap->name);
    free(bitmap->granules);
    free(bitmap);
}

DirtyBitmap *dirty_bitmap_find(const Node *node, const char *name)
{
    for (DirtyBitmap *b = bitmaps; b; b = b->next)
        if (b->node == node && str_eq(b->name, name))
            return b;
    return NULL;
}

void test_bitmaps_free(Node *node)
{
    for (DirtyBitmap *b = bitmaps, *next; b; b = next) {
        next = b->next;
        if (b->node == node)
            dirty_bitmap_free(b);
    }
    node_journal_writes(node, false);
}

void test_bitmaps_resize(Node *node, uint64_t size)
{
    for (DirtyBitmap *b = bitmaps; b; b = b->next) {
        uint64_t old = granules_for(b->size, b->granularity), count = granules_for(size, b->granularity);

        if (b->node != node)
            continue;
        b->granules = mem_realloc(b->granules, count + 1);
        if (count > old)
            memset(b->granules + old, 0, count - old);
        b->size = size;
    }
}

/* ---- What it is ---- */

const char *dirty_bitmap_name(const DirtyBitmap *bitmap)
{
    return bitmap->name;
}

uint32_t dirty_bitmap_granularity(const DirtyBitmap *bitmap)
{
    return bitmap->granularity;
}

uint64_t dirty_bitmap_size(const DirtyBitmap *bitmap)
{
    return bitmap->size;
}

bool dirty_bitmap_is_enabled(const DirtyBitmap *bitmap)
{
    return bitmap->enabled;
}

void dirty_bitmap_set_enabled(DirtyBitmap *bitmap, bool enabled)
{
    bitmap->enabled = enabled;
}

bool dirty_bitmap_is_inconsistent(const DirtyBitmap *bitmap)
{
    return bitmap->inconsistent;
}

void dirty_bitmap_set_inconsistent(DirtyBitmap *bitmap)
{
    bitmap->inconsistent = true;
    bitmap->enabled = false;
}

void dirty_bitmap_set_persistent(DirtyBitmap *bitmap, bool persistent)
{
    assert(persistent);
}

void dirty_bitmap_set_read_only(DirtyBitmap *bitmap, bool read_only)
{
    assert(read_only || !bitmap->node->read_only);
}

int dirty_bitmap_check(const DirtyBitmap *bitmap, unsigned checks, Error *err)
{
    return bitmap->inconsistent ? err_set(err, -EINVAL, "inconsistent") : 0;
}

/* ---- Bits ---- */

void dirty_bitmap_set(DirtyBitmap *bitmap, uint64_t offset, uint64_t bytes)
{
    uint64_t end = granules_for(offset + bytes, bitmap->granularity);

    assert(!out_of_range(offset, bytes, bitmap->size));
    for (uint64_t i = offset / bitmap->granularity; i < end; i++)
        bitmap->granules[i] = 1;
}

void dirty_bitmap_clear(DirtyBitmap *bitmap)
{
    memset(bitmap->granules, 0, granules_for(bitmap->size, bitmap->granularity));
}

bool dirty_bitmap_get(const DirtyBitmap *bitmap, uint64_t offset)
{
    assert(!bitmap->inconsistent && offset < bitmap->size);
    return bitmap->granules[offset / bitmap->granularity];
}

uint64_t dirty_bitmap_count(const DirtyBitmap *bitmap)
{
    uint64_t count = 0;

    for (uint64_t i = 0; i < granules_for(bitmap->size, bitmap->granularity); i++)
        count += bitmap->granules[i];
    return count * bitmap->granularity;
}

static uint64_t next(const DirtyBitmap *bitmap, uint64_t offset, uint64_t end, bool dirty)
{
    while (offset < end && bitmap->granules[offset / bitmap->granularity] != dirty)
        offset = align_down(offset, bitmap->granularity) + bitmap->granularity;
    return MIN(offset, end);
}

bool dirty_bitmap_next_dirty(
    const DirtyBitmap *bitmap, uint64_t offset, uint64_t end, uint64_t *ret_offset, uint64_t *ret_bytes)
{
    uint64_t start = next(bitmap, offset, end, true);

    if (start == end)
        return false;
    *ret_bytes = next(bitmap, start, end, false) - start;
    *ret_offset = start;
    return true;
}

uint64_t dirty_bitmap_next_clean(const DirtyBitmap *bitmap, uint64_t offset, uint64_t end)
{
    return next(bitmap, offset, end, false);
}

uint64_t dirty_bitmap_stored_bytes(const DirtyBitmap *bitmap)
{
    return div_round_up(granules_for(bitmap->size, bitmap->granularity), 8);
}

void dirty_bitmap_to_bytes(const DirtyBitmap *bitmap, uint64_t at, uint8_t *dst, size_t length)
{
    uint64_t count = granules_for(bitmap->size, bitmap->granularity);

    memset(dst, 0, length);
    for (uint64_t i = at * 8; i < MIN(count, (at + length) * 8); i++)
        dst[i / 8 - at] |= (uint8_t)(bitmap->granules[i] << i % 8);
}

void dirty_bitmap_from_bytes(DirtyBitmap *bitmap, uint64_t at, const uint8_t *src, size_t length)
{
    uint64_t count = granules_for(bitmap->size, bitmap->granularity);

    for (uint64_t i = at * 8; i < MIN(count, (at + length) * 8); i++)
        bitmap->granules[i] = src[i / 8 - at] >> i % 8 & 1;
}

/* ---- The request path ---- */

void node_journal_writes(Node *node, bool on)
{
    for (size_t i = 0; i < ARRAY_SIZE(journalled); i++)
        if (journalled[i] == node)
            journalled[i] = NULL;
    for (size_t i = 0; on && i < ARRAY_SIZE(journalled); i++) {
        if (!journalled[i]) {
            journalled[i] = node;
            return;
        }
    }
    assert(!on);
}

static bool is_journalled(const Node *node)
{
    for (size_t i = 0; i < ARRAY_SIZE(journalled); i++)
        if (journalled[i] == node)
            return true;
    return false;
}

int test_change_begin(Node *node, uint64_t offset, uint64_t bytes)
{
    return is_journalled(node) ? node->driver->bitmaps->write_begin(node, offset, bytes) : 0;
}

void test_change_end(Node *node, uint64_t offset, uint64_t bytes)
{
    for (DirtyBitmap *b = bitmaps; b; b = b->next)
        if (b->node == node && b->enabled)
            dirty_bitmap_set(b, offset, bytes);
    if (is_journalled(node))
        node->driver->bitmaps->write_end(node, offset, bytes);
}
