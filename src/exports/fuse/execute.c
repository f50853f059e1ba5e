/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What each operation does; see session.h.
 *
 * Nothing enlarges the image of an export that is not growable. Its end is like that of a device: writing
 * there is short, behind it -EIO; allocating there is -ENOSPC; setting a larger size -EPERM.
 */
#include "exports/fuse/session.h"

#include "base/log.h"
#include "exports/fuse/size.h"
#include "generated/trace.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define SECTOR_BYTES 512
/* What stdio and cp take as a good size of a buffer; the alignment that a node needs may be a single byte. */
#define BLOCK_BYTES_MIN 4096
#define ATTR_VALID_S 1
#define NAME_BYTES_MAX 255
/* A copy is cut short here, so that an interrupted caller does not wait long. */
#define COPY_BYTES_MAX (64 * MIB)
/* No node has larger pieces than this to be unmapped as a whole (a cluster of a qcow2 image). */
#define HOLE_UNIT_BYTES (2 * MIB)
/* Steps of a search before others have a turn. */
#define SEEK_STEPS 64

/* The reply's structure, at the start of the payload. */
#define REPLY(payload, ...)                                                \
    ({                                                                     \
        static_assert(sizeof(__VA_ARGS__) <= FUSE_PAYLOAD_BYTES, "small"); \
        *(typeof(__VA_ARGS__) *)(payload) = __VA_ARGS__;                   \
        (ssize_t)sizeof(__VA_ARGS__);                                      \
    })

/* ---- The connection ---- */

static uint64_t wanted_capabilities(const FuseSession *s)
{
    return FUSE_CAP_ASYNC_READ | FUSE_CAP_ATOMIC_TRUNCATE | FUSE_CAP_BIG_WRITES | FUSE_CAP_AUTO_INVALIDATE |
           FUSE_CAP_ASYNC_DIRECT | FUSE_CAP_MAX_PAGES | FUSE_CAP_DIRECT_ALLOWS_MMAP |
           (s->offers_ring ? FUSE_CAP_OVER_IO_URING : 0);
}

static ssize_t do_init(FuseSession *s, const FuseInitIn *in, void *payload)
{
    FuseInitOut out;
    int r = fuse_negotiate(in, wanted_capabilities(s), &out);

    if (r < 0) {
        s->refused = true;
        log_error("export '%s': the kernel speaks FUSE %u.%u; needed is %u.%u or later", s->name, in->major,
            in->minor, FUSE_MAJOR, FUSE_MINOR_OLDEST);
        return r;
    }
    atomic_store(&s->agreed, fuse_agreed(&out));
    trace_fuse_negotiated(s->name, out.minor, fuse_agreed(&out));
    return REPLY(payload, out);
}

/*
 * O_TRUNC changes nothing, as on a device: programs that replace the contents of a file open it like that. A
 * file that is opened for direct I/O bypasses the page cache at all, so that writers do not exclude each
 * other; older kernels cannot map such a file, nor keep it coherent with those who use the cache.
 */
static ssize_t do_open(const FuseSession *s, const FuseOpenIn *in, void *payload)
{
    bool direct = in->flags & O_DIRECT && atomic_load(&s->agreed) & FUSE_CAP_DIRECT_ALLOWS_MMAP;

    return REPLY(
        payload, (FuseOpenOut){.open_flags = direct ? FUSE_OPEN_DIRECT | FUSE_OPEN_PARALLEL_WRITES : 0});
}

/* ---- Attributes ---- */

static uint64_t allocated_bytes(const FuseSession *s, uint64_t size)
{
    int64_t allocated = edge_allocated_size(s->edge);

    return allocated > 0 ? (uint64_t)allocated : size;
}

/*
 * The times are always now, in whole seconds: what others write to the node does not come past here, and this
 * makes the kernel doubt its page cache, but not more often than once in the second that it trusts the
 * attributes anyway.
 */
static ssize_t do_getattr(const FuseSession *s, void *payload)
{
    Node *node = edge_node(s->edge);
    uint64_t size = node_size(node), now = (uint64_t)time(NULL);
    FuseAttr attr = {
        .inode = FUSE_ROOT,
        .size = size,
        .blocks = div_round_up(allocated_bytes(s, size), SECTOR_BYTES),
        .atime = now,
        .mtime = now,
        .ctime = now,
        .mode = S_IFREG | atomic_load(&s->mode),
        .links = 1,
        .uid = atomic_load(&s->uid),
        .gid = atomic_load(&s->gid),
        .block_bytes = MAX(node_request_alignment(node), (uint32_t)BLOCK_BYTES_MIN),
    };

    return REPLY(payload, (FuseAttrOut){.valid_s = ATTR_VALID_S, .attr = attr});
}

static int check_attributes(const FuseSession *s, const FuseSetattrIn *in)
{
    unsigned owner = s->allow_other ? 0 : FUSE_SET_UID | FUSE_SET_GID;

    if (in->valid & (owner | FUSE_SET_ATIME | FUSE_SET_MTIME | FUSE_SET_CTIME))
        return -ENOTSUP;
    if (in->valid & FUSE_SET_MODE) {
        if (!s->allow_other && in->mode & (S_IRWXG | S_IRWXO))
            return -EPERM;
        if (!s->writable && in->mode & (S_IWUSR | S_IWGRP | S_IWOTH))
            return -EROFS;
    }
    if (in->valid & FUSE_SET_SIZE && !s->writable)
        return -EACCES;
    return 0;
}

static ssize_t do_setattr(FuseSession *s, const FuseSetattrIn *in, void *payload)
{
    int r = check_attributes(s, in);

    if (r == 0 && in->valid & FUSE_SET_SIZE)
        r = fuse_set_size(s, in->size);
    if (r < 0)
        return r;
    if (in->valid & FUSE_SET_MODE)
        atomic_store(&s->mode, in->mode & ALLPERMS);
    if (in->valid & FUSE_SET_UID)
        atomic_store(&s->uid, in->uid);
    if (in->valid & FUSE_SET_GID)
        atomic_store(&s->gid, in->gid);
    return do_getattr(s, payload);
}

static ssize_t do_statfs(const FuseSession *s, void *payload)
{
    return REPLY(payload, (FuseStatfsOut){
                              .blocks = node_size(edge_node(s->edge)) / SECTOR_BYTES,
                              .files = 1,
                              .block_bytes = SECTOR_BYTES,
                              .fragment_bytes = SECTOR_BYTES,
                              .name_bytes = NAME_BYTES_MAX,
                          });
}

/* ---- Data ---- */

/* How much of a range lies before the end. */
static uint64_t clip(const FuseSession *s, uint64_t offset, uint64_t bytes)
{
    uint64_t size = node_size(edge_node(s->edge));

    return offset < size ? MIN(bytes, size - offset) : 0;
}

static ssize_t do_read(const FuseSession *s, const FuseIoIn *in, void *payload)
{
    size_t bytes = (size_t)clip(s, in->offset, in->bytes);
    int r = bytes ? edge_pread(s->edge, in->offset, payload, bytes) : 0;

    return r < 0 ? r : (ssize_t)bytes;
}

/* Makes room for a write, or cuts it short at the end; *bytes may become less, but not 0. */
static int make_room(FuseSession *s, uint64_t offset, uint64_t *bytes)
{
    uint64_t room = clip(s, offset, *bytes);

    if (LIKELY(room == *bytes))
        return 0;
    if (s->growable)
        return fuse_grow(s, offset + *bytes, PREALLOCATION_OFF);
    *bytes = room;
    return room ? 0 : -EIO;
}

static int write_back(const FuseSession *s, uint64_t offset, const void *data, size_t bytes)
{
    return edge_pwrite(s->edge, offset, data, bytes, s->writethrough ? REQ_FUA : 0);
}

static ssize_t do_write(FuseSession *s, const FuseIoIn *in, void *payload)
{
    uint64_t bytes = in->bytes;
    int r = s->writable ? make_room(s, in->offset, &bytes) : -EACCES;

    if (r == 0 && bytes)
        r = write_back(s, in->offset, payload, (size_t)bytes);
    return r < 0 ? r : REPLY(payload, (FuseWriteOut){.bytes = (uint32_t)bytes});
}

static int copy_piece(const FuseSession *s, uint64_t from, uint64_t to, size_t bytes, void *buffer)
{
    int r = edge_pread(s->edge, from, buffer, bytes);

    return r < 0 ? r : write_back(s, to, buffer, bytes);
}

/* Within the file: there is no other one. */
static ssize_t do_copy(FuseSession *s, const FuseCopyIn *in, void *payload)
{
    uint64_t bytes = clip(s, in->offset_in, MIN(in->bytes, COPY_BYTES_MAX)), done = 0;
    int r = s->writable ? 0 : -EACCES;

    if (r == 0 && bytes)
        r = make_room(s, in->offset_out, &bytes);
    while (r == 0 && done < bytes) {
        size_t piece = (size_t)MIN(bytes - done, (uint64_t)FUSE_PAYLOAD_BYTES);

        r = copy_piece(s, in->offset_in + done, in->offset_out + done, piece, payload);
        if (r == 0)
            done += piece;
    }
    return r < 0 && !done ? r : REPLY(payload, (FuseWriteOut){.bytes = (uint32_t)done});
}

/* ---- Ranges ---- */

/* Only behind the end is there a way to reserve space for a node: enlarging it. */
static int allocate(FuseSession *s, const FuseFallocateIn *in)
{
    uint64_t size = node_size(edge_node(s->edge)), end = in->offset + in->bytes;
    int r = 0;

    if (end > size && !s->growable)
        return -ENOSPC;
    if (in->offset < size)
        return -EOPNOTSUPP;
    if (in->offset > size) /* what is skipped needs no space */
        r = fuse_grow(s, in->offset, PREALLOCATION_OFF);
    return r < 0 ? r : fuse_grow(s, end, PREALLOCATION_FALLOC);
}

static int zero(const FuseSession *s, uint64_t offset, uint64_t bytes, unsigned flags)
{
    uint64_t part = clip(s, offset, bytes);

    return part ? edge_write_zeroes(s->edge, offset, part, flags | (s->writethrough ? REQ_FUA : 0)) : 0;
}

/*
 * A hole, if the node can have one. It need not have one for every byte: what is too small or too oddly
 * placed is zeroed in another way, as file systems do with partial blocks.
 */
static int punch(const FuseSession *s, uint64_t offset, uint64_t bytes)
{
    uint64_t first = align_up(offset, HOLE_UNIT_BYTES), last = align_down(offset + bytes, HOLE_UNIT_BYTES);
    int r = zero(s, offset, bytes, REQ_MAY_UNMAP | REQ_NO_FALLBACK);

    if (r != -ENOTSUP)
        return r;
    r = first < last ? zero(s, first, last - first, REQ_MAY_UNMAP | REQ_NO_FALLBACK) : 0;
    if (r < 0)
        return r;
    return zero(s, offset, bytes, REQ_MAY_UNMAP);
}

static int zero_range(FuseSession *s, const FuseFallocateIn *in)
{
    uint64_t end = in->offset + in->bytes;
    int r = 0;

    if (!(in->mode & FALLOC_FL_KEEP_SIZE) && end > node_size(edge_node(s->edge)))
        r = s->growable ? fuse_grow(s, end, PREALLOCATION_OFF) : -ENOSPC;
    return r < 0 ? r : zero(s, in->offset, in->bytes, 0);
}

static ssize_t do_fallocate(FuseSession *s, const FuseFallocateIn *in)
{
    if (!s->writable)
        return -EACCES;
    switch (in->mode) {
    case 0:
        return allocate(s, in);
    case FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE:
        return punch(s, in->offset, in->bytes);
    case FALLOC_FL_ZERO_RANGE:
    case FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE:
        return zero_range(s, in);
    default:
        return in->mode == FALLOC_FL_PUNCH_HOLE ? -EINVAL : -EOPNOTSUPP;
    }
}

/* Data is what some layer stores; all else is a hole, as is what follows the end. */
static ssize_t do_lseek(const FuseSession *s, const FuseLseekIn *in, void *payload)
{
    uint64_t size = node_size(edge_node(s->edge)), at = in->offset;
    bool wants_data = in->whence == SEEK_DATA;

    if (at > size)
        return -ENXIO;
    for (unsigned step = 1; at < size; step++) {
        BlockStatus status;
        int r = edge_status_above(s->edge, at, size - at, &status);

        if (r < 0)
            return r;
        if (!!(status.flags & BLOCK_STATUS_DATA) == wants_data)
            return REPLY(payload, (FuseLseekOut){.offset = at});
        at += status.bytes;
        if (step % SEEK_STEPS == 0)
            co_yield ();
    }
    return wants_data ? -ENXIO : REPLY(payload, (FuseLseekOut){.offset = at});
}

/* ---- All of them ---- */

ssize_t fuse_session_execute(FuseSession *s, const FuseRequest *request, void *payload)
{
    switch (request->header.opcode) {
    case FUSE_OP_INIT:
        return do_init(s, &request->init, payload);
    case FUSE_OP_OPEN:
        return do_open(s, &request->open, payload);
    case FUSE_OP_GETATTR:
        return do_getattr(s, payload);
    case FUSE_OP_SETATTR:
        return do_setattr(s, &request->setattr, payload);
    case FUSE_OP_STATFS:
        return do_statfs(s, payload);
    case FUSE_OP_READ:
        return do_read(s, &request->io, payload);
    case FUSE_OP_WRITE:
        return do_write(s, &request->io, payload);
    case FUSE_OP_COPY_FILE_RANGE:
        return do_copy(s, &request->copy, payload);
    case FUSE_OP_FALLOCATE:
        return do_fallocate(s, &request->fallocate);
    case FUSE_OP_LSEEK:
        return do_lseek(s, &request->lseek, payload);
    case FUSE_OP_FLUSH: /* of a closed descriptor */
    case FUSE_OP_FSYNC:
        return edge_flush(s->edge);
    case FUSE_OP_LOOKUP: /* there is nothing in a file */
        return -ENOENT;
    default: /* nothing to be done for the others that are known */
        return 0;
    }
}
