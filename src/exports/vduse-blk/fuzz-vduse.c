/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A VDUSE device on a null-co node under messages, answers of the kernel and memory from bytes. The input is
 * a list of steps: a byte that says which, then what it takes; a step that the input is too short for is the
 * end.
 */
#include "exports/vduse-blk/test-kernel.h"

#include "base/log.h"
#include "schema/fuzz-options.h"

#define QUEUE_COUNT 2
#define QUEUE_SIZE 16

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

typedef struct Input {
    const uint8_t *data;
    size_t bytes;
    const char *folder;
    Edge *edge;
    VirtioBlk *blk;
    VduseDevice *device;
} Input;

static bool take(Input *input, void *ret_data, size_t bytes)
{
    if (bytes > input->bytes)
        return false;
    memcpy(ret_data, input->data, bytes);
    input->data += bytes;
    input->bytes -= bytes;
    return true;
}

static Loop *here(void *opaque, unsigned index)
{
    return loop_current();
}

/* May fail: what is adopted is what the input has made of it. */
static void open_device(Input *input)
{
    AUTO_ERROR Error err = ERROR_INIT;
    VduseDeviceOptions options = {
        .export_id = "e0",
        .kernel = &fake_kernel,
        .record_folder = input->folder,
        .spec =
            {
                .name = "fuzz",
                .features = virtio_blk_features(input->blk) & ~VIRTIO_BLK_FEATURE_CONFIG_WCE,
                .queue_count = QUEUE_COUNT,
                .queue_size = QUEUE_SIZE,
                .block_bytes = 512,
            },
        .blk = input->blk,
        .queue_loop = here,
    };

    if (vduse_device_new(&options, &input->device, &err) < 0)
        input->device = NULL;
}

static void close_device(Input *input)
{
    if (input->device)
        vduse_device_free(TAKE(input->device));
}

static bool set_queue(Input *input)
{
    struct vduse_vq_info info = {0};

    if (!take(input, &info, sizeof(info)))
        return false;
    info.index %= QUEUE_COUNT;
    fake.queues[info.index] = info;
    return true;
}

static bool set_ranges(Input *input)
{
    uint8_t count;

    if (!take(input, &count, 1) || !take(input, fake.ranges, (count % FAKE_RANGES) * sizeof(*fake.ranges)))
        return false;
    fake.range_count = count % FAKE_RANGES;
    return true;
}

static bool set_memory(Input *input)
{
    uint32_t at;
    uint8_t bytes;

    return take(input, &at, sizeof(at)) && take(input, &bytes, 1) &&
           take(input, fake.memory + at % (FAKE_MEMORY_BYTES - UINT8_MAX), bytes);
}

static bool kick(Input *input)
{
    uint8_t index;

    if (!take(input, &index, 1))
        return false;
    if (fake.kicks[index % QUEUE_COUNT] >= 0)
        (void)eventfd_write(fake.kicks[index % QUEUE_COUNT], 1);
    return true;
}

static bool ask(Input *input)
{
    struct vduse_dev_request request = {0};
    struct vduse_dev_response response;

    if (!take(input, &request.type, sizeof(request.type)) || !take(input, &request.padding, 16))
        return false;
    (void)fake_ask(request, &response);
    return true;
}

static bool set_status(Input *input)
{
    uint8_t status;

    if (!take(input, &status, 1))
        return false;
    (void)fake_set_status(status);
    return true;
}

static bool set_features(Input *input)
{
    if (!take(input, &fake.features, sizeof(fake.features)))
        return false;
    fake.features = (fake.features & fake.offered) | FAKE_NEEDED;
    return true;
}

/* The next process. */
static bool replace(Input *input)
{
    fake.on_bus = true;
    close_device(input);
    open_device(input);
    return input->device;
}

static bool move(Input *input)
{
    vduse_device_moved(input->device);
    vduse_device_resized(input->device);
    return true;
}

static bool (*const steps[])(Input *input) = {
    set_queue, set_ranges, set_memory, kick, ask, set_status, set_features, replace, move};

static int run(void *arg)
{
    static const EdgeUser user = {0};
    AUTO_ERROR Error err = ERROR_INIT;
    CLEANUP(blockdev_options_free_ptr)
    BlockdevOptions *node = options_from(&schema_type_BlockdevOptions,
        "{'driver': 'null-co', 'node-name': 'n', 'size': 65536, 'read-zeroes': true}");
    Input *input = arg;
    uint8_t step;

    block_init();
    require(node_add(node, &err), &err);
    require(edge_open(
                node_find("n"), &user, NULL, PERM_CONSISTENT_READ | PERM_WRITE, PERM_ALL, &input->edge, &err),
        &err);
    input->blk = virtio_blk_new(&(VirtioBlkOptions){
        .edge = input->edge,
        .writable = true,
        .logical_block_bytes = 512,
        .queue_count = QUEUE_COUNT,
        .queue_size_max = QUEUE_SIZE,
        .serial = "",
    });
    fake_init();
    open_device(input);
    if (!input->device)
        abort();
    while (take(input, &step, 1) && steps[step % ARRAY_SIZE(steps)](input))
        (void)co_yield ();
    fake.on_bus = false;
    close_device(input);
    fake_done();
    virtio_blk_free(input->blk);
    edge_close(input->edge);
    node_close_all();
    return 0;
}

static char folder[] = "/tmp/fuzz-vduse-XXXXXX";

static void remove_folder(void)
{
    rmdir(folder);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static bool made;
    Input input = {.data = data, .bytes = bytes, .folder = folder};
    const LoopOptions options = LOOP_OPTIONS_DEFAULT;

    if (!made) {
        if (!mkdtemp(folder))
            abort();
        atexit(remove_folder);
        made = true;
    }
    return loop_run_main(LOOP_BACKEND_EPOLL, &options, run, &input);
}
