/* SPDX-License-Identifier: Apache-2.0 */
/* Internal snapshots: the table is checked so that nothing else depends on its contents; it is not
 * interpreted yet. */
#include "drivers/qcow2/qcow2-priv.h"

#define SNAPSHOT_BYTES 40
#define MAX_EXTRA_BYTES LIMIT_SNAPSHOT_EXTRA_BYTES
#define MAX_TABLE_BYTES LIMIT_SNAPSHOT_TABLE_BYTES

int image_check_snapshots(Qcow2 *q, Error *err)
{
    uint64_t at = q->header.snapshots_offset, start = at;
    uint8_t fixed[SNAPSHOT_BYTES];

    for (uint32_t i = 0; i < q->header.snapshots; i++) {
        uint64_t l1_offset, extra;
        int r;

        at = align_up(at, 8);
        r = child_pread(q->file, at, fixed, sizeof(fixed));
        if (r < 0)
            return err_set_errno(err, r, "Could not read snapshots: Failed to read snapshot table");
        l1_offset = get_be64(fixed);
        extra = get_be32(fixed + 36);
        if (in_cluster(q, l1_offset))
            return err_set(
                err, -EINVAL, "Could not read snapshots: L1 table of snapshot %" PRIu32 " is unaligned", i);
        if (get_be32(fixed + 8) > QCOW2_MAX_L1_BYTES / 8)
            return err_set(
                err, -EFBIG, "Could not read snapshots: L1 table of snapshot %" PRIu32 " too large", i);
        if (extra > MAX_EXTRA_BYTES)
            return err_set(err, -EINVAL,
                "Could not read snapshots: Too much extra metadata in snapshot table entry %" PRIu32, i);
        at += SNAPSHOT_BYTES + extra + get_be16(fixed + 12) + get_be16(fixed + 14);
        if (at - start > MAX_TABLE_BYTES)
            return err_set(err, -EFBIG, "Could not read snapshots: Snapshot table is too big");
    }
    return 0;
}
