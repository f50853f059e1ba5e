/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of this folder share, and what their unit tests reach. */
#pragma once

#include "pr-device/pr-device.h"

#include <linux/dm-ioctl.h>
#include <scsi/sg.h>

/* ---- inspect.c ---- */

/*
 * Finds the type of a device-mapper device's only target. 0; -EPERM or what else kept it from asking; -EINVAL
 * when there is not exactly one target.
 */
typedef int PrTargetType(dev_t number, char ret_type[DM_MAX_TYPE_NAME]);

/* pr_device_inspect() behind fstat and fcntl: the caller has set readable and writable. */
void pr_device_classify(
    mode_t mode, dev_t number, const PrDeviceOptions *options, PrTargetType *target_type, PrDevice *device);

/* The first line of an attribute below an open directory of /sys, cut to size; false if there is none. */
bool pr_sys_read(int dir, const char *path, char *ret_text, size_t size);

/* dm.c: PrTargetType by DM_TABLE_STATUS on /dev/mapper/control; needs CAP_SYS_ADMIN. */
int pr_dm_target_type(dev_t number, char ret_type[DM_MAX_TYPE_NAME]);

/* ---- status.c: what the kernel reports, as a reply ---- */

/* A failed system call that carried a command. `error` is positive. */
void pr_status_errno(int error, PrReply *reply);
/* The kernel's host status (DID_x); false if it says nothing of its own (0 or unknown). */
bool pr_status_host(unsigned host_status, PrReply *reply);
/* What SG_IO left: `error` is its errno or 0. The sense data is at hdr->sbp. */
void pr_status_sg(int error, const sg_io_hdr_t *hdr, PrReply *reply);
/* The result of an IOC_PR_x call: `result` as the call returned it, `error` its errno if that was negative.
 */
void pr_status_kernel(bool nvme, int result, int error, PrReply *reply);
/* The same for NVMe pass-through, whose positive results are always NVMe status values. */
void pr_status_nvme(int result, int error, PrReply *reply);

/* ---- execute.c ---- */

/*
 * Checks a PR OUT as far as it can be expressed without TransportIDs: action, scope, type where the action
 * has one, length of the list. False with the right ILLEGAL REQUEST in *reply. Flags are left to the caller,
 * but SPEC_I_PT is never accepted.
 */
bool pr_device_out_list(const PrRequest *request, PrOutList *ret_list, PrReply *reply);
/* Cuts `bytes` of parameter data to the request's allocation length: a GOOD reply. */
void pr_device_in_data(const PrRequest *request, const uint8_t *data, size_t bytes, PrReply *reply);

/* ---- kernel.c ---- */

/* The reservation type of a number that the kernel and NVMe use; PR_TYPE_NONE for 0 and unknown ones. */
PrType pr_kernel_type_to_scsi(unsigned type);
/* READ KEYS with the first `present` of `total` keys. */
void pr_kernel_keys_reply(const PrRequest *request, uint32_t generation, const uint64_t *keys, size_t present,
    uint32_t total, PrReply *reply);
/* READ RESERVATION; PR_TYPE_NONE: there is none. */
void pr_kernel_reservation_reply(
    const PrRequest *request, uint32_t generation, uint64_t key, PrType type, PrReply *reply);

/* ---- nvme.c: NVMe commands by pass-through, for what the PR ioctls lack ---- */

/* Reservation Register, action "unregister". */
void pr_nvme_unregister(int fd, uint64_t key, bool ignore_key, PrReply *reply);
/* READ KEYS and READ RESERVATION from a Reservation Report. */
void pr_nvme_read(int fd, const PrRequest *request, PrReply *reply);
/* From the namespace's RESCAP; -errno, or -EIO for an NVMe status, if it cannot be asked. */
int pr_nvme_capabilities(int fd, PrCapabilities *ret_capabilities);

enum {
    NVME_REPORT_BYTES = 16384, /* asked for: 255 hosts */
};
/* The parameter data of READ KEYS or READ RESERVATION from a Reservation Report of NVME_REPORT_BYTES,
 * extended (128-bit host identifiers) or not. */
void pr_nvme_report_reply(const uint8_t *report, bool extended, const PrRequest *request, PrReply *reply);
/* REPORT CAPABILITIES from RESCAP of Identify Namespace (NVM Express NVM command set 1.0, figure 97). */
void pr_nvme_rescap(uint8_t rescap, PrCapabilities *ret_capabilities);

/* ---- multipathd.c: its control socket ---- */

/* Connects; a descriptor or -errno. MULTIPATH_SOCKET_NAME overrides the places where it is looked for. */
int pr_multipathd_connect(void);
/* Sends one command; 0 with the answer, NUL-terminated and without newline, or -errno. -ETIMEDOUT after
 * timeout_ms. */
int pr_multipathd_ask(const char *command, unsigned timeout_ms, char *ret_answer, size_t answer_size);
/* The same with an open connection. */
int pr_multipathd_ask_fd(
    int fd, const char *command, unsigned timeout_ms, char *ret_answer, size_t answer_size);

/* ---- paths.c ---- */

/* Sends the command over each path of the map that is running. How many there were; *reply is that of the
 * last. */
unsigned pr_paths_execute(dev_t map, const PrRequest *request, unsigned timeout_ms, PrReply *reply);

/* ---- multipath.c ---- */

/* A result of mpath_persistent_reserve_out() as a reply, as far as the number tells; false for those whose
 * sense data must be asked for. */
bool pr_multipath_result(int result, PrReply *reply);
