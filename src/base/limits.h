/* SPDX-License-Identifier: Apache-2.0 */
/* Every bound on what outside data may ask for, by name. Add the source of the number where there is one. */
#pragma once

#include "base/macros.h"

/* Largest request that an export passes to a node in one piece; larger zeroing and discards are split. */
#define LIMIT_REQUEST_BYTES (32 * MIB)
/* Largest size of a node: file offsets are signed. */
#define LIMIT_NODE_BYTES ((uint64_t)INT64_MAX - 65535)
/* Node names (QEMU: 31 characters and the terminating NUL). */
#define LIMIT_NODE_NAME 31
/* Name of a dirty bitmap, and memory that the bits of one may take (qcow2 cannot store as much: 512 MiB). */
#define LIMIT_DIRTY_BITMAP_NAME 1023
#define LIMIT_DIRTY_BITMAP_BYTES (1 * GIB)
/* Bitmaps of one image, and the memory of their bits together. */
#define LIMIT_IMAGE_BITMAPS 16384
#define LIMIT_IMAGE_BITMAP_BYTES (1 * GIB)
/* Largest alignment that a device may ask requests to have. */
#define LIMIT_REQUEST_ALIGNMENT (64 * MIB)
/* Memory that the check of an image may take for counting, bytes of its snapshots' L1 tables in all, and
 * clusters of the file: 8 TiB of the smallest ones. */
#define LIMIT_CHECK_CLUSTERS (UINT64_C(1) << 34)
#define LIMIT_CHECK_BYTES (1 * GIB)
#define LIMIT_CHECK_L1_BYTES (16 * GIB)
/* Bytes of the L1 tables of snapshots, of which an open image keeps in mind where they are. */
#define LIMIT_PROTECTED_L1_BYTES (4 * GIB)
/* Extra data of an entry of the snapshot table, and the table (the reference's limits). */
#define LIMIT_SNAPSHOT_EXTRA_BYTES 1024
#define LIMIT_SNAPSHOT_TABLE_BYTES (64 * MIB)
/* Bytes of an internal snapshot's name. */
#define LIMIT_SNAPSHOT_NAME 255
/* Depth of a chain of backing files. */
#define LIMIT_CHAIN_DEPTH 200
/* Options of one NBD client before it must choose an export, and the length of one option's data that is
 * kept. */
#define LIMIT_NBD_OPTIONS 16384
#define LIMIT_NBD_OPTION_BYTES (1 * MIB)
/* An option longer than this ends the connection (as QEMU's NBD_MAX_BUFFER_SIZE). */
#define LIMIT_NBD_OPTION_SKIP_BYTES (32 * MIB)
/* Requests of one NBD client that are being processed or whose replies it has not taken yet, and their
 * payload. A single request of LIMIT_REQUEST_BYTES always passes. */
#define LIMIT_NBD_REQUESTS 128
#define LIMIT_NBD_REQUEST_BYTES (64 * MIB)
/* Extents in one NBD block status reply: of one context, and of all together; the client asks again for the rest. */
#define LIMIT_NBD_EXTENTS 8192
#define LIMIT_NBD_STATUS_EXTENTS (2 * LIMIT_NBD_EXTENTS)
/* Dirty bitmaps that clients of one NBD export may ask for; with base:allocation and qemu:allocation-depth they fill a
 * mask of 64 bits. */
#define LIMIT_NBD_BITMAPS 62
/* Pieces in the reply to one NBD read of a sparse range; the rest is sent as data. */
#define LIMIT_NBD_READ_CHUNKS 128
/* Idle payload buffers that one loop keeps. */
#define LIMIT_BUFFER_POOL_BYTES (64 * MIB)
/* Decompressed clusters that all qcow2 images together keep. */
#define LIMIT_INFLATED_BYTES (128 * MIB)
/* Descriptors that one message over a Unix socket may carry (the kernel's SCM_MAX_FD is 253). */
#define LIMIT_PASSED_FDS 32
/* Addresses that one listening name may have. */
#define LIMIT_LISTENER_FDS 8
/* Size of a ringbuf chardev. */
#define LIMIT_RINGBUF_BYTES (1 * GIB)
/* Length of a secret, as given. */
#define LIMIT_SECRET_BYTES (1 * MIB)
/* Commands of one monitor client that wait for their turn; more are left unread. */
#define LIMIT_MONITOR_REQUESTS 8
/* Replies and events that a monitor client has not taken yet: beyond the first its next command waits, beyond
 * the second it is disconnected. */
#define LIMIT_MONITOR_UNREAD_BYTES (1 * MIB)
#define LIMIT_MONITOR_OUTPUT_BYTES (64 * MIB)
/* JSON text of the control protocol: containers within containers, and the tokens of one top-level value:
 * their number and their bytes (the same as QEMU's). */
#define LIMIT_JSON_DEPTH 1024
#define LIMIT_JSON_TOKENS (2 * MIB)
#define LIMIT_JSON_TOKEN_BYTES (64 * MIB)
/* Commands that one reservation manager has at its helper at once; more wait for their turn. */
#define LIMIT_PR_CONNECTIONS 16
/* Reservation commands that the kernel has not finished yet; more are answered BUSY. Each keeps a thread. */
#define LIMIT_PR_KERNEL_CALLS 16
/* Structs within structs in the arguments of a command or option; what lies deeper could not be opened
 * anyway. */
#define LIMIT_SCHEMA_DEPTH 256
/* One part of a dotted key in key=value text (as QEMU's). */
#define LIMIT_KEYVAL_KEY_BYTES 127
/* One answer of multipathd; those that are asked for have a few bytes. */
#define LIMIT_MULTIPATHD_ANSWER_BYTES 65536
/* The reservation helper: connections; commands that run at once, together, on one device and for one user (wedged
 * ones count). */
#define LIMIT_PR_HELPER_CLIENTS 4096
#define LIMIT_PR_HELPER_COMMANDS 128
#define LIMIT_PR_HELPER_DEVICE_COMMANDS 4
#define LIMIT_PR_HELPER_USER_COMMANDS 64
/* Its time limits in seconds: largest that may be set, and defaults. A command may wait for an array that fails over
 * for most of a minute. */
#define LIMIT_PR_HELPER_SECONDS 86400
#define PR_HELPER_COMMAND_SECONDS 60
#define PR_HELPER_HANDSHAKE_SECONDS 5
#define PR_HELPER_REQUEST_SECONDS 30
#define PR_HELPER_STOP_SECONDS 10

/* Regions of a virtio front end's memory (vhost-user.rst, CONFIGURE_MEM_SLOTS). */
#define LIMIT_VIRTIO_REGIONS 509
/* Entries of a virtqueue, and so the longest chain of descriptors. */
#define LIMIT_VIRTQUEUE_SIZE 1024
/* Bytes of one request in a virtqueue (virtio 1.2, 2.7.4: a chain has at most 2^32). */
#define LIMIT_VIRTQUEUE_REQUEST_BYTES (4 * GIB)
/* Largest block of a virtio block device, as users may set it (the reference's limit). */
#define LIMIT_VIRTIO_BLOCK_BYTES (2 * MIB)
/* Queues of one VDUSE device; its record has an area for each. */
#define LIMIT_VDUSE_QUEUES 1024
/* Ranges of one DISCARD or WRITE_ZEROES request of a virtio block driver (as many as Linux ever sends). */
#define LIMIT_VIRTIO_BLK_RANGES 256
/* Requests of a FUSE export that one loop has received and not answered yet; more are left to the kernel. */
#define LIMIT_FUSE_REQUESTS 64
/* Entries of all queues of a FUSE connection over io_uring together, as far as each queue has two. */
#define LIMIT_FUSE_RING_ENTRIES 1024
/* Pieces of guest memory that one request's payload may lie in: every descriptor in two regions. */
#define LIMIT_VIRTIO_BLK_SEGMENTS (2 * LIMIT_VIRTQUEUE_SIZE)
/* Loops at a time, the main loop among them. */
#define LIMIT_LOOPS 256
/* Iterations of a password's derivation in an encrypted volume, about a minute of a fast processor; and the time that
 * users may ask a try to take. */
#define LIMIT_LUKS_ITERATIONS (1u << 28)
#define LIMIT_LUKS_ITER_TIME_MS 60000
/* The same with Argon2 for one key slot of LUKS version 2, of which the whole program tries one at a time: memory (as
 * much as cryptsetup takes unless it is told to take more), threads, and passes times KiB: 64 GiB of memory written,
 * about a minute of a fast processor. */
#define LIMIT_LUKS_ARGON2_KIB (1u << 20)
#define LIMIT_LUKS_ARGON2_LANES 16u
#define LIMIT_LUKS_ARGON2_COST (UINT64_C(1) << 26)
/* Text of the JSON area of LUKS version 2; a full set of key slots takes some 20 KiB. */
#define LIMIT_LUKS_JSON_BYTES (1 * MIB)
/* The LUKS header in a qcow2 image with all key slots; version 1 takes 2 MiB. */
#define LIMIT_QCOW2_CRYPT_BYTES (32 * MIB)
