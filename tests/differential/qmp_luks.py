# SPDX-License-Identifier: Apache-2.0
"""LUKS volumes: creation and what is refused, opening, sizes, detached headers. Of changes of the keys only what is refused
before the header is read: then the reference 10.0.2 ends with a failed assertion."""

from differential.qmp_block import FLAT, NODES, add, amended, created, delete, file
from differential.qmp_reopen import node, reopen
from lib.differential import Allowed, Qmps, q
from lib.qmp import dashed

MIB = 1 << 20
SECRETS = ['--object', 'secret,id=s,data=one', '--object', 'secret,id=t,data=two']
FILE = add('file', 'f', filename='empty.img')
OPEN = add('luks', 'n', file='f', **{'key-secret': 's'})


def new(**options):
    """An attempt to make a volume in f."""
    named = {'driver': 'luks', 'file': 'f', 'size': MIB, 'key-secret': 's', 'iter-time': 10, **dashed(options)}
    return created('j', **{name: value for name, value in named.items() if value is not None})


def not_made(**options):
    """What is refused before there is a job."""
    named = {'driver': 'luks', 'file': 'f', 'size': MIB, 'key-secret': 's', 'iter-time': 10, **dashed(options)}
    return q('blockdev-create', job_id='j', options={k: v for k, v in named.items() if v is not None})


def keys(**options):
    """An attempt to change the keys of the node n."""
    return amended('n', driver='luks', **dashed(options))


def ciphers(*sets):
    """Each is made, opened and shown."""
    lines = []
    for names in sets:
        lines += [*new(**names), OPEN, NODES, delete('n')]
    return lines


CASES = [
    Qmps(
        'luks-created',
        args=SECRETS,
        lines=[
            FILE,
            *ciphers(
                {'preallocation': 'metadata'},
                {'cipher_alg': 'aes-192', 'hash_alg': 'sha512', 'size': MIB + 511},
                {'cipher_mode': 'cbc', 'ivgen_alg': 'essiv', 'ivgen_hash_alg': 'sha256', 'size': 0},
                {'cipher_alg': 'serpent-256', 'cipher_mode': 'ctr', 'ivgen_alg': 'plain', 'preallocation': 'full'},
            ),
        ],
    ),
    Qmps(
        'luks-not-created',
        args=SECRETS,
        lines=[
            FILE,
            *new(key_secret=None),
            *new(key_secret='none'),
            *new(key_secret='f'),
            *new(file='none'),
            *new(file=None),
            *new(cipher_alg='sm4'),
            *new(cipher_alg='3des', cipher_mode='xts'),
            *new(cipher_alg='cast5-128'),
            *new(ivgen_alg='essiv', ivgen_hash_alg='sha1', cipher_mode='cbc'),
            *new(ivgen_alg='essiv', ivgen_hash_alg='sha1', cipher_mode='cbc', cipher_alg='cast5-128'),
            *new(size=(1 << 63) - 1),
            NODES,
        ],
    ),
    Qmps(
        'luks-options-that-are-none',
        args=SECRETS,
        lines=[
            FILE,
            not_made(size=None),
            not_made(size=-1),
            not_made(size='1M'),
            not_made(cipher_alg='rot13'),
            not_made(cipher_mode='gcm'),
            not_made(ivgen_alg='x'),
            not_made(ivgen_hash_alg='x'),
            not_made(hash_alg='x'),
            not_made(key_secret=1),
            not_made(iter_time='long'),
            not_made(nope=1),
            not_made(file={'driver': 'nope'}),
            not_made(preallocation='nope'),
            add('luks', 'n'),
            add('luks', 'n', file=1),
            add('luks', 'n', file='none'),
            add('luks', 'n', file='f', nope=1),
        ],
    ),
    Qmps(
        'luks-open',
        args=SECRETS,
        lines=[
            FILE,
            OPEN,
            *new(),
            add('luks', 'n', file='f'),
            add('luks', 'n', file='f', **{'key-secret': 'none'}),
            add('luks', 'n', file='f', **{'key-secret': 'f'}),
            add('luks', 'n', file='f', **{'key-secret': 't'}),
            OPEN,
            OPEN,
            FLAT,
            q('object-del', id='s'),
            delete('n'),
            OPEN,
            q('object-add', qom_type='secret', id='s', data='one'),
            add('luks', 'n', file='f', **{'key-secret': 's', 'read-only': True}),
            NODES,
        ],
    ),
    Qmps(
        'luks-not-a-volume',
        args=SECRETS,
        lines=[
            add('luks', 'n', file=file(name), **{'key-secret': 's'})
            for name in ('raw.img', 'small.img', 'empty.img', 'sparse.img', 'empty.qcow2', 'missing.img')
        ],
    ),
    Qmps(
        'luks-resize',
        args=SECRETS,
        lines=[
            FILE,
            *new(),
            OPEN,
            q('block_resize', node_name='n', size=2 * MIB),
            NODES,
            q('block_resize', node_name='n', size=512),
            NODES,
            q('block_resize', node_name='n', size=MIB + 1),
            q('block_resize', node_name='n', size=-1),
            NODES,
        ],
    ),
    Qmps(
        'luks-size-of-the-file',
        args=SECRETS,
        v10=True,
        lines=[
            FILE,
            *new(),
            OPEN,
            q('block_resize', node_name='f', size=4 * MIB),
            NODES,
            reopen(node('luks', 'n', file='f', key_secret='s')),
            NODES,
            q('block_resize', node_name='f', size=3 * MIB - 1),
            reopen(node('luks', 'n', file='f', key_secret='s', read_only=True)),
            NODES,
        ],
    ),
    Qmps(
        'luks-detached',
        args=SECRETS,
        v10=True,
        lines=[
            FILE,
            add('file', 'h', filename='small.img'),
            *new(header='h'),
            add('luks', 'n', file='f', header='h', **{'key-secret': 't'}),
            add('luks', 'n', file='f', header='h', **{'key-secret': 's'}),
            NODES,
            delete('n'),
            OPEN,
            add('luks', 'n', file='h', **{'key-secret': 's'}),
            *new(header='h', file=None),
            *new(header='none'),
        ],
    ),
    Qmps(
        'luks-keys',
        args=SECRETS,
        lines=[
            FILE,
            *new(),
            OPEN,
            *keys(state='active'),
            *keys(state='active', new_secret='t', old_secret='s'),
            *keys(state='active', new_secret='t', keyslot=0, iter_time=10),
            *keys(state='active', new_secret='t', keyslot=8, iter_time=10),
            *keys(state='active', new_secret='t', keyslot=-1, iter_time=10),
            *keys(state='inactive'),
            *keys(state='inactive', new_secret='t'),
            *keys(state='inactive', iter_time=10),
            *keys(state='inactive', secret='s'),
            *keys(state='inactive', keyslot=3),
            *keys(state='inactive', keyslot=9),
            *keys(state='inactive', keyslot=0),
            NODES,
        ],
    ),
    Qmps(
        'luks-keys-wrong',
        args=SECRETS,
        lines=[
            FILE,
            *new(),
            OPEN,
            q('x-blockdev-amend', job_id='j', node_name='n', options={'driver': 'luks'}),
            q('x-blockdev-amend', job_id='j', node_name='n', options={'driver': 'luks', 'state': 'half'}),
            q('x-blockdev-amend', job_id='j', node_name='n', options={'driver': 'luks', 'state': 'active', 'a': 1}),
            q('x-blockdev-amend', job_id='j', node_name='none', options={'driver': 'luks', 'state': 'active'}),
            q('x-blockdev-amend', job_id='j', node_name='f', options={'driver': 'luks', 'state': 'active'}),
            q('x-blockdev-amend', job_id='j', node_name='n', options={'driver': 'raw'}),
        ],
    ),
]


def without_holes(value):
    if isinstance(value, dict):
        return {key: without_holes(item) for key, item in value.items() if key != 'actual-size'}
    return [without_holes(item) for item in value] if isinstance(value, list) else value


ALLOWED = [
    Allowed(
        'luks-.*',
        'Where a file has holes depends on the order of writes.',
        lambda ours, theirs: tuple([(what, without_holes(got)) for what, got in side] for side in (ours, theirs)),
    ),
]
