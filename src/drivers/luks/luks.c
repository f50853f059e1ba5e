/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The driver luks: an encrypted volume in its file child, with the header at its beginning or in a child of
 * its own, in either version of LUKS. Everything that requests use is constant while the node is open, so
 * they run on every loop.
 *
 * Reads are decrypted in place in the buffers of whoever asked. A guest may change its own memory meanwhile:
 * what it can get is the decryption of bytes of its choice, and the contents of the disk are its own.
 */
#include "drivers/luks/luks-priv.h"

#include "base/mem.h"
#include "crypto/luks2.h"
#include "crypto/parallel.h"
#include "crypto/secret.h"
#include "generated/types.h"
#include "drivers/encrypt.h"

#include <inttypes.h>
#include <string.h>

extern const Driver driver_luks;

typedef struct LuksState {
    Luks luks;
    Luks2 *luks2; /* or NULL: the volume is of version 1, luks */
    SectorCipher *cipher;
    Edge *header; /* or NULL: at the beginning of file */
    char *key_secret;
    uint32_t sector_bytes;
    uint64_t payload;       /* offset in file */
    uint64_t payload_bytes; /* 0: what the file has */
    CoMutex amend_lock;     /* main loop */
    bool amending;
} LuksState;

/* ---- Header ---- */

/* What lies behind the end reads as zeroes: a cut header is a damaged one. */
static int edge_io_read(void *opaque, uint64_t offset, void *data, size_t bytes)
{
    Edge *edge = opaque;
    uint64_t size = node_size(edge_node(edge));
    size_t valid = offset < size ? (size_t)MIN(size - offset, (uint64_t)bytes) : 0;

    memset((uint8_t *)data + valid, 0, bytes - valid);
    return valid ? edge_pread(edge, offset, data, valid) : 0;
}

static int edge_io_write(void *opaque, uint64_t offset, const void *data, size_t bytes)
{
    int r = edge_pwrite(opaque, offset, data, bytes, 0);

    return r < 0 ? r : edge_flush(opaque);
}

LuksIo luks_edge_io(Edge *edge)
{
    return (LuksIo){edge_io_read, edge_io_write, edge};
}

static Edge *header_edge(const Node *node)
{
    const LuksState *s = node->state;

    return s->header ? s->header : node->file;
}

/* ---- Opening ---- */

static int open_children(Node *node, const BlockdevOptionsLUKS *o, Error *err)
{
    LuksState *s = node->state;
    Edge *file;
    int r = node_open_child(node, "file", o->file, EDGE_DATA | EDGE_METADATA | EDGE_PRIMARY, &file, err);

    if (r == 0 && o->header)
        r = node_open_child(node, "header", o->header, EDGE_METADATA, &s->header, err);
    return r;
}

static void luks_close(Node *node)
{
    LuksState *s = node->state;

    sector_cipher_free(s->cipher);
    free(s->luks2);
    free(s->key_secret);
}

static int unlock_version_1(LuksState *s, const LuksIo *io, Error *err)
{
    uint8_t *key;
    int r = luks_read(io, s->header, &s->luks, err);

    if (r == 0)
        r = luks_unlock(&s->luks, io, s->key_secret, &key, err);
    if (r < 0)
        return r;
    s->sector_bytes = LUKS_SECTOR_BYTES;
    s->payload = (uint64_t)s->luks.header.payload_sector * LUKS_SECTOR_BYTES;
    r = sector_cipher_new(&s->luks.spec, key, s->sector_bytes, &s->cipher, err);
    secret_free(key, s->luks.header.key_bytes);
    return r;
}

static int unlock_version_2(LuksState *s, const LuksIo *io, Error *err)
{
    const Luks2 *luks = s->luks2;
    uint8_t *key;
    int r = luks2_unlock(luks, io, s->key_secret, &key, err);

    if (r < 0)
        return r;
    s->sector_bytes = luks->sector_bytes;
    s->payload = luks->payload;
    s->payload_bytes = luks->payload_bytes;
    r = sector_cipher_new(&luks->spec, key, s->sector_bytes, &s->cipher, err);
    secret_free(key, luks->key_bytes);
    return r;
}

static int unlock(Node *node, Error *err)
{
    LuksState *s = node->state;
    LuksIo io = luks_edge_io(header_edge(node));
    AUTO_FREE Luks2 *luks2 = mem_new(Luks2);
    int r = luks2_read(&io, s->header, luks2, err);

    if (r < 0)
        return r;
    if (r > 0)
        return unlock_version_1(s, &io, err);
    s->luks2 = TAKE(luks2);
    return unlock_version_2(s, &io, err);
}

/* Part of a sector at the end of the file cannot be decrypted: it is none. */
static int set_size(Node *node, Error *err)
{
    const LuksState *s = node->state;
    uint64_t bytes = node_size(edge_node(node->file)), room = bytes < s->payload ? 0 : bytes - s->payload;

    if (s->payload_bytes > room)
        return err_set(err, -EINVAL,
            "The LUKS volume has %" PRIu64 " bytes of data, for which its file is too short",
            s->payload_bytes);
    node->size = s->payload_bytes ? s->payload_bytes : align_down(room, s->sector_bytes);
    return 0;
}

/* A volume that says how long it is stays so. */
static void luks_refresh_size(Node *node)
{
    AUTO_ERROR Error ignored = ERROR_INIT;

    (void)!set_size(node, &ignored);
}

static int luks_open(Node *node, const BlockdevOptions *options, Error *err)
{
    const BlockdevOptionsLUKS *o = &options->u.luks;
    LuksState *s = node->state;
    int r = open_children(node, o, err);

    if (r < 0)
        return r;
    s->key_secret = str_dup(o->key_secret);
    r = unlock(node, err);
    if (r == 0)
        r = set_size(node, err);
    if (r < 0) {
        luks_close(node);
        return r;
    }
    node->limits.request_alignment = MAX(node->limits.request_alignment, s->sector_bytes);
    node->write_flags = REQ_FUA | REQ_OUTLIVES;
    return 0;
}

/* ---- Requests ---- */

static int luks_read_data(Node *node, uint64_t offset, IoSlice dst)
{
    const LuksState *s = node->state;
    int r = edge_read(node->file, s->payload + offset, dst);

    if (r == 0)
        parallel_decrypt(s->cipher, offset / CIPHER_IV_SECTOR_BYTES, dst);
    return r;
}

static int luks_write_data(Node *node, uint64_t offset, IoSlice src, unsigned flags)
{
    const LuksState *s = node->state;

    return encrypt_write(
        node->file, s->payload + offset, s->cipher, offset / CIPHER_IV_SECTOR_BYTES, src, flags);
}

/* ---- Control ---- */

static int luks_resize(
    Node *node, uint64_t size, bool exact, Preallocation prealloc, unsigned flags, Error *err)
{
    const LuksState *s = node->state;
    int r;

    if (s->payload_bytes)
        return err_set(
            err, -ENOTSUP, "The header of the LUKS volume says how long it is; that cannot be changed");
    if (size > LIMIT_NODE_BYTES - s->payload)
        return err_set(err, -EFBIG, "The requested file size is too large");
    r = edge_resize(node->file, s->payload + size, exact, prealloc, flags, err);
    return r < 0 ? r : set_size(node, err);
}

/* Header and keys are read when the node is opened, and written by an amendment only: what is needed of the
 * children is what users need of the volume. */
static void luks_child_permissions(
    Node *node, Edge *child, unsigned perm, unsigned shared, unsigned *ret_perm, unsigned *ret_shared)
{
    const LuksState *s = node->state;
    bool data = child == node->file;

    *ret_perm = PERM_CONSISTENT_READ | (data ? perm : 0);
    *ret_shared = data ? shared : PERM_ALL;
    if (s->amending && child == header_edge(node)) {
        *ret_perm |= PERM_WRITE;
        *ret_shared &= ~(unsigned)(PERM_CONSISTENT_READ | PERM_WRITE);
    }
}

static int luks_amend_node(Node *node, const BlockdevAmendOptions *options, bool force, Error *err)
{
    LuksState *s = node->state;
    LuksIo io = luks_edge_io(header_edge(node));
    AUTO_ERROR Error ignored = ERROR_INIT;
    int r;

    if (s->luks2)
        return err_set(err, -ENOTSUP, "Keys of LUKS version 2 cannot be changed here; use cryptsetup");
    co_mutex_lock_shielded(&s->amend_lock);
    s->amending = true;
    r = node->read_only
            ? err_set(err, -EACCES, "Node '%s' is read-only: its keys cannot be changed", node->name)
            : node_refresh_permissions(node, err);
    if (r == 0)
        r = luks_amend(&s->luks, node->home, &io, &options->u.luks, s->key_secret, force, err);
    s->amending = false;
    (void)!node_refresh_permissions(node, &ignored); /* asking for less cannot fail */
    co_mutex_unlock(&s->amend_lock);
    return r;
}

static int64_t luks_allocated_size(Node *node)
{
    const LuksState *s = node->state;
    int64_t data = edge_allocated_size(node->file), header = s->header ? edge_allocated_size(s->header) : 0;

    return data < 0 ? data : header < 0 ? header : data + header;
}

static int luks_image_info(Node *node, ImageInfo *info, Error *err)
{
    const LuksState *s = node->state;

    info->has_encrypted = info->encrypted = true;
    info->has_dirty_flag = true;
    info->format_specific = mem_new(ImageInfoSpecific);
    info->format_specific->type = IMAGE_INFO_SPECIFIC_KIND_LUKS;
    info->format_specific->u.luks.data = s->luks2 ? luks2_info(s->luks2) : luks_info(&s->luks);
    return 0;
}

static bool luks_filename_is_plain(Node *node)
{
    return false;
}

static int luks_probe(const uint8_t *header, size_t bytes, const char *filename)
{
    return luks_is_version(header, bytes, 1) ? 100 : 0;
}

const Driver driver_luks = {
    .name = "luks",
    .state_size = sizeof(LuksState),
    .flags = DRIVER_FORMAT | DRIVER_ANY_LOOP,
    .open = luks_open,
    .close = luks_close,
    .read = luks_read_data,
    .write = luks_write_data,
    .resize = luks_resize,
    .refresh_size = luks_refresh_size,
    .child_permissions = luks_child_permissions,
    .allocated_size = luks_allocated_size,
    .info = luks_image_info,
    .filename_is_plain = luks_filename_is_plain,
    .create = luks_create,
    .amend = luks_amend_node,
    .probe = luks_probe,
};
