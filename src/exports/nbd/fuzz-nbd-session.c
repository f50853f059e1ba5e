/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A whole session from bytes: a client at one end of a socket pair sends the input as it is and reads
 * whatever comes, the server at the other end has one writable export `e0` of a null-co node.
 */
#include "exports/nbd/nbd-priv.h"

#include "base/mem.h"
#include "schema/fuzz-options.h"

#include <sys/socket.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

typedef struct Input {
    const uint8_t *data;
    size_t bytes;
    int fd;
} Input;

static void start_server(void)
{
    AUTO_ERROR Error err = ERROR_INIT;
    CLEANUP(nbd_server_options_free_ptr)
    NbdServerOptions *server = options_from(
        &schema_type_NbdServerOptions, "{'addr': {'type': 'inet', 'host': '127.0.0.1', 'port': '0'}}");
    CLEANUP(blockdev_options_free_ptr)
    BlockdevOptions *node = options_from(&schema_type_BlockdevOptions,
        "{'driver': 'null-co', 'node-name': 'n0', 'size': 1048576, 'read-zeroes': true}");
    CLEANUP(block_export_options_free_ptr)
    BlockExportOptions *export = options_from(&schema_type_BlockExportOptions,
        "{'type': 'nbd', 'id': 'e0', 'node-name': 'n0', 'name': 'e0', "
        "'writable': true, 'allocation-depth': true}");

    require(nbd_server_start(server, &err), &err);
    require(node_add(node, &err), &err);
    require(export_add(export, &err), &err);
}

static void send_input(void *arg)
{
    const Input *input = arg;
    size_t at = 0;

    while (at < input->bytes) {
        struct iovec iov = {(void *)(input->data + at), input->bytes - at};
        struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
        ssize_t n = io_sendmsg(input->fd, &message, 0);

        if (n < 0)
            break;
        at += (size_t)n;
    }
    shutdown(input->fd, SHUT_WR);
}

static int run(void *arg)
{
    AUTO_ERROR Error err = ERROR_INIT;
    Input *input = arg;
    uint8_t reply[4096];
    CoGroup client;
    int pair[2];

    start_server();
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        abort();
    co_start(&nbd_server()->sessions, "session", nbd_session_main, nbd_session_new(nbd_server(), pair[1]));
    input->fd = pair[0];
    co_group_init(&client);
    co_start(&client, "client", send_input, input);
    while (io_recv(pair[0], reply, sizeof(reply)) > 0)
        ;
    co_group_join(&client);
    close(pair[0]);
    nbd_server_stop();
    require(node_del("n0", &err), &err);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    Input input = {.data = data, .bytes = bytes};
    const LoopOptions options = LOOP_OPTIONS_DEFAULT;

    return loop_run_main(LOOP_BACKEND_EPOLL, &options, run, &input);
}
