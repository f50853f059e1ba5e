# SPDX-License-Identifier: Apache-2.0
"""The pid file: contents, mode, lock, removal, reuse after a crash."""

import pathlib

import pytest

from lib.daemon import monitor_at
from lib.program import StartError
from lib.qmp import Qmp
from lib.tools import wait_until


def test_contents_and_mode(daemon):
    served = daemon()
    path = served.directory / f'{served.name}.pid'
    assert path.read_text() == f'{served.process.pid}\n'
    assert path.stat().st_mode & 0o777 == 0o600
    served.stop()
    assert not path.exists()


def test_second_instance_is_refused(daemon, tmp):
    daemon.spawn('--pidfile', tmp / 'p')
    wait_until((tmp / 'p').exists, 'the pid file')
    wait_until(lambda: (tmp / 'p').read_text(), 'its contents')
    before = (tmp / 'p').read_text()
    second = daemon.spawn('--pidfile', tmp / 'p')
    second.wait(1)
    assert (
        second.stderr()
        == 'qemu-storage-daemon: cannot create PID file: Cannot lock pid file: Resource temporarily unavailable\n'
    )
    assert (tmp / 'p').read_text() == before


def test_stays_after_sigkill_and_is_reused(daemon, tmp):
    first = daemon()
    path = first.directory / f'{first.name}.pid'
    first.kill()
    assert path.exists()
    second = daemon.spawn('--pidfile', path)
    wait_until(lambda: path.read_text() == f'{second.process.pid}\n', 'the new pid')
    second.stop()
    assert not path.exists()


def test_unwritable_path(daemon):
    with pytest.raises(
        StartError, match='cannot create PID file: Could not create .*: No such file or directory'
    ) as caught:
        daemon('--pidfile', '/missing/dir/p')
    assert caught.value.exit_code == 1


def test_written_after_everything_else(daemon, tmp):
    """When the pid file is there, exports and sockets are too."""
    for i in range(10):
        served = daemon.spawn(
            '--pidfile',
            tmp / f'{i}.pid',
            *monitor_at(tmp / f'{i}.qmp'),
            '--blockdev',
            'null-co,node-name=n',
            '--nbd-server',
            f'addr.type=unix,addr.path={tmp}/{i}.nbd',
            '--export',
            'nbd,id=e,node-name=n',
        )
        wait_until((tmp / f'{i}.pid').exists, 'the pid file')
        assert pathlib.Path(tmp / f'{i}.nbd').is_socket()
        qmp = Qmp.connect(tmp / f'{i}.qmp')
        assert [export['id'] for export in qmp.cmd('query-block-exports')] == ['e']
        qmp.close()
        served.stop()
