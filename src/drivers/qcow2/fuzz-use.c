/* SPDX-License-Identifier: Apache-2.0 */
#include "drivers/qcow2/fuzz-use.h"

#include "drivers/qcow2/test-bitmaps.h"

#include <stdlib.h>

#define MAX_BYTES (64 * KIB)
#define CLIENTS 3

extern const Driver driver_qcow2;

Use use_of(unsigned choice)
{
    return (Use){.read_only = choice & 1, .check_first = choice & 8, .fix = choice >> 1 & 3, .requests = 24};
}

/* ---- Requests ---- */

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

static void change(Node *node, uint64_t offset, uint64_t bytes, uint8_t *buffer, unsigned kind)
{
    struct iovec iov;
    IoSlice slice = io_slice_of(&iov, buffer, bytes);

    if (kind == 3 && (node->write_flags & REQ_COMPRESSED))
        offset = align_down(offset, 4096);
    if (test_change_begin(node, offset, bytes) < 0)
        return;
    switch (kind) {
    case 0:
        (void)!driver_qcow2.discard(node, offset, bytes);
        break;
    case 1:
        (void)!driver_qcow2.write_zeroes(node, offset, bytes, test_random(2) ? REQ_MAY_UNMAP : 0);
        break;
    case 2:
        (void)!driver_qcow2.flush(node);
        break;
    case 3:
        (void)!driver_qcow2.write(node, offset, slice, node->write_flags & REQ_COMPRESSED);
        break;
    default:
        (void)!driver_qcow2.write(node, offset, slice, test_random(4) ? 0 : REQ_FUA);
        break;
    }
    test_change_end(node, offset, bytes);
}

static void request(Node *node, uint8_t *buffer)
{
    /* As the graph does: whole sectors, where the driver asks for it. */
    uint64_t grain = MAX(node->limits.request_alignment, 1U), offset, bytes;
    unsigned kind = (unsigned)test_random(node->read_only ? 4 : 12);
    BlockStatus status;
    struct iovec iov;

    bytes = align_up(MIN(1 + test_random(test_random(2) ? 4096 : MAX_BYTES), node->size), grain);
    offset = align_down(some_offset(node, bytes), grain);
    if (kind >= 4)
        change(node, offset, bytes, buffer, kind - 4);
    else if (kind == 0)
        (void)!driver_qcow2.status(node, offset, bytes, &status);
    else
        (void)!driver_qcow2.read(node, offset, io_slice_of(&iov, buffer, bytes));
}

typedef struct Client {
    Node *node;
    unsigned requests;
} Client;

static void client(void *arg)
{
    Client *c = arg;
    uint8_t *buffer = calloc(1, MAX_BYTES + 512);

    while (buffer && c->requests && c->node->size) {
        c->requests--;
        request(c->node, buffer);
    }
    free(buffer);
}

/* ---- Commands: nothing else is going on ---- */

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
    else if (driver_qcow2.snapshots->apply(node, one->id, one->name, &err) == 0)
        test_bitmaps_resize(node, node->size);
}

static void add_bitmap(Node *node, const char *name)
{
    AUTO_ERROR Error err = ERROR_INIT;
    uint32_t granularity = 512U << test_random(9);
    DirtyBitmap *bitmap;

    if (driver_qcow2.bitmaps->can_add(node, name, granularity, &err) < 0 ||
        dirty_bitmap_new(node, name, granularity, &bitmap, &err) < 0)
        return;
    dirty_bitmap_set_persistent(bitmap, true);
    if (driver_qcow2.bitmaps->added(node, bitmap, &err) < 0)
        dirty_bitmap_free(bitmap);
}

static void change_bitmap(Node *node)
{
    static const char *const names[] = {"a", "b", "new"};
    const char *name = names[test_random(ARRAY_SIZE(names))];
    DirtyBitmap *bitmap = dirty_bitmap_find(node, name);
    AUTO_ERROR Error err = ERROR_INIT;

    if (!bitmap) {
        add_bitmap(node, name);
    } else if (dirty_bitmap_is_inconsistent(bitmap) || test_random(3) == 0) {
        if (driver_qcow2.bitmaps->remove(node, bitmap, &err) == 0)
            dirty_bitmap_free(bitmap);
    } else {
        if (test_random(2))
            dirty_bitmap_clear(bitmap);
        else
            dirty_bitmap_set(bitmap, 0, node->size);
        (void)!driver_qcow2.bitmaps->changed(node, bitmap, &err);
    }
}

static void resize(Node *node)
{
    AUTO_ERROR Error err = ERROR_INIT;
    uint64_t size = align_down(node->size / 2 * test_random(5), 512);

    if (driver_qcow2.resize(node, size, false, PREALLOCATION_OFF, 0, &err) == 0)
        test_bitmaps_resize(node, node->size);
}

/* ---- Checks ---- */

static void check(Node *node, unsigned fix, CheckResult *ret_result)
{
    AUTO_ERROR Error err = ERROR_INIT;

    *ret_result = (CheckResult){.check_errors = 1};
    if (driver_qcow2.check(node, fix, ret_result, &err) < 0 && !err_is_set(&err))
        abort();
}

static bool is_clean(const CheckResult *result)
{
    return !result->check_errors && !result->corruptions && !result->leaks;
}

/* Returns whether nothing is wrong, as far as this can say. */
static bool check_alone(unsigned fix)
{
    AUTO_ERROR Error err = ERROR_INIT;
    CheckResult result;
    Node *node = test_open_for_check(!fix, &err);

    if (!node)
        return false;
    check(node, fix, &result);
    test_close(node);
    return is_clean(&result);
}

static void use_node(Node *node, const Use *use)
{
    Client clients = {node, use->requests};
    CheckResult ignored;
    CoGroup group;

    co_group_init(&group);
    for (unsigned i = 0; i < CLIENTS; i++)
        co_start(&group, "client", client, &clients);
    co_group_join(&group);
    if (!node->read_only && test_random(2))
        change_snapshots(node);
    for (unsigned i = 0; use->bitmaps && !node->read_only && i < 4; i++)
        change_bitmap(node);
    if (!node->read_only && test_random(4) == 0)
        resize(node);
    check(node, node->read_only ? 0 : use->fix, &ignored);
}

void use_image(const Use *use)
{
    AUTO_ERROR Error err = ERROR_INIT;
    Node *node;

    if (use->check_first && check_alone(use->fix) && use->fix && !check_alone(0))
        abort();
    node = test_open(use->read_only, &err);
    if (!node)
        return;
    use_node(node, use);
    test_close(node);
    if (check_alone(use->fix) && use->fix && !check_alone(0))
        abort();
}
