/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Extensions of the header, added and taken away while the image is open. After a power cut at any moment the
 * chain of extensions is the old one or the new one: what a new extension holds is durable before the eight
 * bytes that end the chain are replaced by its type and length, and these eight bytes lie within a sector.
 * Room that cannot be given back keeps the type QCOW2_EXT_RETIRED, which no program looks at.
 *
 * One change at a time: who calls holds change_lock, or the node is being opened or closed, or (the journal,
 * at the first write) it is not drained, while those that hold change_lock have it drained.
 */
#include "base/mem.h"
#include "drivers/qcow2/header.h"

void header_area_done(HeaderArea *area)
{
    free(area->bytes);
}

static int walk(const Qcow2 *q, HeaderArea *area, uint32_t type)
{
    size_t start = q->header.header_bytes, at = 0, before = 0;
    AUTO_ERROR Error err = ERROR_INIT;
    Qcow2Extension extension;
    int r;

    while ((r = qcow2_extension_next(area->bytes + start, area->limit - start, &at, &extension, &err)) == 1) {
        if (extension.magic == type) {
            area->found = start + before;
            area->found_next = start + at;
        }
        if (extension.magic == QCOW2_EXT_RETIRED && extension.bytes == QCOW2_SMALL_EXT_BYTES)
            area->retired = start + before;
        if (extension.magic == QCOW2_EXT_FEATURE_NAMES) {
            area->names = start + before;
            area->names_bytes = extension.bytes;
        }
        before = at;
    }
    area->end = start + before;
    return r;
}

int header_area_read(Qcow2 *q, uint32_t type, HeaderArea *area)
{
    uint64_t backing = q->header.backing_offset;
    int r;

    *area = (HeaderArea){.size = q->cluster_size, .limit = q->cluster_size};
    if (backing && backing < area->limit)
        area->limit = backing;
    if (q->header.header_bytes > area->limit)
        return -EINVAL;
    area->bytes = mem_try_zalloc(1, area->size);
    if (!area->bytes)
        return -ENOMEM;
    r = child_pread(q->file, 0, area->bytes, area->size);
    return r < 0 ? r : walk(q, area, type);
}

bool header_area_has_end(const HeaderArea *area)
{
    return is_aligned(area->end, 8) && area->end + HEADER_EXTENSION_HEAD <= area->limit;
}

static int write_head(Qcow2 *q, size_t at, uint32_t type, uint32_t bytes)
{
    uint8_t head[HEADER_EXTENSION_HEAD];

    put_be32(head, type);
    put_be32(head + 4, bytes);
    return child_write_durably(q->file, at, head, sizeof(head));
}

/* Moves the name of the backing file behind where the chain will end. */
static int move_backing_name(Qcow2 *q, HeaderArea *area, size_t needed_end)
{
    size_t bytes = q->header.backing_bytes;
    size_t to = MAX(needed_end, area->limit + bytes); /* the copy must not touch the original */
    uint8_t place[8];
    int r;

    if (to > area->size || bytes > area->size - to)
        return -ENOSPC;
    r = child_write_durably(q->file, to, area->bytes + area->limit, bytes);
    put_be64(place, to);
    if (r == 0)
        r = child_write_durably(q->file, QCOW2_AT_BACKING_OFFSET, place, sizeof(place));
    if (r == 0)
        q->header.backing_offset = area->limit = to;
    return r;
}

/* Shortens the feature name table by two names: room for three extensions. */
static int make_room(Qcow2 *q, HeaderArea *area)
{
    uint8_t slots[3 * (HEADER_EXTENSION_HEAD + QCOW2_SMALL_EXT_BYTES)] = {0};
    uint32_t left = area->names_bytes - (uint32_t)sizeof(slots);
    size_t at = area->names + HEADER_EXTENSION_HEAD + left;
    int r;

    if (!area->names || area->names_bytes < sizeof(slots) || area->names_bytes % 8)
        return -ENOSPC;
    for (size_t i = 0; i < sizeof(slots); i += HEADER_EXTENSION_HEAD + QCOW2_SMALL_EXT_BYTES) {
        put_be32(slots + i, QCOW2_EXT_RETIRED);
        put_be32(slots + i + 4, QCOW2_SMALL_EXT_BYTES);
    }
    /* Not part of the chain before the next step. */
    r = child_write_durably(q->file, at, slots, sizeof(slots));
    if (r == 0)
        r = write_head(q, area->names, QCOW2_EXT_FEATURE_NAMES, left);
    area->retired = at;
    return r;
}

static int append(Qcow2 *q, HeaderArea *area, uint32_t type, const uint8_t *data)
{
    uint8_t body[QCOW2_SMALL_EXT_BYTES + HEADER_EXTENSION_HEAD] = {0};
    size_t needed = area->end + HEADER_EXTENSION_HEAD + sizeof(body);
    int r = 0;

    if (!header_area_has_end(area))
        return -ENOSPC;
    if (needed > area->limit)
        r = area->limit < area->size ? move_backing_name(q, area, needed) : -ENOSPC;
    if (r < 0)
        return r;
    memcpy(body, data, QCOW2_SMALL_EXT_BYTES);
    r = child_write_durably(q->file, area->end + HEADER_EXTENSION_HEAD, body, sizeof(body));
    if (r == 0)
        r = write_head(q, area->end, type, QCOW2_SMALL_EXT_BYTES);
    area->end += HEADER_EXTENSION_HEAD + QCOW2_SMALL_EXT_BYTES;
    return r;
}

static int retire(Qcow2 *q, const HeaderArea *area)
{
    if (area->found_next == area->end)
        return write_head(q, area->found, QCOW2_EXT_END, 0);
    return write_head(q, area->found, QCOW2_EXT_RETIRED,
        (uint32_t)(area->found_next - area->found) - HEADER_EXTENSION_HEAD);
}

static int add(Qcow2 *q, HeaderArea *area, uint32_t type, const uint8_t *data)
{
    int r = area->retired ? 0 : append(q, area, type, data);

    if (r == -ENOSPC)
        r = make_room(q, area);
    if (r < 0 || !area->retired)
        return r;
    r = child_write_durably(q->file, area->retired + HEADER_EXTENSION_HEAD, data, QCOW2_SMALL_EXT_BYTES);
    return r < 0 ? r : write_head(q, area->retired, type, QCOW2_SMALL_EXT_BYTES);
}

static int put_into(Qcow2 *q, HeaderArea *area, uint32_t type, const uint8_t *data)
{
    size_t at = area->found + HEADER_EXTENSION_HEAD;
    int r;

    if (area->found && area->found_next - at == QCOW2_SMALL_EXT_BYTES &&
        at / HEADER_SECTOR == (at + QCOW2_SMALL_EXT_BYTES - 1) / HEADER_SECTOR)
        return child_write_durably(q->file, at, data, QCOW2_SMALL_EXT_BYTES);
    r = add(q, area, type, data);
    /* Between the two there are two of them: harmless while both are sound, and only the old one is. */
    return r < 0 || !area->found ? r : retire(q, area);
}

int header_put_extension(Qcow2 *q, uint32_t type, const uint8_t *data)
{
    HeaderArea area;
    int r = header_area_read(q, type, &area);

    if (r == 0)
        r = put_into(q, &area, type, data);
    header_area_done(&area);
    return r;
}

int header_remove_extension(Qcow2 *q, uint32_t type)
{
    HeaderArea area;
    int r = header_area_read(q, type, &area);

    if (r == 0 && area.found)
        r = retire(q, &area);
    header_area_done(&area);
    return r;
}

/* ---- Fields of the header ---- */

int header_switch(Qcow2 *q, size_t at, const void *new, const void *old, size_t bytes)
{
    int r = child_write_durably(q->file, at, new, bytes);

    if (r < 0 && child_write_durably(q->file, at, old, bytes) < 0)
        image_refuse(q);
    return r;
}

int header_write_bits(Qcow2 *q, size_t at, uint64_t bits, uint64_t *stored, bool *unsure)
{
    uint8_t bytes[8];
    int r;

    if (bits == *stored && !*unsure)
        return 0;
    *unsure = true;
    put_be64(bytes, bits);
    r = child_write_durably(q->file, at, bytes, sizeof(bytes));
    if (r < 0)
        return r;
    *stored = bits;
    *unsure = false;
    return 0;
}

int header_write_autoclear(Qcow2 *q, uint64_t bits)
{
    return header_write_bits(q, QCOW2_AT_AUTOCLEAR, bits, &q->header.autoclear, &q->autoclear_unsure);
}
