# SPDX-License-Identifier: Apache-2.0
"""--daemonize: the parent tells whether the start worked; the child is detached."""

import contextlib
import os
import pathlib
import signal
import subprocess

import pytest

from lib.daemon import BINARY
from lib.qmp import DEADLINE, Qmp
from lib.tools import wait_until


@pytest.fixture
def daemonize(tmp):
    """Runs with --daemonize in the test's directory; returns the finished parent. Children end with the test."""

    def start(*args):
        return subprocess.run(
            [BINARY, '--daemonize', '--pidfile', 'd.pid', *args],
            cwd=tmp,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=DEADLINE,
            check=False,
        )

    yield start
    path = tmp / 'd.pid'
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it may be about to end by itself
        os.kill(int(path.read_text()), signal.SIGTERM)
    wait_until(lambda: not path.exists(), 'the end of the daemon')


def test_parent_returns_when_it_serves(daemonize, tmp):
    parent = daemonize('--chardev', 'socket,id=c,path=q.sock,server=on,wait=off', '--monitor', 'chardev=c')
    assert (parent.returncode, parent.stdout, parent.stderr) == (0, b'', b'')
    qmp = Qmp.connect(tmp / 'q.sock')
    assert qmp.cmd('query-block-exports') == []


def test_child_is_detached(daemonize, tmp):
    assert daemonize().returncode == 0
    pid = int((tmp / 'd.pid').read_text())
    proc = pathlib.Path(f'/proc/{pid}')
    assert os.readlink(proc / 'cwd') == '/'
    assert {os.readlink(proc / 'fd' / str(fd)) for fd in (0, 1, 2)} == {'/dev/null'}
    fields = (proc / 'stat').read_text().rsplit(')', 1)[1].split()
    assert int(fields[3]) != os.getsid(0)
    assert 'Umask:\t0027' in (proc / 'status').read_text()


def test_relative_paths_keep_working(daemonize, tmp):
    (tmp / 'disk.img').write_bytes(bytes(4096))
    parent = daemonize(
        '--chardev',
        'socket,id=c,path=q.sock,server=on,wait=off',
        '--monitor',
        'chardev=c',
        '--blockdev',
        'file,node-name=f,filename=disk.img',
        '--nbd-server',
        'addr.type=unix,addr.path=n.sock',
        '--export',
        'nbd,id=e,node-name=f',
    )
    assert parent.returncode == 0, parent.stderr
    assert (tmp / 'n.sock').is_socket()
    qmp = Qmp.connect(tmp / 'q.sock')
    qmp.cmd('quit')


def test_start_failure_is_reported(daemonize, tmp):
    parent = daemonize('--blockdev', 'file,node-name=f,filename=missing.img')
    assert parent.returncode == 1
    assert (
        parent.stderr
        == b"qemu-storage-daemon: --blockdev file,node-name=f,filename=missing.img: Could not open 'missing.img': No such file or directory\n"
    )
    assert not (tmp / 'd.pid').exists()


def test_pid_file_failure_is_reported(daemonize, tmp):
    (tmp / 'd.pid').mkdir()
    parent = daemonize()
    (tmp / 'd.pid').rmdir()
    assert parent.returncode == 1
    assert b'cannot create PID file' in parent.stderr


def test_stdio_is_refused(daemonize):
    parent = daemonize('--chardev', 'stdio,id=c')
    assert parent.returncode == 1
    assert b'cannot use stdio with -daemonize' in parent.stderr
