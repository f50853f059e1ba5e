# SPDX-License-Identifier: Apache-2.0
"""The schema generator: what it accepts, what it refuses and how it says so, what it makes."""

import os
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), '..', 'tools'))

from schemagen import names, registry  # noqa: E402
from schemagen.commands import Commands  # noqa: E402
from schemagen.introspect import Introspection  # noqa: E402
from schemagen.model import Schema  # noqa: E402
from schemagen.source import Parser, SchemaError  # noqa: E402
from schemagen.types import Types  # noqa: E402

UNION = """
{ 'enum': 'Kind', 'data': [ 'a' ] }
{ 'struct': 'A', 'data': { 'x': 'int', '*y': 'str' } }
{ 'union': 'Options', 'base': { 'kind': 'Kind' }, 'discriminator': 'kind', 'registry': 'driver', 'data': { 'a': 'A' } }
"""


def schema(text):
    return Schema(list(Parser('test.json', text).expressions()))


class Reading(unittest.TestCase):
    def refuses(self, text, message):
        with self.assertRaises(SchemaError) as caught:
            schema(text)
        self.assertIn(message, str(caught.exception))

    def test_comments_and_docs(self):
        made = schema("# a comment\n##\n# What it is.\n#\n# @x: more\n##\n{ 'struct': 'S', 'data': {} } # end\n")
        self.assertEqual(made.types['S'].doc, 'What it is.\n\n@x: more')

    def test_place_of_an_error(self):
        self.refuses("{ 'struct': 'S',\n  'data': { 'x' 'int' } }", "test.json:2: expected ':', found 'int'")
        self.refuses('{ "struct": 1 }', 'test.json:1: cannot read')

    def test_mistakes(self):
        self.refuses("{ 'struct': 'S', 'data': { 'x': 'nope' } }", "unknown type 'nope'")
        self.refuses("{ 'struct': 'S', 'data': {}, 'dta': {} }", "unknown key 'dta' in struct")
        self.refuses("{ 'struct': 'S', 'data': {} } { 'enum': 'S', 'data': [] }", 'defined twice')
        self.refuses("{ 'struct': 'S', 'data': { 'x': 'int', 'x': 'int' } }", "key 'x' appears twice")
        self.refuses("{ 'struct': 'S', 'data': { 'a-b': 'int', 'a_b': 'int' } }", "has 'a_b' twice")
        self.refuses("{ 'enum': 'E', 'data': [ 'a', 'a' ] }", "has 'a' twice")
        self.refuses("{ 'alternate': 'A', 'data': { 'a': 'int', 'b': 'number' } }", "two choices that are 'number'")
        self.refuses("{ 'command': 'c', 'data': 'int' }", "'int' is not a struct or union")
        self.refuses("{ 'branch': 'Nope', 'tag': 'x' }", 'not a union')
        self.refuses(UNION + "{ 'branch': 'Options', 'tag': 'a', 'data': 'A' }", "two branches 'a'")
        self.refuses(UNION + "{ 'struct': 'B', 'data': { 'kind': 'int' } }"
                     "{ 'branch': 'Options', 'tag': 'b', 'data': 'B' }", "has 'kind' twice")


class Making(unittest.TestCase):
    def test_names(self):
        self.assertEqual(names.snake('BlockdevOptionsQcow2'), 'blockdev_options_qcow2')
        self.assertEqual(names.snake('QCryptoSecretFormat'), 'qcrypto_secret_format')
        self.assertEqual(names.camel('BLOCK_EXPORT_DELETED'), 'BlockExportDeleted')
        self.assertEqual(names.camel('nbd-server-start'), 'NbdServerStart')
        self.assertEqual(names.identifier('unix'), 'unix_')
        self.assertEqual(names.constant('OnOffAuto', 'auto'), 'ON_OFF_AUTO_AUTO')

    def test_branch_extends_enum_union_and_registry(self):
        made = schema(UNION + "{ 'branch': 'Options', 'tag': 'b-c', 'data': 'A' }")
        self.assertEqual([value.name for value in made.types['Kind'].values], ['a', 'b-c'])
        self.assertIn('A b_c;', Types(made).header())
        self.assertEqual(registry.registries(made), {'driver': ['b-c']})
        self.assertIn('extern const Driver driver_b_c;', registry.source(made))

    def test_has_flags(self):
        header = Types(schema("{ 'struct': 'S', 'data': { '*i': 'int', '*s': 'str', '*l': [ 'str' ] } }")).header()
        self.assertIn('bool has_i;', header)
        self.assertNotIn('has_s', header)
        self.assertIn('bool has_l;', header)

    def test_commands(self):
        made = schema("{ 'struct': 'R', 'data': {} } { 'command': 'no-thing' }"
                      "{ 'command': 'do-it', 'data': { 'x': 'int' }, 'returns': [ 'R' ] }"
                      "{ 'command': 'raw', 'returns': 'any', 'gen': false }")
        header = Commands(made, Types(made)).header()
        self.assertIn('int qmp_no_thing(Error *err);', header)
        self.assertIn('int qmp_do_it(const DoItArg *arg, RList *ret_result, Error *err);', header)
        self.assertIn('int qmp_raw(const JsonValue *args, JsonValue **ret_result, Error *err);', header)

    def test_introspection_masks_types(self):
        made = schema(UNION + "{ 'command': 'c', 'data': 'Options', 'boxed': true, 'features': [ 'unstable' ] }")
        tree = Introspection(made).tree()
        self.assertEqual(tree[0], {'name': 'c', 'ret-type': '1', 'meta-type': 'command', 'arg-type': '0',
                                   'features': ['unstable']})
        self.assertEqual(tree[1], {'name': '0', 'members': [{'name': 'kind', 'type': '2'}], 'tag': 'kind',
                                   'variants': [{'case': 'a', 'type': '3'}], 'meta-type': 'object'})
        self.assertIn({'name': 'int', 'json-type': 'int', 'meta-type': 'builtin'}, tree)


if __name__ == '__main__':
    unittest.main()
