/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Mutex, condition and reader-writer lock between the coroutines of one thread. Ownership is handed over by
 * the one who releases, in order of arrival, so nobody can overtake and a cancelled waiter that was just
 * given a lock gives it back.
 */
#include "co/co-priv.h"

#include <assert.h>
#include <errno.h>

typedef struct Waiter {
    CoWait wait;
    List link;
    bool writer; /* CoRwLock only */
} Waiter;

static void enqueue(List *waiters, Waiter *waiter)
{
    if (!waiters->next)
        list_init(waiters);
    list_append(waiters, &waiter->link);
}

static Waiter *first_waiter(List *waiters)
{
    return waiters->next && !list_empty(waiters) ? LIST_ENTRY(waiters->next, Waiter, link) : NULL;
}

static void release(Waiter *waiter)
{
    list_remove(&waiter->link);
    co_wake(&waiter->wait, 0);
}

static int mutex_lock(CoMutex *mutex, bool interruptible)
{
    Waiter self = {0};
    int r;

    if (!mutex->owner) {
        mutex->owner = co_self();
        return 0;
    }
    assert(mutex->owner != co_self());
    enqueue(&mutex->waiters, &self);
    r = interruptible ? co_wait(&self.wait) : co_wait_shielded(&self.wait);
    if (!self.wait.done) {
        list_remove(&self.link);
        return r;
    }
    mutex->owner = co_self();
    return 0;
}

int co_mutex_lock(CoMutex *mutex)
{
    int r = co_interrupted();

    return r < 0 ? r : mutex_lock(mutex, true);
}

void co_mutex_lock_shielded(CoMutex *mutex)
{
    (void)mutex_lock(mutex, false);
}

void co_mutex_unlock(CoMutex *mutex)
{
    Waiter *next = first_waiter(&mutex->waiters);

    assert(mutex->owner == co_self());
    /* Until it runs, the next owner is represented by the waker's own mark: the mutex is never seen free in
     * between. */
    mutex->owner = next ? next->wait.co : NULL;
    if (next)
        release(next);
}

static int cond_wait(CoCond *cond, CoMutex *mutex, bool interruptible)
{
    Waiter self = {0};
    int r;

    enqueue(&cond->waiters, &self);
    if (mutex)
        co_mutex_unlock(mutex);
    r = interruptible ? co_wait(&self.wait) : co_wait_shielded(&self.wait);
    if (!self.wait.done)
        list_remove(&self.link);
    if (mutex)
        co_mutex_lock_shielded(mutex);
    return self.wait.done ? 0 : r;
}

int co_cond_wait(CoCond *cond, CoMutex *mutex)
{
    return cond_wait(cond, mutex, true);
}

void co_cond_wait_shielded(CoCond *cond, CoMutex *mutex)
{
    (void)cond_wait(cond, mutex, false);
}

void co_cond_signal(CoCond *cond)
{
    Waiter *waiter = first_waiter(&cond->waiters);

    if (waiter)
        release(waiter);
}

void co_cond_broadcast(CoCond *cond)
{
    Waiter *waiter;

    while ((waiter = first_waiter(&cond->waiters)))
        release(waiter);
}

static bool rwlock_admits(const CoRwLock *lock, bool writer)
{
    return writer ? !lock->writer && !lock->readers : !lock->writer;
}

static void rwlock_take(CoRwLock *lock, bool writer)
{
    if (writer)
        lock->writer = true;
    else
        lock->readers++;
}

static void rwlock_acquire(CoRwLock *lock, bool writer)
{
    Waiter self = {.writer = writer};

    if (!first_waiter(&lock->waiters) && rwlock_admits(lock, writer)) {
        rwlock_take(lock, writer);
        return;
    }
    enqueue(&lock->waiters, &self);
    co_wait_shielded(&self.wait);
}

void co_rwlock_read(CoRwLock *lock)
{
    rwlock_acquire(lock, false);
}

void co_rwlock_write(CoRwLock *lock)
{
    rwlock_acquire(lock, true);
}

void co_rwlock_unlock(CoRwLock *lock)
{
    Waiter *next;

    if (lock->writer)
        lock->writer = false;
    else
        lock->readers--;
    while ((next = first_waiter(&lock->waiters)) && rwlock_admits(lock, next->writer)) {
        rwlock_take(lock, next->writer);
        release(next);
    }
}
