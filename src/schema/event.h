/* SPDX-License-Identifier: Apache-2.0 */
/* Events on their way from whoever has news to the monitors. Main loop only. */
#pragma once

#include "schema/json.h"

/* Takes data (an object, or NULL for an event without data). */
typedef void EventSink(const char *name, JsonValue *take_data);

/* Where events go; NULL: nowhere. */
void event_set_sink(EventSink *sink);
/* Called by the generated event_x() functions. */
void event_emit(const char *name, JsonValue *take_data);
