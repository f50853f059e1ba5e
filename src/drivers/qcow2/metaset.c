/* SPDX-License-Identifier: Apache-2.0 */
/* A hash set of host clusters that hold metadata, with what they hold. Open addressing; removal leaves the
 * cluster in its slot without kinds, growing drops such slots. */
#include "base/mem.h"
#include "drivers/qcow2/qcow2-priv.h"

#define KIND_BITS 16
#define KINDS 0xffffu

static uint64_t slot_of(const MetaSet *set, uint64_t cluster)
{
    uint64_t at = (cluster * UINT64_C(0x9e3779b97f4a7c15) >> 20) & set->mask;

    while (set->slots[at] && set->slots[at] >> KIND_BITS != cluster + 1)
        at = (at + 1) & set->mask;
    return at;
}

static int grow(MetaSet *set)
{
    MetaSet bigger = {.mask = set->slots ? set->mask : 31};

    for (uint64_t i = 0, live = 0; set->slots && i <= set->mask; i++) {
        live += (set->slots[i] & KINDS) != 0;
        if (live * 4 > bigger.mask)
            bigger.mask = bigger.mask * 2 + 1;
    }
    bigger.slots = mem_try_zalloc(bigger.mask + 1, sizeof(*bigger.slots));
    if (!bigger.slots)
        return -ENOMEM;
    for (uint64_t i = 0; set->slots && i <= set->mask; i++) {
        if (!(set->slots[i] & KINDS))
            continue;
        bigger.slots[slot_of(&bigger, (set->slots[i] >> KIND_BITS) - 1)] = set->slots[i];
        bigger.used++;
    }
    free(set->slots);
    *set = bigger;
    return 0;
}

int metaset_add(MetaSet *set, uint64_t cluster, unsigned kind)
{
    uint64_t at;

    if (!set->slots || (set->used + 1) * 2 > set->mask) {
        int r = grow(set);

        if (r < 0)
            return r;
    }
    at = slot_of(set, cluster);
    if (!set->slots[at]) {
        set->slots[at] = (cluster + 1) << KIND_BITS;
        set->used++;
    }
    set->slots[at] |= kind;
    return 0;
}

void metaset_remove(MetaSet *set, uint64_t cluster, unsigned kind)
{
    if (set->slots)
        set->slots[slot_of(set, cluster)] &= ~(uint64_t)(kind & KINDS);
}

void metaset_remove_all(MetaSet *set, unsigned kind)
{
    for (uint64_t i = 0; set->slots && i <= set->mask; i++)
        set->slots[i] &= ~(uint64_t)(kind & KINDS);
}

unsigned metaset_kinds(const MetaSet *set, uint64_t cluster)
{
    return set->slots ? set->slots[slot_of(set, cluster)] & KINDS : 0;
}

void metaset_done(MetaSet *set)
{
    free(set->slots);
    *set = (MetaSet){0};
}
