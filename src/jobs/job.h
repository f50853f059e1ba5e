/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Jobs: long work in the background, watched and steered over QMP. A job kind gives the work as one function
 * that runs in the job's own coroutine; everything that users see (states, verbs, events, progress, errors)
 * is here.
 *
 * A job's life (QEMU docs/interop and qapi/job.json, "JobStatus"): created - running - [ready] - waiting -
 * pending - concluded - null, with paused and standby beside running and ready, and aborting instead of
 * waiting and pending when it fails or is cancelled. All functions are for the main loop.
 */
#pragma once

#include "base/error.h"
#include "co/co.h"
#include "generated/types.h"

typedef struct Job Job;

typedef struct JobKind {
    JobType type;
    /* The work. Ends early with -ECANCELED when a wait says so. An error without a message is shown as the
     * system's text. */
    int (*run)(Job *job, Error *err);
    /* After success: makes the result visible. May be NULL. */
    void (*commit)(Job *job);
    /* After failure or cancellation: undoes what was done. May be NULL. */
    void (*abort)(Job *job);
    /* The job goes: releases what the kind keeps in it. May be NULL. */
    void (*done)(Job *job);
} JobKind;

typedef enum JobFlags {
    JOB_MANUAL_FINALIZE = 1 << 0, /* stays pending until job_finalize() */
    JOB_MANUAL_DISMISS = 1 << 1,  /* stays concluded until job_dismiss() */
} JobFlags;

/* Makes a job in the state created. id: unique, and well-formed as ids are. opaque is the kind's; done() ends
 * it, also when job_start() was never called; on failure the caller keeps it. */
int job_new(
    const JobKind *kind, const char *id, unsigned flags, void *opaque, Job **ret_job, Error *err) MUST_CHECK;
/* Lets it run. Its coroutine starts after the caller waits. */
void job_start(Job *job);

/* NULL if there is none. */
Job *job_find(const char *id);
/* Calls fn for each job, newest first; fn may dismiss the job. */
void job_foreach(void (*fn)(Job *job, void *arg), void *arg);

/* ---- Verbs: -EPERM with the text that users know when the state does not allow them ---- */

int job_dismiss(Job *job, Error *err) MUST_CHECK;
int job_finalize(Job *job, Error *err) MUST_CHECK;
/* Asks it to end; it does so at its next wait. */
int job_cancel(Job *job, Error *err) MUST_CHECK;
/* Whether the state allows the verb; sets err if not. */
int job_check_verb(const Job *job, JobVerb verb, Error *err) MUST_CHECK;

/* Ends all jobs and forgets them (shutdown). Waits. */
void jobs_shutdown(void);

/* ---- For the kinds ---- */

void *job_opaque(const Job *job);
const char *job_id(const Job *job);
/* Progress has no unit; remaining work may be corrected at any time. */
void job_progress_done(Job *job, uint64_t work);
void job_progress_remaining(Job *job, uint64_t work);
/* A step of the life that only some kinds take: running <-> ready, pauses. Must be an allowed step. */
void job_set_status(Job *job, JobStatus status);

/* ---- For query-jobs ---- */

/* A new description; the caller frees it. */
JobInfo *job_info(const Job *job);

/* The tables of the state machine. */
bool job_step_allowed(JobStatus from, JobStatus to);
bool job_verb_allowed(JobVerb verb, JobStatus status);
