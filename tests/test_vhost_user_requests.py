# SPDX-License-Identifier: Apache-2.0
"""Every type of request of a virtio block device (virtio 1.2, 5.2.6): what it does and how it fails."""

import os
import struct

import pytest

from lib.vhostuser import (
    DISCARD,
    FLUSH,
    GET_ID,
    IN,
    IOERR,
    OK,
    OUT,
    UNMAP,
    UNSUPP,
    WCE_OFFSET,
    WRITE_ZEROES,
    Guest,
    Request,
    export,
    segments,
)

pytestmark = pytest.mark.sanitize
MIB = 1 << 20
SECTORS = 2048


@pytest.fixture
def content(rng):
    return bytearray(rng.randbytes(MIB))


@pytest.fixture
def start(daemon, tmp, content, guests):
    """Starts a daemon with an image of that content in front; returns a driver that runs."""

    def factory(node='discard=unmap', writable='on', **options):
        (tmp / 'image').write_bytes(content)
        served = daemon(
            '--blockdev',
            f'file,node-name=n,filename={tmp}/image,{node}',
            *export(tmp / 's', writable=writable, **options),
        )
        guest = guests(tmp / 's')
        guest.served = served
        return guest

    return factory


@pytest.fixture
def guest(start):
    return start()


def image(tmp):
    return (tmp / 'image').read_bytes()


@pytest.mark.parametrize(
    'sector, count', [(0, 512), (SECTORS - 1, 512), (7, 4096), (0, MIB), (100, 100 * 512)]
)
def test_read(sector, count, guest, content):
    assert guest.read(sector, count) == content[sector * 512 : sector * 512 + count]


@pytest.mark.parametrize(
    'sector, count', [(0, 512), (SECTORS - 1, 512), (7, 4096), (0, MIB), (100, 100 * 512)]
)
def test_write(sector, count, guest, content, rng, tmp):
    data = rng.randbytes(count)
    guest.write(sector, data)
    content[sector * 512 : sector * 512 + count] = data
    assert image(tmp) == content
    assert guest.read(sector, count) == data


BEYOND = [
    (SECTORS, 1),
    (SECTORS - 1, 2),
    (SECTORS + 1, 1),
    (1 << 55, 1),
    ((1 << 64) - 1, 1),
    ((1 << 64) - 1, 2),
]


@pytest.mark.parametrize('sector, count', BEYOND)
def test_nothing_lies_behind_the_end(sector, count, guest, content, tmp):
    assert guest.run(Request(IN, sector, in_bytes=count * 512)).status == IOERR
    assert guest.run(Request(OUT, sector, bytes(count * 512))).status == IOERR
    for kind in (DISCARD, WRITE_ZEROES):
        assert guest.run(Request(kind, 0, segments((sector, count)))).status == IOERR
    assert image(tmp) == content
    assert guest.read(0, 512) == content[:512]


@pytest.mark.parametrize('count', [1, 511, 513, 1000])
def test_lengths_are_whole_sectors(count, guest, content, tmp):
    assert guest.run(Request(IN, 0, in_bytes=count)).status == IOERR
    assert guest.run(Request(OUT, 0, bytes(count))).status == IOERR
    assert image(tmp) == content


def test_flush(guest):
    guest.write(0, bytes(512))
    guest.flush()


@pytest.mark.parametrize('count', [20, 21, 4096])
def test_get_id(count, guest):
    assert guest.must(Request(GET_ID, in_bytes=count)).split(b'\0')[0] == b'vhost_user_blk'


def test_get_id_in_a_small_buffer(guest):
    """What does not fit is left out."""
    request = guest.run(Request(GET_ID, in_bytes=5))
    assert (request.status, request.data) in ((OK, b'vhost'), (IOERR, request.data), (UNSUPP, request.data))


@pytest.mark.better
def test_get_id_is_padded_with_zeroes(guest):
    assert guest.must(Request(GET_ID, in_bytes=20)) == b'vhost_user_blk' + bytes(6)


def test_discard(guest, content):
    guest.discard((64, 128))
    guest.flush()
    assert guest.read(0, 64 * 512) == content[: 64 * 512]
    assert guest.read(192, MIB - 192 * 512) == content[192 * 512 :]


def test_discard_frees_space(guest, tmp):
    before = os.stat(tmp / 'image').st_blocks
    guest.discard((0, SECTORS))
    guest.flush()
    assert os.stat(tmp / 'image').st_blocks < before


@pytest.mark.parametrize('flags', [0, UNMAP])
@pytest.mark.parametrize('sector, count', [(0, 1), (3, 5), (64, 128), (0, SECTORS), (SECTORS - 1, 1)])
def test_write_zeroes(flags, sector, count, guest, content, tmp):
    guest.write_zeroes((sector, count, flags))
    content[sector * 512 : (sector + count) * 512] = bytes(count * 512)
    assert image(tmp) == content
    assert guest.read(0, MIB) == content


def test_write_zeroes_keeps_space_unless_told(start, tmp):
    guest = start()
    before = os.stat(tmp / 'image').st_blocks
    guest.write_zeroes((0, SECTORS))
    guest.flush()
    assert os.stat(tmp / 'image').st_blocks >= before


@pytest.mark.parametrize('kind', [DISCARD, WRITE_ZEROES])
def test_limits_of_ranges(kind, guest):
    """As many segments and sectors as the configuration says, whatever their order; no more segments."""
    name = {DISCARD: 'discard', WRITE_ZEROES: 'write_zeroes'}[kind]
    config = guest.wire.config()
    most = config[f'max_{name}_seg']
    guest.must(Request(kind, 0, segments((0, min(SECTORS, config[f'max_{name}_sectors'])))))
    guest.must(Request(kind, 0, segments(*((SECTORS - 1 - 2 * i % SECTORS, 1) for i in range(most)))))
    assert guest.run(Request(kind, 0, segments(*((0, 1) for _ in range(most + 1))))).status != OK


@pytest.mark.better
def test_several_segments(guest, content, tmp):
    config = guest.wire.config()
    assert config['max_write_zeroes_seg'] > 1 and config['max_discard_seg'] > 1
    guest.write_zeroes((10, 2), (0, 1), (100, 50, UNMAP), (11, 3))
    for sector, count in ((10, 2), (0, 1), (100, 50), (11, 3)):
        content[sector * 512 : (sector + count) * 512] = bytes(count * 512)
    assert image(tmp) == content
    guest.discard((200, 8), (300, 8))
    assert guest.read(0, 200 * 512) == content[: 200 * 512]


@pytest.mark.better
def test_one_bad_segment_of_several(guest, content):
    """Nothing may happen to what was not asked for."""
    for kind in (DISCARD, WRITE_ZEROES):
        assert guest.run(Request(kind, 0, segments((8, 8), (SECTORS, 1)))).status == IOERR
    assert guest.read(0, 8 * 512) == content[: 8 * 512]
    assert guest.read(16, MIB - 16 * 512) == content[16 * 512 :]


@pytest.mark.parametrize(
    'kind, flags', [(DISCARD, UNMAP), (DISCARD, 2), (WRITE_ZEROES, 2), (WRITE_ZEROES, 0x80000001)]
)
def test_unknown_flags(kind, flags, guest, content, tmp):
    assert guest.run(Request(kind, 0, segments((0, 8, flags)))).status == UNSUPP
    assert image(tmp) == content


@pytest.mark.parametrize('size', [0, 1, 15, 17, 31])
@pytest.mark.parametrize('kind', [DISCARD, WRITE_ZEROES])
def test_half_a_segment(kind, size, guest, content, tmp):
    request = guest.run(Request(kind, 0, bytes(size)))
    assert request.status != OK or size == 0
    assert image(tmp) == content


@pytest.mark.parametrize(
    'kind',
    [
        2,
        3,
        5,
        7,
        9,
        10,
        14,
        15,
        16,
        24,
        0x7FFFFFFF,
        pytest.param(0x80000000, marks=pytest.mark.better),
        0xFFFFFFFF,
    ],
)
def test_unknown_types(kind, guest, content, tmp):
    """With any amount of data in both directions."""
    for out, into in ((b'', 0), (bytes(512), 0), (b'', 512), (bytes(100), 100)):
        assert guest.run(Request(kind, 0, out, into)).status == UNSUPP
    assert image(tmp) == content


def test_the_reserved_field_is_ignored(guest, content):
    """Old drivers put a priority there."""
    header = struct.pack('<IIQ', IN, 0xFFFFFFFF, 1)
    assert guest.must(Request(IN, in_bytes=512, header=header)) == content[512:1024]


def test_read_only(start, content, tmp):
    guest = start(writable='off')
    assert guest.run(Request(OUT, 0, bytes(512))).status == IOERR
    for kind in (DISCARD, WRITE_ZEROES):
        assert guest.run(Request(kind, 0, segments((0, 8)))).status in (IOERR, UNSUPP)
    assert guest.run(Request(FLUSH)).status == OK
    assert guest.read(0, MIB) == content == image(tmp)


def test_the_node_fails(daemon, tmp):
    """An error of the node is an error of the request and nothing more."""
    (tmp / 'image').write_bytes(bytes(MIB))
    daemon('--blockdev', f'file,node-name=n,filename={tmp}/image', *export(tmp / 's', writable='on'))
    os.truncate(tmp / 'image', 0)
    with Guest(tmp / 's') as guest:
        request = guest.run(Request(IN, 8, in_bytes=4096))
        assert (request.status, request.data) == (OK, bytes(4096)) or request.status == IOERR
        guest.write(0, bytes(512))


@pytest.mark.parametrize('size', [512, 4096])
def test_4k_blocks(size, start, content):
    guest = start(logical_block_size=size)
    assert guest.read(8, 4096) == content[4096:8192]
    guest.write(8, bytes(8192))
    guest.write_zeroes((32, 8))
    guest.discard((64, 16))
    assert guest.read(8, 8192) == bytes(8192)


def test_requests_before_and_after_the_cache_is_switched(guest, content):
    for value in (0, 1, 0):
        guest.wire.set_config(WCE_OFFSET, bytes([value]))
        content[:512] = bytes([value]) * 512
        guest.write(0, content[:512])
        guest.flush()
        assert guest.read(0, MIB) == content
