/* SPDX-License-Identifier: Apache-2.0 */
/* The state machine, and the order in which a job tells its states. */
#include "jobs/job.h"

#include "base/mem.h"
#include "loop/loop.h"
#include "schema/event.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static StrBuf seen;

static void note_event(const char *name, JsonValue *take_data)
{
    strbuf_printf(&seen, "%s ", json_get_string(take_data, "status"));
    json_free(take_data);
}

static void expect_seen(const char *text)
{
    AUTO_FREE char *got = strbuf_take(&seen);

    assert_string_equal(got, text);
}

static void test_verbs(void **state)
{
    static const char *const allowed[JOB_VERB__MAX] = {
        [JOB_VERB_CANCEL] = "created running paused ready standby waiting pending ",
        [JOB_VERB_PAUSE] = "created running paused ready standby ",
        [JOB_VERB_RESUME] = "created running paused ready standby ",
        [JOB_VERB_SET_SPEED] = "created running paused ready standby ",
        [JOB_VERB_CHANGE] = "created running paused ready standby ",
        [JOB_VERB_COMPLETE] = "ready standby ",
        [JOB_VERB_FINALIZE] = "pending ",
        [JOB_VERB_DISMISS] = "concluded ",
    };

    for (JobVerb verb = 0; verb < JOB_VERB__MAX; verb++) {
        AUTO_STRBUF StrBuf text = {0};

        for (JobStatus status = 0; status < JOB_STATUS__MAX; status++)
            if (job_verb_allowed(verb, status))
                strbuf_printf(&text, "%s ", job_status_name(status));
        assert_string_equal(text.text, allowed[verb]);
    }
}

static void test_steps(void **state)
{
    assert_true(job_step_allowed(JOB_STATUS_UNDEFINED, JOB_STATUS_CREATED));
    assert_true(job_step_allowed(JOB_STATUS_RUNNING, JOB_STATUS_WAITING));
    assert_false(job_step_allowed(JOB_STATUS_RUNNING, JOB_STATUS_PENDING));
    assert_false(job_step_allowed(JOB_STATUS_PAUSED, JOB_STATUS_ABORTING));
    for (JobStatus to = 0; to < JOB_STATUS__MAX; to++)
        assert_false(job_step_allowed(JOB_STATUS_NULL, to));
}

/* ---- Whole lives, on a loop ---- */

static int succeed(Job *job, Error *err)
{
    return co_yield ();
}

static int break_down(Job *job, Error *err)
{
    return err_set(err, -EIO, "broken");
}

static int sleep_long(Job *job, Error *err)
{
    return co_sleep_ns(UINT64_C(3600) * 1000000000);
}

static const JobKind succeeding = {.type = JOB_TYPE_CREATE, .run = succeed};
static const JobKind failing = {.type = JOB_TYPE_CREATE, .run = break_down};
static const JobKind sleeping = {.type = JOB_TYPE_CREATE, .run = sleep_long};

static Job *start(const JobKind *kind, const char *id, unsigned flags)
{
    AUTO_ERROR Error err = ERROR_INIT;
    Job *job;

    assert_int_equal(job_new(kind, id, flags, NULL, &job, &err), 0);
    job_start(job);
    return job;
}

static void settle(void)
{
    for (unsigned i = 0; i < 10; i++)
        assert_int_equal(co_yield (), 0);
}

static int lives(void *arg)
{
    AUTO_ERROR Error err = ERROR_INIT;
    Job *job;

    start(&succeeding, "a", 0);
    settle();
    expect_seen("created running waiting pending concluded null ");
    assert_null(job_find("a"));

    job = start(&failing, "b", JOB_MANUAL_DISMISS);
    settle();
    expect_seen("created running aborting concluded ");
    assert_true(job_cancel(job, &err) < 0);
    assert_string_equal(err.message, "Job 'b' in state 'concluded' cannot accept command verb 'cancel'");
    err_done(&err);
    assert_int_equal(job_dismiss(job, &err), 0);
    expect_seen("null ");

    job = start(&succeeding, "c", JOB_MANUAL_FINALIZE);
    settle();
    expect_seen("created running waiting pending ");
    assert_int_equal(job_finalize(job, &err), 0);
    settle();
    expect_seen("concluded null ");

    job = start(&succeeding, "d", JOB_MANUAL_FINALIZE);
    settle();
    assert_int_equal(job_cancel(job, &err), 0);
    settle();
    expect_seen("created running waiting pending aborting concluded null ");
    return 0;
}

static int shut_down(void *arg)
{
    AUTO_ERROR Error err = ERROR_INIT;
    Job *job;

    start(&sleeping, "a", 0);
    start(&sleeping, "b", JOB_MANUAL_DISMISS);
    settle();
    expect_seen("created running created running ");
    assert_int_equal(job_new(&sleeping, "a", 0, NULL, &job, &err), -EEXIST);
    assert_string_equal(err.message, "Job ID 'a' already in use");
    err_done(&err);
    assert_int_equal(job_new(&sleeping, "1", 0, NULL, &job, &err), -EINVAL);
    assert_string_equal(err.message, "Invalid job ID '1'");
    jobs_shutdown();
    assert_null(job_find("a"));
    assert_null(job_find("b"));
    strbuf_done(&seen);
    return 0;
}

static void test_lives(void **state)
{
    event_set_sink(note_event);
    assert_int_equal(loop_run_main(LOOP_BACKEND_AUTO, &LOOP_OPTIONS_DEFAULT, lives, NULL), 0);
}

static void test_shutdown(void **state)
{
    event_set_sink(note_event);
    assert_int_equal(loop_run_main(LOOP_BACKEND_AUTO, &LOOP_OPTIONS_DEFAULT, shut_down, NULL), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_verbs),
        cmocka_unit_test(test_steps),
        cmocka_unit_test(test_lives),
        cmocka_unit_test(test_shutdown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
