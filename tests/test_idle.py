# SPDX-License-Identifier: Apache-2.0
"""An idle daemon uses no CPU, whatever is connected to it."""

import time

import pytest

from lib.qmp import Qmp
from lib.tools import libnbd

SECONDS = 2


def idle_share(served):
    """CPU seconds used while nothing happens."""
    time.sleep(0.3)  # what was begun before, such as polling after the last request, may end
    before = served.cpu_seconds()
    time.sleep(SECONDS)
    return served.cpu_seconds() - before


@pytest.mark.parametrize('backend', ['io_uring', 'epoll'])
def test_idle_with_everything_connected(backend, daemon, tmp):
    nbd = libnbd()
    served = daemon(
        '--object',
        'iothread,id=t',
        '--object',
        'iothread,id=busy,poll-max-ns=10000000',
        '--chardev',
        f'socket,id=c,path={tmp}/second,server=on,wait=off',
        '--monitor',
        'chardev=c',
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
        handle = nbd.NBD()
        handle.connect_uri(served.uri(name))
        for i in range(100):
            handle.pread(512, i * 512)
        handles.append(handle)
    assert idle_share(served) <= 0.03
    second.close()


def test_idle_with_nothing(daemon):
    assert idle_share(daemon()) <= 0.02
