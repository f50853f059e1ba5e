/* SPDX-License-Identifier: Apache-2.0 */
/* QMP text in pieces: what is accepted must be written and read back to the same value. */
#include "schema/json.h"

#include "generated/types.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_value(void *opaque, JsonValue *take_value, const Error *err)
{
    AUTO_JSON JsonValue *value = take_value, *again = NULL;
    AUTO_ERROR Error parse_error = ERROR_INIT;
    AUTO_FREE char *text = NULL;
    BlockdevOptions *options;

    if (err) {
        AUTO_JSON JsonValue *message = json_string_new(err->message);

        text = json_text(message, false); /* a message may hold any bytes */
        return;
    }
    text = json_text(value, false);
    if (json_parse(text, &again, &parse_error) < 0 || !json_equal(value, again))
        abort();
    if (schema_from_json(&schema_type_BlockdevOptions, value, SCHEMA_JSON, &options, &parse_error) == 0)
        blockdev_options_free(options);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    CLEANUP(json_parser_free_ptr) JsonParser *parser = json_parser_new(check_value, NULL);
    size_t first = size ? data[0] % (size + 1) : 0;

    json_parser_feed(parser, data, first);
    json_parser_feed(parser, data + first, size - first);
    json_parser_end(parser);
    return 0;
}
