# SPDX-License-Identifier: Apache-2.0
"""Requests laid out in memory in every legal way (virtio 1.2, 2.6.4): the device may assume nothing about it."""

import pytest

from lib.vhostload import Load
from lib.vhostuser import IN, OK, OUT, UNMAP, WRITE_ZEROES, Layout, Request, export, segments
from lib.virtqueue import Memory, Region

MIB = 1 << 20
RINGS = [
    pytest.param(False, False, False, id='split'),
    pytest.param(False, True, False, id='split-indirect'),
    pytest.param(False, False, True, id='split-events'),
    pytest.param(False, True, True, id='split-indirect-events'),
    pytest.param(True, False, False, id='packed', marks=pytest.mark.better),
    pytest.param(True, True, False, id='packed-indirect', marks=pytest.mark.better),
    pytest.param(True, False, True, id='packed-events', marks=pytest.mark.better),
    pytest.param(True, True, True, id='packed-indirect-events', marks=pytest.mark.better),
]
rings = pytest.mark.parametrize('packed, indirect, event_idx', RINGS)


@pytest.fixture
def serve(daemon, tmp, rng, guests):
    """Starts a daemon with an image of random data and a guest."""

    def factory(queues=1, **options):
        content = rng.randbytes(MIB)
        (tmp / 'image').write_bytes(content)
        served = daemon(
            '--blockdev',
            f'file,node-name=n,filename={tmp}/image,discard=unmap',
            *export(tmp / 's', writable='on', num_queues=queues),
        )
        guest = guests(tmp / 's', queues=queues, **options)
        guest.served, guest.content = served, content
        return guest

    return factory


def random_layouts(guest, rng, most):
    """A layout with up to `most` pieces, as many as the ring takes."""
    indirect = bool(guest.features & guest.features.INDIRECT)
    most = max(2, min(most, guest.size))

    def layout(readable, writable):
        return Layout.random(rng, readable, writable, indirect, most // 2)

    return layout


@pytest.mark.sanitize
@rings
@pytest.mark.parametrize('size', [4, 128])
def test_random_layouts(packed, indirect, event_idx, size, serve, rng):
    guest = serve(
        memory=Memory.plain(rng=rng), size=size, packed=packed, indirect=indirect, event_idx=event_idx
    )
    guest.memory.guard()
    guest.layout = random_layouts(guest, rng, 100)
    load = Load(guest, guest.content, rng)
    load.run(300)
    load.compare_all()
    guest.memory.check_guard()


@pytest.mark.better
@pytest.mark.sanitize
@rings
def test_random_layouts_over_borders_of_regions(packed, indirect, event_idx, serve, rng):
    """The reference counts what crosses a border twice and takes it for a loop."""
    guest = serve(memory=Memory.scattered(rng), packed=packed, indirect=indirect, event_idx=event_idx)
    guest.memory.guard()
    guest.layout = random_layouts(guest, rng, 60)
    load = Load(guest, guest.content, rng)
    load.run(300)
    load.compare_all()
    guest.memory.check_guard()


@rings
@pytest.mark.parametrize('size', [1, 2, 4, 8, 16, 256, 1024])
def test_sizes_of_queues(packed, indirect, event_idx, size, serve, rng):
    merged = Layout(readable=(), writable=(), indirect=indirect)
    if size == 1 and not indirect:
        return  # a request has two descriptors at least
    guest = serve(size=size, packed=packed, indirect=indirect, event_idx=event_idx, layout=merged)
    load = Load(guest, guest.content, rng, most=8)
    load.run(3 * size + 50, depth=size)
    load.finish()


@pytest.mark.better
@pytest.mark.parametrize('size', [2, 3, 5, 7, 100, 129, 1023])
def test_packed_rings_of_any_size(size, serve, rng):
    """Only split rings need a power of two."""
    guest = serve(size=size, packed=True, layout=Layout(readable=(), writable=()))
    load = Load(guest, guest.content, rng, most=8)
    load.run(3 * size + 50, depth=size)
    load.finish()


@pytest.mark.sanitize
@rings
def test_four_queues(packed, indirect, event_idx, serve, rng):
    guest = serve(queues=4, size=16, packed=packed, indirect=indirect, event_idx=event_idx)
    guest.layout = random_layouts(guest, rng, 12)
    load = Load(guest, guest.content, rng)
    load.run(250, depth=60)
    load.compare_all()


@rings
@pytest.mark.parametrize('together', [False, True])
def test_one_byte_pieces(packed, indirect, event_idx, together, serve):
    """The header, the status and a sector of data in pieces of a byte each."""
    guest = serve(size=1024, packed=packed, indirect=indirect, event_idx=event_idx)
    layout = Layout((1,) * 400, (1,) * 400, indirect, together=together)
    assert guest.read(3, 512, layout=layout) == guest.content[1536:2048]
    guest.write(5, guest.content[:512], layout=layout)
    guest.write_zeroes((0, 1, UNMAP), layout=layout)
    assert guest.read(5, 512, layout=layout) == guest.content[:512]
    assert guest.serial(layout=layout) == b'vhost_user_blk'


@pytest.mark.sanitize
@rings
def test_the_header_in_two_pieces(packed, indirect, event_idx, serve):
    """Cut anywhere, also behind its end: data may follow in the same piece."""
    guest = serve(packed=packed, indirect=indirect, event_idx=event_idx)
    for cut in (1, 4, 8, 15, 16, 17, 31, 32):
        layout = Layout((cut,), (), indirect)
        guest.write(9, guest.content[:1024], layout=layout)
        assert guest.read(9, 1024, layout=layout) == guest.content[:1024]
        guest.write_zeroes((9, 1), layout=layout)
        assert guest.read(9, 1024, layout=layout) == bytes(512) + guest.content[512:1024]


@rings
def test_the_status_in_a_larger_piece(packed, indirect, event_idx, serve):
    """It is the last writable byte, wherever pieces begin."""
    guest = serve(packed=packed, indirect=indirect, event_idx=event_idx)
    for first in ((), (-1,), (-2,), (1,), (511,), (100, 100), (-100,)):
        layout = Layout((16,), first, indirect)
        assert guest.read(1, 512, layout=layout) == guest.content[512:1024]
    for spare in (1, 19, 4095):  # more room than a write needs
        request = guest.run(Request(OUT, 1, guest.content[:512], spare), layout=Layout(indirect=indirect))
        assert request.status == OK
        assert guest.read(1, 512) == guest.content[:512]


@rings
def test_hundreds_of_segments(packed, indirect, event_idx, serve, rng):
    guest = serve(
        size=1024, packed=packed, indirect=indirect, event_idx=event_idx, memory=Memory.plain(rng=rng)
    )
    for count in (127, 1022):
        layout = Layout((16, *(512,) * (count - 1)), (512,) * (count - 1), indirect)
        assert guest.read(0, count * 512, layout=layout) == guest.content[: count * 512]
        data = rng.randbytes(count * 512)
        guest.write(7, data, layout=layout)
        assert guest.read(7, count * 512) == data
        guest.write(0, guest.content)


@pytest.mark.better
def test_descriptors_in_front_of_a_table(serve):
    """Split rings only (2.7.5.3.2): zero or more normal descriptors and then one that names a table."""
    guest = serve()
    for direct in (1, 2, 3):
        layout = Layout((8, 8, 100), (100,), True, direct)
        guest.write(1, guest.content[:4096], layout=layout)
        assert guest.read(1, 4096, layout=layout) == guest.content[:4096]


@pytest.mark.better
def test_adjacent_regions_of_many_files(serve, rng):
    """Transfers over sixteen borders, and pieces that end at one."""
    regions = [Region(i << 12, 1 << 12, 0x7F0000000000 + (i * 7 % 256 << 20)) for i in range(256)]
    guest = serve(memory=Memory(rng.sample(regions, len(regions)), rng), size=16)
    for _ in range(10):
        sector = rng.randrange(1024)
        layout = Layout((16, rng.choice((4096, 8192, 100))), (rng.choice((4096, 12288, 7)),), together=True)
        data = rng.randbytes(1 << 16)
        assert guest.read(sector, 1 << 16, layout=layout) == guest.content[sector * 512 :][: 1 << 16]
        guest.write(sector, data, layout=layout)
        assert guest.read(sector, 1 << 16, layout=Layout((), (), together=True)) == data
        guest.write(sector, guest.content[sector * 512 :][: 1 << 16])


@pytest.mark.parametrize('offset', [0, 1, 511, 4095])
def test_data_may_lie_at_any_byte(offset, serve):
    guest = serve()
    for kind in (IN, OUT):
        at = guest.memory.alloc(20000, align=4096)
        guest.memory.free(at, 20000)
        hole = guest.memory.alloc(offset, at=at) if offset else None
        request = Request(kind, 3, guest.content[:4096] if kind == OUT else b'', 4096 if kind == IN else 0)
        guest.must(request, layout=Layout((), (), together=True))
        if hole is not None:
            guest.memory.free(hole, offset)
    assert guest.read(3, 4096) == guest.content[:4096]


def test_a_write_zeroes_header_and_segment_in_one_piece(serve):
    guest = serve()
    request = guest.run(Request(WRITE_ZEROES, 0, segments((1, 1))), layout=Layout((), ()))
    assert request.status == OK
    assert guest.read(0, 1536) == guest.content[:512] + bytes(512) + guest.content[1024:1536]
