/* SPDX-License-Identifier: Apache-2.0 */
/* Sparse counters within a budget of memory; see check-priv.h. */
#include "base/mem.h"
#include "drivers/qcow2/check-priv.h"

/* ---- Hash table ---- */

static TallySlot *slot_of(const Tally *tally, uint64_t key)
{
    uint64_t at = (key * UINT64_C(0x9e3779b97f4a7c15) >> 20) & tally->mask;

    while (tally->slots[at].key && tally->slots[at].key != key + 1)
        at = (at + 1) & tally->mask;
    return &tally->slots[at];
}

static int spend(size_t *budget, size_t bytes)
{
    if (bytes > *budget)
        return -E2BIG;
    *budget -= bytes;
    return 0;
}

static int grow(Tally *tally)
{
    Tally bigger = {.mask = tally->slots ? tally->mask * 2 + 1 : 63, .budget = tally->budget};
    int r = spend(tally->budget, (bigger.mask + 1) * sizeof(*bigger.slots));

    if (r < 0)
        return r;
    bigger.slots = mem_try_zalloc(bigger.mask + 1, sizeof(*bigger.slots));
    if (!bigger.slots) {
        *tally->budget += (bigger.mask + 1) * sizeof(*bigger.slots);
        return -ENOMEM;
    }
    for (uint64_t i = 0; tally->slots && i <= tally->mask; i++)
        if (tally->slots[i].key)
            *slot_of(&bigger, tally->slots[i].key - 1) = tally->slots[i];
    bigger.used = tally->used;
    tally_done(tally);
    *tally = bigger;
    return 0;
}

static int slot_make(Tally *tally, uint64_t key, TallySlot **ret_slot)
{
    TallySlot *slot = tally->slots ? slot_of(tally, key) : NULL;
    int r;

    if (!slot || (!slot->key && (tally->used + 1) * 3 > tally->mask * 2)) {
        r = grow(tally);
        if (r < 0)
            return r;
        slot = slot_of(tally, key);
    }
    tally->used += !slot->key;
    slot->key = key + 1;
    *ret_slot = slot;
    return 0;
}

int tally_add(Tally *tally, uint64_t key, uint64_t weight)
{
    TallySlot *slot;
    int r = slot_make(tally, key, &slot);

    if (r == 0 && __builtin_add_overflow(slot->value, weight, &slot->value))
        slot->value = UINT64_MAX;
    return r;
}

uint64_t *tally_find(const Tally *tally, uint64_t key)
{
    TallySlot *slot = tally->slots ? slot_of(tally, key) : NULL;

    return slot && slot->key ? &slot->value : NULL;
}

static int by_key(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

int tally_keys(const Tally *tally, uint64_t **ret_keys)
{
    uint64_t *keys = mem_try_zalloc(tally->used + 1, sizeof(*keys)), count = 0;

    if (!keys)
        return -ENOMEM;
    for (uint64_t i = 0; tally->slots && i <= tally->mask; i++)
        if (tally->slots[i].key)
            keys[count++] = tally->slots[i].key - 1;
    qsort(keys, count, sizeof(*keys), by_key);
    *ret_keys = keys;
    return 0;
}

void tally_done(Tally *tally)
{
    if (tally->slots)
        *tally->budget += (tally->mask + 1) * sizeof(*tally->slots);
    free(tally->slots);
    *tally = (Tally){.budget = tally->budget};
}

/* ---- Counters ---- */

typedef struct CountPage {
    uint8_t order; /* counters are 1 << order bits wide */
    uint8_t bytes[];
} CountPage;

/* Wide enough for what nearly all clusters have, and for STORED_UNKNOWN. */
#define FIRST_ORDER 1

static size_t page_bytes(const Counts *counts, unsigned order)
{
    return sizeof(CountPage) + (((size_t)1 << counts->page_bits << order) + 7) / 8;
}

static CountPage *page_new(Counts *counts, unsigned order)
{
    CountPage *page;

    if (spend(counts->pages.budget, page_bytes(counts, order)) < 0)
        return NULL;
    page = mem_try_zalloc(1, page_bytes(counts, order));
    if (page)
        page->order = (uint8_t)order;
    return page;
}

static CountPage *page_of(const Counts *counts, uint64_t cluster)
{
    const uint64_t *place = tally_find(&counts->pages, cluster >> counts->page_bits);

    return place ? (CountPage *)(uintptr_t)*place : NULL;
}

static uint32_t in_page(const Counts *counts, uint64_t cluster)
{
    return (uint32_t)(cluster & ((UINT64_C(1) << counts->page_bits) - 1));
}

/* Puts a page that has room for value in the place of old (NULL: none yet). */
static int page_widen(Counts *counts, uint64_t cluster, CountPage *old, uint64_t value, CountPage **ret_page)
{
    unsigned order = old ? old->order : FIRST_ORDER;
    CountPage *page;
    TallySlot *slot;
    int r;

    while (value > qcow2_refcount_max(order))
        order++;
    r = slot_make(&counts->pages, cluster >> counts->page_bits, &slot);
    if (r < 0)
        return r;
    page = page_new(counts, order);
    if (!page) {
        if (!old) /* a place that points to nothing */
            slot->value = 0;
        return -E2BIG;
    }
    for (uint32_t i = 0; old && i < 1U << counts->page_bits; i++)
        qcow2_refcount_set(page->bytes, order, i, qcow2_refcount_get(old->bytes, old->order, i));
    if (old)
        *counts->pages.budget += page_bytes(counts, old->order);
    free(old);
    slot->value = (uintptr_t)page;
    *ret_page = page;
    return 0;
}

int counts_add(Counts *counts, uint64_t cluster, uint64_t weight, uint64_t max, uint64_t *ret_lost)
{
    CountPage *page = page_of(counts, cluster);
    uint32_t index = in_page(counts, cluster);
    uint64_t count = page ? qcow2_refcount_get(page->bytes, page->order, index) : 0;
    uint64_t added = MIN(weight, max - count);

    *ret_lost = weight - added;
    if (!page || count + added > qcow2_refcount_max(page->order)) {
        int r = page_widen(counts, cluster, page, count + added, &page);

        if (r < 0)
            return r;
    }
    qcow2_refcount_set(page->bytes, page->order, index, count + added);
    return 0;
}

bool counts_get(const Counts *counts, uint64_t cluster, uint64_t *ret_count)
{
    const CountPage *page = page_of(counts, cluster);

    if (!page)
        return false;
    *ret_count = qcow2_refcount_get(page->bytes, page->order, in_page(counts, cluster));
    return true;
}

void counts_set(Counts *counts, uint64_t cluster, uint64_t value)
{
    CountPage *page = page_of(counts, cluster);

    qcow2_refcount_set(page->bytes, page->order, in_page(counts, cluster), value);
}

void counts_done(Counts *counts)
{
    for (uint64_t i = 0; counts->pages.slots && i <= counts->pages.mask; i++)
        if (counts->pages.slots[i].key)
            free((void *)(uintptr_t)counts->pages.slots[i].value);
    tally_done(&counts->pages);
}
