# SPDX-License-Identifier: Apache-2.0
"""Dirty bitmaps and transactions: names, limits, what is busy, order and undoing of actions, what exports find."""

from lib.differential import Qmps, q

K = 1024
NODES = {'execute': 'query-named-block-nodes', 'arguments': {'flat': True}}


def node(name, size=1024 * K, **options):
    return q('blockdev-add', driver='null-co', node_name=name, size=size, **options)


def add(name, on='n', **options):
    return q('block-dirty-bitmap-add', node=on, name=name, **options)


def do(verb, name, on='n'):
    return q(f'block-dirty-bitmap-{verb}', node=on, name=name)


def sha256(name, on='n'):
    return q('x-debug-block-dirty-bitmap-sha256', node=on, name=name)


def merge(target, *bitmaps, on='n'):
    return q('block-dirty-bitmap-merge', node=on, target=target, bitmaps=list(bitmaps))


def other(name, on='m'):
    return {'node': on, 'name': name}


def action(kind, **data):
    return {'type': kind, 'data': data}


def bitmap(verb, name, on='n', **data):
    return action(f'block-dirty-bitmap-{verb}', node=on, name=name, **data)


def transaction(*actions, **more):
    return q('transaction', actions=list(actions), **more)


def mode(text):
    return {'properties': {'completion-mode': text}}


def export(ident, bitmaps, **options):
    return q('block-export-add', type='nbd', id=ident, node_name='n', name=ident, bitmaps=bitmaps, **options)


ABORT = action('abort')

CASES = [
    Qmps(
        'bitmap-add',
        lines=[
            node('n'),
            add('a'),
            add('a'),
            add(''),
            add('', on='missing'),
            add('b', on='missing'),
            add('b', on='missing', granularity=3),
            add('b' * 1023),
            add('b' * 1024),
            add('ü / * "'),
            add('c', granularity=0),
            add('c', granularity=256),
            add('c', granularity=513),
            add('c', granularity=512),
            add('d', granularity=1 << 31),
            add('e', granularity=1 << 32),
            add('e', granularity=-1),
            add('e', granularity='4k'),
            add('e', disabled=True, granularity=4096),
            add('f', persistent=False),
            add('g', persistent=True),
            add('g', persistent=True, granularity=100),
            add('a', persistent=True),
            add('g', nope=1),
            q('block-dirty-bitmap-add', node='n'),
            q('block-dirty-bitmap-add', name='n'),
            NODES,
        ],
    ),
    Qmps(
        'bitmap-granularity-by-cluster-size',
        lines=[
            q('blockdev-add', driver='file', node_name='f', filename='empty.qcow2'),
            q('blockdev-add', driver='qcow2', node_name='q', file='f'),
            q('blockdev-add', driver='raw', node_name='r', file='q'),
            q('blockdev-add', driver='file', node_name='odd', filename='small.img', read_only=True),
            *[add('b', on=name) for name in ('f', 'q', 'r', 'odd')],
            NODES,
        ],
    ),
    Qmps(
        'bitmap-verbs',
        lines=[
            node('n'),
            *[do(verb, 'a') for verb in ('remove', 'clear', 'enable', 'disable')],
            *[do(verb, 'a', on='missing') for verb in ('remove', 'clear', 'enable', 'disable')],
            add('a'),
            do('disable', 'a'),
            do('disable', 'a'),
            NODES,
            do('enable', 'a'),
            do('enable', 'a'),
            do('clear', 'a'),
            NODES,
            do('remove', 'a'),
            do('remove', 'a'),
            NODES,
            q('block-dirty-bitmap-clear', node='n'),
            q('blockdev-del', node_name='n'),
            node('n'),
            add('a'),
            q('blockdev-del', node_name='n'),
        ],
    ),
    Qmps(
        'bitmap-merge',
        lines=[
            node('n'),
            node('m', 2048 * K),
            add('a'),
            add('fine', granularity=512),
            add('a', on='m'),
            add('off', disabled=True),
            merge('a', 'fine'),
            merge('fine', 'a', 'off'),
            merge('off', 'a'),
            merge('a', 'a'),
            merge('a', other('a')),
            merge('a', 'fine', other('a')),
            merge('a', other('b')),
            merge('a', other('b', on='missing')),
            merge('missing', 'a'),
            merge('a', 'missing'),
            merge('a', 'a', on='missing'),
            merge('a', other('a', on='n')),
            merge('a', 1),
            merge('a', {'node': 'n'}),
            q('block-dirty-bitmap-merge', node='n', target='a'),
            NODES,
        ],
    ),
    Qmps(
        'bitmap-follows-resize',
        lines=[
            q('blockdev-add', driver='file', node_name='f', filename='raw.img'),
            add('a', on='f'),
            add('b', on='f', granularity=512),
            node('big', 2048 * K),
            add('a', on='big'),
            merge('a', {'node': 'big', 'name': 'a'}, on='f'),
            q('block_resize', node_name='f', size=2048 * K),
            merge('a', {'node': 'big', 'name': 'a'}, on='f'),
            q('block_resize', node_name='f', size=100),
            merge('a', 'b', on='f'),
            NODES,
        ],
    ),
    Qmps(
        'transaction',
        lines=[
            node('n'),
            transaction(),
            transaction(properties={}),
            transaction(ABORT),
            transaction(ABORT, **mode('individual')),
            transaction(ABORT, **mode('grouped')),
            transaction(ABORT, **mode('nope')),
            transaction(**mode('grouped')),
            transaction({'type': 'nope', 'data': {}}),
            transaction({'type': 'abort'}),
            transaction({'data': {}}),
            transaction({'type': 'abort', 'data': {'x': 1}}),
            transaction({'type': 'abort', 'data': {}, 'x': 1}),
            transaction(bitmap('add', 'a', granularity='x')),
            q('transaction'),
            q('transaction', actions={}),
            transaction(bitmap('add', 'a'), **mode('grouped')),
            transaction(bitmap('remove', 'missing'), ABORT, **mode('grouped')),
            NODES,
        ],
    ),
    Qmps(
        'transaction-of-bitmaps',
        lines=[
            node('n'),
            node('m'),
            transaction(bitmap('add', 'a'), bitmap('add', 'a', on='m'), bitmap('disable', 'a')),
            NODES,
            transaction(bitmap('enable', 'a'), bitmap('disable', 'a', on='m'), bitmap('clear', 'a')),
            NODES,
            transaction(
                bitmap('add', 'sum', disabled=True),
                action('block-dirty-bitmap-merge', node='n', target='sum', bitmaps=['a', other('a')]),
                bitmap('remove', 'a'),
            ),
            NODES,
        ],
    ),
    Qmps(
        'transaction-undone',
        lines=[
            node('n'),
            add('a'),
            add('off', disabled=True),
            add('c', granularity=4096),
            transaction(bitmap('add', 'b'), ABORT),
            transaction(bitmap('remove', 'a'), ABORT),
            transaction(bitmap('enable', 'off'), bitmap('disable', 'a'), ABORT),
            transaction(bitmap('disable', 'off'), bitmap('enable', 'a'), ABORT),
            transaction(bitmap('clear', 'a'), bitmap('clear', 'missing')),
            transaction(bitmap('add', 'a')),
            transaction(bitmap('add', 'b'), bitmap('add', 'b')),
            transaction(bitmap('remove', 'a'), bitmap('add', 'a')),
            transaction(bitmap('remove', 'a'), bitmap('clear', 'a')),
            transaction(bitmap('remove', 'a'), bitmap('remove', 'a')),
            transaction(bitmap('add', 'b'), bitmap('remove', 'b'), ABORT),
            transaction(action('block-dirty-bitmap-merge', node='n', target='a', bitmaps=['c']), ABORT),
            transaction(action('block-dirty-bitmap-merge', node='n', target='a', bitmaps=['x'])),
            NODES,
            transaction(bitmap('add', 'b'), bitmap('remove', 'b')),
            NODES,
        ],
    ),
    Qmps(
        'bitmap-exports',
        lines=[
            q('nbd-server-start', addr={'type': 'unix', 'data': {'path': 'n.sock'}}),
            q('blockdev-add', driver='file', node_name='f', filename='data.qcow2', read_only=True),
            q('blockdev-add', driver='qcow2', node_name='base', file='f', read_only=True),
            q('blockdev-add', driver='file', node_name='g', filename='top.qcow2'),
            q('blockdev-add', driver='qcow2', node_name='n', file='g', backing='base'),
            node('m', 2048 * K),
            *[add(name) for name in ('a', 'b', 'c')],
            add('below', on='base'),
            add('file', on='g'),
            add('other', on='m'),
            export('e', ['a']),
            export('e', ['below']),
            do('enable', 'below', on='base'),
            q('block-export-del', id='e'),
            export('e', ['file']),
            export('e', ['other']),
            export('e', ['a', 'x'], writable=True),
            export('e', [other('other', on='x')]),
            export('e', [other('x')]),
            export('e', [other('other')]),
            export('e2', [other('other')]),
            export('w', ['a', 'a', 'below'], writable=True),
            export('w2', ['a'], writable=True),
            NODES,
            *[do(verb, 'a') for verb in ('clear', 'enable', 'disable', 'remove')],
            merge('b', 'a'),
            merge('a', 'b'),
            transaction(bitmap('clear', 'b'), bitmap('clear', 'a')),
            q('nbd-server-add', device='n', name='old', bitmap='b'),
            do('disable', 'b'),
            q('nbd-server-add', device='n', name='old', bitmap='x'),
            q('nbd-server-add', device='n', name='old', bitmap='b'),
            q('nbd-server-add', device='n', name='old2', bitmap='b'),
            q('nbd-server-add', device='n', name='old', bitmap='c'),
            export('n', [1]),
            export('n', 'a'),
            export('n', [{'node': 'n'}]),
            q('block-export-del', id='w'),
            do('remove', 'a'),
            q('nbd-server-remove', name='old'),
            do('remove', 'b'),
            q('nbd-server-stop'),
            NODES,
        ],
    ),
    Qmps(
        'bitmap-digest',
        lines=[
            q('blockdev-add', driver='file', node_name='n', filename='raw.img'),
            *[add(f'b{size}', granularity=size) for size in (512, 4096, 1 << 20, 1 << 31)],
            *[sha256(f'b{size}') for size in (512, 4096, 1 << 20, 1 << 31)],
            q('block_resize', node_name='n', size=0),
            sha256('b512'),
            q('block_resize', node_name='n', size=33000),
            sha256('b512'),
            sha256('b4096'),
            sha256('x'),
            sha256('x', on='x'),
        ],
    ),
]
