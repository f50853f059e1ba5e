/* SPDX-License-Identifier: Apache-2.0 */
/* Asks device mapper what a map consists of (linux/include/uapi/linux/dm-ioctl.h). */
#include "pr-device/pr-device-priv.h"

#include "base/mem.h"

#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>

/* What DM_TABLE_STATUS returns: struct dm_ioctl, then one dm_target_spec with its text for each target. */
typedef union TableStatus {
    struct dm_ioctl head;
    uint8_t bytes[16384];
} TableStatus;

int pr_dm_target_type(dev_t number, char ret_type[DM_MAX_TYPE_NAME])
{
    AUTO_CLOSE int fd = open("/dev/" DM_DIR "/" DM_CONTROL_NODE, O_RDWR | O_CLOEXEC);
    TableStatus table = {.head = {
                             .version = {DM_VERSION_MAJOR, 0, 0},
                             .data_size = sizeof(table),
                             .data_start = sizeof(struct dm_ioctl),
                             .flags = DM_STATUS_TABLE_FLAG,
                             .dev = number,
                         }};
    struct dm_target_spec target;

    if (fd < 0 || ioctl(fd, DM_TABLE_STATUS, &table) < 0)
        return -errno;
    if (table.head.target_count != 1 || table.head.flags & DM_BUFFER_FULL_FLAG ||
        out_of_range(table.head.data_start, sizeof(target), sizeof(table)))
        return -EINVAL;
    memcpy(&target, table.bytes + table.head.data_start, sizeof(target));
    memcpy(ret_type, target.target_type, DM_MAX_TYPE_NAME);
    ret_type[DM_MAX_TYPE_NAME - 1] = '\0';
    return 0;
}
