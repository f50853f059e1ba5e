/* SPDX-License-Identifier: Apache-2.0 */
/* Prints the reservation keys that are registered on a disk: pr-keys SOCKET DISK */
#include <errno.h>
#include <fcntl.h>
#include <granary-pr.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* PERSISTENT RESERVE IN, READ KEYS, allocation length 1024 */
static const uint8_t read_keys[10] = {0x5e, 0x00, [7] = 1024 >> 8, [8] = 1024 & 0xff};

/* CHECK CONDITION with sense key 6: the device reports what has happened before, and has not looked at the
 * command. */
static int is_unit_attention(const granary_pr_result *result)
{
    return result->status == 2 && (result->sense[2] & 0xf) == 6;
}

int main(int argc, char *argv[])
{
    uint8_t data[1024];
    granary_pr_result result;
    granary_pr *pr;
    int disk, r;

    if (argc != 3) {
        fprintf(stderr, "usage: pr-keys SOCKET DISK\n");
        return 1;
    }
    disk = open(argv[2], O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    pr = granary_pr_new(argv[1]);
    if (disk < 0 || !pr) {
        perror(disk < 0 ? argv[2] : argv[1]);
        return 1;
    }
    for (int attempt = 0; attempt < 5; attempt++) {
        r = granary_pr_execute(pr, disk, read_keys, sizeof(read_keys), data, sizeof(data), 30000, &result);
        if (r < 0 || !is_unit_attention(&result))
            break;
    }
    granary_pr_free(pr);
    if (r < 0) {
        fprintf(stderr, "no answer: %s\n", strerror(-r));
        return 1;
    }
    if (result.status != 0) {
        fprintf(stderr, "SCSI status 0x%02x\n", result.status);
        return 1;
    }
    for (uint32_t at = 8; at + 8 <= result.data_bytes; at += 8) {
        uint64_t key = 0;

        for (int i = 0; i < 8; i++)
            key = key << 8 | data[at + i];
        printf("0x%" PRIx64 "\n", key);
    }
    return 0;
}
