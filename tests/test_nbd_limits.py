# SPDX-License-Identifier: Apache-2.0
"""Hostile NBD clients: floods, stalls, oversized fields. The daemon keeps serving others (docs/threat-classes.md)."""

import os
import struct
import threading
import time

import pytest

from lib import nbdwire
from lib.nbdwire import (
    CMD_CACHE,
    CMD_FLUSH,
    CMD_READ,
    CMD_STATUS,
    CMD_WRITE,
    OPT_ABORT,
    OPT_GO,
    OPT_INFO,
    OPT_LIST,
    OPT_LIST_META,
    OPT_SET_META,
    OPT_STRUCTURED,
    Closed,
    Wire,
    info_payload,
    meta_payload,
    text,
)
from lib.tools import libnbd, wait_until

pytestmark = pytest.mark.sanitize
NODES = (
    '--blockdev',
    'null-co,node-name=n,size=67108864,read-zeroes=on',
    '--export',
    'nbd,id=e,node-name=n,writable=on',
)


@pytest.fixture
def served(daemon):
    return daemon(*NODES, nbd=True)


def still_serves(served):
    with nbdwire.connect(served.nbd_path, 'n') as wire:
        assert wire.error_of(wire.request(CMD_READ, 0, 512)) == 0
    assert len(served.cmd('query-block-exports')) == 1


def test_silent_clients_are_dropped_at_the_handshake_deadline(daemon):
    served = daemon(*NODES[:2])
    served.cmd(
        'nbd-server-start',
        addr={'type': 'unix', 'data': {'path': str(served.nbd_path)}},
        handshake_max_seconds=1,
    )
    served.export('n')
    wires = [Wire(served.nbd_path) for _ in range(5)]
    begin = time.monotonic()
    for wire in wires:
        wire.greeting()
    for wire in wires:
        assert wire.at_eof()
    assert time.monotonic() - begin >= 0.5
    slow = Wire(served.nbd_path)  # sending now and then does not stretch the deadline
    slow.greeting()
    with pytest.raises(Closed):
        while True:
            slow.option(OPT_LIST)
            time.sleep(0.1)
    with nbdwire.connect(served.nbd_path, 'n') as wire:
        time.sleep(1.5)  # the deadline is for the handshake only
        assert wire.error_of(wire.request(CMD_READ, 0, 512)) == 0


def test_connection_limit(daemon):
    served = daemon(*NODES[:2])
    served.cmd(
        'nbd-server-start', addr={'type': 'unix', 'data': {'path': str(served.nbd_path)}}, max_connections=2
    )
    served.export('n')
    first, second = nbdwire.connect(served.nbd_path, 'n'), nbdwire.connect(served.nbd_path, 'n')
    third = Wire(served.nbd_path, timeout=0.5)
    with pytest.raises((TimeoutError, OSError)):
        third.greeting()
    assert first.error_of(first.request(CMD_READ, 0, 512)) == 0
    second.close()
    third.sock.settimeout(30)
    third.greeting()
    assert third.go('n')[0] == 67108864


def test_many_clients_that_come_and_go(served):
    for _ in range(300):
        Wire(served.nbd_path).close()
    wires = [Wire(served.nbd_path) for _ in range(90)]
    for wire in wires:
        wire.close()
    still_serves(served)


def test_option_flood(served):
    """Endless options are answered one by one without growing; the reference does the same until its deadline."""
    with Wire(served.nbd_path) as wire:
        wire.greeting()
        try:
            for _ in range(3000):
                wire.option(OPT_LIST)
        except Closed:
            pass
    still_serves(served)
    assert served.memory() < 200 << 20


def test_option_flood_without_reading(served):
    """A client that sends options and never reads the answers stalls only itself."""
    with Wire(served.nbd_path) as wire:
        wire.greeting()
        wire.sock.settimeout(0.5)
        try:
            for _ in range(100000):
                wire.send_option(OPT_LIST)
        except (OSError, Closed):
            pass
        still_serves(served)
    assert served.memory() < 200 << 20


@pytest.mark.parametrize(
    'option',
    [OPT_LIST, OPT_INFO, OPT_GO, OPT_STRUCTURED, OPT_LIST_META, OPT_SET_META, OPT_ABORT, 99, 0xFFFFFFFF],
)
@pytest.mark.parametrize('length', [0xFFFFFFFF, 0x80000000, 0x7FFFFFFF, 1 << 25])
def test_oversized_options(option, length, served):
    with Wire(served.nbd_path, timeout=5) as wire:
        wire.greeting()
        try:
            wire.send_option(option, b'x' * 1000, length=length)
            wire.sock.shutdown(1)
            while True:
                wire.option_reply()
        except Closed:
            pass
    still_serves(served)
    assert served.memory() < 200 << 20


@pytest.mark.parametrize(
    'payload',
    [
        struct.pack('>I', 0xFFFFFFFF) + b'n',
        struct.pack('>I', 4097) + b'x' * 4097 + b'\0\0',
        text('n'),
        text('n') + b'\xff\xff',
        text('n') + b'\0\1\0',
        text('n' * 100000) + b'\0\0',
        info_payload('n', *range(1000)),
        b'\0' * 3,
    ],
    ids=[
        'long name length',
        'name over the limit',
        'no requests',
        'missing requests',
        'half a request',
        'huge name',
        'many requests',
        'short',
    ],
)
def test_bad_names_and_lengths_inside_options(payload, served):
    for option in (OPT_INFO, OPT_GO):
        with Wire(served.nbd_path, timeout=20) as wire:
            wire.greeting()
            try:
                if wire.option(option, payload)[-1][0] != nbdwire.REP_ACK:
                    wire.option(OPT_ABORT)
            except Closed:
                pass
    still_serves(served)


@pytest.mark.parametrize(
    'payload',
    [
        meta_payload('n', *['base:allocation'] * 5000),
        text('n') + struct.pack('>I', 0xFFFFFFFF),
        text('n') + struct.pack('>II', 1, 0xFFFFFFFF),
        meta_payload('n', 'x' * 60000),
        meta_payload('n' * 60000),
        meta_payload('n', *[f'qemu:dirty-bitmap:{i}' for i in range(2000)]),
    ],
    ids=['many', 'count', 'length', 'long query', 'long name', 'bitmaps'],
)
def test_hostile_metadata_queries(payload, served):
    for option in (OPT_LIST_META, OPT_SET_META):
        with Wire(served.nbd_path, timeout=20) as wire:
            wire.greeting()
            wire.structured()
            try:
                wire.option(option, payload)
                wire.option(OPT_ABORT)
            except Closed:
                pass
    still_serves(served)


def test_stalled_reader_holds_bounded_memory(served):
    """A client that asks for much and reads nothing does not make the daemon buffer all of it."""
    with nbdwire.connect(served.nbd_path, 'n') as wire:
        wire.sock.settimeout(1)
        try:
            for _ in range(400):
                wire.send_request(CMD_READ, 0, 32 << 20)
        except (OSError, Closed):
            pass
        still_serves(served)
        assert served.memory() < 2 << 30


def test_stalled_writer_does_not_hold_others(served):
    """Half a write request, then silence."""
    with nbdwire.connect(served.nbd_path, 'n') as stalled:
        stalled.send(struct.pack('>IHHQQI', nbdwire.REQUEST_MAGIC, 0, CMD_WRITE, 1, 0, 1 << 20) + b'half')
        still_serves(served)
        served.unexport('e', mode='hard')


def test_requests_dribble_in(served):
    """Byte by byte is slow but right."""
    with nbdwire.connect(served.nbd_path, 'n', structured=False) as wire:
        for byte in struct.pack('>IHHQQI', nbdwire.REQUEST_MAGIC, 0, CMD_READ, 7, 0, 16):
            wire.send(bytes([byte]))
        assert wire.reply(16) == [('simple', 0, 7), ('data', bytes(16))]


@pytest.mark.parametrize(
    'request_',
    [
        (CMD_READ, 0, 0xFFFFFFFF),
        (CMD_READ, (1 << 64) - 1, 1),
        (CMD_READ, (1 << 63), 512),
        (CMD_READ, 67108864, 1),
        (CMD_CACHE, 0, 0xFFFFFFFF),
        (CMD_FLUSH, (1 << 64) - 1, 0xFFFFFFFF),
        (CMD_STATUS, 0, 0xFFFFFFFF),
        (99, (1 << 64) - 1, 0xFFFFFFFF),
        (0xFFFF, 0, 0),
    ],
)
def test_extreme_request_fields(request_, served):
    with nbdwire.connect(served.nbd_path, 'n', contexts=['base:allocation']) as wire:
        try:
            wire.request(*request_)
            assert wire.error_of(wire.request(CMD_READ, 0, 512)) == 0
        except Closed:
            pass
    still_serves(served)


def test_garbage_instead_of_requests(served, rng):
    for _ in range(30):
        with nbdwire.connect(served.nbd_path, 'n') as wire:
            try:
                wire.send(rng.randbytes(rng.randrange(1, 5000)))
                wire.sock.shutdown(1)
                wire.at_eof()
            except (Closed, OSError):
                pass
    for _ in range(30):
        with Wire(served.nbd_path) as wire:
            try:
                wire.greeting(None)
                wire.send(rng.randbytes(rng.randrange(1, 200)))
                wire.sock.shutdown(1)
                wire.at_eof()
            except (Closed, OSError):
                pass
    still_serves(served)


def test_request_flood_in_one_write(served):
    """Thousands of requests in one go: all are answered, in any order."""
    count = 4000
    with nbdwire.connect(served.nbd_path, 'n', structured=False) as wire:
        data = b''.join(
            struct.pack('>IHHQQI', nbdwire.REQUEST_MAGIC, 0, CMD_READ, i, i * 512, 512) for i in range(count)
        )
        sender = threading.Thread(target=wire.send, args=(data,))
        sender.start()
        seen = set()
        for _ in range(count):
            kind, error, cookie = wire.reply_piece()
            assert (kind, error) == ('simple', 0)
            assert wire.recv(512) == bytes(512)
            seen.add(cookie)
        sender.join()
        assert seen == set(range(count))


def test_disconnects_leave_nothing_behind(served):
    """Clients that vanish with requests in flight release their descriptors."""
    nbd = libnbd()
    fds = f'/proc/{served.process.pid}/fd'
    before = len(os.listdir(fds))
    for _ in range(30):
        handle = served.connect('n')
        for i in range(16):
            handle.aio_pread(nbd.Buffer(65536), i * 65536)
        handle.poll(0)
        del handle
    wait_until(lambda: len(os.listdir(fds)) <= before + 2, 'descriptors to be closed')
    still_serves(served)
