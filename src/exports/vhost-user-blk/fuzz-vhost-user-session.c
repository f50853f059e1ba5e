/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A whole connection from bytes. The input is a program for a front end with 64 KiB of memory, two eventfds
 * and the in-flight area that it was given; it runs against an export of a null-co node. Each step is a byte
 * and what belongs to it:
 *
 *   0 any message: descriptors (a bit each: memory, kick, call, in-flight area, socket), request, flags (0 is
 *     a plain request), length, payload
 *
 *   1 what a front end says up to a running queue: features, size, index, address, base
 *
 *   2 and 3: offset, length and bytes to be written into memory, where the rings are, or the in-flight area
 *
 *   4: a kick; 5: waits until all messages were carried out; 6: a length to which the memory's file is cut;
 *   7: the export hears of a resize
 */
#include "exports/vhost-user-blk/vhost-user-priv.h"

#include "base/mem.h"
#include "net/socket.h"
#include "schema/fuzz-options.h"

#include <fcntl.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define MEMORY_BYTES UINT64_C(65536)
#define GUEST UINT64_C(0x10000)
#define USER UINT64_C(0x7f0000000000)
#define FLAGS_REQUEST 1u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

typedef struct FrontEnd {
    const uint8_t *data; /* what is left of the program */
    size_t bytes;
    int fd;
    int memory, kick, call, inflight;
    unsigned synced; /* answers to GET_QUEUE_NUM */
    bool ended;
    CoCond received;
} FrontEnd;

/* ---- The program ---- */

/* The next bytes of the input, zeroes behind its end. */
static uint64_t take(FrontEnd *front, unsigned bytes)
{
    uint64_t value = 0;

    for (unsigned i = 0; i < bytes && front->bytes; i++, front->bytes--)
        value |= (uint64_t)*front->data++ << 8 * i;
    return value;
}

static const uint8_t *take_bytes(FrontEnd *front, size_t bytes, size_t *ret_bytes)
{
    const uint8_t *data = front->data;

    *ret_bytes = MIN(bytes, front->bytes);
    front->data += *ret_bytes;
    front->bytes -= *ret_bytes;
    return data;
}

static void send_message(FrontEnd *front, uint32_t request, uint32_t flags, const void *payload,
    uint32_t bytes, const int *fds, unsigned count)
{
    uint8_t data[VHOST_USER_HEADER_BYTES + UINT8_MAX];
    uint32_t header[3] = {request, flags, bytes};

    if (front->ended)
        return;
    memcpy(data, header, sizeof(header));
    memcpy(data + sizeof(header), payload, bytes);
    if (socket_send_fds(front->fd, data, sizeof(header) + bytes, fds, count) < 0)
        front->ended = true;
}

static void say(FrontEnd *front, uint32_t request, const void *payload, uint32_t bytes, int fd)
{
    send_message(front, request, FLAGS_REQUEST, payload, bytes, &fd, fd >= 0);
}

static void catch_up(FrontEnd *front)
{
    unsigned before = front->synced;

    say(front, VHOST_USER_GET_QUEUE_NUM, "", 0, -1);
    while (front->synced == before && !front->ended)
        co_cond_wait_shielded(&front->received, NULL);
}

static void any_message(FrontEnd *front)
{
    const int all[] = {front->memory, front->kick, front->call, front->inflight, front->fd};
    unsigned which = (unsigned)take(front, 1), count = 0;
    uint32_t request = (uint32_t)take(front, 1), flags = (uint32_t)take(front, 1) ^ FLAGS_REQUEST;
    size_t bytes;
    const uint8_t *payload;
    int fds[ARRAY_SIZE(all)];

    for (unsigned i = 0; i < ARRAY_SIZE(all); i++)
        if (which & 1u << i && all[i] >= 0)
            fds[count++] = all[i];
    payload = take_bytes(front, (size_t)take(front, 1), &bytes);
    send_message(front, request, flags, payload, (uint32_t)bytes, fds, count);
}

static uint64_t offered_features(void)
{
    const VhostUserExport *owner = export_find("e0")->state;

    return virtio_blk_features(owner->blk) | VHOST_USER_F_LOG_ALL;
}

static void start_queue(FrontEnd *front)
{
    uint64_t features = (take(front, 5) & offered_features()) | VHOST_USER_F_PROTOCOL_FEATURES;
    uint32_t size = (uint32_t)take(front, 2), index = (uint32_t)take(front, 1) % 3;
    uint64_t at = USER + take(front, 2), used = at + 16 * (uint64_t)size;
    const uint64_t table[] = {1, GUEST, MEMORY_BYTES, USER, 0}, number = index;
    const uint64_t address[] = {index, at, align_up(used + 6 + 2 * (uint64_t)size, 64), used, 0};
    const uint32_t vring_size[] = {index, size}, base[] = {index, (uint32_t)take(front, 4)},
                   enable[] = {index, 1};
    const uint64_t inflight[] = {0, 0, 2 | (uint64_t)size << 16};

    say(front, VHOST_USER_SET_FEATURES, &features, 8, -1);
    say(front, VHOST_USER_SET_MEM_TABLE, table, 40, front->memory);
    if (front->inflight < 0)
        say(front, VHOST_USER_GET_INFLIGHT_FD, inflight, 24, -1);
    say(front, VHOST_USER_SET_VRING_NUM, vring_size, 8, -1);
    say(front, VHOST_USER_SET_VRING_BASE, base, 8, -1);
    say(front, VHOST_USER_SET_VRING_ADDR, address, 40, -1);
    say(front, VHOST_USER_SET_VRING_CALL, &number, 8, front->call);
    say(front, VHOST_USER_SET_VRING_KICK, &number, 8, front->kick);
    say(front, VHOST_USER_SET_VRING_ENABLE, enable, 8, -1);
}

static void poke(FrontEnd *front, int fd)
{
    off_t at = (off_t)take(front, 2);
    size_t bytes, wanted = (size_t)take(front, 1);
    const uint8_t *data = take_bytes(front, wanted, &bytes);

    if (fd >= 0)
        (void)!pwrite(fd, data, bytes, at);
}

static void tell_of_resize(void)
{
    Export *export = export_find("e0");

    export->kind->resized(export, node_size(node_find("n0")));
}

static void run_program(void *arg)
{
    FrontEnd *front = arg;

    while (front->bytes && !front->ended) {
        switch (take(front, 1) % 8) {
        case 0:
            any_message(front);
            break;
        case 1:
            start_queue(front);
            break;
        case 2:
            poke(front, front->memory);
            break;
        case 3:
            poke(front, front->inflight);
            break;
        case 4:
            (void)eventfd_write(front->kick, 1);
            break;
        case 5:
            catch_up(front);
            break;
        case 6:
            (void)!ftruncate(front->memory, (off_t)take(front, 2));
            break;
        default:
            tell_of_resize();
        }
    }
    if (!front->ended)
        catch_up(front);
    shutdown(front->fd, SHUT_WR);
}

/* ---- What comes back ---- */

static int receive_all(FrontEnd *front, uint8_t *data, size_t bytes, int *fd, unsigned *fds)
{
    size_t got = 0;

    while (got < bytes) {
        unsigned count = 0;
        ssize_t n = socket_recv_fds(front->fd, data + got, bytes - got, fd, 1, &count);

        if (n <= 0)
            return -ECONNRESET;
        *fds += count;
        got += (size_t)n;
    }
    return 0;
}

/* On the same socket run the answers and, if the program passed it as channel, the requests of the back end.
 */
static int receive_one(FrontEnd *front)
{
    uint8_t header[VHOST_USER_HEADER_BYTES], payload[VHOST_USER_PAYLOAD_BYTES];
    uint32_t request, bytes;
    unsigned fds = 0;
    int fd = -1, r = receive_all(front, header, sizeof(header), &fd, &fds);

    memcpy(&request, header, sizeof(request));
    memcpy(&bytes, header + 8, sizeof(bytes));
    if (r < 0)
        return r;
    if (bytes > sizeof(payload))
        abort();
    r = receive_all(front, payload, bytes, &fd, &fds);
    if (fds && request == VHOST_USER_GET_INFLIGHT_FD && front->inflight < 0)
        front->inflight = TAKE_FD(fd);
    fd_close(fds ? fd : -1);
    front->synced += request == VHOST_USER_GET_QUEUE_NUM;
    return r;
}

static void receive_main(void *arg)
{
    FrontEnd *front = arg;

    while (receive_one(front) >= 0)
        co_cond_broadcast(&front->received);
    front->ended = true;
    co_cond_broadcast(&front->received);
}

/* ---- Both ends ---- */

static void start_export(const char *name)
{
    AUTO_ERROR Error err = ERROR_INIT;
    AUTO_FREE char *text =
        str_printf("{'type': 'vhost-user-blk', 'id': 'e0', 'node-name': 'n0', 'writable': true, "
                   "'num-queues': 3, 'addr': {'type': 'unix', 'path': '%s', 'abstract': true}}",
            name);
    CLEANUP(blockdev_options_free_ptr)
    BlockdevOptions *node = options_from(&schema_type_BlockdevOptions,
        "{'driver': 'null-co', 'node-name': 'n0', 'size': 1048576, 'read-zeroes': true}");
    CLEANUP(block_export_options_free_ptr)
    BlockExportOptions *export = options_from(&schema_type_BlockExportOptions, text);

    require(node_add(node, &err), &err);
    require(export_add(export, &err), &err);
}

static int connect_to(const char *name)
{
    AUTO_ERROR Error err = ERROR_INIT;
    SocketAddress address = {.type = SOCKET_ADDRESS_TYPE_UNIX};
    int fd = -1;

    address.u.unix_ = (UnixSocketAddress){.path = (char *)name, .has_abstract = true, .abstract = true};
    require(socket_connect(&address, &fd, &err), &err);
    return fd;
}

static int run(void *arg)
{
    AUTO_ERROR Error err = ERROR_INIT;
    AUTO_FREE char *name = str_printf("granary-fuzz-%d", (int)getpid());
    FrontEnd *front = arg;
    CoGroup group;

    start_export(name);
    front->fd = connect_to(name);
    co_group_init(&group);
    co_start(&group, "program", run_program, front);
    co_start(&group, "receive", receive_main, front);
    co_group_join(&group);
    require(export_remove(export_find("e0"), true, &err), &err);
    require(node_del("n0", &err), &err);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    const LoopOptions options = LOOP_OPTIONS_DEFAULT;
    FrontEnd front = {
        .data = data,
        .bytes = bytes,
        .memory = memfd_create("guest", MFD_CLOEXEC),
        .kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
        .call = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
        .inflight = -1,
    };

    if (ftruncate(front.memory, (off_t)MEMORY_BYTES) < 0 || front.kick < 0 || front.call < 0)
        abort();
    loop_run_main(LOOP_BACKEND_EPOLL, &options, run, &front);
    fd_close(front.fd);
    fd_close(front.memory);
    fd_close(front.kick);
    fd_close(front.call);
    fd_close(front.inflight);
    return 0;
}
