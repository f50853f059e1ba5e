/* SPDX-License-Identifier: Apache-2.0 */
/* The journal of bitmaps: see stored.h, and docs/qcow2-bitmap-journal.md for what is on disk. */
#include "base/mem.h"
#include "drivers/qcow2/stored.h"

/* How often, at most, bitmaps are written back so that intents can be taken back. */
#define INTERVAL_NS UINT64_C(5000000000)

static uint64_t log_clusters(const Qcow2 *q)
{
    return div_round_up(QCOW2_JOURNAL_BYTES, q->cluster_size);
}

static void put_regions(const RegionSet *set, uint8_t *page)
{
    for (unsigned i = 0; i < JOURNAL_WORDS; i++)
        put_le64(page + (size_t)i * 8, set->words[i]);
}

static void region_set_add(RegionSet *set, uint64_t region)
{
    set->words[region / 64] |= UINT64_C(1) << region % 64;
}

bool region_set_any(const RegionSet *set, uint64_t first, uint64_t last)
{
    for (uint64_t word = first / 64; word <= last / 64 && word < JOURNAL_WORDS; word++) {
        uint64_t bits = set->words[word];

        if (word == first / 64)
            bits &= ~UINT64_C(0) << first % 64;
        if (word == last / 64)
            bits &= ~UINT64_C(0) >> (63 - last % 64);
        if (bits)
            return true;
    }
    return false;
}

/* ---- Loading ---- */

void journal_free(Journal *j)
{
    if (!j)
        return;
    free(j->state);
    free(j);
}

static Journal *journal_new(uint64_t offset, const Qcow2JournalHead *head)
{
    Journal *j = mem_try_zalloc(1, sizeof(*j));

    if (!j)
        return NULL;
    j->offset = offset;
    j->head = *head;
    j->regions = (uint32_t)div_round_up(head->disk_bytes, UINT64_C(1) << head->region_bits);
    j->state = mem_try_zalloc(MAX(j->regions, 1u), sizeof(*j->state));
    j->interval_ns = INTERVAL_NS;
    j->next_ns = loop_now_ns() + j->interval_ns;
    if (!j->state) {
        journal_free(j);
        return NULL;
    }
    return j;
}

static void take_intents(Journal *j, const uint8_t *page)
{
    for (uint32_t r = 0; r < j->regions; r++) {
        if (!(page[r / 8] >> r % 8 & 1))
            continue;
        region_set_add(&j->wanted, r);
        region_set_add(&j->durable, r);
        j->state[r] = REGION_DURABLE | REGION_TOUCHED;
    }
}

int journal_load(Qcow2 *q)
{
    StoredBitmaps *s = q->stored;
    AUTO_FREE uint8_t *log = mem_try_zalloc(1, QCOW2_JOURNAL_BYTES);
    AUTO_FREE Qcow2JournalHead *head = mem_try_zalloc(1, sizeof(*head));
    int r = log && head ? child_pread(q->file, s->log_offset, log, QCOW2_JOURNAL_BYTES) : -ENOMEM;

    if (r < 0)
        return r;
    if (qcow2_journal_head_decode(log, q->header.size, head) < 0) {
        s->log_offset = 0;
        return 0;
    }
    s->journal = journal_new(s->log_offset, head);
    if (!s->journal)
        return -ENOMEM;
    take_intents(s->journal, log + QCOW2_JOURNAL_PAGE_BYTES);
    return 0;
}

bool journal_covers(const Journal *j, uint64_t table_offset)
{
    for (unsigned i = 0; j && i < QCOW2_JOURNAL_SLOTS; i++)
        if (j->head.slots[i] == table_offset)
            return true;
    return false;
}

/* ---- Start and end ---- */

static int write_log(Qcow2 *q, const Journal *j)
{
    AUTO_FREE uint8_t *log = mem_try_zalloc(1, QCOW2_JOURNAL_BYTES);
    int r;

    if (!log)
        return -ENOMEM;
    qcow2_journal_head_encode(&j->head, log);
    put_regions(&j->wanted, log + QCOW2_JOURNAL_PAGE_BYTES);
    r = edge_pwrite(q->file, j->offset, log, QCOW2_JOURNAL_BYTES, 0);
    if (r == 0)
        r = sync_refcounts(q);
    return r < 0 ? r : edge_flush(q->file);
}

/* The log is complete: from the last write here on it counts. */
static int announce(Qcow2 *q, uint64_t offset)
{
    uint8_t data[QCOW2_JOURNAL_EXT_BYTES];
    int r;

    qcow2_journal_ext_encode(offset, data);
    r = header_put_extension(q, QCOW2_EXT_JOURNAL, data);
    return r < 0 ? r : header_write_autoclear(q, q->header.autoclear | QCOW2_AUTOCLEAR_JOURNAL);
}

static void fill_head(const Qcow2 *q, Qcow2JournalHead *head)
{
    const StoredBitmaps *s = q->stored;
    unsigned slot = 0;

    head->disk_bytes = q->header.size;
    head->region_bits = qcow2_journal_region_bits(q->header.size);
    for (size_t i = 0; i < s->count && slot < QCOW2_JOURNAL_SLOTS; i++)
        if (stored_is_usable(s->items[i]))
            head->slots[slot++] = s->items[i]->table_offset;
}

int journal_start(Qcow2 *q)
{
    AUTO_FREE Qcow2JournalHead *head = mem_try_zalloc(1, sizeof(*head));
    uint64_t offset;
    Journal *j;
    int r;

    if (!head)
        return -ENOMEM;
    r = refcount_alloc_exact(q, log_clusters(q), &offset);
    if (r < 0)
        return r;
    fill_head(q, head);
    j = journal_new(offset, head);
    r = j ? image_protect(q, offset, QCOW2_JOURNAL_BYTES, META_BITMAPS) : -ENOMEM;
    if (r == 0)
        r = write_log(q, j);
    if (r == 0)
        r = announce(q, offset);
    if (r < 0) { /* leaked if the header may name it */
        journal_free(j);
        return r;
    }
    q->stored->journal = j;
    q->stored->log_offset = offset;
    return 0;
}

int journal_stop(Qcow2 *q)
{
    StoredBitmaps *s = q->stored;
    Journal *j = s->journal;
    int r = header_write_autoclear(q, q->header.autoclear & ~QCOW2_AUTOCLEAR_JOURNAL);

    if (r == 0)
        r = header_remove_extension(q, QCOW2_EXT_JOURNAL);
    if (r == 0)
        free_range(q, FREE_READY, j->offset, log_clusters(q) << q->cluster_bits, false);
    if (r < 0)
        return r;
    s->log_offset = 0;
    journal_free(TAKE(s->journal));
    return 0;
}

/* ---- Which bitmaps ---- */

static int write_slot(Qcow2 *q, unsigned slot)
{
    const Journal *j = q->stored->journal;
    uint8_t bytes[8];

    put_be64(bytes, j->head.slots[slot]);
    return child_write_durably(
        q->file, j->offset + QCOW2_JOURNAL_AT_SLOTS + (uint64_t)slot * 8, bytes, sizeof(bytes));
}

int journal_cover(Qcow2 *q, uint64_t table_offset)
{
    Journal *j = q->stored->journal;

    for (unsigned i = 0; i < QCOW2_JOURNAL_SLOTS; i++) {
        if (!j->head.slots[i]) {
            j->head.slots[i] = table_offset;
            return write_slot(q, i);
        }
    }
    return 0; /* the bitmap is not covered, as if there were no journal */
}

void journal_uncover(Qcow2 *q, uint64_t table_offset)
{
    Journal *j = q->stored->journal;

    for (unsigned i = 0; i < QCOW2_JOURNAL_SLOTS; i++) {
        if (j->head.slots[i] == table_offset) {
            j->head.slots[i] = 0;
            (void)!write_slot(
                q, i); /* only a bitmap that is made later can get the place, and it is covered */
        }
    }
}

/* ---- Intents ---- */

/* With the journal's lock. */
static int write_intents(Qcow2 *q)
{
    Journal *j = q->stored->journal;
    uint8_t page[QCOW2_JOURNAL_PAGE_BYTES];
    RegionSet written = j->wanted;
    int r;

    put_regions(&written, page);
    r = child_write_durably(q->file, j->offset + QCOW2_JOURNAL_PAGE_BYTES, page, sizeof(page));
    for (uint32_t word = 0; r == 0 && word < JOURNAL_WORDS; word++) {
        for (uint64_t fresh = written.words[word] & ~j->durable.words[word]; fresh; fresh &= fresh - 1)
            j->state[word * 64 + (unsigned)__builtin_ctzll(fresh)] |= REGION_DURABLE;
        j->durable.words[word] |= written.words[word];
    }
    return r;
}

static bool are_durable(const Journal *j, uint64_t first, uint64_t last)
{
    for (uint64_t r = first; r <= last; r++)
        if (UNLIKELY(!(j->state[r] & REGION_DURABLE)))
            return false;
    return true;
}

int journal_begin(Qcow2 *q, uint64_t offset, uint64_t bytes)
{
    Journal *j = q->stored->journal;
    uint64_t first = offset >> j->head.region_bits, last = (offset + bytes - 1) >> j->head.region_bits;

    while (UNLIKELY(!are_durable(j, first, last))) {
        int r;

        for (uint64_t region = first; region <= last; region++)
            region_set_add(&j->wanted, region);
        r = run_shared(q, &j->lock, &j->run, write_intents);
        if (r < 0)
            return r;
    }
    for (uint64_t r = first; r <= last; r++)
        j->state[r] = (j->state[r] + REGION_ONE) | REGION_TOUCHED;
    return 0;
}

void journal_end(Qcow2 *q, uint64_t offset, uint64_t bytes)
{
    Journal *j = q->stored->journal;
    uint64_t first = offset >> j->head.region_bits, last = (offset + bytes - 1) >> j->head.region_bits;

    for (uint64_t r = first; r <= last; r++)
        j->state[r] = (j->state[r] - REGION_ONE) | REGION_TOUCHED;
}

void journal_collect(Journal *j, RegionSet *ret_set)
{
    *ret_set = (RegionSet){0};
    for (uint32_t r = 0; r < j->regions; r++) {
        if (j->state[r] == REGION_DURABLE)
            region_set_add(ret_set, r);
        j->state[r] &= ~REGION_TOUCHED;
    }
}

void journal_clear(Qcow2 *q, const RegionSet *set)
{
    Journal *j = q->stored->journal;
    uint8_t page[QCOW2_JOURNAL_PAGE_BYTES];

    co_mutex_lock_shielded(&j->lock);
    for (uint32_t r = 0; r < j->regions; r++) {
        if (!region_set_has(set, r) || j->state[r] != REGION_DURABLE)
            continue;
        j->state[r] = 0;
        j->wanted.words[r / 64] &= ~(UINT64_C(1) << r % 64);
        j->durable.words[r / 64] &= ~(UINT64_C(1) << r % 64);
    }
    put_regions(&j->wanted, page);
    /* Need not be durable, nor succeed: an intent too many is only that. */
    (void)!edge_pwrite(q->file, j->offset + QCOW2_JOURNAL_PAGE_BYTES, page, sizeof(page), 0);
    co_mutex_unlock(&j->lock);
}
