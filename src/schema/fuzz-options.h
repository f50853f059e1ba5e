/* SPDX-License-Identifier: Apache-2.0 */
/* What fuzz targets share that set up nodes and exports as users do. */
#pragma once

#include "generated/types.h"
#include "schema/json.h"
#include "schema/visit.h"

#include <stdio.h>
#include <stdlib.h>

/* Ends the process: an error here is a defect of the target. */
static inline void require(int r, Error *err)
{
    if (r >= 0)
        return;
    fprintf(stderr, "%s\n", err->message ? err->message : "failed");
    abort();
}

/* The generated struct that text describes; the caller's. */
static inline void *options_from(const SchemaType *type, const char *json)
{
    AUTO_ERROR Error err = ERROR_INIT;
    AUTO_JSON JsonValue *value = NULL;
    void *options = NULL;

    require(json_parse(json, &value, &err), &err);
    require(schema_from_json(type, value, SCHEMA_JSON, &options, &err), &err);
    return options;
}
