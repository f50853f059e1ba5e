/* SPDX-License-Identifier: Apache-2.0 */
/* Write-back of metadata in the order that qcow2-priv.h describes, and flush. */
#include "base/mem.h"
#include "drivers/qcow2/qcow2-priv.h"

/* ---- L1 ---- */

/* Copies the dirty sectors of the L1 table as they are to be written. */
static int l1_freeze(Qcow2 *q)
{
    uint32_t sectors = (q->l1_entries + 63) / 64;
    size_t count = 0;

    if (!q->l1_dirty_count)
        return 0;
    q->l1_frozen = mem_try_zalloc(q->l1_dirty_count, sizeof(*q->l1_frozen));
    if (!q->l1_frozen)
        return -ENOMEM;
    for (uint32_t sector = 0; sector < sectors && count < q->l1_dirty_count; sector++) {
        struct L1Frozen *frozen = &q->l1_frozen[count];

        if (!q->l1_dirty[sector])
            continue;
        q->l1_dirty[sector] = 0;
        frozen->sector = sector;
        for (uint32_t i = 0; i < 64 && sector * 64 + i < q->l1_entries; i++)
            put_be64(frozen->bytes + i * 8, q->l1[sector * 64 + i]);
        count++;
    }
    q->l1_frozen_count = count;
    q->l1_dirty_count = 0;
    return 0;
}

static void l1_thaw(Qcow2 *q, size_t written)
{
    for (size_t i = written; i < q->l1_frozen_count; i++) {
        uint32_t sector = q->l1_frozen[i].sector;

        q->l1_dirty_count += !q->l1_dirty[sector];
        q->l1_dirty[sector] = 1;
    }
    free(TAKE(q->l1_frozen));
    q->l1_frozen_count = 0;
}

static int l1_write(Qcow2 *q)
{
    size_t done = 0;
    int r = 0;

    for (; done < q->l1_frozen_count; done++) {
        uint64_t at = (uint64_t)q->l1_frozen[done].sector * 512;
        size_t bytes = MIN((size_t)512, (size_t)q->l1_entries * 8 - at);

        r = edge_pwrite(q->file, q->l1_offset + at, q->l1_frozen[done].bytes, bytes, 0);
        if (r < 0)
            break;
    }
    l1_thaw(q, done);
    return r;
}

/* ---- Groups ---- */

int sync_refcounts(Qcow2 *q)
{
    return cache_write_dirty(&q->refcounts);
}

static int flush_children(Qcow2 *q)
{
    int r = q->data != q->file ? edge_flush(q->data) : 0;

    return r < 0 ? r : edge_flush(q->file);
}

/* Steps 1 and 2; frozen is what is to be written. */
static int write_groups(Qcow2 *q)
{
    int r;

    q->mapping_unsynced = true;
    r = q->refcounts_lag ? 0 : sync_refcounts(q);
    if (r == 0)
        r = flush_children(q);
    if (r < 0) {
        l1_thaw(q, 0);
        cache_unfreeze(&q->l2);
        return r;
    }
    r = cache_write_frozen(&q->l2);
    if (r < 0) {
        l1_thaw(q, 0);
        return r;
    }
    r = l1_write(q);
    if (r == 0)
        r = edge_flush(q->file);
    if (r == 0)
        q->mapping_unsynced = false;
    return r;
}

/* Hold writeback_lock. */
static int writeback_locked(Qcow2 *q)
{
    bool unordered;
    int r;

    co_mutex_lock_shielded(&q->l2.write_lock);
    unordered = q->unordered;
    r = l1_freeze(q);
    if (r == 0) {
        cache_freeze(&q->l2);
        q->unordered = false; /* of what is in the cache from now on */
        free_move(q, FREE_PENDING, FREE_WRITING);
        if (q->l1_frozen_count || !list_empty(&q->l2.frozen) || q->mapping_unsynced ||
            q->frees[FREE_WRITING].count)
            r = write_groups(q);
        else
            r = flush_children(q);
    }
    co_mutex_unlock(&q->l2.write_lock);
    if (r == 0)
        free_durable(q);
    else
        q->unordered |= unordered;
    return r;
}

int run_shared(Qcow2 *q, CoMutex *lock, SharedRun *run, int (*fn)(Qcow2 *q))
{
    uint64_t needed = run->begun + 1;
    int r = 0;

    co_mutex_lock_shielded(lock);
    if (run->done < needed) {
        uint64_t number = ++run->begun;

        r = fn(q);
        if (r == 0)
            run->done = number;
    }
    co_mutex_unlock(lock);
    return r;
}

int sync_writeback(Qcow2 *q)
{
    return run_shared(q, &q->writeback_lock, &q->writeback, writeback_locked);
}

/* Hold writeback_lock. */
static int publish_locked(Qcow2 *q)
{
    int r;

    if (list_empty(&q->l2.dirty) && !q->l1_dirty_count)
        return 0;
    if (q->unordered || q->l1_dirty_count)
        return writeback_locked(q);
    co_mutex_lock_shielded(&q->l2.write_lock);
    cache_freeze(&q->l2);
    q->mapping_unsynced = true;
    r = cache_write_frozen(&q->l2);
    co_mutex_unlock(&q->l2.write_lock);
    return r;
}

int sync_publish(Qcow2 *q)
{
    return run_shared(q, &q->writeback_lock, &q->publish, publish_locked);
}

int sync_flush(Qcow2 *q)
{
    int r = sync_writeback(q);

    if (r == 0 && q->frees[FREE_READY].count)
        (void)!free_reclaim(q); /* what is not freed now is only leaked for a while */
    return r;
}

int sync_close(Qcow2 *q)
{
    int r = sync_writeback(q);

    if (r < 0)
        return r;
    free_durable(q);
    refcount_release_reserve(q);
    r = free_reclaim(q);
    if (r == 0)
        r = sync_refcounts(q);
    if (r == 0)
        r = edge_flush(q->file);
    if (r < 0 || !q->refcounts_lag)
        return r;
    /* Even if the file cannot be made to say so, they do not lag any more; and when they do again, it is told
     * anew. */
    q->refcounts_lag = false;
    return image_change_incompatible(q, 0, QCOW2_INCOMPATIBLE_DIRTY);
}
