# SPDX-License-Identifier: Apache-2.0
"""The reservation helper's side of the protocol: how requests may arrive, and what a client can do wrong.

What is sent and answered is compared with the reference in test_pr_differential.py; here is what only a look
at the helper itself can tell: its descriptors, its messages, that it lives on.
"""

import os
import socket
import struct

import pytest

from lib import prwire
from lib.prhelper import wait_until
from lib.prwire import Closed, Connection, out_list, pr_in, pr_out

KEYS = pr_in(prwire.READ_KEYS)
REGISTER = pr_out(prwire.REGISTER)
LIST = out_list(0, 0x1234)
HELLO = struct.pack('>I', 0)

pytestmark = pytest.mark.sanitize


def settled(helper, before, what):
    """All clients are gone and no descriptor was left behind; idle workers may have joined meanwhile."""
    assert helper.serves()
    idle_workers = 2
    wait_until(lambda: helper.fds() <= before + idle_workers, f'{what} to leave no descriptor behind')


def warm(helper):
    """Descriptors of the server once it has done everything that it does only once."""
    assert helper.serves()
    with helper.connect():
        during = helper.fds()
    wait_until(lambda: helper.fds() < during, 'the end of the first client')
    return helper.fds()


@pytest.mark.parametrize('request_bytes', [KEYS, REGISTER + LIST], ids=['in', 'out'])
def test_descriptor_with_any_byte(helper, null, request_bytes):
    served = helper()
    for at in range(prwire.CDB_BYTES):
        with served.connect() as client:
            client.send_bytewise(request_bytes, {at: [null]})
            assert client.reply().status == prwire.CHECK_CONDITION


def test_everything_bytewise(helper, null):
    with helper().connect(hello=False) as client:
        client.receive(4)
        client.send_bytewise(HELLO + REGISTER + LIST + KEYS, {4: [null], 4 + 16 + 24: [null]})
        assert client.reply().status == prwire.CHECK_CONDITION
        assert client.reply().status == prwire.CHECK_CONDITION


def test_reply_is_whole(helper, null):
    with helper().connect() as client:
        reply = client.command(KEYS, null)
        assert len(reply.sense) == prwire.SENSE_BYTES
        assert (reply.sense[0], reply.sense[7]) == (0x70, 10)
        assert reply.payload == b''


def test_many_commands_on_one_connection(helper, null):
    served = helper()
    before = warm(served)
    with served.connect() as client:
        for i in range(500):
            assert client.command(KEYS if i % 3 else REGISTER + LIST, null).status == prwire.CHECK_CONDITION
    settled(served, before, '500 commands')


@pytest.mark.better
def test_nothing_of_the_helpers_memory_in_the_sense(helper, tmp):
    (tmp / 'file').write_bytes(b'')
    with helper().connect() as client, open(tmp / 'file', 'rb') as file:
        for _ in range(20):
            reply = client.command(REGISTER + LIST, file)
            assert reply.check() == (5, 0x20, 0)
            assert reply.sense[18:] == bytes(78)


def test_disconnect_at_every_byte(helper, null):
    """Of hello, command and parameter list: nothing is left behind, everybody else goes on."""
    served = helper()
    before = warm(served)
    conversation = HELLO + REGISTER + LIST
    with served.connect() as neighbour:
        for end in range(len(conversation) + 1):
            with served.connect(hello=False) as client:
                client.receive(4)
                client.send(conversation[: min(end, 4)] or b'\0')
                if end > 4:
                    client.send(conversation[4:end], [null])
        for end in range(len(conversation) + 1):
            with served.connect(hello=False) as client:
                client.send_bytewise(conversation[:end], {4: [null]})
                client.end_of_requests()
                wait_until(lambda c=client: drained(c), 'the end of the conversation')
        assert neighbour.command(KEYS, null).status == prwire.CHECK_CONDITION
    settled(served, before, 'disconnects')


def drained(client):
    """Reads what comes and says whether it was the end."""
    try:
        return not client.sock.recv(4096)
    except ConnectionError:
        return True


def test_disconnect_without_reading(helper, null):
    """Replies that nobody takes."""
    served = helper()
    before = warm(served)
    for _ in range(50):
        with served.connect() as client:
            for _ in range(8):
                client.send(KEYS, [null])
    settled(served, before, 'unread replies')


def test_replies_that_nobody_reads_are_bounded(helper, null):
    """A client that only sends is held up, and stays the only one."""
    served = helper()
    with served.connect() as client:
        client.sock.setblocking(False)
        sent = 0
        try:
            while sent < 100000:
                sent += socket.send_fds(client.sock, [KEYS], [null.fileno()]) == len(KEYS)
        except BlockingIOError:
            pass
        assert served.serves()
        assert sent < 100000
        assert served.memory() < 200 << 20


WRONG = {
    'no descriptor': lambda client, fd: client.send(KEYS),
    'two descriptors': lambda client, fd: client.send(KEYS, [fd, fd]),
    'most descriptors': lambda client, fd: client.send(KEYS, [fd] * 253),
    'a descriptor with each byte': lambda client, fd: client.send_bytewise(
        KEYS, {i: [fd] for i in range(16)}
    ),
    'descriptor with the list only': lambda client, fd: (client.send(REGISTER), client.send(LIST, [fd])),
    'two descriptors at the last byte': lambda client, fd: client.send_bytewise(KEYS, {15: [fd, fd]}),
    'a bad opcode': lambda client, fd: client.send(b'\x12' + bytes(15), [fd]),
    'too much to get': lambda client, fd: client.send(pr_in(0, 8193), [fd]),
    'too much to give': lambda client, fd: client.send(pr_out(0, 0, 8193), [fd]),
    'far too much to give': lambda client, fd: client.send(pr_out(0, 0, 65535) + bytes(65535), [fd]),
}


@pytest.mark.parametrize('what', WRONG)
def test_wrong_requests_close(helper, null, what):
    served = helper()
    before = warm(served)
    with served.connect() as client:
        assert client.command(KEYS, null).status == prwire.CHECK_CONDITION
        try:
            WRONG[what](client, null)
        except Closed:
            pass
        assert client.closed()
    settled(served, before, what)


def test_wrong_requests_leave_no_descriptor(helper, null):
    served = helper()
    before = warm(served)
    for _ in range(20):
        for wrong in WRONG.values():
            with served.connect() as client:
                try:
                    wrong(client, null)
                except Closed:
                    pass
    settled(served, before, 'wrong requests')


def test_descriptors_with_the_list_are_dropped(helper, null):
    served = helper()
    before = warm(served)
    with served.connect() as client:
        for _ in range(50):
            client.send(REGISTER, [null])
            client.send(LIST[:10], [null] * 3)
            client.send(LIST[10:], [null])
            assert client.reply().status == prwire.CHECK_CONDITION
        settled(served, before + 1, 'descriptors with the list')


def test_descriptors_with_the_hello_are_dropped(helper, null):
    served = helper()
    before = warm(served)
    clients = []
    for _ in range(20):
        clients.append(Connection(served.path, hello=False))
        clients[-1].receive(4)
        clients[-1].send(HELLO, [null] * 8)
        assert clients[-1].command(KEYS, null).status == prwire.CHECK_CONDITION
    assert served.fds() <= before + len(clients)
    for client in clients:
        client.close()
    settled(served, before, 'descriptors with the hello')


def test_descriptor_of_the_own_connection(helper):
    """A cycle: the helper holds the other end of what it is told to work on."""
    served = helper()
    before = warm(served)
    for _ in range(20):
        with served.connect() as client:
            client.send(KEYS, [client.sock])
            client.send(KEYS, [client.sock])
    settled(served, before, 'own connections')


def test_messages_about_clients(helper, null):
    served = helper()
    with served.connect() as client:
        client.send(KEYS)
        assert client.closed()
    with served.connect() as client:
        client.send(b'\x12' + bytes(15), [null])
        assert client.closed()
    wait_until(lambda: served.stderr().count('\n') >= 2, 'two messages')
    lines = served.stderr().splitlines()
    assert len(lines) == 2, lines
    assert all(line.startswith('qemu-pr-helper: ') for line in lines), lines
    assert 'descriptor' in lines[0] and 'CDB' in lines[1], lines


def test_quiet(helper, null):
    served = helper('-q')
    for wrong in WRONG.values():
        with served.connect() as client:
            try:
                wrong(client, null)
            except Closed:
                pass
            assert client.closed()
    served.stop()
    assert served.stderr() == ''


@pytest.mark.better
def test_refusal_is_logged(helper, tmp):
    (tmp / 'file').write_bytes(bytes(512))
    served = helper()
    with served.connect() as client, open(tmp / 'file', 'rb+') as file:
        assert client.command(KEYS, file).check() == (5, 0x20, 0)
    wait_until(lambda: 'refused' in served.stderr() or 'file' in served.stderr(), 'a line about the refusal')
    line = served.stderr().splitlines()[-1]
    assert str(os.getpid()) in line, line


@pytest.mark.better
def test_cleanup_feature(helper, null):
    served = helper()
    with served.connect(features=prwire.FEATURE_CLEANUP) as client:
        assert client.offered == prwire.FEATURE_CLEANUP
        assert client.command(prwire.CLEANUP_CDB, null).check() == (5, 0x20, 0)
    with served.connect() as client:  # not asked for
        assert client.command(prwire.CLEANUP_CDB, null).check() == (5, 0x20, 0)
        assert client.command(KEYS, null).check() == (5, 0x20, 0)


def test_unknown_features_close(helper):
    served = helper()
    for features in (2, 3, 0x80000000, 0xFFFFFFFF):
        with served.connect(features=features) as client:
            assert client.closed()
    assert served.serves()
