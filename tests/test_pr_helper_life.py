# SPDX-License-Identifier: Apache-2.0
"""The reservation helper from start to end: socket, pid file, background, signals, a crash."""

import fcntl
import os
import signal
import socket
import subprocess
import time

import pytest

from lib import prwire
from lib.prhelper import PrHelper, can_connect, processes, wait_until
from lib.program import StartError
from lib.prwire import DEADLINE, pr_in, pr_out
from lib.tools import run

KEYS = pr_in(prwire.READ_KEYS)
STARTS = 200
# A helper that is told to end does so within this, however early it was told.
BOUND_SECONDS = 5


# ---- Signals ----


@pytest.mark.sanitize
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda n: n.name)
def test_signals_end_it(helper, number):
    served = helper()
    client = served.connect()
    served.stop(number)
    assert client.closed()
    client.close()
    assert not served.path.exists()
    assert served.stderr() == ''
    served.wait_gone()


@pytest.mark.sanitize
def test_signal_in_the_middle_of_commands(helper):
    """Clients in every state of the conversation hold nothing up."""
    served = helper()
    clients = [served.connect(hello=False), *[served.connect() for _ in range(4)]]
    with open('/dev/null', 'rb+', buffering=0) as null:
        clients[1].command(KEYS, null)
        clients[2].send(KEYS[:5], [null])
        clients[3].send(pr_out(0), [null])
        clients[4].send(pr_out(0) + bytes(20), [null])
    start = time.monotonic()
    served.stop()
    assert time.monotonic() - start < BOUND_SECONDS
    for client in clients:
        client.close()
    assert not served.path.exists()


@pytest.mark.better
def test_second_signal_is_harmless(helper):
    served = helper()
    for _ in range(20):
        if served.running():
            served.signal()
    served.wait(0)
    assert not served.path.exists()


@pytest.mark.better
def test_sigterm_at_any_moment_of_the_start(tmp, rng, helpers):
    """Ends at once, leaves no file and no process behind; once it handles signals, with status 0."""
    first = helpers().start('-f', tmp / 'first.pid')
    first.stop()
    span, codes = start_seconds(helpers, tmp) * 1.5, []
    for i in range(STARTS):
        one = PrHelper(tmp).spawn('-k', tmp / f'{i}.sock', '-f', tmp / f'{i}.pid')
        end = time.monotonic() + rng.uniform(0, span)
        while time.monotonic() < end:
            pass
        one.signal()
        started = time.monotonic()
        codes.append(one.process.wait(DEADLINE))
        assert codes[-1] in (0, -signal.SIGTERM), one.stderr()
        assert time.monotonic() - started < BOUND_SECONDS
        wait_until(lambda n=i: not processes(tmp / f'{n}.sock'), 'the other processes to end')
        left = [path.name for path in tmp.iterdir() if path.name in (f'{i}.sock', f'{i}.pid')]
        assert not left, f'status {codes[-1]}, left behind: {left}'
        assert one.stderr() == ''
    assert codes.count(0) > STARTS / 4, f'only {codes.count(0)} of {STARTS} were told after main() had begun'


def start_seconds(helpers, tmp):
    """How long a start takes until clients are served; the second longest of a few."""
    times = []
    for _ in range(5):
        begin = time.monotonic()
        one = helpers().start('-f', tmp / 'timing.pid')
        times.append(time.monotonic() - begin)
        one.stop()
    return sorted(times)[-2]


@pytest.mark.better
def test_sigterm_as_soon_as_the_socket_is_there(helpers):
    for _ in range(20):
        one = helpers()
        one.spawn('-k', one.path)
        wait_until(one.path.exists, 'the socket')
        one.stop()
        assert not one.path.exists()
        one.wait_gone()


@pytest.mark.better
def test_killed_server_takes_the_rest_along(helper, tmp):
    served = helper('-f', tmp / 'pid')
    assert served.serves()
    assert len(served.family()) > 1
    served.kill()
    served.wait_gone()
    assert not served.path.exists()
    assert not (tmp / 'pid').exists()


@pytest.mark.better
def test_killed_keeper_ends_the_server(helper):
    """Without the process that has the privileges nothing works: the service manager shall start it again."""
    served = helper()
    assert served.serves()
    os.kill(served.keeper(), signal.SIGKILL)
    code = served.process.wait(DEADLINE)
    served.awaited = True
    assert code == 1
    assert 'privileges' in served.stderr(), served.stderr()
    served.wait_gone()
    served.path.unlink(missing_ok=True)


@pytest.mark.better
def test_killed_workers_are_replaced(helper):
    served = helper()
    for _ in range(5):
        assert served.serves()
        for pid in served.workers():
            os.kill(pid, signal.SIGKILL)
    assert served.serves()


# ---- The socket ----


def test_stale_socket_is_replaced(helper, helpers):
    first = helper()
    first.kill()
    first.wait_gone()
    if not first.path.exists():
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(first.path))
    second = helpers()
    second.path = first.path
    second.spawn('-k', second.path).wait_ready()
    assert second.serves()


def test_file_is_replaced(helpers):
    one = helpers()
    one.path.write_text('not a socket')
    one.spawn('-k', one.path)
    wait_until(one.path.is_socket, 'the socket')
    one.wait_ready()
    assert one.serves()


def test_directory_is_not_replaced(helpers):
    one = helpers()
    one.path.mkdir()
    one.spawn('-k', one.path).wait(1)
    assert one.stderr().startswith('qemu-pr-helper: ') and str(one.path) in one.stderr(), one.stderr()
    assert one.path.is_dir()


@pytest.mark.better
def test_link_is_not_followed(helpers, tmp):
    """A link at the path: what it points at stays."""
    one = helpers()
    (tmp / 'target').write_text('precious')
    one.path.symlink_to(tmp / 'target')
    one.spawn('-k', one.path)
    wait_until(lambda: one.path.is_socket() or not one.running(), 'the helper to start or refuse')
    assert (tmp / 'target').read_text() == 'precious'


@pytest.mark.better
def test_live_socket_is_not_stolen(helper, helpers):
    first = helper()
    client = first.connect()
    second = helpers()
    second.path = first.path
    second.spawn('-k', first.path).wait(1)
    assert 'already listens' in second.stderr() and str(first.path) in second.stderr(), second.stderr()
    assert second.stderr().count('\n') == 1
    assert first.serves()
    with open('/dev/null', 'rb+', buffering=0) as null:
        client.command(KEYS, null)
    client.close()


@pytest.mark.better
def test_two_started_at_once(helpers, tmp):
    """Exactly one of several that start together on a dead socket gets it."""
    for i in range(5):
        path = tmp / f'race{i}.sock'
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        several = [helpers() for _ in range(4)]
        for one in several:
            one.path = path
            one.spawn('-k', path)
        wait_until(lambda s=several: sum(one.running() for one in s) == 1, 'all but one to give up')
        winner = next(one for one in several if one.running())
        assert winner.serves()
        for one in several:
            if one is not winner:
                one.wait(1)
        winner.stop()
        assert not path.exists()


@pytest.mark.better
def test_somebody_elses_socket_is_left_alone(helper):
    served = helper()
    served.path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(served.path))
        other.listen()
        served.stop()
        assert can_connect(served.path)


def test_removed_socket_is_no_error(helper):
    served = helper()
    served.path.unlink()
    served.signal()
    served.wait(0)


@pytest.mark.parametrize('umask, mode', [(0o022, 0o755), (0o077, 0o700), (0, 0o777)])
def test_mode_follows_the_umask(helper, umask, mode):
    served = helper(umask=umask)
    assert served.path.stat().st_mode & 0o777 == mode


@pytest.mark.better
def test_mode_and_group_of_the_socket(helper):
    served = helper('--socket-mode', '0620', '--socket-group', 'daemon')
    assert served.path.stat().st_mode & 0o777 == 0o620
    assert served.path.stat().st_gid == 1


def test_longest_path(helpers, tmp):
    one = helpers()
    one.path = tmp / ('x' * (107 - len(str(tmp)) - 1))
    one.spawn('-k', one.path).wait_ready()
    assert one.serves()
    one.stop()
    assert not one.path.exists()


# ---- The pid file ----


def pidfile_of(path):
    """The process id in the file, or None as long as there is none."""
    try:
        return int(path.read_text() or '0') or None
    except FileNotFoundError:
        return None


@pytest.mark.sanitize
def test_pid_file(helper, tmp):
    served = helper('-f', tmp / 'pid')
    wait_until(lambda: pidfile_of(tmp / 'pid'), 'the pid')
    assert (tmp / 'pid').read_text() == f'{served.process.pid}\n'
    assert (tmp / 'pid').stat().st_mode & 0o777 == 0o600
    with open(tmp / 'pid', 'rb+') as file, pytest.raises(BlockingIOError):
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.better
def test_pid_file_is_removed(helper, tmp):
    served = helper('-f', tmp / 'pid')
    wait_until(lambda: pidfile_of(tmp / 'pid'), 'the pid')
    served.stop()
    assert not (tmp / 'pid').exists()


@pytest.mark.better
def test_pid_file_of_somebody_else_is_left_alone(helper, tmp):
    served = helper('-f', tmp / 'pid')
    wait_until(lambda: pidfile_of(tmp / 'pid'), 'the pid')
    (tmp / 'pid').unlink()
    (tmp / 'pid').write_text('1\n')
    served.stop()
    assert (tmp / 'pid').read_text() == '1\n'


def test_no_pid_file_unless_asked_for(helper, tmp):
    served = helper()
    assert served.serves()
    assert sorted(path.name for path in tmp.iterdir() if path.suffix != '') == [served.path.name]


def test_locked_pid_file(helper, helpers, tmp):
    first = helper('-f', tmp / 'pid')
    wait_until(lambda: pidfile_of(tmp / 'pid'), 'the pid')
    second = helpers()
    second.spawn('-k', second.path, '-f', tmp / 'pid').wait(1)
    assert 'Cannot lock pid file' in second.stderr() and second.stderr().count('\n') == 1, second.stderr()
    assert pidfile_of(tmp / 'pid') == first.process.pid
    if 'qemu' in os.path.basename(os.path.realpath(second.binary)):
        second.path.unlink(missing_ok=True)  # the reference leaves it
    assert not second.path.exists()


# ---- In the background ----


@pytest.fixture
def daemonize(helpers, tmp):
    """Runs with -d: (the parent, finished; the helper in the background, or None)."""
    children = []

    def start(*args):
        one = helpers()
        one.spawn('-d', '-k', one.path, '-f', tmp / 'd.pid', *args)
        one.process.wait(DEADLINE)
        one.awaited = True
        children.append(one)
        return one

    yield start
    for one in children:
        for pid in one.family():
            try:
                os.kill(pid, signal.SIGTERM)
            except ProcessLookupError:
                pass
        one.wait_gone()


@pytest.mark.sanitize
def test_background(daemonize, tmp):
    parent_process = daemonize()
    assert (parent_process.process.returncode, parent_process.stderr()) == (0, '')
    wait_until(lambda: pidfile_of(tmp / 'd.pid'), 'the pid file')
    wait_until(parent_process.serves, 'the helper in the background')
    pid = pidfile_of(tmp / 'd.pid')
    assert pid != parent_process.process.pid
    assert os.readlink(f'/proc/{pid}/cwd') == '/'
    assert {os.readlink(f'/proc/{pid}/fd/{fd}') for fd in (0, 1, 2)} == {'/dev/null'}
    assert os.getsid(pid) != os.getsid(0)
    os.kill(pid, signal.SIGTERM)
    parent_process.wait_gone()
    assert not parent_process.path.exists()


@pytest.mark.better
def test_background_is_ready_when_the_parent_returns(daemonize, tmp):
    for _ in range(5):
        started = daemonize()
        assert started.process.returncode == 0
        assert started.serves()
        pid = pidfile_of(tmp / 'd.pid')
        assert {os.readlink(f'/proc/{one}/cwd') for one in started.family()} == {'/'}
        os.kill(pid, signal.SIGTERM)
        started.wait_gone()
        assert not (tmp / 'd.pid').exists()


@pytest.mark.better
def test_background_reports_the_locked_pid_file(daemonize, tmp):
    with open(tmp / 'd.pid', 'wb') as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        failed = daemonize()
        assert failed.process.returncode == 1
        assert 'Cannot lock pid file' in failed.stderr(), failed.stderr()
    failed.wait_gone()
    assert not failed.path.exists()


@pytest.mark.better
@pytest.mark.parametrize('what', ['socket', 'pidfile'])
def test_background_reports_failure(daemonize, tmp, what):
    args = ('-k', '/missing/dir/s') if what == 'socket' else ('-f', '/missing/dir/p')
    failed = daemonize(*args)
    assert failed.process.returncode == 1
    assert '/missing/dir/' in failed.stderr() and failed.stderr().count('\n') == 1, failed.stderr()
    failed.wait_gone()
    assert not failed.path.exists()
    assert not (tmp / 'd.pid').exists()


@pytest.mark.better
def test_background_and_live_socket(daemonize, helper, tmp):
    first = helper()
    second = daemonize('-k', first.path)
    assert second.process.returncode == 1
    assert 'already listens' in second.stderr(), second.stderr()
    assert first.serves()
    first.stop()


@pytest.mark.better
def test_background_killed_parent(helpers, tmp):
    """Whoever started it may die; what was begun goes on or ends whole."""
    one = helpers()
    one.spawn('-d', '-k', one.path, '-f', tmp / 'd.pid')
    one.kill()
    wait_until(
        lambda: can_connect(one.path) and pidfile_of(tmp / 'd.pid') or not one.family(),
        'the helper to serve, with its pid file, or to end',
    )
    if one.family():
        os.kill(pidfile_of(tmp / 'd.pid'), signal.SIGTERM)
    one.wait_gone()
    assert not one.path.exists()


# ---- Descriptors and environment of the caller ----


def test_other_descriptors_of_the_caller(helper):
    """What the starting program has left open must not be what clients' descriptors are mistaken for."""
    reader, writer = os.pipe()
    try:
        served = helper(pass_fds=[reader, writer])
        assert served.serves()
    finally:
        os.close(reader)
        os.close(writer)


def test_closed_standard_descriptors(helpers):
    one = helpers()
    one.spawn('-k', one.path, prefix=['/bin/sh', '-c', 'exec "$@" 0<&- 1>&-', 'sh'])
    one.wait_ready()
    assert one.serves()
    one.stop()


def test_start_error_names_the_reason(helper):
    with pytest.raises(StartError, match='must be absolute') as caught:
        helper('-k', 'relative')
    assert caught.value.exit_code == 1


def test_nothing_of_the_program_is_writable_by_others(helper, tmp):
    """Files that it makes in a directory of its own: socket and pid file, nothing else."""
    served = helper('-f', tmp / 'pid')
    wait_until(lambda: pidfile_of(tmp / 'pid'), 'the pid')
    assert served.serves()
    assert {path.name for path in tmp.iterdir()} == {
        served.path.name,
        'pid',
        served.error_path.name,
        served.output_path.name,
    }


def test_refused_in_the_shell(tmp, helpers):
    """What a person sees."""
    one = helpers()
    done = run(*one.command('-k', 'here.sock'), ok=(1,), cwd=tmp, stdin=subprocess.DEVNULL)
    assert done.stdout == b''
    assert done.stderr == b'qemu-pr-helper: socket path must be absolute\n'
