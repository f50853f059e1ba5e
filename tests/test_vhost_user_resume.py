# SPDX-License-Identifier: Apache-2.0
"""A daemon is killed and the next one goes on with the same guest: every request is answered exactly once, whatever state it was in.

(vhost-user.rst, "Inflight I/O tracking".) Where moments matter the first daemon's node takes a minute for each request, so that
nothing but GET_ID is answered, and the next daemon's node is a file, which shows what was carried out.
"""

import contextlib
import signal
import struct
import threading

import pytest

from lib import images
from lib.tools import need, run, wait_until
from lib.vhostload import Load
from lib.vhostuser import GET_ID, IN, OK, OUT, WCE_OFFSET, Closed, Guest, Layout, Proto, Request, export
from lib.virtqueue import Memory

pytestmark = pytest.mark.better
MIB = 1 << 20
SLOW = 'null-co,node-name=n,size=1048576,latency-ns=60000000000'
rings = pytest.mark.parametrize('packed', [False, True], ids=['split', 'packed'])


class Relay:
    """Daemons that follow each other on one socket, and the guest that stays."""

    def __init__(self, daemon, tmp, rng, queues=4):
        self.daemon, self.tmp, self.rng, self.queues = daemon, tmp, rng, queues
        self.image = tmp / 'image'
        self.content = rng.randbytes(MIB)
        self.image.write_bytes(self.content)
        self.guest = self.served = None
        self.expected = []

    def start(self, node=SLOW, **options):
        self.slow = node == SLOW
        self.served = self.daemon(
            '--blockdev', node, *export(self.tmp / 's', writable='on', num_queues=self.queues, **options)
        )

    def start_file(self, **options):
        self.start(f'file,node-name=n,filename={self.image}', **options)

    def connect(self, queues=1, **options):
        options = {'size': 32, 'inflight': True} | options
        self.guest = Guest(self.tmp / 's', queues=queues, **options)
        return self.guest

    def submit(self, count=1, queue=0, kinds=(IN, OUT)):
        """Reads and writes of different places, not answered before they meet the file."""
        for _ in range(count):
            sector = 8 * len(self.expected)
            if self.rng.choice(kinds) == IN:
                request = Request(IN, sector, in_bytes=4096)
            else:
                request = Request(OUT, sector, self.rng.randbytes(4096))
            self.expected.append(self.guest.submit(request, queue))

    def answered(self, count=1, queue=0):
        """Requests that the slow daemon answers at once; waits for them."""
        self.guest.wait(*(self.guest.submit(Request(GET_ID, in_bytes=20), queue) for _ in range(count)))

    def popped(self):
        """Waits until the daemon has noted all requests in the area."""
        count = len(self.expected)
        wait_until(lambda: in_flight(self.guest) == count, f'{count} requests to be in flight', deadline=20)

    def freeze(self):
        """From now on the daemon does nothing any more."""
        self.served.signal(signal.SIGSTOP)

    def kill(self):
        self.served.kill()

    def check(self):
        """Everything was answered; contents are right, in the image as well as for the guest."""
        self.guest.wait()
        content = bytearray(self.content)
        for request in self.expected:
            assert request.status == OK, request
            at = request.sector * 512
            if request.kind == IN:
                assert request.data == self.content[at : at + 4096], request
            else:
                content[at : at + 4096] = request.readable[16:]
        assert self.image.read_bytes() == content
        for queue in self.guest.queues:
            for sector in range(0, 2048, 512):
                assert (
                    self.guest.read(sector, 1 << 18, queue=queue.index) == content[sector * 512 :][: 1 << 18]
                )
        assert in_flight(self.guest) == 0


def in_flight(guest):
    """How many requests the area says are in flight (the layout of areas is the specification's)."""
    entry = 32 if guest.packed else 16  # the header has this length, too
    parts = [guest.inflight.queue(i, guest.packed) for i in range(len(guest.queues))]
    return sum(part[entry * (i + 1)] for part in parts for i in range(guest.size))


@pytest.fixture
def relay(daemon, tmp, rng):
    relay = Relay(daemon, tmp, rng)
    yield relay
    if relay.guest:
        relay.guest.close()
    if relay.slow:  # it would end in a minute
        relay.kill()


# --- states of rings


def nothing(relay):
    relay.answered(3)


def not_taken(relay):
    relay.freeze()
    relay.submit(7)


def taken(relay):
    relay.submit(7)
    relay.popped()


def taken_and_not_taken(relay):
    relay.submit(4)
    relay.popped()
    relay.freeze()
    relay.submit(4)


def first_slot(relay):
    """The first descriptor, counter 0, nothing used yet."""
    relay.submit(1)
    relay.popped()


def answered_between(relay):
    """The used ring has others than the available ring in front."""
    for _ in range(4):
        relay.submit(1)
        relay.answered(1)
    relay.popped()


def answered_behind(relay):
    relay.submit(5)
    relay.answered(4)
    relay.popped()


def wrapped_once(relay):
    relay.answered(relay.guest.size - 2)
    relay.submit(5)
    relay.popped()


def wrapped_often(relay):
    relay.submit(2)
    for _ in range(5):
        relay.answered(relay.guest.size // 4)
    relay.submit(3)
    relay.popped()


def full_ring(relay):
    ring, each = relay.guest.queues[0].ring, 1 if relay.guest.layout.indirect else 3
    while ring.free_count() >= each:
        relay.submit(1)
    relay.popped()


def full_ring_elsewhere(relay):
    relay.answered(relay.guest.size + 3)
    full_ring(relay)


def full_ring_not_taken(relay):
    relay.freeze()
    ring, each = relay.guest.queues[0].ring, 1 if relay.guest.layout.indirect else 3
    while ring.free_count() >= each:
        relay.submit(1)


STATES = [
    nothing, not_taken, taken, taken_and_not_taken, first_slot, answered_between, answered_behind, wrapped_once,
    wrapped_often, full_ring, full_ring_elsewhere, full_ring_not_taken,
]  # fmt: skip
states = pytest.mark.parametrize('state', STATES, ids=lambda state: state.__name__)
tables = pytest.mark.parametrize('indirect', [False, True], ids=['direct', 'indirect'])


@pytest.mark.sanitize
@rings
@tables
@states
def test_states(state, packed, indirect, relay):
    relay.start()
    relay.connect(packed=packed, layout=Layout(indirect=indirect))
    state(relay)
    relay.kill()
    relay.start_file()
    relay.guest.reconnect()
    relay.check()


@rings
@states
def test_states_of_several_daemons(state, packed, relay):
    """The second one is killed, too, once it has taken over."""
    relay.start()
    relay.connect(packed=packed)
    state(relay)
    relay.kill()
    relay.start()
    relay.guest.reconnect()
    relay.popped()
    if not state.__name__.startswith('full'):
        relay.answered(2)
    relay.kill()
    relay.start_file()
    relay.guest.reconnect()
    relay.check()


@rings
@states
def test_several_queues(state, packed, relay):
    """Each in the same state and the last one idle, or started by the second daemon only."""
    relay.start()
    guest = relay.connect(packed=packed, queues=3)
    relay.submit(2, queue=1)
    relay.answered(3, queue=1)
    relay.submit(2, queue=2)
    relay.popped()
    state(relay)
    relay.kill()
    relay.start_file()
    guest.reconnect()
    relay.check()


@rings
def test_qemu_does_not_kick(packed, relay):
    """After it has connected again it waits for the answers; what the ring holds is to be found without."""
    relay.start()
    guest = relay.connect(packed=packed)
    relay.submit(3)
    relay.popped()
    relay.freeze()
    relay.submit(3)
    relay.kill()
    relay.start_file()
    guest.queues[0].unread_kicks()
    guest.disconnect()
    guest.connect(start=False)
    guest.start(guest.queues[0], kick=False)
    relay.check()


@pytest.mark.parametrize('base', [0x80008000, 0, 5 | 0x8000 | (5 | 0x8000) << 16])
def test_the_area_knows_better_than_the_base(base, relay):
    """QEMU does not know where a packed ring stood when a back end was lost, and says where it began."""
    relay.start()
    guest = relay.connect(packed=True)
    relay.answered(guest.size // 2)
    relay.submit(3)
    relay.answered(2)
    relay.popped()
    relay.kill()
    relay.start_file()
    guest.reconnect(bases=[base])
    relay.check()


@rings
def test_messages_without_acknowledgements(packed, relay):
    relay.start()
    guest = relay.connect(packed=packed, protocol=~Proto.REPLY_ACK)
    relay.submit(5)
    relay.popped()
    relay.kill()
    relay.start_file()
    guest.reconnect()
    relay.check()


@rings
def test_memory_in_many_regions(packed, relay, rng):
    """Requests cross borders of regions, and the next daemon gets the regions in another order at other addresses of the front end."""
    relay.start()
    guest = relay.connect(
        packed=packed, memory=Memory.scattered(rng), layout=Layout((5,), (100,), True, border=True)
    )
    relay.submit(12)
    relay.answered(3)
    relay.popped()
    relay.kill()
    rng.shuffle(guest.memory.regions)
    for region in guest.memory.regions:
        region.user ^= 1 << 40
    relay.start_file()
    guest.reconnect()
    relay.check()


@rings
def test_a_client_that_comes_again_to_the_same_daemon(packed, relay):
    """What was in flight when it went is answered by then, or afterwards, but once."""
    relay.start('null-co,node-name=n,size=1048576,read-zeroes=on,latency-ns=50000000')
    guest = relay.connect(packed=packed)
    for _ in range(3):
        requests = [guest.submit(Request(IN, i, in_bytes=512)) for i in range(8)]
        guest.wire.sync()
        guest.reconnect()
        guest.wait()
        assert all(request.data == bytes(512) for request in requests)


@rings
def test_a_daemon_that_quits(packed, relay):
    """In order, with requests in flight: no loss either."""
    relay.start('null-co,node-name=n,size=1048576,read-zeroes=on,latency-ns=100000000')
    guest = relay.connect(packed=packed)
    requests = [guest.submit(Request(IN, i, in_bytes=512)) for i in range(8)]
    guest.wire.sync()
    relay.served.quit()
    guest.reap()
    more = [guest.submit(Request(IN, i, in_bytes=512)) for i in range(2)]
    relay.start('null-co,node-name=n,size=1048576,read-zeroes=on')
    guest.reconnect()
    guest.wait()
    assert all(request.status == OK for request in requests + more)


@rings
def test_the_area_fits_the_rings(packed, relay):
    """GET_INFLIGHT_FD: a fresh area for every ring size, zeroed or initialised, as long as it says."""
    relay.start()
    for queues, size in ((1, 2), (4, 128), (2, 1024)):
        guest = relay.connect(packed=packed, queues=queues, size=size, layout=Layout((), ()))
        assert guest.inflight.size >= queues * (size * (32 if packed else 16) + 16)
        relay.answered(1, queue=queues - 1)
        assert in_flight(guest) == 0
        guest.close()
    relay.guest = None


def test_a_fresh_area_for_a_new_start(relay):
    """The guest was reset: rings begin anew and an area of the old time would be wrong."""
    relay.start()
    guest = relay.connect()
    relay.submit(4)
    relay.popped()
    relay.kill()
    guest.close()
    relay.expected.clear()
    relay.start_file()
    relay.connect()
    relay.submit(8)
    relay.check()


# --- an end in the middle of a push, as the specification describes it


def used_split(relay, batch):
    """As if the daemon had died after it had moved the used index over `batch` answers and before the area said so."""
    view, ring = relay.guest.inflight.queue(0), relay.guest.queues[0].ring
    used = ring.used16[1]
    heads = [
        struct.unpack_from('I', ring.views[2], 4 + 8 * (i % ring.size))[0] for i in range(used - batch, used)
    ]
    last = 0
    for head in heads:
        struct.pack_into('<BxxxxxHQ', view, 16 + 16 * head, 1, last, 0)
        last = head
    struct.pack_into('<HH', view, 12, last, (used - batch) & 0xFFFF)


@pytest.mark.parametrize('batch', [1, 2, 5])
@pytest.mark.parametrize('before', [0, 5, 40])
def test_killed_within_a_push(batch, before, relay):
    relay.start()
    relay.connect()
    relay.answered(before)
    relay.submit(3)
    relay.answered(batch)
    relay.popped()
    relay.kill()
    assert struct.unpack_from('<HH', relay.guest.inflight.queue(0), 8) == (1, relay.guest.size)
    used_split(relay, batch)
    relay.start_file()
    relay.guest.reconnect()
    relay.check()


# --- random moments


def killed_at_random(relay, load, rng, rounds, steps, depth, start=None, contents=None):
    """Under load daemons die after a random time."""
    start = start or relay.start_file
    for _ in range(rounds):
        served = relay.served
        killer = threading.Timer(rng.random() * 0.03, served.process.kill)
        killer.start()
        with contextlib.suppress(Closed):
            for _ in range(steps):
                load.step()
                while len(relay.guest.in_flight) >= depth:
                    relay.guest.wait_some()
        killer.join()
        relay.kill()
        start()
        relay.guest.reconnect()
    load.compare_all()
    load.guest.disconnect()
    relay.served.quit()
    load.compare(contents() if contents else relay.image.read_bytes())


@pytest.mark.sanitize
@rings
@tables
@pytest.mark.parametrize('queues', [1, 4])
def test_killed_at_random_moments(packed, indirect, queues, relay, rng):
    relay.start_file()
    guest = relay.connect(queues=queues, packed=packed, size=64, memory=Memory.plain(rng=rng))
    guest.layout = lambda readable, writable: Layout.random(rng, readable, writable, indirect, 4)
    load = Load(guest, relay.content, rng, weights={IN: 1, OUT: 3})
    killed_at_random(relay, load, rng, rounds=8, steps=400, depth=7 * queues)


@pytest.mark.sanitize
@rings
@pytest.mark.parametrize('write_cache', [False, True], ids=['through', 'back'])
def test_qcow2_is_killed_at_random_moments(packed, write_cache, relay, rng, tmp):
    """What was answered stays, also the mappings that the dead daemon had only in memory; nobody has flushed."""
    need('qemu-img')
    path = tmp / 'image.qcow2'
    run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', 'cluster_size=4096', path, MIB)

    def start():
        relay.start(f'qcow2,node-name=n,discard=unmap,file.driver=file,file.filename={path}')

    start()
    guest = relay.connect(queues=2, packed=packed, size=64)
    guest.wire.set_config(WCE_OFFSET, bytes([write_cache]))
    load = Load(guest, bytes(MIB), rng)
    killed_at_random(relay, load, rng, 6, 300, 16, start, lambda: images.to_raw(path))
    images.check(path, leaks_allowed=True)


@pytest.mark.parametrize('write_cache', [0, 1])
def test_the_write_cache_stays_as_it_was(write_cache, relay):
    """A front end that connects again does not repeat what its guest has set."""
    relay.start()
    guest = relay.connect()
    guest.wire.set_config(WCE_OFFSET, bytes([write_cache]))
    relay.submit(2)
    relay.popped()
    relay.kill()
    relay.start_file()
    guest.reconnect()
    assert guest.wire.config()['wce'] == write_cache
    relay.check()


@rings
def test_killed_right_after_the_start(packed, relay, rng):
    """While it takes over, or before."""
    relay.start_file()
    guest = relay.connect(packed=packed, size=64)
    load = Load(guest, relay.content, rng, weights={IN: 1, OUT: 3})
    for i in range(10):
        while len(guest.in_flight) < 2 * (i + 1):
            load.step()
        relay.kill()
        relay.start_file()
        guest.disconnect()
        with contextlib.suppress(Closed):
            guest.connect(start=i % 2 == 0)
        if i % 3 == 0:
            guest.reap()
    relay.kill()
    relay.start_file()
    guest.reconnect()
    load.compare_all()


@rings
def test_killed_while_queues_stop(packed, relay, rng):
    """Some queues were stopped in order; they go on where GET_VRING_BASE said."""
    relay.start()
    guest = relay.connect(packed=packed, queues=2)
    relay.answered(5, queue=1)
    base = guest.stop(guest.queues[1])
    relay.submit(3)
    relay.popped()
    relay.kill()
    relay.start_file()
    guest.reap()
    guest.disconnect()
    guest.connect(start=False)
    guest.start(guest.queues[0])
    guest.start(guest.queues[1], base)
    relay.check()
