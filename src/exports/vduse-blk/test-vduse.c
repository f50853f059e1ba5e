/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A VDUSE device against a kernel and a driver that the test plays: made, used, reset, moved, given up, left
 * behind and taken over, also after a kill with requests in flight.
 */
#include "block/test-nodes.h"

#include "base/endian.h"
#include "exports/vduse-blk/record.h"
#include "exports/vduse-blk/test-kernel.h"

#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define DISK_BYTES 65536
#define QUEUE_SIZE 8
/* As the kernel lays memory out: the bounce buffer, and rings above it. */
#define BOUNCE_BYTES UINT64_C(0x80000)
#define RINGS UINT64_C(0x4000000)
#define RINGS_OFFSET BOUNCE_BYTES
#define RINGS_BYTES UINT64_C(0x4000)
#define AVAILABLE 0x1000
#define USED 0x2000
/* Of a request in the bounce buffer. */
#define SLOT_BYTES 0x2000
#define DATA 0x1000
#define STATUS 16
#define NEXT 1
#define WRITE 2
#define PATIENCE_NS UINT64_C(60000000000)

static char folder[] = "/tmp/test-vduse-XXXXXX";
static VduseDevice *device;
static VirtioBlk *blk;
static Edge *edge;
static unsigned submitted;

/* ---- The driver ---- */

static uint8_t *ring(size_t offset)
{
    return fake.memory + RINGS_OFFSET + offset;
}

static void show_bounce_buffer(void)
{
    fake.ranges[0] = (FakeRange){0, BOUNCE_BYTES - 1, 0, VDUSE_ACCESS_RW};
    fake.ranges[1] = (FakeRange){RINGS, RINGS + RINGS_BYTES - 1, RINGS_OFFSET, VDUSE_ACCESS_RW};
    fake.range_count = 2;
}

/* A driver that is about to say DRIVER_OK. */
static void set_queue_up(void)
{
    memset(fake.memory, 0, FAKE_MEMORY_BYTES);
    submitted = 0;
    fake.features = FAKE_NEEDED | VIRTIO_BLK_FEATURE_FLUSH | VIRTIO_FEATURE_EVENT_IDX;
    fake.queues[0] = (struct vduse_vq_info){
        .num = QUEUE_SIZE,
        .desc_addr = RINGS,
        .driver_addr = RINGS + AVAILABLE,
        .device_addr = RINGS + USED,
        .ready = 1,
    };
    fake.ranges[0] = (FakeRange){RINGS, RINGS + RINGS_BYTES - 1, RINGS_OFFSET, VDUSE_ACCESS_RW};
    fake.range_count = 1;
}

static int say_driver_ok(void)
{
    fake.on_bus = true;
    if (fake_set_status(VIRTIO_CONFIG_S_FEATURES_OK) < 0)
        return -EPROTO;
    return fake_set_status(VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK);
}

static void put_descriptor(unsigned index, uint64_t guest, uint32_t bytes, uint16_t flags)
{
    uint8_t *at = ring(16 * index);

    put_le64(at, guest);
    put_le32(at + 8, bytes);
    put_le16(at + 12, flags);
    put_le16(at + 14, (uint16_t)(index + 1));
}

static void kick(void)
{
    assert_int_equal(eventfd_write(fake.kicks[0], 1), 0);
}

/* Request number `submitted`, in a slot of the bounce buffer and with descriptors of its own: at most two of
 * those with data may be in flight, or four without. */
static void submit(uint32_t type, uint64_t sector, uint32_t bytes)
{
    unsigned slot = submitted % (bytes ? 2 : 4), head = slot * (bytes ? 3 : 2);
    uint64_t guest = SLOT_BYTES * (uint64_t)slot;
    uint8_t *memory = fake.memory + guest;

    put_le32(memory, type);
    put_le64(memory + 8, sector);
    memory[STATUS] = 0xff;
    put_descriptor(head, guest, VIRTIO_BLK_HEADER_BYTES, NEXT);
    if (bytes)
        put_descriptor(head + 1, guest + DATA, bytes, NEXT | (type == VIRTIO_BLK_TYPE_IN ? WRITE : 0));
    put_descriptor(head + (bytes ? 2 : 1), guest + STATUS, 1, WRITE);
    put_le16(ring(AVAILABLE + 4 + 2 * (submitted % QUEUE_SIZE)), (uint16_t)head);
    submitted++;
    __atomic_store_n((uint16_t *)(void *)ring(AVAILABLE + 2), htole16((uint16_t)submitted), __ATOMIC_SEQ_CST);
    put_le16(ring(AVAILABLE + 4 + 2 * QUEUE_SIZE), (uint16_t)(submitted - 1)); /* the event to call for */
}

static uint16_t used_index(void)
{
    return le16toh(__atomic_load_n((uint16_t *)(void *)ring(USED + 2), __ATOMIC_SEQ_CST));
}

/* Sleeps for calls only: one that is missing fails the test. */
static void wait_used(unsigned count)
{
    CoDeadline deadline;
    eventfd_t value;

    co_deadline_begin(&deadline, PATIENCE_NS);
    while (used_index() != (uint16_t)count) {
        assert_true(io_poll(fake.called, POLLIN) > 0);
        (void)eventfd_read(fake.called, &value);
    }
    co_deadline_end(&deadline);
}

static uint8_t *data_of(unsigned slot)
{
    return fake.memory + SLOT_BYTES * slot + DATA;
}

static uint8_t status_of(unsigned slot)
{
    return fake.memory[SLOT_BYTES * slot + STATUS];
}

/* A write and a read of it through the queue. */
static void check_io(uint8_t byte)
{
    uint8_t expected[512];

    memset(expected, byte, sizeof(expected));
    memset(data_of(submitted % 2), byte, 512);
    submit(VIRTIO_BLK_TYPE_OUT, byte, 512);
    kick();
    wait_used(submitted);
    assert_int_equal(status_of((submitted - 1) % 2), VIRTIO_BLK_STATUS_OK);
    submit(VIRTIO_BLK_TYPE_IN, byte, 512);
    kick();
    wait_used(submitted);
    assert_int_equal(status_of((submitted - 1) % 2), VIRTIO_BLK_STATUS_OK);
    assert_memory_equal(data_of((submitted - 1) % 2), expected, sizeof(expected));
}

/* ---- The device ---- */

/* NULL: this one. */
static Loop *other_loop;

static Loop *queue_loop(void *opaque, unsigned index)
{
    return other_loop ? other_loop : loop_current();
}

static VduseDeviceOptions device_options(const char *name)
{
    return (VduseDeviceOptions){
        .export_id = "e0",
        .kernel = &fake_kernel,
        .record_folder = folder,
        .spec =
            {
                .name = name,
                .features = virtio_blk_features(blk) & ~VIRTIO_BLK_FEATURE_CONFIG_WCE,
                .queue_count = 2,
                .queue_size = QUEUE_SIZE,
                .block_bytes = 512,
            },
        .blk = blk,
        .queue_loop = queue_loop,
    };
}

static void make_blk(const char *node)
{
    block_init();
    edge = test_open_root(test_add(node), PERM_CONSISTENT_READ | PERM_WRITE);
    blk = virtio_blk_new(&(VirtioBlkOptions){
        .edge = edge,
        .writable = true,
        .logical_block_bytes = 512,
        .queue_count = 2,
        .queue_size_max = QUEUE_SIZE,
        .serial = "",
    });
}

static int make_device(const VduseDeviceOptions *options, char **ret_message)
{
    AUTO_ERROR Error err = ERROR_INIT;
    int r = vduse_device_new(options, &device, &err);

    *ret_message = r < 0 ? str_dup(err.message) : NULL;
    return r;
}

static void open_device(void)
{
    VduseDeviceOptions options = device_options("disk");
    AUTO_FREE char *message = NULL;

    if (make_device(&options, &message) < 0)
        fail_msg("%s", message);
}

static void refuse_device(const VduseDeviceOptions *options, const char *text)
{
    AUTO_FREE char *message = NULL;

    assert_true(make_device(options, &message) < 0);
    if (!strstr(message, text))
        fail_msg("'%s' is not in '%s'", text, message);
}

#define DISK "{'driver': 'file', 'node-name': 'n', 'filename': '%s/disk'}"

static void make_disk(void)
{
    AUTO_FREE char *path = str_printf("%s/disk", folder), *node = str_printf(DISK, folder);
    AUTO_CLOSE int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    assert_int_equal(ftruncate(fd, DISK_BYTES), 0);
    make_blk(node);
}

static void close_blk(void)
{
    virtio_blk_free(blk);
    edge_close(edge);
    node_close_all();
}

static void begin(void)
{
    fake_init();
    make_disk();
    open_device();
}

static bool record_exists(void)
{
    AUTO_FREE char *path = str_printf("%s/vduse-blk-disk", folder);

    return access(path, F_OK) == 0;
}

static void end(void)
{
    fake.on_bus = false;
    vduse_device_free(device);
    close_blk();
    assert_false(fake.exists);
    assert_false(record_exists());
    fake_done();
}

/* ---- Life ---- */

LOOP_TEST(test_device_is_made_as_the_kernel_wants_it)
{
    begin();
    assert_string_equal(fake.name, "disk");
    assert_int_equal(fake.queue_count, 2);
    assert_int_equal(fake.size_max[0], QUEUE_SIZE);
    assert_int_equal(fake.size_max[1], QUEUE_SIZE);
    assert_int_equal(fake.offered & FAKE_NEEDED, FAKE_NEEDED);
    assert_int_equal(get_le64(fake.config), DISK_BYTES / 512);
    assert_true(record_exists());
    assert_false(vduse_device_in_use(device));
    end();
    return 0;
}

LOOP_TEST(test_names_that_cannot_be)
{
    static const char *const names[] = {"", ".", "..", "a..b", "a/b", "control"};

    fake_init();
    make_disk();
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        VduseDeviceOptions options = device_options(names[i]);

        refuse_device(&options, "cannot be the name");
    }
    assert_int_equal(fake.created, 0);
    close_blk();
    fake_done();
    return 0;
}

LOOP_TEST(test_requests_from_driver_ok_to_reset)
{
    begin();
    for (int round = 0; round < 2; round++) {
        set_queue_up();
        assert_int_equal(say_driver_ok(), 0);
        assert_true(vduse_device_in_use(device));
        show_bounce_buffer(); /* with the first request, as the kernel does */
        for (uint8_t i = 0; i < 20; i++)
            check_io(i);
        assert_int_equal(fake_set_status(0), 0);
        assert_false(vduse_device_in_use(device));
        assert_int_equal(fake.kicks[0], -1);
    }
    end();
    return 0;
}

/* Requests are there before the kernel takes calls: one comes nevertheless. */
LOOP_TEST(test_calls_of_the_first_moments)
{
    begin();
    set_queue_up();
    show_bounce_buffer();
    submit(VIRTIO_BLK_TYPE_FLUSH, 0, 0);
    assert_int_equal(say_driver_ok(), 0);
    wait_used(1);
    end();
    return 0;
}

LOOP_TEST(test_features_that_were_not_offered)
{
    begin();
    set_queue_up();
    fake.features |= VIRTIO_BLK_FEATURE_RO;
    assert_int_equal(say_driver_ok(), -EPROTO);
    fake.features = VIRTIO_FEATURE_VERSION_1;
    assert_int_equal(say_driver_ok(), -EPROTO);
    assert_int_equal(fake_set_status(VIRTIO_CONFIG_S_DRIVER_OK), -EPROTO);
    assert_false(vduse_device_in_use(device));
    end();
    return 0;
}

LOOP_TEST(test_queues_that_cannot_be)
{
    begin();
    set_queue_up();
    fake.queues[0].num = 2 * QUEUE_SIZE;
    assert_int_equal(say_driver_ok(), -EPROTO);
    fake_reset();
    set_queue_up();
    fake.queues[0].desc_addr = RINGS + RINGS_BYTES;
    assert_int_equal(say_driver_ok(), -EPROTO);
    fake_reset();
    set_queue_up();
    assert_int_equal(say_driver_ok(), 0);
    show_bounce_buffer();
    check_io(1);
    end();
    return 0;
}

/* Memory that comes and goes while requests are served. */
LOOP_TEST(test_memory_is_changed_by_message)
{
    struct vduse_dev_request update = {.type = VDUSE_UPDATE_IOTLB, .iova.last = UINT64_MAX};
    struct vduse_dev_response response;

    begin();
    assert_int_equal(fake_ask(update, &response), 0);
    set_queue_up();
    show_bounce_buffer();
    assert_int_equal(say_driver_ok(), 0);
    for (uint8_t i = 0; i < 10; i++) {
        check_io(i);
        fake.ranges[2] = (FakeRange){RINGS * 2, RINGS * 2 + 3, 0, i % 2 ? VDUSE_ACCESS_RW : VDUSE_ACCESS_RO};
        fake.range_count = 2 + i % 2;
        assert_int_equal(fake_ask(update, &response), 0);
    }
    fake.range_count = 1; /* the rings have gone */
    assert_int_equal(fake_ask(update, &response), -EPROTO);
    assert_int_equal(fake_set_status(0), 0);
    end();
    return 0;
}

LOOP_TEST(test_state_of_a_queue)
{
    struct vduse_dev_request ask = {.type = VDUSE_GET_VQ_STATE};
    struct vduse_dev_response response;

    begin();
    set_queue_up();
    show_bounce_buffer();
    assert_int_equal(say_driver_ok(), 0);
    check_io(1);
    assert_int_equal(fake_ask(ask, &response), 0);
    assert_int_equal(response.vq_state.split.avail_index, 2);
    check_io(2);
    vduse_device_moved(device);
    check_io(3);
    assert_int_equal(fake_ask(ask, &response), 0);
    assert_int_equal(response.vq_state.split.avail_index, 6);
    ask.vq_state.index = 2;
    assert_int_equal(fake_ask(ask, &response), -EPROTO);
    ask.type = 77;
    assert_int_equal(fake_ask(ask, &response), -EPROTO);
    end();
    return 0;
}

LOOP_TEST(test_broken_rules_stop_the_device_until_it_is_reset)
{
    begin();
    set_queue_up();
    show_bounce_buffer();
    assert_int_equal(say_driver_ok(), 0);
    check_io(1);
    submit(VIRTIO_BLK_TYPE_OUT, 0, 512);
    put_descriptor(0, RINGS * 4, VIRTIO_BLK_HEADER_BYTES, NEXT);
    kick();
    submit(VIRTIO_BLK_TYPE_OUT, 0, 512);
    kick();
    assert_int_equal(fake_set_status(VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK), 0);
    assert_int_equal(fake_set_status(0), 0);
    assert_int_equal(used_index(), 2);
    set_queue_up();
    show_bounce_buffer();
    assert_int_equal(say_driver_ok(), 0);
    check_io(2);
    end();
    return 0;
}

/* Queues go back and forth between loops, and fail on the other one. */
LOOP_TEST(test_queues_on_another_loop)
{
    const LoopOptions options = LOOP_OPTIONS_DEFAULT;
    Loop *second;
    Error err = ERROR_INIT;

    assert_int_equal(loop_new("second", LOOP_BACKEND_AUTO, &options, &second, &err), 0);
    begin();
    other_loop = second;
    set_queue_up();
    assert_int_equal(say_driver_ok(), 0);
    show_bounce_buffer();
    for (uint8_t i = 0; i < 20; i++) {
        other_loop = i % 2 ? second : NULL;
        check_io(i);
        vduse_device_moved(device);
    }
    other_loop = second;
    vduse_device_moved(device);
    put_descriptor(0, RINGS * 4, VIRTIO_BLK_HEADER_BYTES, 0);
    put_le16(ring(AVAILABLE + 4 + 2 * (submitted % QUEUE_SIZE)), 0);
    put_le16(ring(AVAILABLE + 2), (uint16_t)(submitted + 1));
    kick();
    assert_int_equal(fake_set_status(0), 0);
    set_queue_up();
    show_bounce_buffer();
    assert_int_equal(say_driver_ok(), 0);
    check_io(1);
    end();
    other_loop = NULL;
    loop_free(second);
    return 0;
}

LOOP_TEST(test_size_reaches_the_driver)
{
    begin();
    virtio_blk_resized(blk, 2 * DISK_BYTES);
    vduse_device_resized(device);
    assert_int_equal(get_le64(fake.config), 2 * DISK_BYTES / 512);
    assert_int_equal(fake.config_calls, 1);
    end();
    return 0;
}

LOOP_TEST(test_kernel_gives_the_device_up)
{
    begin();
    set_queue_up();
    show_bounce_buffer();
    assert_int_equal(say_driver_ok(), 0);
    check_io(1);
    fake.given_up = true;
    shutdown(fake.channel, SHUT_RDWR);
    vduse_device_resized(device);
    while (vduse_device_in_use(device))
        assert_int_equal(co_sleep_ns(1000000), 0);
    fake.given_up = false;
    end();
    return 0;
}

/* ---- What is there already ---- */

LOOP_TEST(test_device_off_the_bus_is_made_anew)
{
    VduseDeviceOptions options;

    begin();
    options = device_options("disk");
    refuse_device(&options, "Another process serves");
    fake.on_bus = true;
    vduse_device_free(device);
    assert_true(fake.exists);
    assert_true(record_exists());
    fake.on_bus = false;
    open_device();
    assert_int_equal(fake.created, 2);
    end();
    return 0;
}

/* As when one daemon is replaced by the next. */
LOOP_TEST(test_device_on_the_bus_is_served_on)
{
    begin();
    set_queue_up();
    show_bounce_buffer();
    assert_int_equal(say_driver_ok(), 0);
    check_io(1);
    for (uint8_t i = 2; i < 6; i++) {
        vduse_device_free(device);
        open_device();
        assert_true(vduse_device_in_use(device));
        check_io(i);
    }
    assert_int_equal(fake.created, 1);
    assert_int_equal(fake_set_status(0), 0);
    end();
    return 0;
}

/* A newer daemon knows more features than the one that made the device. */
LOOP_TEST(test_device_of_fewer_features_is_served_on)
{
    AUTO_FREE char *message = NULL;
    VduseDeviceOptions options;

    fake_init();
    make_disk();
    options = device_options("disk");
    options.spec.features &= ~VIRTIO_FEATURE_RING_PACKED;
    assert_int_equal(make_device(&options, &message), 0);
    fake.on_bus = true;
    vduse_device_free(device);
    open_device();
    set_queue_up();
    show_bounce_buffer();
    fake.features |= VIRTIO_FEATURE_RING_PACKED;
    assert_int_equal(say_driver_ok(), -EPROTO);
    fake.features &= ~VIRTIO_FEATURE_RING_PACKED;
    assert_int_equal(say_driver_ok(), 0);
    check_io(1);
    end();
    return 0;
}

LOOP_TEST(test_device_on_the_bus_with_other_settings)
{
    AUTO_FREE char *path = str_printf("%s/vduse-blk-disk", folder);
    VduseDeviceOptions options;

    begin();
    fake.on_bus = true;
    vduse_device_free(device);
    options = device_options("disk");
    options.spec.queue_count = 1;
    refuse_device(&options, "another number of queues than 1");
    options = device_options("disk");
    options.spec.queue_size = 16;
    refuse_device(&options, "queue-size=8");
    options = device_options("disk");
    options.spec.features &= ~VIRTIO_BLK_FEATURE_DISCARD;
    refuse_device(&options, "must be served on with the same");
    fake.given_up = true;
    refuse_device(&options, "has given vduse device disk up");
    fake.given_up = false;
    options = device_options("disk");
    assert_int_equal(truncate(path, 500), 0);
    refuse_device(&options, "is not a complete record");
    assert_int_equal(truncate(path, 0), 0);
    refuse_device(&options, "is not a complete record");
    assert_int_equal(unlink(path), 0);
    refuse_device(&options, "cannot be opened: No such file");
    fake.on_bus = false;
    open_device();
    end();
    return 0;
}

/* ---- A kill with requests in flight ---- */

/* The event index of the available ring: the queue has taken everything before it. */
static unsigned taken(void)
{
    return le16toh(__atomic_load_n((uint16_t *)(void *)ring(USED + 4 + 8 * QUEUE_SIZE), __ATOMIC_SEQ_CST));
}

/* In a process of its own: takes two writes that its disk never finishes. */
static int hang_and_die(void *arg)
{
    make_blk("{'driver': 'null-co', 'node-name': 'n', 'size': 65536, 'latency-ns': 3600000000000}");
    open_device();
    set_queue_up();
    show_bounce_buffer();
    if (say_driver_ok() < 0)
        return 1;
    for (uint8_t i = 0; i < 2; i++) {
        memset(data_of(i), i + 1, 512);
        submit(VIRTIO_BLK_TYPE_OUT, i, 512);
    }
    kick();
    while (taken() != 2)
        if (co_sleep_ns(1000000) < 0)
            return 1;
    raise(SIGKILL);
    return 1;
}

static int take_over(void *arg)
{
    uint8_t contents[1024], expected[1024];

    fake.channel = fake.kicks[0] = -1; /* closed with the process */
    submitted = 2;
    make_disk();
    open_device();
    wait_used(2);
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(status_of(i), VIRTIO_BLK_STATUS_OK);
        memset(expected + 512 * i, (int)i + 1, 512);
    }
    assert_int_equal(edge_pread(edge, 0, contents, sizeof(contents)), 0);
    assert_memory_equal(contents, expected, sizeof(contents));
    check_io(3);
    assert_int_equal(used_index(), 4);
    end();
    return 0;
}

static void test_requests_in_flight_of_a_dead_process(void **state)
{
    const LoopOptions options = LOOP_OPTIONS_DEFAULT;
    int status;
    pid_t pid;

    fake_init();
    pid = fork();
    if (pid == 0)
        _exit(loop_run_main(LOOP_BACKEND_EPOLL, &options, hang_and_die, NULL));
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    assert_int_equal(loop_run_main(LOOP_BACKEND_AUTO, &options, take_over, NULL), 0);
}

/* ---- Records ---- */

static int try_record(const char *path)
{
    AUTO_ERROR Error err = ERROR_INIT;
    VduseRecord record;
    VduseSpec spec = {.name = "x", .queue_count = 1, .queue_size = QUEUE_SIZE, .block_bytes = 512};
    int r = vduse_record_create(folder, &spec, &record, &err), opened;

    if (r == 0)
        vduse_record_done(&record, false);
    err_done(&err);
    opened = vduse_record_open(folder, &spec, &record, &err);
    if (opened == 0)
        vduse_record_done(&record, false);
    assert_int_equal(r == 0, opened == 0);
    unlink(path);
    return r;
}

static void test_only_files_of_our_own_are_records(void **state)
{
    AUTO_FREE char *path = str_printf("%s/vduse-blk-x", folder), *other = str_printf("%s/other", folder);

    assert_int_equal(try_record(path), 0);
    fd_close(open(path, O_WRONLY | O_CREAT, 0600));
    assert_int_equal(try_record(path), 0);
    fd_close(open(path, O_WRONLY | O_CREAT, 0600));
    assert_int_equal(chmod(path, 0660), 0);
    assert_int_equal(try_record(path), -EPERM);
    assert_int_equal(symlink(other, path), 0);
    assert_int_equal(try_record(path), -ELOOP);
    assert_int_equal(access(other, F_OK), -1);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(try_record(path), -EPERM);
    fd_close(open(other, O_WRONLY | O_CREAT, 0600));
    assert_int_equal(link(other, path), 0);
    assert_int_equal(try_record(path), -EPERM);
    unlink(other);
}

static int set_up(void **state)
{
    return mkdtemp(folder) ? 0 : -1;
}

static int tear_down(void **state)
{
    AUTO_FREE char *path = str_printf("%s/disk", folder);

    unlink(path);
    return rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_device_is_made_as_the_kernel_wants_it),
        cmocka_unit_test(test_names_that_cannot_be),
        cmocka_unit_test(test_requests_from_driver_ok_to_reset),
        cmocka_unit_test(test_calls_of_the_first_moments),
        cmocka_unit_test(test_features_that_were_not_offered),
        cmocka_unit_test(test_queues_that_cannot_be),
        cmocka_unit_test(test_memory_is_changed_by_message),
        cmocka_unit_test(test_state_of_a_queue),
        cmocka_unit_test(test_broken_rules_stop_the_device_until_it_is_reset),
        cmocka_unit_test(test_queues_on_another_loop),
        cmocka_unit_test(test_size_reaches_the_driver),
        cmocka_unit_test(test_kernel_gives_the_device_up),
        cmocka_unit_test(test_device_off_the_bus_is_made_anew),
        cmocka_unit_test(test_device_on_the_bus_is_served_on),
        cmocka_unit_test(test_device_of_fewer_features_is_served_on),
        cmocka_unit_test(test_device_on_the_bus_with_other_settings),
        cmocka_unit_test(test_requests_in_flight_of_a_dead_process),
        cmocka_unit_test(test_only_files_of_our_own_are_records),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
