# SPDX-License-Identifier: Apache-2.0
"""Exported files on several loops: all of them work, nodes move under load, and no byte is lost."""

import json
import os
import subprocess

import pytest

from lib.fusefile import cleaned, need_fuse
from lib.tools import need, run, wait_until

MIB = 1 << 20
pytestmark = pytest.mark.sanitize


@pytest.fixture
def mountpoint(tmp):
    need_fuse()
    path = tmp / 'mountpoint'
    path.touch()
    with cleaned(path):
        yield path


def iothreads(*names):
    return [argument for name in names for argument in ('--object', f'iothread,id={name}')]


def export(mountpoint, **options):
    arguments = {
        'type': 'fuse',
        'id': 'e0',
        'node-name': 'n0',
        'mountpoint': str(mountpoint),
        'writable': True,
    }
    return ('--export', json.dumps(arguments | options))


def fio(mountpoint, size, *more, **settings):
    options = dict(rw='randwrite', bs='4k', size=size, verify='crc32c', direct=1, iodepth=16) | settings
    command = [
        'fio',
        f'--filename={mountpoint}',
        '--allow_file_create=0',
        '--verify_fatal=1',
        '--verify_state_save=0',
    ]
    command += ['--thread=1', '--name=x']
    return [*command, *[f'--{name}={value}' for name, value in options.items()], *more]


def make_image(path, form, size):
    run('qemu-img', 'create', '-q', '-f', form, path, size)
    return (
        *('--blockdev', f'driver=file,node-name=f0,filename={path}'),
        *('--blockdev', f'driver={form},node-name=n0,file=f0'),
    )


@pytest.mark.parametrize('form', ['raw', 'qcow2'])
def test_each_loop_of_the_list_serves(form, daemon, tmp, mountpoint):
    need('qemu-img', 'fio')
    nodes = make_image(tmp / 'image', form, 64 * MIB)
    served = daemon(*iothreads('t0', 't1', 't2'), *nodes, *export(mountpoint, iothread=['t0', 't1', 't2']))
    before = served.thread_times()
    run(
        *fio(
            mountpoint, 16 * MIB, numjobs=4, offset_increment=16 * MIB, ioengine='io_uring', bsrange='4k-64k'
        )
    )
    after = served.thread_times()
    ids = {thread['id']: thread['thread-id'] for thread in served.cmd('query-iothreads')}
    for name in ('t0', 't1', 't2'):
        assert after[ids[name]] > before[ids[name]], f'{name} has done nothing'
    contents = mountpoint.read_bytes()
    served.stop()
    run('qemu-img', 'convert', '-f', form, '-O', 'raw', tmp / 'image', tmp / 'raw')
    assert (tmp / 'raw').read_bytes() == contents


def test_a_single_iothread_serves(daemon, tmp, mountpoint):
    data = os.urandom(4 * MIB)
    nodes = ('--blockdev', f'driver=file,node-name=n0,filename={tmp / "image"}')
    (tmp / 'image').write_bytes(bytes(4 * MIB))
    served = daemon(*iothreads('t0'), *nodes, *export(mountpoint, iothread='t0', **{'fixed-iothread': True}))
    with open(mountpoint, 'r+b', buffering=0) as file:
        assert file.write(data) == len(data)
        os.truncate(mountpoint, MIB)
        os.fsync(file.fileno())
    assert (tmp / 'image').read_bytes() == data[:MIB]
    served.stop()


@pytest.mark.better
def test_the_node_moves_under_load(daemon, tmp, mountpoint):
    need('qemu-img', 'fio')
    nodes = make_image(tmp / 'image', 'qcow2', 64 * MIB)
    served = daemon(*iothreads('t0', 't1'), *nodes, *export(mountpoint))
    load = fio(mountpoint, 32 * MIB, ioengine='libaio', bsrange='4k-64k')
    with subprocess.Popen(load, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        moves = 0
        while process.poll() is None:
            for name in ('t0', 't1', None):
                served.cmd('x-blockdev-set-iothread', node_name='n0', iothread=name, force=True)
                moves += 1
        output = process.stdout.read()
        assert process.returncode == 0, output
    assert moves > 3
    for name in ('t0', 't1'):  # nobody is left on them
        wait_until(lambda name=name: removed(served, name), f'{name} is in use')
    served.stop()
    run('qemu-img', 'check', '-q', tmp / 'image')


def removed(served, name):
    return 'return' in served.qmp.reply_to(served.qmp.send('object-del', {'id': name}))


def test_exports_come_and_go_under_load(daemon, tmp, mountpoint):
    """Each time some of the requests are in flight."""
    need('qemu-img', 'fio')
    nodes = make_image(tmp / 'image', 'qcow2', 16 * MIB)
    served = daemon(*iothreads('t0', 't1'), *nodes)
    for i in range(8):
        mountpoint.touch()  # fio removes a file of the wrong size, which it meets when it comes too late
        served.export(
            'n0',
            'e0',
            'fuse',
            mountpoint=str(mountpoint),
            writable=True,
            iothread=['t0', 't1'] if i % 2 else 't0',
        )
        load = fio(mountpoint, 16 * MIB, ioengine='libaio', time_based=1, runtime=60, verify=0)
        with subprocess.Popen(load, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            if i % 4:
                wait_until(lambda: (tmp / 'image').stat().st_blocks > i, 'nothing is written')
            served.unexport('e0')
            process.wait()
    served.stop()
    run('qemu-img', 'check', '-q', tmp / 'image')
