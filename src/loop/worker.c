/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Worker threads of a loop for system calls that block and for heavy computation. Threads are started when
 * more work waits than threads are idle, and end after a while without work. The work item lives on the stack
 * of the coroutine that waits for it; its completion comes back to the loop as a post.
 */
#include "loop/loop-priv.h"

#include "base/mem.h"

#include <assert.h>
#include <signal.h>
#include <time.h>

#define IDLE_SECONDS 10

typedef struct Work {
    LoopPost post; /* first: back to the loop when done */
    List link;
    Loop *loop;
    int (*fn)(void *arg);
    void *arg;
    int result;
    CoWait wait;
} Work;

struct WorkerPool {
    Loop *loop;
    pthread_mutex_t mutex;
    pthread_cond_t work_cond, exit_cond;
    List queue;
    unsigned threads, idle, queued, min, max;
    bool stopping;
};

static void work_completed(LoopPost *post)
{
    Work *work = CONTAINER_OF(post, Work, post);

    co_wake(&work->wait, work->result);
}

/* With the mutex held: waits for work. NULL: this thread is to end. */
static Work *next_work(WorkerPool *pool)
{
    struct timespec until;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += IDLE_SECONDS;
    pool->idle++;
    while (list_empty(&pool->queue)) {
        if (pool->stopping || pool->threads > pool->max)
            break;
        if (pthread_cond_timedwait(&pool->work_cond, &pool->mutex, &until) == ETIMEDOUT &&
            list_empty(&pool->queue) && pool->threads > pool->min)
            break;
    }
    pool->idle--;
    if (list_empty(&pool->queue))
        return NULL;
    pool->queued--;
    return LIST_ENTRY(list_pop(&pool->queue), Work, link);
}

static void *worker_main(void *arg)
{
    WorkerPool *pool = arg;
    Work *work;

    pthread_setname_np(pthread_self(), "worker");
    pthread_mutex_lock(&pool->mutex);
    while ((work = next_work(pool))) {
        pthread_mutex_unlock(&pool->mutex);
        work->result = work->fn(work->arg);
        loop_add_post(work->loop, &work->post);
        pthread_mutex_lock(&pool->mutex);
    }
    pool->threads--;
    pthread_cond_signal(&pool->exit_cond);
    pthread_mutex_unlock(&pool->mutex);
    return NULL;
}

/* With the mutex held. Signals are for the main thread only. */
static bool start_thread(WorkerPool *pool)
{
    pthread_attr_t attr;
    pthread_t thread;
    sigset_t all, old;
    int r;

    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    sigfillset(&all);
    sigdelset(&all, SIGBUS); /* blocked, a fault could not be handled (virtio/mapping.h) */
    pthread_sigmask(SIG_SETMASK, &all, &old);
    r = pthread_create(&thread, &attr, worker_main, pool);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    pool->threads += r == 0;
    return r == 0;
}

int loop_work(int (*fn)(void *arg), void *arg)
{
    Loop *loop = loop_current();
    WorkerPool *pool = loop->workers;
    Work work = {.post.run = work_completed, .loop = loop, .fn = fn, .arg = arg};
    bool served = true;

    pthread_mutex_lock(&pool->mutex);
    list_append(&pool->queue, &work.link);
    pool->queued++;
    if (pool->queued > pool->idle && pool->threads < MAX(pool->max, 1U))
        served = start_thread(pool) || pool->threads;
    if (served) {
        pthread_cond_signal(&pool->work_cond);
    } else {
        list_remove(&work.link);
        pool->queued--;
    }
    pthread_mutex_unlock(&pool->mutex);
    /* Not one thread can be had: doing the work here stalls the loop, but loses nothing. */
    return served ? co_wait_shielded(&work.wait) : fn(arg);
}

WorkerPool *worker_pool_new(Loop *loop)
{
    WorkerPool *pool = mem_new(WorkerPool);
    pthread_condattr_t attr;

    pool->loop = loop;
    list_init(&pool->queue);
    pool->min = loop->options.thread_pool_min;
    pool->max = loop->options.thread_pool_max;
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&pool->work_cond, &attr);
    pthread_cond_init(&pool->exit_cond, &attr);
    pthread_condattr_destroy(&attr);
    return pool;
}

void worker_pool_set_limits(WorkerPool *pool, unsigned min, unsigned max)
{
    pthread_mutex_lock(&pool->mutex);
    pool->min = min;
    pool->max = max;
    pthread_cond_broadcast(&pool->work_cond);
    pthread_mutex_unlock(&pool->mutex);
}

void worker_pool_free(WorkerPool *pool)
{
    pthread_mutex_lock(&pool->mutex);
    assert(list_empty(&pool->queue));
    pool->stopping = true;
    pthread_cond_broadcast(&pool->work_cond);
    while (pool->threads)
        pthread_cond_wait(&pool->exit_cond, &pool->mutex);
    pthread_mutex_unlock(&pool->mutex);
    pthread_cond_destroy(&pool->work_cond);
    pthread_cond_destroy(&pool->exit_cond);
    pthread_mutex_destroy(&pool->mutex);
    free(pool);
}
