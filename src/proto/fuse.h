/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The FUSE protocol, version 7 (Linux, include/uapi/linux/fuse.h and
 * Documentation/filesystems/fuse-io-uring.rst): constants, structures, and decoding of what the kernel sends
 * as pure functions over bytes. Nothing here waits, allocates or keeps state.
 *
 * Everything is in the machine's byte order. The definitions are our own, so that what the running kernel
 * offers does not depend on the headers that the program was built with; test-fuse.c compares them with the
 * system's. A decoder leaves its out-parameters alone when it fails.
 */
#pragma once

#include "base/macros.h"

enum {
    FUSE_MAJOR = 7,
    FUSE_MINOR = 42,        /* what is known here; both sides use the smaller one */
    FUSE_MINOR_OLDEST = 31, /* Linux 5.4 */
    FUSE_ROOT = 1,          /* the one inode */
    FUSE_IN_BYTES = 40,
    FUSE_OUT_BYTES = 16,
    FUSE_WRITE_IN_BYTES = 40,
    FUSE_PAYLOAD_BYTES = 1 << 20, /* most data in one request, as negotiated */
};

typedef enum FuseOpcode {
    FUSE_OP_LOOKUP = 1,
    FUSE_OP_FORGET = 2, /* no reply */
    FUSE_OP_GETATTR = 3,
    FUSE_OP_SETATTR = 4,
    FUSE_OP_OPEN = 14,
    FUSE_OP_READ = 15,
    FUSE_OP_WRITE = 16,
    FUSE_OP_STATFS = 17,
    FUSE_OP_RELEASE = 18,
    FUSE_OP_FSYNC = 20,
    FUSE_OP_FLUSH = 25,
    FUSE_OP_INIT = 26,
    FUSE_OP_INTERRUPT = 36, /* no reply */
    FUSE_OP_DESTROY = 38,
    FUSE_OP_BATCH_FORGET = 42, /* no reply */
    FUSE_OP_FALLOCATE = 43,
    FUSE_OP_LSEEK = 46,
    FUSE_OP_COPY_FILE_RANGE = 47,
} FuseOpcode;

/* Capabilities, as one set of 64 bits: `flags` and `flags2` of FUSE_INIT. */
#define FUSE_CAP_ASYNC_READ (UINT64_C(1) << 0)
#define FUSE_CAP_ATOMIC_TRUNCATE (UINT64_C(1) << 3) /* O_TRUNC comes with FUSE_OPEN */
#define FUSE_CAP_BIG_WRITES (UINT64_C(1) << 5)
#define FUSE_CAP_AUTO_INVALIDATE (UINT64_C(1) << 12) /* other times or size: cached pages are stale */
#define FUSE_CAP_ASYNC_DIRECT (UINT64_C(1) << 15)
#define FUSE_CAP_MAX_PAGES (UINT64_C(1) << 22)
#define FUSE_CAP_INIT_EXTENDED (UINT64_C(1) << 30)      /* flags2 is there */
#define FUSE_CAP_DIRECT_ALLOWS_MMAP (UINT64_C(1) << 36) /* FUSE_OPEN_DIRECT and MAP_SHARED; Linux 6.6 */
#define FUSE_CAP_OVER_IO_URING (UINT64_C(1) << 41)      /* Linux 6.14, if switched on */

/* FuseOpenOut.open_flags */
enum {
    FUSE_OPEN_DIRECT = 1 << 0,
    FUSE_OPEN_PARALLEL_WRITES = 1 << 6, /* Linux 6.2 */
};

/* FuseSetattrIn.valid */
enum {
    FUSE_SET_MODE = 1 << 0,
    FUSE_SET_UID = 1 << 1,
    FUSE_SET_GID = 1 << 2,
    FUSE_SET_SIZE = 1 << 3,
    FUSE_SET_ATIME = 1 << 4,
    FUSE_SET_MTIME = 1 << 5,
    FUSE_SET_HANDLE = 1 << 6, /* this and the others that change nothing */
    FUSE_SET_LOCK_OWNER = 1 << 9,
    FUSE_SET_CTIME = 1 << 10,
    FUSE_SET_KILL_SUID_GID = 1 << 11,
};

typedef struct FuseHeader {
    uint32_t bytes; /* of the whole request */
    uint32_t opcode;
    uint64_t unique; /* names the request in its reply; 0 in notifications */
    uint64_t node;
    uint32_t uid, gid, pid;
    uint16_t extension_words, padding;
} FuseHeader;

typedef struct FuseOutHeader {
    uint32_t bytes;
    int32_t error; /* -errno or 0; in a notification its code */
    uint64_t unique;
} FuseOutHeader;

typedef struct FuseInitIn {
    uint32_t major, minor;
    uint32_t max_readahead;
    uint32_t flags, flags2;
    uint32_t unused[11];
} FuseInitIn;

typedef struct FuseInitOut {
    uint32_t major, minor;
    uint32_t max_readahead;
    uint32_t flags;
    uint16_t max_background, congestion_threshold;
    uint32_t max_write;
    uint32_t time_gran;
    uint16_t max_pages, map_alignment;
    uint32_t flags2;
    uint32_t max_stack_depth;
    uint16_t request_timeout;
    uint16_t unused[11];
} FuseInitOut;

typedef struct FuseAttr {
    uint64_t inode, size, blocks; /* blocks of 512 bytes */
    uint64_t atime, mtime, ctime;
    uint32_t atime_ns, mtime_ns, ctime_ns;
    uint32_t mode, links, uid, gid, device, block_bytes, flags;
} FuseAttr;

typedef struct FuseAttrOut {
    uint64_t valid_s;
    uint32_t valid_ns, unused;
    FuseAttr attr;
} FuseAttrOut;

typedef struct FuseSetattrIn {
    uint32_t valid, padding;
    uint64_t handle, size, lock_owner;
    uint64_t atime, mtime, ctime;
    uint32_t atime_ns, mtime_ns, ctime_ns;
    uint32_t mode, unused4, uid, gid, unused5;
} FuseSetattrIn;

typedef struct FuseOpenIn {
    uint32_t flags; /* O_* */
    uint32_t open_flags;
} FuseOpenIn;

typedef struct FuseOpenOut {
    uint64_t handle;
    uint32_t open_flags, padding;
} FuseOpenOut;

/* Of FUSE_READ and FUSE_WRITE. */
typedef struct FuseIoIn {
    uint64_t handle, offset;
    uint32_t bytes, io_flags;
    uint64_t lock_owner;
    uint32_t flags, padding;
} FuseIoIn;

typedef struct FuseWriteOut {
    uint32_t bytes, padding;
} FuseWriteOut;

typedef struct FuseStatfsOut {
    uint64_t blocks, free, available, files, free_files;
    uint32_t block_bytes, name_bytes, fragment_bytes, padding, spare[6];
} FuseStatfsOut;

typedef struct FuseFallocateIn {
    uint64_t handle, offset, bytes;
    uint32_t mode, padding;
} FuseFallocateIn;

typedef struct FuseLseekIn {
    uint64_t handle, offset;
    uint32_t whence, padding;
} FuseLseekIn;

typedef struct FuseLseekOut {
    uint64_t offset;
} FuseLseekOut;

typedef struct FuseCopyIn {
    uint64_t handle_in, offset_in;
    uint64_t node_out, handle_out, offset_out;
    uint64_t bytes, flags;
} FuseCopyIn;

/* ---- Requests ---- */

typedef struct FuseRequest {
    FuseHeader header;
    union {
        FuseInitIn init;
        FuseSetattrIn setattr;
        FuseOpenIn open;
        FuseIoIn io;
        FuseFallocateIn fallocate;
        FuseLseekIn lseek;
        FuseCopyIn copy;
    };
} FuseRequest;

/*
 * Decodes the header of the request that data begins with. -EPROTO if it is not one, or if the length that it
 * tells is not `bytes`: such a request cannot even be answered.
 */
int fuse_header_decode(const void *data, size_t bytes, FuseHeader *ret_header) MUST_CHECK;
/*
 * Decodes what follows the header: body, without the payload of a write, of which only the length is looked
 * at. Sets *ret_request completely. Offsets and lengths in it are within what an off_t holds, data within
 * FUSE_PAYLOAD_BYTES. Else an error to answer: -EINVAL, -EFBIG, or -ENOSYS for an operation that is not known
 * here.
 */
int fuse_request_decode(const FuseHeader *header, const void *body, size_t body_bytes, size_t payload_bytes,
    FuseRequest *ret_request) MUST_CHECK;
bool fuse_wants_reply(uint32_t opcode);
const char *fuse_opcode_name(uint32_t opcode); /* never NULL */

/*
 * Answers FUSE_INIT: what both sides know, and of the capabilities those that are wanted. *ret_out is what to
 * send. Returns 0, 1 if the kernel will ask again (it speaks a newer major version), or -EPROTO: too old.
 */
int fuse_negotiate(const FuseInitIn *in, uint64_t wanted, FuseInitOut *ret_out) MUST_CHECK;
/* The capabilities that the two agreed on. */
uint64_t fuse_agreed(const FuseInitOut *out);

/* ---- Notifications ---- */

/* Tells the kernel that what it knows about an inode is stale. */
typedef struct FuseInvalidate {
    FuseOutHeader header;
    uint64_t node;
    int64_t offset, bytes; /* negative offset: the attributes alone, which never waits for requests */
} FuseInvalidate;

FuseInvalidate fuse_invalidate_attributes(void);

/* ---- FUSE over io_uring (struct fuse_uring_*) ---- */

enum {
    FUSE_URING_REGISTER = 1,
    FUSE_URING_COMMIT_AND_FETCH = 2,
};

/* What an entry shares with the kernel besides the payload. */
typedef struct FuseUringHeaders {
    uint8_t header[128]; /* FuseHeader, FuseOutHeader */
    uint8_t body[128];
    uint64_t flags;
    uint64_t commit_id;
    uint32_t payload_bytes, padding;
    uint64_t reserved;
} FuseUringHeaders;

/* The command's own part of the submission queue entry. */
typedef struct FuseUringCommand {
    uint64_t flags;
    uint64_t commit_id;
    uint16_t queue;
    uint8_t padding[6];
} FuseUringCommand;

/* As the two functions above, for the request that headers hold. */
int fuse_uring_decode(
    const FuseUringHeaders *headers, FuseHeader *ret_header, size_t *ret_body_bytes) MUST_CHECK;
