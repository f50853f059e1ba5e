# SPDX-License-Identifier: Apache-2.0
"""Encrypted qcow2 images that the reference made: read and written by Granary, and read and checked by the reference;
changes of their keys."""

import pathlib
import shutil
import subprocess

import pytest

from lib import images
from lib.encrypted import (
    KIB,
    MIB,
    OTHER,
    SECRET,
    SIZE,
    amend,
    connect,
    image_opts,
    make_with_reference,
    open_image,
    read_with_reference,
    stop_and_compare,
    write_with_reference,
)
from lib.qmp import QmpError
from lib.tools import libnbd, need, run
from lib.workload import read_all, scatter, use

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


@pytest.fixture(scope='module')
def original(tmp_path_factory):
    """By the reference, which measures the processor for seconds before it makes one."""
    need('qemu-img')
    path = tmp_path_factory.mktemp('original') / 'e.qcow2'
    make_with_reference(path, {})
    return path


@pytest.fixture
def path(original, tmp):
    """A copy of it for one test."""
    return pathlib.Path(shutil.copy(original, tmp))


@pytest.mark.sanitize
@pytest.mark.parametrize('backed', [False, True], ids=['alone', 'backed'])
@pytest.mark.parametrize('options', OPTIONS, ids=[','.join(f'{k}={v}' for k, v in o.items()) or 'plain' for o in OPTIONS])
def test_both_programs_read_and_write(options, backed, daemon, tmp, rng):
    need('qemu-img', 'qemu-io')
    libnbd()
    path = tmp / 'e.qcow2'
    content = images.fill_raw(tmp / 'base.img', rng, SIZE) if backed else bytes(SIZE)
    make_with_reference(path, options, backing=tmp / 'base.img' if backed else None)
    shadow = bytearray(content)
    write_with_reference(path, shadow)
    served = daemon(*SECRET, nbd=True)
    open_image(served, path)
    node = served.node('q')
    theirs = images.info(path, '-U')['format-specific']['data']['encrypt']
    ours = node['image']['format-specific']['data']['encrypt']
    ours.pop('detached-header')  # not said by the reference of Debian 12
    assert node['encrypted'] and node['image']['encrypted'] and ours == theirs
    shadow = use(connect(served, writable=True), rng, shadow)
    stop_and_compare(served, path, shadow)
    for at in range(0, SIZE, 64 * KIB):  # nothing in the file is plain
        piece = bytes(shadow[at : at + 64 * KIB])
        if any(piece) and piece != content[at : at + 64 * KIB]:
            assert piece not in path.read_bytes()
            break


def slots(served):
    slots = served.node('q')['image']['format-specific']['data']['encrypt']['slots']
    return [i for i, slot in enumerate(slots) if slot['active']]


def opens(path, secret):
    """With the reference."""
    options = image_opts(path).replace('"key-secret": "s"', f'"key-secret": "{secret}"')
    command = ['qemu-io', '-U', '-r', *SECRET, *OTHER, '-c', 'length', options]
    return 'Invalid password' not in subprocess.run(command, capture_output=True, text=True).stderr


@pytest.mark.sanitize
def test_keys_are_added_and_erased(daemon, path, rng):
    """While the image is in use, on a loop of its own; what is in it stays."""
    need('qemu-io')
    served = daemon(*SECRET, *OTHER, '--object', 'iothread,id=io', nbd=True)
    open_image(served, path)
    handle = connect(served, writable=True, iothread='io')
    shadow = bytearray(SIZE)
    amend(served, state='active', new_secret='t', iter_time=10)
    scatter(handle, rng, shadow)
    assert slots(served) == [0, 1] and opens(path, 's') and opens(path, 't')
    amend(served, state='active', new_secret='t', iter_time=10, keyslot=6, secret='t')
    with pytest.raises(QmpError, match='Refusing to overwrite active keyslot 6'):
        amend(served, state='active', new_secret='s', iter_time=10, keyslot=6)
    amend(served, state='inactive', old_secret='s')
    assert slots(served) == [1, 6] and not opens(path, 's') and opens(path, 't')
    amend(served, state='inactive', keyslot=6)
    with pytest.raises(QmpError, match='Attempt to erase the only active keyslot 1'):
        amend(served, state='inactive', keyslot=1)
    amend(served, force=True, state='active', new_secret='s', iter_time=10, keyslot=1, secret='t')
    assert slots(served) == [1] and opens(path, 's') and not opens(path, 't')
    scatter(handle, rng, shadow)
    assert read_all(handle) == shadow
    handle.shutdown()
    stop_and_compare(served, path, shadow)


def test_keys_of_images_that_cannot_be_written(daemon, path):
    served = daemon(*SECRET, *OTHER)
    open_image(served, path, read_only=True)
    before = path.read_bytes()
    with pytest.raises(QmpError, match="Node 'q' is read-only: its keys cannot be changed"):
        amend(served, state='active', new_secret='t', iter_time=10)
    assert path.read_bytes() == before


def test_keys_are_not_written_over_tables(daemon, path):
    """A damaged image whose header is said to go on over the L1 table."""
    data = bytearray(path.read_bytes())
    at = data.index(bytes.fromhex('0537be77')) + 8
    header, l1 = int.from_bytes(data[at : at + 8], 'big'), int.from_bytes(data[40:48], 'big')
    length = int.from_bytes(data[at + 8 : at + 16], 'big')
    # The reference puts the L1 table in front of the header: another one, behind the key slots that are in use.
    table = header + 1536 * KIB
    data[table : table + 64 * KIB] = data[l1 : l1 + 64 * KIB]
    data[40:48] = table.to_bytes(8, 'big')
    path.write_bytes(data)
    assert table < header + length
    served = daemon(*SECRET, *OTHER)
    open_image(served, path)
    before = path.read_bytes()[table : table + 64 * KIB]
    with pytest.raises(QmpError, match="Cannot change the keys of node 'q'"):
        amend(served, state='active', new_secret='t', iter_time=10, keyslot=6)
    served.qmp.wait_event('BLOCK_IMAGE_CORRUPTED')
    assert path.read_bytes()[table : table + 64 * KIB] == before


def test_discards_in_a_raw_data_file(daemon, tmp):
    """A hole in the file would be read as what zeroes decrypt to."""
    path = tmp / 'e.qcow2'
    make_with_reference(path, {'cluster_size': 4096, 'data_file': tmp / 'e.data', 'data_file_raw': 'on'})
    served = daemon(*SECRET, nbd=True)
    open_image(served, path, discard='unmap')
    handle = connect(served, writable=True)
    handle.pwrite(b'x' * 64 * KIB, 0)
    handle.trim(8 * KIB, 4 * KIB)
    handle.zero(8 * KIB, 20 * KIB)
    wanted = bytearray(b'x' * 64 * KIB)
    for start in 4 * KIB, 20 * KIB:
        wanted[start : start + 8 * KIB] = bytes(8 * KIB)
    assert handle.pread(64 * KIB, 0) == wanted
    handle.shutdown()
    served.stop()
    assert read_with_reference(path)[: 64 * KIB] == wanted


def test_old_aes_is_read_only(daemon, tmp, rng):
    need('qemu-img', 'qemu-io')
    path = tmp / 'a.qcow2'
    make_with_reference(path, {}, form='aes')
    shadow = bytearray(SIZE)
    write_with_reference(path, shadow, 'aes')
    served = daemon(*SECRET, nbd=True)
    with pytest.raises(QmpError, match='can only be read: open it with read-only=on'):
        open_image(served, path, 'aes')
    open_image(served, path, 'aes', read_only=True)
    assert "node 'q': the old AES encryption of qcow2 does not protect what is in the image" in served.stderr()
    handle = connect(served)
    assert read_all(handle) == shadow
    handle.shutdown()
    before = path.read_bytes()
    file = next(n['node-name'] for n in served.cmd('query-named-block-nodes', flat=True) if n['drv'] == 'file')
    encrypt = {'format': 'aes', 'key-secret': 's'}
    with pytest.raises(QmpError, match='can only be read'):
        served.cmd('blockdev-reopen', options=[{'driver': 'qcow2', 'node-name': 'q', 'file': file, 'encrypt': encrypt}])
    assert path.read_bytes() == before


def test_refused(daemon, path, tmp):
    """With the words of the reference."""
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
def test_damaged_pointer_to_the_header(at, value, daemon, path):
    """Offset and length of the LUKS header in the image are not believed."""
    data = bytearray(path.read_bytes())
    start = data.index(bytes.fromhex('0537be77')) - 8
    data[start + at : start + at + 8] = value
    path.write_bytes(data)
    served = daemon(*SECRET)
    with pytest.raises(QmpError):
        open_image(served, path)
