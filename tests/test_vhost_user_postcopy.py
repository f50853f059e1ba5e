# SPDX-License-Identifier: Apache-2.0
"""Postcopy migration: the guest runs before its memory has come, and the back end waits for the pages that it touches.

(vhost-user.rst, "Migration", POSTCOPY_ADVISE, _LISTEN and _END.) This side is what QEMU is at the destination: it gets a
userfaultfd and the addresses of the memory in the back end, reads faults from the one, and brings pages. (QEMU 10.0.2's storage
daemon answers with the front end's own addresses, so that nobody can tell what it waits for.)
"""

import ctypes
import fcntl
import os
import struct
import threading

import pytest

from lib.vhostload import Load
from lib.vhostuser import IN, OK, OUT, Guest, Msg, Proto, Request, export, readable
from lib.virtqueue import PAGE, Memory, Region

pytestmark = [pytest.mark.better, pytest.mark.sanitize]
MIB = 1 << 20
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2
UFFDIO_WAKE = 0x8010AA02
UFFD_EVENT_PAGEFAULT = 0x12
libc = ctypes.CDLL(None, use_errno=True)


def punch(region):
    """The region's pages are somewhere else from now on."""
    result = libc.fallocate(
        region.fd,
        FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
        ctypes.c_long(region.offset),
        ctypes.c_long(region.size),
    )
    assert result == 0, os.strerror(ctypes.get_errno())


class Source:
    """The other host: it has all pages and sends those that are asked for."""

    def __init__(self, guest, uffd, bases):
        self.guest, self.uffd, self.faults = guest, uffd, 0
        self.regions = list(zip(guest.memory.regions, bases))
        self.pages = {}
        for region in guest.memory.regions:
            for at in range(0, region.size, PAGE):
                if any(page := bytes(region.view[at : at + PAGE])):
                    self.pages[region.guest + at] = page
            punch(region)

    def bring(self, address):
        """The page at an address of the back end, which waits for it."""
        for region, base in self.regions:
            if base <= address < base + region.size:
                page = (address - base) & -PAGE
                self.put(region.guest + page)
                fcntl.ioctl(self.uffd, UFFDIO_WAKE, struct.pack('QQ', base + page, PAGE))
                return
        raise AssertionError(f'a fault at {address:#x}, which is in no region')

    def put(self, guest):
        """A page of zeroes is brought, too; one that is there already stays as it is."""
        page = self.pages.pop(guest, None)
        if page:
            self.guest.memory.write(guest, page)
        else:
            self.guest.memory.read(guest, 1)

    def serve_one(self, *others):
        """Waits for a fault and brings its page; True if it was something else that has come."""
        ready = readable(20, self.uffd, *others)
        assert ready, 'neither a fault nor an answer'
        if self.uffd not in ready:
            return True
        event, address = struct.unpack_from('=B15xQ', os.read(self.uffd, 32))
        assert event == UFFD_EVENT_PAGEFAULT
        self.faults += 1
        self.bring(address)
        return False

    def finish(self):
        for guest in list(self.pages):
            self.put(guest)


def share_memory(wire, memory):
    """SET_MEM_TABLE with what belongs to it now; returns where the back end has the regions."""
    payload = struct.pack('<II', len(memory.regions), 0) + b''.join(
        one.description() for one in memory.regions
    )
    reply = wire.ask(Msg.SET_MEM_TABLE, payload, [one.fd for one in memory.regions])
    count, _ = struct.unpack_from('<II', reply.payload)
    assert count == len(memory.regions)
    regions = [struct.unpack_from('<QQQQ', reply.payload, 8 + 32 * i) for i in range(count)]
    assert [one[:2] for one in regions] == [(one.guest, one.size) for one in memory.regions]
    wire.send(Msg.SET_MEM_TABLE, bytes(8))
    return [one[2] for one in regions]


@pytest.fixture
def served(daemon, tmp, rng):
    content = rng.randbytes(MIB)
    (tmp / 'image').write_bytes(content)
    served = daemon('--blockdev', f'file,node-name=n,filename={tmp}/image', *export(tmp / 's', writable='on'))
    served.content = content
    return served


def arrive(tmp, packed=False):
    """A guest whose memory is elsewhere, with queues that are not started yet."""
    memory = Memory([Region(0, 4 * MIB, 0x7F0000000000), Region(1 << 32, 4 * MIB, 0x7E0000000000)])
    guest = Guest(tmp / 's', packed=packed, memory=memory, share=False, start=False)
    if not guest.protocol & Proto.PAGEFAULT:
        guest.close()
        pytest.skip('userfaultfd is not to be had here')
    (uffd,) = guest.wire.ask(Msg.POSTCOPY_ADVISE).fds
    os.set_blocking(uffd, False)
    guest.wire.tell(Msg.POSTCOPY_LISTEN)
    bases = share_memory(guest.wire, guest.memory)
    for queue in guest.queues:
        guest.start(queue, kick=False)
    guest.wire.sync()
    for queue in guest.queues:
        queue.calls()  # which a change of the descriptor may cause
    return guest, uffd, bases


rings = pytest.mark.parametrize('packed', [False, True], ids=['split', 'packed'])


def wait_for_answers(guest, source):
    """Brings what is asked for until there are no more faults and no more requests; then all that is left."""
    call = guest.queues[0].call_fd
    while not source.serve_one(call):
        pass
    source.finish()
    while guest.in_flight:
        guest.queues[0].calls()
        guest.reap()
        guest.queues[0].ring.ask_for_calls(True)
        if guest.in_flight and not guest.reap():
            source.serve_one(call)


@rings
def test_pages_come_when_they_are_touched(packed, served, tmp, rng):
    guest, uffd, bases = arrive(tmp, packed)
    data = rng.randbytes(65536)
    reads = [guest.submit(Request(IN, 64 * i, in_bytes=16384), kick=False) for i in range(4)]
    write = guest.submit(Request(OUT, 1024, data), kick=False)
    guest.queues[0].ring.publish()
    source = Source(guest, uffd, bases)
    guest.queues[0].kick()
    wait_for_answers(guest, source)
    assert source.faults >= 3  # rings, a header and data at least
    assert all(one.data == served.content[one.sector * 512 :][:16384] for one in reads)
    assert write.status == OK
    assert guest.wire.ask(Msg.POSTCOPY_END).u64() == 0
    assert guest.read(1024, 65536) == data
    assert (tmp / 'image').read_bytes()[1024 * 512 : 1024 * 512 + 65536] == data
    guest.close()
    os.close(uffd)
    with Guest(tmp / 's') as another:
        assert another.read(1024, 65536) == data


@rings
def test_others_do_not_wait_for_a_page(packed, served, tmp):
    """While the back end waits for a page that does not come, the daemon answers, other exports work, and the client may go."""
    served.cmd(
        'block-export-add',
        type='vhost-user-blk',
        id='f',
        node_name='n',
        addr={'type': 'unix', 'path': str(tmp / 't')},
    )
    for end in ('the client goes', 'the export goes'):
        guest, uffd, bases = arrive(tmp, packed)
        guest.submit(Request(IN, 0, in_bytes=512), kick=False)
        guest.queues[0].ring.publish()
        Source(guest, uffd, bases)
        guest.queues[0].kick()
        assert readable(20, uffd)
        served.cmd('query-block-exports')
        with Guest(tmp / 't') as another:
            assert another.read(0, 4096) == served.content[:4096]
        if end == 'the export goes':
            served.unexport('e')
        guest.close()
        os.close(uffd)
        if end == 'the client goes':
            with Guest(tmp / 's') as another:
                assert another.read(0, 4096) == served.content[:4096]


@rings
def test_a_queue_stops_while_it_waits_for_a_page(packed, served, tmp):
    """GET_VRING_BASE may have to wait for the request; once the page is there it is answered."""
    guest, uffd, bases = arrive(tmp, packed)
    request = guest.submit(Request(OUT, 0, bytes(4096)), kick=False)
    guest.queues[0].ring.publish()
    source = Source(guest, uffd, bases)
    guest.queues[0].kick()
    assert readable(20, uffd)
    guest.wire.send(Msg.GET_VRING_BASE, struct.pack('<II', 0, 0))
    while not readable(0, guest.wire):
        if readable(20, uffd, guest.wire) == [uffd]:
            source.serve_one()
    (base,) = struct.unpack_from('<4xI', guest.wire.receive().payload)
    source.finish()
    guest.reap()
    if not request.done:
        guest.start(guest.queues[0], base)
        wait_for_answers(guest, source)
    assert request.status == OK
    guest.close()
    os.close(uffd)


@rings
def test_the_guest_has_come_and_works(packed, served, tmp, rng):
    """A long time in postcopy, several queues' worth of requests, then the end of it under load."""
    guest, uffd, bases = arrive(tmp, packed)
    source = Source(guest, uffd, bases)
    source.finish()
    load = Load(guest, served.content, rng)
    guest.queues[0].kick()
    stop = threading.Event()

    def pages():
        while not stop.is_set():
            if readable(0.01, uffd):
                source.serve_one()

    server = threading.Thread(target=pages)
    server.start()
    try:
        load.run(200)
        assert guest.wire.ask(Msg.POSTCOPY_END).u64() == 0
        load.run(100)
        load.compare_all()
    finally:
        stop.set()
        server.join()
    guest.close()
    os.close(uffd)
