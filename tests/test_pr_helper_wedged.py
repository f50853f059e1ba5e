# SPDX-License-Identifier: Apache-2.0
"""Commands that hang: workers are stopped, which to the helper looks like a wait in the kernel."""

import os
import signal
import time

import pytest

from lib import prwire
from lib.prhelper import children, look, wait_until
from lib.prwire import Silent, pr_in

KEYS = pr_in(prwire.READ_KEYS)
DEVICE_COMMANDS = 4  # at once on one device
STOP_SECONDS = 8  # more than enough once nothing is left to be waited for

pytestmark = [pytest.mark.better, pytest.mark.sanitize]


def zombies_of(pid):
    everybody = [int(entry) for entry in os.listdir('/proc') if entry.isdigit()]
    return [child for child in children(pid, everybody) if look(child, 'State')[:1] == 'Z']


def signal_workers(helper, number):
    for pid in helper.workers():
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass
    if number == signal.SIGSTOP:
        wait_until(lambda: all(look(pid, 'State')[:1] in ('T', '') for pid in helper.workers()), 'workers to stop')


class Wedge:
    """Clients whose commands on a device hang, until released."""

    def __init__(self, helper, path, count):
        self.helper, self.clients = helper, []
        self.file = open(path, 'rb+', buffering=0)
        while len(self.clients) < count:
            self.hang()

    def hang(self):
        """One more, unless a new worker comes just in time to answer it."""
        client = self.helper.connect()
        signal_workers(self.helper, signal.SIGSTOP)
        client.send(KEYS, [self.file])
        try:
            client.reply(0.1)
            client.close()
        except Silent:
            self.clients.append(client)

    def release(self):
        signal_workers(self.helper, signal.SIGCONT)

    def close(self):
        self.release()
        for client in self.clients:
            client.close()
        self.file.close()


@pytest.fixture
def wedge():
    made = []

    def make(*args):
        made.append(Wedge(*args))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_one_device_delays_no_other(helper, wedge):
    served = helper()
    assert served.serves()
    stuck = wedge(served, '/dev/null', DEVICE_COMMANDS)
    with served.connect() as late, open('/dev/zero', 'rb+', buffering=0) as zero:
        late.send(KEYS, [stuck.file])
        start = time.monotonic()
        for _ in range(20):
            with served.connect() as client:
                assert client.command(KEYS, zero).check() == (5, 0x20, 0)
        assert time.monotonic() - start < STOP_SECONDS
        with pytest.raises(Silent):
            late.reply(0.1)  # there is no place for it yet
        stuck.release()
        assert late.reply().check() == (5, 0x20, 0)
    for client in stuck.clients:
        assert client.reply().check() == (5, 0x20, 0)


def test_workers_of_a_burst_serve_the_next_one(helper, wedge):
    """They are not ended and forked anew for each command."""
    served = helper()
    assert served.serves()
    bursts = []
    for _ in range(2):
        stuck = wedge(served, '/dev/null', DEVICE_COMMANDS)
        bursts.append(set(served.workers()))
        stuck.release()
        for client in stuck.clients:
            assert client.reply().check() == (5, 0x20, 0)
        stuck.close()
    assert len(bursts[0]) >= DEVICE_COMMANDS and bursts[1] == bursts[0]


def test_client_that_leaves_its_hanging_command(helper, wedge):
    served = helper()
    assert served.serves()
    stuck = wedge(served, '/dev/null', 2)
    for client in stuck.clients:
        client.close()
    assert served.running()
    stuck.release()
    assert served.serves()
    wait_until(lambda: served.fds() < 14, 'the descriptors of the clients to be closed')


def test_killed_worker_fails_its_command_only(helper, wedge):
    served = helper()
    assert served.serves()
    stuck = wedge(served, '/dev/null', 1)
    signal_workers(served, signal.SIGKILL)
    reply = stuck.clients[0].reply()
    assert reply.check() == (0xB, 0, 6)
    assert stuck.clients[0].command(KEYS, stuck.file).check() == (5, 0x20, 0)


def test_socket_goes_at_once_and_the_wait_is_bounded(helper, wedge):
    served = helper('--stop-timeout', 1)
    assert served.serves()
    wedge(served, '/dev/null', 1)
    start = time.monotonic()
    served.signal()
    wait_until(lambda: not served.path.exists(), 'the socket to go')
    assert served.running()
    served.wait(0)
    assert 0.7 < time.monotonic() - start < 6
    served.wait_gone()


def test_command_in_flight_is_finished(helper, wedge):
    served = helper()
    assert served.serves()
    stuck = wedge(served, '/dev/null', 1)
    with served.connect() as idle:
        served.signal()
        assert idle.closed()
    assert served.running()
    stuck.release()
    assert stuck.clients[0].reply().check() == (5, 0x20, 0)
    assert stuck.clients[0].closed()
    served.wait(0, timeout=STOP_SECONDS)


def test_second_signal_ends_the_wait(helper, wedge):
    served = helper('--stop-timeout', 60)
    assert served.serves()
    wedge(served, '/dev/null', 1)
    served.signal()
    wait_until(lambda: not served.path.exists(), 'the socket to go')
    assert served.running()
    start = time.monotonic()
    served.signal()
    served.wait(0)
    assert time.monotonic() - start < STOP_SECONDS
    served.wait_gone()


def test_killed_server_and_hanging_workers(helper, wedge):
    served = helper()
    assert served.serves()
    wedge(served, '/dev/null', 2)
    served.kill()
    served.wait_gone()
    assert not served.path.exists()


def test_new_instance_beside_hanging_commands(helper, helpers, wedge):
    """Restarted on the same path while the old one still waits."""
    served = helper('--stop-timeout', 60)
    assert served.serves()
    stuck = wedge(served, '/dev/null', 1)
    served.signal()
    wait_until(lambda: not served.path.exists(), 'the socket to go')
    second = helpers()
    second.path = served.path
    second.spawn('-k', second.path).wait_ready()
    assert second.serves()
    stuck.release()
    served.wait(0, timeout=STOP_SECONDS)
    assert second.path.exists() and second.serves()
    second.stop()
    assert not second.path.exists()


def test_suspended_program(helper):
    """The whole program stopped and continued, as by a debugger or a checkpoint."""
    served = helper()
    with served.connect() as client, open('/dev/null', 'rb+', buffering=0) as null:
        for pid in served.family():
            os.kill(pid, signal.SIGSTOP)
        client.send(KEYS, [null])
        with pytest.raises(Silent):
            client.reply(0.1)
        for pid in served.family():
            os.kill(pid, signal.SIGCONT)
        assert client.reply().check() == (5, 0x20, 0)


def test_stop_in_the_middle_of_many_commands(helpers):
    """At whatever point of a command: it ends soon, and each client got an answer or the end."""
    with open('/dev/null', 'rb+', buffering=0) as null:
        for _ in range(20):
            served = helpers().start('-q')
            clients = [served.connect() for _ in range(6)]
            for client in clients:
                client.send(KEYS, [null])
            start = time.monotonic()
            served.stop()
            assert time.monotonic() - start < STOP_SECONDS
            for client in clients:
                try:
                    client.reply()
                except prwire.Closed:
                    pass
                client.close()
            assert not served.path.exists()


def test_no_zombies(helper):
    """Ended workers are reaped."""
    served = helper()
    for _ in range(5):
        assert served.serves()
        signal_workers(served, signal.SIGKILL)
    assert served.serves()
    keeper = served.keeper()
    wait_until(lambda: not zombies_of(keeper), 'ended workers to be reaped')
