/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writes must not go where the image keeps its own structures. What is active is in the set of metadata
 * anyway, since the engine depends on it; what snapshots have is added here if the options ask for it.
 */
#include "base/log.h"
#include "base/mem.h"
#include "drivers/qcow2/qcow2-priv.h"

#define PIECE_ENTRIES 8192

/* By the number of the kind's bit. */
static const char *const kind_names[] = {"qcow2_header", "active L1 table", "active L2 table",
    "refcount table", "refcount block", "snapshot table", "bitmap directory", "inactive L1 table",
    "inactive L2 table"};

int write_overlap_check(Qcow2 *q, uint64_t host, uint64_t bytes, unsigned ignore_kinds)
{
    uint64_t last = (host + bytes - 1) >> q->cluster_bits;

    for (uint64_t cluster = host >> q->cluster_bits; cluster <= last; cluster++) {
        unsigned kinds = metaset_kinds(&q->meta, cluster) & q->overlap_check & ~ignore_kinds;

        if (UNLIKELY(kinds))
            return image_corrupt(q, true, (int64_t)host, (int64_t)bytes,
                "Preventing invalid write on metadata (overlaps with %s)", kind_names[__builtin_ctz(kinds)]);
    }
    return 0;
}

/* ---- Snapshots ---- */

static int protect_inactive_l2(Qcow2 *q, const SnapshotPlace *place)
{
    AUTO_FREE uint64_t *piece = mem_try_zalloc(PIECE_ENTRIES, 8);
    int r = piece ? 0 : -ENOMEM;

    for (uint32_t done = 0; r == 0 && done < place->l1_entries; done += PIECE_ENTRIES) {
        uint32_t count = MIN(place->l1_entries - done, (uint32_t)PIECE_ENTRIES);

        r = child_pread(q->file, place->l1_offset + done * UINT64_C(8), piece, count * 8);
        for (uint32_t i = 0; r == 0 && i < count; i++) {
            uint64_t table = be64toh(piece[i]) & QCOW2_OFFSET_MASK;

            if (table)
                r = metaset_add(&q->meta, table >> q->cluster_bits, META_INACTIVE_L2);
        }
    }
    return r;
}

static int protect_snapshot(Qcow2 *q, const SnapshotPlace *place)
{
    uint64_t bytes = place->l1_entries * UINT64_C(8), first = place->l1_offset >> q->cluster_bits;
    int r = 0;

    for (uint64_t i = 0; r == 0 && i < div_round_up(bytes, q->cluster_size); i++)
        r = metaset_add(&q->meta, first + i, META_INACTIVE_L1);
    return r == 0 && (q->overlap_check & META_INACTIVE_L2) ? protect_inactive_l2(q, place) : r;
}

int overlap_protect_snapshots(Qcow2 *q, Error *err)
{
    uint64_t at = q->header.snapshots_offset, bytes = 0;
    SnapshotPlace place = {0};
    int r = 0;

    if (q->node->for_check || !(q->overlap_check & (META_INACTIVE_L1 | META_INACTIVE_L2)))
        return 0;
    for (uint32_t i = 0; r == 0 && i < q->header.snapshots; i++) {
        r = snapshot_next(q, &at, &place);
        if (r == 0 && !snapshot_l1_is_sound(q, place.l1_offset, place.l1_entries))
            continue;
        bytes += place.l1_entries * UINT64_C(8);
        if (r == 0 && bytes > LIMIT_PROTECTED_L1_BYTES)
            return err_set(err, -EFBIG,
                "The L1 tables of the snapshots have more than %" PRIu64
                " bytes in all; open the image read-only or with 'overlap-check' set to 'constant'",
                LIMIT_PROTECTED_L1_BYTES);
        if (r == 0)
            r = protect_snapshot(q, &place);
    }
    return r < 0 ? err_set_errno(err, r, "Could not protect the tables of the snapshots") : 0;
}

void overlap_snapshots_changed(Qcow2 *q)
{
    AUTO_ERROR Error err = ERROR_INIT;

    metaset_remove_all(&q->meta, META_INACTIVE_L1 | META_INACTIVE_L2);
    if (overlap_protect_snapshots(q, &err) == 0)
        return;
    log_warn("node '%s': writes are not checked against tables of snapshots any more: %s", q->node->name,
        err.message);
    q->overlap_check &= ~(unsigned)(META_INACTIVE_L1 | META_INACTIVE_L2);
}
