# SPDX-License-Identifier: Apache-2.0
"""Growing a disk: with space that is reserved, and over what was behind its end."""

import json
import os
import struct

import pytest

from lib import images
from lib.fusefile import cleaned, export_option, fallocate, need_fuse
from lib.tools import need, run

KIB = 1 << 10
MIB = 1 << 20
SIZE = MIB
DATA = 100 * KIB  # written at the start

SHAPES = {
    'v3': [],
    'v2': ['-o', 'compat=0.10'],
    'small-clusters': ['-o', 'cluster_size=512'],
    'large-clusters': ['-o', 'cluster_size=2M'],
    'extended': ['-o', 'extended_l2=on'],
    'data-file': ['-o', 'data_file=image.data'],
    'raw-data-file': ['-o', 'data_file=image.data,data_file_raw=on'],
    'backing': ['-b', 'base', '-F', 'raw'],
    'v2-backing': ['-o', 'compat=0.10', '-b', 'base', '-F', 'raw'],
    'extended-backing': ['-o', 'extended_l2=on', '-b', 'base', '-F', 'raw'],
    'data-file-backing': ['-o', 'data_file=image.data', '-b', 'base', '-F', 'raw'],
}


def make(directory, shape, size=SIZE):
    """An image with some data; the backing file is longer than the disk."""
    directory.mkdir()
    (directory / 'base').write_bytes(b'\x07' * (3 * MIB))
    path = directory / 'image'
    run('qemu-img', 'create', '-q', '-f', 'qcow2', *SHAPES[shape], path, size, cwd=directory)
    images.qemu_io(path, [f'write -P 5 0 {DATA}'])
    return path


def layout(path):
    """Where the image has what, as the reference sees it, without places in the file; neighbours that are alike are one."""
    told = run('qemu-img', 'map', '--output=json', path, cwd=path.parent, text=True).stdout
    joined = []
    for extent in json.loads(told):
        kind = tuple(extent[key] for key in ('depth', 'present', 'zero', 'data')) + ('offset' in extent,)
        if joined and joined[-1][1] == kind:
            joined[-1][0] += extent['length']
        else:
            joined.append([extent['length'], kind])
    return joined


def expected(shape, size, grown):
    """The contents: what was behind the old end of the backing file does not show."""
    rest = b'\x07' if 'backing' in shape else b'\0'
    return b'\x05' * DATA + rest * (size - DATA) + bytes(grown - size)


def occupied(directory):
    return sum(os.stat(file).st_blocks * 512 for file in directory.glob('image*'))


def node(path):
    return f'driver=qcow2,node-name=n,discard=unmap,file.driver=file,file.filename={path}'


@pytest.mark.better
@pytest.mark.sanitize
@pytest.mark.parametrize('size,more', [(SIZE, 4 * MIB), (SIZE + 512, 300 * KIB), (SIZE - 512, 512)])
@pytest.mark.parametrize('shape', SHAPES)
def test_space_behind_the_end_is_reserved_as_the_reference_does(shape, size, more, daemon, tmp):
    need_fuse()
    need('qemu-img')
    ours, theirs = make(tmp / 'ours', shape, size), make(tmp / 'theirs', shape, size)
    mountpoint = tmp / 'file'
    mountpoint.touch()
    with cleaned(mountpoint):
        served = daemon('--blockdev', node(ours), '--export', export_option(mountpoint, 'n', growable='on'))
        with open(mountpoint, 'rb+', buffering=0) as file:
            fallocate(file.fileno(), 0, size, more)
        assert mountpoint.read_bytes() == expected(shape, size, size + more)
        served.stop()
    images.check(ours)
    assert images.to_raw(ours) == expected(shape, size, size + more)
    run('qemu-img', 'resize', '-q', '--preallocation=falloc', theirs, size + more, cwd=theirs.parent)
    assert occupied(ours.parent) >= DATA + more
    if size == SIZE:  # else the reference leaves the rest of the last cluster as it is
        assert layout(ours) == layout(theirs)
        assert occupied(ours.parent) <= occupied(theirs.parent) + 128 * KIB


@pytest.mark.parametrize('shape', SHAPES)
def test_what_is_mapped_behind_the_end_does_not_show(shape, daemon, tmp):
    """An image whose header alone says that it is smaller: data, zeroes and tables follow the end."""
    need('qemu-img')
    path = make(tmp / 'ours', shape, 4 * MIB)
    images.qemu_io(path, ['write -P 9 0 4M', 'write -z 1088k 64k'])
    new = SIZE + 512
    with open(path, 'rb+') as file:
        file.seek(24)
        file.write(struct.pack('>Q', new))
    served = daemon('--blockdev', node(path), nbd=True)
    for size in (3 * MIB + 1024, new, 4 * MIB):  # the second time, what was written meanwhile is behind the end
        served.cmd('block_resize', node_name='n', size=size)
        served.export('n', 'e', writable=True)
        handle = served.connect('n')
        assert handle.get_size() == size
        assert handle.pread(new, 0) == b'\x09' * new
        if size > new:
            assert handle.pread(size - new, new) == bytes(size - new)
            handle.pwrite(b'\x0b' * 65536, size - 65536)
        handle.shutdown()
        served.unexport('e', mode='hard')
    served.stop()
    images.check(path)
    whole = b'\x09' * new + bytes(4 * MIB - 65536 - new) + b'\x0b' * 65536
    assert images.to_raw(path) == whole
    if 'raw' in shape:
        assert (path.parent / 'image.data').read_bytes() == whole


def test_space_for_an_image_inside_an_image_is_reserved(daemon, tmp):
    """A format that is created in a qcow2 node grows that with its own preallocation."""
    need('qemu-img')
    path = make(tmp / 'ours', 'v3')
    served = daemon('--blockdev', node(path))
    for name, mode in (('a', 'falloc'), ('b', 'full')):
        served.cmd(
            'blockdev-create',
            job_id=name,
            options={'driver': 'qcow2', 'file': 'n', 'size': 4 * MIB, 'preallocation': mode},
        )
        served.qmp.wait_event('JOB_STATUS_CHANGE', id=name, status='concluded')
        assert 'error' not in served.cmd('query-jobs')[0]
        served.cmd('job-dismiss', id=name)
    served.stop()
    images.check(path)
    assert occupied(path.parent) >= 4 * MIB
    inner = tmp / 'inner'
    inner.write_bytes(images.to_raw(path))
    images.check(inner)
    assert images.to_raw(inner) == bytes(4 * MIB)


@pytest.mark.parametrize('options', ['', ',compat=0.10', ',extended_l2=on'])
def test_reserved_space_of_an_encrypted_image_reads_as_zeroes(options, daemon, tmp):
    need_fuse()
    need('qemu-img')
    path, mountpoint, plain = tmp / 'image', tmp / 'file', tmp / 'plain'
    secret = ('--object', 'secret,id=s,data=x')
    how = f'encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=20{options}'
    images.create_encrypted('-f', 'qcow2', *secret, '-o', how, path, SIZE + 512)
    before = occupied(tmp)
    mountpoint.touch()
    with cleaned(mountpoint):
        served = daemon(
            *secret,
            '--blockdev',
            node(path) + ',encrypt.format=luks,encrypt.key-secret=s',
            '--export',
            export_option(mountpoint, 'n', growable='on'),
        )
        with open(mountpoint, 'rb+', buffering=0) as file:
            fallocate(file.fileno(), 0, SIZE + 512, 2 * MIB)
            file.seek(2 * MIB + 100)
            file.write(b'\x0c' * 1000)
        whole = bytes(2 * MIB + 100) + b'\x0c' * 1000 + bytes(MIB + 512 - 1100)
        assert mountpoint.read_bytes() == whole
        served.stop()
    assert occupied(tmp) >= before + 2 * MIB
    opts = f'driver=qcow2,encrypt.key-secret=s,file.filename={path}'
    run('qemu-img', 'check', '-q', *secret, '--image-opts', opts)
    run('qemu-img', 'convert', *secret, '--image-opts', '-O', 'raw', opts, plain)
    assert plain.read_bytes() == whole
