/* SPDX-License-Identifier: Apache-2.0 */
/* key=value text of the command line, on into options of every kind. */
#include "schema/keyval.h"

#include "generated/types.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void read_as(const SchemaType *type, const JsonValue *json)
{
    AUTO_ERROR Error err = ERROR_INIT;
    void *value;

    if (schema_from_json(type, json, SCHEMA_KEYVAL, &value, &err) < 0)
        return;
    json_free(schema_to_json(type, value));
    schema_free(type, value);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    AUTO_FREE char *text = str_ndup((const char *)data, size);
    AUTO_ERROR Error err = ERROR_INIT;
    AUTO_JSON JsonValue *json = NULL;
    bool help;

    if (keyval_parse(text, "driver", &json, &help, &err) < 0)
        return 0;
    read_as(&schema_type_BlockdevOptions, json);
    read_as(&schema_type_BlockdevCreateOptions, json);
    read_as(&schema_type_BlockExportOptions, json);
    read_as(&schema_type_ObjectOptions, json);
    read_as(&schema_type_NbdServerOptions, json);
    return 0;
}
