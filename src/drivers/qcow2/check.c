/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The consistency check: passes over the image, and what must be done before and after. The counts are those
 * of the reference's check, except that a refcount of zero whose block is sound is corrected in place.
 */
#include "base/log.h"
#include "base/mem.h"
#include "drivers/qcow2/check-priv.h"
#include "drivers/qcow2/snapshot.h"

/* Problems that are described; the counts say how many there were. */
#define MAX_MESSAGES 64

void check_say(Check *c, const char *fmt, ...)
{
    AUTO_FREE char *text = NULL;
    va_list args;

    if (c->messages > MAX_MESSAGES)
        return;
    va_start(args, fmt);
    text = str_vprintf(fmt, args);
    va_end(args);
    if (c->messages++ < MAX_MESSAGES)
        log_warn("check of node '%s': %s", c->q->node->name, text);
    else
        log_warn("check of node '%s': further problems are only counted", c->q->node->name);
}

/* ---- A pass ---- */

static void check_init(Check *c, Qcow2 *q, unsigned fix, CheckResult *result, Error *err)
{
    *c = (Check){.q = q, .err = err, .fix = fix, .result = result, .budget = LIMIT_CHECK_BYTES};
    c->counts.pages.budget = c->tables.budget = &c->budget;
    c->counts.page_bits = MIN(q->block_rc_bits, 10U); /* so that one block counts a page's clusters */
    c->file_bytes = node_size(edge_node(q->file));
    c->clusters = div_round_up(c->file_bytes, q->cluster_size);
    *result = (CheckResult){.total_clusters = div_round_up(align_up(q->header.size, 512), q->cluster_size)};
}

static int check_size(Check *c)
{
    return c->clusters <= LIMIT_CHECK_CLUSTERS
               ? 0
               : err_set(c->err, -EFBIG,
                     "The file has %" PRIu64 " clusters; no more than %" PRIu64 " can be checked",
                     c->clusters, LIMIT_CHECK_CLUSTERS);
}

static void check_done(Check *c)
{
    tally_done(&c->tables);
    counts_done(&c->counts);
}

/* An error for a step that did not say what went wrong. */
static int explain(Check *c, int r)
{
    if (r < 0 && !err_is_set(c->err)) {
        if (r == -E2BIG)
            return err_set(c->err, r,
                "The image refers to so many places that checking it takes more than %" PRIu64
                " bytes of memory",
                (uint64_t)LIMIT_CHECK_BYTES);
        return err_set_errno(c->err, r, "Could not check the image");
    }
    return r;
}

/* What a pass has found and cannot put right. */
typedef struct Remaining {
    bool rebuild;        /* the refcount structure has to be replaced; the refcounts were left alone then */
    uint64_t incomplete; /* snapshots; among the corruptions */
} Remaining;

static int run_pass(Qcow2 *q, unsigned fix, CheckResult *result, Remaining *ret_remaining, Error *err)
{
    Check c;
    int r;

    check_init(&c, q, fix, result, err);
    r = check_size(&c);
    if (r == 0)
        r = check_walk(&c);
    if (r == 0)
        r = check_blocks(&c);
    if (r == 0)
        r = check_refcounts(&c);
    if (r == 0)
        r = check_copied(&c);
    *ret_remaining = (Remaining){.rebuild = c.rebuild, .incomplete = c.incomplete};
    check_done(&c);
    return explain(&c, r);
}

static int run_rebuild(Qcow2 *q, Error *err)
{
    CheckResult ignored;
    Check c;
    int r;

    check_init(&c, q, 0, &ignored, err);
    c.messages = MAX_MESSAGES + 1; /* said before */
    r = check_walk(&c);
    if (r == 0 && c.hidden)
        r = err_set(err, -EIO,
            "The refcount structure must be rebuilt, but some tables are damaged or cannot be read, and with "
            "them "
            "the knowledge of what is in use; copy what can be read into a new image");
    if (r == 0)
        r = check_rebuild(&c);
    check_done(&c);
    return explain(&c, r);
}

/* ---- Before and after ---- */

/* What the file holds is what counts from now on. */
static int reload(Qcow2 *q, Error *err)
{
    int r;

    for (int i = 0; i < 2; i++) { /* the first turn forgets what was in use */
        cache_clean(&q->l2);
        cache_clean(&q->refcounts);
    }
    free(TAKE(q->rt));
    metaset_done(&q->meta);
    inflate_done(q);
    away_forget(q);
    q->free_hint = q->compressed_at = 0;
    q->preallocated_known = false;
    r = image_prepare_writes(q, err);
    if (r < 0) /* the tables from before are not those of the file */
        image_refuse(q);
    return r;
}

/* What a repair has found right may be the work of one that was killed, and in the kernel only. */
static int mark_sound(Qcow2 *q, Error *err)
{
    uint64_t marks = q->header.incompatible & (QCOW2_INCOMPATIBLE_DIRTY | QCOW2_INCOMPATIBLE_CORRUPT);
    int r = marks ? edge_flush(q->file) : 0;

    if (r == 0 && marks)
        r = image_change_incompatible(q, 0, marks);
    return r < 0 ? err_set_errno(err, r, "Could not update qcow2 header") : 0;
}

static int repair_refcounts(Qcow2 *q, unsigned fix, CheckResult *result, Remaining *ret_remaining, Error *err)
{
    CheckResult first;
    int r = run_pass(q, fix, &first, ret_remaining, err);

    if (r == 0 && ret_remaining->rebuild && (fix & CHECK_FIX_ERRORS)) {
        uint64_t leaks = first.leaks, corruptions = first.corruptions;

        r = run_rebuild(q, err);
        if (r == 0)
            r = reload(q, err);
        if (r == 0)
            r = run_pass(q, fix, &first, ret_remaining, err);
        first.leaks_fixed += leaks - MIN(leaks, first.leaks);
        first.corruptions_fixed += corruptions - MIN(corruptions, first.corruptions);
    }
    if (r < 0)
        return r;
    if (first.leaks_fixed | first.corruptions_fixed) {
        r = run_pass(q, 0, result, ret_remaining, err);
        result->leaks_fixed = first.leaks_fixed;
        result->corruptions_fixed = first.corruptions_fixed;
        return r < 0 ? r : reload(q, err);
    }
    *result = first;
    return 0;
}

/* A new table takes clusters that are free, so the rest of the image has to be sound. */
static int repair_snapshots(Qcow2 *q, uint64_t incomplete, CheckResult *result, Error *err)
{
    CheckResult before = *result;
    Remaining ignored;
    int r = snapshot_complete_entries(q, err);

    if (r == 0)
        r = run_pass(q, 0, result, &ignored, err);
    result->leaks_fixed = before.leaks_fixed;
    result->corruptions_fixed = before.corruptions_fixed + incomplete;
    return r;
}

static int repair(Qcow2 *q, unsigned fix, CheckResult *result, Error *err)
{
    Remaining remaining;
    int r = repair_refcounts(q, fix, result, &remaining, err);

    if (r == 0 && (fix & CHECK_FIX_ERRORS) && remaining.incomplete && !result->check_errors &&
        result->corruptions == remaining.incomplete)
        r = repair_snapshots(q, remaining.incomplete, result, err);
    return r == 0 && !result->check_errors && !result->corruptions ? mark_sound(q, err) : r;
}

int check_run(Qcow2 *q, unsigned fix, CheckResult *ret_result, Error *err)
{
    Remaining ignored;
    int r = image_load_reftable(q);

    if (r < 0)
        return err_set_errno(err, r, "Could not read the refcount table");
    return fix ? repair(q, fix, ret_result, err) : run_pass(q, 0, ret_result, &ignored, err);
}

/* ---- The driver's operation ---- */

int check_run_node(Node *node, unsigned fix, CheckResult *ret_result, Error *err)
{
    Qcow2 *q = node->state;
    int r = 0;

    if (q->checking)
        return err_set(err, -EBUSY, "Node '%s' is being checked already", node->name);
    if (q->corrupt && fix)
        return err_set(err, -EIO,
            "Node '%s' was found corrupt while it was in use; close it, then repair the image", node->name);
    q->checking = true;
    co_mutex_lock_shielded(&q->change_lock);
    if (q->writable && !q->corrupt)
        r = image_settle_bitmaps(q);
    if (r == 0 && q->writable && !q->corrupt)
        r = sync_close(q);
    if (r < 0)
        err_set_errno(err, r, "Could not write what is cached");
    else
        r = check_run(q, fix, ret_result, err);
    co_mutex_unlock(&q->change_lock);
    q->checking = false;
    return r;
}
