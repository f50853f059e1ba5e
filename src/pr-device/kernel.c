/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A command by the kernel's persistent reservation ioctls, which exist for SCSI disks, NVMe namespaces and
 * device-mapper devices. They know less than SCSI does: no TransportIDs, no REGISTER AND MOVE, no full
 * status, no sense data, and until kernel 6.19 nothing to read with. From 6.12 on (or before, with a
 * backport) a descriptor that is open for writing is enough to use them; before that it takes CAP_SYS_ADMIN.
 *
 * Traps: PREEMPT has the caller's own key as old_key and the victim's as new_key; REGISTER always asks for
 * persistence through power loss; NVMe takes a key of 0 in RELEASE and CLEAR as "never mind the key".
 */
#include "pr-device/pr-device-priv.h"

#include "base/endian.h"

#include <linux/pr.h>
#include <string.h>
#include <sys/ioctl.h>

/* Kernel 6.19; under names of our own, as headers may have them or not. */
typedef struct PrReadKeys {
    uint32_t generation;
    uint32_t num_keys; /* in: room; out: how many there are */
    uint64_t keys_ptr;
} PrReadKeys;

typedef struct PrReadReservation {
    uint64_t key;
    uint32_t generation;
    uint32_t type; /* enum pr_type, 0: none */
} PrReadReservation;

#define PR_IOCTL_READ_KEYS _IOWR('p', 206, PrReadKeys)
#define PR_IOCTL_READ_RESERVATION _IOR('p', 207, PrReadReservation)

enum { MAX_KEYS = (PR_DATA_BYTES - PR_IN_HEADER_BYTES) / 8 };

/* By enum pr_type, which numbers the types as NVMe does. */
static const PrType types[] = {
    [PR_WRITE_EXCLUSIVE] = PR_TYPE_WRITE_EXCLUSIVE,
    [PR_EXCLUSIVE_ACCESS] = PR_TYPE_EXCLUSIVE_ACCESS,
    [PR_WRITE_EXCLUSIVE_REG_ONLY] = PR_TYPE_WRITE_EXCLUSIVE_REGISTRANTS,
    [PR_EXCLUSIVE_ACCESS_REG_ONLY] = PR_TYPE_EXCLUSIVE_ACCESS_REGISTRANTS,
    [PR_WRITE_EXCLUSIVE_ALL_REGS] = PR_TYPE_WRITE_EXCLUSIVE_ALL,
    [PR_EXCLUSIVE_ACCESS_ALL_REGS] = PR_TYPE_EXCLUSIVE_ACCESS_ALL,
};

PrType pr_kernel_type_to_scsi(unsigned type)
{
    return type < ARRAY_SIZE(types) ? types[type] : PR_TYPE_NONE;
}

static uint32_t type_from_scsi(unsigned type)
{
    for (uint32_t i = 1; i < ARRAY_SIZE(types); i++) {
        if (types[i] == type)
            return i;
    }
    return 0;
}

/* ---- PR IN ---- */

void pr_kernel_keys_reply(const PrRequest *request, uint32_t generation, const uint64_t *keys, size_t present,
    uint32_t total, PrReply *reply)
{
    uint8_t data[PR_DATA_BYTES];

    present = MIN(present, (size_t)MAX_KEYS);
    pr_in_header_put(data, (PrInHeader){.generation = generation, .additional_bytes = total * 8});
    for (size_t i = 0; i < present; i++)
        put_be64(data + PR_IN_HEADER_BYTES + i * 8, keys[i]);
    pr_device_in_data(request, data, PR_IN_HEADER_BYTES + present * 8, reply);
}

void pr_kernel_reservation_reply(
    const PrRequest *request, uint32_t generation, uint64_t key, PrType type, PrReply *reply)
{
    /* All registrants hold such a reservation: it has no key (SPC-4 section 6.15.3.2). */
    bool all = type == PR_TYPE_WRITE_EXCLUSIVE_ALL || type == PR_TYPE_EXCLUSIVE_ACCESS_ALL;
    uint8_t data[PR_IN_HEADER_BYTES + PR_RESERVATION_BYTES] = {0};

    if (type == PR_TYPE_NONE) {
        pr_in_header_put(data, (PrInHeader){.generation = generation});
        return pr_device_in_data(request, data, PR_IN_HEADER_BYTES, reply);
    }
    pr_reservation_put(data, generation, &(PrReservation){.key = all ? 0 : key, .type = type});
    pr_device_in_data(request, data, sizeof(data), reply);
}

/*
 * What a reading ioctl said, as a reply, and as -errno. Kernels that lack these ioctls pass them on to the
 * SCSI driver, which calls what it does not know EINVAL.
 */
static int read_failed(int result, int error, PrReply *reply)
{
    if (error == EINVAL)
        error = ENOTTY;
    pr_status_kernel(false, result, error, reply);
    return -error;
}

static int read_keys(int fd, const PrRequest *request, PrReply *reply)
{
    uint64_t keys[MAX_KEYS];
    PrReadKeys arg = {.num_keys = MAX_KEYS, .keys_ptr = (uintptr_t)keys};
    int r = ioctl(fd, PR_IOCTL_READ_KEYS, &arg);

    if (r != 0)
        return read_failed(r, r < 0 ? errno : 0, reply);
    pr_kernel_keys_reply(request, arg.generation, keys, MIN(arg.num_keys, (uint32_t)MAX_KEYS),
        MIN(arg.num_keys, UINT32_MAX / 8), reply);
    return 0;
}

static int read_reservation(int fd, const PrRequest *request, PrReply *reply)
{
    PrReadReservation arg = {0};
    int r = ioctl(fd, PR_IOCTL_READ_RESERVATION, &arg);

    if (r != 0)
        return read_failed(r, r < 0 ? errno : 0, reply);
    pr_kernel_reservation_reply(request, arg.generation, arg.key, pr_kernel_type_to_scsi(arg.type), reply);
    return 0;
}

/* No ioctl tells. Every registration that is made with these ioctls asks for persistence. */
static void capabilities(int fd, bool nvme, const PrRequest *request, PrReply *reply)
{
    static const PrType all_types[] = {PR_TYPE_WRITE_EXCLUSIVE, PR_TYPE_EXCLUSIVE_ACCESS,
        PR_TYPE_WRITE_EXCLUSIVE_REGISTRANTS, PR_TYPE_EXCLUSIVE_ACCESS_REGISTRANTS,
        PR_TYPE_WRITE_EXCLUSIVE_ALL, PR_TYPE_EXCLUSIVE_ACCESS_ALL, PR_TYPE_NONE};
    uint8_t data[PR_CAPABILITIES_BYTES];
    PrCapabilities can;

    if (!nvme || pr_nvme_capabilities(fd, &can) < 0) {
        can = (PrCapabilities){.persist_through_power_loss = true,
            .persist_active = true,
            .type_mask_valid = true,
            .type_mask = pr_type_mask(all_types)};
    }
    pr_capabilities_put(data, &can);
    pr_device_in_data(request, data, sizeof(data), reply);
}

static void execute_in(int fd, bool nvme, const PrRequest *request, PrReply *reply)
{
    int r;

    switch (pr_cdb_action(request->cdb)) {
    case PR_IN_READ_KEYS:
        r = read_keys(fd, request, reply);
        break;
    case PR_IN_READ_RESERVATION:
        r = read_reservation(fd, request, reply);
        break;
    case PR_IN_REPORT_CAPABILITIES:
        return capabilities(fd, nvme, request, reply);
    default:
        return pr_reply_check(reply, SCSI_SENSE_INVALID_FIELD_IN_CDB);
    }
    if (nvme && (r == -ENOTTY || r == -EOPNOTSUPP))
        pr_nvme_read(fd, request, reply);
}

/* ---- PR OUT ---- */

static void call(int fd, bool nvme, unsigned long operation, void *arg, PrReply *reply)
{
    int r = ioctl(fd, operation, arg);

    pr_status_kernel(nvme, r, r < 0 ? errno : 0, reply);
}

static void register_key(int fd, bool nvme, bool ignore_key, const PrOutList *list, PrReply *reply)
{
    struct pr_registration arg = {.old_key = ignore_key ? 0 : list->key,
        .new_key = list->service_key,
        .flags = ignore_key ? PR_FL_IGNORE_KEY : 0};

    if (nvme && list->service_key == 0)
        return pr_nvme_unregister(fd, list->key, ignore_key, reply);
    call(fd, nvme, IOC_PR_REGISTER, &arg, reply);
    if (nvme && ignore_key && reply->status == SCSI_RESERVATION_CONFLICT) {
        /* This host has another key. NVMe has "register" and "replace"; the kernel chooses by old_key. */
        arg.old_key = list->service_key;
        call(fd, nvme, IOC_PR_REGISTER, &arg, reply);
    }
}

static void execute_out(int fd, bool nvme, const PrRequest *request, PrReply *reply)
{
    unsigned action = pr_cdb_action(request->cdb);
    uint32_t type = type_from_scsi(pr_cdb_type(request->cdb));
    PrOutList list;

    if (!pr_device_out_list(request, &list, reply))
        return;
    if (list.all_tg_pt)
        return pr_reply_check(reply, SCSI_SENSE_INVALID_PARAMETER);
    if (action == PR_OUT_REGISTER || action == PR_OUT_REGISTER_AND_IGNORE)
        return register_key(fd, nvme, action == PR_OUT_REGISTER_AND_IGNORE, &list, reply);
    /* No registration has this key. */
    if (list.key == 0)
        return pr_reply_status(reply, SCSI_RESERVATION_CONFLICT);
    switch (action) {
    case PR_OUT_RESERVE:
        return call(fd, nvme, IOC_PR_RESERVE, &(struct pr_reservation){.key = list.key, .type = type}, reply);
    case PR_OUT_RELEASE:
        return call(fd, nvme, IOC_PR_RELEASE, &(struct pr_reservation){.key = list.key, .type = type}, reply);
    case PR_OUT_CLEAR:
        return call(fd, nvme, IOC_PR_CLEAR, &(struct pr_clear){.key = list.key}, reply);
    default:
        return call(fd, nvme, action == PR_OUT_PREEMPT ? IOC_PR_PREEMPT : IOC_PR_PREEMPT_ABORT,
            &(struct pr_preempt){.old_key = list.key, .new_key = list.service_key, .type = type}, reply);
    }
}

void pr_kernel_execute(int fd, bool nvme, const PrRequest *request, PrReply *ret_reply)
{
    memset(ret_reply, 0, sizeof(*ret_reply));
    if (request->cdb[0] == PR_IN_OPCODE)
        execute_in(fd, nvme, request, ret_reply);
    else if (request->cdb[0] == PR_OUT_OPCODE)
        execute_out(fd, nvme, request, ret_reply);
    else
        pr_reply_check(ret_reply, SCSI_SENSE_INVALID_OPCODE);
}
