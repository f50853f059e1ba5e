#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Makes C from the schema of the control protocol: schema-gen.py --output FOLDER FRAGMENT...

Writes types.{h,c}, commands.{h,c}, events.{h,c}, introspect.c and registry.c. A file whose text did not change is left
alone, so that little is compiled again.
"""

import argparse
import os
import sys

from schemagen import introspect, registry
from schemagen.commands import Commands, Events
from schemagen.model import Schema
from schemagen.source import SchemaError, read_file
from schemagen.types import Types


def generate(fragments):
    """file name -> text"""
    schema = Schema([expression for path in fragments for expression in read_file(path)])
    types = Types(schema)
    commands, events = Commands(schema, types), Events(schema)
    return {
        'types.h': types.header(), 'types.c': types.source(),
        'commands.h': commands.header(), 'commands.c': commands.source(),
        'events.h': events.header(), 'events.c': events.source(),
        'introspect.c': introspect.Introspection(schema).source(), 'registry.c': registry.source(schema),
    }


def write_if_changed(path, text):
    try:
        with open(path, encoding='utf-8') as file:
            if file.read() == text:
                return
    except FileNotFoundError:
        pass
    with open(path, 'w', encoding='utf-8') as file:
        file.write(text)


def main():
    parser = argparse.ArgumentParser(description='Makes C from schema fragments.')
    parser.add_argument('--output', required=True, help='folder for the generated files')
    parser.add_argument('fragments', nargs='+')
    arguments = parser.parse_args()
    try:
        files = generate(arguments.fragments)
    except (SchemaError, OSError) as error:
        sys.exit(f'schema-gen: {error}')
    for name, text in files.items():
        write_if_changed(os.path.join(arguments.output, name), text)


if __name__ == '__main__':
    main()
