# SPDX-License-Identifier: Apache-2.0
"""Encrypted qcow2 images that the reference made: read and written by Granary, and read and checked by the reference."""

import json

import pytest

from lib import images
from lib.qmp import QmpError
from lib.tools import libnbd, need, output, run
from lib.workload import read_all

KIB, MIB = 1 << 10, 1 << 20
SIZE = 4 * MIB
SECRET = ('--object', 'secret,id=s,data=x')
OPTIONS = [
    {},
    {'cluster_size': 512},
    {'cluster_size': 4096, 'refcount_bits': 1},
    {'cluster_size': 2 * MIB},
    {'cluster_size': 16384, 'extended_l2': 'on'},
    {'encrypt.cipher-alg': 'aes-128', 'encrypt.cipher-mode': 'cbc', 'encrypt.ivgen-alg': 'essiv'},
    {'encrypt.cipher-alg': 'serpent-256'},
    {'compat': '0.10'},
]


def make(path, options, form='luks', backing=None):
    given = {'encrypt.format': form, 'encrypt.key-secret': 's', **options}
    if form == 'luks':
        given['encrypt.iter-time'] = 20
    text = ','.join(f'{k}={v}' for k, v in given.items())
    base = ('-b', backing, '-F', 'raw') if backing else ()
    images.create_encrypted('-f', 'qcow2', *SECRET, '-o', text, *base, path, SIZE)


def image_opts(path, form='luks'):
    encrypt = {'format': form, 'key-secret': 's'}
    return 'json:' + json.dumps(
        {'driver': 'qcow2', 'encrypt': encrypt, 'file': {'driver': 'file', 'filename': str(path)}}
    )


def read_with_reference(path, tmp, form='luks'):
    run('qemu-img', 'convert', *SECRET, '-O', 'raw', image_opts(path, form), tmp / 'plain.raw')
    return (tmp / 'plain.raw').read_bytes()


def open_image(served, path, form='luks', secret='s', **more):
    served.blockdev_add(
        driver='qcow2',
        node_name='q',
        file={'driver': 'file', 'filename': str(path)},
        encrypt={'format': form, **({'key-secret': secret} if secret else {})},
        **more,
    )


def connect(served, **options):
    served.export('q', **options)
    handle = libnbd().NBD()
    handle.connect_uri(served.uri('q'))
    return handle


def work(handle, rng, shadow):
    for _ in range(60):
        length = rng.choice((512, 1024, 4 * KIB, 5 * KIB, 64 * KIB, 300 * KIB, 3 * MIB // 2))
        offset = rng.randrange(0, SIZE - length + 1, 512)
        kind = rng.random()
        if kind < 0.7:
            data = rng.randbytes(length)
            handle.pwrite(data, offset)
        elif kind < 0.9:
            data = bytes(length)
            handle.zero(length, offset)
        else:
            handle.flush()
            data = shadow[offset : offset + length]
        shadow[offset : offset + length] = data
        assert handle.pread(length, offset) == data


@pytest.mark.sanitize
@pytest.mark.parametrize('backed', [False, True], ids=['alone', 'backed'])
@pytest.mark.parametrize('options', OPTIONS, ids=[','.join(f'{k}={v}' for k, v in o.items()) or 'plain' for o in OPTIONS])
def test_both_programs_read_and_write(options, backed, daemon, tmp, rng):
    need('qemu-img', 'qemu-io')
    libnbd()
    path = tmp / 'e.qcow2'
    content = images.fill_raw(tmp / 'base.img', rng, SIZE) if backed else bytes(SIZE)
    make(path, options, backing=tmp / 'base.img' if backed else None)
    shadow = bytearray(content)
    run('qemu-io', *SECRET, '-c', 'write -P 0x5a 3k 200k', image_opts(path))
    shadow[3 * KIB : 203 * KIB] = b'\x5a' * (200 * KIB)
    served = daemon(*SECRET, nbd=True)
    open_image(served, path)
    (node,) = [n for n in served.cmd('query-named-block-nodes', flat=True) if n['node-name'] == 'q']
    theirs = json.loads(output('qemu-img', 'info', '-U', '--output=json', path))['format-specific']['data']['encrypt']
    ours = node['image']['format-specific']['data']['encrypt']
    ours.pop('detached-header')  # not said by the reference of Debian 12
    assert node['encrypted'] and node['image']['encrypted'] and ours == theirs
    handle = connect(served, writable=True)
    assert read_all(handle) == shadow
    work(handle, rng, shadow)
    assert read_all(handle) == shadow
    handle.shutdown()
    served.stop()
    run('qemu-img', 'check', *SECRET, image_opts(path))
    assert read_with_reference(path, tmp) == shadow
    for at in range(0, SIZE, 64 * KIB):  # nothing in the file is plain
        piece = bytes(shadow[at : at + 64 * KIB])
        if any(piece) and piece != content[at : at + 64 * KIB]:
            assert piece not in path.read_bytes()
            break


def test_old_aes_is_read_only(daemon, tmp, rng):
    need('qemu-img', 'qemu-io')
    path = tmp / 'a.qcow2'
    make(path, {}, form='aes')
    run('qemu-io', *SECRET, '-c', 'write -P 0x5a 3k 200k', image_opts(path, 'aes'))
    served = daemon(*SECRET, nbd=True)
    with pytest.raises(QmpError, match='can only be read: open it with read-only=on'):
        open_image(served, path, 'aes')
    open_image(served, path, 'aes', read_only=True)
    handle = connect(served)
    assert read_all(handle) == bytes(3 * KIB) + b'\x5a' * (200 * KIB) + bytes(SIZE - 203 * KIB)
    handle.shutdown()


def test_refused(daemon, tmp):
    """With the words of the reference."""
    need('qemu-img')
    make(tmp / 'e.qcow2', {})
    run('qemu-img', 'create', '-q', '-f', 'qcow2', tmp / 'p.qcow2', '1M')
    served = daemon(*SECRET, '--object', 'secret,id=t,data=y')
    for message, name, options in (
        ("Parameter 'encrypt.key-secret' is required for cipher", 'e.qcow2', {'secret': None}),
        ("No secret with id 'none'", 'e.qcow2', {'secret': 'none'}),
        ('Invalid password, cannot unlock any keyslot', 'e.qcow2', {'secret': 't'}),
        ("Header reported 'luks' encryption format but options specify 'aes'", 'e.qcow2', {'form': 'aes'}),
        ("No encryption in image header, but options specified format 'luks'", 'p.qcow2', {}),
    ):
        with pytest.raises(QmpError) as refused:
            open_image(served, tmp / name, **options)
        assert refused.value.desc == message


@pytest.mark.parametrize('at,value', [(16, b'\xff' * 8), (16, b'\0' * 7 + b'\1'), (24, b'\x7f' * 8), (24, b'\0' * 8)])
def test_damaged_pointer_to_the_header(at, value, daemon, tmp):
    """Offset and length of the LUKS header in the image are not believed."""
    need('qemu-img')
    make(tmp / 'e.qcow2', {})
    data = bytearray((tmp / 'e.qcow2').read_bytes())
    start = data.index(bytes.fromhex('0537be77')) - 8
    data[start + at : start + at + 8] = value
    (tmp / 'e.qcow2').write_bytes(data)
    served = daemon(*SECRET)
    with pytest.raises(QmpError):
        open_image(served, tmp / 'e.qcow2')
