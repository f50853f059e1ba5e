/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A worker: a process that carries out one command after the other. A command that hangs in the kernel, or a
 * library that ends the process, costs this process and nothing else. Server and worker exchange one message
 * each way over a SOCK_SEQPACKET socket.
 */
#pragma once

#include "pr-device/pr-device.h"

typedef struct Options Options;

/* Server to worker: a PrRequest without the unused rest of its data, with the device as descriptor. */
size_t worker_request_bytes(const PrRequest *request);

/* Worker to server: this, likewise. */
typedef struct WorkerReply {
    PrDevice device; /* what it turned out to be, for the log */
    bool last;       /* the worker ends now */
    PrReply reply;
} WorkerReply;

#define WORKER_REPLY_BYTES offsetof(WorkerReply, reply.data)

/* Until the server closes the socket. */
void worker_run(int fd, const Options *options);

/* Seconds after which a worker that still works is killed. */
unsigned worker_deadline_seconds(const Options *options);
