# SPDX-License-Identifier: Apache-2.0
"""Encrypted qcow2 images: creation with LUKS and what is refused, opening, and changes of their keys."""

import re

from differential.allowed import line
from differential.qmp_block import NODES, add, amended, created, delete, file
from lib.differential import Allowed, Qmps, q
from lib.qmp import dashed

MIB = 1 << 20
LUKS = {'format': 'luks', 'key-secret': 's', 'iter-time': 10}
OPEN = {'format': 'luks', 'key-secret': 's'}
READ_ONLY = {'read-only': True}
SECRETS = ['--object', 'secret,id=s,data=one', '--object', 'secret,id=t,data=two']


def new(encrypt, job='j', **options):
    """An attempt to make an image in f."""
    return created(
        job, **{'driver': 'qcow2', 'file': 'f', 'size': MIB, 'encrypt': encrypt, **options}
    )


def attempts(*sets, **options):
    """Each is made, or refused with a text."""
    return [step for encrypt in sets for step in new(encrypt, **options)]


def luks(**options):
    return {**LUKS, **dashed(options)}


def keys(force=False, **options):
    """An attempt to change the keys of the node n."""
    command, *rest = amended('n', driver='qcow2', encrypt={'format': 'luks', **dashed(options)})
    if force:
        command['arguments']['force'] = True
    return [command, *rest]


FILE = add('file', 'f', filename='empty.img')

CASES = [
    Qmps(
        'encryption-created',
        args=SECRETS,
        lines=[
            FILE,
            *new(LUKS),
            add('qcow2', 'n', file='f', encrypt=OPEN),
            NODES,
            delete('n'),
            *new(luks(cipher_alg='aes-128', cipher_mode='cbc', ivgen_alg='essiv', ivgen_hash_alg='sha256')),
            add('qcow2', 'n', file='f', encrypt=OPEN),
            NODES,
            delete('n'),
            *new(luks(hash_alg='sha512', key_secret='t'), **{'cluster-size': 512, 'refcount-bits': 64}),
            add('qcow2', 'n', file='f', encrypt=OPEN),
            add('qcow2', 'n', file='f', encrypt={**OPEN, 'key-secret': 't'}),
            NODES,
            delete('n'),
            *new(LUKS, **{'version': 'v2'}),
            add('qcow2', 'n', file='f', encrypt=OPEN),
            NODES,
            delete('n'),
            *new(LUKS, **{'backing-file': 'data.qcow2', 'backing-fmt': 'qcow2'}),
            add('qcow2', 'n', file='f', encrypt=OPEN),
            NODES,
        ],
    ),
    Qmps(
        'encryption-created-with-a-data-file',
        args=SECRETS,
        lines=[
            FILE,
            add('file', 'd', filename='raw.img'),
            *new(LUKS, **{'data-file': 'd'}),
            add('qcow2', 'n', file='f', encrypt=OPEN, **{'data-file': 'd'}),
            NODES,
            delete('n'),
            *new(LUKS, **{'data-file': 'd', 'data-file-raw': True}),
            add('qcow2', 'n', file='f', encrypt=OPEN, **{'data-file': 'd'}),
            NODES,
        ],
    ),
    Qmps(
        'encryption-not-created',
        args=SECRETS,
        lines=[
            FILE,
            *attempts(
                {'format': 'luks'},
                {'format': 'luks', 'key-secret': 'none'},
                luks(cipher_alg='sm4'),
                luks(cipher_alg='3des', cipher_mode='xts'),
                luks(ivgen_alg='essiv'),
                luks(cipher_mode='cbc', ivgen_alg='essiv', ivgen_hash_alg='sha1'),
                luks(hash_alg='sm3'),
            ),
        ],
    ),
    Qmps(
        'encryption-options-that-are-none',
        args=SECRETS,
        lines=[
            FILE,
            *[
                q('blockdev-create', job_id='j', options={'driver': 'qcow2', 'file': 'f', 'size': MIB, 'encrypt': e})
                for e in (
                    {},
                    'luks',
                    {'key-secret': 's'},
                    {'format': 'nope'},
                    {'format': 'aes', 'key-secret': 's'},
                    luks(cipher_alg='rot13'),
                    luks(cipher_mode='gcm'),
                    luks(ivgen_alg='x'),
                    luks(hash_alg='x'),
                    luks(key_secret=1),
                    luks(nope=1),
                    {'format': 'qcow', 'key-secret': 's', 'hash-alg': 'sha1'},
                )
            ],
        ],
    ),
    Qmps(
        'encryption-open',
        args=SECRETS,
        lines=[
            FILE,
            *new(LUKS),
            add('qcow2', 'n', file='f'),
            add('qcow2', 'n', file='f', encrypt={'format': 'luks'}),
            add('qcow2', 'n', file='f', encrypt={'format': 'luks', 'key-secret': 'none'}),
            add('qcow2', 'n', file='f', encrypt={'format': 'luks', 'key-secret': 't'}),
            add('qcow2', 'n', file='f', encrypt={'format': 'aes', 'key-secret': 's'}),
            add('qcow2', 'n', file='f', encrypt={'format': 'qcow', 'key-secret': 's'}),
            add('qcow2', 'n', file='f', encrypt={'key-secret': 's'}),
            add('qcow2', 'n', file='f', encrypt=OPEN),
            delete('n'),
        ],
    ),
    Qmps(
        'encryption-old-aes-not-created',
        args=SECRETS,
        lines=[FILE, *attempts({'format': 'qcow'}, {'format': 'qcow', 'key-secret': 'none'})],
    ),
    Qmps(
        'encryption-old-aes',
        args=SECRETS,
        lines=[
            add('qcow2', 'n', file=file('aes.qcow2'), **READ_ONLY),
            add('qcow2', 'n', file=file('aes.qcow2'), encrypt=OPEN, **READ_ONLY),
            add('qcow2', 'n', file=file('aes.qcow2'), encrypt={'format': 'aes'}, **READ_ONLY),
            add('qcow2', 'n', file=file('aes.qcow2'), encrypt={**OPEN, 'format': 'aes'}, **READ_ONLY),
            NODES,
            *keys(state='active', new_secret='t', iter_time=10),
            *amended('n', driver='qcow2', encrypt={'format': 'qcow'}),
        ],
    ),
    Qmps(
        'encryption-keys',
        args=SECRETS,
        lines=[
            FILE,
            *new(LUKS),
            add('qcow2', 'n', file='f', encrypt=OPEN),
            *keys(state='active'),
            *keys(state='active', new_secret='none'),
            *keys(state='active', new_secret='t', old_secret='s'),
            *keys(state='active', new_secret='t', keyslot=0, iter_time=10),
            *keys(state='active', new_secret='t', keyslot=8, iter_time=10),
            *keys(state='active', new_secret='t', keyslot=-1, iter_time=10),
            *keys(state='active', new_secret='t', iter_time=10, secret='t'),
            *keys(state='active', new_secret='t', iter_time=10, secret='none'),
            *keys(state='active', new_secret='t', iter_time=10),
            *keys(state='active', new_secret='t', iter_time=10, keyslot=5, secret='t'),
            NODES,
            *keys(state='inactive'),
            *keys(state='inactive', new_secret='t'),
            *keys(state='inactive', keyslot=3),
            *keys(state='inactive', keyslot=9),
            *keys(state='inactive', keyslot=5, old_secret='s'),
            *keys(state='inactive', old_secret='none'),
            *keys(state='inactive', keyslot=5, iter_time=10),
            *keys(state='inactive', keyslot=5, secret='s'),
            *keys(state='inactive', old_secret='t'),
            *keys(state='inactive', old_secret='t'),
            *keys(state='inactive', old_secret='s'),
            *keys(state='inactive', keyslot=0),
            NODES,
            *amended('n', driver='qcow2', encrypt={'format': 'qcow'}),
            *amended('n', driver='qcow2'),
            delete('n'),
            add('qcow2', 'n', file='f', encrypt=OPEN),
        ],
    ),
    Qmps(
        'encryption-keys-forced',
        args=SECRETS,
        lines=[
            FILE,
            *new(LUKS),
            add('qcow2', 'n', file='f', encrypt=OPEN),
            *keys(force=True, state='active', new_secret='t', keyslot=0, iter_time=10),
            delete('n'),
            add('qcow2', 'n', file='f', encrypt=OPEN),
            add('qcow2', 'n', file='f', encrypt={**OPEN, 'key-secret': 't'}),
            *keys(force=True, state='inactive', keyslot=0),
            NODES,
            *keys(state='active', new_secret='t', iter_time=10),
            delete('n'),
            add('qcow2', 'n', file='f', encrypt={**OPEN, 'key-secret': 't'}),
        ],
    ),
]


def warned(ours, theirs):
    """Opening said something on standard error."""
    ours[-1][1][0]['stderr'] = re.sub(
        ".*node 'n': the old AES encryption of qcow2 does not protect.*\n", '', ours[-1][1][0]['stderr'], count=1
    )
    return ours, theirs


def without_sizes(value):
    """Of files."""
    if isinstance(value, dict):
        gone = {'actual-size', 'virtual-size'} if value.get('format') == 'file' else {'actual-size'}
        return {key: without_sizes(item) for key, item in value.items() if key not in gone}
    return [without_sizes(item) for item in value] if isinstance(value, list) else value


REFUSED = 'The old AES encryption is not safe'
ALLOWED = [
    Allowed(
        'encryption-(created.*|keys.*)',
        'The reference writes in another order, so that files have other holes, and does not cut them first.',
        lambda ours, theirs: tuple([(what, without_sizes(got)) for what, got in side] for side in (ours, theirs)),
    ),
    Allowed(
        'encryption-old-aes-not-created',
        'The reference still makes images with an encryption that does not protect them.',
        lambda ours, theirs: line(3, REFUSED, "'encrypt.key-secret' is required")(
            *line(7, REFUSED, "No secret with id 'none'")(ours, theirs)
        ),
    ),
    Allowed('encryption-old-aes', 'The reference does not say that this encryption does not protect.', warned),
]
