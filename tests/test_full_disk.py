# SPDX-License-Identifier: Apache-2.0
"""A full disk gives ENOSPC to the client that writes and breaks nothing else."""

import errno
import shutil
import subprocess

import pytest

from lib import images
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
    handle, other = nbd.NBD(), nbd.NBD()
    handle.connect_uri(served.uri('n'))
    other.connect_uri(served.uri('other'))
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
    handle = nbd.NBD()
    handle.connect_uri(served.uri('c'))
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
