/* SPDX-License-Identifier: Apache-2.0 */
/* See job.h. The state machine is two tables; every change of state goes through job_set_status(), which
 * tells the world. */
#include "jobs/job.h"

#include "base/list.h"
#include "base/id.h"
#include "base/mem.h"
#include "generated/events.h"
#include "generated/trace.h"
#include "loop/loop.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

struct Job {
    const JobKind *kind;
    char *id;
    void *opaque;
    unsigned flags; /* JobFlags */
    JobStatus status;
    uint64_t progress_done, progress_remaining;
    char *error; /* text of the failure */
    bool cancelled;
    CoGroup group;   /* the job's coroutine */
    CoWait finalize; /* a job that waits for the user in pending */
    bool is_waiting; /* for finalize */
    List link;
};

static List jobs = LIST_INIT(jobs); /* newest first */
static CoCond job_gone;

#define S(name) (1U << JOB_STATUS_##name)

static const unsigned steps[JOB_STATUS__MAX] = {
    [JOB_STATUS_UNDEFINED] = S(CREATED),
    [JOB_STATUS_CREATED] = S(RUNNING) | S(ABORTING) | S(NULL),
    [JOB_STATUS_RUNNING] = S(PAUSED) | S(READY) | S(WAITING) | S(ABORTING),
    [JOB_STATUS_PAUSED] = S(RUNNING),
    [JOB_STATUS_READY] = S(STANDBY) | S(WAITING) | S(ABORTING),
    [JOB_STATUS_STANDBY] = S(READY),
    [JOB_STATUS_WAITING] = S(PENDING) | S(ABORTING),
    [JOB_STATUS_PENDING] = S(ABORTING) | S(CONCLUDED),
    [JOB_STATUS_ABORTING] = S(ABORTING) | S(CONCLUDED),
    [JOB_STATUS_CONCLUDED] = S(NULL),
};

#define ACTIVE (S(CREATED) | S(RUNNING) | S(PAUSED) | S(READY) | S(STANDBY))

static const unsigned verbs[JOB_VERB__MAX] = {
    [JOB_VERB_CANCEL] = ACTIVE | S(WAITING) | S(PENDING),
    [JOB_VERB_PAUSE] = ACTIVE,
    [JOB_VERB_RESUME] = ACTIVE,
    [JOB_VERB_SET_SPEED] = ACTIVE,
    [JOB_VERB_COMPLETE] = S(READY) | S(STANDBY),
    [JOB_VERB_DISMISS] = S(CONCLUDED),
    [JOB_VERB_FINALIZE] = S(PENDING),
    [JOB_VERB_CHANGE] = ACTIVE,
};

bool job_step_allowed(JobStatus from, JobStatus to)
{
    return steps[from] >> to & 1;
}

bool job_verb_allowed(JobVerb verb, JobStatus status)
{
    return verbs[verb] >> status & 1;
}

int job_check_verb(const Job *job, JobVerb verb, Error *err)
{
    if (job_verb_allowed(verb, job->status))
        return 0;
    return err_set(err, -EPERM, "Job '%s' in state '%s' cannot accept command verb '%s'", job->id,
        job_status_name(job->status), job_verb_name(verb));
}

void job_set_status(Job *job, JobStatus status)
{
    assert(job_step_allowed(job->status, status));
    if (job->status == status)
        return;
    trace_job_state_transition(job->id, job_status_name(job->status), job_status_name(status));
    job->status = status;
    event_job_status_change(&(JobStatusChangeEvent){.id = job->id, .status = status});
}

int job_new(const JobKind *kind, const char *id, unsigned flags, void *opaque, Job **ret_job, Error *err)
{
    Job *job;

    if (!id_is_valid(id))
        return err_set(err, -EINVAL, "Invalid job ID '%s'", id);
    if (job_find(id))
        return err_set(err, -EEXIST, "Job ID '%s' already in use", id);
    job = mem_new(Job);
    job->kind = kind;
    job->id = str_dup(id);
    job->flags = flags;
    job->opaque = opaque;
    co_group_init(&job->group);
    list_prepend(&jobs, &job->link);
    job_set_status(job, JOB_STATUS_CREATED);
    *ret_job = job;
    return 0;
}

static void job_free(Job *job)
{
    job_set_status(job, JOB_STATUS_NULL);
    if (job->kind->done)
        job->kind->done(job);
    list_remove(&job->link);
    co_cond_broadcast(&job_gone);
    free(job->error);
    free(job->id);
    free(job);
}

static void conclude(Job *job)
{
    job_set_status(job, JOB_STATUS_CONCLUDED);
}

/* Waits for the user in pending, if he wants to be asked. */
static int wait_for_finalize(Job *job)
{
    int r;

    if (!(job->flags & JOB_MANUAL_FINALIZE))
        return job->cancelled ? -ECANCELED : 0;
    job->finalize = (CoWait){0};
    job->is_waiting = true;
    r = co_wait(&job->finalize);
    job->is_waiting = false;
    return r;
}

static void fail(Job *job, int r, Error *err)
{
    job->error = str_dup(err_is_set(err) ? err->message : strerror(-r));
    job_set_status(job, JOB_STATUS_ABORTING);
    if (job->kind->abort)
        job->kind->abort(job);
    conclude(job);
}

static void succeed(Job *job)
{
    if (job->kind->commit)
        job->kind->commit(job);
    conclude(job);
}

static void run(void *arg)
{
    AUTO_ERROR Error err = ERROR_INIT;
    Job *job = arg;
    int r = job->kind->run(job, &err);

    if (r == 0 && job->cancelled)
        r = -ECANCELED;
    if (r == 0) {
        job_set_status(job, JOB_STATUS_WAITING);
        job_set_status(job, JOB_STATUS_PENDING);
        r = wait_for_finalize(job);
    }
    co_shield_begin();
    if (r < 0)
        fail(job, r, &err);
    else
        succeed(job);
    co_shield_end();
}

/* Frees a job that nobody will dismiss, after its coroutine has ended. */
static void reap(void *arg)
{
    Job *job = arg;

    co_group_join(&job->group);
    job_free(job);
}

void job_start(Job *job)
{
    job_set_status(job, JOB_STATUS_RUNNING);
    co_start(&job->group, "job", run, job);
    if (!(job->flags & JOB_MANUAL_DISMISS))
        co_start(loop_group(loop_current()), "job-reaper", reap, job);
}

/* ---- Lookup ---- */

Job *job_find(const char *id)
{
    LIST_FOREACH (link, &jobs) {
        Job *job = LIST_ENTRY(link, Job, link);

        if (str_eq(job->id, id))
            return job;
    }
    return NULL;
}

void job_foreach(void (*fn)(Job *job, void *arg), void *arg)
{
    LIST_FOREACH_SAFE (link, &jobs)
        fn(LIST_ENTRY(link, Job, link), arg);
}

/* ---- Verbs ---- */

int job_dismiss(Job *job, Error *err)
{
    int r = job_check_verb(job, JOB_VERB_DISMISS, err);

    if (r < 0)
        return r;
    co_group_join(&job->group);
    job_free(job);
    return 0;
}

int job_finalize(Job *job, Error *err)
{
    int r = job_check_verb(job, JOB_VERB_FINALIZE, err);

    if (r == 0 && job->is_waiting && !job->finalize.done)
        co_wake(&job->finalize, 0);
    return r;
}

int job_cancel(Job *job, Error *err)
{
    int r = job_check_verb(job, JOB_VERB_CANCEL, err);

    if (r < 0)
        return r;
    job->cancelled = true;
    co_group_cancel(&job->group);
    return 0;
}

static void cancel_active(Job *job, void *arg)
{
    if (job_verb_allowed(JOB_VERB_CANCEL, job->status)) {
        job->cancelled = true;
        co_group_cancel(&job->group);
    }
}

/* The first job that still has to be ended here; others are reaped on their own. */
static Job *next_to_end(void)
{
    return list_empty(&jobs) ? NULL : LIST_ENTRY(jobs.next, Job, link);
}

void jobs_shutdown(void)
{
    Job *job;

    job_foreach(cancel_active, NULL);
    while ((job = next_to_end())) {
        if (!(job->flags & JOB_MANUAL_DISMISS)) {
            co_cond_wait_shielded(&job_gone, NULL);
            continue;
        }
        co_group_join(&job->group);
        job_free(job);
    }
}

/* ---- For the kinds and for queries ---- */

void *job_opaque(const Job *job)
{
    return job->opaque;
}

const char *job_id(const Job *job)
{
    return job->id;
}

void job_progress_done(Job *job, uint64_t work)
{
    job->progress_done += work;
    job->progress_remaining -= MIN(work, job->progress_remaining);
}

void job_progress_remaining(Job *job, uint64_t work)
{
    job->progress_remaining = work;
}

JobInfo *job_info(const Job *job)
{
    JobInfo *info = mem_new(JobInfo);

    info->id = str_dup(job->id);
    info->type = job->kind->type;
    info->status = job->status;
    info->current_progress = (int64_t)job->progress_done;
    info->total_progress = (int64_t)(job->progress_done + job->progress_remaining);
    info->error = str_dup(job->error);
    return info;
}
