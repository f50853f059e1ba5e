#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes trace.h and trace.c from `trace-events` files.

A line declares one event: name(type argument, ...) "format". The format may be several string literals and PRI macros.
Blank lines and lines that start with # are left out.
"""

import argparse
import pathlib
import re
import sys

EVENT = re.compile(r'(?P<name>[a-z][a-z0-9_]*)\((?P<args>[^)]*)\)\s+(?P<format>".+)$')
ARGUMENT = re.compile(r'(?P<type>.*[\s*])(?P<name>[a-z_][a-z0-9_]*)$')
MAX_ARGUMENTS = 12  # what sys/sdt.h has probes for


class Event:
    def __init__(self, name, args, text):
        self.name = name
        self.args = args  # [(type, name)]
        self.format = text

    @property
    def declaration(self):
        return ', '.join(f'{kind}{name}' for kind, name in self.args) or 'void'

    @property
    def values(self):
        return ''.join(f', {name}' for _, name in self.args)


def parse_arguments(text):
    if text.strip() in ('', 'void'):
        return []
    args = []
    for part in text.split(','):
        match = ARGUMENT.match(part.strip())
        if not match:
            raise ValueError(f"argument '{part.strip()}' is not 'type name'")
        args.append((match['type'], match['name']))
    if len(args) > MAX_ARGUMENTS:
        raise ValueError(f'more than {MAX_ARGUMENTS} arguments')
    return args


def parse_file(path):
    for number, line in enumerate(path.read_text().splitlines(), 1):
        line = line.strip()
        if not line or line.startswith('#'):
            continue
        match = EVENT.match(line)
        try:
            if not match:
                raise ValueError('expected name(type argument, ...) "format"')
            yield Event(match['name'], parse_arguments(match['args']), match['format'])
        except ValueError as error:
            sys.exit(f'{path}:{number}: {error}')


def header(events, usdt):
    out = ['/* Made by tools/trace-gen.py from the trace-events files. */', '#pragma once', '',
           '#include "base/trace.h"', '', '#include <inttypes.h>']
    if usdt:
        out.append('#include <sys/sdt.h>')
    out += ['', 'enum {']
    out += [f'    TRACE_ID_{event.name},' for event in events]
    out += ['    TRACE_ID__COUNT', '};', '']
    for event in events:
        out.append(f'static inline void trace_{event.name}({event.declaration})')
        out.append('{')
        if usdt:
            suffix = str(len(event.args)) if event.args else ''
            out.append(f'    DTRACE_PROBE{suffix}(granary, {event.name}{event.values});')
        out.append(f'    if (UNLIKELY(trace_enabled[TRACE_ID_{event.name}]))')
        out.append(f'        trace_log("{event.name} " {event.format}{event.values});')
        out += ['}', '']
    return '\n'.join(out)


def source(events):
    out = ['/* Made by tools/trace-gen.py from the trace-events files. */', '#include "trace.h"', '',
           'uint8_t trace_enabled[TRACE_ID__COUNT + 1];',
           'const unsigned trace_count = TRACE_ID__COUNT;',
           'const char *const trace_names[] = {']
    out += [f'    "{event.name}",' for event in events]
    out += ['    NULL,', '};', '']
    return '\n'.join(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--output', type=pathlib.Path, required=True, help='folder for trace.h and trace.c')
    parser.add_argument('--usdt', action='store_true', help='make static user probes, too')
    parser.add_argument('inputs', nargs='*', type=pathlib.Path)
    args = parser.parse_args()

    events = sorted((event for path in args.inputs for event in parse_file(path)), key=lambda event: event.name)
    for first, second in zip(events, events[1:]):
        if first.name == second.name:
            sys.exit(f"trace event '{first.name}' is declared twice")
    (args.output / 'trace.h').write_text(header(events, args.usdt))
    (args.output / 'trace.c').write_text(source(events))


main()
