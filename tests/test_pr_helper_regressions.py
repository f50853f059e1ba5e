# SPDX-License-Identifier: Apache-2.0
"""The reservation helper: one test for each defect that a review has found."""

import array
import contextlib
import ctypes
import fcntl
import os
import pwd
import resource
import signal
import socket
import stat
import struct
import sys
import threading
import time

import pytest

from lib import prwire
from lib.prhelper import ACTIVATE, children, cpu_seconds, greets, look, wait_until
from lib.prwire import Connection, Silent, pr_in
from lib.tools import need

KEYS = pr_in(prwire.READ_KEYS)
NOBODY = pwd.getpwnam('nobody').pw_uid
DAEMON = pwd.getpwnam('daemon').pw_uid
REFUSED, TERMINATED = (5, 0x20, 0), (0xB, 0, 6)
SOON_SECONDS = 5

pytestmark = pytest.mark.better


@contextlib.contextmanager
def user(uid):
    """Connections that are made here belong to another user."""
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


def links(pid):
    """What the descriptors of a process are."""
    return {int(fd): os.readlink(f'/proc/{pid}/fd/{fd}') for fd in os.listdir(f'/proc/{pid}/fd')}


# ---- Room for everybody ----


def test_half_requests_do_not_push_others_out(helper, null):
    """Who has most makes room, also when all of its connections are in the middle of a command."""
    served = helper('--max-clients', 8, '--socket-mode', '666')
    os.chmod(served.directory, 0o755)
    with user(DAEMON):
        few = [served.connect() for _ in range(2)]
    for client in few:
        client.command(KEYS, null)
    with user(NOBODY):
        many = [served.connect() for _ in range(6)]
    for client in many:
        client.send(KEYS[:8], [null])
    for count in range(1, 4):
        few.append(served.connect())
        assert few[-1].command(KEYS, null).check() == REFUSED
        assert len([client for client in many if client.ended()]) == count
    assert not [client for client in few if client.ended()]
    for client in [*few, *many]:
        client.close()


def test_waiting_commands_do_not_push_others_out(helper, null):
    """Nor when all wait for a device that hangs."""
    served = helper('--max-clients', 16, '--socket-mode', '666')
    os.chmod(served.directory, 0o755)
    with user(DAEMON):
        quiet = served.connect()
    with user(NOBODY):
        many = [served.connect() for _ in range(15)]
    assert quiet.command(KEYS, null).check() == REFUSED
    os.kill(served.keeper(), signal.SIGSTOP)  # no new workers
    for pid in served.workers():
        os.kill(pid, signal.SIGSTOP)
    try:
        for client in many:
            client.send(KEYS, [null])
        newcomer = served.connect()
        assert not quiet.ended()
        assert len([client for client in many if client.ended()]) == 1
    finally:
        for pid in served.family():
            os.kill(pid, signal.SIGCONT)
    assert newcomer.command(KEYS, null).check() == REFUSED
    for client in [quiet, newcomer, *many]:
        client.close()


def test_users_who_may_not_connect_push_nobody_out(helper, null):
    served = helper('-q', '--allow-uid', '0', '--max-clients', 2, '--socket-mode', '666')
    os.chmod(served.directory, 0o755)
    clients = [served.connect() for _ in range(2)]
    for client in clients:
        assert client.command(KEYS, null).check() == REFUSED
    for _ in range(3):
        with user(NOBODY), Connection(served.path, hello=False) as unwelcome:
            assert unwelcome.closed()
    assert not [client for client in clients if client.ended()]
    for client in clients:
        client.close()


# ---- Errors that repeat ----


def test_listening_socket_that_was_shut_down_is_no_spin(helpers):
    """accept() fails for ever then, with an error that is not about descriptors."""
    one = helpers()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(one.path))
        listener.listen(16)
        prefix = [sys.executable, '-c', ACTIVATE, str(listener.fileno()), '1', '']
        one.spawn(prefix=prefix, pass_fds=[listener.fileno()])
        wait_until(lambda: greets(one.path), 'the helper')
        listener.shutdown(socket.SHUT_RDWR)
    wait_until(lambda: not greets(one.path), 'the end of the socket')
    family = [one.pid(), *children(one.pid(), [int(entry) for entry in os.listdir('/proc') if entry.isdigit()])]
    before = sum(cpu_seconds(pid) for pid in family)
    time.sleep(1)  # what is measured is the CPU time of this second
    assert sum(cpu_seconds(pid) for pid in family) - before < 0.2
    one.stop()


def test_too_many_descriptors_under_way_is_no_spin(helper, null):
    """Descriptors in unread messages count for their user: beyond the limit no worker can be given any."""
    served = helper('-u', 'nobody', '--socket-mode', '666', descriptors=256)
    os.chmod(served.directory, 0o755)
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    child = os.fork()
    if child == 0:
        hold_descriptors_under_way(null.fileno())
    try:
        wait_until(lambda: look(child, 'State')[:1] == 'T', 'descriptors to be under way')
        with served.connect() as client:
            first = served.workers()
            start = time.monotonic()
            reply = client.command(KEYS, null, timeout=SOON_SECONDS)
            assert reply.check() == TERMINATED or reply.status == prwire.BUSY
            assert time.monotonic() - start < SOON_SECONDS
            assert served.workers() == first, 'workers that can do nothing about it'
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with served.connect() as client:
        wait_until(lambda: client.command(KEYS, null).check() == REFUSED, 'the helper to recover')


def hold_descriptors_under_way(fd):
    """Fills sockets with 600 descriptors as user nobody; stops itself when done."""
    try:
        os.setgroups([])
        os.setresuid(NOBODY, NOBODY, NOBODY)
        pairs = [socket.socketpair() for _ in range(6)]
        for left, _ in pairs:
            rights = array.array('i', [fd] * 100)
            left.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        os.kill(os.getpid(), signal.SIGSTOP)
    finally:
        os._exit(1)


def test_no_descriptor_for_a_new_worker_is_not_the_end(helper, null):
    served = helper()
    with served.connect() as client:
        assert client.command(KEYS, null).check() == REFUSED
        keeper = served.keeper()
        os.kill(keeper, signal.SIGSTOP)
        count, idle = served.fds(), served.workers()
        for pid in idle:
            os.kill(pid, signal.SIGKILL)
        count -= len(idle)
        wait_until(lambda: served.fds() == count, 'the workers to be missed')
        client.send(KEYS, [null])
        wait_until(lambda: served.fds() == count + 1, 'the command to come')
        soft, hard = resource.prlimit(served.pid(), resource.RLIMIT_NOFILE)
        resource.prlimit(served.pid(), resource.RLIMIT_NOFILE, (4, hard))
        os.kill(keeper, signal.SIGCONT)
        assert client.reply().check() == TERMINATED
        resource.prlimit(served.pid(), resource.RLIMIT_NOFILE, (soft, hard))
        assert client.command(KEYS, null).check() == REFUSED


def test_error_output_that_nobody_reads(helper, null):
    """What clients do wrong is reported into a pipe that is full: that must not stop the server."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    redirect = 'import os, sys; os.dup2(int(sys.argv[1]), 2); os.execv(sys.argv[2], sys.argv[2:])'
    try:
        served = helper('-v', prefix=[sys.executable, '-c', redirect, str(writer)], pass_fds=[writer])
        os.close(writer)
        for _ in range(100):
            with served.connect() as client:
                client.send(bytes(16), [null])
                assert client.closed(SOON_SECONDS)
        assert served.serves()
        served.stop()
    finally:
        os.close(reader)


# ---- Files that hang ----


class HangingFiles:
    """A FUSE file system of user nobody with one file; its program never answers when the file is closed."""

    OPCODES = {'LOOKUP': 1, 'GETATTR': 3, 'OPEN': 14, 'FLUSH': 25, 'INIT': 26, 'DESTROY': 38}

    def __init__(self, directory):
        self.directory, self.held = directory, []
        directory.mkdir()
        self.fd = os.open('/dev/fuse', os.O_RDWR)
        options = f'fd={self.fd},rootmode=40000,user_id={NOBODY},group_id={NOBODY}'.encode()
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b'test', os.fsencode(directory), b'fuse', 6, options) < 0:
            os.close(self.fd)
            pytest.skip(f'cannot mount FUSE: {os.strerror(ctypes.get_errno())}')
        threading.Thread(target=self.serve, daemon=True).start()

    def answer(self, unique, data=b'', error=0):
        with contextlib.suppress(OSError):
            os.write(self.fd, struct.pack('<IiQ', 16 + len(data), -error, unique) + data)

    def attributes(self, node):
        mode = 0o40777 if node == 1 else 0o100666
        return struct.pack('<6Q10I', node, 0, 0, 0, 0, 0, 0, 0, 0, mode, 1, NOBODY, NOBODY, 0, 512, 0)

    def serve(self):
        while True:
            try:
                message = os.read(self.fd, 1 << 17)
            except OSError:
                return
            opcode, unique, node = struct.unpack_from('<4xIQQ', message)
            if opcode == self.OPCODES['INIT']:
                self.answer(unique, struct.pack('<IIIIHHIIHH28x', 7, 31, 4096, 0, 8, 8, 65536, 1, 0, 0))
            elif opcode == self.OPCODES['LOOKUP']:
                self.answer(unique, struct.pack('<QQQQII', 2, 0, 0, 0, 0, 0) + self.attributes(2))
            elif opcode == self.OPCODES['GETATTR']:
                self.answer(unique, struct.pack('<QII', 0, 0, 0) + self.attributes(node))
            elif opcode == self.OPCODES['OPEN']:
                self.answer(unique, bytes(16))
            elif opcode == self.OPCODES['FLUSH']:
                self.held.append(unique)
            elif opcode not in (2, 36, 42):  # FORGET, INTERRUPT and BATCH_FORGET want no answer
                self.answer(unique, error=0 if opcode in (18, 29) else 38)

    def close(self):
        for unique in self.held:
            self.answer(unique)
        ctypes.CDLL(None).umount2(os.fsencode(self.directory), 2)
        os.close(self.fd)


@pytest.fixture
def hanging_files(tmp):
    if not os.access('/dev/fuse', os.R_OK | os.W_OK):
        pytest.skip('no /dev/fuse')
    tmp.chmod(0o755)
    files = HangingFiles(tmp / 'fuse')
    yield files
    files.close()


@pytest.mark.parametrize('count', [1, 2])
def test_file_that_cannot_be_closed(helper, hanging_files, count):
    """Its file system, which is asked when a descriptor is closed, is the client's. Others are served."""
    served = helper('-q', '--socket-mode', '666', '--stop-timeout', 0)
    assert served.serves()
    child = os.fork()
    if child == 0:
        send_as_nobody(served, hanging_files.directory / 'file', count)
    try:
        wait_until(lambda: len(hanging_files.held) >= 2, 'descriptors to hang')
        for _ in range(8):
            assert served.serves()
        served.signal()
        wait_until(lambda: not served.path.exists(), 'the socket to go', SOON_SECONDS)
    finally:
        os.kill(child, signal.SIGKILL)
        wait_until(lambda: release(hanging_files, child), 'the client to end')
    wait_until(lambda: release(hanging_files, None) or not served.running(), 'the helper to end')
    served.wait(0)


def send_as_nobody(served, path, count):
    """Ten clients that send a descriptor of the file."""
    try:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        fd = os.open(path, os.O_RDWR)
        clients = [served.connect() for _ in range(10)]
        for client in clients:
            with contextlib.suppress(prwire.Closed):
                client.send(KEYS, [fd] * count)
        signal.pause()
    finally:
        os._exit(1)


def release(files, child):
    """Answers what waits; whether the child has ended."""
    for unique in files.held:
        files.answer(unique)
    return child is not None and os.waitpid(child, os.WNOHANG)[0] == child


# ---- The end ----


def test_stop_with_a_command_in_flight_ends_when_it_ends(helper, null):
    """The files are removed before the command is over, which nobody must wait for afterwards."""
    served = helper('--stop-timeout', 60)
    assert served.serves()
    with served.connect() as client:
        for pid in served.workers():
            os.kill(pid, signal.SIGSTOP)
        client.send(KEYS, [null])
        with pytest.raises(Silent):
            client.reply(0.1)
        served.signal()
        wait_until(lambda: not served.path.exists(), 'the socket to go')
        for pid in served.workers():
            os.kill(pid, signal.SIGCONT)
        assert client.reply().check() == REFUSED
        start = time.monotonic()
        served.wait(0)
        assert time.monotonic() - start < SOON_SECONDS


def test_command_in_flight_at_the_end_is_in_the_log(helper, tmp):
    """It may have been executed."""
    with open(tmp / 'file', 'wb+') as file:
        served = helper('--stop-timeout', 0)
        assert served.serves()
        with served.connect() as client:
            for pid in served.workers():
                os.kill(pid, signal.SIGSTOP)
            client.send(prwire.pr_out(prwire.RESERVE, 1) + prwire.out_list(0xABC), [file])
            with pytest.raises(Silent):
                client.reply(0.1)
            served.stop()
    if not os.path.exists('/dev/log'):
        assert 'reserve' in served.stderr() and 'key=0xabc' in served.stderr(), served.stderr()
    served.wait_gone()


def test_late_keeper_leaves_the_socket_of_the_next_instance(helper, helpers):
    """File systems give the number of a removed file to the next one."""
    served = helper('-q')
    keeper = served.keeper()
    os.kill(keeper, signal.SIGSTOP)
    served.kill()
    second = helpers()
    second.path = served.path
    second.spawn('-k', second.path).wait_ready()
    os.kill(keeper, signal.SIGCONT)
    wait_until(lambda: not os.path.exists(f'/proc/{keeper}'), 'the first keeper to end')
    assert second.path.exists() and second.serves()


# ---- Names ----


def test_live_datagram_socket_is_not_replaced(helpers):
    one = helpers()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(one.path))
        inode = one.path.stat().st_ino
        one.spawn('-k', one.path).wait(1)
        assert one.stderr().count('\n') == 1, one.stderr()
        assert one.path.stat().st_ino == inode


def test_group_is_not_given_to_what_takes_the_sockets_place(helpers, tmp):
    """In a directory of the clients' user; the program is held between making the socket and its group."""
    need('strace')
    victim, one = tmp / 'victim', helpers()
    victim.write_text('root only')
    before = victim.stat().st_gid
    prefix = 'strace -f -qq -o /dev/null -e trace=bind -e inject=bind:delay_exit=1500000'.split()
    one.spawn('-q', '-k', one.path, '--socket-group', 'daemon', prefix=prefix)
    wait_until(one.path.is_socket, 'the socket')
    one.path.unlink()
    one.path.symlink_to(victim)
    one.process.wait(prwire.DEADLINE)
    one.awaited = True
    assert victim.stat().st_gid == before
    assert 'socket' in one.stderr().lower(), one.stderr()


def test_background_keeps_the_umask(helpers, tmp):
    """Of the socket; the reference makes it before it goes to the background."""
    one = helpers()
    one.spawn('-d', '-k', one.path, '-f', tmp / 'pid', umask=0o007)
    one.process.wait(prwire.DEADLINE)
    one.awaited = True
    try:
        assert stat.S_IMODE(one.path.stat().st_mode) == 0o770
    finally:
        for pid in one.family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        one.wait_gone()


# ---- What a process has ----


def test_keeper_and_workers_have_only_their_descriptors(helpers, tmp):
    """Not the server's listening socket and event loop, nor the pipe that tells of the start."""
    one = helpers()
    one.spawn('-d', '-k', one.path, '-f', tmp / 'pid')
    one.process.wait(prwire.DEADLINE)
    one.awaited = True
    try:
        server = int((tmp / 'pid').read_text())
        (keeper,) = children(server, one.family())
        worker = wait_until(lambda: children(keeper, one.family()), 'a worker')[0]
        kinds = [kind for fd, kind in links(keeper).items() if fd > 2 and not kind.startswith('socket:')]
        assert sorted(kinds) == sorted([str(tmp / 'pid'), str(one.path)]), kinds
        assert not [kind for fd, kind in links(worker).items() if fd > 2 and not kind.startswith('socket:')]
        assert {kind for fd, kind in links(server).items() if fd <= 2} == {'/dev/null'}
    finally:
        for pid in one.family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        one.wait_gone()
