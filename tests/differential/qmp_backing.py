# SPDX-License-Identifier: Apache-2.0
"""change-backing-file: which images, which names, what is shown afterwards."""

from json import dumps

from lib.differential import Allowed, Qmps, q

from .qmp_block import NODES, add, file


def change(device, image, name):
    return q('change-backing-file', device=device, image_node_name=image, backing_file=name)


def names_again(name):
    """Every name that may be stored, and one byte more."""
    return [change('t', 't', name), NODES]


TOP = add('qcow2', 't', file=file('top.qcow2', **{'node-name': 'f'}))
CASES = [
    Qmps(
        'change-backing-file',
        v10=True,
        lines=[
            TOP,
            add('qcow2', 'q', file=file('empty.qcow2')),
            add('raw', 'r', file=file('raw.img')),
            q('change-backing-file', device='t', image_node_name='t'),
            change('nope', 't', 'data.qcow2'),
            change('nope', 'nope', 'data.qcow2'),
            change('t', 'nope', 'data.qcow2'),
            change('t', 'f', 'data.qcow2'),
            change('t', 'q', 'data.qcow2'),
            change('q', 'q', 'data.qcow2'),
            change('r', 'r', 'data.qcow2'),
            change('q', 't', 'data.qcow2'),
            change('f', 't', 'data.qcow2'),
            *names_again('data.qcow2'),
            *names_again('missing.qcow2'),
            *names_again('json:{"driver":"null-co"}'),
            *names_again('nbd://localhost'),
            *names_again('/' + 'x' * 1022),
            change('t', 't', 'x' * 1024),
            change('t', 't', 'x' * 100000),
            *names_again(''),
            *names_again('data.qcow2'),
        ],
    ),
    Qmps(
        'change-backing-file-below',
        v10=True,
        lines=[
            add('qcow2', 'low', file=file('top.qcow2'), read_only=True),
            add('qcow2', 'high', file=file('empty.qcow2'), backing='low'),
            change('high', 'low', './data.qcow2'),
            NODES,
            change('low', 'high', 'data.qcow2'),
            q('nbd-server-start', addr={'type': 'unix', 'data': {'path': 'nbd.sock'}}),
            q('block-export-add', type='nbd', id='e', node_name='high', writable=True),
            change('high', 'high', 'top.qcow2'),
            change('high', 'low', 'data.qcow2'),
            NODES,
        ],
    ),
    Qmps(
        'change-backing-file-raw',
        v10=True,
        lines=[
            add('qcow2', 't', file=file('top.qcow2'), backing={'driver': 'raw', 'file': file('raw.img')}),
            change('t', 't', 'raw.img'),
            q('query-named-block-nodes', flat=True),
        ],
    ),
]
ALLOWED = [
    Allowed(
        'change-backing-file-raw',
        'The image gets the format of its backing node. The reference writes that of the image itself, and so makes it '
        'unreadable where the backing file is raw.',
        lambda ours, theirs: (ours[:3], theirs[:3])
        if '"backing-filename-format": "raw"' in dumps(ours[3][1])
        and '"backing-filename-format": "qcow2"' in dumps(theirs[3][1])
        else (ours, theirs),
    ),
]
