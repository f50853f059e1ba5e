/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A whole image from arbitrary bytes: opened, read, written, zeroed, discarded, resized, its snapshots
 * changed, flushed and closed, over a graph in memory; checked, repaired and checked again, before and after
 * that. The last byte of the input chooses between reading only and writing, and what is repaired, the one
 * before it seeds the requests. Run it with -close_fd_mask=2: corruption is reported on standard error each
 * time.
 */
#include "drivers/qcow2/test-graph.h"

#include <stdlib.h>

#define REQUESTS 24
#define MAX_BYTES (64 * KIB)

extern const Driver driver_qcow2;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct Input {
    const uint8_t *data;
    size_t size;
} Input;

/* Near the start, near the end, or anywhere. */
static uint64_t some_offset(const Node *node, uint64_t bytes)
{
    uint64_t room = node->size - bytes;

    switch (test_random(4)) {
    case 0:
        return room - test_random(MIN(room, UINT64_C(70000)) + 1);
    case 1:
        return test_random(room + 1);
    default:
        return test_random(MIN(room, UINT64_C(70000)) + 1);
    }
}

static void request(Node *node, uint8_t *buffer)
{
    uint64_t bytes = MIN(1 + test_random(test_random(2) ? 4096 : MAX_BYTES), node->size);
    uint64_t offset = some_offset(node, bytes);
    struct iovec iov;
    IoSlice slice = io_slice_of(&iov, buffer, bytes);
    unsigned kind = (unsigned)test_random(node->read_only ? 4 : 12);
    BlockStatus status;

    switch (kind) {
    case 0:
        (void)!driver_qcow2.status(node, offset, bytes, &status);
        break;
    case 4:
        (void)!driver_qcow2.discard(node, offset, bytes);
        break;
    case 5:
        (void)!driver_qcow2.write_zeroes(node, offset, bytes, test_random(2) ? REQ_MAY_UNMAP : 0);
        break;
    case 6:
        (void)!driver_qcow2.flush(node);
        break;
    case 7:
        (void)!driver_qcow2.write(node, align_down(offset, 4096), slice, REQ_COMPRESSED);
        break;
    case 8:
    case 9:
    case 10:
        (void)!driver_qcow2.write(node, offset, slice, test_random(4) ? 0 : REQ_FUA);
        break;
    default:
        (void)!driver_qcow2.read(node, offset, slice);
        break;
    }
}

typedef struct Client {
    Node *node;
    unsigned requests;
} Client;

static void client(void *arg)
{
    Client *c = arg;
    uint8_t *buffer = malloc(MAX_BYTES + 1);

    while (buffer && c->requests && c->node->size) {
        c->requests--;
        request(c->node, buffer);
    }
    free(buffer);
}

static void check(Node *node, unsigned fix)
{
    AUTO_ERROR Error err = ERROR_INIT;
    CheckResult result;

    if (driver_qcow2.check(node, fix, &result, &err) < 0 && !err_is_set(&err))
        abort();
}

static void check_alone(unsigned fix)
{
    AUTO_ERROR Error err = ERROR_INIT;
    Node *node;

    mem_for_check = true;
    node = test_open(!fix, &err);
    mem_for_check = false;
    if (!node)
        return;
    check(node, fix);
    test_close(node);
}

/* Nothing else is going on. */
static void change_snapshots(Node *node)
{
    AUTO_ERROR Error err = ERROR_INIT, list_err = ERROR_INIT;
    CLEANUP(snapshot_info_list_done) SnapshotInfoList list = {0};
    SnapshotInfo info = {.name = (char *)"fuzz"};
    const SnapshotInfo *one;

    if (driver_qcow2.snapshots->list(node, &list, &list_err) < 0)
        return;
    one = list.count ? list.items[test_random(list.count)] : &info;
    if (!list.count || test_random(3) == 0)
        (void)!driver_qcow2.snapshots->create(node, &info, &err);
    else if (test_random(2))
        (void)!driver_qcow2.snapshots->remove(node, one->id, one->name, &err);
    else
        (void)!driver_qcow2.snapshots->apply(node, one->id, one->name, &err);
}

static void exercise(void *arg)
{
    const Input *in = arg;
    AUTO_ERROR Error err = ERROR_INIT, resize_err = ERROR_INIT;
    unsigned choice = in->data[in->size - 1], fix = choice >> 1 & 3;
    Client clients = {.requests = REQUESTS};
    CoGroup group;
    Node *node;

    if (choice & 8)
        check_alone(fix);
    node = clients.node = test_open(choice & 1, &err);
    if (!node)
        return;
    co_group_init(&group);
    for (unsigned i = 0; i < 3; i++)
        co_start(&group, "client", client, &clients);
    co_group_join(&group);
    if (!node->read_only && test_random(2))
        change_snapshots(node);
    if (!node->read_only && test_random(4) == 0)
        (void)!driver_qcow2.resize(
            node, align_down(node->size / 2 * test_random(5), 512), false, PREALLOCATION_OFF, 0, &resize_err);
    check(node, node->read_only ? 0 : fix);
    test_close(node);
    check_alone(fix);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    Input in = {data, size};

    if (size < 2)
        return 0;
    test_random_seed(data[size - 2] + 1);
    mem_limit = 4 * MIB;
    mem_file = mem_file_new(data, size, false);
    mem_data_file = mem_file_new(data, MIN(size, (size_t)4096), false);
    mem_backing = mem_file_new(data, MIN(size, (size_t)8192), false);
    test_run(exercise, &in);
    mem_file_free(mem_file);
    mem_file_free(mem_data_file);
    mem_file_free(mem_backing);
    return 0;
}
