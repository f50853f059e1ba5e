# SPDX-License-Identifier: Apache-2.0
"""registry.c: finds the table of a leaf (driver, export kind, ...) by the name of its branch.

A union with 'registry': 'driver' lists `const Driver driver_NAME` of every branch that a leaf's own fragment adds.
"""

from . import names
from .types import BANNER


def registries(schema):
    """registry name -> sorted tags; several unions may share a registry."""
    found = {}
    for data, _ in schema.branches:
        registry = schema.types[data['branch']].registry
        if registry:
            found.setdefault(registry, set()).add(data['tag'])
    for entity in schema.types.values():
        if getattr(entity, 'registry', None):
            found.setdefault(entity.registry, set())
    return {name: sorted(tags) for name, tags in sorted(found.items())}


def registry_source(name, tags):
    c_type, symbols = names.camel(name), [f'{name}_{tag.replace("-", "_").replace(".", "_")}' for tag in tags]
    externs = ''.join(f'extern const {c_type} {symbol};\n' for symbol in symbols)
    rows = ''.join(f'    &{symbol},\n' for symbol in symbols)
    tag_rows = ''.join(f'    {names.literal(tag)},\n' for tag in tags)
    count = len(tags)
    return f'''typedef struct {c_type} {c_type};
const {c_type} *{name}_find(const char *name);
const {c_type} *const *{name}_list(size_t *ret_count);
{externs}
static const char *const {name}_names[] = {{
{tag_rows}    NULL,
}};
static const {c_type} *const {name}_tables[] = {{
{rows}    NULL,
}};

const {c_type} *{name}_find(const char *name)
{{
    int i = find(name, {name}_names, {count});

    return i < 0 ? NULL : {name}_tables[i];
}}

const {c_type} *const *{name}_list(size_t *ret_count)
{{
    *ret_count = {count};
    return {name}_tables;
}}
'''


HEAD = BANNER + '''
#include <stddef.h>
#include <string.h>

static int find(const char *name, const char *const *sorted, size_t count)
{
    size_t low = 0, high = count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(name, sorted[middle]);

        if (order == 0)
            return (int)middle;
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return -1;
}

'''


def source(schema):
    return HEAD + '\n'.join(registry_source(name, tags) for name, tags in registries(schema).items())
