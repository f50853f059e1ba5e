/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of this driver share.
 *
 * Request functions run on any loop and at the same time, so what they write in FileState is atomic. The rest
 * changes on the control path only. The number `fd` never changes: a reopening replaces the description
 * behind it (dup3), so that a request that is on its way uses either the old or the new one, both of the same
 * inode.
 */
#pragma once

#include "block/driver.h"
#include "drivers/file/locks.h"
#include "generated/types.h"
#include "pr/pr-manager.h"

#include <stdatomic.h>
#include <sys/stat.h>

/* Methods that the kernel or the file system has turned out not to have for this file. */
typedef enum FileLacks {
    LACKS_PUNCH = 1 << 0,
    LACKS_ZERO_RANGE = 1 << 1,
    LACKS_ALLOCATE = 1 << 2,
    LACKS_DSYNC = 1 << 3,
    LACKS_NOWAIT = 1 << 4,
    LACKS_HOLES = 1 << 5, /* lseek SEEK_DATA */
    LACKS_DISCARD_IOCTL = 1 << 6,
    LACKS_ZERO_IOCTL = 1 << 7,
} FileLacks;

typedef struct FileState {
    int fd;
    mode_t type;   /* S_IFREG, S_IFBLK or S_IFCHR */
    bool memory;   /* tmpfs or ramfs: plain calls copy pages and never wait for a device */
    bool writable; /* fd is open for writing */
    bool direct;   /* and goes around the page cache */
    bool use_locks;

    PrManager *pr_manager; /* or NULL */
    CoMutex pr_order;      /* one reservation command at a time; main loop */

    FileLocks held;    /* by the description behind fd */
    FileLocks granted; /* what the permissions in force need; held has more only during a change */
    FileLocks wanted;  /* of the last check */
    int next_fd;       /* a description to be swapped in when the change of permissions is committed, or -1 */
    FileLocks next_held;
    bool next_writable, next_direct;
    NodeLimits next_limits;

    atomic_uint lacks; /* FileLacks */
    /* The first error of making data durable. From then on nobody knows what the page cache has dropped. */
    atomic_int lost;
    /* Data that a status request has found. Calling a new hole data is slow but never wrong. */
    _Atomic uint64_t data_start, data_end;
    _Atomic uint64_t discards_ok, discards_failed, discard_bytes;
} FileState;

/* ---- io.c ---- */

int file_read(Node *node, uint64_t offset, IoSlice dst);
int file_write(Node *node, uint64_t offset, IoSlice src, unsigned flags);
int file_flush(Node *node);

/* ---- ranges.c ---- */

int file_status(Node *node, uint64_t offset, uint64_t bytes, BlockStatus *ret_status);
int file_write_zeroes(Node *node, uint64_t offset, uint64_t bytes, unsigned flags);
int file_discard(Node *node, uint64_t offset, uint64_t bytes);

/* ---- probe.c ---- */

/* The size of what fd refers to in bytes, or -errno. */
int64_t file_probe_size(int fd, mode_t type);
/* Whether the file lives in memory. */
bool file_probe_memory(int fd);
/* Alignment that O_DIRECT and devices need. */
int file_probe_limits(const Node *node, int fd, NodeLimits *ret_limits, Error *err) MUST_CHECK;

/* ---- resize.c ---- */

/* Changes the length of a regular file; blocks. On failure the old length is restored where possible. */
int file_truncate(int fd, uint64_t size, PreallocMode prealloc, Error *err) MUST_CHECK;
int file_resize(Node *node, uint64_t size, bool exact, Preallocation prealloc, unsigned flags, Error *err);
/* Size of a node for a length of a file: whole sectors of 512 bytes, as existing users see it. */
uint64_t file_node_size(uint64_t length);

/* ---- create.c ---- */

int file_create(const BlockdevCreateOptions *options, Error *err);

/* ---- access.c: locks, reopening for writing ---- */

/* /dev/fdset names are refused with errno ENOSYS; otherwise as open(), close-on-exec. */
int file_open_path(const char *filename, int flags, mode_t mode);
int file_permissions_check(Node *node, unsigned perm, unsigned shared, Error *err);
void file_permissions_commit(Node *node, unsigned perm, unsigned shared);
void file_permissions_abort(Node *node);

static inline bool file_lacks(const FileState *s, FileLacks what)
{
    return atomic_load_explicit(&s->lacks, memory_order_relaxed) & what;
}

static inline void file_set_lacks(FileState *s, FileLacks what)
{
    atomic_fetch_or_explicit(&s->lacks, what, memory_order_relaxed);
}
