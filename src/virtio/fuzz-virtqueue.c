/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A virtqueue whose every byte comes from outside: the memory table, where the rings are, what is in them,
 * the in-flight area, and what is popped, pushed and overwritten in which order. What is popped must lie in
 * memory and be accounted for, no request may be in flight twice, and a faulty queue must stay so. At the end
 * a successor takes the area over.
 *
 * An input is a struct Setup, the in-flight area, guest memory, and then operations of one byte each.
 */
#include "virtio/queue.h"

#include "base/endian.h"
#include "base/limits.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

#define MEMORY_BYTES 8192
#define AREA_BYTES 1024
#define FLYING_MAX 64
#define REGIONS 3

/* Small numbers find each other more often than large ones. */
typedef struct Setup {
    uint8_t flags;
    uint8_t size;
    uint16_t descriptors, available, used; /* offsets in the user addresses */
    uint32_t base;
    struct {
        uint16_t guest, user, bytes, offset;
    } regions[REGIONS];
} Setup;

enum {
    SETUP_PACKED = 1,
    SETUP_INDIRECT = 2,
    SETUP_EVENT_IDX = 4,
    SETUP_LOGS_USED = 8,
    SETUP_INFLIGHT = 16,
    SETUP_BASE = 32, /* the base is taken as it is */
};

typedef struct Input {
    const uint8_t *at;
    size_t left;
} Input;

typedef struct Fuzz {
    VirtioMemory *memory;
    VirtQueueConfig config;
    VirtQueue *queue;
    VirtElement flying[FLYING_MAX];
    unsigned in_flight;
    bool has_area;
} Fuzz;

static int memory_fd = -1;
static uint8_t *guest; /* the file, mapped here */
static _Alignas(64) uint8_t area[AREA_BYTES];

static size_t take(Input *input, void *to, size_t bytes)
{
    size_t taken = bytes < input->left ? bytes : input->left;

    if (taken)
        memcpy(to, input->at, taken);
    input->at += taken;
    input->left -= taken;
    return taken;
}

static void check(bool condition)
{
    if (!condition)
        abort();
}

static void make_memory(Fuzz *fuzz, const Setup *setup)
{
    fuzz->memory = virtio_memory_new();
    for (unsigned i = 0; i < REGIONS; i++) {
        VirtioRegion region = {
            .guest = setup->regions[i].guest,
            .user = setup->regions[i].user,
            .bytes = setup->regions[i].bytes,
            .file_offset = setup->regions[i].offset % MEMORY_BYTES,
        };
        Error err = ERROR_INIT;

        if (virtio_memory_add(fuzz->memory, &region, dup(memory_fd), &err) < 0)
            check(err.message != NULL);
        err_done(&err);
    }
}

static bool open_queue(Fuzz *fuzz)
{
    Error err = ERROR_INIT;
    int r = virtqueue_new(&fuzz->config, fuzz->memory, fuzz->has_area ? area : NULL, &fuzz->queue, &err);

    check(r == 0 || (r == -EINVAL && err.message));
    err_done(&err);
    fuzz->in_flight = 0;
    return r == 0;
}

/* Every byte can be touched, and the sums are right. */
static void check_element(const VirtElement *element)
{
    size_t sums[2] = {0, 0};

    for (unsigned i = 0; i < element->out_count + element->in_count; i++) {
        const struct iovec *iov = &element->iov[i];
        bool is_in = i >= element->out_count;

        check(iov->iov_len > 0);
        sums[is_in] += iov->iov_len;
        (void)((volatile uint8_t *)iov->iov_base)[0];
        (void)((volatile uint8_t *)iov->iov_base)[iov->iov_len - 1];
        if (is_in)
            ((volatile uint8_t *)iov->iov_base)[iov->iov_len / 2] ^= 1;
    }
    check(sums[0] == element->out_bytes && sums[1] == element->in_bytes);
    check(sums[0] + sums[1] > 0 && sums[0] + sums[1] <= LIMIT_VIRTQUEUE_REQUEST_BYTES);
}

static void pop(Fuzz *fuzz)
{
    VirtElement element;
    bool has_more = virtqueue_has_more(fuzz->queue);
    int r = virtqueue_pop(fuzz->queue, &element);

    check(r == 1 || r == 0 || r == -EPROTO);
    check(r == 0 || has_more);
    check((r == -EPROTO) == (virtqueue_fault(fuzz->queue) != NULL));
    if (r != 1)
        return;
    check_element(&element);
    for (unsigned i = 0; i < fuzz->in_flight; i++)
        check(fuzz->flying[i].id != element.id);
    check(fuzz->in_flight < fuzz->config.size);
    fuzz->flying[fuzz->in_flight++] = element;
    check(virtqueue_in_flight(fuzz->queue) == fuzz->in_flight);
}

static void push(Fuzz *fuzz, unsigned which)
{
    if (!fuzz->in_flight)
        return;
    which %= fuzz->in_flight;
    virtqueue_push(fuzz->queue, &fuzz->flying[which], 1);
    fuzz->flying[which] = fuzz->flying[--fuzz->in_flight];
}

/* The lower three bits say what, the others are its argument. */
static void operate(Fuzz *fuzz, Input *input, uint8_t operation)
{
    uint8_t argument = operation >> 3, patch[4];
    uint16_t where;

    switch (operation & 7) {
    case 0:
    case 1:
        pop(fuzz);
        break;
    case 2:
        push(fuzz, argument);
        break;
    case 3:
        virtqueue_wants_call(fuzz->queue);
        break;
    case 4:
        virtqueue_ask_for_kicks(fuzz->queue, argument & 1);
        break;
    case 5: /* the driver, or a hostile one, writes to memory */
    case 6:
        if (take(input, &where, sizeof(where)) == sizeof(where))
            take(input, &guest[where % (MEMORY_BYTES - sizeof(patch))], sizeof(patch));
        break;
    case 7:
        if (take(input, &where, sizeof(where)) == sizeof(where))
            take(input, &area[where % (AREA_BYTES - sizeof(patch))], sizeof(patch));
        break;
    }
}

/* Stops and goes on, as after a crash or in order. */
static void reopen(Fuzz *fuzz)
{
    fuzz->config.base = virtqueue_base(fuzz->queue);
    virtqueue_free(fuzz->queue);
    fuzz->queue = NULL;
    if (!open_queue(fuzz))
        return;
    for (unsigned i = 0; i < 2 * FLYING_MAX; i++) {
        pop(fuzz);
        push(fuzz, i);
    }
}

static void run(Fuzz *fuzz, Input *input)
{
    uint8_t operation;

    while (take(input, &operation, 1) == 1)
        operate(fuzz, input, operation);
    reopen(fuzz);
}

static void set_log(Fuzz *fuzz)
{
    Error err = ERROR_INIT;

    check(virtio_memory_set_log(fuzz->memory, 1, 0, dup(memory_fd), &err) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    Input input = {data, bytes};
    Fuzz fuzz = {0};
    Setup setup;

    if (memory_fd < 0) {
        memory_fd = memfd_create("guest", MFD_CLOEXEC);
        check(ftruncate(memory_fd, MEMORY_BYTES) == 0);
        guest = mmap(NULL, MEMORY_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, memory_fd, 0);
        check(guest != MAP_FAILED);
    }
    if (take(&input, &setup, sizeof(setup)) != sizeof(setup))
        return 0;
    memset(area, 0, sizeof(area));
    memset(guest, 0, MEMORY_BYTES);
    fuzz.has_area = setup.flags & SETUP_INFLIGHT;
    if (fuzz.has_area)
        take(&input, area, AREA_BYTES / 4);
    take(&input, guest, 1024);
    make_memory(&fuzz, &setup);
    fuzz.config = (VirtQueueConfig){
        .size = setup.size % (AREA_BYTES / 32),
        .packed = setup.flags & SETUP_PACKED,
        .indirect = setup.flags & SETUP_INDIRECT,
        .event_idx = setup.flags & SETUP_EVENT_IDX,
        .descriptors = setup.descriptors,
        .available = setup.available,
        .used = setup.used,
        .logs_used = setup.flags & SETUP_LOGS_USED,
        .base = setup.flags & SETUP_BASE     ? setup.base
                : setup.flags & SETUP_PACKED ? 0x80008000
                                             : 0,
    };
    if (fuzz.config.logs_used)
        set_log(&fuzz);
    if (open_queue(&fuzz))
        run(&fuzz, &input);
    virtqueue_free(fuzz.queue);
    virtio_memory_free(fuzz.memory);
    return 0;
}
