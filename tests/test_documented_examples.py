# SPDX-License-Identifier: Apache-2.0
"""The command-line examples of the reference's manual page that need only NBD, QMP and these drivers run unchanged.

The text of each example is what the manual prints; the only change is where /var/run lies, for machines without root.
"""

import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

from lib.daemon import BINARY
from lib.qmp import DEADLINE, Qmp
from lib.tools import need, output, run, wait_until

MONITOR = r"""
qemu-storage-daemon \
    --chardev socket,path=qmp.sock,server=on,wait=off,id=char1 \
    --monitor chardev=char1
"""
RAW_OVER_NBD = r"""
qemu-storage-daemon \
    --blockdev driver=file,node-name=disk,filename=disk.img \
    --nbd-server addr.type=unix,addr.path=nbd.sock \
    --export type=nbd,id=export,node-name=disk,writable=on
"""
CHARDEV_OPTION = '--chardev socket,id=char1,path=/var/run/qsd-qmp.sock,server=on,wait=off'
MONITOR_OPTION = '--monitor chardev=char1'
NBD_SERVER_OPTION = '--nbd-server addr.type=unix,addr.path=/var/run/qsd-nbd.sock'
PYTHON = """
import subprocess
import socket

sock_path = '/var/run/qmp.sock'

with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listen_sock:
    listen_sock.bind(sock_path)
    listen_sock.listen()

    fd = listen_sock.fileno()

    subprocess.Popen(
        ['qemu-storage-daemon',
         '--chardev', f'socket,fd={fd},server=on,id=char1',
         '--monitor', 'chardev=char1'],
        pass_fds=[fd],
    )

# listen_sock was automatically closed when leaving the 'with' statement
# body. If the daemon process terminated early then the following connect()
# will fail with "Connection refused" because no process has the listen
# socket open anymore. Launch errors can be detected this way.

qmp_sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
qmp_sock.connect(sock_path)
"""


@pytest.fixture
def shell(tmp):
    """Runs a documented shell command in a directory of its own, with the daemon found through PATH."""
    bin_dir = tmp / 'bin'
    bin_dir.mkdir()
    (bin_dir / 'qemu-storage-daemon').symlink_to(BINARY)
    env = dict(os.environ, PATH=f'{bin_dir}:{os.environ["PATH"]}')
    started = []

    def start(text):
        process = subprocess.Popen(
            ['sh', '-c', 'exec ' + text.replace('/var/run', str(tmp)).strip()], cwd=tmp, env=env
        )
        started.append(process)
        return process

    start.env = env
    yield start
    for process in started:
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE) == 0


def test_monitor_socket(shell, tmp):
    shell(MONITOR)
    qmp = Qmp.connect(tmp / 'qmp.sock')
    assert qmp.cmd('query-block-exports') == []


def test_raw_file_over_nbd(shell, tmp):
    need('nbdinfo')
    (tmp / 'disk.img').write_bytes(b'granary' * 4096)
    shell(RAW_OVER_NBD)
    wait_until((tmp / 'nbd.sock').exists, 'the NBD socket')
    uri = f'nbd+unix:///disk?socket={tmp}/nbd.sock'
    assert (
        wait_until(
            lambda: subprocess.run(['nbdinfo', '--size', uri], capture_output=True, check=False).stdout,
            'the export',
        ).strip()
        == b'28672'
    )
    assert output('nbdinfo', '--is', 'read-only', uri, ok=(2,)) == ''


def test_options_of_the_manual(shell, tmp):
    """The option examples: a QMP monitor below /var/run, an NBD server there, the pid file for kill."""
    shell(
        f'qemu-storage-daemon {CHARDEV_OPTION} {MONITOR_OPTION} {NBD_SERVER_OPTION} --pidfile path-to-qsd.pid'
    )
    wait_until((tmp / 'path-to-qsd.pid').exists, 'the pid file')
    Qmp.connect(tmp / 'qsd-qmp.sock')
    assert (tmp / 'qsd-nbd.sock').is_socket()
    run('sh', '-c', 'kill -s TERM $(cat path-to-qsd.pid)', cwd=tmp)
    wait_until(lambda: not (tmp / 'path-to-qsd.pid').exists(), 'the pid file to go')


def test_python_with_descriptor_passing(shell, tmp):
    """The Python example, then a QMP conversation on its qmp_sock. It needs no waiting for the socket by design."""
    script = (
        PYTHON.replace('/var/run', str(tmp))
        + """
file = qmp_sock.makefile('rw')
print(file.readline().strip(), flush=True)
file.write('{"execute":"qmp_capabilities"}{"execute":"query-version"}{"execute":"quit"}')
file.flush()
for line in file:
    print(line.strip(), flush=True)
"""
    )
    done = subprocess.run(
        [sys.executable, '-c', script],
        env=shell.env,
        cwd=tmp,
        stdout=subprocess.PIPE,
        timeout=DEADLINE,
        check=True,
    )
    lines = done.stdout.decode().split('\n')
    assert '"QMP"' in lines[0] and '"capabilities": ["oob"]' in lines[0]
    assert '{"return": {}}' in lines[1]
    assert '"qemu"' in lines[2]
    assert '{"return": {}}' in lines[3]


def test_nbd_server_with_descriptor_passing(tmp, daemon):
    """ "The same socket spawning approach also works with the --nbd-server addr.type=fd,addr.str=<fd>"."""
    import socket

    need('nbdinfo')
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp / 'passed.sock'))
        listener.listen()
        fd = listener.fileno()
        daemon(
            '--blockdev',
            'null-co,node-name=n,size=4096',
            '--nbd-server',
            f'addr.type=fd,addr.str={fd}',
            '--export',
            'nbd,id=e,node-name=n',
            pass_fds=(fd,),
        )
    assert output('nbdinfo', '--size', f'nbd+unix:///n?socket={tmp}/passed.sock').strip() == '4096'


def test_the_link_has_the_old_name():
    assert pathlib.Path(BINARY).name == 'qemu-storage-daemon'
    assert shutil.which(BINARY)
