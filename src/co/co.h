/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stackful coroutines, scheduled cooperatively on one thread (a CoSched, owned by the thread's loop).
 *
 * Rules:
 * - A wait (co_wait) ends for what it waits for, for a deadline, or for a cancellation; never for anything
 * else.
 * - Cancellation is a sticky request: every interruptible wait from then on returns -ECANCELED, so ordinary
 * cleanup unwinds. Cleanup that must wait does so inside co_shield_begin/end.
 * - A coroutine is started in a group. The group cannot end before its children have.
 * - Nothing here may be called from another thread than the scheduler's; crossing threads is the loop's
 * business.
 */
#pragma once

#include "base/list.h"

typedef struct Co Co;
typedef struct CoSched CoSched;
typedef struct CoGroup CoGroup;

/* ---- Waiting ---- */

/*
 * One thing to wait for; lives on the waiter's stack or inside the object that will complete. Whoever knows
 * the object calls co_wake once. The wake may come before the wait. A CoWait that was interrupted must be
 * made unreachable for its waker before it goes out of scope.
 */
typedef struct CoWait {
    Co *co;     /* who waits, while it waits */
    int result; /* valid once done */
    bool done;
} CoWait;

/* Waits for co_wake(w). Returns the waker's result; -ECANCELED or -ETIMEDOUT with w->done false when
 * interrupted. */
int co_wait(CoWait *w) MUST_CHECK;
/* The same, but neither cancellation nor deadlines end it. */
int co_wait_shielded(CoWait *w);
/* Completes w. The waiter runs later, from the scheduler. At most once per CoWait. */
void co_wake(CoWait *w, int result);

/* Lets every other ready coroutine run once. Returns 0, -ECANCELED or -ETIMEDOUT. */
int co_yield (void);
/* Returns 0 after the time, or -ECANCELED / -ETIMEDOUT. */
int co_sleep_ns(uint64_t duration_ns) MUST_CHECK;
/* -ECANCELED or -ETIMEDOUT if an interruptible wait would return so now, else 0. */
int co_interrupted(void);

/* Waits between begin and end are not interruptible. Nests. */
void co_shield_begin(void);
void co_shield_end(void);

/* ---- Deadlines ---- */

/* Within begin and end interruptible waits return -ETIMEDOUT once the time has passed. Nests; lives on the
 * stack. */
typedef struct CoDeadline {
    Co *co;
    struct CoDeadline *outer;
    uint64_t at_ns;
    bool expired;
    CoWait *sleeper;     /* co_sleep_ns: completed instead of interrupting */
    unsigned heap_index; /* position in the scheduler's heap, or UINT32_MAX */
} CoDeadline;

void co_deadline_begin(CoDeadline *deadline, uint64_t timeout_ns);
void co_deadline_end(CoDeadline *deadline);

/* ---- Groups ---- */

struct CoGroup {
    List children;
    unsigned count;
    bool cancelled;
    CoWait *joiner;
};

void co_group_init(CoGroup *group);
/* Starts fn(arg) in the group; it first runs from the scheduler. name must outlive the coroutine (a literal).
 */
void co_start(CoGroup *group, const char *name, void (*fn)(void *arg), void *arg);
/* Cancels every child, present and future. */
void co_group_cancel(CoGroup *group);
/* Waits until the group has no child. Interruptible. */
int co_group_wait(CoGroup *group) MUST_CHECK;
/* Waits until the group has no child, whatever happens; afterwards the group may go out of scope. */
void co_group_join(CoGroup *group);

/* ---- The running coroutine ---- */

/* NULL outside of any coroutine. */
Co *co_self(void);
const char *co_name(const Co *co);
/* Cancels one coroutine. */
void co_cancel(Co *co);

/* ---- Locks between coroutines of one thread; all are fair ---- */

typedef struct CoMutex {
    Co *owner;
    List waiters; /* zero-initialised is valid */
} CoMutex;

/* 0, or -ECANCELED / -ETIMEDOUT without the lock. */
int co_mutex_lock(CoMutex *mutex) MUST_CHECK;
void co_mutex_lock_shielded(CoMutex *mutex);
void co_mutex_unlock(CoMutex *mutex);

typedef struct CoCond {
    List waiters; /* zero-initialised is valid */
} CoCond;

/* Releases mutex (may be NULL), waits for a signal, takes mutex again (also when interrupted). */
int co_cond_wait(CoCond *cond, CoMutex *mutex) MUST_CHECK;
void co_cond_wait_shielded(CoCond *cond, CoMutex *mutex);
void co_cond_signal(CoCond *cond);
void co_cond_broadcast(CoCond *cond);

/* Many readers or one writer; a waiting writer keeps later readers out. */
typedef struct CoRwLock {
    unsigned readers;
    bool writer;
    List waiters; /* zero-initialised is valid */
} CoRwLock;

void co_rwlock_read(CoRwLock *lock); /* shielded */
void co_rwlock_write(CoRwLock *lock);
void co_rwlock_unlock(CoRwLock *lock);

/* ---- For the loop that drives the coroutines ---- */

/* The clock is asked for the time in ns; a simulated loop passes its own. */
CoSched *co_sched_new(uint64_t (*clock_ns)(void));
/* All groups must be empty. */
void co_sched_free(CoSched *sched);
/* Makes sched the current thread's scheduler (NULL: none). */
void co_sched_enter(CoSched *sched);
/* Runs ready coroutines and expired deadlines until none is ready, each ready one at most once. True: some
 * still are. */
bool co_sched_run(CoSched *sched);
bool co_sched_has_ready(const CoSched *sched);
/* Time of the earliest deadline, or UINT64_MAX. */
uint64_t co_sched_next_deadline_ns(const CoSched *sched);
/* Calls fn for every live coroutine (for dumps at shutdown and in debuggers). */
void co_sched_foreach(CoSched *sched, void (*fn)(Co *co, void *arg), void *arg);
unsigned co_sched_count(const CoSched *sched);
