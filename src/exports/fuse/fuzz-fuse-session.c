/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whole requests from bytes, carried out on a small writable file: a socket pair that keeps messages apart
 * stands for /dev/fuse. The input is cut into requests, with or without a header that fits; each that wants a
 * reply must get exactly one.
 */
#include "exports/fuse/queue.h"

#include "base/mem.h"
#include "schema/fuzz-options.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define IMAGE_BYTES 65536
#define REPLY_BYTES 65536
#define BATCH 8

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

typedef struct Client {
    const uint8_t *data;
    size_t bytes;
    int fd;
    uint64_t unique;
    unsigned owed; /* replies */
} Client;

static BlockdevOptions *node_options(int image)
{
    AUTO_FREE char *json = str_printf(
        "{'driver': 'file', 'node-name': 'n0', 'filename': '/proc/self/fd/%d', 'locking': 'off'}", image);

    return options_from(&schema_type_BlockdevOptions, json);
}

static int image_new(void)
{
    int fd = memfd_create("image", MFD_CLOEXEC);

    if (fd < 0 || ftruncate(fd, IMAGE_BYTES) < 0)
        abort();
    return fd;
}

/* ---- The kernel's side ---- */

static void receive_replies(Client *client)
{
    static uint8_t reply[REPLY_BYTES + 4096];

    while (client->owed) {
        ssize_t n = io_recv(client->fd, reply, sizeof(reply));
        FuseOutHeader header;

        if (n < (ssize_t)sizeof(header))
            abort();
        memcpy(&header, reply, sizeof(header));
        if (header.bytes != n || header.error > 0 || header.error < -512 || !header.unique ||
            header.unique > client->unique || (header.error && n != sizeof(header)))
            abort();
        client->owed--;
    }
}

/* Replies shall fit into a message, and the image into memory. */
static void limit(const FuseHeader *header, uint8_t *body, size_t bytes)
{
    if (header->opcode == FUSE_OP_READ && bytes >= sizeof(FuseIoIn))
        body[offsetof(FuseIoIn, bytes) + 2] &= 0x80;
    if (header->opcode == FUSE_OP_FALLOCATE && bytes >= sizeof(FuseFallocateIn))
        memset(body + offsetof(FuseFallocateIn, bytes) + 3, 0, 5);
    if (header->opcode == FUSE_OP_COPY_FILE_RANGE && bytes >= sizeof(FuseCopyIn))
        memset(body + offsetof(FuseCopyIn, bytes) + 3, 0, 5);
}

static void send_request(Client *client, uint8_t *data, size_t bytes, bool fitting)
{
    struct iovec iov = {data, bytes};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
    FuseHeader header;

    if (bytes >= sizeof(header)) {
        memcpy(&header, data, sizeof(header));
        header.opcode %= 64;
        header.unique = ++client->unique;
        if (fitting)
            header.bytes = (uint32_t)bytes;
        memcpy(data, &header, sizeof(header));
        limit(&header, data + sizeof(header), bytes - sizeof(header));
        client->owed += header.bytes == bytes && fuse_wants_reply(header.opcode);
    }
    if (io_sendmsg(client->fd, &message, 0) != (ssize_t)bytes)
        abort();
}

/* Each request: its length in two bytes, of which the highest bit asks for a header that does not fit. */
static void client_main(void *arg)
{
    static uint8_t request[32768];
    Client *client = arg;
    size_t at = 0;

    for (unsigned i = 1; at + 2 < client->bytes; i++) {
        unsigned prefix = client->data[at] | (unsigned)client->data[at + 1] << 8;
        size_t bytes = MIN((size_t)(prefix & 0x7fff), client->bytes - at - 2);

        at += 2;
        memcpy(request, client->data + at, bytes);
        if (bytes)
            send_request(client, request, bytes, !(prefix & 0x8000));
        at += bytes;
        if (i % BATCH == 0)
            receive_replies(client);
    }
    receive_replies(client);
    shutdown(client->fd, SHUT_WR);
}

/* ---- Ours ---- */

static char *describe(void *opaque)
{
    return str_dup("a test");
}

static const EdgeUser user = {.describe = describe};

static void serve(FuseSession *session, Client *client)
{
    FuseQueue *queue;
    CoGroup group;
    int pair[2];

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0 ||
        fcntl(pair[1], F_SETFL, O_NONBLOCK) < 0)
        abort();
    client->fd = pair[0];
    queue = fuse_queue_new(session, pair[1]);
    co_group_init(&group);
    co_start(&group, "client", client_main, client);
    (void)fuse_queue_run(queue);
    co_group_join(&group);
    fuse_queue_free(queue);
    close(pair[0]);
    close(pair[1]);
}

static int run(void *arg)
{
    AUTO_CLOSE int image = image_new();
    CLEANUP(blockdev_options_free_ptr) BlockdevOptions *options = node_options(image);
    AUTO_ERROR Error err = ERROR_INIT;
    Client *client = arg;
    FuseSession session = {
        .name = "e0",
        .main_loop = loop_current(),
        .perm = PERM_CONSISTENT_READ | PERM_WRITE | PERM_RESIZE,
        .shared = PERM_ALL,
        .writable = client->bytes % 8 != 0,
        .growable = client->bytes % 8 > 3,
        .allow_other = true,
    };

    block_init();
    require(node_add(options, &err), &err);
    require(edge_open(node_find("n0"), &user, NULL, session.perm, session.shared, &session.edge, &err), &err);
    serve(&session, client);
    edge_close(session.edge);
    require(node_del("n0", &err), &err);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    Client client = {.data = data, .bytes = bytes};
    const LoopOptions options = LOOP_OPTIONS_DEFAULT;

    return loop_run_main(LOOP_BACKEND_EPOLL, &options, run, &client);
}
