# SPDX-License-Identifier: Apache-2.0
"""commands.{h,c}: one function per QMP command and the table that finds it; events.{h,c}: one sender per event."""

from . import names
from .types import BANNER, list_name


class Commands:
    def __init__(self, schema, types):
        self.schema, self.types = schema, types

    def function(self, command):
        return 'qmp_' + names.identifier(command.name)

    def result_type(self, command):
        """The C type of what the handler writes to, or None."""
        if command.returns is None:
            return None
        if isinstance(command.returns, list):
            return list_name(command.returns[0]) + ' '
        return self.types.storage(command.returns)

    def prototype(self, command):
        if not command.generated:
            return f'int {self.function(command)}(const JsonValue *args, JsonValue **ret_result, Error *err);'
        parameters = []
        if command.arg:
            parameters.append(f'const {command.arg} *arg')
        if command.returns is not None:
            parameters.append(f'{self.result_type(command)}*ret_result')
        return f'int {self.function(command)}({", ".join(parameters + ["Error *err"])});'

    def header(self):
        lines = [BANNER, '#pragma once\n', '#include "generated/types.h"\n#include "schema/command.h"\n',
                 '/* Written by hand, each in the folder of its subject. They run in a coroutine of the main loop. */']
        lines += [self.prototype(command) for command in self.schema.commands]
        return '\n'.join(lines) + '\n'

    def source(self):
        commands = self.schema.commands
        parts = [BANNER, '#include "generated/commands.h"\n']
        parts += [self.runner(command) for command in commands if command.generated]
        rows = ''.join(self.row(command) for command in sorted(commands, key=lambda c: c.name))
        parts.append(f'const QmpCommand qmp_commands[] = {{\n{rows}}};\nconst size_t qmp_commands_count = {len(commands)};\n')
        return '\n'.join(parts)

    def row(self, command):
        run = 'run_' + names.identifier(command.name) if command.generated else self.function(command)
        return f'    {{{names.literal(command.name)}, {run}}},\n'

    def runner(self, command):
        """Arguments from JSON, the call, the result to JSON."""
        call, body = [], []
        arg = command.arg or 'Empty'
        body.append(f'    CLEANUP(schema_call_done) SchemaCall call = {{.type = &schema_type_{arg}}};')
        if command.returns is not None:
            zero = '{0}' if isinstance(command.returns, list) else '0'
            body.append(f'    {self.result_type(command)}result = {zero};')
        body += ['    int r = schema_call_begin(&call, args, err);\n', '    if (r < 0)\n        return r;']
        if command.arg:
            call.append('call.arg')
        if command.returns is not None:
            call.append('&result')
        body += [f'    r = {self.function(command)}({", ".join(call + ["err"])});', '    if (r < 0)\n        return r;']
        if command.returns is None:
            body.append('    *ret_result = json_object_new();')
        else:
            body.append(f'    *ret_result = schema_call_result(&{self.types.descriptor(command.returns)}, &result);')
        body.append('    return 0;')
        return (f'static int run_{names.identifier(command.name)}(const JsonValue *args, JsonValue **ret_result, '
                'Error *err)\n{\n' + '\n'.join(body) + '\n}\n')


class Events:
    def __init__(self, schema):
        self.schema = schema

    def prototype(self, event):
        data = f'const {event.arg} *data' if event.arg else 'void'
        return f'void event_{names.identifier(event.name.lower())}({data})'

    def header(self):
        lines = [BANNER, '#pragma once\n', '#include "generated/types.h"\n']
        lines += [self.prototype(event) + ';' for event in self.schema.events]
        return '\n'.join(lines) + '\n'

    def source(self):
        return '\n'.join([BANNER, '#include "generated/events.h"\n#include "schema/event.h"\n']
                         + [self.sender(event) for event in self.schema.events])

    def sender(self, event):
        data = f'schema_to_json(&schema_type_{event.arg}, data)' if event.arg else 'NULL'
        return f'{self.prototype(event)}\n{{\n    event_emit({names.literal(event.name)}, {data});\n}}\n'
