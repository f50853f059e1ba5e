/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libgranary-pr: the client of a persistent reservation helper (granary-pr-helper, qemu-pr-helper).
 *
 * A virtual machine manager that may not send SCSI PERSISTENT RESERVE commands itself sends them to the
 * helper's socket together with the descriptor of the disk. One granary_pr is one connection and carries one
 * command at a time; use several for several disks.
 *
 * Blocking: granary_pr_execute() connects if needed, sends, waits, and returns.
 *
 * In an event loop: granary_pr_start(), then granary_pr_dispatch() at once and whenever granary_pr_fd() is
 * readable, until that returns something else than GRANARY_PR_AGAIN.
 *
 * Functions return 0 (or what is said below) on success, a negative errno on failure. A command that may have
 * reached the device without its outcome being known fails with -ECONNRESET, -ETIMEDOUT, -ECANCELED or
 * -EPROTO: the connection is closed then and the next command makes a new one. Before that point - no helper,
 * refused, hello not understood - the errno of the cause is returned and nothing was executed; a helper that
 * closes the connection there is -ECONNREFUSED. As time-outs and cancelling can meet both,
 * granary_pr_was_sent() tells.
 *
 * A granary_pr belongs to one thread at a time; only granary_pr_cancel() may be called from any thread and
 * from signal handlers. SIGPIPE is never raised.
 */
#ifndef GRANARY_PR_H
#define GRANARY_PR_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

#define GRANARY_PR_CDB_BYTES 16
#define GRANARY_PR_SENSE_BYTES 96
#define GRANARY_PR_DATA_BYTES 8192
/* granary_pr_dispatch(): not finished, poll again. */
#define GRANARY_PR_AGAIN 1
/* Features of the helper: it understands granary_pr_cleanup(). */
#define GRANARY_PR_FEATURE_CLEANUP 1u

typedef struct granary_pr granary_pr;

/* The outcome of a command that the device (or the helper in its place) has answered. */
typedef struct granary_pr_result {
    uint8_t status;      /* SCSI status: 0 GOOD, 2 CHECK CONDITION, 0x18 RESERVATION CONFLICT */
    uint32_t data_bytes; /* PR IN: bytes of data received */
    uint8_t sense[GRANARY_PR_SENSE_BYTES]; /* valid with CHECK CONDITION, else zero */
} granary_pr_result;

/* A client of the helper at a socket path ("@name": the abstract socket of that name); does not connect yet.
 * NULL with errno set: EINVAL (no path), ENAMETOOLONG (path longer than 107 bytes), out of memory or
 * descriptors. After a fork the child can only free its copy. */
granary_pr *granary_pr_new(const char *path);
/* Closes the connection and frees; NULL is fine. */
void granary_pr_free(granary_pr *pr);

/* Connects and shakes hands within timeout_ms (-1: no limit), unless it is connected. Blocking. */
int granary_pr_connect(granary_pr *pr, int timeout_ms);
/* 1 while a connection is up. Notices a helper that has gone, without waiting. */
int granary_pr_is_connected(granary_pr *pr);
/* Closes the connection. A command in flight has then failed and is over. */
void granary_pr_disconnect(granary_pr *pr);
/* The features that the connected helper offers; 0 when not connected. */
uint32_t granary_pr_features(const granary_pr *pr);

/*
 * Carries out the PERSISTENT RESERVE IN or OUT in cdb (10 to 16 bytes) on the disk behind disk_fd, which
 * stays the caller's. data: the parameter list of OUT, or room for what IN returns; data_bytes must be at
 * least the length in the CDB (-EINVAL otherwise; nothing is sent then). timeout_ms is for the whole command
 * with connecting; -1: no limit. A command that could not be sent because the helper has gone since the last
 * one is sent once more over a new connection.
 */
int granary_pr_execute(granary_pr *pr, int disk_fd, const uint8_t *cdb, size_t cdb_bytes, void *data,
    size_t data_bytes, int timeout_ms, granary_pr_result *ret_result);
/* Forgets the caller's key on a disk that it has handed over (source of a live migration). -EOPNOTSUPP if
 * the helper does not offer it. */
int granary_pr_cleanup(granary_pr *pr, int disk_fd, int timeout_ms, granary_pr_result *ret_result);
/* 1 if the last command has been sent: when it has failed, it may or may not have been executed. 0: it was
 * not. */
int granary_pr_was_sent(const granary_pr *pr);
/* Ends the command in flight, if any, with -ECANCELED; from any thread. */
void granary_pr_cancel(granary_pr *pr);

/* ---- Event loops ---- */

/* Begins what granary_pr_execute() does and returns 0; call granary_pr_dispatch() next. disk_fd, data and
 * ret_result must stay until it is over. -EBUSY while another command is in flight. cdb NULL: only connects.
 */
int granary_pr_start(granary_pr *pr, int disk_fd, const uint8_t *cdb, size_t cdb_bytes, void *data,
    size_t data_bytes, int timeout_ms, granary_pr_result *ret_result);
/* Begins what granary_pr_cleanup() does. */
int granary_pr_start_cleanup(granary_pr *pr, int disk_fd, int timeout_ms, granary_pr_result *ret_result);
/* Goes on without waiting: GRANARY_PR_AGAIN, 0 when the command is over, or a negative errno. With no command
 * in flight: 0 while connected, else -ENOTCONN; notices a helper that has gone. */
int granary_pr_dispatch(granary_pr *pr);
/*
 * One descriptor for the life of pr; readable (POLLIN) when granary_pr_dispatch() has something to do - also
 * for the deadline and granary_pr_cancel() - and, while no command is in flight, when the helper has gone.
 */
int granary_pr_fd(const granary_pr *pr);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif

#endif
