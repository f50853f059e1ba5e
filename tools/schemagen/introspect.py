# SPDX-License-Identifier: Apache-2.0
"""introspect.c: the answer to query-qmp-schema, as text.

The form is documented with QAPI ("Client JSON Protocol introspection"): commands and events by name, types by numbers
handed out in the order of first use, integer types as plain int, only types that a command or event reaches.
"""

import json

from . import names
from .model import BUILTINS, Alternate, Command, Enum
from .types import BANNER

EMPTY = object()  # the type of no arguments and no result


class Introspection:
    def __init__(self, schema):
        self.schema = schema
        self.numbers, self.queue, self.seen = {}, [], set()

    def tree(self):
        result = [self.entry(entity) for entity in self.schema.order]
        position = 0
        while position < len(self.queue):
            result.append(self.type_entry(self.queue[position]))
            position += 1
        return result

    def number(self, name):
        return self.numbers.setdefault(name, str(len(self.numbers)))

    def use(self, type_):
        """The name under which a type is shown; notes that it has to be described."""
        if isinstance(type_, list) and type_[0] in BUILTINS and BUILTINS[type_[0]][2] == 'int':
            type_ = ['int']
        elif type_ in BUILTINS if isinstance(type_, str) else False:
            type_ = 'int' if BUILTINS[type_][2] == 'int' else type_
        key = type_[0] + '[]' if isinstance(type_, list) else type_
        if key not in self.seen:
            self.seen.add(key)
            self.queue.append(type_)
        if isinstance(type_, list):
            return '[' + self.use(type_[0]) + ']'
        return type_ if type_ in BUILTINS else self.number(type_)

    def entry(self, entity):
        arg = self.use(entity.arg if entity.arg else EMPTY)
        if isinstance(entity, Command):
            shown = {'name': entity.name, 'ret-type': self.use(EMPTY if entity.returns is None else entity.returns),
                     'meta-type': 'command', 'arg-type': arg}
            if entity.allow_oob:
                shown['allow-oob'] = True
        else:
            shown = {'name': entity.name, 'meta-type': 'event', 'arg-type': arg}
        return with_features(shown, entity)

    def type_entry(self, type_):
        if isinstance(type_, list):
            element = self.use(type_[0])
            return {'name': f'[{element}]', 'element-type': element, 'meta-type': 'array'}
        if type_ is EMPTY:
            return {'name': self.number(EMPTY), 'members': [], 'meta-type': 'object'}
        if type_ in BUILTINS:
            return {'name': type_, 'json-type': BUILTINS[type_][2], 'meta-type': 'builtin'}
        entity = self.schema.types[type_]
        shown = {'name': self.number(type_)}
        if isinstance(entity, Enum):
            shown['members'] = [with_features({'name': value.name}, value) for value in entity.values]
            shown['meta-type'] = 'enum'
            shown['values'] = [value.name for value in entity.values]
        elif isinstance(entity, Alternate):
            shown['members'] = [{'type': self.use(choice.type)} for choice in entity.choices]
            shown['meta-type'] = 'alternate'
        else:
            self.fill_object(shown, entity)
        return with_features(shown, entity)

    def fill_object(self, shown, struct):
        shown['members'] = [self.member(member) for member in struct.members]
        if struct.is_union:
            shown['tag'] = struct.discriminator
            shown['variants'] = [
                {'case': value.name, 'type': self.use(struct.branches.get(value.name) or EMPTY)}
                for value in self.schema.discriminator_enum(struct).values]
        shown['meta-type'] = 'object'

    def member(self, member):
        shown = {'name': member.name}
        if member.optional:
            shown['default'] = None
        shown['type'] = self.use(member.type)
        return with_features(shown, member)

    def source(self):
        entries = [json.dumps(entry) for entry in self.tree()]
        lines = '\n'.join('    ' + names.literal(entry + (', ' if i + 1 < len(entries) else ''))
                          for i, entry in enumerate(entries))
        return (f'{BANNER}\n#include "schema/command.h"\n\nconst char *schema_introspection_json(void)\n{{\n'
                f'    static const char text[] =\n    "["\n{lines}\n    "]";\n\n    return text;\n}}\n')


def with_features(shown, thing):
    if thing.features:
        shown['features'] = thing.features
    return shown
