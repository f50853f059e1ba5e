# SPDX-License-Identifier: Apache-2.0
"""Live migration: what the device writes into guest memory is marked in the log of dirty pages (vhost-user.rst, "Migration")."""

import mmap
import os

import pytest

from lib.vhostload import Load
from lib.vhostuser import GET_ID, IN, OUT, F, Guest, Layout, Msg, Request, export
from lib.virtqueue import PAGE, Memory, Region

pytestmark = pytest.mark.sanitize
MIB = 1 << 20
NULL = ('--blockdev', 'null-co,node-name=n,size=1048576,read-zeroes=on')
rings = pytest.mark.parametrize(
    'packed', [False, pytest.param(True, marks=pytest.mark.better)], ids=['split', 'packed']
)


class Log:
    """The bitmap, and the messages that switch it on and off as QEMU does."""

    def __init__(self, guest, offset=0, beyond=None):
        self.guest = guest
        top = beyond or max(region.end for region in guest.memory.regions)
        self.size = -(-top // PAGE // 8 // PAGE) * PAGE
        self.fd = os.memfd_create('log')
        os.ftruncate(self.fd, offset + self.size)
        self.view = memoryview(mmap.mmap(self.fd, offset + self.size))[offset:]
        guest.wire.set_log(self.fd, self.size, offset)
        self.switch(True)

    def switch(self, on, ring=None):
        guest = self.guest
        guest.wire.u64(Msg.SET_FEATURES, guest.features | (F.LOG_ALL if on else 0))
        for queue in guest.queues:
            guest.set_addresses(queue, (ring or queue.ring.used) if on else None)

    def take(self):
        """The dirty pages since the last time."""
        pages = {
            8 * i + bit for i, byte in enumerate(self.view) if byte for bit in range(8) if byte >> bit & 1
        }
        self.view[:] = bytes(self.size)
        return pages

    def close(self):
        os.close(self.fd)


def pages_of(guest, count):
    return set(range(guest // PAGE, (guest + count - 1) // PAGE + 1))


def written(request):
    """Pages that a request's writable pieces lie in."""
    return set().union(*(pages_of(one.guest, one.bytes) for one in request.buffers if one.writable))


@pytest.fixture
def logged(daemon, tmp, guests):
    def factory(node=NULL, offset=0, **options):
        daemon(*node, *export(tmp / 's', writable='on'))
        guest = guests(tmp / 's', **options)
        return guest, Log(guest, offset)

    return factory


def run(guest, request, **how):
    """Runs it; returns the pages that it may write."""
    guest.submit(request, **how)
    pages = written(request)
    guest.wait(request)
    return pages


@rings
@pytest.mark.parametrize('offset', [0, PAGE])
def test_what_a_read_writes(packed, offset, logged):
    guest, log = logged(packed=packed, offset=offset)
    for count in (512, 4096, 65536):
        log.take()
        pages = run(guest, Request(IN, 0, in_bytes=count))
        dirty = log.take()
        assert pages <= dirty, pages - dirty
        assert len(dirty) < len(pages) + 8, 'the log would be of no use'


@rings
def test_the_status_of_a_write(packed, logged):
    guest, log = logged(packed=packed)
    log.take()
    request = guest.submit(Request(OUT, 0, bytes(65536)))
    data = set().union(
        *(pages_of(one.guest + PAGE, one.bytes - 2 * PAGE) for one in request.buffers if one.bytes == 65536)
    )
    pages = written(request)
    guest.wait(request)
    dirty = log.take()
    assert pages <= dirty
    assert not data & dirty - pages


@pytest.mark.parametrize('event_idx', [False, True])
def test_the_used_ring(event_idx, logged):
    """All of it, for the ring is several pages long: entries, index and event index."""
    guest, log = logged(size=1024, event_idx=event_idx, memory=Memory.plain())
    ring = guest.queues[0].ring
    seen = set()
    for _ in range(1100):
        guest.run(Request(GET_ID, in_bytes=20))
    seen |= log.take()
    used = pages_of(ring.used, 4 + 8 * ring.size)
    assert len(used) >= 2
    assert used <= seen, used - seen


def test_the_used_ring_is_logged_where_it_is_told(logged):
    """At a guest address that need not even be in the memory table."""
    guest, log = logged()
    log.close()
    elsewhere = 1 << 30
    log = Log(guest, beyond=elsewhere + MIB)
    log.switch(True, ring=elsewhere)
    log.take()
    guest.run(Request(GET_ID, in_bytes=20))
    assert elsewhere // PAGE in log.take()


@rings
def test_every_layout(packed, logged, rng):
    """Over borders of regions, above 4 GiB, in small pieces, in tables."""
    guest, log = logged(
        packed=packed,
        memory=Memory(
            [
                Region(0x1000, MIB, 0x7F3000000000),
                Region(0x1000 + MIB, MIB, 0x7F1000000000),
                Region(0x100000000, MIB, 0x7F0000000000),
            ],
            rng,
        ),
    )
    log.close()
    log = Log(guest)
    for _ in range(40):
        count = 512 * rng.randint(1, 20)
        layout = Layout.random(rng, 16, count + 1, True, 8)._replace(border=not rng.randrange(2) and packed)
        pages = run(guest, Request(IN, 0, in_bytes=count), layout=layout)
        dirty = log.take()
        assert pages <= dirty, pages - dirty


@rings
def test_nothing_is_marked_when_it_is_off(packed, logged):
    guest, log = logged(packed=packed)
    for _ in range(3):
        log.switch(False)
        log.take()
        guest.run(Request(IN, 0, in_bytes=4096))
        assert not log.take()
        log.switch(True)
        assert run(guest, Request(IN, 0, in_bytes=4096)) <= log.take()


@rings
def test_the_log_is_switched_under_load(packed, daemon, tmp, rng):
    content = rng.randbytes(MIB)
    (tmp / 'image').write_bytes(content)
    daemon('--blockdev', f'file,node-name=n,filename={tmp}/image', *export(tmp / 's', writable='on'))
    with Guest(tmp / 's', packed=packed) as guest:
        load = Load(guest, content, rng)
        for i in range(20):
            for _ in range(10):
                load.step()
            log = Log(guest)
            for _ in range(10):
                load.step()
            if i % 2:
                log.switch(False)
            log.close()
        load.compare_all()


def test_a_dirty_page_is_marked_before_the_answer(logged):
    """Whoever sees the answer and looks at the log finds the page."""
    guest, log = logged(polling=True, event_idx=False)
    for i in range(50):
        assert run(guest, Request(IN, i, in_bytes=512)) <= log.take()


def test_memory_that_is_not_in_the_log(logged):
    """Everything up to the last region is; a region that comes later needs a larger log, and the old one is not overrun."""
    guest, log = logged()
    region = Region(1 << 33, MIB, 0x7E0000000000)
    behind = os.fstat(log.fd).st_size
    os.ftruncate(log.fd, behind + (1 << 20))
    guest.memory.regions.append(region)
    guest.memory.free(region.guest, region.size)
    guest.wire.add_mem_reg(region)
    guest.memory.alloc(guest.memory.unused[0][1] - guest.memory.unused[0][0], at=guest.memory.unused[0][0])
    guest.run(Request(IN, 0, in_bytes=4096))
    assert os.pread(log.fd, 1 << 20, behind) == bytes(1 << 20)
