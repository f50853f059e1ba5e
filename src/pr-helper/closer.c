/* SPDX-License-Identifier: Apache-2.0 */
#include "pr-helper/closer.h"

#include "base/list.h"
#include "base/mem.h"

#include <pthread.h>
#include <unistd.h>

enum {
    THREADS = 32,
    USER_CLOSINGS = 4,
    STACK_BYTES = 256 * 1024,
};

typedef struct Closing {
    List waiting, all; /* links */
    int fd;
    uid_t user;
} Closing;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t more = PTHREAD_COND_INITIALIZER, begun = PTHREAD_COND_INITIALIZER;
static List waiting = LIST_INIT(waiting), all = LIST_INIT(all);
static unsigned running;

static void *run(void *opaque)
{
    pthread_mutex_lock(&lock);
    running++;
    pthread_cond_signal(&begun);
    for (;;) {
        while (list_empty(&waiting))
            pthread_cond_wait(&more, &lock);
        Closing *closing = LIST_ENTRY(list_pop(&waiting), Closing, waiting);

        pthread_mutex_unlock(&lock);
        close(closing->fd);
        pthread_mutex_lock(&lock);
        list_remove(&closing->all);
        free(closing);
    }
    return NULL;
}

int closer_start(Error *err)
{
    pthread_attr_t attributes;
    pthread_t thread;
    int r = 0;

    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    for (unsigned i = 0; i < THREADS && r == 0; i++)
        r = -pthread_create(&thread, &attributes, run, NULL);
    pthread_attr_destroy(&attributes);
    if (r < 0)
        return err_set_errno(err, r, "Cannot start a thread");
    /* What a thread's first moments need is not allowed later. */
    pthread_mutex_lock(&lock);
    while (running < THREADS)
        pthread_cond_wait(&begun, &lock);
    pthread_mutex_unlock(&lock);
    return 0;
}

void closer_close(int take_fd, uid_t user)
{
    Closing *closing;

    if (take_fd < 0)
        return;
    closing = mem_new(Closing);
    *closing = (Closing){.fd = take_fd, .user = user};
    pthread_mutex_lock(&lock);
    list_append(&waiting, &closing->waiting);
    list_append(&all, &closing->all);
    pthread_cond_signal(&more);
    pthread_mutex_unlock(&lock);
}

bool closer_is_full(uid_t user)
{
    unsigned count = 0;

    pthread_mutex_lock(&lock);
    LIST_FOREACH (link, &all)
        count += LIST_ENTRY(link, Closing, all)->user == user;
    pthread_mutex_unlock(&lock);
    return count >= USER_CLOSINGS;
}
