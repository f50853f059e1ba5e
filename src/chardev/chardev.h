/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Character devices: named streams of bytes that a front end (a monitor) talks over. Each kind of back end is
 * a ChardevKind in its own file, found through the generated registry (`const ChardevKind
 * chardev_kind_NAME`).
 *
 * A chardev has at most one front end, and that front end sees connections one after the other:
 *
 *     r = chardev_attach("mon0", &chardev, err);
 *     while (chardev_open_wait(chardev) == 0) {
 *         while ((n = chardev_read(chardev, buffer, sizeof(buffer))) > 0)
 *             ...                                // meanwhile chardev_write_all(), also from other coroutines
 *     }
 *     chardev_detach(chardev);
 *
 * A back end without connections (null, file) opens once; its second chardev_open_wait() only ends by
 * cancellation. Main loop only. What waits is interruptible: -ECANCELED or -ETIMEDOUT.
 */
#pragma once

#include "base/error.h"
#include "base/list.h"
#include "base/mem.h"
#include "co/co.h"

typedef struct Chardev Chardev;
typedef struct ChardevKind ChardevKind;
typedef struct ChardevBackend ChardevBackend; /* generated */
typedef struct ChardevOptions ChardevOptions; /* chardev/options.h */

/* ---- The set of chardevs ---- */

typedef void ChardevAnnounce(const Chardev *chardev);

/*
 * Creates a chardev; id is not checked for form. Waits for a client to be connected to its server, and for
 * the first client where that is asked for. announce, if not NULL, is called before that last wait.
 */
int chardev_add(
    const char *id, const ChardevBackend *backend, ChardevAnnounce *announce, Error *err) MUST_CHECK;
/* Removes a chardev that has no front end. */
int chardev_remove(const char *id, Error *err) MUST_CHECK;
/* Removes all (shutdown); they must have lost their front ends. */
void chardev_remove_all(void);
/* NULL if there is none. */
Chardev *chardev_find(const char *id);
/* The first, and the one after another, in order of creation; NULL at the end. */
Chardev *chardev_first(void);
Chardev *chardev_next(const Chardev *chardev);

const char *chardev_id(const Chardev *chardev);
const ChardevKind *chardev_kind(const Chardev *chardev);
bool chardev_has_frontend(const Chardev *chardev);
/* As query-chardev shows it ("unix:/run/x,server=on"); the caller frees it. */
char *chardev_filename(const Chardev *chardev) MUST_CHECK;
/* The path of the terminal that a pty chardev has made, else NULL. */
const char *chardev_pty_path(const Chardev *chardev);
/* The daemon has no standard input and output (--daemonize): stdio chardevs are refused from now on. */
void chardev_forbid_stdio(void);

/* ---- For the front end ---- */

int chardev_attach(const char *id, Chardev **ret_chardev, Error *err) MUST_CHECK;
/* Ends the current connection; what is inside the functions below must have returned. */
void chardev_detach(Chardev *chardev);
/* Waits for a connection, after ending the one before if that is at its end. */
int chardev_open_wait(Chardev *chardev) MUST_CHECK;
/*
 * Waits for input. 0: the peer will send no more on this connection; writing may still work. A broken
 * connection is such an end too. One coroutine at a time.
 */
ssize_t chardev_read(Chardev *chardev, void *data, size_t bytes) MUST_CHECK;
/*
 * Writes everything, or returns -errno (-ENOTCONN: no connection). Waits as long as the peer does not read.
 * Writes of several coroutines come out one after the other.
 */
int chardev_write_all(Chardev *chardev, const void *data, size_t bytes) MUST_CHECK;
/* Ends the current connection where the kind has such: readers get 0 and writers an error. Does not wait. */
void chardev_hang_up(Chardev *chardev);

/* ---- For the kinds ---- */

struct ChardevKind {
    const char *name;
    size_t state_size;
    /* Fills the zeroed state. On failure releases what it acquired; destroy() is then not called. May wait.
     */
    int (*create)(Chardev *chardev, const ChardevBackend *backend, Error *err);
    /* May wait, not interruptibly. NULL: nothing to do. */
    void (*destroy)(Chardev *chardev);
    /* Waits until there is a connection. NULL: there always is, until input has ended. */
    int (*open_wait)(Chardev *chardev);
    /* Waits for input; 0 or an error ends the connection. NULL: there never is input. */
    ssize_t (*read)(Chardev *chardev, void *data, size_t bytes);
    /* Called under a lock. NULL: output is swallowed. */
    int (*write_all)(Chardev *chardev, const void *data, size_t bytes);
    /* Ends the connection without waiting. NULL: cannot be done. */
    void (*hang_up)(Chardev *chardev);
    /* NULL: the kind's name. */
    char *(*filename)(const Chardev *chardev);
    const char *(*pty_path)(const Chardev *chardev);
    /* Whether its creator should wait for the first client before anything else happens. NULL: no. */
    bool (*wants_client)(const Chardev *chardev);
    /* Fills the kind's branch of backend from the options of a command line. NULL: common options only. */
    int (*from_options)(const ChardevOptions *options, ChardevBackend *backend, Error *err);
};

/* The registry (generated): NULL if there is no such kind. */
const ChardevKind *chardev_kind_find(const char *name);
const ChardevKind *const *chardev_kind_list(size_t *ret_count);

/* The kind's state. */
void *chardev_state(const Chardev *chardev);
/* Interruptible; never returns 0. */
int chardev_wait_forever(void) MUST_CHECK;
