# SPDX-License-Identifier: Apache-2.0
"""Hostile QMP input: deep nesting, long tokens, garbage, floods, a peer that does not read (docs/threat-classes.md)."""

import json
import threading

import pytest

from lib.daemon import monitor_at
from lib.qmp import Qmp

pytestmark = pytest.mark.sanitize


def alive(served):
    """The monitor takes a new client, whatever the last one has done."""
    served.reconnect(served.directory / 'm')
    assert served.cmd('query-block-exports') == []


@pytest.mark.parametrize(
    'data',
    [
        b'[' * 100000,
        b'{"a":' * 100000,
        b'"' + b'x' * 5000000 + b'"',
        b'{' + b'"k":1,' * 200000,
        b'1' * 1000000,
        b'\x00' * 10000,
        b'\xff' * 100000,
        b'nope ' * 20000,
        b'{}' * 20000,
        b'{"execute":"query-block","id":' + b'9' * 100000 + b'}',
        b'{"execute":"' + b'q' * 1000000 + b'"}',
    ],
    ids=[
        'brackets',
        'objects',
        'long string',
        'members',
        'digits',
        'nul',
        'bad utf-8',
        'words',
        'empty objects',
        'long number',
        'long command',
    ],
)
def test_hostile_text(data, daemon, tmp):
    served = daemon(*monitor_at(tmp / 'm'))
    served.reconnect(tmp / 'm')
    served.qmp.sock.settimeout(20)
    sender = threading.Thread(target=lambda: send_quietly(served.qmp.sock, data + b'\n'))
    sender.start()
    try:
        while sender.is_alive():
            served.qmp.read_line(timeout=0.2)
    except TimeoutError:
        pass
    served.qmp.sock.shutdown(1)
    sender.join()
    alive(served)


def send_quietly(sock, data):
    try:
        sock.sendall(data)
    except OSError:
        pass


def test_random_garbage(daemon, rng, tmp):
    served = daemon(*monitor_at(tmp / 'm'))
    served.reconnect(tmp / 'm')
    words = [
        b'{',
        b'}',
        b'[',
        b']',
        b'"',
        b"'",
        b',',
        b':',
        b'1',
        b'-',
        b'e',
        b'true',
        b'null',
        b'\\u00',
        b'\xff',
        b'"execute"',
        b'"query-block"',
        b' ',
        b'\n',
        b'\\',
    ]
    for _ in range(20):
        send_quietly(served.qmp.sock, b''.join(rng.choice(words) for _ in range(3000)))
        try:
            while True:
                if served.qmp.read_line(timeout=0.05) is None:
                    break
        except TimeoutError:
            pass
        alive(served)


def test_pipelined_flood_is_answered_completely(daemon):
    served = daemon()
    count = 3000
    data = b''.join(b'{"execute":"query-block","id":%d}' % i for i in range(count))
    sender = threading.Thread(target=served.qmp.send_raw, args=(data,))
    sender.start()
    for i in range(count):
        assert served.qmp.read_message()['id'] == i
    sender.join()


def test_reader_that_stalls_does_not_stop_a_second_monitor(daemon, tmp):
    served = daemon(*monitor_at(tmp / 'second'))
    stalled = Qmp.connect(tmp / 'second')
    stalled.sock.setblocking(False)
    try:
        while True:
            stalled.sock.send(b'{"execute": "query-qmp-schema"}' * 10)
    except BlockingIOError:
        pass
    for _ in range(20):
        assert served.cmd('query-block-exports') == []
    stalled.close()


def test_events_for_a_stalled_reader_are_bounded(daemon, tmp):
    """A monitor that does not read while events come: memory does not grow without end."""
    served = daemon(*monitor_at(tmp / 'second'))
    stalled = Qmp.connect(tmp / 'second')
    for i in range(200):
        served.cmd(
            'blockdev-create', job_id='j', options={'driver': 'file', 'filename': str(tmp / 'x'), 'size': 1}
        )
        served.qmp.wait_event('JOB_STATUS_CHANGE', status='concluded')
        served.cmd('job-dismiss', id='j')
        served.qmp.events.clear()
    assert served.memory() < 400 << 20
    stalled.close()


def test_command_in_pieces(daemon):
    served = daemon()
    for byte in json.dumps({'execute': 'query-block', 'id': 'pieces'}).encode():
        served.qmp.send_raw(bytes([byte]))
    assert served.qmp.read_message() == {'return': [], 'id': 'pieces'}
