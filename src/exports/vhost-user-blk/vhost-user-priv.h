/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of this folder share: an export, its one client, the client's rings, and what the client has
 * given us. All of it belongs to the main loop; only the queues themselves (virtio/blk.h) run on the loops of
 * the export.
 *
 * What is configured and what runs are kept apart: requests change a ring's settings, and rings_pause() and
 * rings_resume() bring what runs in line with them. Both are called with the export's lock held, because a
 * queue's stop waits for the queue's requests, and kicks and changes of the export's loops come at any time.
 */
#pragma once

#include "exports/export.h"
#include "net/listener.h"
#include "proto/vhost-user.h"
#include "virtio/blk.h"
#include "virtio/mapping.h"

/* What SET_VRING_KICK can number (8 bits); further queues of an export can be neither started nor used. */
#define VHOST_USER_RINGS 256

typedef struct VhostUserSession VhostUserSession;

/* State of an export of kind vhost-user-blk. */
typedef struct VhostUserExport {
    Export *export;
    VirtioBlk *blk;
    char *serial;
    unsigned queue_count;
    Listener listener;
    CoGroup clients;           /* the coroutine that serves one client after the other */
    CoMutex lock;              /* held by whoever changes what runs, or the session */
    VhostUserSession *session; /* the client, or NULL */
} VhostUserExport;

typedef struct VhostUserRing {
    VhostUserSession *session;
    unsigned index;
    /* As the client has set it. */
    unsigned size; /* 0: not yet */
    bool has_address, has_base;
    VhostUserVringAddress address;
    uint32_t base; /* while the queue runs: where it has started */
    int kick_fd, call_fd, err_fd;
    bool polled;           /* it was said that there will be no kicks */
    bool started, enabled; /* "Ring states" */
    CoGroup watcher;       /* waits for the kick that starts the ring */
    VirtioBlkQueue *queue; /* while the ring is processed */
} VhostUserRing;

/* The memory in which rings note which requests they have taken; the client keeps it for our successor. */
typedef struct VhostUserInflightArea {
    Mapping mapping; /* {0}: nothing is noted */
    bool lost;
    bool has_trailer; /* it is one of ours */
    unsigned queues, queue_size;
} VhostUserInflightArea;

/* The socket on which we tell the client something. */
typedef struct VhostUserChannel {
    int fd;              /* or -1 */
    bool config_changed; /* and the client does not know it yet */
    CoCond wake;
    CoGroup sender;
} VhostUserChannel;

/* Memory that arrives later, page by page, from the machine that a guest migrates from. */
typedef struct VhostUserPostcopy {
    int fd;               /* the userfaultfd, or -1 */
    Loop *loop;           /* where queues run from POSTCOPY_LISTEN to POSTCOPY_END, or NULL */
    struct iovec *ranges; /* our memory that it watches */
    size_t range_count, range_capacity;
    bool unconfirmed; /* the client does not know our addresses yet: nothing may be touched */
    CoGroup watcher;
} VhostUserPostcopy;

struct VhostUserSession {
    VhostUserExport *owner;
    int fd;
    uint64_t features, protocol_features;
    uint8_t status;
    bool has_owner; /* SET_OWNER came */
    VirtioMemory *memory;
    int log_fd; /* the log of written pages, for the next memory table; or -1 */
    VhostUserArea log_area;
    VhostUserInflightArea inflight;
    VhostUserChannel channel;
    VhostUserPostcopy postcopy;
    VhostUserRing *rings;
    unsigned ring_count;
    bool failed; /* a ring has; the connection ends */
};

/* A request with the descriptors that came with it; what is left of them is closed after it was carried out.
 */
typedef struct VhostUserIncoming {
    VhostUserMessage message;
    int fds[VHOST_USER_TABLE_REGIONS];
    unsigned fd_count;
} VhostUserIncoming;

typedef struct VhostUserReply {
    uint8_t data[VHOST_USER_HEADER_BYTES + VHOST_USER_PAYLOAD_BYTES];
    size_t bytes; /* 0: none but the acknowledgement that the client may have asked for */
    int fd;       /* goes with it, and is closed then; or -1 */
} VhostUserReply;

/* Carries a request out. An error ends the connection; its text says what was wrong with the request. */
typedef int VhostUserHandler(
    VhostUserSession *session, VhostUserIncoming *in, VhostUserReply *reply, Error *err) MUST_CHECK;

/* ---- session.c ---- */

/* Serves a client until it goes or is cancelled. Takes fd. */
void vhost_user_session_run(VhostUserExport *owner, int take_fd);
/* Ends the session soon, for what the client has done apart from requests. */
void vhost_user_session_fail(VhostUserSession *session, const char *text);
/* The export's loops are other ones now. */
void vhost_user_session_move(VhostUserExport *owner);

/* ---- device.c: features, status, configuration ---- */

VhostUserHandler vhost_user_get_features, vhost_user_set_features, vhost_user_get_protocol_features,
    vhost_user_set_protocol_features, vhost_user_set_owner, vhost_user_reset_owner, vhost_user_get_queue_num,
    vhost_user_get_config, vhost_user_set_config, vhost_user_get_status, vhost_user_set_status;

/* ---- memory.c ---- */

VhostUserHandler vhost_user_set_mem_table, vhost_user_add_mem_reg, vhost_user_rem_mem_reg,
    vhost_user_get_max_mem_slots, vhost_user_set_log_base, vhost_user_set_log_fd;
/* Neither memory nor log any more; no ring runs. */
void vhost_user_memory_forget(VhostUserSession *session);
/* After SET_FEATURES: without VHOST_USER_F_LOG_ALL nothing is logged any more. */
int vhost_user_log_apply(VhostUserSession *session, Error *err) MUST_CHECK;

/* ---- ring.c ---- */

void vhost_user_rings_init(VhostUserSession *session);
/* Stops everything, closes every descriptor. */
void vhost_user_rings_done(VhostUserSession *session);
/* Stops what runs and waits for its requests. */
void vhost_user_rings_pause(VhostUserSession *session);
/* Starts what is to run. */
int vhost_user_rings_resume(VhostUserSession *session, Error *err) MUST_CHECK;
/* All rings stop for good, as after GET_VRING_BASE, and are disabled. */
void vhost_user_rings_reset(VhostUserSession *session);
void vhost_user_rings_enable(VhostUserSession *session, bool enable);
bool vhost_user_rings_any_running(const VhostUserSession *session);
VhostUserHandler vhost_user_set_vring_num, vhost_user_set_vring_addr, vhost_user_set_vring_base,
    vhost_user_get_vring_base, vhost_user_set_vring_kick, vhost_user_set_vring_call, vhost_user_set_vring_err,
    vhost_user_set_vring_enable;

/* ---- inflight.c ---- */

void vhost_user_inflight_done(VhostUserInflightArea *area);
/* A ring's part; *ret_part is NULL when nothing is noted. -EINVAL: the area has none for it. */
int vhost_user_inflight_part(const VhostUserRing *ring, void **ret_part, Error *err) MUST_CHECK;
/* Whether a process has worked on the ring already with this area. */
bool vhost_user_inflight_was_used(const VhostUserRing *ring);
/* After SET_CONFIG: notes the state of the write cache for our successor. */
void vhost_user_inflight_note_cache(VhostUserSession *session);
VhostUserHandler vhost_user_get_inflight_fd, vhost_user_set_inflight_fd;

/* ---- postcopy.c ---- */

/* Whether the system lets us wait for pages. */
bool vhost_user_postcopy_is_possible(void);
void vhost_user_postcopy_init(VhostUserPostcopy *postcopy);
/* No ring runs. */
void vhost_user_postcopy_done(VhostUserSession *session);
/* Nobody waits for pages any more: those that are missing are zeroes. Before queues are stopped that the
 * client might hold up. */
void vhost_user_postcopy_release(VhostUserSession *session);
/* The loop that rings have to run on meanwhile, or NULL. */
Loop *vhost_user_postcopy_loop(const VhostUserSession *session);
/* Has a region of the table waited for, and changes its `user` to the address that it has here. */
int vhost_user_postcopy_register(VhostUserSession *session, VhostUserRegion *region, Error *err) MUST_CHECK;
/* The regions are unmapped. */
void vhost_user_postcopy_forget(VhostUserSession *session);
VhostUserHandler vhost_user_postcopy_advise, vhost_user_postcopy_listen, vhost_user_postcopy_end;

/* ---- channel.c ---- */

void vhost_user_channel_init(VhostUserChannel *channel);
void vhost_user_channel_done(VhostUserChannel *channel);
/* Tells the client, once a ring runs, that the configuration has changed. Does not wait. */
void vhost_user_channel_config_changed(VhostUserSession *session);
/* A ring runs now. */
void vhost_user_channel_wake(VhostUserSession *session);
VhostUserHandler vhost_user_set_backend_req_fd;
