/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests of a virtio block driver from bytes: pieces of any length, each in memory of its own so that a
 * step beyond its end is found, in front of a writable null node.
 */
#include "virtio/blk-priv.h"

#include "base/mem.h"
#include "schema/fuzz-options.h"

#include <errno.h>
#include <string.h>

#define PIECES_MAX 32

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

typedef struct Input {
    const uint8_t *data;
    size_t bytes;
} Input;

static Edge *open_edge(void)
{
    static const EdgeUser user = {0};
    AUTO_ERROR Error err = ERROR_INIT;
    BlockdevOptions *options = options_from(
        &schema_type_BlockdevOptions, "{'driver': 'null-co', 'node-name': 'n0', 'size': 1048576}");
    Edge *edge;

    require(node_add(options, &err), &err);
    blockdev_options_free(options);
    require(edge_open(node_find("n0"), &user, NULL, PERM_CONSISTENT_READ | PERM_WRITE, PERM_ALL, &edge, &err),
        &err);
    return edge;
}

static uint8_t next_byte(Input *input)
{
    if (!input->bytes)
        return 0;
    input->bytes--;
    return *input->data++;
}

/* A length byte for each piece: up to 127 bytes, or multiples of 512. */
static size_t next_length(Input *input)
{
    uint8_t byte = next_byte(input);

    return byte < 128 ? byte : (byte - 127U) * 512;
}

/* Pieces of one direction; their number is in the input. What the driver has written there comes from it,
 * too. */
static unsigned make_pieces(Input *input, struct iovec *iov, size_t *ret_bytes)
{
    unsigned count = next_byte(input) % PIECES_MAX;

    *ret_bytes = 0;
    for (unsigned i = 0; i < count; i++) {
        size_t length = next_length(input), known = MIN(length, input->bytes);

        iov[i] = (struct iovec){calloc(1, MAX(length, (size_t)1)), length};
        memcpy(iov[i].iov_base, input->data, known);
        input->data += known;
        input->bytes -= known;
        *ret_bytes += length;
    }
    return count;
}

static void one_request(const VirtioBlk *blk, const VirtioMemory *memory, Input *input, BlkIovBuffer **spare)
{
    struct iovec iov[2 * PIECES_MAX];
    BlkRequest request = {.element.iov = iov};
    VirtElement *e = &request.element;
    int r;

    e->out_count = make_pieces(input, iov, &e->out_bytes);
    e->in_count = make_pieces(input, iov + e->out_count, &e->in_bytes);
    r = blk_request_parse(&request, spare);
    if (r == 0 && blk_request_serve(blk, memory, &request) != *request.status)
        abort();
    if (r < 0 && r != -EPROTO)
        abort();
    if (request.iov_buffer) {
        request.iov_buffer->next = *spare;
        *spare = request.iov_buffer;
    }
    for (unsigned i = 0; i < e->out_count + e->in_count; i++)
        free(iov[i].iov_base);
}

static int run(void *arg)
{
    Input *input = arg;
    VirtioMemory *memory = virtio_memory_new();
    BlkIovBuffer *spare = NULL;
    VirtioBlkOptions options = {.writable = true,
        .logical_block_bytes = 512U << next_byte(input) % 4,
        .queue_count = 1,
        .queue_size_max = 128,
        .serial = "serial"};
    VirtioBlk *blk;

    block_init();
    options.edge = open_edge();
    blk = virtio_blk_new(&options);
    while (input->bytes)
        one_request(blk, memory, input, &spare);
    while (spare) {
        BlkIovBuffer *next = spare->next;

        free(spare);
        spare = next;
    }
    virtio_blk_free(blk);
    edge_close(options.edge);
    node_close_all();
    virtio_memory_free(memory);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    Input input = {.data = data, .bytes = bytes};
    const LoopOptions options = LOOP_OPTIONS_DEFAULT;

    return loop_run_main(LOOP_BACKEND_EPOLL, &options, run, &input);
}
