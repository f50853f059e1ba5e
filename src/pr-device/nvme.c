/* SPDX-License-Identifier: Apache-2.0 */
/*
 * NVMe commands by pass-through for what the kernel's reservation ioctls lack: to unregister (their REGISTER
 * with a new key of 0 leaves a registrant with key 0), to read before kernel 6.19, and what the namespace can
 * do. All of NVMe is little-endian. (NVM Express base specification 2.0, sections 7.2 and 7.4.)
 */
#include "pr-device/pr-device-priv.h"

#include "base/endian.h"

#include <linux/nvme_ioctl.h>
#include <string.h>
#include <sys/ioctl.h>

enum {
    NVME_IDENTIFY = 0x06, /* admin command */
    NVME_RESERVATION_REGISTER = 0x0d,
    NVME_RESERVATION_REPORT = 0x0e,
    REGISTER_ACTION_UNREGISTER = 1, /* Reservation Register, dword 10 */
    REGISTER_IGNORE_KEY = 1 << 3,
    REPORT_EXTENDED = 1, /* Reservation Report, dword 11: 128-bit host identifiers */
    STATUS_MASK = 0x7ff,
    STATUS_HOST_ID_FORMAT = 0x018, /* the host has an identifier of the other length */
    IDENTIFY_BYTES = 4096,
    IDENTIFY_RESCAP = 31,
    TIMEOUT_MS = 60000,
};

/* The namespace's number, without which the kernel takes no command; -1 with errno. */
static int submit(int fd, unsigned long operation, struct nvme_passthru_cmd *command)
{
    int nsid = ioctl(fd, NVME_IOCTL_ID);

    if (nsid < 0)
        return -1;
    command->nsid = (uint32_t)nsid;
    command->timeout_ms = TIMEOUT_MS;
    return ioctl(fd, operation, command);
}

void pr_nvme_unregister(int fd, uint64_t key, bool ignore_key, PrReply *reply)
{
    uint8_t keys[16] = {0}; /* current and new key */
    struct nvme_passthru_cmd command = {
        .opcode = NVME_RESERVATION_REGISTER,
        .addr = (uintptr_t)keys,
        .data_len = sizeof(keys),
        .cdw10 = REGISTER_ACTION_UNREGISTER | (ignore_key ? REGISTER_IGNORE_KEY : 0),
    };
    int r;

    put_le64(keys, ignore_key ? 0 : key);
    r = submit(fd, NVME_IOCTL_IO_CMD, &command);
    pr_status_nvme(r, r < 0 ? errno : 0, reply);
    /* Then there was no registration, which SCSI calls success. */
    if (ignore_key && reply->status == SCSI_RESERVATION_CONFLICT)
        pr_reply_good(reply);
}

/* ---- Reservation Report ---- */

/* Where things are in a report; the header is the same but for its length. */
typedef struct ReportFormat {
    size_t header_bytes, host_bytes, key_offset;
} ReportFormat;

static const ReportFormat short_format = {24, 24, 16};
static const ReportFormat extended_format = {64, 64, 8};

enum {
    REPORT_TYPE = 4,
    REPORT_HOSTS = 5,
    REPORT_HOST_STATUS = 2, /* within a registered controller's entry: bit 0 = holder */
};

void pr_nvme_report_reply(const uint8_t *report, bool extended, const PrRequest *request, PrReply *reply)
{
    const ReportFormat *format = extended ? &extended_format : &short_format;
    uint32_t generation = get_le32(report);
    unsigned total = get_le16(report + REPORT_HOSTS);
    size_t present = MIN((size_t)total, (NVME_REPORT_BYTES - format->header_bytes) / format->host_bytes);
    uint64_t keys[NVME_REPORT_BYTES / 24], holder = 0;

    for (size_t i = 0; i < present; i++) {
        const uint8_t *host = report + format->header_bytes + i * format->host_bytes;

        keys[i] = get_le64(host + format->key_offset);
        if (host[REPORT_HOST_STATUS] & 1)
            holder = keys[i];
    }
    if (pr_cdb_action(request->cdb) == PR_IN_READ_KEYS)
        pr_kernel_keys_reply(request, generation, keys, present, total, reply);
    else
        pr_kernel_reservation_reply(
            request, generation, holder, pr_kernel_type_to_scsi(report[REPORT_TYPE]), reply);
}

void pr_nvme_read(int fd, const PrRequest *request, PrReply *reply)
{
    uint8_t report[NVME_REPORT_BYTES] = {0};
    struct nvme_passthru_cmd command = {
        .opcode = NVME_RESERVATION_REPORT,
        .addr = (uintptr_t)report,
        .data_len = sizeof(report),
        .cdw10 = sizeof(report) / 4 - 1,
        .cdw11 = REPORT_EXTENDED,
    };
    int r = submit(fd, NVME_IOCTL_IO_CMD, &command);

    if (r > 0 && (r & STATUS_MASK) == STATUS_HOST_ID_FORMAT) {
        command.cdw11 = 0;
        r = submit(fd, NVME_IOCTL_IO_CMD, &command);
    }
    if (r != 0)
        return pr_status_nvme(r, r < 0 ? errno : 0, reply);
    pr_nvme_report_reply(report, command.cdw11 != 0, request, reply);
}

/* ---- Capabilities ---- */

void pr_nvme_rescap(uint8_t rescap, PrCapabilities *ret_capabilities)
{
    PrType types[7] = {0};
    size_t count = 0;

    /* Bit 0: persistence through power loss; bits 1 to 6: the types in the order of their numbers. */
    for (unsigned type = 1; type <= 6; type++) {
        if (rescap & 1 << type)
            types[count++] = pr_kernel_type_to_scsi(type);
    }
    *ret_capabilities = (PrCapabilities){.persist_through_power_loss = rescap & 1,
        .persist_active = rescap & 1,
        .type_mask_valid = true,
        .type_mask = pr_type_mask(types)};
}

int pr_nvme_capabilities(int fd, PrCapabilities *ret_capabilities)
{
    uint8_t data[IDENTIFY_BYTES] = {0};
    struct nvme_passthru_cmd command = {
        .opcode = NVME_IDENTIFY,
        .addr = (uintptr_t)data,
        .data_len = sizeof(data),
    };
    int r = submit(fd, NVME_IOCTL_ADMIN_CMD, &command);

    if (r != 0)
        return r < 0 ? -errno : -EIO;
    pr_nvme_rescap(data[IDENTIFY_RESCAP], ret_capabilities);
    return 0;
}
