/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reservations on a descriptor: what the device is, and carrying a PR command out on it. Used where the
 * privilege is: by the helper's workers, and by the `pr-manager-kernel` object.
 *
 * Everything here blocks, up to the time-out and in the worst case (a wedged device) for ever: callers use a
 * worker thread or a process of their own. No state is kept between calls.
 */
#pragma once

#include "base/error.h"
#include "proto/pr-wire.h"

typedef enum PrDeviceKind {
    PR_DEVICE_REFUSED,   /* may not be reserved through this descriptor; `reason` says why */
    PR_DEVICE_SCSI,      /* whole block device: SG_IO */
    PR_DEVICE_SG,        /* character device of the sg driver: SG_IO */
    PR_DEVICE_MULTIPATH, /* device-mapper multipath map: IN by SG_IO, OUT by libmpathpersist */
    PR_DEVICE_NVME,      /* NVMe namespace: the kernel's PR ioctls */
} PrDeviceKind;

enum { PR_DEVICE_NAME = 64, PR_DEVICE_REASON = 160 };

typedef struct PrDevice {
    PrDeviceKind kind;
    dev_t number;                  /* of the device node behind the descriptor; 0 where it is none */
    bool readable, writable;       /* as the descriptor was opened; both false for O_PATH */
    char name[PR_DEVICE_NAME];     /* "sda", "dm-0 (mpatha)", "8:1", ... for messages */
    char reason[PR_DEVICE_REASON]; /* REFUSED: a sentence without full stop, "a partition (sda1) would reserve
                                      the whole disk" */
} PrDevice;

typedef struct PrDeviceOptions {
    unsigned timeout_ms; /* of the command in the kernel; > 0 */
    /* A linear map of one whole SCSI disk counts as that disk. To see that it is linear, pr_device_inspect()
     * then needs CAP_SYS_ADMIN and /dev/mapper/control; without them such a map stays REFUSED. */
    bool allow_dm_linear;
    /* Directories instead of /sys, for tests; NULL: the real one. */
    const char *sys;
} PrDeviceOptions;

/*
 * Looks at the descriptor: fstat, then /sys/dev/block/MAJ:MIN (partition, dm/uuid, dm/name, slaves, the
 * `device` link's subsystem) or /sys/dev/char/MAJ:MIN. Never opens the device and needs no privilege, but see
 * allow_dm_linear. What cannot be told is REFUSED. Never fails.
 */
void pr_device_inspect(int fd, const PrDeviceOptions *options, PrDevice *ret_device);

/*
 * Carries out a PR IN or OUT command (or the protocol's clean-up) on what pr_device_inspect() found: always
 * leaves a complete reply. REFUSED, or a PR OUT with a descriptor that is not writable, is CHECK 5/20/00
 * without touching the device.
 *
 * On a MULTIPATH device PR OUT calls libmpathpersist, which may end the process and leaves threads and
 * changed limits behind: only in a process that exits afterwards.
 */
void pr_device_execute(const PrDevice *device, int fd, const PrRequest *request,
    const PrDeviceOptions *options, PrReply *ret_reply);

/*
 * Whether pr_device_execute() for this needs CAP_SYS_ADMIN besides CAP_SYS_RAWIO (and for PR OUT on a
 * MULTIPATH device user 0, which multipathd insists on), and a process of its own.
 */
bool pr_device_needs_admin(const PrDevice *device);
bool pr_device_needs_process(const PrDevice *device, const PrRequest *request);

/* ---- One file each; pr_device_execute() chooses ---- */

/* sg.c: SG_IO (linux/include/scsi/sg.h). Retries EAGAIN of a suspended map for up to a second. On an sg node
 * a signal ends the wait but not the command: block signals. */
void pr_sg_execute(int fd, const PrRequest *request, unsigned timeout_ms, PrReply *ret_reply);

/* kernel.c: IOC_PR_* (linux/include/uapi/linux/pr.h). What they cannot express is ILLEGAL REQUEST. nvme: an
 * unregistration goes by NVMe pass-through, because the kernel's REGISTER with a new key of 0 leaves a
 * registrant. */
void pr_kernel_execute(int fd, bool nvme, const PrRequest *request, PrReply *ret_reply);

/* multipath.c: PR OUT and clean-up by libmpathpersist, loaded now. See pr_device_execute(). timeout_ms is
 * that of commands of our own; the library's are two seconds and more. */
void pr_multipath_execute(
    const PrDevice *device, int fd, const PrRequest *request, unsigned timeout_ms, PrReply *ret_reply);
