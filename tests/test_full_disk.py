# SPDX-License-Identifier: Apache-2.0
"""A full disk gives ENOSPC to the client that writes and breaks nothing else."""

import errno
import os
import shutil
import subprocess

import pytest

from lib import images
from lib.fusefile import cleaned, export_option, fallocate, need_fuse
from lib.qmp import QmpError
from lib.tools import libnbd, need, need_root, run


@pytest.fixture
def small_disk(tmp):
    """A file system of 4 MiB."""
    need_root('mounts a small file system')
    need('mount')
    mountpoint = tmp / 'disk'
    mountpoint.mkdir()
    run('mount', '-t', 'tmpfs', '-o', 'size=4M', 'tmpfs', mountpoint)
    yield mountpoint
    subprocess.run(['umount', '-l', mountpoint], check=True)


def write_until_full(nbd, handle, size):
    """Writes 64 KiB pieces until an error; returns the error number and the pieces that were written."""
    written = []
    for offset in range(0, size, 65536):
        try:
            handle.pwrite(b'%08d' % (offset // 65536) * 8192, offset)
            written.append(offset)
        except nbd.Error as error:
            return error.errnum, written
    raise AssertionError('the disk did not become full')


def expect(handle, pieces):
    for offset in pieces:
        assert handle.pread(65536, offset) == b'%08d' % (offset // 65536) * 8192, f'lost data at {offset}'


@pytest.mark.sanitize
@pytest.mark.parametrize('layout', ['qcow2', 'raw'])
def test_enospc_reaches_the_client_and_nothing_else_breaks(layout, small_disk, daemon, tmp, rng):
    nbd = libnbd()
    need('qemu-img')
    filler = small_disk / 'filler'
    filler.write_bytes(bytes(1 << 20))
    path = small_disk / 'image'
    run('qemu-img', 'create', '-q', '-f', layout, path, 8 << 20)
    images.fill_raw(tmp / 'other.img', rng, 1 << 20)
    node = (
        f'driver=qcow2,node-name=n,file.driver=file,file.filename={path}'
        if layout == 'qcow2'
        else f'driver=file,node-name=n,filename={path}'
    )
    served = daemon(
        '--blockdev',
        node,
        '--blockdev',
        f'driver=file,node-name=other,filename={tmp}/other.img',
        '--export',
        'nbd,id=e,node-name=n,writable=on',
        '--export',
        'nbd,id=o,node-name=other,writable=on',
        nbd=True,
    )
    handle, other = served.connect('n'), served.connect('other')
    error, written = write_until_full(nbd, handle, 8 << 20)
    assert error == errno.ENOSPC
    assert len(written) > 10
    expect(handle, written)
    other.pwrite(b'alive', 1000)
    assert other.pread(5, 1000) == b'alive'
    assert served.cmd('query-block-exports')
    filler.unlink()  # space again: writing goes on
    again = written[-1] + 65536
    handle.pwrite(b'%08d' % (again // 65536) * 8192, again)
    expect(handle, written + [again])
    handle.flush()
    handle.shutdown()
    other.shutdown()
    served.stop()
    if layout == 'qcow2':
        images.check(path, leaks_allowed=True)


def test_compressed_writes_on_a_full_disk(small_disk, daemon, tmp, rng):
    nbd = libnbd()
    need('qemu-img')
    path = small_disk / 'image'
    run('qemu-img', 'create', '-q', '-f', 'qcow2', path, 16 << 20)
    served = daemon(
        '--blockdev',
        f'driver=compress,node-name=c,file.driver=qcow2,file.file.driver=file,file.file.filename={path}',
        '--export',
        'nbd,id=e,node-name=c,writable=on',
        nbd=True,
    )
    handle = served.connect('c')
    written, errors = {}, []
    for offset in range(0, 16 << 20, 131072):
        data = rng.randbytes(70000) + bytes(131072 - 70000)
        try:
            handle.pwrite(data, offset)
            written[offset] = data
        except nbd.Error as error:
            errors.append(error.errnum)
    assert set(errors) == {errno.ENOSPC}
    assert len(written) > 10
    for offset, data in written.items():
        assert handle.pread(len(data), offset) == data
    handle.shutdown()
    served.stop()
    images.check(path, leaks_allowed=True)
    content = images.to_raw(shutil.copy(path, tmp / 'copy'))
    for offset, data in written.items():
        assert content[offset : offset + len(data)] == data


def test_image_creation_on_a_full_disk_fails_cleanly(small_disk, daemon):
    (small_disk / 'filler').write_bytes(bytes((4 << 20) - 8192))
    served = daemon()
    served.cmd(
        'blockdev-create',
        job_id='j',
        options={
            'driver': 'file',
            'filename': str(small_disk / 'new.img'),
            'size': 1 << 20,
            'preallocation': 'full',
        },
    )
    served.qmp.wait_event('JOB_STATUS_CHANGE', id='j', status='concluded')
    job = served.cmd('query-jobs')[0]
    assert 'No space left on device' in job['error']
    served.cmd('job-dismiss', id='j')


KIB, MIB = 1 << 10, 1 << 20


def fill_up(disk, left):
    """Takes all space of the disk but some; the file that has it."""
    filler = disk / 'filler'
    room = os.statvfs(disk)
    filler.write_bytes(bytes(room.f_bavail * room.f_bsize - left))
    return filler


def free_bytes(disk):
    room = os.statvfs(disk)
    return room.f_bavail * room.f_bsize


def create(served, **options):
    """The error of the job, or None."""
    served.cmd('blockdev-create', job_id='j', options=options)
    served.qmp.wait_event('JOB_STATUS_CHANGE', id='j', status='concluded')
    (job,) = served.cmd('query-jobs')
    served.cmd('job-dismiss', id='j')
    return job.get('error')


@pytest.mark.sanitize
@pytest.mark.parametrize(
    'options,left',
    [
        ({'preallocation': 'off', 'size': 1 << 40, 'cluster-size': 65536}, 64 * KIB),
        ({'preallocation': 'metadata', 'size': 32 * MIB, 'cluster-size': 512}, 256 * KIB),
        ({'preallocation': 'falloc', 'size': 2 * MIB}, MIB),
        ({'preallocation': 'full', 'size': 2 * MIB}, MIB),
        ({'preallocation': 'full', 'size': 2 * MIB, 'extended-l2': True}, MIB),
        ({'preallocation': 'falloc', 'size': 2 * MIB, 'data-file': 'd', 'data-file-raw': True}, MIB),
        ({'preallocation': 'full', 'size': 2 * MIB, 'data-file': 'd'}, MIB),
    ],
)
def test_new_image_needs_space_only_the_second_time(options, left, small_disk, daemon):
    need('qemu-img')
    served = daemon()
    path, data = small_disk / 'image', small_disk / 'data'
    for name, file in (('f', path), ('d', data)):
        file.touch()
        served.blockdev_add(driver='file', node_name=name, filename=str(file))
    filler = fill_up(small_disk, left)
    error = create(served, driver='qcow2', file='f', **options)
    assert 'No space left on device' in error
    filler.unlink()
    assert create(served, driver='qcow2', file='f', **options) is None
    served.stop()
    images.check(path)
    if options['size'] < 1 << 30:
        assert images.to_raw(path) == bytes(options['size'])


SHAPES = {
    'v3': [],
    'v2': ['-o', 'compat=0.10'],
    'small-clusters': ['-o', 'cluster_size=512'],
    'refcount-64': ['-o', 'cluster_size=4096,refcount_bits=64'],
    'extended': ['-o', 'extended_l2=on'],
    'data-file': ['-o', 'data_file=image.data'],
    'raw-data-file': ['-o', 'data_file=image.data,data_file_raw=on'],
    'lazy': ['-o', 'lazy_refcounts=on'],
}


def make(disk, shape, size):
    run('qemu-img', 'create', '-q', '-f', 'qcow2', *SHAPES[shape], disk / 'image', size, cwd=disk)
    return disk / 'image'


def read(path, tmp):
    run('qemu-img', 'convert', '-O', 'raw', path, tmp / 'raw', cwd=path.parent)
    return (tmp / 'raw').read_bytes()


@pytest.mark.better
@pytest.mark.parametrize('shape', SHAPES)
def test_space_that_is_not_there_cannot_be_reserved(shape, small_disk, daemon, tmp):
    """Nothing has changed then, and what was taken on the way is free again."""
    need_fuse()
    need('qemu-img', 'qemu-io')
    path = make(small_disk, shape, MIB)
    images.qemu_io(path, ['write -P 5 0 1M'])
    filler = fill_up(small_disk, MIB)
    mountpoint = tmp / 'file'
    mountpoint.touch()
    with cleaned(mountpoint):
        served = daemon(
            '--blockdev',
            f'driver=qcow2,node-name=n,file.driver=file,file.filename={path}',
            '--export',
            export_option(mountpoint, 'n', growable='on'),
        )
        with open(mountpoint, 'rb+', buffering=0) as file:
            with pytest.raises(OSError) as raised:
                fallocate(file.fileno(), 0, MIB, 2 * MIB)
            assert raised.value.errno == errno.ENOSPC
            assert os.fstat(file.fileno()).st_size == MIB
            os.fsync(file.fileno())
            assert free_bytes(small_disk) >= MIB - 256 * KIB
            subprocess.run(['cp', '--sparse=always', *small_disk.glob('image*'), tmp], check=True)
            images.check(tmp / 'image', leaks_allowed=True)
            filler.unlink()
            fallocate(file.fileno(), 0, MIB, 2 * MIB - 64 * KIB)
            file.seek(2 * MIB)
            file.write(b'\x06' * 4096)
        whole = b'\x05' * MIB + bytes(MIB) + b'\x06' * 4096 + bytes(MIB - 68 * KIB)
        assert mountpoint.read_bytes() == whole
        served.stop()
    images.check(path)
    assert read(path, tmp) == whole


def test_tables_of_a_larger_disk_do_not_fit(small_disk, daemon, tmp):
    need('qemu-img', 'qemu-io')
    path = make(small_disk, 'small-clusters', MIB)
    images.qemu_io(path, ['write -P 5 0 1M'])
    served = daemon('--blockdev', f'driver=qcow2,node-name=n,file.driver=file,file.filename={path}')
    with pytest.raises(QmpError, match='Failed to grow the L1 table: No space left on device'):
        served.cmd('block_resize', node_name='n', size=64 << 30)
    served.cmd('block_resize', node_name='n', size=64 * MIB)
    served.stop()
    images.check(path)
    assert read(path, tmp) == b'\x05' * MIB + bytes(63 * MIB)


@pytest.mark.sanitize
@pytest.mark.parametrize('shape', SHAPES)
def test_closing_on_a_full_disk_keeps_what_was_flushed(shape, small_disk, daemon, tmp, rng):
    """Writes, zeroes and discards while there is no space, and the end of the program before there is some again."""
    nbd = libnbd()
    need('qemu-img')
    size, piece = 8 * MIB, 32 * KIB
    path = make(small_disk, shape, size)
    filler = fill_up(small_disk, 3 * MIB)
    served = daemon(
        '--blockdev',
        f'driver=qcow2,node-name=n,discard=unmap,file.driver=file,file.discard=unmap,file.filename={path}',
        '--export',
        'nbd,id=e,node-name=n,writable=on',
        nbd=True,
    )
    handle = served.connect('n')
    maybe = [{b'\0'} for _ in range(size // piece)]  # what may be there now; all of it bytes of one value
    failed = 0
    for number in range(400):
        at = rng.randrange(len(maybe))
        value = bytes([rng.randrange(1, 256)])
        try:
            if number % 7 == 6:
                value = b'\0'
                handle.zero(piece, at * piece)
            elif number % 7 == 5:
                handle.flush()
                continue
            else:
                handle.pwrite(value * piece, at * piece)
            maybe[at] = {value}
        except nbd.Error as error:
            assert error.errnum == errno.ENOSPC
            failed += 1
            maybe[at] |= {value} if number % 7 != 5 else set()
    assert failed > 10
    handle.flush()
    for at, values in enumerate(maybe):
        data = bytes(handle.pread(piece, at * piece))
        assert {bytes([value]) for value in data} <= values
    handle.shutdown()
    served.stop()
    content = read(path, tmp)
    for at, values in enumerate(maybe):
        assert {bytes([value]) for value in content[at * piece :][:piece]} <= values
    filler.unlink()
    images.check(path, leaks_allowed=True)
    images.qemu_io(path, ['write -P 3 0 64k'])
    assert read(path, tmp) == b'\x03' * (64 * KIB) + content[64 * KIB :]
