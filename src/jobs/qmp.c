/* SPDX-License-Identifier: Apache-2.0 */
/* QMP commands on jobs of any kind. */
#include "generated/commands.h"
#include "jobs/job.h"
#include "schema/visit.h"

#include <errno.h>

static void append_info(Job *job, void *arg)
{
    JobInfoList *list = arg;

    schema_list_grow(list, sizeof(*list->items));
    list->items[list->count++] = job_info(job);
}

int qmp_query_jobs(JobInfoList *ret_result, Error *err)
{
    JobInfoList list = {0};

    job_foreach(append_info, &list);
    *ret_result = list;
    return 0;
}

int qmp_job_dismiss(const JobDismissArg *arg, Error *err)
{
    Job *job = job_find(arg->id);

    if (!job)
        return err_set(err, -ENOENT, "Job not found");
    return job_dismiss(job, err);
}
