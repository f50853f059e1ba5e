# SPDX-License-Identifier: Apache-2.0
"""The schema as a graph of entities: expressions -> checked Schema.

`branch` expressions are merged into their union (and its discriminator's enum) here, so that everything after this
module sees a union as if it had been written in one place.
"""

from dataclasses import dataclass, field

from . import names
from .source import SchemaError

# name -> (C type, kind of the descriptor, type in JSON)
BUILTINS = {
    'str': ('char *', 'STRING', 'string'), 'bool': ('bool', 'BOOL', 'boolean'), 'number': ('double', 'NUMBER', 'number'),
    'int': ('int64_t', 'INT64', 'int'), 'int8': ('int8_t', 'INT8', 'int'), 'int16': ('int16_t', 'INT16', 'int'),
    'int32': ('int32_t', 'INT32', 'int'), 'int64': ('int64_t', 'INT64', 'int'), 'uint8': ('uint8_t', 'UINT8', 'int'),
    'uint16': ('uint16_t', 'UINT16', 'int'), 'uint32': ('uint32_t', 'UINT32', 'int'),
    'uint64': ('uint64_t', 'UINT64', 'int'), 'size': ('uint64_t', 'SIZE', 'int'), 'any': ('JsonValue *', 'ANY', 'value'),
    'null': (None, 'NULL', 'null'),
}

# What each expression may hold besides its own name.
KEYS = {
    'enum': {'data', 'features'}, 'struct': {'data', 'base', 'features'},
    'union': {'data', 'base', 'discriminator', 'features', 'registry'}, 'alternate': {'data', 'features'},
    'command': {'data', 'returns', 'boxed', 'gen', 'features', 'allow-oob', 'allow-preconfig', 'coroutine',
                'success-response'},
    'event': {'data', 'boxed', 'features'}, 'branch': {'tag', 'data', 'features'},
}


@dataclass
class Member:
    name: str
    type: object  # a type's name, or [name] for a list
    optional: bool = False
    features: list = field(default_factory=list)

    @property
    def c_name(self):
        return names.identifier(self.name)

    @property
    def is_list(self):
        return isinstance(self.type, list)

    @property
    def element(self):
        return self.type[0] if self.is_list else self.type


@dataclass
class EnumValue:
    name: str
    features: list = field(default_factory=list)


@dataclass
class Entity:
    name: str
    where: object
    doc: str = None
    features: list = field(default_factory=list)


@dataclass
class Enum(Entity):
    values: list = field(default_factory=list)


@dataclass
class Struct(Entity):
    """A struct, or a union when it has a discriminator."""
    base: object = None
    own: list = field(default_factory=list)
    discriminator: str = None
    branches: dict = field(default_factory=dict)  # tag -> type name
    registry: str = None
    members: list = field(default_factory=list)  # base's and own, set by Schema.resolve

    @property
    def is_union(self):
        return self.discriminator is not None


@dataclass
class Alternate(Entity):
    choices: list = field(default_factory=list)  # Member


@dataclass
class Command(Entity):
    arg: str = None
    returns: object = None
    generated: bool = True
    allow_oob: bool = False


@dataclass
class Event(Entity):
    arg: str = None


class Schema:
    """All entities, by name and in order."""

    def __init__(self, expressions):
        self.types, self.commands, self.events, self.branches = {}, [], [], []
        self.order = []  # commands and events as written
        for expression in expressions:
            self.add(expression)
        for branch in self.branches:
            self.merge_branch(branch)
        for entity in list(self.types.values()):
            self.resolve(entity)
        for entity in self.order:
            self.check_use(entity)

    # -- reading expressions --

    def add(self, expression):
        kinds = [key for key in expression.data if key in KEYS]
        if len(kinds) != 1:
            raise SchemaError(expression.where, 'an expression needs exactly one of ' + ', '.join(KEYS))
        kind = kinds[0]
        unknown = set(expression.data) - KEYS[kind] - {kind}
        if unknown:
            raise SchemaError(expression.where, f"unknown key '{sorted(unknown)[0]}' in {kind}")
        getattr(self, 'add_' + kind)(expression.data, expression)

    def common(self, name, expression):
        return {'name': name, 'where': expression.where, 'doc': expression.doc,
                'features': feature_names(expression.data.get('features', []))}

    def add_type(self, entity):
        if entity.name in self.types or entity.name in BUILTINS:
            raise SchemaError(entity.where, f"type '{entity.name}' is defined twice")
        self.types[entity.name] = entity

    def add_enum(self, data, expression):
        values = [EnumValue(v) if isinstance(v, str) else EnumValue(v['name'], feature_names(v.get('features', [])))
                  for v in data['data']]
        self.add_type(Enum(values=values, **self.common(data['enum'], expression)))

    def add_struct(self, data, expression):
        self.add_type(Struct(base=data.get('base'), own=members_of(data.get('data', {}), expression.where),
                             **self.common(data['struct'], expression)))

    def add_union(self, data, expression):
        if 'base' not in data or 'discriminator' not in data:
            raise SchemaError(expression.where, 'a union needs base and discriminator')
        base, own = data['base'], []
        if isinstance(base, dict):
            base, own = None, members_of(base, expression.where)
        self.add_type(Struct(base=base, own=own, discriminator=data['discriminator'],
                             branches={tag: branch_type(b) for tag, b in data.get('data', {}).items()},
                             registry=data.get('registry'), **self.common(data['union'], expression)))

    def add_alternate(self, data, expression):
        self.add_type(Alternate(choices=members_of(data['data'], expression.where),
                                **self.common(data['alternate'], expression)))

    def add_branch(self, data, expression):
        self.branches.append((data, expression))

    def argument(self, data, suffix, expression):
        """The name of the type that holds a command's or event's data; makes one for inline members."""
        arg, name = data.get('data'), data.get('command') or data.get('event')
        if isinstance(arg, dict):
            if not arg:
                return None
            struct = Struct(name=names.camel(name) + suffix, where=expression.where,
                            own=members_of(arg, expression.where))
            self.add_type(struct)
            return struct.name
        return arg

    def add_command(self, data, expression):
        command = Command(arg=self.argument(data, 'Arg', expression), returns=data.get('returns'),
                          generated=data.get('gen', True), allow_oob=data.get('allow-oob', False),
                          **self.common(data['command'], expression))
        self.commands.append(command)
        self.order.append(command)

    def add_event(self, data, expression):
        event = Event(arg=self.argument(data, 'Event', expression), **self.common(data['event'], expression))
        self.events.append(event)
        self.order.append(event)

    # -- resolving --

    def merge_branch(self, branch):
        data, expression = branch
        union = self.types.get(data['branch'])
        if not isinstance(union, Struct) or not union.is_union:
            raise SchemaError(expression.where, f"branch of '{data['branch']}', which is not a union")
        tag = data['tag']
        if tag in union.branches:
            raise SchemaError(expression.where, f"union '{union.name}' has two branches '{tag}'")
        union.branches[tag] = data.get('data')
        enum = self.discriminator_enum(union)
        if tag not in [value.name for value in enum.values]:
            enum.values.append(EnumValue(tag, feature_names(data.get('features', []))))

    def all_members(self, struct):
        inherited = self.all_members(self.struct(struct.base, struct.where)) if struct.base else []
        return inherited + struct.own

    def struct(self, name, where):
        entity = self.types.get(name)
        if not isinstance(entity, Struct):
            raise SchemaError(where, f"'{name}' is not a struct or union")
        return entity

    def discriminator_enum(self, union):
        for member in self.all_members(union):
            if member.name == union.discriminator:
                enum = self.types.get(member.type) if isinstance(member.type, str) else None
                if isinstance(enum, Enum):
                    return enum
        raise SchemaError(union.where, f"discriminator '{union.discriminator}' is not a member of an enum type")

    def resolve(self, entity):
        if isinstance(entity, Struct):
            entity.members = self.all_members(entity)
            self.check_struct(entity)
        elif isinstance(entity, Alternate):
            for choice in entity.choices:
                self.check_type(choice.type, entity.where)
            self.check_alternate(entity)
        else:
            check_unique([value.name for value in entity.values], entity)

    def check_struct(self, struct):
        check_unique([member.c_name for member in struct.members], struct)
        for member in struct.members:
            self.check_type(member.type, struct.where)
        if struct.is_union:
            known = [value.name for value in self.discriminator_enum(struct).values]
            for tag, name in struct.branches.items():
                if tag not in known:
                    raise SchemaError(struct.where, f"branch '{tag}' is not a value of the discriminator's enum")
                if name is not None:
                    branch = self.struct(name, struct.where)
                    check_unique([m.name for m in struct.members + self.all_members(branch)], struct)

    def check_alternate(self, alternate):
        seen = set()
        for choice in alternate.choices:
            kind = self.json_type(choice.type)
            if kind in seen:
                raise SchemaError(alternate.where, f"alternate has two choices that are '{kind}' in JSON")
            seen.add(kind)

    def check_type(self, name, where):
        name = name[0] if isinstance(name, list) else name
        if name not in self.types and name not in BUILTINS:
            raise SchemaError(where, f"unknown type '{name}'")

    def check_use(self, entity):
        if entity.arg is not None:
            self.struct(entity.arg, entity.where)
        if isinstance(entity, Command) and entity.returns is not None:
            self.check_type(entity.returns, entity.where)

    # -- questions --

    def json_type(self, name):
        """What a value of the type is in JSON text, as an alternate tells its choices apart."""
        if isinstance(name, list):
            return 'array'
        if name in BUILTINS:
            return {'int': 'number'}.get(BUILTINS[name][2], BUILTINS[name][2])
        return 'string' if isinstance(self.types[name], Enum) else 'object'

    def is_pointer(self, name):
        """Whether a member of the (non-list) type is a pointer in C."""
        return name in ('str', 'any') or isinstance(self.types.get(name), (Struct, Alternate))

    def is_empty(self, struct):
        return not struct.members and not struct.is_union


def feature_names(features):
    return [feature if isinstance(feature, str) else feature['name'] for feature in features]


def branch_type(branch):
    return branch if isinstance(branch, str) else branch['type']


def members_of(data, where):
    members = []
    for name, spec in data.items():
        features = []
        if isinstance(spec, dict):
            spec, features = spec['type'], feature_names(spec.get('features', []))
        if not isinstance(spec, (str, list)) or isinstance(spec, list) and len(spec) != 1:
            raise SchemaError(where, f"member '{name}' needs a type")
        members.append(Member(name.removeprefix('*'), spec, name.startswith('*'), features))
    return members


def check_unique(items, entity):
    seen = set()
    for item in items:
        if item in seen:
            raise SchemaError(entity.where, f"'{entity.name}' has '{item}' twice")
        seen.add(item)
