/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Mounting and unmounting, with libfuse3 and fusermount3 where the daemon may not do it itself. Everything
 * here waits for a worker thread, because the kernel may want an answer from this very process meanwhile.
 */
#pragma once

#include "base/error.h"

/* libfuse3's; it knows how to unmount. */
typedef struct fuse_session FuseMount;

/*
 * Finds out where a mount on path would be: *ret_real has no symbolic links (caller frees), *ret_device is
 * the device that the file is on. A mount that a dead daemon has left there is removed. Fails unless path is
 * a regular file.
 */
int fuse_mount_prepare(const char *path, char **ret_real, dev_t *ret_device, Error *err) MUST_CHECK;
/* Whether the system lets this user open a mount to others. */
bool fuse_mount_may_allow_other(void);
/* Mounts a regular file on `real`, from which the kernel reads at most max_read bytes at once. *ret_fd is the
 * non-blocking descriptor of the connection, the caller's. */
int fuse_mount_open(const char *real, const char *source, size_t max_read, bool allow_other,
    FuseMount **ret_mount, int *ret_fd, Error *err) MUST_CHECK;
/* Takes the mount away from the name space, if it is still there; those who use the file keep it until the
 * connection ends. NULL is fine. */
void fuse_mount_detach(FuseMount *take_mount);
/* Another descriptor of the same connection, for another thread. */
int fuse_mount_clone(int fd, int *ret_fd) MUST_CHECK;
/* The device number of the file that is mounted at path. Needs no answer of the connection. */
int fuse_mount_device(const char *path, dev_t *ret_device) MUST_CHECK;
/* A descriptor through which fuse_mount_abort() ends the connection of that device for all users. */
int fuse_mount_control(dev_t device, int *ret_fd) MUST_CHECK;
void fuse_mount_abort(int control_fd);
