# SPDX-License-Identifier: Apache-2.0
"""The reservation helper and a service manager: socket activation, notification, watchdog, units."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from lib.prhelper import ACTIVATE, can_connect, greets, wait_until
from lib.prwire import DEADLINE
from lib.tools import TOP, run

# ---- Socket activation ----


@pytest.mark.sanitize
def test_passed_socket(helpers):
    one = helpers().activate('-q')
    wait_until(lambda: greets(one.path), 'the helper')
    assert one.serves()
    one.stop()
    assert one.stderr() == ''
    assert one.path.is_socket(), 'the socket belongs to the service manager'


def test_passed_socket_and_other_user(helpers):
    one = helpers().activate('-u', 'nobody')
    wait_until(lambda: greets(one.path), 'the helper')
    one.stop()
    assert one.stderr() == ''
    assert one.path.is_socket()


def test_passed_socket_and_pid_file(helpers, tmp):
    one = helpers().activate('-f', tmp / 'pid')
    wait_until(lambda: greets(one.path), 'the helper')
    assert (tmp / 'pid').read_text() == f'{one.process.pid}\n'
    one.stop()


def test_clients_that_came_before_the_start_are_served(helpers):
    one = helpers()
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as early:
        listener.bind(str(one.path))
        listener.listen(16)
        early.settimeout(DEADLINE)
        early.connect(str(one.path))
        one.spawn(prefix=activation(listener), pass_fds=[listener.fileno()])
        assert len(early.recv(4)) == 4
    one.stop()


def activation(listener):
    """A command line in front of the program's that passes the socket on."""
    return [sys.executable, '-c', ACTIVATE, str(listener.fileno()), '1', '']


def test_two_passed_sockets(helpers):
    one = helpers().activate(count=2)
    one.wait(1)
    assert one.stderr().startswith('qemu-pr-helper: ') and one.stderr().count('\n') == 1, one.stderr()
    assert 'LISTEN_FDS' in one.stderr() or 'exactly one' in one.stderr(), one.stderr()


def test_passed_socket_and_path(helpers, tmp):
    one = helpers().activate('-k', tmp / 'other.sock')
    one.wait(1)
    assert one.stderr() == "qemu-pr-helper: Unix socket can't be set when using socket activation\n"
    assert not (tmp / 'other.sock').exists()


def test_sockets_for_another_process(helpers, tmp):
    """LISTEN_PID is of somebody else: the variables were inherited by accident."""
    for pid in ('1', 'x', ''):
        one = helpers()
        made = tmp / f'{one.name}-made.sock'
        one.environment.update(LISTEN_FDS='1', LISTEN_PID=pid)
        one.spawn('-k', made)
        wait_until(lambda m=made: greets(m), 'the helper')
        one.stop()
        assert not made.exists()


def test_no_passed_sockets(helpers, tmp):
    one = helpers()
    one.activate('-k', tmp / 'made.sock', count=0)
    wait_until(lambda: greets(tmp / 'made.sock'), 'the helper')


@pytest.mark.better
@pytest.mark.parametrize('what', ['file', 'not listening', 'no unix socket', 'datagram'])
def test_what_is_passed_must_be_a_listening_socket(helpers, tmp, what):
    one = helpers()
    kinds = {
        'no unix socket': (socket.AF_INET, socket.SOCK_STREAM),
        'datagram': (socket.AF_UNIX, socket.SOCK_DGRAM),
    }
    passed = socket.socket(*kinds.get(what, (socket.AF_UNIX, socket.SOCK_STREAM)))
    if what == 'file':
        passed.close()
        passed = open(tmp / 'file', 'wb')
    if what == 'no unix socket':
        passed.listen()
    with passed:
        one.spawn(prefix=activation(passed), pass_fds=[passed.fileno()])
        one.wait(1)
    assert one.stderr().startswith('qemu-pr-helper: ') and one.stderr().count('\n') == 1, one.stderr()


@pytest.mark.better
def test_killed_helper_leaves_the_passed_socket(helpers):
    """A service manager starts it again on the same socket: nobody notices more than a pause."""
    one = helpers()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(one.path))
        listener.listen(16)
        for _ in range(3):
            one.spawn(prefix=activation(listener), pass_fds=[listener.fileno()])
            assert one.serves()
            one.kill()
            assert can_connect(one.path)


# ---- Notification ----


class Manager:
    """The service manager's side of NOTIFY_SOCKET."""

    def __init__(self, path, abstract=False):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.settimeout(DEADLINE)
        self.sock.bind(('\0' if abstract else '') + str(path))
        self.variable = ('@' if abstract else '') + str(path)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()

    def next(self):
        return self.sock.recv(4096).decode().strip().split('\n')

    def until(self, word):
        """All messages up to the one that contains the word."""
        messages = []
        while not messages or word not in messages[-1]:
            messages.append(self.next())
        return messages


@pytest.mark.better
@pytest.mark.parametrize('abstract', [False, True])
def test_ready_and_stopping(helpers, tmp, abstract):
    with Manager(tmp / 'notify', abstract) as manager:
        one = helpers(environment={'NOTIFY_SOCKET': manager.variable})
        one.spawn('-k', one.path)
        manager.until('READY=1')
        assert one.serves()
        one.signal()
        assert 'STOPPING=1' in manager.next()
        one.wait(0)


@pytest.mark.better
def test_ready_in_the_background_names_the_process(helpers, tmp):
    with Manager(tmp / 'notify') as manager:
        one = helpers(environment={'NOTIFY_SOCKET': manager.variable})
        one.spawn('-d', '-k', one.path, '-f', tmp / 'pid')
        one.wait(0)
        said = [line for message in manager.until('READY=1') for line in message]
        pid = int((tmp / 'pid').read_text())
        assert [line for line in said if line.startswith('MAINPID=')] in ([], [f'MAINPID={pid}'])
        os.kill(pid, signal.SIGTERM)
        one.wait_gone()


@pytest.mark.better
def test_no_ready_when_the_start_fails(helpers, tmp):
    with Manager(tmp / 'notify') as manager:
        one = helpers(environment={'NOTIFY_SOCKET': manager.variable})
        one.spawn('-k', '/missing/dir/x').wait(1)
        manager.sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            manager.next()


@pytest.mark.better
def test_watchdog(helpers, tmp):
    """Told to be seen every 0.8 s, it shows itself more often, also with a client in mid-command."""
    with Manager(tmp / 'notify') as manager:
        one = helpers(environment={'NOTIFY_SOCKET': manager.variable, 'WATCHDOG_USEC': '800000'})
        one.spawn('-k', one.path)
        manager.until('READY=1')
        with one.connect(), open('/dev/null', 'rb+', buffering=0) as null, one.connect() as busy:
            busy.send(b'\x5e', [null])
            last, pauses = time.monotonic(), []
            for _ in range(3):
                manager.until('WATCHDOG=1')
                pauses.append(time.monotonic() - last)
                last = time.monotonic()
        assert max(pauses) < 0.8, pauses
        one.process.send_signal(signal.SIGSTOP)  # and it is the server that speaks, not another process
        manager.sock.settimeout(0.9)
        with pytest.raises(TimeoutError):
            while True:
                manager.next()
        one.process.send_signal(signal.SIGCONT)
        manager.sock.settimeout(DEADLINE)
        manager.until('WATCHDOG=1')


@pytest.mark.better
def test_watchdog_of_another_process(helpers, tmp):
    with Manager(tmp / 'notify') as manager:
        environment = {'NOTIFY_SOCKET': manager.variable, 'WATCHDOG_USEC': '100000', 'WATCHDOG_PID': '1'}
        one = helpers(environment=environment)
        one.spawn('-k', one.path)
        manager.until('READY=1')
        manager.sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            manager.until('WATCHDOG=1')


@pytest.mark.better
@pytest.mark.parametrize('bad', ['relative', '/missing/notify', '@', '/' + 'x' * 200, ''])
def test_useless_notify_socket(helpers, bad):
    one = helpers(environment={'NOTIFY_SOCKET': bad, 'WATCHDOG_USEC': 'x'})
    one.start()
    assert one.serves()


# ---- Units ----


@pytest.mark.better
def test_units(helpers, tmp):
    """systemd itself finds nothing to complain about."""
    if not shutil.which('systemd-analyze'):
        pytest.skip('missing package systemd (program systemd-analyze)')
    units = sorted((TOP / 'systemd').glob('granary-pr-helper.*'))
    assert [unit.name.partition('.')[2].split('.')[0] for unit in units] == ['service', 'socket']
    binary = os.path.realpath(helpers().binary)
    for unit in units:
        text = unit.read_text().replace('@bindir@', '/usr/bin')
        lines = [
            f'ExecStart={binary} {line.partition(" ")[2]}' if line.startswith('ExecStart=') else line
            for line in text.splitlines()
        ]
        (tmp / unit.name.removesuffix('.in')).write_text('\n'.join(lines) + '\n')
    made = [tmp / unit.name.removesuffix('.in') for unit in units]
    done = subprocess.run(
        ['systemd-analyze', 'verify', '--man=no', *made],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    about_ours = [line for line in done.stderr.splitlines() if 'granary-pr-helper' in line]
    assert (done.returncode, about_ours) == (0, []), done.stderr
    score = run('systemd-analyze', 'security', '--offline=true', '--threshold=50', made[0], ok=(0, 1))
    assert score.returncode == 0, score.stdout.decode()[-2000:]
