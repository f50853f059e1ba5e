# SPDX-License-Identifier: Apache-2.0
"""The reservation helper's deadlines and limits: clients that say nothing, or are too many."""

import os
import pwd
import time

import pytest

from lib import prwire
from lib.prhelper import can_connect, wait_until
from lib.prwire import Closed, Connection, pr_in, pr_out

KEYS = pr_in(prwire.READ_KEYS)
NOBODY = pwd.getpwnam('nobody').pw_uid
DAEMON = pwd.getpwnam('daemon').pw_uid

pytestmark = pytest.mark.better


class As:
    """Connections that are made here belong to another user."""

    def __init__(self, uid):
        self.uid = uid

    def __enter__(self):
        os.seteuid(self.uid)

    def __exit__(self, *_):
        os.seteuid(0)


def seconds_until_closed(clients):
    """For each connection how long it lasted from now on."""
    start, ends = time.monotonic(), {}

    def all_ended():
        for name, client in clients.items():
            if name not in ends and client.ended():
                ends[name] = time.monotonic() - start
        return len(ends) == len(clients)

    wait_until(all_ended, 'the helper to close the silent connections')
    return ends


@pytest.mark.sanitize
def test_deadlines(helper, null):
    """Handshake 1 s, in the middle of a command 2 s; between commands there is none unless asked for."""
    served = helper('--handshake-timeout', 1, '--request-timeout', 2)
    idle = served.connect()
    idle.command(KEYS, null)
    clients = {name: served.connect(hello=False) for name in ('silent', 'half a hello')}
    for client in clients.values():
        client.receive(4)
    clients['half a hello'].send(bytes(2))
    for name in ('one byte', 'command', 'list'):
        clients[name] = served.connect()
    clients['one byte'].send(KEYS[:1], [null])
    clients['command'].send(pr_out(0), [null])
    clients['list'].send(pr_out(0) + bytes(23), [null])
    ends = seconds_until_closed(clients)
    early = [ends[name] for name in ('silent', 'half a hello')]
    late = [ends[name] for name in ('one byte', 'command', 'list')]
    assert 0.5 < min(early) and max(early) < min(late), ends
    assert 1.5 < min(late) and max(late) < 5, ends
    assert idle.command(KEYS, null).check() == (5, 0x20, 0)
    idle.close()


def test_deadline_is_for_the_whole_command(helper, null):
    """A byte now and then does not keep a connection."""
    with helper('--request-timeout', 1).connect() as client:
        start = time.monotonic()
        client.send(pr_out(0, 0, 8192), [null])
        try:
            while time.monotonic() < start + 10 and not client.ended():
                client.send(b'\0')
                time.sleep(0.05)
        except Closed:
            pass
        assert 0.5 < time.monotonic() - start < 5


def test_idle_timeout(helper, null):
    served = helper('--idle-timeout', 1)
    clients = {'new': served.connect(), 'used': served.connect()}
    assert clients['used'].command(KEYS, null).check() == (5, 0x20, 0)
    ends = seconds_until_closed(clients)
    assert all(0.5 < end < 5 for end in ends.values()), ends


def test_thousand_idle_connections(helper, null):
    """At a limit of 256 descriptors: nobody spins, and there is room for those who come."""
    served = helper('--socket-mode', '666', descriptors=256)
    os.chmod(served.directory, 0o755)
    idle, refused = [], 0
    for _ in range(1000):
        try:
            idle.append(Connection(served.path))
        except Closed:
            refused += 1
    used = served.cpu_seconds()
    start = time.monotonic()
    with As(NOBODY):
        for _ in range(3):
            assert served.serves()
    for _ in range(3):
        assert served.serves()
    assert time.monotonic() - start < 10
    time.sleep(1)  # what is measured is the CPU time of this second
    assert served.cpu_seconds() - used < 0.2
    alive = [client for client in idle if not client.ended()]
    assert 50 < len(alive) < 256, f'{len(alive)} of {len(idle)} connections live, {refused} refused'
    assert alive[-1].command(KEYS, null).check() == (5, 0x20, 0)
    for client in idle:
        client.close()
    wait_until(lambda: served.fds() < 40, 'the server to close its side')


def test_no_descriptor_left_for_the_commands(helper, null):
    """Commands, each with its descriptor, on as many connections as there may be."""
    served = helper(descriptors=256)
    clients = [Connection(served.path) for _ in range(200)]
    alive = [client for client in clients if not client.ended()]
    for client in alive:
        client.send(KEYS, [null])
    answered = 0
    for client in alive:
        try:
            answered += client.reply().check() == (5, 0x20, 0)
        except Closed:
            pass
    assert answered > 50
    for client in clients:
        client.close()
    assert served.serves()


def test_thousand_that_never_say_hello(helper):
    """The same before the handshake: they make room, too."""
    served = helper('--handshake-timeout', 60, '--socket-mode', '666', descriptors=256)
    os.chmod(served.directory, 0o755)
    silent = [Connection(served.path, hello=False) for _ in range(1000)]
    with As(NOBODY):
        assert served.serves()
    assert served.serves()
    for client in silent:
        client.close()


def test_max_clients_evicts_from_who_has_most(helper, null):
    served = helper('--max-clients', 8, '--socket-mode', '666')
    os.chmod(served.directory, 0o755)
    with As(NOBODY):
        few = [served.connect() for _ in range(2)]
    with As(DAEMON):
        many = [served.connect() for _ in range(6)]
    many[0].command(KEYS, null)  # so that many[1] is idle for longest
    for i, uid in enumerate((0, NOBODY, 0)):
        with As(uid):
            newcomer = served.connect()
        assert newcomer.command(KEYS, null).check() == (5, 0x20, 0)
        (few if uid == NOBODY else many).append(newcomer)
        gone = [client for client in [*few, *many] if client.ended()]
        assert len(gone) == i + 1
        assert not [client for client in few if client.ended()]
    assert [client.ended() for client in many[:6]] == [False, True, True, True, False, False]
    for client in [*few, *many]:
        client.close()


def test_max_clients_one(helper):
    served = helper('--max-clients', 1)
    first = served.connect()
    assert served.serves()
    assert first.closed()
    first.close()


def test_busy_connections_are_not_evicted(helper, null):
    """In the middle of a command a client keeps its place; the newcomer takes that of an idle one."""
    served = helper('--max-clients', 3)
    busy, idle, third = (served.connect() for _ in range(3))
    busy.send(KEYS[:8], [null])
    idle.command(KEYS, null)
    assert third.command(KEYS, null).check() == (5, 0x20, 0)
    with served.connect() as newcomer:
        assert newcomer.command(KEYS, null).check() == (5, 0x20, 0)
        busy.send(KEYS[8:])
        assert busy.reply().check() == (5, 0x20, 0)
        assert idle.closed()
    for client in (busy, idle, third):
        client.close()


@pytest.mark.sanitize
def test_connections_come_and_go(helper, null):
    """Many at once, and no descriptor is left."""
    served = helper()
    assert served.serves()
    wait_until(served.serves, 'the helper')
    before = served.fds()
    for _ in range(5):
        clients = [served.connect() for _ in range(60)]
        for client in clients:
            client.send(KEYS, [null])
        for client in clients[::2]:
            assert client.reply().check() == (5, 0x20, 0)
        for client in clients:
            client.close()
    assert served.serves()
    wait_until(lambda: served.fds() <= before + 64, 'the descriptors of the clients to be closed')


def test_allowed_users(helper, null):
    served = helper('--allow-uid', f'0,{NOBODY}', '--socket-mode', '666')
    os.chmod(served.directory, 0o755)
    with As(NOBODY):
        assert served.serves()
    assert served.serves()
    with As(DAEMON):
        client = Connection(served.path, hello=False)
    assert client.closed()
    client.close()
    wait_until(lambda: str(DAEMON) in served.stderr(), 'a line about the refused user')
    line = served.stderr().splitlines()[-1]
    assert str(os.getpid()) in line and str(DAEMON) in line, line


def test_allowed_users_again_and_by_name(helpers):
    one = helpers()
    one.spawn('-k', one.path, '--allow-uid', 'nobody', '--allow-uid', str(DAEMON), '--socket-mode', '666')
    wait_until(lambda: can_connect(one.path), 'the helper')
    os.chmod(one.directory, 0o755)
    for uid in (NOBODY, DAEMON):
        with As(uid):
            assert one.serves()
    with Connection(one.path, hello=False) as client:  # root is not among them
        assert client.closed()


def test_idle_server_sleeps(helper, null):
    served = helper()
    clients = [served.connect() for _ in range(20)]
    for client in clients:
        client.command(KEYS, null)
    before = served.cpu_seconds()
    time.sleep(1)  # what is measured is the CPU time of this second
    assert served.cpu_seconds() - before < 0.03
    for client in clients:
        client.close()
