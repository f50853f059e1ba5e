# SPDX-License-Identifier: Apache-2.0
"""Exports and the NBD server's commands."""

from lib.differential import Qmps, q


def export(ident, node, kind='nbd', **options):
    return q('block-export-add', type=kind, id=ident, node_name=node, **options)


def node(name, **options):
    return q('blockdev-add', driver='null-co', node_name=name, size=1 << 20, **options)


def start(address=None, **options):
    return q('nbd-server-start', addr=address or {'type': 'unix', 'data': {'path': 'n.sock'}}, **options)


LIST = q('query-block-exports')
GRAPH = q('x-debug-query-block-graph')

CASES = [
    Qmps(
        'nbd-server',
        lines=[
            q('nbd-server-stop'),
            start(),
            start(),
            q('nbd-server-stop'),
            q('nbd-server-stop'),
            start(),
            q('nbd-server-stop'),
            q('nbd-server-start'),
            q('nbd-server-start', addr={}),
            q('nbd-server-start', addr='n.sock'),
            start({'type': 'nope', 'data': {}}),
            start({'type': 'unix', 'data': {'path': 'missing/n.sock'}}),
            start({'type': 'unix', 'path': 'n.sock'}),
            start({'type': 'unix', 'data': {}}),
            start({'type': 'unix', 'data': {'path': 'y' * 200}}),
            start({'type': 'inet', 'data': {'host': '127.0.0.1', 'port': 'x'}}),
            start({'type': 'inet', 'data': {'host': '127.0.0.1'}}),
            start({'type': 'fd', 'data': {'str': '77'}}),
            start({'type': 'fd', 'data': {'str': 'abc'}}),
            start({'type': 'vsock', 'data': {'cid': 'x', 'port': '1'}}),
            start(tls_creds='nope'),
            start(tls_authz='nope'),
            start(max_connections=-1),
            start(max_connections='1'),
            start(nope=1),
            start({'type': 'inet', 'data': {'host': '127.0.0.1', 'port': '0'}}, max_connections=3),
            q('nbd-server-stop'),
        ],
    ),
    Qmps(
        'nbd-server-handshake-seconds',
        v10=True,
        lines=[
            start(handshake_max_seconds=-1),
            start(handshake_max_seconds='x'),
            start(handshake_max_seconds=5),
        ],
    ),
    Qmps(
        'nbd-server-without-creds',
        lines=[q('object-add', qom_type='iothread', id='t'), start(tls_creds='t'), start(tls_authz='t')],
    ),
    Qmps(
        'export-add',
        lines=[
            node('a'),
            node('b', **{'read-only': True}),
            export('e0', 'a'),
            start(),
            export('e0', 'a'),
            export('e0', 'a'),
            export('e1', 'a'),
            export('e2', 'a', name='second'),
            export('e3', 'nope'),
            export('e4', 'a', 'nope'),
            export('e5', 'b', writable=True),
            export('e6', 'b', name='ro'),
            export('e7', 'a', name='x' * 4096),
            export('e8', 'a', name='x' * 4097),
            export('e9', 'a', name='desc', description='d' * 4096),
            export('e10', 'a', name='desc2', description='d' * 4097),
            export('e11', 'a', name=''),
            export('e12', 'a', name='w', writable='yes'),
            export('e13', 'a', name='w', writable=True),
            export('e14', 'a', name='bm', bitmaps=['nope']),
            export('e15', 'a', name='ad', allocation_depth=True),
            export('e16', 'a', name='nope', nope=1),
            export('e17', 'a', name='it', iothread='nope'),
            export('e18', 'a', name='wt', writethrough=True),
            export('', 'a', name='i0'),
            export('1', 'a', name='i1'),
            export('a b', 'a', name='i2'),
            LIST,
            GRAPH,
        ],
    ),
    Qmps(
        'export-arguments',
        lines=[
            start(),
            q('block-export-add'),
            q('block-export-add', type='nbd'),
            q('block-export-add', type='nbd', id='e'),
            q('block-export-add', id='e', node_name='n'),
            q('block-export-add', type='nbd', id='e', node_name=''),
            q('block-export-add', type='nbd', id=3, node_name='n'),
            q('block-export-add', type=[], id='e', node_name='n'),
            q('block-export-del'),
            q('block-export-del', id='nope'),
            q('block-export-del', id='nope', mode='x'),
            q('block-export-del', id=''),
            LIST,
        ],
    ),
    Qmps(
        'export-del',
        lines=[
            node('a'),
            start(),
            export('e0', 'a'),
            q('blockdev-del', node_name='a'),
            q('block-export-del', id='e0'),
            ('BLOCK_EXPORT_DELETED', {'id': 'e0'}),
            q('block-export-del', id='e0'),
            export('e0', 'a'),
            q('block-export-del', id='e0', mode='hard'),
            ('BLOCK_EXPORT_DELETED', {'id': 'e0'}),
            LIST,
            q('blockdev-del', node_name='a'),
        ],
    ),
    Qmps(
        'export-server-stop',
        lines=[
            node('a'),
            node('b'),
            start(),
            export('ea', 'a'),
            export('eb', 'b'),
            LIST,
            q('nbd-server-stop'),
            ('BLOCK_EXPORT_DELETED', {'id': 'ea'}),
            LIST,
            export('ea', 'a'),
        ],
    ),
    Qmps('export-quit', lines=[node('a'), start(), export('e', 'a'), {'execute': 'quit'}]),
    Qmps(
        'export-iothread',
        lines=[
            q('object-add', qom_type='iothread', id='t'),
            node('a'),
            start(),
            export('e', 'a', iothread='t'),
            export('f', 'a', name='f', iothread='t', fixed_iothread=True),
            export('g', 'a', name='g', fixed_iothread=True),
            export('h', 'a', name='h', iothread=5),
            LIST,
        ],
    ),
    Qmps(
        'nbd-server-add',
        lines=[
            node('a'),
            q('nbd-server-add', device='a'),
            start(),
            q('nbd-server-add', device='a'),
            q('nbd-server-add', device='a'),
            q('nbd-server-add', device='a', name='b', writable=True, description='text'),
            q('nbd-server-add', device='nope'),
            q('nbd-server-add'),
            q('nbd-server-add', device='a', name='c', bitmap='nope'),
            LIST,
            q('nbd-server-remove', name='nope'),
            q('nbd-server-remove'),
            q('nbd-server-remove', name='a'),
            ('BLOCK_EXPORT_DELETED', {'id': 'a'}),
            q('nbd-server-remove', name='b', mode='hard'),
            ('BLOCK_EXPORT_DELETED', {'id': 'b'}),
            q('nbd-server-remove', name='b', mode='nope'),
            LIST,
        ],
    ),
    Qmps(
        'export-permissions',
        lines=[
            q('blockdev-add', driver='file', node_name='f', filename='data.qcow2'),
            start(),
            export('raw', 'f', writable=True),
            GRAPH,
            q('blockdev-add', driver='qcow2', node_name='q', file='f'),
            q('block-export-del', id='raw'),
            ('BLOCK_EXPORT_DELETED', {'id': 'raw'}),
            q('blockdev-add', driver='qcow2', node_name='q', file='f'),
            export('raw', 'f', writable=True),
            export('ro', 'f'),
            export('q', 'q', writable=True),
            export('q2', 'q', name='again', writable=True),
            GRAPH,
        ],
    ),
    Qmps(
        'export-resize-protect',
        lines=[
            node('a'),
            start(),
            export('e', 'a', writable=True),
            q('blockdev-add', driver='raw', node_name='r', file='a'),
            export('r', 'r', writable=True),
            GRAPH,
        ],
    ),
]
