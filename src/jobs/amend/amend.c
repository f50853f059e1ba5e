/* SPDX-License-Identifier: Apache-2.0 */
/*
 * x-blockdev-amend: a driver changes what its image says about itself, keys for example. The node stays for
 * as long as the job is listed; the job is dismissed by the user, so that he can read how it ended.
 */
#include "block/driver.h"
#include "generated/commands.h"
#include "jobs/job.h"
#include "schema/visit.h"

#include <errno.h>

typedef struct AmendJob {
    Node *node; /* held */
    BlockdevAmendOptions *options;
    bool force;
} AmendJob;

static int amend_run(Job *job, Error *err)
{
    AmendJob *amend = job_opaque(job);
    int r;

    job_progress_remaining(job, 1);
    r = node_driver(amend->node)->amend(amend->node, amend->options, amend->force, err);
    job_progress_done(job, 1);
    return r;
}

static void amend_free(AmendJob *amend)
{
    node_let_go(amend->node);
    blockdev_amend_options_free(amend->options);
    free(amend);
}

static void amend_done(Job *job)
{
    amend_free(job_opaque(job));
}

static const JobKind amend_kind = {.type = JOB_TYPE_AMEND, .run = amend_run, .done = amend_done};

int qmp_x_blockdev_amend(const XBlockdevAmendArg *arg, Error *err)
{
    const char *name = blockdev_driver_name(arg->options->driver);
    Node *node = node_find(arg->node_name);
    AmendJob *amend;
    Job *job;
    int r;

    if (!node)
        return err_set(err, -ENODEV, "Cannot find device='' nor node-name='%s'", arg->node_name);
    if (!str_eq(node_driver(node)->name, name))
        return err_set(err, -ENOTSUP, "x-blockdev-amend doesn't support changing the block driver");
    if (!node_driver(node)->amend)
        return err_set(err, -ENOTSUP, "Driver does not support x-blockdev-amend");
    amend = mem_new(AmendJob);
    amend->node = node;
    amend->options = schema_clone(&schema_type_BlockdevAmendOptions, arg->options);
    amend->force = arg->has_force && arg->force;
    node_hold(node);
    r = job_new(&amend_kind, arg->job_id, JOB_MANUAL_DISMISS, amend, &job, err);
    if (r < 0) {
        amend_free(amend);
        return r;
    }
    job_start(job);
    /* A job that fails at once has failed before its command is answered, as clients are used to. */
    (void)!co_yield ();
    return 0;
}
