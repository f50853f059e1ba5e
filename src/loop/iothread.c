/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The object kinds `iothread` and `main-loop`. Both are a set of numbers that can be read and changed while
 * the loop runs; the values are kept as the user gave them and clamped only where they are handed to the
 * loop.
 */
#include "loop/iothread.h"

#include "base/mem.h"
#include "generated/commands.h"
#include "generated/types.h"

#include <inttypes.h>
#include <limits.h>

/* Nanoseconds that an iothread polls before it sleeps, unless told otherwise (QEMU: the same). */
#define POLL_MAX_NS_DEFAULT 32768
#define THREAD_POOL_MAX_DEFAULT 64

typedef struct LoopSettings {
    int64_t aio_max_batch;
    int64_t thread_pool_min;
    int64_t thread_pool_max;
    int64_t poll_max_ns;
    int64_t poll_grow;
    int64_t poll_shrink;
} LoopSettings;

typedef struct LoopState {
    LoopSettings settings;
    Loop *loop; /* an iothread owns it; of the main-loop object it is the main loop */
} LoopState;

static unsigned clamp_unsigned(int64_t value)
{
    return (unsigned)MIN(value, (int64_t)INT_MAX);
}

static LoopOptions settings_to_options(const LoopSettings *settings)
{
    return (LoopOptions){
        .poll_max_ns = (uint64_t)settings->poll_max_ns,
        .poll_grow = (uint64_t)settings->poll_grow,
        .poll_shrink = (uint64_t)settings->poll_shrink,
        .aio_max_batch = clamp_unsigned(settings->aio_max_batch),
        .thread_pool_min = clamp_unsigned(settings->thread_pool_min),
        .thread_pool_max = clamp_unsigned(settings->thread_pool_max),
    };
}

/* ---- Properties ---- */

typedef struct Field {
    size_t offset; /* of an int64_t in LoopSettings */
} Field;

#define FIELD(member) (&(const Field){offsetof(LoopSettings, member)})

static int64_t *setting(LoopSettings *settings, const ObjectProperty *property)
{
    const Field *field = property->data;

    return (int64_t *)((char *)settings + field->offset);
}

static LoopState *loop_state(Object *object)
{
    return object_state(object, object_kind(object));
}

static int get_setting(Object *object, const ObjectProperty *property, JsonValue **ret_value, Error *err)
{
    *ret_value = json_int_new(*setting(&loop_state(object)->settings, property));
    return 0;
}

static int check_setting(const char *name, int64_t value, Error *err)
{
    if (value < 0)
        return err_set(err, -EINVAL, "%s value must be in range [0, %" PRId64 "]", name, INT64_MAX);
    return 0;
}

static int check_thread_pool(const LoopSettings *settings, Error *err)
{
    if (settings->thread_pool_max == 0 || settings->thread_pool_max > INT_MAX ||
        settings->thread_pool_min > settings->thread_pool_max)
        return err_set(err, -EINVAL, "bad thread-pool-min/thread-pool-max values");
    return 0;
}

static int set_setting(Object *object, const ObjectProperty *property, const JsonValue *value, Error *err)
{
    LoopState *state = loop_state(object);
    LoopSettings settings = state->settings;
    int r;

    if (!json_is(value, JSON_INT))
        return err_set(err, -EINVAL, "Invalid parameter type for '%s', expected: integer", property->name);
    r = check_setting(property->name, value->u.integer, err);
    if (r < 0)
        return r;
    *setting(&settings, property) = value->u.integer;
    r = check_thread_pool(&settings, err);
    if (r < 0)
        return r;
    state->settings = settings;
    LoopOptions options = settings_to_options(&settings);
    loop_set_options(state->loop, &options);
    return 0;
}

#define PROPERTY(text, member)                                                                     \
    {                                                                                              \
        .name = text, .type = "int", .get = get_setting, .set = set_setting, .data = FIELD(member) \
    }

/* In the order in which existing clients see them. */
static const ObjectProperty iothread_properties[] = {
    PROPERTY("thread-pool-min", thread_pool_min),
    PROPERTY("aio-max-batch", aio_max_batch),
    PROPERTY("thread-pool-max", thread_pool_max),
    PROPERTY("poll-max-ns", poll_max_ns),
    PROPERTY("poll-grow", poll_grow),
    PROPERTY("poll-shrink", poll_shrink),
    {0},
};

static const ObjectProperty main_loop_properties[] = {
    PROPERTY("thread-pool-min", thread_pool_min),
    PROPERTY("aio-max-batch", aio_max_batch),
    PROPERTY("thread-pool-max", thread_pool_max),
    {0},
};

/* ---- Making and ending ---- */

static int check_settings(const LoopSettings *settings, const ObjectProperty *properties, Error *err)
{
    LoopSettings copy = *settings;

    for (const ObjectProperty *property = properties; property->name; property++) {
        int r = check_setting(property->name, *setting(&copy, property), err);

        if (r < 0)
            return r;
    }
    return check_thread_pool(settings, err);
}

static int iothread_create(Object *object, const ObjectOptions *options, Error *err)
{
    LoopState *state = loop_state(object);
    const IothreadProperties *given = &options->u.iothread;
    LoopSettings settings = {
        .aio_max_batch = given->aio_max_batch,
        .thread_pool_min = given->thread_pool_min,
        .thread_pool_max = given->has_thread_pool_max ? given->thread_pool_max : THREAD_POOL_MAX_DEFAULT,
        .poll_max_ns = given->has_poll_max_ns ? given->poll_max_ns : POLL_MAX_NS_DEFAULT,
        .poll_grow = given->poll_grow,
        .poll_shrink = given->poll_shrink,
    };
    int r = check_settings(&settings, iothread_properties, err);

    if (r < 0)
        return r;
    state->settings = settings;
    LoopOptions loop_options = settings_to_options(&settings);
    return loop_new(object_id(object), LOOP_BACKEND_AUTO, &loop_options, &state->loop, err);
}

static void iothread_destroy(Object *object)
{
    loop_free(loop_state(object)->loop);
}

static int main_loop_create(Object *object, const ObjectOptions *options, Error *err)
{
    LoopState *state = loop_state(object);
    const MainLoopProperties *given = &options->u.main_loop;
    LoopSettings settings = {
        .aio_max_batch = given->aio_max_batch,
        .thread_pool_min = given->thread_pool_min,
        .thread_pool_max = given->has_thread_pool_max ? given->thread_pool_max : THREAD_POOL_MAX_DEFAULT,
    };
    int r = check_settings(&settings, main_loop_properties, err);

    if (r < 0)
        return r;
    state->settings = settings;
    state->loop = loop_current();
    LoopOptions loop_options = settings_to_options(&settings);
    loop_set_options(state->loop, &loop_options);
    return 0;
}

static bool never_deleted(Object *object)
{
    return false;
}

const ObjectKind object_kind_iothread = {
    .name = "iothread",
    .state_size = sizeof(LoopState),
    .create = iothread_create,
    .destroy = iothread_destroy,
    .properties = iothread_properties,
};

const ObjectKind object_kind_main_loop = {
    .name = "main-loop",
    .state_size = sizeof(LoopState),
    .single = true,
    .create = main_loop_create,
    .can_be_deleted = never_deleted,
    .properties = main_loop_properties,
};

Loop *iothread_loop(Object *object)
{
    LoopState *state = object_state(object, &object_kind_iothread);

    return state ? state->loop : NULL;
}

typedef struct Listing {
    IOThreadInfoList list;
    size_t capacity;
} Listing;

static bool add_info(Object *object, void *arg)
{
    const LoopState *state = object_state(object, &object_kind_iothread);
    Listing *listing = arg;
    IOThreadInfo *info;

    if (!state)
        return true;
    info = mem_new(IOThreadInfo);
    info->id = str_dup(object_id(object));
    info->thread_id = loop_thread_id(state->loop);
    info->poll_max_ns = state->settings.poll_max_ns;
    info->poll_grow = state->settings.poll_grow;
    info->poll_shrink = state->settings.poll_shrink;
    info->aio_max_batch = state->settings.aio_max_batch;
    VEC_GROW(listing->list.items, listing->list.count, listing->capacity);
    listing->list.items[listing->list.count++] = info;
    return true;
}

int qmp_query_iothreads(IOThreadInfoList *ret_result, Error *err)
{
    Listing listing = {0};

    object_foreach(add_info, &listing);
    *ret_result = listing.list;
    return 0;
}
