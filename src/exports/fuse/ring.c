/* SPDX-License-Identifier: Apache-2.0 */
/* Entries of the kernel's queues, each with a coroutine that waits in it for requests; see ring.h. */
#include "exports/fuse/ring.h"

#include "base/limits.h"
#include "base/mem.h"
#include "generated/trace.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

/* With many queues each gets fewer. */
#define ENTRIES_PER_QUEUE 16U
#define ENTRIES_PER_QUEUE_MIN 2U

typedef struct Entry {
    FuseRing *ring;
    unsigned queue;
    FuseUringHeaders headers;
    uint8_t *payload;
} Entry;

struct FuseRing {
    FuseSession *session;
    int fd;
    CoGroup group;
    unsigned count;
    uint8_t *memory;
    Entry entries[];
};

/* ---- Queues ---- */

/* "0-3,8": how many CPUs these are. */
static unsigned count_cpus(FILE *list)
{
    unsigned first, last, count = 0;

    while (fscanf(list, "%u", &first) == 1) {
        if (fscanf(list, "-%u", &last) != 1)
            last = first;
        count += last >= first ? last - first + 1 : 0;
        if (fgetc(list) != ',')
            break;
    }
    return count;
}

unsigned fuse_ring_queues(void)
{
    FILE *list = fopen("/sys/devices/system/cpu/possible", "re");
    unsigned count = list ? count_cpus(list) : 0;

    if (list)
        fclose(list);
    return count;
}

static unsigned entries_per_queue(unsigned queues)
{
    return MAX(MIN((unsigned)LIMIT_FUSE_RING_ENTRIES / queues, ENTRIES_PER_QUEUE), ENTRIES_PER_QUEUE_MIN);
}

FuseRing *fuse_ring_new(FuseSession *session, int fd, unsigned index, unsigned rings)
{
    unsigned queues = MAX(fuse_ring_queues(), 1U), each = entries_per_queue(queues), first = index % queues;
    unsigned count = (unsigned)div_round_up(queues - first, rings) * each;
    FuseRing *ring = mem_zalloc(sizeof(FuseRing) + count * sizeof(Entry));

    ring->memory = mmap(NULL, count * (size_t)FUSE_PAYLOAD_BYTES, PROT_READ | PROT_WRITE,
        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (ring->memory == MAP_FAILED) {
        free(ring);
        return NULL;
    }
    (void)madvise(ring->memory, count * (size_t)FUSE_PAYLOAD_BYTES, MADV_NOHUGEPAGE);
    ring->session = session;
    ring->fd = fd;
    ring->count = count;
    co_group_init(&ring->group);
    for (unsigned i = 0; i < count; i++) {
        ring->entries[i].ring = ring;
        ring->entries[i].queue = first + i / each * rings;
        ring->entries[i].payload = ring->memory + i * (size_t)FUSE_PAYLOAD_BYTES;
    }
    return ring;
}

void fuse_ring_free(FuseRing *ring)
{
    if (!ring)
        return;
    munmap(ring->memory, ring->count * (size_t)FUSE_PAYLOAD_BYTES);
    free(ring);
}

/* ---- Entries ---- */

static int send_command(
    Entry *entry, uint32_t op, uint64_t commit_id, const struct iovec *iov, unsigned iov_count)
{
    FuseUringCommand body = {.commit_id = commit_id, .queue = (uint16_t)entry->queue};
    IoCommand command = {.op = op, .iov = iov, .iov_count = iov_count};

    memcpy(command.bytes, &body, sizeof(body));
    return io_command(entry->ring->fd, &command);
}

/* Both of these wait for a request: 0 when one is there. */
static int give(Entry *entry)
{
    const struct iovec iov[] = {
        {&entry->headers, sizeof(entry->headers)}, {entry->payload, FUSE_PAYLOAD_BYTES}};

    return send_command(entry, FUSE_URING_REGISTER, 0, iov, ARRAY_SIZE(iov));
}

static int answer(Entry *entry, uint64_t unique, ssize_t result)
{
    FuseOutHeader out = {
        .bytes = FUSE_OUT_BYTES + (result > 0 ? (uint32_t)result : 0),
        .error = result < 0 ? (int32_t)result : 0,
        .unique = unique,
    };

    memcpy(entry->headers.header, &out, sizeof(out));
    entry->headers.payload_bytes = result > 0 ? (uint32_t)result : 0;
    return send_command(entry, FUSE_URING_COMMIT_AND_FETCH, entry->headers.commit_id, NULL, 0);
}

static int serve(Entry *entry)
{
    FuseSession *session = entry->ring->session;
    FuseHeader header;
    FuseRequest request;
    size_t body_bytes;
    ssize_t r = fuse_uring_decode(&entry->headers, &header, &body_bytes);

    if (r < 0)
        return answer(entry, entry->headers.commit_id, r);
    trace_fuse_request("ring", entry->ring->fd, header.unique, fuse_opcode_name(header.opcode));
    r = fuse_request_decode(&header, entry->headers.body, body_bytes, entry->headers.payload_bytes, &request);
    if (r == 0)
        r = fuse_session_execute(session, &request, entry->payload);
    return answer(entry, header.unique, r);
}

static void entry_main(void *arg)
{
    Entry *entry = arg;
    int r = give(entry);

    while (r >= 0)
        r = serve(entry);
}

int fuse_ring_run(void *arg)
{
    FuseRing *ring = arg;

    for (unsigned i = 0; i < ring->count; i++)
        co_start(&ring->group, "fuse-entry", entry_main, &ring->entries[i]);
    co_group_join(&ring->group);
    return 0;
}
