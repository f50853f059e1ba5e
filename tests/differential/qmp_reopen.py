# SPDX-License-Identifier: Apache-2.0
"""blockdev-reopen: what may change, what stays, what one failing element means for the others."""

from lib.differential import Allowed, Qmps, q
from lib.qmp import dashed

from .allowed import line, without
from .qmp_block import FLAT, GRAPH, NODES, add, delete, file


def reopen(*options):
    return q('blockdev-reopen', options=list(options))


def node(driver, name, **options):
    """Options of an element; those of a file child that is a node of its own."""
    return {'driver': driver, 'node-name': name, **dashed(options)}


def qcow2(**options):
    return node('qcow2', 'q', **{'file': 'f', **options})


def protocol(**options):
    return node('file', 'f', **{'filename': 'empty.qcow2', **options})


OWN = [add('file', 'f', filename='empty.qcow2'), add('qcow2', 'q', file='f')]
CHILD = [add('qcow2', 'q', file=file('empty.qcow2', **{'node-name': 'f'}))]
EXPORT = q('block-export-add', type='nbd', id='e', node_name='q', writable=True)
SERVER = q('nbd-server-start', addr={'type': 'unix', 'data': {'path': 'nbd.sock'}})
LINES = {
    'names': OWN
    + [
        reopen({'driver': 'qcow2', 'file': 'f'}),
        reopen(qcow2()),
        reopen(node('raw', 'q', file='f')),
        reopen(qcow2(file='nope')),
        reopen(node('qcow2', 'nope', file='f')),
        reopen(node('qcow2', 'q')),
        q('blockdev-reopen'),
        q('blockdev-reopen', options=qcow2()),
        reopen(qcow2(nope=1)),
        FLAT,
    ],
    'file': OWN
    + [
        reopen(protocol()),
        reopen(protocol(filename='raw.img')),
        reopen(protocol(locking='off')),
        reopen(protocol(locking='auto')),
        reopen(protocol(aio='native')),
        reopen(protocol(aio='io_uring')),
        reopen(protocol(aio_max_batch=3)),
        reopen(protocol(x_check_cache_dropped=True)),
        reopen(protocol(pr_manager='nope')),
        reopen(protocol(read_only=True)),
        reopen(protocol(read_only=True, auto_read_only=True)),
        reopen(protocol(auto_read_only=True)),
        reopen(protocol(cache={'direct': True})),
        FLAT,
        reopen(protocol(detect_zeroes='on')),
        FLAT,
        reopen(protocol(discard='unmap', detect_zeroes='unmap')),
        reopen(protocol(detect_zeroes='unmap')),
        reopen(protocol(force_share=True)),
        reopen(protocol(force_share=True, read_only=True)),
        reopen(protocol()),
        FLAT,
        GRAPH,
    ],
    'file-options-kept': [
        add('file', 'f', filename='raw.img', locking='off'),
        reopen(protocol(filename='raw.img')),
        reopen(protocol(filename='raw.img', locking='on')),
        reopen(protocol(filename='raw.img', locking='off')),
    ],
    'read-only': OWN
    + [
        reopen(qcow2(read_only=True)),
        FLAT,
        GRAPH,
        reopen(protocol(read_only=True)),
        FLAT,
        reopen(qcow2()),
        reopen(protocol()),
        reopen(qcow2()),
        FLAT,
        GRAPH,
        reopen(qcow2(auto_read_only=True)),
        reopen(qcow2(cache={'direct': True, 'no-flush': True})),
        FLAT,
        reopen(qcow2(detect_zeroes='unmap')),
        reopen(qcow2(detect_zeroes='unmap', discard='unmap')),
        reopen(qcow2()),
        FLAT,
    ],
    'inherited': CHILD
    + [
        reopen(qcow2(read_only=True)),
        FLAT,
        GRAPH,
        reopen(qcow2(read_only=False)),
        FLAT,
        reopen(qcow2(cache={'direct': True})),
        FLAT,
        reopen(protocol(cache={'direct': False})),
        FLAT,
    ],
    'described-child': CHILD
    + [
        reopen(qcow2(file=protocol())),
        reopen(qcow2(file=protocol(filename='v2.qcow2'))),
        reopen(qcow2(file={**protocol(), 'node-name': 'o'})),
        reopen(qcow2(file=protocol(read_only=True))),
        reopen(qcow2(file=protocol(cache={'direct': True}))),
        FLAT,
        reopen(qcow2()),
        FLAT,
    ],
    'described-reference': OWN + [reopen(qcow2(file=protocol())), reopen(qcow2(file=file('empty.qcow2')))],
    'exported': OWN
    + [
        SERVER,
        EXPORT,
        reopen(qcow2(read_only=True)),
        reopen(qcow2(read_only=True), protocol(read_only=True)),
        reopen(qcow2(cache_size=1 << 20)),
        FLAT,
        GRAPH,
    ],
    'qcow2-options': OWN
    + [
        reopen(qcow2(**{name: value}))
        for name, value in (
            ('lazy_refcounts', True),
            ('cache_size', 1234567),
            ('cache_size', -1),
            ('l2_cache_size', 65536),
            ('refcount_cache_size', 123456),
            ('l2_cache_entry_size', 1024),
            ('l2_cache_entry_size', 1000),
            ('cache_clean_interval', 0),
            ('cache_clean_interval', -1),
            ('overlap_check', 'all'),
            ('overlap_check', {'template': 'none', 'main-header': True}),
            ('overlap_check', 'nope'),
            ('pass_discard_request', False),
            ('pass_discard_snapshot', True),
            ('pass_discard_other', True),
            ('discard_no_unref', True),
            ('data_file', 'f'),
            ('data_file', file('raw.img')),
            ('backing', None),
            ('backing', file('raw.img')),
        )
    ]
    + [
        reopen(qcow2(cache_size=1000, l2_cache_size=2000)),
        reopen(qcow2(cache_size=1000, l2_cache_size=200, refcount_cache_size=5)),
        reopen(qcow2()),
        FLAT,
    ],
    'qcow2-defaults': [
        add('file', 'f', filename='empty.qcow2'),
        add('qcow2', 'q', file='f', lazy_refcounts=True, cache_size=12345678, overlap_check='all'),
        reopen(qcow2()),
        FLAT,
    ],
    'qcow2-old': [
        add('file', 'f', filename='v2.qcow2'),
        add('qcow2', 'q', file='f'),
        reopen(qcow2(lazy_refcounts=True)),
        reopen(qcow2(discard_no_unref=True)),
        FLAT,
    ],
    'several': OWN
    + [
        reopen(qcow2(read_only=True), protocol(read_only=True)),
        FLAT,
        reopen(qcow2()),
        reopen(qcow2(), protocol()),
        FLAT,
        reopen(protocol(read_only=True), qcow2(read_only=True)),
        FLAT,
        reopen(protocol(), qcow2()),
        FLAT,
        reopen(qcow2(read_only=True), protocol(locking='on')),
        FLAT,
        reopen(qcow2(detect_zeroes='on'), node('file', 'nope', filename='x')),
        reopen(qcow2(), qcow2(read_only=True)),
        FLAT,
    ],
    'backing': [
        add('qcow2', 'b', file=file('data.qcow2'), read_only=True),
        add('qcow2', 'q', file=file('top.qcow2', **{'node-name': 'f'}), backing='b'),
        add('qcow2', 'other', file=file('empty.qcow2')),
        reopen(qcow2()),
        reopen(qcow2(backing='b')),
        reopen(qcow2(backing={'driver': 'qcow2', 'file': file('data.qcow2')})),
        reopen(qcow2(backing='other')),
        NODES,
        GRAPH,
        delete('other'),
        delete('b'),
        reopen(qcow2(backing='q')),
        reopen(qcow2(backing='nope')),
        reopen(node('qcow2', 'other', file='f', backing='q')),
        reopen(qcow2(backing=None)),
        GRAPH,
        delete('other'),
        reopen(qcow2()),
        reopen(qcow2(backing='f')),
        reopen(qcow2(backing=None, read_only=True)),
        FLAT,
    ],
    'backing-opened-by-name': [
        add('qcow2', 'q', file=file('top.qcow2', **{'node-name': 'f'})),
        reopen(qcow2()),
        reopen(qcow2(backing=None)),
        NODES,
        GRAPH,
        reopen(qcow2(backing=None)),
        reopen(qcow2()),
    ],
    'backing-described': [
        add(
            'qcow2',
            'q',
            file=file('top.qcow2', **{'node-name': 'f'}),
            backing={'driver': 'qcow2', 'node-name': 'b', 'file': file('data.qcow2')},
        ),
        reopen(qcow2()),
        reopen(qcow2(backing={'driver': 'qcow2', 'node-name': 'b', 'file': file('empty.qcow2')})),
        reopen(qcow2(backing={'driver': 'raw', 'node-name': 'b', 'file': file('data.qcow2')})),
        reopen(qcow2(backing={'driver': 'qcow2', 'node-name': 'b', 'file': file('data.qcow2')})),
        reopen(qcow2(backing='b')),
        reopen(qcow2(backing=None)),
        GRAPH,
    ],
    'backing-never': [
        add('qcow2', 'q', file=file('top.qcow2', **{'node-name': 'f'}), backing=None),
        reopen(qcow2()),
        reopen(qcow2(backing=None)),
    ],
    'raw': [
        add('raw', 'r', file=file('raw.img', **{'node-name': 'f'})),
        add('file', 'g', filename='sparse.img'),
    ]
    + [
        line
        for options in (
            {},
            {'offset': 512},
            {'offset': 512, 'size': 1024},
            {'size': 1024},
            {'size': 1000},
            {'offset': 2 << 20},
            {'offset': 1 << 20, 'size': 512},
            {'offset': -1},
            {'file': 'r'},
            {'file': 'g', 'offset': 512},
            {'file': 'f'},
            {'file': None},
            {'file': 'g'},
        )
        for line in (reopen(node('raw', 'r', **{'file': 'f', **options})), FLAT, GRAPH)
    ],
    # Changed by block_resize of the file node, and behind its back.
    'size': [
        add('file', 'f', filename='raw.img'),
        add('raw', 'r', file='f'),
        add('file', 'other', filename='raw.img', locking='off'),
        q('block_resize', node_name='f', size=2 << 20),
        NODES,
        reopen(node('raw', 'r', file='f')),
        NODES,
        q('block_resize', node_name='other', size=3 << 20),
        reopen(node('raw', 'r', file='f')),
        NODES,
        reopen(protocol(filename='raw.img')),
        NODES,
        q('block_resize', node_name='other', size=1 << 20),
        reopen(node('raw', 'r', file='f'), protocol(filename='raw.img')),
        NODES,
    ],
    'size-of-an-own-child': [
        add('raw', 'r', file=file('raw.img', **{'node-name': 'f'})),
        add('file', 'other', filename='raw.img', locking='off'),
        q('block_resize', node_name='other', size=3 << 20),
        NODES,
        reopen(node('raw', 'r', file='f')),
        NODES,
    ],
    'inherited-default': [
        *CHILD,
        reopen(qcow2(read_only=True)),
        reopen(qcow2()),
        FLAT,
    ],
    'file-foreign': [*OWN, add('file', 'g', filename='raw.img'), reopen(qcow2(file='g')), reopen(qcow2())],
    'file-filter': [*OWN, add('raw', 'w', file='f'), reopen(qcow2(file='w')), NODES, GRAPH, reopen(qcow2()), GRAPH],
    'null': [add('null-co', 'n'), add('null-co', 'm', size=65536)]
    + [
        reopen(node('null-co', 'n', **options))
        for options in ({}, {'size': 65536}, {'read_zeroes': True}, {'latency_ns': 5}, {'read_only': True}, {})
    ]
    + [
        reopen(node('null-aio', 'n')),
        reopen(node('null-co', 'm')),
        reopen(node('null-co', 'm', size=65536)),
        FLAT,
    ],
}
CASES = [Qmps(f'reopen-{name}', lines=lines, v10=True) for name, lines in LINES.items()]
ALLOWED = [
    Allowed(
        'reopen-file',
        'An option that is not given has its default again. The reference keeps discard=unmap.',
        line(
            19,
            'setting detect-zeroes to unmap is not allowed without setting discard operation to unmap',
            'return',
        ),
    ),
    Allowed(
        'reopen-raw',
        'A window needs a child that does not shrink, also when a reopening has made it one.',
        without('shared-perm'),
    ),
    Allowed(
        'reopen-inherited-default',
        'A child that has no option read-only follows its parent in both directions. The reference leaves it read-only, so that '
        'the parent cannot become writable.',
        lambda ours, theirs: (ours[:3], theirs[:3])
        if 'return' in ours[3][1][0] and 'Block node is read-only' in str(theirs[3][1])
        else (ours, theirs),
    ),
    Allowed(
        'reopen-file-foreign',
        'The node that is to hold an image holds another one, or none. The reference goes on as if it did.',
        line(3, 'Image is not in qcow2 format', 'return'),
    ),
]
