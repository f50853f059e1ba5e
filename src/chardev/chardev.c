/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The set of chardevs and what all kinds have in common: the one front end, the lock of writers, the log
 * file.
 *
 * A chardev is in the list, so that its id is taken, from before create() until after destroy(), both of
 * which may wait; it can be found only in between (ready).
 */
#include "chardev/chardev.h"

#include "generated/trace.h"
#include "generated/types.h"
#include "loop/loop.h"

#include <assert.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

struct Chardev {
    List link;
    char *id;
    const ChardevKind *kind;
    void *state;
    bool ready;
    bool has_frontend;
    bool opened;      /* chardev_open_wait() has given out a connection (kinds without open_wait) */
    bool input_ended; /* of the current connection */
    CoMutex write_lock;
    int log_fd;
};

static List chardevs = {&chardevs, &chardevs};

/* ---- The set ---- */

static Chardev *find_any(const char *id)
{
    LIST_FOREACH (link, &chardevs) {
        Chardev *chardev = LIST_ENTRY(link, Chardev, link);

        if (strcmp(chardev->id, id) == 0)
            return chardev;
    }
    return NULL;
}

Chardev *chardev_find(const char *id)
{
    Chardev *chardev = find_any(id);

    return chardev && chardev->ready ? chardev : NULL;
}

static Chardev *first_ready_from(List *link)
{
    for (; link != &chardevs; link = link->next) {
        if (LIST_ENTRY(link, Chardev, link)->ready)
            return LIST_ENTRY(link, Chardev, link);
    }
    return NULL;
}

Chardev *chardev_first(void)
{
    return first_ready_from(chardevs.next);
}

Chardev *chardev_next(const Chardev *chardev)
{
    return first_ready_from(chardev->link.next);
}

static void chardev_free(Chardev *chardev)
{
    list_remove(&chardev->link);
    fd_close(chardev->log_fd);
    free(chardev->state);
    free(chardev->id);
    free(chardev);
}

/* Every kind's branch is a wrapper of one pointer to a struct that starts with the members of ChardevCommon.
 */
static const ChardevCommon *common_options(const ChardevBackend *backend)
{
    return backend->u.null.data;
}

static int open_log(Chardev *chardev, const ChardevCommon *common, Error *err)
{
    int flags = O_WRONLY | O_CREAT | O_CLOEXEC;

    if (!common->logfile)
        return 0;
    flags |= common->has_logappend && common->logappend ? O_APPEND : O_TRUNC;
    chardev->log_fd = open(common->logfile, flags, 0666);
    if (chardev->log_fd < 0)
        return err_set_errno(err, -errno, "Could not create '%s'", common->logfile);
    return 0;
}

static int create(Chardev *chardev, const ChardevBackend *backend, Error *err)
{
    const char *name = chardev_backend_kind_name(backend->type);
    int r;

    chardev->kind = chardev_kind_find(name);
    if (!chardev->kind)
        return err_set(err, -EINVAL, "'%s' is not a valid char driver name", name);
    r = open_log(chardev, common_options(backend), err);
    if (r < 0)
        return r;
    trace_chardev_create(chardev->id, name);
    chardev->state = mem_zalloc(MAX(chardev->kind->state_size, (size_t)1));
    return chardev->kind->create(chardev, backend, err);
}

static void destroy(Chardev *chardev)
{
    trace_chardev_destroy(chardev->id);
    chardev->ready = false;
    if (chardev->kind->destroy)
        chardev->kind->destroy(chardev);
    chardev_free(chardev);
}

/* The server that wants a client before its creator goes on: waits for it. */
static int wait_for_client(Chardev *chardev, ChardevAnnounce *announce, Error *err)
{
    int r;

    if (!chardev->kind->wants_client || !chardev->kind->wants_client(chardev))
        return 0;
    if (announce)
        announce(chardev);
    r = chardev->kind->open_wait(chardev);
    return r < 0 ? err_set_errno(err, r, "No client has connected") : 0;
}

int chardev_add(const char *id, const ChardevBackend *backend, ChardevAnnounce *announce, Error *err)
{
    Chardev *chardev;
    int r;

    if (find_any(id))
        return err_set(err, -EEXIST, "Chardev with id '%s' already exists", id);
    chardev = mem_new(Chardev);
    chardev->id = str_dup(id);
    chardev->log_fd = -1;
    list_append(&chardevs, &chardev->link);
    r = create(chardev, backend, err);
    if (r < 0) {
        chardev_free(chardev);
        return r;
    }
    r = wait_for_client(chardev, announce, err);
    if (r < 0) {
        destroy(chardev);
        return r;
    }
    chardev->ready = true;
    return 0;
}

int chardev_remove(const char *id, Error *err)
{
    Chardev *chardev = find_any(id);

    if (!chardev)
        return err_set(err, -ENOENT, "Chardev '%s' not found", id);
    if (!chardev->ready || chardev->has_frontend)
        return err_set(err, -EBUSY, "Chardev '%s' is busy", id);
    destroy(chardev);
    return 0;
}

void chardev_remove_all(void)
{
    Chardev *chardev;

    while ((chardev = chardev_first())) {
        assert(!chardev->has_frontend);
        destroy(chardev);
    }
}

const char *chardev_id(const Chardev *chardev)
{
    return chardev->id;
}

const ChardevKind *chardev_kind(const Chardev *chardev)
{
    return chardev->kind;
}

void *chardev_state(const Chardev *chardev)
{
    return chardev->state;
}

bool chardev_has_frontend(const Chardev *chardev)
{
    return chardev->has_frontend;
}

char *chardev_filename(const Chardev *chardev)
{
    return chardev->kind->filename ? chardev->kind->filename(chardev) : str_dup(chardev->kind->name);
}

const char *chardev_pty_path(const Chardev *chardev)
{
    return chardev->kind->pty_path ? chardev->kind->pty_path(chardev) : NULL;
}

/* ---- The front end ---- */

int chardev_attach(const char *id, Chardev **ret_chardev, Error *err)
{
    Chardev *chardev = chardev_find(id);

    if (!chardev)
        return err_set(err, -ENOENT, "chardev \"%s\" not found", id);
    if (chardev->has_frontend)
        return err_set(err, -EBUSY, "chardev '%s' is already in use", id);
    chardev->has_frontend = true;
    *ret_chardev = chardev;
    return 0;
}

void chardev_detach(Chardev *chardev)
{
    chardev_hang_up(chardev);
    chardev->has_frontend = false;
}

int chardev_wait_forever(void)
{
    CoWait never = {0};

    return co_wait(&never);
}

int chardev_open_wait(Chardev *chardev)
{
    int r;

    if (chardev->input_ended)
        chardev_hang_up(chardev);
    if (chardev->kind->open_wait)
        r = chardev->kind->open_wait(chardev);
    else
        r = chardev->opened ? chardev_wait_forever() : co_interrupted();
    if (r < 0)
        return r;
    chardev->opened = true;
    chardev->input_ended = false;
    return 0;
}

ssize_t chardev_read(Chardev *chardev, void *data, size_t bytes)
{
    ssize_t n;

    if (chardev->input_ended)
        return 0;
    n = chardev->kind->read ? chardev->kind->read(chardev, data, bytes) : chardev_wait_forever();
    if (n == -ECANCELED || n == -ETIMEDOUT)
        return n;
    if (n <= 0)
        chardev->input_ended = true;
    return MAX(n, (ssize_t)0);
}

int chardev_write_all(Chardev *chardev, const void *data, size_t bytes)
{
    int r = co_mutex_lock(&chardev->write_lock);

    if (r < 0)
        return r;
    if (chardev->log_fd >= 0)
        (void)io_write_all(chardev->log_fd, data, bytes); /* a full disk must not stop the stream itself */
    if (chardev->kind->write_all)
        r = chardev->kind->write_all(chardev, data, bytes);
    co_mutex_unlock(&chardev->write_lock);
    return r;
}

void chardev_hang_up(Chardev *chardev)
{
    if (chardev->kind->hang_up)
        chardev->kind->hang_up(chardev);
}
