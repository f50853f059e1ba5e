/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The list of monitors: each has a coroutine that waits for clients of its character device and serves them
 * one after the other. Events are stamped here and go to every session.
 */
#include "monitor/monitor.h"

#include "generated/trace.h"
#include "generated/types.h"
#include "monitor/monitor-priv.h"
#include "schema/event.h"

#include <time.h>

static List monitors = LIST_INIT(monitors);

/* ---- Events ---- */

static JsonValue *timestamp_now(void)
{
    JsonValue *stamp = json_object_new();
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    json_object_put(stamp, "seconds", json_int_new(now.tv_sec));
    json_object_put(stamp, "microseconds", json_int_new(now.tv_nsec / 1000));
    return stamp;
}

static void deliver_event(const char *name, JsonValue *take_data)
{
    AUTO_JSON JsonValue *event = json_object_new();

    trace_monitor_event(name);
    json_object_put(event, "timestamp", timestamp_now());
    json_object_put(event, "event", json_string_new(name));
    if (take_data)
        json_object_put(event, "data", take_data);
    sessions_send_event(event);
}

void monitors_init(void (*quit)(void))
{
    qmp_set_quit_handler(quit);
    event_set_sink(deliver_event);
}

/* ---- Monitors ---- */

static void serve_clients(void *opaque)
{
    Monitor *monitor = opaque;

    while (chardev_open_wait(monitor->chardev) == 0)
        session_serve(monitor);
}

int monitor_add(const MonitorOptions *options, Error *err)
{
    Chardev *chardev;
    Monitor *monitor;
    int r;

    r = chardev_attach(options->chardev, &chardev, err);
    if (r < 0)
        return r;
    if (options->has_mode && options->mode != MONITOR_MODE_CONTROL) {
        chardev_detach(chardev);
        return err_set(err, -EINVAL, "Only QMP is supported");
    }

    monitor = mem_new(Monitor);
    monitor->id = str_dup(options->id ? options->id : options->chardev);
    monitor->chardev = chardev;
    monitor->pretty = options->pretty;
    co_group_init(&monitor->group);
    list_append(&monitors, &monitor->link);
    co_start(&monitor->group, "monitor", serve_clients, monitor);
    return 0;
}

void monitors_start(void)
{
    sessions_start_commands();
}

void monitors_end_commands(void)
{
    sessions_end_commands();
}

static void monitor_free(Monitor *monitor)
{
    if (monitor->session)
        session_flush(monitor->session);
    co_group_cancel(&monitor->group);
    co_group_join(&monitor->group);
    chardev_detach(monitor->chardev);
    list_remove(&monitor->link);
    free(monitor->id);
    free(monitor);
}

void monitors_close(void)
{
    LIST_FOREACH_SAFE (link, &monitors)
        monitor_free(LIST_ENTRY(link, Monitor, link));
    event_set_sink(NULL);
}
