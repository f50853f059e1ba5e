/* SPDX-License-Identifier: Apache-2.0 */
#include "schema/event.h"

static EventSink *event_sink;

void event_set_sink(EventSink *sink)
{
    event_sink = sink;
}

void event_emit(const char *name, JsonValue *take_data)
{
    if (event_sink)
        event_sink(name, take_data);
    else
        json_free(take_data);
}
