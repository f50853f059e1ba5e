# SPDX-License-Identifier: Apache-2.0
"""Kicks and calls: as few as the other side asks for, none lost, and an idle export costs nothing."""

import time

import pytest

from lib.tools import wait_until
from lib.vhostuser import IN, Guest, Request, export

MIB = 1 << 20
rings = pytest.mark.parametrize('packed', [False, True], ids=['split', 'packed'])
events = pytest.mark.parametrize('event_idx', [False, True], ids=['flags', 'events'])


@pytest.fixture
def serve(daemon, tmp, guests):
    def factory(**options):
        daemon('--blockdev', f'null-co,node-name=n,size={MIB},read-zeroes=on', *export(tmp / 's'))
        guest = guests(tmp / 's', **options)
        guest.wire.sync()
        return guest

    return factory


def poll(guest, requests):
    """Waits without touching what the ring says about calls."""
    wait_until(lambda: guest.reap() is None or all(one.done for one in requests), 'answers')


def reads(guest, count):
    requests = [guest.submit(Request(IN, i, in_bytes=512), kick=False) for i in range(count)]
    guest.kick(guest.queues[0])
    return requests


@pytest.mark.better
@pytest.mark.sanitize
@rings
@events
def test_no_calls_for_who_wants_none(packed, event_idx, serve):
    guest = serve(packed=packed, event_idx=event_idx)
    queue = guest.queues[0]
    poll(guest, reads(guest, 5))
    queue.ring.ask_for_calls(False)
    poll(guest, reads(guest, 5))  # those that were under way
    guest.wire.sync()
    queue.calls()
    for _ in range(10):
        queue.ring.ask_for_calls(False)
        poll(guest, reads(guest, 10))
    guest.stop(queue)  # and no late ones either
    assert queue.calls() == 0


@pytest.mark.sanitize
@pytest.mark.parametrize(
    'packed', [False, pytest.param(True, marks=pytest.mark.better)], ids=['split', 'packed']
)
@events
def test_a_call_for_each_who_wants_them(packed, event_idx, serve):
    guest = serve(packed=packed, event_idx=event_idx)
    for i in range(50):
        guest.queues[0].ring.ask_for_calls(True)
        guest.queues[0].calls()
        poll(guest, reads(guest, 1))
        wait_until(guest.queues[0].calls, 'a call')


@pytest.mark.better
@pytest.mark.sanitize
@rings
def test_the_event_index_says_which(packed, serve):
    """A call when that request is answered and none before it."""
    guest = serve(packed=packed)
    queue, ring = guest.queues[0], guest.queues[0].ring
    ring.ask_for_calls(True)
    poll(guest, reads(guest, 3))
    wait_until(queue.calls, 'the call')
    for _ in range(20):
        if packed:
            index = ring.last_used + 3 * 9
            ring.avail16[0] = index % ring.size | (ring.used_wrap ^ (index >= ring.size)) << 15
        else:
            ring.avail16[2 + ring.size] = (ring.last_used + 9) & 0xFFFF
        poll(guest, reads(guest, 9))
        guest.wire.sync()
        assert queue.calls() == 0
        poll(guest, reads(guest, 1))
        wait_until(queue.calls, 'the call')
        poll(guest, reads(guest, 9))


@pytest.mark.sanitize
@pytest.mark.parametrize(
    'packed', [False, pytest.param(True, marks=pytest.mark.better)], ids=['split', 'packed']
)
@events
def test_ping_pong(packed, event_idx, serve):
    """One request at a time, each side sleeping until the other wakes it."""
    guest = serve(packed=packed, event_idx=event_idx)
    for i in range(1000):
        assert guest.read(i, 512) == bytes(512)


@pytest.mark.better
def test_few_kicks_and_calls_under_load(serve):
    """With event indices a burst costs a kick and a call or two."""
    guest = serve(size=256)
    guest.read(0, 512)
    calls = 0
    for _ in range(10):
        requests = reads(guest, 64)
        guest.queues[0].ring.ask_for_calls(True)
        guest.wait(*requests)
        calls += guest.queues[0].calls()
    assert calls < 100


@pytest.mark.better
def test_idle_exports_cost_nothing(daemon, tmp):
    """Sixty-four of them, connected, after some work."""
    served = daemon(
        '--object', 'iothread,id=t',
        '--blockdev', f'null-co,node-name=n,size={MIB},read-zeroes=on',
        *(word for i in range(64) for word in export(tmp / f's{i}', ident=f'e{i}', **({'iothread': 't'} if i == 0 else {}))),
    )  # fmt: skip
    guests = [Guest(tmp / f's{i}', size=16) for i in range(64)]
    for guest in guests:
        for i in range(20):
            guest.read(i, 512)
    time.sleep(0.3)  # polling after the last request may end
    before = served.cpu_seconds()
    time.sleep(1.5)
    assert served.cpu_seconds() - before <= 0.03
    for guest in guests:
        assert guest.read(0, 512) == bytes(512)
        guest.close()
