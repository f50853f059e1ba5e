/* SPDX-License-Identifier: Apache-2.0 */
/*
 * blockdev-create: a driver makes an image. The job is dismissed by the user, so that he can read how it
 * ended.
 */
#include "block/driver.h"
#include "generated/commands.h"
#include "jobs/job.h"
#include "schema/visit.h"

#include <errno.h>

typedef struct CreateJob {
    const Driver *driver;
    BlockdevCreateOptions *options;
} CreateJob;

static int create_run(Job *job, Error *err)
{
    CreateJob *create = job_opaque(job);
    int r;

    job_progress_remaining(job, 1);
    r = create->driver->create(create->options, err);
    job_progress_done(job, 1);
    return r;
}

static void create_done(Job *job)
{
    CreateJob *create = job_opaque(job);

    blockdev_create_options_free(create->options);
    free(create);
}

static const JobKind create_kind = {.type = JOB_TYPE_CREATE, .run = create_run, .done = create_done};

int qmp_blockdev_create(const BlockdevCreateArg *arg, Error *err)
{
    const char *name = blockdev_driver_name(arg->options->driver);
    const Driver *driver = driver_find(name);
    CreateJob *create;
    Job *job;
    int r;

    if (!driver)
        return err_set(err, -ENOENT, "Block driver '%s' not found or not supported", name);
    if (!driver->create)
        return err_set(err, -ENOTSUP, "Driver does not support blockdev-create");
    create = mem_new(CreateJob);
    create->driver = driver;
    create->options = schema_clone(&schema_type_BlockdevCreateOptions, arg->options);
    r = job_new(&create_kind, arg->job_id, JOB_MANUAL_DISMISS, create, &job, err);
    if (r < 0) {
        blockdev_create_options_free(create->options);
        free(create);
        return r;
    }
    job_start(job);
    /* A job that fails at once has failed before its command is answered, as clients are used to. */
    (void)!co_yield ();
    return 0;
}
