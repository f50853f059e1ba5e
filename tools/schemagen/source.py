# SPDX-License-Identifier: Apache-2.0
"""Reads schema files: text -> expressions.

The language is QAPI's: JSON with single-quoted strings, `#` comments, and `##` blocks that document the expression
that follows them. An expression is a dict; what its keys mean is the business of model.py.
"""

import re

TOKEN = re.compile(r"""
    (?P<space>[ \t\r]+) | (?P<newline>\n) | (?P<doc>\#\#[ \t]*\n(?:[ \t]*\#.*\n)*?[ \t]*\#\#[ \t]*\n) |
    (?P<comment>\#.*) | (?P<punctuation>[{}\[\]:,]) | '(?P<string>[^'\\\n]*)' | (?P<word>true|false)\b
    """, re.VERBOSE)


class SchemaError(Exception):
    """A mistake in a schema file; says where."""

    def __init__(self, where, message):
        super().__init__(f'{where}: {message}')


class Where:
    """A place in a schema file."""

    def __init__(self, path, line):
        self.path, self.line = path, line

    def __str__(self):
        return f'{self.path}:{self.line}'


class Expression:
    """One top-level expression with its documentation and place."""

    def __init__(self, data, doc, where):
        self.data, self.doc, self.where = data, doc, where


def tokenize(path, text):
    """Yields (kind, value, Where)."""
    line, position = 1, 0
    while position < len(text):
        match = TOKEN.match(text, position)
        where = Where(path, line)
        if not match:
            raise SchemaError(where, f'cannot read {text[position:position + 20]!r}')
        kind, value = match.lastgroup, match.group(match.lastgroup)
        line += match.group().count('\n')
        position = match.end()
        if kind not in ('space', 'newline', 'comment'):
            yield kind, value, where
    yield 'end', '', Where(path, line)


class Parser:
    """Recursive descent over the tokens of one file."""

    def __init__(self, path, text):
        self.tokens = list(tokenize(path, text))
        self.position = 0

    def next(self):
        token = self.tokens[self.position]
        self.position += 1
        return token

    def peek(self):
        return self.tokens[self.position][:2]

    def expect(self, punctuation):
        kind, value, where = self.next()
        if (kind, value) != ('punctuation', punctuation):
            raise SchemaError(where, f"expected '{punctuation}', found '{value or kind}'")

    def skip_docs(self):
        while self.peek()[0] == 'doc':
            self.next()

    def value(self):
        self.skip_docs()
        kind, value, where = self.next()
        if kind == 'string':
            return value
        if kind == 'word':
            return value == 'true'
        if value == '{':
            return self.object(where)
        if value == '[':
            return self.array()
        raise SchemaError(where, f"expected a value, found '{value or kind}'")

    def array(self):
        items = []
        while self.peek() != ('punctuation', ']'):
            items.append(self.value())
            if self.peek() != ('punctuation', ']'):
                self.expect(',')
        self.next()
        return items

    def object(self, where):
        members = {}
        while self.peek() != ('punctuation', '}'):
            kind, key, key_where = self.next()
            if kind != 'string':
                raise SchemaError(key_where, f"expected a quoted key, found '{key or kind}'")
            if key in members:
                raise SchemaError(key_where, f"key '{key}' appears twice")
            self.expect(':')
            members[key] = self.value()
            if self.peek() != ('punctuation', '}'):
                self.expect(',')
        self.next()
        return members

    def expressions(self):
        doc = None
        while True:
            kind, value, where = self.next()
            if kind == 'end':
                return
            if kind == 'doc':
                doc = clean_doc(value)
                continue
            if value != '{':
                raise SchemaError(where, f"expected '{{' at the start of an expression, found '{value or kind}'")
            yield Expression(self.object(where), doc, where)
            doc = None


def clean_doc(block):
    """The text of a `##` block without its comment signs."""
    lines = [line.strip().removeprefix('#').removeprefix(' ') for line in block.strip().split('\n')[1:-1]]
    return '\n'.join(lines)


def read_file(path):
    with open(path, encoding='utf-8') as file:
        return list(Parser(path, file.read()).expressions())
