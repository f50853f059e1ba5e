# SPDX-License-Identifier: Apache-2.0
"""Internal snapshots: making and deleting them, what is refused, what queries show of them."""

from differential.allowed import line
from differential.qmp_block import add, created, delete, file
from lib.differential import Allowed, Qmps, q

MIB = 1 << 20


def take(device, name):
    return q('blockdev-snapshot-internal-sync', device=device, name=name)


def drop(device, **which):
    return q('blockdev-snapshot-delete-internal-sync', device=device, **which)


def action(device, name):
    return {'type': 'blockdev-snapshot-internal-sync', 'data': {'device': device, 'name': name}}


def transaction(*actions):
    return q('transaction', actions=list(actions))


def qcow2(name, path, **options):
    return add('qcow2', name, file=file(path), **options)


CASES = [
    Qmps(
        'snapshots-made-and-deleted',
        lines=[
            qcow2('n', 'data.qcow2'),
            take('n', 'one'),
            take('n', 'two'),
            take('n', 'one'),
            take('n', '1'),
            drop('n', name='one'),
            drop('n', name='one'),
            drop('n', id='2'),
            drop('n', id='2'),
            take('n', 'again'),
            drop('n', id='9', name='again'),
            drop('n', id='3', name='nope'),
            drop('n', id='3', name='again'),
            drop('n', id='1', name='1'),
            delete('n'),
        ],
    ),
    Qmps(
        'snapshot-arguments',
        lines=[
            qcow2('n', 'empty.qcow2'),
            add('raw', 'r', file=file('raw.img')),
            add('file', 'f', filename='small.img'),
            q('blockdev-snapshot-internal-sync'),
            q('blockdev-snapshot-internal-sync', device='n'),
            q('blockdev-snapshot-internal-sync', name='n'),
            q('blockdev-snapshot-delete-internal-sync'),
            take('nope', 's'),
            take('', 's'),
            take('n', ''),
            take('r', 's'),
            take('f', 's'),
            drop('nope', name='s'),
            drop('n'),
            drop('n', name=''),
            drop('n', id=''),
            drop('n', id='', name=''),
            drop('r', name='s'),
            drop('f', name='s'),
            drop('n', name='s'),
            drop('n', id='1'),
            take('n', 'x' * 255),
            take('n', '\u00e4\u20ac'),
            drop('n', name='x' * 255),
            drop('n', name='\u00e4\u20ac'),
        ],
    ),
    Qmps('snapshot-long-name', lines=[qcow2('n', 'empty.qcow2'), take('n', 'x' * 256), delete('n')]),
    Qmps(
        'snapshots-of-nodes-in-use',
        lines=[
            qcow2('ro', 'empty.qcow2', read_only=True),
            take('ro', 's'),
            drop('ro', name='s'),
            delete('ro'),
            qcow2('top', 'top.qcow2'),
            take('top', 'a'),
            delete('top'),
            qcow2('base', 'data.qcow2'),
            add('qcow2', 'top', file=file('top.qcow2'), backing='base'),
            take('base', 'a'),
            take('top', 'b'),
            drop('base', name='a'),
            drop('top', name='b'),
            add('qcow2', 'file-of-raw', file=file('v2.qcow2')),
            add('raw', 'over', file='file-of-raw'),
            take('over', 'a'),
            take('over', 'b'),
            take('file-of-raw', 'b'),
            drop('over', name='b'),
            drop('file-of-raw', name='b'),
        ],
    ),
    Qmps(
        'snapshots-in-transactions',
        lines=[
            qcow2('n', 'empty.qcow2'),
            qcow2('m', 'data.qcow2'),
            transaction(action('n', 'a'), action('m', 'a')),
            transaction(action('n', 'b'), action('m', 'a')),
            transaction(action('n', 'b'), action('n', 'b')),
            transaction(action('n', 'b'), action('none', 'b')),
            transaction(action('n', 'c'), {'type': 'abort', 'data': {}}),
            transaction(action('n', '')),
            q(
                'transaction',
                actions=[action('n', 'd')],
                properties={'completion-mode': 'grouped'},
            ),
            drop('n', name='a'),
            drop('n', name='b'),
            drop('n', name='c'),
            drop('m', name='a'),
        ],
    ),
    Qmps(
        'snapshots-with-narrow-refcounts',
        lines=[
            *created('p', driver='file', filename='one.qcow2', size=0),
            add('file', 'f', filename='one.qcow2'),
            *created('q', driver='qcow2', file='f', size=MIB, preallocation='metadata', **{'refcount-bits': 1}),
            add('qcow2', 'n', file='f'),
            take('n', 'a'),
            delete('n'),
            *created('q', driver='qcow2', file='f', size=MIB, preallocation='metadata', **{'refcount-bits': 2}),
            add('qcow2', 'n', file='f'),
            take('n', 'a'),
            take('n', 'b'),
            take('n', 'c'),
            drop('n', name='a'),
            drop('n', name='b'),
        ],
    ),
    Qmps(
        'snapshots-with-a-data-file',
        lines=[
            *created('p', driver='file', filename='one.qcow2', size=0),
            *created('p', driver='file', filename='two.raw', size=0),
            add('file', 'f', filename='one.qcow2'),
            add('file', 'd', filename='two.raw'),
            *created('q', driver='qcow2', file='f', size=MIB, **{'data-file': 'd'}),
            add('qcow2', 'n', file='f', data_file='d'),
            take('n', 'a'),
            drop('n', name='a'),
        ],
    ),
]

NARROW = 'The text says what the reason is, and what to do.'
INVALID = "'%s' on device 'n': Invalid argument"
REASON = ': refcounts of %d bits cannot count one more user'


def told_more(number, name, bits):
    return line(number, INVALID % name + REASON % bits, INVALID % name)


ALLOWED = [
    Allowed(
        'snapshot-long-name',
        'The reference cuts the name, so that several snapshots may share one and none can be deleted by it.',
        line(1, 'is longer than 255 bytes', 'return'),
    ),
    Allowed('snapshots-with-narrow-refcounts', NARROW, told_more(10, 'a', 1)),
    Allowed('snapshots-with-narrow-refcounts', NARROW, told_more(18, 'c', 2)),
]
