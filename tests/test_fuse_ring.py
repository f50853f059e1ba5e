# SPDX-License-Identifier: Apache-2.0
"""FUSE over io_uring where the kernel has it switched on, and /dev/fuse where something is missing."""

import fcntl
import os
import pathlib

import pytest

from lib.fusefile import cleaned, export_option, is_mounted, need_fuse, outcome
from lib.tools import need, need_io_uring, run, wait_until

MIB = 1 << 20
SWITCH = pathlib.Path('/sys/module/fuse/parameters/enable_uring')


@pytest.fixture
def mountpoint(tmp):
    """The kernel offers it to connections that begin meanwhile; those of other tests may have it, too. Only one test at a
    time switches it."""
    need_fuse()
    need_io_uring()
    if not SWITCH.exists():
        pytest.skip('this kernel has no FUSE over io_uring')
    path = tmp / 'mountpoint'
    path.touch()
    with open(SWITCH) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = SWITCH.read_text()
        try:
            SWITCH.write_text('Y')
        except OSError as error:
            pytest.skip(f'FUSE over io_uring cannot be switched on here: {error.strerror}')
        try:
            with cleaned(path):
                yield path
        finally:
            SWITCH.write_text(before)


def serve(daemon, tmp, mountpoint, *extra, form='raw', **options):
    image = tmp / 'image'
    if not image.exists():
        run('qemu-img', 'create', '-q', '-f', form, image, 32 * MIB)
    return daemon(
        *('--trace', 'fuse_*'),
        *('--blockdev', f'driver=file,node-name=f0,filename={image}'),
        *('--blockdev', f'driver={form},node-name=n0,file=f0'),
        *('--export', export_option(mountpoint)),
        *extra,
        **options,
    )


def ways(served, operation):
    """How requests of a kind came."""
    return {
        line.split()[1]
        for line in served.stderr().splitlines()
        if line.startswith('fuse_request ') and line.endswith(f' {operation}')
    }


def fio(mountpoint, **settings):
    options = (
        dict(rw='randwrite', bs='4k', size=8 * MIB, verify='crc32c', direct=1, iodepth=32, ioengine='libaio')
        | settings
    )
    command = [
        'fio',
        f'--filename={mountpoint}',
        '--allow_file_create=0',
        '--verify_fatal=1',
        '--verify_state_save=0',
    ]
    command += ['--name=x']
    run(*command, *[f'--{name}={value}' for name, value in options.items()])


@pytest.mark.sanitize
@pytest.mark.parametrize('form', ['raw', 'qcow2'])
def test_requests_come_through_the_ring(form, daemon, tmp, mountpoint):
    need('qemu-img', 'fio')
    served = serve(daemon, tmp, mountpoint, form=form)
    fio(mountpoint)
    fio(mountpoint, offset=8 * MIB, direct=0, ioengine='psync', bsrange='512-1m', end_fsync=1)
    contents = mountpoint.read_bytes()
    os.truncate(mountpoint, 16 * MIB)
    assert os.stat(mountpoint).st_size == 16 * MIB
    for operation in ('read', 'write', 'setattr', 'open', 'fsync'):
        assert ways(served, operation) == {'ring'}
    served.stop()
    run('qemu-img', 'convert', '-f', form, '-O', 'raw', tmp / 'image', tmp / 'raw')
    assert (tmp / 'raw').read_bytes() == contents[: 16 * MIB]


def test_without_io_uring_in_the_daemon(daemon, tmp, mountpoint):
    need('qemu-img', 'fio')
    served = serve(daemon, tmp, mountpoint, environment={'GRANARY_LOOP': 'epoll'})
    fio(mountpoint, size=MIB)
    assert ways(served, 'write') == {'device'}


@pytest.mark.sanitize
@pytest.mark.parametrize('lazily', [False, True])
def test_the_export_goes_while_the_file_is_open(lazily, daemon, tmp, mountpoint):
    """Also when it has left the name space before: the connection is ended by its number."""
    need('qemu-img')
    served = serve(daemon, tmp, mountpoint)
    fd = os.open(mountpoint, os.O_RDWR)
    if lazily:
        run('umount', '-l', mountpoint)
    assert os.pwrite(fd, b'x' * 4096, 0) == 4096
    served.unexport('e0')
    assert outcome(os.pread, fd, 4096, MIB) == 'ENOTCONN'
    assert outcome(os.fstat, fd) == 'ENOTCONN'
    assert outcome(os.close, fd) == 'ENOTCONN'
    assert not is_mounted(mountpoint)
    served.export('n0', 'e1', 'fuse', mountpoint=str(mountpoint))
    assert mountpoint.read_bytes()[:4097] == b'x' * 4096 + b'\0'
    served.stop()
    assert not is_mounted(mountpoint)


@pytest.mark.sanitize
def test_an_unmount_from_outside(daemon, tmp, mountpoint):
    need('qemu-img')
    served = serve(daemon, tmp, mountpoint)
    run('umount', mountpoint)
    served.qmp.wait_event('BLOCK_EXPORT_DELETED', id='e0')
    assert served.cmd('query-block-exports') == []


def test_after_a_crash(daemon, tmp, mountpoint):
    need('qemu-img')
    first = serve(daemon, tmp, mountpoint)
    fd = os.open(mountpoint, os.O_RDWR)
    os.write(fd, b'x' * 4096)
    first.kill()
    wait_until(lambda: outcome(os.pread, fd, 4096, MIB) == 'ENOTCONN', 'the connection has not ended')
    assert outcome(os.close, fd) == 'ENOTCONN'
    served = serve(daemon, tmp, mountpoint)
    assert mountpoint.read_bytes()[:4096] == b'x' * 4096
    served.stop()
    assert not is_mounted(mountpoint)


def test_rings_stay_when_the_node_moves(daemon, tmp, mountpoint):
    need('qemu-img', 'fio')
    served = serve(daemon, tmp, mountpoint, '--object', 'iothread,id=t0', form='qcow2')
    for name in ('t0', None):
        served.cmd('x-blockdev-set-iothread', node_name='n0', iothread=name, force=True)
        fio(mountpoint, size=2 * MIB)
    assert ways(served, 'write') == {'ring'}
    served.cmd('object-del', id='t0')
    served.stop()
    run('qemu-img', 'check', '-q', tmp / 'image')
