# SPDX-License-Identifier: Apache-2.0
"""Character devices carry QMP: sockets of each kind, server and client, reconnecting, stdio, pipe, pty, file, null."""

import json
import os
import pathlib
import socket
import stat
import subprocess
import threading
import tty

import pytest

from lib.daemon import BINARY, monitor_at
from lib.qmp import DEADLINE, Qmp
from lib.tools import wait_until

pytestmark = pytest.mark.sanitize


def works(qmp):
    assert qmp.greeting['QMP']['capabilities'] == ['oob']
    assert qmp.cmd('query-version')['qemu']['major'] >= 7


def test_tcp_server(daemon):
    served = daemon()
    served.cmd(
        'chardev-add',
        id='t',
        backend={
            'type': 'socket',
            'data': {
                'addr': {'type': 'inet', 'data': {'host': '127.0.0.1', 'port': '0'}},
                'server': True,
                'wait': False,
            },
        },
    )
    label = next(c['filename'] for c in served.cmd('query-chardev') if c['label'] == 't')
    assert label.startswith('disconnected:tcp:127.0.0.1:') and label.endswith(',server=on')
    assert int(label.split(':')[3].split(',')[0]) > 0


def test_tcp_monitor(daemon):
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    daemon(
        '--chardev', f'socket,id=c,host=127.0.0.1,port={port},server=on,wait=off', '--monitor', 'chardev=c'
    )
    sock = socket.create_connection(('127.0.0.1', port))
    works(Qmp(sock))


def test_client_mode(daemon, tmp):
    """The daemon connects to a listening socket and speaks QMP there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp / 'l'))
        listener.listen()
        daemon('--chardev', f'socket,id=c,path={tmp}/l', '--monitor', 'chardev=c')
        sock, _ = listener.accept()
        works(Qmp(sock))


@pytest.mark.parametrize('key', ['reconnect=1', 'reconnect-ms=50'])
def test_client_reconnects(key, daemon, tmp):
    """A client that is told to reconnect comes back after the server went away, and negotiates anew."""
    daemon('--chardev', f'socket,id=c,path={tmp}/l,{key}', '--monitor', 'chardev=c')
    for _ in range(3):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            (tmp / 'l').unlink(missing_ok=True)
            listener.bind(str(tmp / 'l'))
            listener.listen()
            listener.settimeout(DEADLINE)
            sock, _ = listener.accept()
            works(Qmp(sock))
            sock.close()


def test_passed_connected_descriptor(daemon):
    ours, theirs = socket.socketpair()
    daemon(
        '--chardev',
        f'socket,id=c,fd={theirs.fileno()}',
        '--monitor',
        'chardev=c',
        pass_fds=(theirs.fileno(),),
    )
    theirs.close()
    works(Qmp(ours))


def test_client_after_client(daemon, tmp):
    """One client at a time; the second is served when the first has gone, and has to negotiate for itself."""
    served = daemon(*monitor_at(tmp / 'm'))
    served.reconnect(tmp / 'm')
    second = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    second.connect(str(tmp / 'm'))
    second.settimeout(0.3)
    with pytest.raises(TimeoutError):
        second.recv(1)
    served.qmp.close()
    qmp = Qmp(second, negotiate=False)
    assert qmp.error('query-version').error_class == 'CommandNotFound'
    qmp.cmd('qmp_capabilities')
    works(qmp)
    qmp.close()
    served.reconnect(tmp / 'm')


def test_waiting_server(daemon, tmp):
    """wait=on holds the start until somebody has connected."""
    process = daemon.spawn(
        '--chardev', f'socket,id=c,path={tmp}/w,server=on', '--monitor', 'chardev=c', '--pidfile', tmp / 'p'
    )
    wait_until((tmp / 'w').exists, 'the socket')
    assert not (tmp / 'p').exists()
    qmp = Qmp.connect(tmp / 'w')
    works(qmp)
    wait_until((tmp / 'p').exists, 'the pid file')
    process.stop()


def test_stdio(tmp):
    process = subprocess.Popen(
        [BINARY, '--chardev', 'stdio,id=c', '--monitor', 'chardev=c'],
        cwd=tmp,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = process.communicate(
        b'{"execute":"qmp_capabilities"}\n{"execute":"query-block","id":1}\n{"execute":"quit"}\n',
        timeout=DEADLINE,
    )
    lines = out.split(b'\r\n')
    assert lines[0].startswith(b'{"QMP": {"version": {"qemu": {')
    assert lines[1:4] == [b'{"return": {}}', b'{"return": [], "id": 1}', b'{"return": {}}']
    assert process.returncode == 0 and b'Sanitizer' not in err


def test_pipe(daemon, tmp):
    """path.in and path.out."""
    os.mkfifo(tmp / 'pipe.in')
    os.mkfifo(tmp / 'pipe.out')
    ends = {}

    def open_ends():
        ends['in'] = os.open(tmp / 'pipe.in', os.O_RDWR)
        ends['out'] = os.open(tmp / 'pipe.out', os.O_RDWR)

    opener = threading.Thread(target=open_ends)
    opener.start()
    opener.join()
    daemon('--chardev', f'pipe,id=c,path={tmp}/pipe', '--monitor', 'chardev=c')
    os.write(ends['in'], b'{"execute":"qmp_capabilities"}{"execute":"query-block","id":"p"}')
    text = b''
    while b'"p"' not in text:
        text += os.read(ends['out'], 4096)
    assert b'"QMP"' in text and b'{"return": [], "id": "p"}' in text
    for fd in ends.values():
        os.close(fd)


def test_pty(daemon):
    served = daemon('--chardev', 'pty,id=p', '--monitor', 'chardev=p')
    name = next(c['filename'] for c in served.cmd('query-chardev') if c['label'] == 'p')
    assert name.startswith('pty:/dev/pts/')
    fd = os.open(name[4:], os.O_RDWR | os.O_NOCTTY)
    tty.setraw(fd)
    text = b''
    os.write(fd, b'{"execute":"qmp_capabilities"}{"execute":"query-block","id":"p"}')
    end = threading.Event()
    timer = threading.Timer(DEADLINE, end.set)
    timer.start()
    while b'"id": "p"' not in text and not end.is_set():
        text += os.read(fd, 4096)
    timer.cancel()
    assert b'{"return": [], "id": "p"}' in text
    os.close(fd)


def test_pty_over_qmp(daemon):
    served = daemon()
    answer = served.cmd('chardev-add', id='p', backend={'type': 'pty', 'data': {}})
    assert stat.S_ISCHR(pathlib.Path(answer['pty']).stat().st_mode)


def test_file(daemon, tmp):
    """A monitor whose output goes to a file."""
    (tmp / 'in').write_text('{"execute":"qmp_capabilities"}{"execute":"query-block","id":"f"}')
    served = daemon()
    served.cmd(
        'chardev-add',
        id='f',
        backend={'type': 'file', 'data': {'out': str(tmp / 'out'), 'in': str(tmp / 'in')}},
    )
    assert (tmp / 'out').exists()
    assert {c['label']: c['filename'] for c in served.cmd('query-chardev')}['f'] == 'file'


def test_file_truncates_or_appends(daemon, tmp):
    for name, append in (('a', True), ('t', False)):
        (tmp / name).write_text('old')
        served = daemon()
        served.cmd(
            'chardev-add',
            id='f',
            backend={'type': 'file', 'data': {'out': str(tmp / name), 'append': append}},
        )
        assert (tmp / name).read_text() == ('old' if append else '')
        served.stop()


def test_monitor_on_a_file(daemon, tmp):
    served = daemon.spawn(
        '--chardev', f'file,id=f,path={tmp}/out', '--monitor', 'chardev=f', '--pidfile', tmp / 'p'
    )
    wait_until((tmp / 'p').exists, 'the start')
    wait_until(lambda: b'"QMP"' in (tmp / 'out').read_bytes(), 'the greeting in the file')
    served.stop()


def test_null_and_ringbuf_monitors(daemon):
    daemon(
        '--chardev',
        'null,id=n',
        '--monitor',
        'chardev=n',
        '--chardev',
        'ringbuf,id=r,size=4096',
        '--monitor',
        'chardev=r',
    )


def test_abstract_socket(daemon, tmp):
    name = f'granary-test-{os.getpid()}-{tmp.name}'
    daemon('--chardev', f'socket,id=c,path={name},abstract=on,server=on,wait=off', '--monitor', 'chardev=c')
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(f'\0{name}')
    works(Qmp(sock))


def test_logfile(daemon, tmp):
    """logfile receives what the daemon writes to the device."""
    daemon(
        '--chardev',
        f'socket,id=c,path={tmp}/s,server=on,wait=off,logfile={tmp}/log',
        '--monitor',
        'chardev=c',
    )
    qmp = Qmp.connect(tmp / 's')
    works(qmp)
    lines = wait_until(
        lambda: [line for line in (tmp / 'log').read_bytes().split(b'\r\n') if line][2:], 'the log'
    )
    assert json.loads(lines[0])['return']['qemu']
