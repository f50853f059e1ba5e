# SPDX-License-Identifier: Apache-2.0
"""An idle daemon uses no CPU, whatever is connected to it."""

import time

import pytest

from lib.daemon import monitor_at
from lib.fusefile import cleaned, export_option, need_fuse
from lib.qmp import Qmp
from lib.vhostuser import Guest, export

SECONDS = 2


def idle_share(served):
    """CPU seconds used while nothing happens."""
    time.sleep(0.3)  # what was begun before, such as polling after the last request, may end
    before = served.cpu_seconds()
    time.sleep(SECONDS)
    return served.cpu_seconds() - before


@pytest.mark.parametrize('backend', ['io_uring', 'epoll'])
def test_idle_with_everything_connected(backend, daemon, tmp):
    served = daemon(
        '--object',
        'iothread,id=t',
        '--object',
        'iothread,id=busy,poll-max-ns=10000000',
        *monitor_at(tmp / 'second'),
        '--blockdev',
        'null-co,node-name=n,size=1048576',
        '--blockdev',
        'null-co,node-name=m,size=1048576',
        '--blockdev',
        'null-co,node-name=o,size=1048576',
        '--export',
        'nbd,id=n,node-name=n',
        '--export',
        'nbd,id=m,node-name=m,iothread=t',
        '--export',
        'nbd,id=o,node-name=o,iothread=busy',
        nbd=True,
        environment={'GRANARY_LOOP': backend},
    )
    second = Qmp.connect(tmp / 'second')
    handles = []
    for name in ('n', 'm', 'o', 'n'):
        handle = served.connect(name)
        for i in range(100):
            handle.pread(512, i * 512)
        handles.append(handle)
    assert idle_share(served) <= 0.03
    second.close()


def test_idle_with_nothing(daemon):
    assert idle_share(daemon()) <= 0.02


def test_idle_with_64_connected_exports(daemon, tmp):
    """Half of them are disks of guests, half are files that are open; on two threads."""
    need_fuse()
    count = 32
    args = ['--object', 'iothread,id=a', '--object', 'iothread,id=b', '--blockdev', 'null-co,node-name=n,size=1048576']
    files = [tmp / f'file{i}' for i in range(count)]
    for i, file in enumerate(files):
        file.touch()
        args += export(tmp / f's{i}', ident=f'v{i}', iothread='ab'[i % 2])
        args += ['--export', export_option(file, 'n', f'f{i}', writable=False, iothread='ba'[i % 2])]
    with cleaned(*files):
        served = daemon(*args)
        guests = [Guest(tmp / f's{i}') for i in range(count)]
        opened = [open(file, 'rb', buffering=0) for file in files]
        for guest, file in zip(guests, opened):
            for i in range(20):
                assert guest.read(i, 512) == file.read(512) == bytes(512)
        assert idle_share(served) <= 0.03
        for one in guests + opened:
            one.close()
        served.stop()
