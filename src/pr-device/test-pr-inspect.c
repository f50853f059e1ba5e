/* SPDX-License-Identifier: Apache-2.0 */
/* What descriptors are taken for, over a made-up /sys. */
#include "pr-device/pr-device-priv.h"

#include "base/mem.h"

#include <fcntl.h>
#include <ftw.h>
#include <setjmp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cmocka.h>

static char sys[] = "/tmp/granary-test-sys-XXXXXX";
static const char *linear_answer; /* of the fake device mapper; NULL: -EPERM */

/* ---- The fake ---- */

static void make_parents(char *path)
{
    for (char *slash = path + strlen(sys) + 1; (slash = strchr(slash, '/')); slash++) {
        *slash = '\0';
        assert_true(mkdir(path, 0777) == 0 || errno == EEXIST);
        *slash = '/';
    }
}

static void attribute(const char *path, const char *text)
{
    AUTO_FREE char *full = str_printf("%s/%s", sys, path);
    FILE *file;

    make_parents(full);
    file = fopen(full, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static void link_to(const char *path, const char *target)
{
    AUTO_FREE char *full = str_printf("%s/%s", sys, path);

    make_parents(full);
    assert_int_equal(symlink(target, full), 0);
}

/* A whole disk of 1 MiB. */
static void disk(const char *number, const char *name, const char *subsystem)
{
    AUTO_FREE char *entry = str_printf("dev/block/%s", number);
    AUTO_FREE char *target = str_printf("../../block/%s", name);
    AUTO_FREE char *size = str_printf("block/%s/size", name);
    AUTO_FREE char *link = str_printf("block/%s/device/subsystem", name);
    AUTO_FREE char *bus = str_printf("../../../bus/%s", subsystem ? subsystem : "");

    link_to(entry, target);
    attribute(size, "2048\n");
    if (subsystem)
        link_to(link, bus);
}

static void map(
    unsigned minor_number, const char *uuid, const char *name, const char *slave, const char *size)
{
    AUTO_FREE char *entry = str_printf("dev/block/253:%u", minor_number);
    AUTO_FREE char *target = str_printf("../../block/dm-%u", minor_number);
    AUTO_FREE char *uuid_path = str_printf("block/dm-%u/dm/uuid", minor_number);
    AUTO_FREE char *name_path = str_printf("block/dm-%u/dm/name", minor_number);
    AUTO_FREE char *size_path = str_printf("block/dm-%u/size", minor_number);
    AUTO_FREE char *slave_path = str_printf("block/dm-%u/slaves/%s", minor_number, slave);
    AUTO_FREE char *slave_target = str_printf("../../%s", slave);

    link_to(entry, target);
    attribute(uuid_path, uuid);
    attribute(name_path, name);
    attribute(size_path, size);
    link_to(slave_path, slave_target);
}

static int remove_one(const char *path, const struct stat *status, int type, struct FTW *place)
{
    return remove(path);
}

static int build(void **state)
{
    assert_non_null(mkdtemp(sys));
    disk("8:0", "sda", "scsi");
    link_to("dev/block/8:1", "../../block/sda/sda1");
    attribute("block/sda/sda1/partition", "1\n");
    attribute("block/sda/sda1/size", "1024\n");
    disk("7:0", "loop0", NULL);
    disk("254:0", "vda", "virtio");
    disk("259:0", "nvme0n1", "nvme");
    disk("259:1", "nvme1n1", "nvme-subsystem");
    map(0, "mpath-3600140500000000000000000000000000\n", "mpatha\n", "sda", "2048\n");
    map(1, "LVM-abcdef\n", "vg-lv\n", "sda", "1024\n");
    map(2, "CRYPT-LUKS2-0123-secret\n", "secret\n", "sda", "2048\n");
    map(3, "LVM-whole\n", "vg-whole\n", "sda", "2048\n");
    map(4, "part1-mpath-36001405\n", "mpatha-part1\n", "dm-0", "2048\n");
    map(5, "\n", "nvme-linear\n", "nvme0n1", "2048\n");
    map(6, "LVM-on-mpath\n", "vg-mp\n", "dm-0", "2048\n");
    map(7, "LVM-two\n", "vg-two\n", "sda", "2048\n");
    link_to("block/dm-7/slaves/loop0", "../../loop0");
    map(8, "LVM-on-part\n", "vg-part\n", "sda/sda1", "1024\n");
    attribute("block/dm-9/dm/name", "no-uuid\n");
    link_to("dev/block/253:9", "../../block/dm-9");
    link_to("dev/char/21:0", "../../class/sg0");
    link_to("class/sg0/subsystem", "../scsi_generic");
    link_to("dev/char/9:0", "../../class/st0");
    link_to("class/st0/subsystem", "../scsi_tape");
    link_to("dev/char/1:3", "../../class/null");
    link_to("class/null/subsystem", "../mem");
    attribute("class/odd/uevent", "\n");
    link_to("dev/char/240:0", "../../class/odd");
    link_to("dev/block/8:16", "../../block/gone");
    return 0;
}

static int destroy(void **state)
{
    return nftw(sys, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static int fake_target_type(dev_t number, char ret_type[DM_MAX_TYPE_NAME])
{
    if (!linear_answer)
        return -EPERM;
    snprintf(ret_type, DM_MAX_TYPE_NAME, "%s", linear_answer);
    return 0;
}

/* ---- Asking ---- */

static PrDevice classify(mode_t mode, unsigned major_number, unsigned minor_number, bool allow_linear)
{
    PrDeviceOptions options = {.timeout_ms = 1000, .sys = sys, .allow_dm_linear = allow_linear};
    PrDevice device = {.readable = true, .writable = true};

    pr_device_classify(mode, makedev(major_number, minor_number), &options, fake_target_type, &device);
    assert_true(device.number == makedev(major_number, minor_number));
    assert_int_equal(device.kind == PR_DEVICE_REFUSED, device.reason[0] != '\0');
    return device;
}

static void expect_refused(PrDevice device, const char *name, const char *reason)
{
    assert_int_equal(device.kind, PR_DEVICE_REFUSED);
    assert_string_equal(device.name, name);
    assert_non_null(strstr(device.reason, reason));
}

static void expect_kind(PrDevice device, PrDeviceKind kind, const char *name)
{
    assert_int_equal(device.kind, kind);
    assert_string_equal(device.name, name);
}

static void test_whole_devices(void **state)
{
    expect_kind(classify(S_IFBLK, 8, 0, false), PR_DEVICE_SCSI, "sda");
    expect_kind(classify(S_IFBLK, 7, 0, false), PR_DEVICE_SCSI, "loop0");
    expect_kind(classify(S_IFBLK, 254, 0, false), PR_DEVICE_SCSI, "vda");
    expect_kind(classify(S_IFBLK, 259, 0, false), PR_DEVICE_NVME, "nvme0n1");
    expect_kind(classify(S_IFBLK, 259, 1, false), PR_DEVICE_NVME, "nvme1n1");
    expect_kind(classify(S_IFCHR, 21, 0, false), PR_DEVICE_SG, "sg0");
}

static void test_partitions_and_strangers(void **state)
{
    expect_refused(classify(S_IFBLK, 8, 1, false), "sda1", "partition");
    expect_refused(classify(S_IFCHR, 9, 0, false), "st0", "'scsi_tape'");
    expect_refused(classify(S_IFCHR, 1, 3, false), "null", "'mem'");
    expect_refused(classify(S_IFCHR, 240, 0, false), "odd", "unknown kind");
    expect_refused(classify(S_IFCHR, 77, 0, false), "77:0", "not in /sys");
    expect_refused(classify(S_IFBLK, 77, 0, false), "77:0", "not in /sys");
    expect_refused(classify(S_IFBLK, 8, 16, false), "gone", "not in /sys");
    /* The number of a disk, as a character device. */
    expect_refused(classify(S_IFCHR, 8, 0, false), "8:0", "not in /sys");
}

static void test_maps(void **state)
{
    expect_kind(classify(S_IFBLK, 253, 0, false), PR_DEVICE_MULTIPATH, "dm-0 (mpatha)");
    expect_kind(classify(S_IFBLK, 253, 0, true), PR_DEVICE_MULTIPATH, "dm-0 (mpatha)");
    for (unsigned i = 1; i <= 8; i++) {
        PrDevice device = classify(S_IFBLK, 253, i, false);

        assert_int_equal(device.kind, PR_DEVICE_REFUSED);
        assert_non_null(strstr(device.reason, "not a multipath map"));
    }
    expect_refused(classify(S_IFBLK, 253, 9, false), "dm-9", "unknown kind");
}

static void test_linear_maps(void **state)
{
    linear_answer = "linear";
    expect_kind(classify(S_IFBLK, 253, 3, true), PR_DEVICE_SCSI, "dm-3 (vg-whole)");
    expect_refused(classify(S_IFBLK, 253, 1, true), "dm-1 (vg-lv)", "not as large as its disk");
    expect_refused(classify(S_IFBLK, 253, 4, true), "dm-4 (mpatha-part1)", "not a SCSI disk");
    expect_refused(classify(S_IFBLK, 253, 5, true), "dm-5 (nvme-linear)", "not a SCSI disk");
    expect_refused(classify(S_IFBLK, 253, 6, true), "dm-6 (vg-mp)", "not a SCSI disk");
    expect_refused(classify(S_IFBLK, 253, 7, true), "dm-7 (vg-two)", "exactly one device");
    expect_refused(classify(S_IFBLK, 253, 8, true), "dm-8 (vg-part)", "not a SCSI disk");
    linear_answer = "crypt";
    expect_refused(classify(S_IFBLK, 253, 2, true), "dm-2 (secret)", "not linear");
    linear_answer = NULL;
    expect_refused(classify(S_IFBLK, 253, 3, true), "dm-3 (vg-whole)", "CAP_SYS_ADMIN");
}

/* Names come from whoever makes a map or plugs a disk in. */
static void test_hostile_names(void **state)
{
    char longest[250], name[300];
    PrDevice device;

    memset(longest, 'x', sizeof(longest) - 1);
    longest[sizeof(longest) - 1] = '\0';
    disk("65:0", longest, "scsi");
    device = classify(S_IFBLK, 65, 0, false);
    assert_int_equal(device.kind, PR_DEVICE_SCSI);
    assert_int_equal(strlen(device.name), PR_DEVICE_NAME - 1);

    disk("65:16", "sd\n\033[31mred", "scsi");
    expect_kind(classify(S_IFBLK, 65, 16, false), PR_DEVICE_SCSI, "sd??[31mred");

    snprintf(name, sizeof(name), "%s\nLVM", longest);
    map(20, "mpath-%s%n\n", "a\tb%s%n\n", "sda", "2048\n");
    expect_kind(classify(S_IFBLK, 253, 20, false), PR_DEVICE_MULTIPATH, "dm-20 (a?b%s%n)");
    map(21, name, name, "sda", "2048\n");
    device = classify(S_IFBLK, 253, 21, true);
    assert_int_equal(device.kind, PR_DEVICE_REFUSED);
    assert_int_equal(strlen(device.name), PR_DEVICE_NAME - 1);
    /* An empty uuid, or one that only has the prefix in the middle. */
    map(22, "", "none\n", "sda", "1\n");
    assert_int_equal(classify(S_IFBLK, 253, 22, false).kind, PR_DEVICE_REFUSED);
    map(23, "xmpath-1\n", "none\n", "sda", "1\n");
    assert_int_equal(classify(S_IFBLK, 253, 23, false).kind, PR_DEVICE_REFUSED);
}

static void test_no_sys(void **state)
{
    PrDeviceOptions options = {.sys = "/nonexistent"};
    char deep[8192];
    PrDevice device = {.readable = true, .writable = true};

    pr_device_classify(S_IFBLK, makedev(8, 0), &options, fake_target_type, &device);
    assert_int_equal(device.kind, PR_DEVICE_REFUSED);
    memset(deep, 'd', sizeof(deep) - 1);
    deep[sizeof(deep) - 1] = '\0';
    options.sys = deep;
    device = (PrDevice){.readable = true};
    pr_device_classify(S_IFBLK, makedev(8, 0), &options, fake_target_type, &device);
    assert_int_equal(device.kind, PR_DEVICE_REFUSED);
}

static void test_access(void **state)
{
    PrDeviceOptions options = {.sys = sys};
    PrDevice device = {0};

    pr_device_classify(S_IFBLK, makedev(8, 0), &options, fake_target_type, &device);
    assert_int_equal(device.kind, PR_DEVICE_REFUSED);
    assert_non_null(strstr(device.reason, "neither for reading nor for writing"));
    device = (PrDevice){.writable = true};
    pr_device_classify(S_IFBLK, makedev(8, 0), &options, fake_target_type, &device);
    assert_int_equal(device.kind, PR_DEVICE_SCSI);
}

/* ---- Real descriptors ---- */

static PrDevice inspect(int fd)
{
    PrDeviceOptions options = {0};
    PrDevice device;

    pr_device_inspect(fd, &options, &device);
    assert_int_equal(device.kind, PR_DEVICE_REFUSED);
    assert_true(device.reason[0]);
    close(fd);
    return device;
}

static void test_descriptors(void **state)
{
    int pair[2];

    assert_string_equal(inspect(open(sys, O_RDONLY)).name, "directory");
    assert_string_equal(inspect(open("/proc/self/exe", O_RDONLY)).name, "regular file");
    assert_int_equal(pipe(pair), 0);
    assert_string_equal(inspect(pair[0]).name, "pipe");
    assert_false(inspect(pair[1]).readable);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    assert_string_equal(inspect(pair[0]).name, "socket");
    assert_true(inspect(pair[1]).writable);
    assert_true(inspect(open("/dev/null", O_RDWR)).number == makedev(1, 3));
    assert_false(inspect(open("/dev/null", O_PATH)).readable);
    assert_false(inspect(open("/dev/null", O_RDONLY)).writable);
    assert_non_null(strstr(inspect(-1).reason, "Bad file descriptor"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_whole_devices),
        cmocka_unit_test(test_partitions_and_strangers),
        cmocka_unit_test(test_maps),
        cmocka_unit_test(test_linear_maps),
        cmocka_unit_test(test_hostile_names),
        cmocka_unit_test(test_no_sys),
        cmocka_unit_test(test_access),
        cmocka_unit_test(test_descriptors),
    };

    return cmocka_run_group_tests(tests, build, destroy);
}
