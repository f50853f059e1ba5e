/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Another name of the backing file. The first cluster holds the header, its extensions (one of them is the
 * format of the backing file), and the name. After a power cut at any moment an image has the old name or the
 * new one: the new name is durable in a place of its own before the header is made to point there, and place,
 * length and format are changed with one write within the first sector. Where the format is stored behind
 * that, it is changed before: it says what the backing node is, whatever its name.
 */
#include "base/mem.h"
#include "drivers/qcow2/qcow2-priv.h"

#define SECTOR 512u
#define EXTENSION_HEAD 8u

typedef struct HeaderArea {
    uint8_t *bytes; /* the first cluster */
    size_t size;
    size_t limit;  /* extensions end here at the latest */
    size_t end;    /* the end of the chain: its last eight bytes, if it has them */
    size_t format; /* the extension with the format, or 0 */
    size_t span;   /* what has changed in the first sector ends here */
} HeaderArea;

static int write_durably(Qcow2 *q, size_t at, const void *data, size_t bytes)
{
    int r = edge_pwrite(q->file, at, data, bytes, 0);

    return r < 0 ? r : edge_flush(q->file);
}

static int walk(const Qcow2 *q, HeaderArea *area)
{
    size_t start = q->header.header_bytes, at = 0, before = 0;
    AUTO_ERROR Error err = ERROR_INIT;
    Qcow2Extension extension;
    int r;

    if (start > area->limit)
        return -EINVAL;
    while ((r = qcow2_extension_next(area->bytes + start, area->limit - start, &at, &extension, &err)) == 1) {
        if (extension.magic == QCOW2_EXT_BACKING_FORMAT)
            area->format = start + before;
        before = at;
    }
    area->end = start + before;
    return r;
}

static int read_area(Qcow2 *q, HeaderArea *area)
{
    uint64_t name = q->header.backing_offset;
    int r;

    area->size = area->limit = q->cluster_size;
    if (name && name < area->limit)
        area->limit = name;
    area->bytes = mem_try_zalloc(1, area->size);
    if (!area->bytes)
        return -ENOMEM;
    r = child_pread(q->file, 0, area->bytes, area->size);
    return r < 0 ? r : walk(q, area);
}

/* An image that does not say the format gets it if there is room; else it is recognised as before. */
static int add_format(Qcow2 *q, HeaderArea *area, const char *format)
{
    uint8_t bytes[EXTENSION_HEAD + QCOW2_MAX_FORMAT_BYTES + 1 + EXTENSION_HEAD] = {0};
    size_t used = qcow2_extension_encode(
        bytes, sizeof(bytes), QCOW2_EXT_BACKING_FORMAT, format, (uint32_t)strlen(format));
    int r;

    if (!is_aligned(area->end, EXTENSION_HEAD) || area->end + used + EXTENSION_HEAD > area->limit)
        return 0;
    /* Behind the old end first; then the old end becomes the new extension's type. */
    r = write_durably(q, area->end + EXTENSION_HEAD, bytes + EXTENSION_HEAD, used);
    if (r == 0)
        r = write_durably(q, area->end, bytes, EXTENSION_HEAD);
    if (r < 0)
        return r;
    memcpy(area->bytes + area->end, bytes, used + EXTENSION_HEAD);
    area->format = area->end;
    area->end += used;
    return 0;
}

static int put_format(Qcow2 *q, HeaderArea *area, const char *format)
{
    uint32_t length = (uint32_t)strlen(format), old_length;
    uint8_t *at = area->bytes + area->format;
    size_t room, end;

    if (!area->format)
        return add_format(q, area, format);
    old_length = get_be32(at + 4);
    if (old_length == length && memcmp(at + EXTENSION_HEAD, format, length) == 0)
        return 0;
    room = align_up(old_length, 8);
    end = area->format + EXTENSION_HEAD + room;
    if (length > room)
        return -ENOSPC;
    put_be32(
        at + 4, align_up(length, 8) == room ? length : (uint32_t)room); /* the end is padded with zeroes */
    memset(at + EXTENSION_HEAD, 0, room);
    memcpy(at + EXTENSION_HEAD, format, length);
    if (end > SECTOR)
        return write_durably(q, area->format, at, end - area->format);
    area->span = MAX(area->span, end);
    return 0;
}

/* Where the name can be without touching the old one, unless all of it changes with the first sector. */
static int put_name(Qcow2 *q, HeaderArea *area, const char *name, size_t bytes, size_t *ret_at)
{
    size_t chain_end = MIN(area->end + EXTENSION_HEAD, area->limit);
    size_t old = q->header.backing_offset, old_end = old + q->header.backing_bytes;
    bool in_sector = chain_end + bytes <= SECTOR;
    size_t at = old && !in_sector ? old_end : chain_end;

    if (at + bytes > area->size && old && bytes <= old - chain_end)
        at = chain_end;
    if (at + bytes > area->size)
        return -ENOSPC;
    memcpy(area->bytes + at, name, bytes);
    *ret_at = at;
    if (!in_sector)
        return write_durably(q, at, name, bytes);
    area->span = MAX(area->span, at + bytes);
    return 0;
}

static int change(Qcow2 *q, HeaderArea *area, const char *name, const char *format)
{
    size_t bytes = strlen(name), at = 0;
    int r = read_area(q, area);

    if (r == 0 && bytes)
        r = put_format(q, area, format);
    if (r == 0 && bytes)
        r = put_name(q, area, name, bytes, &at);
    if (r < 0)
        return r;
    put_be64(area->bytes + QCOW2_AT_BACKING_OFFSET, at);
    put_be32(area->bytes + QCOW2_AT_BACKING_OFFSET + 8, (uint32_t)bytes);
    area->span = MAX(area->span, (size_t)QCOW2_AT_BACKING_OFFSET + 12);
    r = write_durably(q, QCOW2_AT_BACKING_OFFSET, area->bytes + QCOW2_AT_BACKING_OFFSET,
        area->span - QCOW2_AT_BACKING_OFFSET);
    if (r < 0)
        return r;
    q->header.backing_offset = at;
    q->header.backing_bytes = (uint32_t)bytes;
    return 0;
}

int image_change_backing_file(Node *node, const char *filename, const char *format)
{
    Qcow2 *q = node->state;
    HeaderArea area = {0};
    int r;

    if (!q->writable || q->corrupt)
        return -EIO;
    if (strlen(filename) > QCOW2_MAX_NAME_BYTES || strlen(format) > QCOW2_MAX_FORMAT_BYTES)
        return -EINVAL;
    r = change(q, &area, filename, format);
    if (r == 0) {
        free(node->backing_filename);
        node->backing_filename = filename[0] ? str_dup(filename) : NULL;
        if (filename[0] && area.format) {
            free(node->backing_format);
            node->backing_format = str_dup(format);
        }
    }
    free(area.bytes);
    return r;
}
