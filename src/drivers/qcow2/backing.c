/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Another name of the backing file. The first cluster holds the header, its extensions (one of them is the
 * format of the backing file), and the name. After a power cut at any moment an image has the old name or the
 * new one: the new name is durable in a place of its own before the header is made to point there, and place,
 * length and format are changed with one write within the first sector. Where the format is stored behind
 * that, it is changed before: it says what the backing node is, whatever its name.
 */
#include "base/mem.h"
#include "drivers/qcow2/header.h"

typedef struct NameChange {
    HeaderArea area; /* looks for the format */
    size_t span;     /* what has changed in the first sector ends here */
} NameChange;

/* An image that does not say the format gets it if there is room; else it is recognised as before. */
static int add_format(Qcow2 *q, HeaderArea *area, const char *format)
{
    uint8_t bytes[HEADER_EXTENSION_HEAD + QCOW2_MAX_FORMAT_BYTES + 1 + HEADER_EXTENSION_HEAD] = {0};
    size_t used = qcow2_extension_encode(
        bytes, sizeof(bytes), QCOW2_EXT_BACKING_FORMAT, format, (uint32_t)strlen(format));
    int r;

    if (!header_area_has_end(area) || area->end + used + HEADER_EXTENSION_HEAD > area->limit)
        return 0;
    /* Behind the old end first; then the old end becomes the new extension's type. */
    r = child_write_durably(q->file, area->end + HEADER_EXTENSION_HEAD, bytes + HEADER_EXTENSION_HEAD, used);
    if (r == 0)
        r = child_write_durably(q->file, area->end, bytes, HEADER_EXTENSION_HEAD);
    if (r < 0)
        return r;
    memcpy(area->bytes + area->end, bytes, used + HEADER_EXTENSION_HEAD);
    area->found = area->end;
    area->end += used;
    return 0;
}

static int put_format(Qcow2 *q, NameChange *change, const char *format)
{
    HeaderArea *area = &change->area;
    uint32_t length = (uint32_t)strlen(format), old_length;
    uint8_t *at = area->bytes + area->found;
    size_t room, end;

    if (!area->found)
        return add_format(q, area, format);
    old_length = get_be32(at + 4);
    if (old_length == length && memcmp(at + HEADER_EXTENSION_HEAD, format, length) == 0)
        return 0;
    room = align_up(old_length, 8);
    end = area->found + HEADER_EXTENSION_HEAD + room;
    if (length > room)
        return -ENOSPC;
    put_be32(
        at + 4, align_up(length, 8) == room ? length : (uint32_t)room); /* the end is padded with zeroes */
    memset(at + HEADER_EXTENSION_HEAD, 0, room);
    memcpy(at + HEADER_EXTENSION_HEAD, format, length);
    if (end > HEADER_SECTOR)
        return child_write_durably(q->file, area->found, at, end - area->found);
    change->span = MAX(change->span, end);
    return 0;
}

/* Where the name can be without touching the old one, unless all of it changes with the first sector. */
static int put_name(Qcow2 *q, NameChange *change, const char *name, size_t bytes, size_t *ret_at)
{
    HeaderArea *area = &change->area;
    size_t chain_end = MIN(area->end + HEADER_EXTENSION_HEAD, area->limit);
    size_t old = q->header.backing_offset, old_end = old + q->header.backing_bytes;
    bool in_sector = chain_end + bytes <= HEADER_SECTOR;
    size_t at = old && !in_sector ? old_end : chain_end;

    if (at + bytes > area->size && old && bytes <= old - chain_end)
        at = chain_end;
    if (at + bytes > area->size)
        return -ENOSPC;
    memcpy(area->bytes + at, name, bytes);
    *ret_at = at;
    if (!in_sector)
        return child_write_durably(q->file, at, name, bytes);
    change->span = MAX(change->span, at + bytes);
    return 0;
}

/* A chain of extensions that has ended where the old name began needs an end when nothing stays there. */
static int end_chain(NameChange *change, size_t name_at)
{
    HeaderArea *area = &change->area;

    if (header_area_has_end(area) || name_at == area->limit)
        return 0;
    if (area->end + HEADER_EXTENSION_HEAD > HEADER_SECTOR)
        return -ENOSPC;
    memset(area->bytes + area->end, 0, HEADER_EXTENSION_HEAD);
    change->span = MAX(change->span, area->end + HEADER_EXTENSION_HEAD);
    return 0;
}

static int change_name(Qcow2 *q, NameChange *change, const char *name, const char *format)
{
    HeaderArea *area = &change->area;
    uint8_t before[HEADER_SECTOR];
    size_t bytes = strlen(name), at = 0;
    int r = header_area_read(q, QCOW2_EXT_BACKING_FORMAT, area);

    if (r == 0)
        memcpy(before, area->bytes, sizeof(before));
    if (r == 0 && bytes)
        r = put_format(q, change, format);
    if (r == 0 && bytes)
        r = put_name(q, change, name, bytes, &at);
    if (r == 0)
        r = end_chain(change, at);
    if (r < 0)
        return r;
    put_be64(area->bytes + QCOW2_AT_BACKING_OFFSET, at);
    put_be32(area->bytes + QCOW2_AT_BACKING_OFFSET + 8, (uint32_t)bytes);
    change->span = MAX(change->span, (size_t)QCOW2_AT_BACKING_OFFSET + 12);
    r = header_switch(q, QCOW2_AT_BACKING_OFFSET, area->bytes + QCOW2_AT_BACKING_OFFSET,
        before + QCOW2_AT_BACKING_OFFSET, change->span - QCOW2_AT_BACKING_OFFSET);
    if (r < 0)
        return r;
    q->header.backing_offset = at;
    q->header.backing_bytes = (uint32_t)bytes;
    return 0;
}

int image_change_backing_file(Node *node, const char *filename, const char *format)
{
    Qcow2 *q = node->state;
    NameChange change = {0};
    int r;

    if (!q->writable || q->corrupt)
        return -EIO;
    if (strlen(filename) > QCOW2_MAX_NAME_BYTES || strlen(format) > QCOW2_MAX_FORMAT_BYTES)
        return -EINVAL;
    co_mutex_lock_shielded(&q->change_lock);
    r = change_name(q, &change, filename, format);
    co_mutex_unlock(&q->change_lock);
    if (r == 0) {
        free(node->backing_filename);
        node->backing_filename = filename[0] ? str_dup(filename) : NULL;
        if (filename[0] && change.area.found) {
            free(node->backing_format);
            node->backing_format = str_dup(format);
        }
    }
    header_area_done(&change.area);
    return r;
}
