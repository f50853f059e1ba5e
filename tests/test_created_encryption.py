# SPDX-License-Identifier: Apache-2.0
"""Encrypted qcow2 images that Granary makes: the reference reads, writes and checks them, and says the same of them as of
its own; they read as zeroes however much is allocated in advance."""

import random

import pytest

from lib import images
from lib.differential import reference
from lib.encrypted import (
    MIB,
    OTHER,
    SECRET,
    SIZE,
    amend,
    check,
    connect,
    make_with_reference,
    open_image,
    read_with_reference,
    stop_and_compare,
    write_with_reference,
)
from lib.qmp import QmpError
from lib.tools import libnbd, need
from lib.workload import use

# Ours, and what qemu-img calls the same.
OPTIONS = {
    'plain': ({}, {}),
    'v2': ({'version': 'v2'}, {'compat': '0.10'}),
    'cluster-512': (
        {'cluster-size': 512, 'refcount-bits': 1},
        {'cluster_size': 512, 'refcount_bits': 1},
    ),
    'cluster-2M': (
        {'cluster-size': 2 * MIB, 'refcount-bits': 64, 'lazy-refcounts': True},
        {'cluster_size': 2 * MIB, 'refcount_bits': 64, 'lazy_refcounts': 'on'},
    ),
    'extended': (
        {'cluster-size': 16384, 'extended-l2': True, 'compression-type': 'zstd'},
        {'cluster_size': 16384, 'extended_l2': 'on', 'compression_type': 'zstd'},
    ),
    'metadata': ({'preallocation': 'metadata'}, {'preallocation': 'metadata'}),
    'metadata-512': (
        {'preallocation': 'metadata', 'cluster-size': 512},
        {'preallocation': 'metadata', 'cluster_size': 512},
    ),
    'metadata-extended': (
        {'preallocation': 'metadata', 'extended-l2': True},
        {'preallocation': 'metadata', 'extended_l2': 'on'},
    ),
    'falloc': ({'preallocation': 'falloc'}, {'preallocation': 'falloc'}),
    'full': ({'preallocation': 'full'}, {'preallocation': 'full'}),
    'serpent': (
        {'cipher-alg': 'serpent-128', 'cipher-mode': 'cbc', 'ivgen-alg': 'essiv', 'ivgen-hash-alg': 'md5'},
        {
            'encrypt.cipher-alg': 'serpent-128',
            'encrypt.cipher-mode': 'cbc',
            'encrypt.ivgen-alg': 'essiv',
            'encrypt.ivgen-hash-alg': 'md5',
        },
    ),
    'sha512': ({'hash-alg': 'sha512'}, {'encrypt.hash-alg': 'sha512'}),
}
CIPHER = ('cipher-alg', 'cipher-mode', 'ivgen-alg', 'ivgen-hash-alg', 'hash-alg')


def make(served, path, options):
    """By one job, in a file; what is about the cipher is part of `encrypt`."""
    encrypt = {'format': 'luks', 'key-secret': 's', 'iter-time': 10}
    encrypt.update({name: value for name, value in options.items() if name in CIPHER})
    rest = {name: value for name, value in options.items() if name not in CIPHER}
    path.touch()
    served.blockdev_add(driver='file', node_name='new', filename=str(path))
    served.qmp.run_job(
        'create',
        'blockdev-create',
        options={'driver': 'qcow2', 'file': 'new', 'size': SIZE, 'encrypt': encrypt, **rest},
    )
    served.cmd('blockdev-del', node_name='new')


def described(path):
    """What the reference says of an image, without what is never the same twice."""
    info = images.info(path, '-U')
    luks = info['format-specific']['data']['encrypt']
    for name in ('uuid', 'master-key-iters'):
        luks.pop(name)
    for slot in luks['slots']:
        slot.pop('iters', None)
    return {name: value for name, value in info.items() if name not in ('actual-size', 'filename', 'children')}


@pytest.mark.sanitize
@pytest.mark.parametrize('name', OPTIONS)
def test_created(name, daemon, tmp, rng):
    need('qemu-img', 'qemu-io')
    libnbd()
    ours, theirs = OPTIONS[name]
    path = tmp / 'e.qcow2'
    served = daemon(*SECRET, nbd=True)
    make(served, path, ours)
    check(path)
    make_with_reference(tmp / 'twin.qcow2', theirs)
    assert described(path) == described(tmp / 'twin.qcow2')
    shadow = bytearray(SIZE)
    assert read_with_reference(path) == shadow
    write_with_reference(path, shadow)
    open_image(served, path)
    shadow = use(connect(served, writable=True), rng, shadow)
    stop_and_compare(served, path, shadow)


@pytest.mark.parametrize('mode', ['falloc', 'full'])
def test_space_is_there(mode, daemon, tmp):
    """As much as without encryption."""
    served = daemon(*SECRET)
    make(served, tmp / 'e.qcow2', {'preallocation': mode})
    assert (tmp / 'e.qcow2').stat().st_blocks * 512 >= SIZE


@pytest.mark.parametrize('extended', [False, True], ids=['', 'extended'])
def test_backing(extended, daemon, tmp, rng):
    """The backing file shows; also through clusters that are allocated in advance, which extended entries can say."""
    need('qemu-img')
    libnbd()
    shadow = bytearray(images.fill_raw(tmp / 'base.img', rng, SIZE))
    served = daemon(*SECRET, nbd=True)
    options = {'extended-l2': True, 'preallocation': 'metadata'} if extended else {}
    make(served, tmp / 'e.qcow2', {'backing-file': str(tmp / 'base.img'), 'backing-fmt': 'raw', **options})
    assert read_with_reference(tmp / 'e.qcow2') == shadow
    open_image(served, tmp / 'e.qcow2')
    shadow = use(connect(served, writable=True), rng, shadow)
    stop_and_compare(served, tmp / 'e.qcow2', shadow)


@pytest.mark.parametrize('raw', [False, True], ids=['', 'raw'])
@pytest.mark.parametrize('extended', [False, True], ids=['', 'extended'])
def test_data_file(raw, extended, daemon, tmp, rng):
    """What the data file held before does not show as garbage."""
    need('qemu-img')
    libnbd()
    (tmp / 'd.img').write_bytes(random.Random(1).randbytes(SIZE))
    served = daemon(*SECRET, nbd=True)
    served.blockdev_add(driver='file', node_name='d', filename=str(tmp / 'd.img'))
    make(served, tmp / 'e.qcow2', {'data-file': 'd', 'data-file-raw': raw, 'extended-l2': extended})
    served.cmd('blockdev-del', node_name='d')
    shadow = bytearray(SIZE)
    assert read_with_reference(tmp / 'e.qcow2') == shadow
    open_image(served, tmp / 'e.qcow2')
    shadow = use(connect(served, writable=True), rng, shadow)
    stop_and_compare(served, tmp / 'e.qcow2', shadow)


def turn(served, path, secret, rng, shadow, add_key=False):
    """Finds the contents (whatever they are, with None) and changes them; perhaps the other secret becomes a key."""
    open_image(served, path, secret=secret)
    if add_key:
        amend(served, state='active', new_secret='t', iter_time=10)
    shadow = use(connect(served, writable=True), rng, shadow)
    served.unexport('exp-q', mode='hard')
    served.cmd('blockdev-del', node_name='q')
    return shadow


@pytest.mark.parametrize('name', ['plain', 'extended', 'metadata-512'])
def test_two_daemons(name, daemon, tmp, rng):
    """Each makes an image, and both change the contents and the keys of both images."""
    need('qemu-img')
    libnbd()
    ours = daemon(*SECRET, *OTHER, nbd=True)
    theirs = daemon(*SECRET, *OTHER, nbd=True, **reference().options())
    for maker, other in ((ours, theirs), (theirs, ours)):
        path = tmp / f'{maker.name}.qcow2'
        make(maker, path, OPTIONS[name][0])
        # What the reference has allocated in advance is not zero.
        shadow = turn(other, path, 's', rng, bytes(SIZE) if maker is ours else None, add_key=True)
        shadow = turn(maker, path, 't', rng, shadow)
        turn(other, path, 's', rng, shadow)
        check(path)


def test_refused(daemon, tmp):
    """And the file is as it was."""
    served = daemon(*SECRET)
    path = tmp / 'e.qcow2'
    path.write_bytes(b'precious' * 100)
    served.blockdev_add(driver='file', node_name='f', filename=str(path))
    for message, options in (
        ('Encryption with preallocation is only supported with', {'version': 'v2', 'preallocation': 'full'}),
        ("'encrypt.key-secret' is required", {'encrypt': {'format': 'luks'}}),
        ("No secret with id 'none'", {'encrypt': {'format': 'luks', 'key-secret': 'none'}}),
        ('The old AES encryption is not safe', {'encrypt': {'format': 'qcow', 'key-secret': 's'}}),
        ("out of range for parameter 'iter-time'", {'encrypt': {'format': 'luks', 'key-secret': 's', 'iter-time': -1}}),
    ):
        given = {'driver': 'qcow2', 'file': 'f', 'size': SIZE, 'encrypt': {'format': 'luks', 'key-secret': 's'}}
        with pytest.raises(QmpError, match=message):
            served.qmp.run_job('create', 'blockdev-create', options={**given, **options})
        assert path.read_bytes() == b'precious' * 100
