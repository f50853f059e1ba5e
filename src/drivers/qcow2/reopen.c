/* SPDX-License-Identifier: Apache-2.0 */
/*
 * New options for an open image. The node is at rest and has stopped writing, so that caches hold nothing
 * dirty and may be replaced, and nobody reads away from home.
 */
#include "base/mem.h"
#include "drivers/qcow2/qcow2-priv.h"
#include "generated/types.h"

/* What abort puts back. */
typedef struct Qcow2Before {
    bool lazy_refcounts, pass_discard_request, pass_discard_snapshot, pass_discard_other, discard_no_unref;
    unsigned overlap_check;
    uint64_t clean_interval_ns;
    Cache l2, refcounts; /* after prepare: those that are not in force */
} Qcow2Before;

const char *const image_reopen_options[] = {"lazy-refcounts", "pass-discard-request", "pass-discard-snapshot",
    "pass-discard-other", "discard-no-unref", "overlap-check", "cache-size", "l2-cache-size",
    "l2-cache-entry-size", "refcount-cache-size", "cache-clean-interval", NULL};

static Qcow2Before *remember(const Qcow2 *q)
{
    Qcow2Before *before = mem_new(Qcow2Before);

    before->lazy_refcounts = q->lazy_refcounts;
    before->pass_discard_request = q->pass_discard_request;
    before->pass_discard_snapshot = q->pass_discard_snapshot;
    before->pass_discard_other = q->pass_discard_other;
    before->discard_no_unref = q->discard_no_unref;
    before->overlap_check = q->overlap_check;
    before->clean_interval_ns = q->clean_interval_ns;
    return before;
}

static void put_back(Qcow2 *q, const Qcow2Before *before)
{
    q->lazy_refcounts = before->lazy_refcounts;
    q->pass_discard_request = before->pass_discard_request;
    q->pass_discard_snapshot = before->pass_discard_snapshot;
    q->pass_discard_other = before->pass_discard_other;
    q->discard_no_unref = before->discard_no_unref;
    q->overlap_check = before->overlap_check;
    q->clean_interval_ns = before->clean_interval_ns;
}

static void swap_caches(Qcow2 *q, Qcow2Before *before)
{
    cache_swap(&q->l2, &before->l2);
    cache_swap(&q->refcounts, &before->refcounts);
    image_set_slices(q);
    away_done(q); /* its blocks are as many, and as large, as the caches allowed */
}

static bool same_tables(const Qcow2Header *a, const Qcow2Header *b)
{
    return a->version == b->version && a->cluster_bits == b->cluster_bits && a->size == b->size &&
           a->l1_offset == b->l1_offset && a->l1_entries == b->l1_entries && a->rt_offset == b->rt_offset &&
           a->rt_clusters == b->rt_clusters && a->refcount_order == b->refcount_order &&
           a->incompatible == b->incompatible && a->snapshots == b->snapshots;
}

static int same_l1(Qcow2 *q)
{
    size_t bytes = (size_t)q->l1_entries * 8;
    AUTO_FREE uint8_t *table = mem_try_zalloc(MAX(bytes, (size_t)1), 1);
    int r = !table ? -ENOMEM : bytes ? child_pread(q->file, q->l1_offset, table, bytes) : 0;

    for (uint32_t i = 0; r == 0 && i < q->l1_entries; i++)
        if (get_be64(table + i * 8) != q->l1[i])
            r = -EINVAL;
    return r;
}

/* Another file node is a filter above or below the one before, or a copy of the image. */
static int check_file(Qcow2 *q, Error *err)
{
    Node *node = edge_node(q->file);
    uint8_t head[QCOW2_HEADER_BYTES] = {0};
    size_t bytes = MIN(node_size(node), (uint64_t)sizeof(head));
    Qcow2Header header = {0};
    int r;

    if (node == q->file_node)
        return 0;
    r = edge_pread(q->file, 0, head, bytes);
    if (r < 0)
        return err_set_errno(err, r, "Could not read qcow2 header");
    r = qcow2_header_decode(head, bytes, &header, err);
    if (r < 0)
        return err_prefix(err, r, "Node '%s'", node->name);
    r = same_tables(&header, &q->header) ? same_l1(q) : -EINVAL;
    return r < 0 ? err_set(err, r,
                       "Node '%s' does not hold the image of node '%s': open it as a node of its own",
                       node->name, q->node->name)
                 : 0;
}

int image_reopen_prepare(Node *node, const BlockdevOptions *options, Error *err)
{
    const BlockdevOptionsQcow2 *o = &options->u.qcow2;
    Qcow2 *q = node->state;
    Qcow2Before *before = remember(q);
    int r = check_file(q, err);

    if (r == 0)
        r = image_read_options(q, o, err);
    if (r == 0)
        r = image_init_caches(q, o, &before->l2, &before->refcounts, err);
    if (r < 0) {
        put_back(q, before);
        cache_done(&before->l2);
        cache_done(&before->refcounts);
        free(before);
        return r;
    }
    swap_caches(q, before);
    q->before = before;
    return 0;
}

static void forget(Qcow2 *q)
{
    Qcow2Before *before = TAKE(q->before);

    cache_done(&before->l2);
    cache_done(&before->refcounts);
    free(before);
}

void image_reopen_commit(Node *node)
{
    Qcow2 *q = node->state;

    q->file_node = edge_node(q->file);
    forget(q);
    clean_end(q); /* its interval may be another one */
    clean_begin(q);
}

void image_reopen_abort(Node *node)
{
    Qcow2 *q = node->state;

    swap_caches(q, q->before);
    put_back(q, q->before);
    forget(q);
}
