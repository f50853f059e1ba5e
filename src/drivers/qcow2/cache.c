/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Write-back cache of slices of L2 tables and refcount blocks, found by their offset in the image file. Clock
 * replacement; memory is taken as slices come in. See qcow2-priv.h for the rules of use.
 */
#include "base/mem.h"
#include "drivers/qcow2/qcow2-priv.h"

#include <assert.h>
#include <stdlib.h>
#include <sys/mman.h>

#define SLAB_BYTES (128 * KIB)
#define MIN_ENTRIES 4
#define WRITE_VECTORS 64

int cache_init(Cache *c, Qcow2 *q, unsigned slice_bits, uint64_t max_bytes, int (*make_room)(Qcow2 *))
{
    uint64_t max = MAX(max_bytes >> slice_bits, (uint64_t)MIN_ENTRIES);

    *c = (Cache){.q = q, .slice_bits = slice_bits, .max = (uint32_t)MIN(max, (uint64_t)UINT32_MAX / 4)};
    c->make_room = make_room;
    list_init(&c->dirty);
    list_init(&c->frozen);
    c->bucket_bits = 2;
    while (UINT64_C(1) << c->bucket_bits < c->max)
        c->bucket_bits++;
    c->entries = mem_try_zalloc(c->max, sizeof(*c->entries));
    c->buckets = mem_try_zalloc(UINT64_C(1) << c->bucket_bits, sizeof(*c->buckets));
    return c->entries && c->buckets ? 0 : -ENOMEM;
}

void cache_done(Cache *c)
{
    for (size_t i = 0; i < c->slab_count; i++)
        free(c->slabs[i]);
    free(c->slabs);
    free(c->entries);
    free(c->buckets);
    *c = (Cache){0};
}

void cache_swap(Cache *a, Cache *b)
{
    Cache was = *a;

    assert(
        list_empty(&a->dirty) && list_empty(&a->frozen) && list_empty(&b->dirty) && list_empty(&b->frozen));
    *a = *b;
    *b = was;
    list_init(&a->dirty);
    list_init(&a->frozen);
    list_init(&b->dirty);
    list_init(&b->frozen);
}

/* ---- Buffers ---- */

static void buffer_release(Cache *c, uint8_t *buffer)
{
    memcpy(buffer, &c->spare, sizeof(c->spare));
    c->spare = buffer;
}

/* Slices are small and their number is bounded by the cache's size, but that size is the user's choice: NULL
 * is possible. */
static uint8_t *buffer_acquire(Cache *c)
{
    size_t slice = (size_t)1 << c->slice_bits;
    size_t slab_bytes = MAX((size_t)SLAB_BYTES, slice);
    uint8_t *buffer = c->spare, *slab;

    if (!buffer) {
        slab = mem_try_aligned(4096, slab_bytes);
        if (!slab)
            return NULL;
        VEC_GROW(c->slabs, c->slab_count, c->slab_capacity);
        c->slabs[c->slab_count++] = slab;
        for (size_t at = 0; at + slice <= slab_bytes; at += slice)
            buffer_release(c, slab + at);
        buffer = c->spare;
    }
    memcpy(&c->spare, buffer, sizeof(c->spare));
    return buffer;
}

/* ---- Entries ---- */

static void entry_insert(Cache *c, CacheEntry *entry, uint64_t offset)
{
    uint32_t *bucket = &c->buckets[cache_bucket(c, offset)];

    entry->offset = offset;
    entry->next = *bucket;
    *bucket = (uint32_t)(entry - c->entries) + 1;
}

static void entry_remove(Cache *c, CacheEntry *entry)
{
    uint32_t *link = &c->buckets[cache_bucket(c, entry->offset)];
    uint32_t self = (uint32_t)(entry - c->entries) + 1;

    while (*link != self)
        link = &c->entries[*link - 1].next;
    *link = entry->next;
    entry->offset = 0;
    entry->next = 0;
    entry->used = false;
}

/* An entry that holds nothing, or NULL when every one is dirty or busy. */
static CacheEntry *entry_victim(Cache *c)
{
    if (c->count < c->max)
        return &c->entries[c->count++];
    for (uint64_t steps = 0; steps < 2 * (uint64_t)c->count; steps++) {
        CacheEntry *entry = &c->entries[c->hand];

        c->hand = c->hand + 1 == c->count ? 0 : c->hand + 1;
        if (entry->loading || entry->dirty || entry->frozen)
            continue;
        if (entry->used) {
            entry->used = false;
            continue;
        }
        if (entry->offset)
            entry_remove(c, entry);
        return entry;
    }
    return NULL;
}

static int make_room(Cache *c)
{
    if (!list_empty(&c->dirty) || !list_empty(&c->frozen))
        return c->make_room(c->q);
    co_cond_wait_shielded(&c->room, NULL);
    return 0;
}

static int entry_load(Cache *c, CacheEntry *entry, uint64_t offset)
{
    int r;

    if (!entry->table)
        entry->table = buffer_acquire(c);
    if (!entry->table)
        return -ENOMEM;
    entry_insert(c, entry, offset);
    entry->loading = true;
    r = child_pread(c->q->file, offset, entry->table, (size_t)1 << c->slice_bits);
    entry->loading = false;
    co_cond_broadcast(&entry->loaded);
    co_cond_broadcast(&c->room);
    if (r < 0)
        entry_remove(c, entry);
    clean_begin(c->q);
    return r;
}

int cache_get_slow(Cache *c, uint64_t offset, CacheEntry **ret_entry)
{
    for (;;) {
        CacheEntry *entry = cache_find(c, offset);
        int r;

        if (entry && !entry->loading) {
            entry->used = true;
            *ret_entry = entry;
            return 0;
        }
        if (entry) {
            co_cond_wait_shielded(&entry->loaded, NULL);
            continue;
        }
        entry = entry_victim(c);
        if (!entry) {
            r = make_room(c);
            if (r < 0)
                return r;
            continue;
        }
        r = entry_load(c, entry, offset);
        if (r < 0)
            return r;
        entry->used = true;
        *ret_entry = entry;
        return 0;
    }
}

uint8_t *cache_modify(Cache *c, CacheEntry *entry)
{
    if (entry->frozen == entry->table) {
        uint8_t *copy = buffer_acquire(c);

        if (!copy)
            abort(); /* one slice; nothing else can be done in the middle of a change */
        memcpy(copy, entry->table, (size_t)1 << c->slice_bits);
        entry->table = copy;
    }
    if (!entry->dirty) {
        entry->dirty = true;
        list_append(&c->dirty, &entry->dirty_link);
    }
    entry->used = true;
    return entry->table;
}

void cache_forget(Cache *c, uint64_t offset, uint64_t bytes)
{
    uint64_t slice = UINT64_C(1) << c->slice_bits;

    for (uint64_t at = offset; at < offset + bytes; at += slice) {
        CacheEntry *entry = cache_find(c, at);

        if (!entry || entry->loading || entry->frozen)
            continue;
        if (entry->dirty) {
            entry->dirty = false;
            list_remove(&entry->dirty_link);
        }
        entry_remove(c, entry);
    }
}

/* Nothing is in the cache, nobody waits for it. */
static void give_back(Cache *c)
{
    for (size_t i = 0; i < c->slab_count; i++) {
        (void)madvise(c->slabs[i], MAX((size_t)SLAB_BYTES, (size_t)1 << c->slice_bits), MADV_DONTNEED);
        free(c->slabs[i]);
    }
    memset(c->entries, 0, c->count * sizeof(*c->entries));
    c->slab_count = 0;
    c->spare = NULL;
    c->count = c->hand = 0;
}

bool cache_clean(Cache *c)
{
    bool clean = false, busy = false;

    for (uint32_t i = 0; i < c->count; i++) {
        CacheEntry *entry = &c->entries[i];

        if (!entry->offset)
            continue;
        if (entry->loading || entry->dirty || entry->frozen) {
            busy = true;
            continue;
        }
        if (entry->used) {
            entry->used = false;
            clean = true;
            continue;
        }
        entry_remove(c, entry);
        if (c->slice_bits >= 12)
            (void)madvise(entry->table, (size_t)1 << c->slice_bits, MADV_DONTNEED);
    }
    if (!clean && !busy)
        give_back(c);
    return clean;
}

/* ---- Write-back ---- */

void cache_freeze(Cache *c)
{
    LIST_FOREACH_SAFE (link, &c->dirty) {
        CacheEntry *entry = LIST_ENTRY(link, CacheEntry, dirty_link);

        list_remove(link);
        entry->dirty = false;
        entry->frozen = entry->table;
        list_append(&c->frozen, &entry->frozen_link);
    }
}

static void thaw(Cache *c, CacheEntry *entry, bool written)
{
    if (entry->frozen != entry->table)
        buffer_release(c, entry->frozen);
    entry->frozen = NULL;
    list_remove(&entry->frozen_link);
    if (!written)
        (void)cache_modify(c, entry);
}

void cache_unfreeze(Cache *c)
{
    LIST_FOREACH_SAFE (link, &c->frozen)
        thaw(c, LIST_ENTRY(link, CacheEntry, frozen_link), false);
    co_cond_broadcast(&c->room);
}

static int by_offset(const void *a, const void *b)
{
    uint64_t x = (*(CacheEntry *const *)a)->offset, y = (*(CacheEntry *const *)b)->offset;

    return x < y ? -1 : x > y;
}

/* Writes neighbouring slices in one go; returns how many, or -errno. */
static int write_neighbours(Cache *c, CacheEntry **entries, size_t count)
{
    size_t slice = (size_t)1 << c->slice_bits;
    struct iovec iov[WRITE_VECTORS];
    unsigned n = 0;
    int r;

    while (n < count && n < WRITE_VECTORS && entries[n]->offset == entries[0]->offset + n * slice) {
        iov[n] = (struct iovec){.iov_base = entries[n]->frozen, .iov_len = slice};
        n++;
    }
    r = edge_write(c->q->file, entries[0]->offset, (IoSlice){.iov = iov, .skip = 0, .bytes = n * slice}, 0);
    return r < 0 ? r : (int)n;
}

int cache_write_frozen(Cache *c)
{
    AUTO_FREE CacheEntry **sorted = NULL;
    size_t count = 0, done = 0;
    int r = 0;

    LIST_FOREACH (link, &c->frozen)
        count++;
    if (!count)
        return 0;
    sorted = mem_try_zalloc(count, sizeof(*sorted));
    count = 0;
    LIST_FOREACH (link, &c->frozen) {
        if (!sorted)
            break;
        sorted[count++] = LIST_ENTRY(link, CacheEntry, frozen_link);
    }
    if (!sorted)
        r = -ENOMEM;
    else
        qsort(sorted, count, sizeof(*sorted), by_offset);
    while (r >= 0 && done < count) {
        r = write_neighbours(c, sorted + done, count - done);
        for (int i = 0; i < r; i++)
            thaw(c, sorted[done++], true);
    }
    cache_unfreeze(c);
    clean_begin(c->q);
    return r < 0 ? r : 0;
}

int cache_write_dirty(Cache *c)
{
    int r;

    co_mutex_lock_shielded(&c->write_lock);
    cache_freeze(c);
    r = cache_write_frozen(c);
    co_mutex_unlock(&c->write_lock);
    return r;
}
