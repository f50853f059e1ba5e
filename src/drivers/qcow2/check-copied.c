/* SPDX-License-Identifier: Apache-2.0 */
/* The check of the flag in L1 and L2 entries that says: this is the only reference, so the cluster may be
 * written in place. Only the active tables matter. */
#include "base/mem.h"
#include "drivers/qcow2/check-priv.h"

/* Refcounts are right by now if they could be made right; the flag must not claim more than they say. */
static bool may_fix(const Check *c, bool set)
{
    const CheckResult *result = c->result;

    if (set && c->hidden)
        return false;
    if (c->fix & CHECK_FIX_ERRORS)
        return !c->rebuild;
    return (c->fix & CHECK_FIX_LEAKS) && !result->check_errors && !result->corruptions && !result->leaks;
}

/* True: *entry was changed. */
static bool judge(Check *c, bool fixable, uint64_t *entry, CheckStored stored, uint64_t weight)
{
    bool set = stored == STORED_ONE;

    if (stored == STORED_UNKNOWN || set == ((*entry & QCOW2_COPIED) != 0))
        return false;
    check_say(
        c, "entry %#" PRIx64 " should %s the flag for a single reference", *entry, set ? "have" : "not have");
    if (!fixable || !may_fix(c, set)) {
        c->result->corruptions += weight;
        return false;
    }
    *entry ^= QCOW2_COPIED;
    return true;
}

/* ---- L1 ---- */

static int write_l1_entry(Check *c, uint32_t index, uint64_t entry)
{
    Qcow2 *q = c->q;
    uint8_t bytes[8];
    int r;

    put_be64(bytes, entry);
    r = edge_pwrite(q->file, q->l1_offset + index * UINT64_C(8), bytes, sizeof(bytes), 0);
    if (r == 0) {
        q->l1[index] = entry;
        c->result->corruptions_fixed++;
    }
    return r;
}

static int check_l1_entry(Check *c, uint32_t index)
{
    uint64_t entry = c->q->l1[index], offset = entry & QCOW2_OFFSET_MASK;
    CheckStored stored;
    int r = check_stored(c, offset >> c->q->cluster_bits, &stored);

    if (r < 0 || stored == STORED_UNKNOWN)
        return r;
    r = tally_add(&c->tables, offset / 512, 1);
    return r == 0 && judge(c, true, &entry, stored, 1) ? write_l1_entry(c, index, entry) : r;
}

/* ---- L2 ---- */

/* The table can be written: nothing but a table is there. */
static bool is_sound(const Check *c, uint64_t offset)
{
    const Qcow2 *q = c->q;

    return !in_cluster(q, offset) && offset + q->cluster_size <= c->file_bytes &&
           (metaset_kinds(&q->meta, offset >> q->cluster_bits) & ~(unsigned)META_INACTIVE_L2) == META_L2;
}

static int check_l2_entry(
    Check *c, bool fixable, uint64_t weight, uint8_t *table, uint32_t index, uint64_t *fixed)
{
    const Qcow2 *q = c->q;
    uint64_t entry = slice_entry(q, table, index), offset = entry & QCOW2_OFFSET_MASK;
    CheckStored stored = STORED_ONE;
    int r = 0;

    if ((entry & QCOW2_COMPRESSED) || (!offset && !(q->data_file && (entry & QCOW2_COPIED))))
        return 0;
    if (!q->data_file)
        r = check_stored(c, offset >> q->cluster_bits, &stored);
    if (r == 0 && judge(c, fixable, &entry, stored, weight)) {
        put_be64(table + (size_t)index * q->entry_bytes, entry);
        ++*fixed;
    }
    return r;
}

static int check_table(Check *c, uint64_t offset, uint64_t weight, uint8_t *table, void *arg)
{
    bool fixable = c->fix && is_sound(c, offset);
    uint64_t fixed = 0;
    int r = 0;

    for (uint32_t i = 0; r == 0 && i < 1U << c->q->l2_bits; i++)
        r = check_l2_entry(c, fixable, weight, table, i, &fixed);
    if (r == 0 && fixed) {
        r = edge_pwrite(c->q->file, offset, table, c->q->cluster_size, 0);
        c->result->corruptions_fixed += fixed;
    }
    return r;
}

int check_copied(Check *c)
{
    uint64_t before = c->result->corruptions_fixed;
    int r = 0;

    for (uint32_t i = 0; r == 0 && i < c->q->l1_entries; i++)
        if (c->q->l1[i] & QCOW2_OFFSET_MASK)
            r = check_l1_entry(c, i);
    if (r == 0)
        r = check_each_table(c, check_table, NULL);
    return r == 0 && c->result->corruptions_fixed != before ? edge_flush(c->q->file) : r;
}
