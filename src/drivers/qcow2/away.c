/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads on loops other than the node's home: lookups in copies of L2 entries, and the count of reads that may
 * still use what they found. qcow2-priv.h says why that is safe.
 *
 * A block holds the entries of consecutive guest clusters, all from one slice; home makes it when a lookup
 * away asked for it, and from then on every change of a slice changes it, too (slice_set), until another one
 * needs its place. Which place that is follows from the guest address alone, so an image whose blocks all fit
 * never loses one.
 *
 * Traps: blocks are found by guest address, so a table that the L1 table of a broken image names twice may
 * read as it was before it was changed under its other address. Only home writes here; `inflight` of a loop
 * is written by that loop only.
 */
#include "base/mem.h"
#include "drivers/qcow2/qcow2-priv.h"

/* Entries in a block have no more bytes than that, and a lookup copies no more than so many words. */
#define BLOCK_BYTES 4096
#define LOOKUP_WORDS 32

/* ---- Blocks ---- */

static AwayBlock *block_at(const Away *away, uint64_t number)
{
    return &away->blocks[number & away->mask];
}

/* Of the block that has the guest cluster at offset; from 1. */
static uint64_t block_number(const Qcow2 *q, const Away *away, uint64_t offset)
{
    return (offset >> (q->cluster_bits + away->block_bits)) + 1;
}

static size_t entry_words(const Qcow2 *q)
{
    return q->entry_bytes / 8;
}

/* Place of a guest cluster's entry in its block, in words. */
static size_t word_index(const Qcow2 *q, const Away *away, uint64_t offset)
{
    return (offset >> q->cluster_bits & ((UINT64_C(1) << away->block_bits) - 1)) * entry_words(q);
}

/* The first store is one of those that all loops see in one order: see qcow2-priv.h. */
static void block_change_begin(AwayBlock *block)
{
    atomic_store(&block->sequence, atomic_load_explicit(&block->sequence, memory_order_relaxed) + 1);
}

static void block_change_end(AwayBlock *block)
{
    uint64_t sequence = atomic_load_explicit(&block->sequence, memory_order_relaxed);

    atomic_store_explicit(&block->sequence, sequence + 1, memory_order_release);
}

/* Between the two above. A lookup that sees one of these words also sees that the sequence has changed. */
static void put_words(_Atomic uint64_t *words, const uint8_t *entries, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uint64_t word;

        memcpy(&word, entries + i * 8, sizeof(word));
        atomic_store_explicit(&words[i], word, memory_order_release);
    }
}

/* ---- At home: start, end, changes ---- */

/* As many blocks as hold what the L2 cache may hold. */
static uint64_t block_count(const Qcow2 *q, unsigned block_bits)
{
    uint64_t wanted = div_round_up((uint64_t)q->l2.max << q->l2.slice_bits, q->entry_bytes << block_bits);
    uint64_t count = 1;

    while (count < wanted)
        count *= 2;
    return count;
}

static int away_start(void *arg)
{
    Qcow2 *q = arg;
    Away *away;

    if (atomic_load_explicit(&q->away, memory_order_relaxed))
        return 0;
    away = mem_try_aligned(_Alignof(Away), sizeof(*away));
    if (!away)
        return -ENOMEM;
    memset(away, 0, sizeof(*away));
    while (away->block_bits < q->slice_l2_bits && q->entry_bytes << away->block_bits < BLOCK_BYTES)
        away->block_bits++;
    away->mask = block_count(q, away->block_bits) - 1;
    away->epoch = q->epoch;
    away->blocks = mem_try_zalloc(away->mask + 1, sizeof(*away->blocks));
    if (!away->blocks) {
        free(away);
        return -ENOMEM;
    }
    atomic_store_explicit(&q->away, away, memory_order_release);
    return 0;
}

void away_done(Qcow2 *q)
{
    Away *away = q->away;

    if (!away)
        return;
    for (uint64_t i = 0; i <= away->mask; i++)
        free((void *)away->blocks[i].words);
    free(away->blocks);
    free(away);
    q->away = NULL;
}

void away_update(const Qcow2 *q, Away *away, uint64_t guest, const uint8_t *entry)
{
    uint64_t number = block_number(q, away, guest);
    AwayBlock *block = block_at(away, number);

    if (atomic_load_explicit(&block->number, memory_order_relaxed) != number)
        return;
    block_change_begin(block);
    put_words(&block->words[word_index(q, away, guest)], entry, entry_words(q));
    block_change_end(block);
}

void away_forget(Qcow2 *q)
{
    Away *away = atomic_load_explicit(&q->away, memory_order_relaxed);

    for (uint64_t i = 0; away && i <= away->mask; i++) {
        AwayBlock *block = &away->blocks[i];

        block_change_begin(block);
        atomic_store_explicit(&block->number, 0, memory_order_release);
        block_change_end(block);
    }
}

/* Makes the block around offset, whose slice a lookup has just brought in. Nothing happens if it has gone
 * again, or without memory: later lookups ask again. */
static void publish(Qcow2 *q, Away *away, uint64_t offset)
{
    uint64_t number = block_number(q, away, offset);
    AwayBlock *block = block_at(away, number);
    size_t count = entry_words(q) << away->block_bits;
    static const uint8_t none[BLOCK_BYTES];
    const uint8_t *entries;

    if (block->number == number ||
        !map_cached_entries(q, align_down(offset, q->cluster_size << away->block_bits), &entries))
        return;
    if (!block->words)
        block->words = mem_try_zalloc(count, 8);
    if (!block->words)
        return;
    block_change_begin(block);
    put_words(block->words, entries ? entries : none, count);
    atomic_store_explicit(&block->number, number, memory_order_release);
    block_change_end(block);
}

/* ---- Lookup ---- */

typedef struct LookupCall {
    Qcow2 *q;
    Away *away;
    uint64_t offset, bytes;
    Map *ret_map;
} LookupCall;

static int lookup_at_home(void *arg)
{
    const LookupCall *call = arg;
    Qcow2 *q = call->q;
    int r = q->corrupt ? -ENOMEDIUM : map_lookup(q, call->offset, call->bytes, call->ret_map);

    if (r == 0 && !q->corrupt)
        publish(q, call->away, call->offset);
    return r;
}

/* Copies at most *count entries from the one of offset's cluster on; false: not all of them are here and at
 * rest. */
static bool copy_entries(const Qcow2 *q, const Away *away, uint64_t offset, uint64_t *copy, uint32_t *count)
{
    uint64_t number = block_number(q, away, offset), sequence;
    const AwayBlock *block = block_at(away, number);
    size_t index = word_index(q, away, offset), words;
    const _Atomic uint64_t *from;

    sequence = atomic_load(&block->sequence);
    if (sequence % 2 || atomic_load_explicit(&block->number, memory_order_acquire) != number)
        return false;
    words = MIN(*count * entry_words(q), (entry_words(q) << away->block_bits) - index);
    from = atomic_load_explicit(&block->words, memory_order_acquire) + index;
    for (size_t i = 0; i < words; i++)
        copy[i] = atomic_load_explicit(&from[i], memory_order_acquire);
    *count = (uint32_t)(words / entry_words(q));
    return atomic_load_explicit(&block->sequence, memory_order_relaxed) == sequence;
}

int away_lookup(Qcow2 *q, Away *away, uint64_t offset, uint64_t bytes, Map *ret_map)
{
    LookupCall call = {.q = q, .away = away, .offset = offset, .bytes = bytes, .ret_map = ret_map};
    uint64_t copy[LOOKUP_WORDS], clusters = (in_cluster(q, offset) + bytes - 1) >> q->cluster_bits;
    uint32_t count = (uint32_t)MIN(clusters + 1, LOOKUP_WORDS / entry_words(q));

    if (LIKELY(copy_entries(q, away, offset, copy, &count)) &&
        map_entries(q, (const uint8_t *)copy, 0, count, offset, bytes, ret_map))
        return 0;
    return loop_call(q->node->home, lookup_at_home, &call);
}

/* ---- Reads in flight ---- */

Away *away_get(Qcow2 *q)
{
    Away *away = atomic_load_explicit(&q->away, memory_order_acquire);

    if (UNLIKELY(!away) && loop_call(q->node->home, away_start, q) == 0)
        away = atomic_load_explicit(&q->away, memory_order_acquire);
    return away;
}

/* Home looks at as many counters as have been used. */
static void raise_loops(Away *away, unsigned needed)
{
    unsigned loops = atomic_load(&away->loops);

    while (loops < needed && !atomic_compare_exchange_weak(&away->loops, &loops, needed))
        ;
}

_Atomic uint64_t *away_begin(Away *away)
{
    unsigned index = loop_index(loop_current());
    unsigned epoch = atomic_load_explicit(&away->epoch, memory_order_relaxed);
    _Atomic uint64_t *inflight = &away->inflight[index].of_epoch[epoch];

    if (UNLIKELY(index >= atomic_load_explicit(&away->loops, memory_order_acquire)))
        raise_loops(away, index + 1);
    atomic_store(inflight, atomic_load_explicit(inflight, memory_order_relaxed) + 1);
    return inflight;
}

void away_end(_Atomic uint64_t *inflight)
{
    uint64_t count = atomic_load_explicit(inflight, memory_order_relaxed);

    atomic_store_explicit(inflight, count - 1, memory_order_release);
}

bool away_in_flight(const Qcow2 *q, unsigned epoch)
{
    const Away *away = atomic_load_explicit(&q->away, memory_order_relaxed);
    unsigned loops = away ? atomic_load(&away->loops) : 0;

    for (unsigned i = 0; i < loops; i++)
        if (atomic_load(&away->inflight[i].of_epoch[epoch]))
            return true;
    return false;
}
