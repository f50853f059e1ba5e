/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/qcow2-snapshot.h"

#include <string.h>

Qcow2Snapshot qcow2_snapshot_decode(const uint8_t *entry)
{
    const uint8_t *extra = entry + QCOW2_SNAPSHOT_BYTES;
    uint32_t extra_bytes = get_be32(entry + 36);
    Qcow2Snapshot s = {
        .l1_offset = get_be64(entry),
        .l1_entries = get_be32(entry + 8),
        .id_bytes = get_be16(entry + 12),
        .name_bytes = get_be16(entry + 14),
        .date_sec = get_be32(entry + 16),
        .date_nsec = get_be32(entry + 20),
        .vm_clock_ns = get_be64(entry + 24),
        .vm_state_bytes = extra_bytes >= 8 ? get_be64(extra) : get_be32(entry + 32),
        .has_disk_bytes = extra_bytes >= 16,
        .disk_bytes = extra_bytes >= 16 ? get_be64(extra + 8) : 0,
        .icount = extra_bytes >= 24 ? get_be64(extra + 16) : QCOW2_NO_ICOUNT,
        .id = (const char *)extra + extra_bytes,
    };

    s.name = s.id + s.id_bytes;
    return s;
}

size_t qcow2_snapshot_encode(const Qcow2Snapshot *s, uint8_t *out)
{
    uint8_t *extra, *texts;

    if (!out)
        return (size_t)QCOW2_SNAPSHOT_BYTES + QCOW2_SNAPSHOT_EXTRA_BYTES + s->id_bytes + s->name_bytes;
    extra = out + QCOW2_SNAPSHOT_BYTES;
    texts = extra + QCOW2_SNAPSHOT_EXTRA_BYTES;
    put_be64(out, s->l1_offset);
    put_be32(out + 8, s->l1_entries);
    put_be16(out + 12, s->id_bytes);
    put_be16(out + 14, s->name_bytes);
    put_be32(out + 16, s->date_sec);
    put_be32(out + 20, s->date_nsec);
    put_be64(out + 24, s->vm_clock_ns);
    put_be32(out + 32, s->vm_state_bytes > UINT32_MAX ? 0 : (uint32_t)s->vm_state_bytes);
    put_be32(out + 36, QCOW2_SNAPSHOT_EXTRA_BYTES);
    put_be64(extra, s->vm_state_bytes);
    put_be64(extra + 8, s->disk_bytes);
    put_be64(extra + 16, s->icount);
    memcpy(texts, s->id, s->id_bytes);
    memcpy(texts + s->id_bytes, s->name, s->name_bytes);
    return (size_t)(texts + s->id_bytes + s->name_bytes - out);
}
