/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The io_uring back end: one ring per loop. Operations are only queued by submit(); turn() hands all of them
 * to the kernel and collects completions with one system call.
 */
#include "loop/loop-priv.h"

#include "base/mem.h"

#include <assert.h>
#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <string.h>
#include <time.h>

#define SQ_ENTRIES 256
#define CQ_ENTRIES 4096
/* Operations that are queued before they are submitted, unless the options say otherwise: few enough that a
 * disk works on the first ones while further ones are made, many enough that the system call does not matter.
 */
#define SUBMIT_BATCH 10
#define NS_PER_S UINT64_C(1000000000)

typedef struct Uring {
    struct io_uring ring;
    bool wake_armed;
} Uring;

/* Newest kernels first: each set is refused by kernels that do not know it (6.1, 5.19, 5.6). */
static const unsigned setup_flags[] = {
    IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SQE128,
    IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SQE128,
    0,
};

/* What the loop relies on; EXT_ARG is the wait with a time-out (5.11). */
static const int needed_ops[] = {IORING_OP_READV, IORING_OP_WRITEV, IORING_OP_READ, IORING_OP_WRITE,
    IORING_OP_FSYNC, IORING_OP_FALLOCATE, IORING_OP_RECV, IORING_OP_RECVMSG, IORING_OP_ACCEPT,
    IORING_OP_CONNECT, IORING_OP_POLL_ADD, IORING_OP_ASYNC_CANCEL};

static bool is_complete(struct io_uring *ring)
{
    struct io_uring_probe *probe = io_uring_get_probe_ring(ring);
    bool ok = probe && (ring->features & IORING_FEAT_EXT_ARG) && (ring->features & IORING_FEAT_NODROP);

    for (size_t i = 0; ok && i < ARRAY_SIZE(needed_ops); i++)
        ok = io_uring_opcode_supported(probe, needed_ops[i]);
    io_uring_free_probe(probe);
    return ok;
}

static int uring_init(Loop *loop)
{
    Uring *uring = mem_new(Uring);
    int r = -ENOSYS;

    for (size_t i = 0; i < ARRAY_SIZE(setup_flags); i++) {
        struct io_uring_params params = {
            .flags = setup_flags[i] | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP, .cq_entries = CQ_ENTRIES};

        r = io_uring_queue_init_params(SQ_ENTRIES, &uring->ring, &params);
        if (r != -EINVAL)
            break;
    }
    if (r == 0 && !is_complete(&uring->ring)) {
        io_uring_queue_exit(&uring->ring);
        r = -ENOSYS;
    }
    if (r < 0) {
        free(uring);
        return r;
    }
    io_uring_ring_dontfork(&uring->ring);
    loop->backend_state = uring;
    return 0;
}

static void uring_done(Loop *loop)
{
    Uring *uring = loop->backend_state;

    io_uring_queue_exit(&uring->ring);
    free(uring);
}

static struct io_uring_sqe *get_sqe(Uring *uring)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&uring->ring);

    while (!sqe) {
        io_uring_submit(&uring->ring);
        sqe = io_uring_get_sqe(&uring->ring);
    }
    return sqe;
}

static void prepare_rw(struct io_uring_sqe *sqe, const IoOp *op)
{
    const struct iovec *iov = op->data;
    bool read = op->kind == IO_READV;

    if (op->count == 1)
        io_uring_prep_rw(read ? IORING_OP_READ : IORING_OP_WRITE, sqe, op->fd, iov->iov_base,
            (unsigned)iov->iov_len, op->offset);
    else
        io_uring_prep_rw(read ? IORING_OP_READV : IORING_OP_WRITEV, sqe, op->fd, iov, op->count, op->offset);
    sqe->rw_flags = op->flags;
}

static void prepare_command(struct io_uring_sqe *sqe, const IoOp *op)
{
    const IoCommand *command = op->data;

    io_uring_prep_rw(IORING_OP_URING_CMD, sqe, op->fd, command->iov, command->iov_count, 0);
    sqe->cmd_op = command->op;
    memcpy(sqe->cmd, command->bytes, sizeof(command->bytes));
}

static void prepare(struct io_uring_sqe *sqe, const IoOp *op)
{
    switch (op->kind) {
    case IO_POLL:
        io_uring_prep_poll_add(sqe, op->fd, (unsigned)op->flags);
        break;
    case IO_READV:
    case IO_WRITEV:
        prepare_rw(sqe, op);
        break;
    case IO_FSYNC:
        io_uring_prep_fsync(sqe, op->fd, op->flags ? IORING_FSYNC_DATASYNC : 0);
        break;
    case IO_FALLOCATE:
        io_uring_prep_fallocate(sqe, op->fd, op->flags, op->offset, op->bytes);
        break;
    case IO_RECV:
        io_uring_prep_recv(sqe, op->fd, (void *)op->data, op->bytes, op->flags);
        break;
    case IO_RECVMSG:
        io_uring_prep_recvmsg(sqe, op->fd, (struct msghdr *)op->data, (unsigned)op->flags);
        break;
    case IO_ACCEPT:
        io_uring_prep_accept(sqe, op->fd, NULL, NULL, op->flags);
        break;
    case IO_COMMAND:
        prepare_command(sqe, op);
        break;
    case IO_CONNECT:
        io_uring_prep_connect(sqe, op->fd, op->data, (socklen_t)op->bytes);
        break;
    }
}

static void uring_submit(Loop *loop, IoOp *op)
{
    Uring *uring = loop->backend_state;
    struct io_uring_sqe *sqe = get_sqe(uring);
    unsigned batch = loop->options.aio_max_batch ? loop->options.aio_max_batch : SUBMIT_BATCH;

    prepare(sqe, op);
    io_uring_sqe_set_data(sqe, op);
    if (io_uring_sq_ready(&uring->ring) >= batch)
        io_uring_submit(&uring->ring);
}

static void uring_cancel(Loop *loop, IoOp *op)
{
    struct io_uring_sqe *sqe = get_sqe(loop->backend_state);

    io_uring_prep_cancel(sqe, op, 0);
    io_uring_sqe_set_data(sqe, NULL); /* its own completion tells nothing that op's does not */
}

static void arm_wake_fd(Loop *loop, Uring *uring)
{
    struct io_uring_sqe *sqe;

    if (uring->wake_armed)
        return;
    sqe = get_sqe(uring);
    io_uring_prep_poll_add(sqe, loop->wake_fd, POLLIN);
    io_uring_sqe_set_data(sqe, uring); /* the one completion that is not an IoOp */
    uring->wake_armed = true;
}

static void complete(Loop *loop, Uring *uring, void *data, int result)
{
    if (data == uring) {
        uring->wake_armed = false;
        loop_drain_wake_fd(loop);
    } else if (data) {
        co_wake(&((IoOp *)data)->wait, result);
    }
}

static void reap(Loop *loop, Uring *uring)
{
    struct io_uring_cqe *cqe;
    unsigned head, seen = 0;

    io_uring_for_each_cqe(&uring->ring, head, cqe)
    {
        complete(loop, uring, io_uring_cqe_get_data(cqe), cqe->res);
        seen++;
    }
    io_uring_cq_advance(&uring->ring, seen);
}

static bool uring_has_completions(Loop *loop)
{
    struct io_uring *ring = &((Uring *)loop->backend_state)->ring;

    return io_uring_cq_ready(ring) || (*ring->sq.kflags & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW));
}

static void uring_turn(Loop *loop, uint64_t timeout_ns)
{
    Uring *uring = loop->backend_state;
    struct io_uring_cqe *cqe;

    arm_wake_fd(loop, uring);
    if (io_uring_cq_ready(&uring->ring)) {
        if (io_uring_sq_ready(&uring->ring))
            io_uring_submit(&uring->ring);
    } else if (timeout_ns == UINT64_MAX) {
        io_uring_submit_and_wait(&uring->ring, 1);
    } else if (timeout_ns) {
        struct __kernel_timespec ts = {
            .tv_sec = (long long)(timeout_ns / NS_PER_S), .tv_nsec = (long long)(timeout_ns % NS_PER_S)};

        io_uring_submit_and_wait_timeout(&uring->ring, &cqe, 1, &ts, NULL);
    } else if (io_uring_sq_ready(&uring->ring) || uring_has_completions(loop)) {
        io_uring_submit_and_get_events(&uring->ring);
    }
    reap(loop, uring);
}

/* Commands need the larger entries of the queue, which all kernels have that have commands. */
static bool uring_has_commands(Loop *loop)
{
    struct io_uring *ring = &((Uring *)loop->backend_state)->ring;

    return ring->flags & IORING_SETUP_SQE128;
}

const LoopBackend loop_backend_uring = {
    .name = "io_uring",
    .has_all_kinds = true,
    .init = uring_init,
    .done = uring_done,
    .submit = uring_submit,
    .cancel = uring_cancel,
    .turn = uring_turn,
    .has_completions = uring_has_completions,
    .has_commands = uring_has_commands,
};
