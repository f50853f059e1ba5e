# SPDX-License-Identifier: Apache-2.0
"""The configuration space of a vhost-user-blk export, what may be changed in it, and how a resize reaches the guest."""

import pytest

from lib.vhostuser import (
    BACKEND_CONFIG_CHANGE,
    CONFIG,
    WCE_OFFSET,
    BackendChannel,
    Closed,
    Guest,
    Refused,
    Wire,
    export,
)

pytestmark = pytest.mark.sanitize
MIB = 1 << 20
NULL = ('--blockdev', f'null-co,node-name=n,size={3 * MIB},read-zeroes=on')


@pytest.fixture
def path(daemon, tmp):
    daemon(*NULL, *export(tmp / 's', writable='on', num_queues=3))
    return tmp / 's'


@pytest.fixture
def wire(path):
    with Wire(path) as wire:
        wire.negotiate()
        yield wire


def test_fields(wire):
    config = wire.config()
    assert config['capacity'] == 3 * MIB // 512
    assert config['blk_size'] == 512
    assert config['num_queues'] == 3
    assert config['seg_max'] == 126
    assert config['wce'] in (0, 1)
    assert config['physical_block_exp'] == config['alignment_offset'] == 0
    for kind in ('discard', 'write_zeroes'):
        assert config[f'max_{kind}_sectors'] >= 32768
        assert config[f'max_{kind}_seg'] >= 1
    assert config['discard_sector_alignment'] == 1
    assert config['min_io_size'] == 1


def test_discard_granularity_follows_the_block_size(daemon, tmp):
    daemon(*NULL, *export(tmp / 's', logical_block_size=4096))
    with Wire(tmp / 's') as wire:
        wire.negotiate()
        config = wire.config()
        assert (config['blk_size'], config['discard_sector_alignment']) == (4096, 8)
        assert config['capacity'] == 3 * MIB // 512  # in 512 bytes whatever the block size is


@pytest.mark.better
def test_geometry_that_suits_windows(wire):
    """A size_max of 0 and an optimal size of one block made Windows guests cut requests into pieces."""
    config = wire.config()
    assert config['size_max'] >= 65536
    assert config['opt_io_size'] != 1


@pytest.mark.better
@pytest.mark.parametrize(
    'offset, size', [(0, 8), (0, 60), (8, 4), (20, 4), (32, 1), (34, 2), (56, 4), (59, 1)]
)
def test_a_part_is_a_slice_of_the_whole(offset, size, wire):
    assert wire.get_config(offset, size) == wire.get_config()[offset : offset + size]


@pytest.mark.parametrize(
    'size', [61, 96, *(pytest.param(size, marks=pytest.mark.better) for size in (97, 128, 256))]
)
def test_bytes_behind_the_end_are_zero(size, wire):
    """QEMU asks for the size that it knows of, newer ones for more."""
    assert wire.get_config(0, size) == wire.get_config() + bytes(size - CONFIG.size)


def test_the_write_cache_can_be_switched(wire):
    for value in (1, 0, 1, 1, 0):
        wire.set_config(WCE_OFFSET, bytes([value]))
        assert wire.config()['wce'] == value


@pytest.mark.parametrize(
    'offset, data',
    [(0, bytes(8)), (20, bytes(4)), (31, bytes(2)), (32, bytes(2)), (0, bytes(60)), (33, b'\1'), (60, b'\1')],
)
def test_nothing_else_can_be_changed(offset, data, wire, path):
    """Back ends must not accept changes of read-only fields."""
    before = wire.get_config()
    try:
        wire.set_config(offset, data)
        wire.sync()
        raise AssertionError('accepted')
    except (Refused, Closed):
        wire.close()
    with Wire(path) as again:
        again.negotiate()
        assert again.get_config() == before


@pytest.mark.parametrize('channel', [pytest.param(False, marks=pytest.mark.better), True])
def test_resize(channel, daemon, tmp):
    (tmp / 'image').write_bytes(bytes(MIB))
    served = daemon(
        '--blockdev', f'file,node-name=n,filename={tmp}/image', *export(tmp / 's', writable='on')
    )  # fmt: skip
    with Guest(tmp / 's') as guest:
        backend = BackendChannel(guest.wire) if channel else None
        for size in (5 * MIB, 2 * MIB, 2 * MIB + 512):
            served.cmd('block_resize', node_name='n', size=size)
            if backend:
                assert backend.next_message().request == BACKEND_CONFIG_CHANGE
            assert guest.wire.config()['capacity'] == size // 512
            guest.write(size // 512 - 1, b'x' * 512)
            assert guest.read(size // 512 - 1, 512) == b'x' * 512


def test_a_later_client_sees_the_new_size(daemon, tmp):
    (tmp / 'image').write_bytes(bytes(MIB))
    served = daemon('--blockdev', f'file,node-name=n,filename={tmp}/image', *export(tmp / 's', writable='on'))
    Guest(tmp / 's').close()
    served.cmd('block_resize', node_name='n', size=2 * MIB)
    with Guest(tmp / 's') as guest:
        assert guest.wire.config()['capacity'] == 2 * MIB // 512
