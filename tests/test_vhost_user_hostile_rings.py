# SPDX-License-Identifier: Apache-2.0
"""Rings, descriptors and in-flight areas as no driver may write them: the connection ends, or the request fails; the daemon does not."""

import contextlib
import os
import struct

import pytest

from lib.vhostuser import GET_ID, IN, OK, OUT, Closed, F, Guest, Inflight, Layout, Refused, Request, readable
from lib.vhostvictim import Victim
from lib.virtqueue import DESC_AVAIL, DESC_INDIRECT, DESC_NEXT, DESC_USED, DESC_WRITE, Memory

pytestmark = [pytest.mark.better, pytest.mark.sanitize]
W, N, I = DESC_WRITE, DESC_NEXT, DESC_INDIRECT
TOP = 1 << 64
END = 16 << 20  # of the memory
HEADER = struct.pack('<IIQ', IN, 0, 0)
SLOW = 'null-co,node-name=n,size=1048576,read-zeroes=on,latency-ns=100000000'


@pytest.fixture(scope='module')
def victims():
    yield from Victim.shared(num_queues=2)


@pytest.fixture(scope='module')
def slow_victims():
    yield from Victim.shared(SLOW, num_queues=2)


@pytest.fixture
def victim(victims):
    victim = victims()
    yield victim
    victim.check()


@pytest.fixture
def slow(slow_victims):
    victim = slow_victims()
    yield victim
    victim.check()


class Spot:
    """Guest memory to attack with: a header for a read, room for data and status."""

    def __init__(self, guest):
        self.guest, self.memory, self.ring = guest, guest.memory, guest.queues[0].ring
        self.header = self.memory.alloc(4096, align=4096)
        self.memory.write(self.header, HEADER)
        self.data = self.memory.alloc(8192, align=4096)

    def show(self, *descriptors, head=0, count=1):
        """Writes descriptors (address, length, flags, next) from 0 on and shows the first; kicks."""
        for i, (address, length, flags, following) in enumerate(descriptors):
            self.write(i, address, length, flags, following)
        self.ring.avail16[2 + self.ring.shown % self.ring.size] = head
        self.ring.avail16[1] = (self.ring.shown + count) & 0xFFFF
        self.guest.queues[0].kick()

    def write(self, index, address, length, flags, following):
        self.ring.write_descriptor(index, address, length, flags, following)

    def table(self, *descriptors):
        data = b''.join(struct.pack('<QIHH', *one) for one in descriptors)
        at = self.memory.alloc(len(data) or 16, align=16)
        self.memory.write(at, data)
        return at


def attack(victim, guest, action, ended=True):
    victim.attack(guest.wire, action, ended=ended)


def ended(wire):
    return bool(readable(0, wire))


# name -> function from a Spot to descriptors; the first is the head
SPLIT = {
    'loop of one': lambda s: [(s.header, 16, N, 0)],
    'loop of two': lambda s: [(s.header, 16, N, 1), (s.data, 16, N, 0)],
    'loop of writable ones': lambda s: [(s.header, 16, N, 1), (s.data, 16, N | W, 2), (s.data, 16, N | W, 1)],
    'next outside of the table': lambda s: [(s.header, 16, N, 128)],
    'next far outside of the table': lambda s: [(s.header, 16, N, 0xFFFF)],
    'address outside': lambda s: [(END, 16, N, 1), (s.data, 513, W, 0)],
    'address at the top': lambda s: [(TOP - 16, 16, N, 1), (s.data, 513, W, 0)],
    'address that wraps': lambda s: [(TOP - 8, 16, N, 1), (s.data, 513, W, 0)],
    'over the end of memory': lambda s: [(s.header, 16, N, 1), (END - 512, 513, W, 0)],
    'length that wraps': lambda s: [(s.header, 16, N, 1), (s.data, 0xFFFFFFFF, W, 0)],
    'readable behind writable': lambda s: [(s.data, 513, W | N, 1), (s.header, 16, 0, 0)],
    'readable between writable': lambda s: [
        (s.header, 16, N, 1), (s.data, 512, W | N, 2), (s.header, 16, N, 3), (s.data, 1, W, 0)
    ],
    'no status': lambda s: [(s.header, 16, 0, 0)],
    'no header': lambda s: [(s.data, 513, W, 0)],
    'half a header': lambda s: [(s.header, 8, N, 1), (s.data, 513, W, 0)],
    'a header of 15 bytes in pieces': lambda s: [(s.header, 8, N, 1), (s.header + 8, 7, N, 2), (s.data, 513, W, 0)],
    'indirect table of no bytes': lambda s: [(s.table(), 0, I, 0)],
    'indirect table of 15 bytes': lambda s: [(s.table((s.header, 16, 0, 0)), 15, I, 0)],
    'indirect table of 17 bytes': lambda s: [(s.table((s.header, 16, N, 1), (s.data, 1, W, 0)), 17, I, 0)],
    'indirect table outside': lambda s: [(END, 32, I, 0)],
    'indirect table over the end': lambda s: [(END - 16, 32, I, 0)],
    'indirect table that wraps': lambda s: [(TOP - 16, 32, I, 0)],
    'huge indirect table': lambda s: [(0, 0xFFFFFFF0, I, 0)],
    'indirect table of 65536 entries': lambda s: [
        (s.table(*((s.header, 1, N, i + 1) for i in range(65535)), (s.data, 1, W, 0)), 16 << 16, I, 0)
    ],
    'nested indirect tables': lambda s: [(s.table((s.table((s.header, 16, 0, 0)), 16, I, 0)), 16, I, 0)],
    'indirect and next': lambda s: [
        (s.table((s.header, 16, N, 1), (s.data, 513, W, 0)), 32, I | N, 1), (s.data, 16, W, 0)
    ],
    'loop in an indirect table': lambda s: [(s.table((s.header, 16, N, 1), (s.data, 16, W | N, 1)), 32, I, 0)],
    'next outside of the indirect table': lambda s: [(s.table((s.header, 16, N, 1), (s.data, 16, W | N, 2)), 32, I, 0)],
    'address outside in an indirect table': lambda s: [(s.table((s.header, 16, N, 1), (END, 513, W, 0)), 32, I, 0)],
    'an indirect table that is itself': lambda s: [(s.ring.desc, 128 * 16, I, 0)],
}  # fmt: skip


@pytest.mark.parametrize('name', SPLIT)
def test_split_chains(name, victim):
    with victim.guest() as guest:
        spot = Spot(guest)
        attack(victim, guest, lambda: spot.show(*SPLIT[name](spot)))


@pytest.mark.parametrize('name', ['loop of one', 'loop of two', 'address outside', 'indirect table outside'])
def test_it_is_the_same_in_flight(name, slow):
    """Other requests are on their way on both queues when the violation is seen."""
    with slow.guest(queues=2) as guest:
        guest.queues[0].ring.unused = list(range(64, 128))
        for i in range(20):
            guest.submit(Request(IN, i, in_bytes=4096), queue=i % 2)
        spot = Spot(guest)
        spot.ring.shown = spot.ring.next_avail
        attack(slow, guest, lambda: spot.show(*SPLIT[name](spot)))


@pytest.mark.parametrize('indirect', [False, True])
def test_an_empty_piece(indirect, victim):
    """The specification does not speak of a descriptor of 0 bytes; it harms nobody."""
    with victim.guest() as guest:
        spot = Spot(guest)
        chain = [(spot.header, 16, N, 1), (spot.data, 0, W | N, 2), (spot.data, 513, W, 0)]
        if indirect:
            chain = [(spot.table(*chain), 48, I, 0)]
        attack(victim, guest, lambda: spot.show(*chain), ended=False)


def test_far_more_than_the_disk_has(victim):
    """The pieces overlap in memory, which is the driver's business, and have 1.6 GiB together: a request that fails."""
    with victim.guest() as guest:
        spot = Spot(guest)
        chain = [(spot.header, 16, N, 1), *((0, END, N | W, i) for i in range(2, 100)), (spot.data, 1, W, 0)]
        attack(victim, guest, lambda: spot.show(*chain), ended=False)


@pytest.mark.parametrize('head', [128, 129, 0x8000, 0xFFFF])
def test_heads_outside_of_the_table(head, victim):
    with victim.guest() as guest:
        attack(victim, guest, lambda: Spot(guest).show(head=head))


@pytest.mark.parametrize('count', [129, 1000, 0x8000, 0xFFFF])
def test_available_indices_that_jump(count, victim):
    """More than the ring has, or backwards."""
    with victim.guest() as guest:
        spot = Spot(guest)
        attack(victim, guest, lambda: spot.show((spot.header, 16, N, 1), (spot.data, 513, W, 0), count=count))


def test_indirect_descriptors_that_were_not_negotiated(victim):
    with victim.guest(indirect=False) as guest:
        spot = Spot(guest)
        table = spot.table((spot.header, 16, N, 1), (spot.data, 513, W, 0))
        attack(victim, guest, lambda: spot.show((table, 32, I, 0)))


@pytest.mark.parametrize('inflight', [False, True])
def test_the_same_head_twice(inflight, slow):
    """While the first is in flight; a driver must not do this, and nothing may be freed twice."""
    with slow.guest(inflight=inflight) as guest:
        spot = Spot(guest)
        for i, one in enumerate([(spot.header, 16, N, 1), (spot.data, 513, W, 0)]):
            spot.write(i, *one)
        spot.ring.avail16[2] = spot.ring.avail16[3] = spot.ring.avail16[4] = 0
        spot.ring.avail16[1] = 3
        guest.queues[0].kick()
        attack(slow, guest, guest.wire.sync, ended=False)


@pytest.mark.parametrize('packed', [False, True])
def test_data_over_the_ring(packed, victim):
    """A read whose data goes where the ring is."""
    with victim.guest(packed=packed) as guest:
        ring = guest.queues[0].ring
        for at in (ring.desc, ring.avail, ring.used):
            guest.submit(Request(GET_ID, in_bytes=20))
            cookie = Request(IN, 0, in_bytes=4096)
            cookie.place(guest.memory, Layout())
            buffers = [one._replace(guest=at & ~4095) if one.bytes == 4096 else one for one in cookie.buffers]
            ring.add(cookie, buffers)
            ring.publish()
            guest.queues[0].kick()
        attack(victim, guest, guest.wire.sync, ended=False)


def test_a_driver_that_changes_its_mind(victim, rng):
    """Descriptors change all the time while they are looked at: what was checked is what has to be used."""
    with victim.guest(size=16) as guest:
        spot, ring = Spot(guest), guest.queues[0].ring
        good, bad = struct.pack('<QIHH', spot.data, 513, W, 0), struct.pack(
            '<QIHH', TOP - 1, 0xFFFFFFFF, W, 0
        )

        def action():
            spot.write(0, spot.header, 16, N, 1)
            for i in range(3000):
                ring.avail16[2 + i % 16] = 0
                ring.avail16[1] = (i + 1) & 0xFFFF
                guest.queues[0].kick()
                for one in (good, bad, good):
                    ring.views[0][16:32] = one
                while ring.used16[1] != (i + 1) & 0xFFFF and not ended(guest.wire):
                    ring.views[0][16:32] = good
                if ended(guest.wire):
                    return

        attack(victim, guest, action, ended=False)


# --- packed rings


A = DESC_AVAIL  # in the first round
PACKED = {
    'all of the ring is one chain': lambda s: [(s.header, 16, N | A, 0)] * 128,
    'address outside': lambda s: [(s.header, 16, N | A, 0), (END, 513, W | A, 0)],
    'address that wraps': lambda s: [(TOP - 8, 16, N | A, 0), (s.data, 513, W | A, 0)],
    'length that wraps': lambda s: [(s.header, 16, N | A, 0), (s.data, 0xFFFFFFFF, W | A, 0)],
    'readable behind writable': lambda s: [(s.data, 513, W | N | A, 0), (s.header, 16, A, 0)],
    'no status': lambda s: [(s.header, 16, A, 0)],
    'no header': lambda s: [(s.data, 513, W | A, 0)],
    'half a header': lambda s: [(s.header, 8, N | A, 0), (s.data, 513, W | A, 0)],
    'indirect table of no bytes': lambda s: [(s.table(), 0, I | A, 0)],
    'indirect table of 17 bytes': lambda s: [(s.table((s.header, 16, 0, 0), (s.data, 1, 0, W)), 17, I | A, 0)],
    'indirect table outside': lambda s: [(END, 32, I | A, 0)],
    'indirect table that wraps': lambda s: [(TOP - 16, 32, I | A, 0)],
    'huge indirect table': lambda s: [(0, 0xFFFFFFF0, I | A, 0)],
    'nested indirect tables': lambda s: [(s.table((s.table((s.header, 16, 0, 0)), 16, 0, I)), 16, I | A, 0)],
    'indirect and next': lambda s: [
        (s.table((s.header, 16, 0, 0), (s.data, 513, 0, W)), 32, I | N | A, 0), (s.data, 16, W | A, 0)
    ],
    'indirect behind a direct one': lambda s: [
        (s.header, 16, N | A, 0), (s.table((s.data, 513, 0, W)), 16, I | A, 0)
    ],
    'address outside in an indirect table': lambda s: [
        (s.table((s.header, 16, 0, 0), (END, 513, 0, W)), 32, I | A, 0)
    ],
}  # fmt: skip


def show_packed(spot, descriptors):
    """From the first slot on, the head last."""
    for i, one in reversed(list(enumerate(descriptors))):
        spot.write(i, *one)
    spot.guest.queues[0].kick()


@pytest.mark.parametrize('name', PACKED)
def test_packed_chains(name, victim):
    with victim.guest(packed=True) as guest:
        spot = Spot(guest)
        attack(victim, guest, lambda: show_packed(spot, PACKED[name](spot)))


def test_half_a_packed_chain(victim):
    """The head is available, the second descriptor is not: that it is comes later, or never."""
    with victim.guest(packed=True) as guest:
        spot = Spot(guest)
        show_packed(spot, [(spot.header, 16, N | A, 0), (spot.data, 513, W, 0)])
        attack(victim, guest, guest.wire.sync, ended=False)


@pytest.mark.parametrize('ident', [0, 5, 128, 0xFFFF])
def test_buffer_ids(ident, slow):
    """Ids are the driver's own business; two equal ones in flight are its own fault."""
    with slow.guest(packed=True, inflight=True) as guest:
        spot = Spot(guest)
        request = [(spot.header, 16, N | A, ident), (spot.data, 513, W | A, ident)]
        show_packed(spot, request * 3)
        attack(slow, guest, guest.wire.sync, ended=False)


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('event', [0, 1, 0x7FFF, 0x8000, 0xFFFF])
def test_odd_event_areas(packed, event, victim):
    """Whatever they hold decides about calls only."""
    with victim.guest(packed=packed, polling=True) as guest:
        ring = guest.queues[0].ring
        for flags in (0, 1, 2, 3, 0xFFFF):
            for i in range(10):
                request = guest.submit(Request(IN, i, in_bytes=512))
                if packed:
                    ring.avail16[0], ring.avail16[1] = event, flags
                else:
                    ring.avail16[0], ring.avail16[2 + ring.size] = flags, event
                guest.queues[0].kick()
                while not request.done:
                    guest.reap()
        attack(victim, guest, guest.wire.sync, ended=False)


@pytest.mark.parametrize('packed', [False, True])
def test_rings_of_garbage(packed, victim, rng):
    for _ in range(80):
        with victim.guest(packed=packed, size=64) as guest:
            ring = guest.queues[0].ring
            spot = Spot(guest)
            for view in ring.views:
                view[:] = rng.randbytes(len(view))
            for i in range(64):  # some of it makes sense
                if rng.random() < 0.8:
                    flags = rng.choice((0, W, N, W | N, I)) | rng.choice(
                        (0, A, DESC_USED) if packed else (0,)
                    )
                    spot.write(
                        i,
                        rng.choice((spot.header, spot.data)),
                        rng.choice((1, 16, 513)),
                        flags,
                        rng.randrange(64),
                    )
            if not packed:
                for i in range(64):
                    ring.avail16[2 + i] = rng.randrange(64)
                ring.avail16[1] = rng.randrange(65)
            guest.queues[0].kick()
            attack(victim, guest, guest.wire.sync, ended=False)


# --- memory that goes away


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('keep', [0, 1 << 20], ids=['rings', 'data'])
def test_truncated_memory(packed, keep, slow):
    """The file of the guest's memory shrinks while requests are on their way."""
    memory = Memory.plain()
    with slow.guest(packed=packed, memory=memory) as guest:
        data = memory.alloc(1 << 20, at=8 << 20)
        for i in range(10):
            request = Request(IN if i & 1 else OUT, i, b'' if i & 1 else bytes(4096), 4096 if i & 1 else 0)
            request.place(memory, Layout())
            buffers = [
                one._replace(guest=data + i * 4096) if one.bytes == 4096 else one for one in request.buffers
            ]
            guest.queues[0].ring.add(request, buffers)
        guest.queues[0].ring.publish()
        guest.queues[0].kick()
        guest.wire.sync()

        def action():
            os.ftruncate(memory.regions[0].fd, keep)
            guest.queues[0].kick()
            guest.wire.sync()

        attack(slow, guest, action, ended=keep == 0)


def test_truncated_in_flight_area(slow):
    """One of our own making; that of the back end cannot be truncated at all."""
    with slow.guest(inflight=True) as guest:
        size = guest.inflight.size
    guest = slow.guest(start=False)
    guest.inflight = Inflight.new(size, 1, guest.size)
    guest.wire.set_inflight(guest.inflight)
    guest.start(guest.queues[0])
    for i in range(10):
        guest.submit(Request(IN, i, in_bytes=4096))
    guest.wire.sync()
    os.ftruncate(guest.inflight.fd, 0)
    guest.submit(Request(IN, 0, in_bytes=4096))
    attack(slow, guest, guest.wire.sync, ended=False)
    guest.close()


def test_truncated_log(slow):
    with slow.guest() as guest:
        log = os.memfd_create('log')
        os.ftruncate(log, 1 << 20)
        guest.wire.set_log(log, 1 << 20)
        guest.wire.u64(2, guest.features | F.LOG_ALL)
        guest.set_addresses(guest.queues[0], log=guest.queues[0].ring.used)
        for i in range(10):
            guest.submit(Request(IN, i, in_bytes=4096))
        guest.wire.sync()
        os.ftruncate(log, 0)
        attack(slow, guest, guest.wire.sync, ended=False)
        os.close(log)


# --- in-flight areas


@pytest.mark.parametrize('packed', [False, True])
def test_in_flight_areas_of_garbage(packed, victim, rng):
    """What is in the area is checked before it is used: random bytes, also in an area that looks right otherwise."""
    with victim.guest(packed=packed, inflight=True, size=16) as guest:
        guest.read(0, 512)
        guest.stop(guest.queues[0])
        template = bytes(guest.inflight.view)
        size = len(template)
    for _ in range(80):
        area = Inflight.new(size, 1, 16)
        area.view[:] = template
        start = rng.choice((0, 10, 12, 16, 32))
        for _ in range(rng.choice((1, 10, 100, 2000))):
            area.view[rng.randrange(start, size)] = rng.choice((0, 1, 2, 15, 16, 17, 255, rng.randrange(256)))
        guest = Guest(victim.path, packed=packed, size=16, start=False)

        def action(guest=guest, area=area):
            guest.wire.set_inflight(area)
            guest.start(guest.queues[0])
            guest.wire.sync()

        attack(victim, guest, action, ended=False)
        guest.close()
        area.close()


SPLIT_AREAS = {
    'another version': lambda view: struct.pack_into('<H', view, 8, 7),
    'another count of descriptors': lambda view: struct.pack_into('<H', view, 10, 15),
    'the last batch begins outside': lambda view: struct.pack_into('<HH', view, 12, 16, 5),
    'the last batch is a loop': lambda view: [
        struct.pack_into('<HH', view, 12, 3, 0xFFF0), struct.pack_into('<H', view, 16 + 3 * 16 + 6, 3)
    ],
    'everything is in flight': lambda view: [
        struct.pack_into('<BxxxxxHQ', view, 16 + i * 16, 1, 0, i) for i in range(16)
    ],
    'equal counters': lambda view: [struct.pack_into('<BxxxxxHQ', view, 16 + i * 16, 1, 0, 7) for i in range(3)],
}  # fmt: skip


@pytest.mark.parametrize('name', SPLIT_AREAS)
def test_split_in_flight_areas(name, victim):
    guest = victim.guest(inflight=True, size=16)
    guest.read(0, 512)
    SPLIT_AREAS[name](guest.inflight.queue(0))

    with contextlib.suppress(Closed, Refused):
        guest.reconnect()
        victim.catch_up(guest.wire)
    guest.close()


def test_a_request_in_flight_that_is_no_request(victim):
    """The area says that a head is in flight; its descriptors are a loop by now."""
    guest = victim.guest(inflight=True, size=16)
    guest.read(0, 512)
    guest.disconnect()
    view = guest.inflight.queue(0)
    struct.pack_into('<B', view, 16 + 5 * 16, 1)
    spot = Spot(guest)
    spot.write(5, spot.header, 16, N, 5)
    guest.wire.close()
    lines = len(victim.log())
    try:
        guest.connect(start=False)
        guest.start(guest.queues[0])
        guest.wire.sync()
    except Closed:
        pass
    assert guest.wire.at_eof()
    assert len(victim.log()) > lines
    guest.close()


def test_requests_that_end_after_the_connection(slow):
    """Ended by a violation with requests in flight: their memory stays until they are done."""
    for _ in range(3):
        with slow.guest() as guest:
            for i in range(30):
                guest.submit(Request(IN, i, in_bytes=65536))
            spot = Spot(guest)
            spot.ring.shown = spot.ring.next_avail
            attack(slow, guest, lambda: spot.show(head=999))


def test_one_queue_of_two(victim):
    """A violation on one queue ends the connection for all."""
    with victim.guest(queues=2) as guest:
        guest.read(0, 512, queue=1)
        attack(victim, guest, lambda: Spot(guest).show(head=999))


def test_legal_use_of_the_tools(victim):
    """The same means make a request that works, so that the violations are what ends connections."""
    with victim.guest() as guest:
        spot = Spot(guest)
        spot.show((spot.table((spot.header, 16, N, 1), (spot.data, 513, W, 0)), 32, I, 0))
        spot.ring.outstanding[0] = (None, [], [])
        while not (done := spot.ring.collect()):
            guest.wire.sync()
        assert done == [(None, 513)]
        assert spot.memory.read(spot.data, 513) == bytes(512) + bytes([OK])
    with victim.guest(packed=True) as guest:
        spot = Spot(guest)
        show_packed(spot, [(spot.header, 16, N | A, 0), (spot.data, 513, W | A, 0)])
        spot.ring.outstanding[0] = (None, 2, [])
        while not (done := spot.ring.collect()):
            guest.wire.sync()
        assert done == [(None, 513)]
