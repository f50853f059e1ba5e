/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The export kind `fuse`: its mount, and a queue on each loop that the export serves on.
 *
 * The main loop has a coroutine for each queue, which waits until the queue ends. The first queue has the
 * descriptor of the mount, the others have clones of it; when the last of them is closed, the kernel ends the
 * connection and whoever still has the file open gets ENOTCONN.
 *
 * Where the kernel offers FUSE over io_uring, each loop has a ring, too. Its operations keep the connection
 * alive until it is ended by order, and they cannot move to another loop.
 */
#include "exports/export.h"
#include "exports/fuse/mount.h"
#include "exports/fuse/queue.h"
#include "exports/fuse/ring.h"

#include "base/log.h"
#include "base/mem.h"
#include "generated/trace.h"
#include "generated/types.h"
#include "schema/object.h"

#include <sys/stat.h>
#include <unistd.h>

/* The kernel asks at once. */
#define HANDSHAKE_NS UINT64_C(10000000000)

typedef struct FuseExport FuseExport;

/* A queue and its loop. */
typedef struct FuseServer {
    FuseExport *owner;
    unsigned index;
    Loop *loop;
    Object *iothread; /* keeps the loop; a reference, or NULL for the main loop */
    int fd;           /* of its own, except the first's */
    FuseQueue *queue;
} FuseServer;

/* A ring and its loop. */
typedef struct FuseRingServer {
    Loop *loop;
    Object *iothread;
    FuseRing *ring;
} FuseRingServer;

struct FuseExport {
    Export *export;
    FuseSession session;
    char *mountpoint; /* as it was given */
    char *real;       /* without symbolic links */
    FuseMount *mount;
    int fd;
    int control_fd; /* to end the connection; -1 where that cannot be had */
    dev_t device;   /* of the mounted file; 0 until it is known */
    bool lost;      /* somebody else has unmounted it */
    bool stopping;
    FuseServer *servers;
    unsigned server_count;
    CoGroup serving;       /* a coroutine per server */
    FuseRingServer *rings; /* NULL: the kernel, or a loop, has none */
    unsigned ring_count;
    CoGroup ringing; /* a coroutine per ring */
    CoGroup control; /* restarts after the node has moved */
    CoMutex restarting;
    List link;
};

static List fuse_exports = LIST_INIT(fuse_exports);

/* ---- An unmount from outside ---- */

static Export *find_lost(void)
{
    LIST_FOREACH (link, &fuse_exports) {
        FuseExport *fuse = LIST_ENTRY(link, FuseExport, link);

        if (fuse->lost && !fuse->export->shutting_down && !fuse->export->starting)
            return fuse->export;
    }
    return NULL;
}

/* Looks for them anew each time: whoever is lost may be removed by a command meanwhile. */
static void remove_lost(void *arg)
{
    AUTO_ERROR Error err = ERROR_INIT;
    Export *export;

    while ((export = find_lost()))
        if (export_remove(export, true, &err) < 0)
            break;
}

static void lose(FuseExport *fuse)
{
    if (fuse->lost || fuse->stopping)
        return;
    fuse->lost = true;
    log_warn("export '%s': '%s' was unmounted by somebody else; the export ends", fuse->export->id,
        fuse->mountpoint);
    co_start(loop_group(loop_current()), "fuse-lost", remove_lost, NULL);
}

/* ---- Queues ---- */

static void serve_main(void *arg)
{
    FuseServer *server = arg;
    int r = loop_call(server->loop, fuse_queue_run, server->queue);

    trace_fuse_serving_ended(server->owner->export->id, server->index, r);
    if (r != -ECANCELED)
        lose(server->owner);
}

static int start_server(FuseExport *fuse, unsigned index)
{
    FuseServer *server = &fuse->servers[index];
    Object *iothread = export_iothread(fuse->export, index);
    int r;

    *server = (FuseServer){.owner = fuse, .index = index, .fd = fuse->fd};
    if (index > 0) {
        r = fuse_mount_clone(fuse->fd, &server->fd);
        if (r < 0)
            return r;
    }
    server->queue = fuse_queue_new(&fuse->session, server->fd);
    if (!server->queue) {
        if (index > 0)
            fd_close(server->fd);
        return -ENOMEM;
    }
    server->loop = export_loop(fuse->export, index);
    server->iothread = iothread ? object_ref(iothread) : NULL;
    fuse->server_count++;
    co_start(&fuse->serving, "fuse-serve", serve_main, server);
    return 0;
}

/* One queue is enough: what the others need may be lacking. */
static int start_servers(FuseExport *fuse)
{
    unsigned count = export_loop_count(fuse->export);
    int r = 0;

    fuse->servers = mem_zalloc(count * sizeof(FuseServer));
    for (unsigned i = 0; i < count && r == 0; i++)
        r = start_server(fuse, i);
    return fuse->server_count ? 0 : r;
}

static void end_server(FuseServer *server)
{
    fuse_queue_free(server->queue);
    if (server->index > 0)
        fd_close(server->fd);
    if (server->iothread)
        object_unref(server->iothread);
}

/* Requests that were received are answered first; others stay in the kernel. */
static void stop_servers(FuseExport *fuse)
{
    for (unsigned i = 0; i < fuse->server_count; i++)
        loop_call(fuse->servers[i].loop, fuse_queue_stop, fuse->servers[i].queue);
    co_group_join(&fuse->serving);
    while (fuse->server_count)
        end_server(&fuse->servers[--fuse->server_count]);
    free(TAKE(fuse->servers));
}

static void restart_main(void *arg)
{
    FuseExport *fuse = arg;

    co_mutex_lock_shielded(&fuse->restarting);
    if (!fuse->stopping) {
        stop_servers(fuse);
        if (start_servers(fuse) < 0)
            lose(fuse);
    }
    co_mutex_unlock(&fuse->restarting);
}

/* ---- Rings ---- */

static int add_ring(FuseExport *fuse, unsigned index, unsigned count)
{
    FuseRingServer *server = &fuse->rings[index];
    Object *iothread = export_iothread(fuse->export, index);

    *server = (FuseRingServer){.loop = export_loop(fuse->export, index)};
    if (!loop_has_commands(server->loop))
        return -ENOTSUP;
    server->ring = fuse_ring_new(&fuse->session, fuse->fd, index, count);
    if (!server->ring)
        return -ENOMEM;
    server->iothread = iothread ? object_ref(iothread) : NULL;
    fuse->ring_count++;
    return 0;
}

static void free_rings(FuseExport *fuse)
{
    while (fuse->ring_count) {
        FuseRingServer *server = &fuse->rings[--fuse->ring_count];

        fuse_ring_free(server->ring);
        if (server->iothread)
            object_unref(server->iothread);
    }
    free(TAKE(fuse->rings));
    fuse->control_fd = fd_close(fuse->control_fd);
}

/*
 * All that is needed, before the kernel is told that we can: from then on it waits for all queues. Without
 * anything of it there are none.
 */
static void prepare_rings(FuseExport *fuse)
{
    unsigned count = export_loop_count(fuse->export);
    int r = fuse_mount_control(fuse->device, &fuse->control_fd);

    fuse->rings = mem_zalloc(count * sizeof(FuseRingServer));
    for (unsigned i = 0; i < count && r == 0; i++)
        r = add_ring(fuse, i, count);
    fuse->session.offers_ring = r == 0;
    if (r < 0)
        free_rings(fuse);
}

static void ring_main(void *arg)
{
    FuseRingServer *server = arg;

    (void)loop_call(server->loop, fuse_ring_run, server->ring);
}

static void start_rings(FuseExport *fuse)
{
    if (!(atomic_load(&fuse->session.agreed) & FUSE_CAP_OVER_IO_URING)) {
        free_rings(fuse);
        return;
    }
    for (unsigned i = 0; i < fuse->ring_count; i++)
        co_start(&fuse->ringing, "fuse-ring", ring_main, &fuse->rings[i]);
}

static void stop_rings(FuseExport *fuse)
{
    if (fuse->ring_count)
        fuse_mount_abort(fuse->control_fd);
    co_group_join(&fuse->ringing);
    free_rings(fuse);
}

/* ---- Start ---- */

static bool is_taken(const char *mountpoint)
{
    LIST_FOREACH (link, &fuse_exports)
        if (str_eq(LIST_ENTRY(link, FuseExport, link)->mountpoint, mountpoint))
            return true;
    return false;
}

/* The same file by another name. */
static bool is_exported(dev_t device)
{
    LIST_FOREACH (link, &fuse_exports) {
        const FuseExport *fuse = LIST_ENTRY(link, FuseExport, link);

        if (fuse->device == device && !fuse->lost)
            return true;
    }
    return false;
}

static int mount_with(FuseExport *fuse, bool allow_other, Error *err)
{
    fuse->session.allow_other = allow_other;
    return fuse_mount_open(
        fuse->real, fuse->export->id, FUSE_PAYLOAD_BYTES, allow_other, &fuse->mount, &fuse->fd, err);
}

static int mount_as(FuseExport *fuse, FuseExportAllowOther allow_other, Error *err)
{
    AUTO_ERROR Error ignored = ERROR_INIT;

    if (allow_other == FUSE_EXPORT_ALLOW_OTHER_AUTO && fuse_mount_may_allow_other() &&
        mount_with(fuse, true, &ignored) == 0)
        return 0;
    return mount_with(fuse, allow_other == FUSE_EXPORT_ALLOW_OTHER_ON, err);
}

static void end_mount(FuseExport *fuse)
{
    if (fuse->fd < 0)
        return;
    fuse_mount_detach(TAKE(fuse->mount)); /* still served, for what the kernel has to write back */
    stop_rings(fuse);
    stop_servers(fuse);
    fuse->fd = fd_close(fuse->fd);
}

static int shake_hands(FuseExport *fuse)
{
    FuseQueue *queue = fuse_queue_new(&fuse->session, fuse->fd);
    CoDeadline deadline;
    int r;

    if (!queue)
        return -ENOMEM;
    co_deadline_begin(&deadline, HANDSHAKE_NS);
    r = fuse_queue_handshake(queue);
    co_deadline_end(&deadline);
    fuse_queue_free(queue);
    return r;
}

static int start_serving(FuseExport *fuse)
{
    int r = fuse_mount_device(fuse->real, &fuse->device);

    if (r < 0)
        return r;
    prepare_rings(fuse);
    r = shake_hands(fuse);
    if (r < 0)
        return r;
    start_rings(fuse);
    return start_servers(fuse);
}

static int start_mount(FuseExport *fuse, const BlockExportOptionsFuse *options, Error *err)
{
    dev_t device;
    int r = fuse_mount_prepare(options->mountpoint, &fuse->real, &device, err);

    if (r < 0)
        return r;
    if (is_exported(device))
        return err_set(err, -EEXIST, "There already is a FUSE export on '%s'", options->mountpoint);
    r = mount_as(fuse, options->has_allow_other ? options->allow_other : FUSE_EXPORT_ALLOW_OTHER_AUTO, err);
    if (r < 0)
        return r;
    r = start_serving(fuse);
    return r < 0 ? err_set_errno(err, r, "Cannot serve '%s' through FUSE", options->mountpoint) : 0;
}

static void init_session(FuseExport *fuse, const BlockExportOptionsFuse *options)
{
    const Export *export = fuse->export;
    FuseSession *session = &fuse->session;

    session->edge = export->edge;
    session->name = export->id;
    session->main_loop = loop_current();
    session->writable = export->writable;
    session->writethrough = export->writethrough;
    session->growable = export->writable && options->has_growable && options->growable;
    session->perm =
        PERM_CONSISTENT_READ | (export->writable ? PERM_WRITE : 0) | (session->growable ? PERM_RESIZE : 0);
    session->shared = export->kind->shared;
    atomic_init(&session->mode, export->writable ? S_IRUSR | S_IWUSR : S_IRUSR);
    atomic_init(&session->uid, getuid());
    atomic_init(&session->gid, getgid());
}

static void release(FuseExport *fuse)
{
    list_remove(&fuse->link);
    free(TAKE(fuse->mountpoint));
    free(TAKE(fuse->real));
}

static int fuse_create(Export *export, const BlockExportOptions *options, Error *err)
{
    FuseExport *fuse = export->state;
    int r;

    if (is_taken(options->u.fuse.mountpoint))
        return err_set(err, -EEXIST, "There already is a FUSE export on '%s'", options->u.fuse.mountpoint);
    fuse->export = export;
    fuse->fd = fuse->control_fd = -1;
    fuse->mountpoint = str_dup(options->u.fuse.mountpoint);
    co_group_init(&fuse->serving);
    co_group_init(&fuse->ringing);
    co_group_init(&fuse->control);
    init_session(fuse, &options->u.fuse);
    list_append(&fuse_exports, &fuse->link); /* the mountpoint is taken from here on; what follows waits */
    r = edge_set_permissions(export->edge, fuse->session.perm, fuse->session.shared, err);
    if (r == 0)
        r = start_mount(fuse, &options->u.fuse, err);
    if (r < 0) {
        fuse->stopping = true;
        end_mount(fuse);
        release(fuse);
    }
    return r;
}

/* ---- Life and end ---- */

static void fuse_shutdown(Export *export)
{
    FuseExport *fuse = export->state;

    fuse->stopping = true;
    co_group_join(&fuse->control);
    end_mount(fuse);
    release(fuse);
}

static void fuse_resized(Export *export, uint64_t size)
{
    FuseExport *fuse = export->state;
    FuseInvalidate invalidate = fuse_invalidate_attributes();

    if (fuse->export && fuse->fd >= 0) /* create() has begun, and mounted it */
        (void)!io_write_now(fuse->fd, &invalidate, sizeof(invalidate));
}

/* Restarting waits for requests, and some of these may wait for the graph, which cannot change during this
 * call. */
static void fuse_moved(Export *export)
{
    FuseExport *fuse = export->state;

    co_start(&fuse->control, "fuse-restart", restart_main, fuse);
}

const ExportKind export_kind_fuse = {
    .name = "fuse",
    .state_size = sizeof(FuseExport),
    .shared = PERM_ALL,
    .create = fuse_create,
    .shutdown = fuse_shutdown,
    .resized = fuse_resized,
    .moved = fuse_moved,
};
