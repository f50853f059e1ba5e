# SPDX-License-Identifier: Apache-2.0
"""What a front end changes while its guest works: queues stop and start, memory comes and goes, descriptors are replaced.

The reference does not wait for requests in flight when a queue stops or memory goes, hence the marks.
"""

import os

import pytest

from lib.vhostload import Load
from lib.vhostuser import IN, OK, Layout, Msg, Request, export
from lib.virtqueue import Memory, Region

pytestmark = pytest.mark.sanitize
MIB = 1 << 20
rings = pytest.mark.parametrize(
    'packed', [False, pytest.param(True, marks=pytest.mark.better)], ids=['split', 'packed']
)


@pytest.fixture
def working(daemon, tmp, rng, guests):
    """Starts a daemon with an image; returns a function that makes a guest and its load."""
    content = rng.randbytes(MIB)
    (tmp / 'image').write_bytes(content)

    def factory(
        node=f'file,node-name=n,filename={tmp}/image', queues=2, more=(), options=None, **guest_options
    ):
        served = daemon(
            *more, '--blockdev', node, *export(tmp / 's', writable='on', num_queues=queues, **(options or {}))
        )
        guest = guests(tmp / 's', queues=queues, **guest_options)
        guest.served = served
        return guest, Load(guest, content, rng)

    return factory


def steps(load, count=15):
    for _ in range(count):
        load.step()


@pytest.mark.better
@rings
def test_queues_stop_and_start_under_load(packed, working):
    guest, load = working(packed=packed, size=64)
    for i in range(40):
        steps(load)
        queue = guest.queues[i % 2]
        base = guest.stop(queue)
        steps(load, 3)
        guest.start(queue, base)
    load.compare_all()


@pytest.mark.better
def test_a_stopped_queue_has_answered_what_it_took(working):
    guest, load = working(size=64)
    for _ in range(20):
        steps(load)
        base = guest.stop(guest.queues[0])
        assert base == guest.queues[0].ring.used16[1]
        guest.start(guest.queues[0], base)
    load.compare_all()


@pytest.mark.better
@rings
def test_a_stopped_device_is_still(packed, working):
    """ "Suspended device state": it writes to no memory and calls nobody."""
    guest, load = working(packed=packed)
    steps(load, 40)
    bases = [guest.stop(queue) for queue in guest.queues]
    load.settle()
    for queue in guest.queues:
        queue.calls()
    before = [bytes(region.view) for region in guest.memory.regions]
    for queue in guest.queues:
        queue.kick()
    for _ in range(10):
        guest.wire.sync()
        guest.wire.config()
    assert [bytes(region.view) for region in guest.memory.regions] == before
    assert not any(queue.calls() for queue in guest.queues)
    for queue, base in zip(guest.queues, bases):
        guest.start(queue, base)
    load.compare_all()


@rings
def test_requests_that_came_while_stopped(packed, working):
    guest, load = working(packed=packed)
    guest.read(0, 512)
    base = guest.stop(guest.queues[0])
    requests = [guest.submit(Request(IN, i, in_bytes=512)) for i in range(10)]
    guest.wire.sync()
    assert not guest.reap()
    guest.start(guest.queues[0], base)
    guest.wait()
    assert [one.data for one in requests] == [bytes(load.content[i * 512 : i * 512 + 512]) for i in range(10)]


@rings
def test_a_ring_may_move_while_it_is_stopped(packed, working):
    """Another ring elsewhere of another size, as after a reset of the guest."""
    guest, load = working(packed=packed)
    for size in (16, 256, 2, 128):
        load.finish()
        queue = guest.queues[0]
        guest.stop(queue)
        queue.ring = type(queue.ring)(guest.memory, size, guest.event_idx)
        guest.start(queue)
        guest.layout = Layout((), (), indirect=True)
        steps(load, 30)
    load.compare_all()


@pytest.mark.better
@rings
def test_rings_are_disabled_under_load(packed, working):
    """A block device has nothing to do for a disabled ring; its requests wait."""
    guest, load = working(packed=packed, size=64)
    for i in range(30):
        steps(load, 5)
        guest.wire.state(Msg.SET_VRING_ENABLE, i % 2, 0)
        steps(load, 5)
        guest.wire.state(Msg.SET_VRING_ENABLE, i % 2, 1)
    load.compare_all()


@rings
def test_descriptors_are_replaced_under_load(packed, working):
    """No kick and no call is lost."""
    guest, load = working(packed=packed, size=64)
    for i in range(40):
        queue = guest.queues[i % 2]
        steps(load, 5)
        for name, request in (('call_fd', Msg.SET_VRING_CALL), ('kick_fd', Msg.SET_VRING_KICK)):
            old, new = getattr(queue, name), os.eventfd(0, os.EFD_NONBLOCK)
            guest.wire.set_vring_fd(request, queue.index, new)
            setattr(queue, name, new)
            if name == 'kick_fd' and queue.take(old):
                queue.kick()
            os.close(old)
        steps(load, 5)
    load.compare_all()


def grown(memory):
    """A region more, elsewhere."""
    region = Region(0x200000000, MIB, 0x7E0000000000)
    memory.regions.append(region)
    return region


@pytest.mark.better
def test_memory_is_added_and_removed_under_load(working, rng):
    """One region after the other (CONFIGURE_MEM_SLOTS), and requests use it."""
    guest, load = working(memory=Memory.plain(rng=rng), size=64)
    for _ in range(15):
        steps(load, 5)
        region = grown(guest.memory)
        guest.wire.add_mem_reg(region)
        assert_used(guest, region, load)
        steps(load, 5)
        guest.wire.rem_mem_reg(region)
        guest.memory.regions.remove(region)
        region.close()
    load.compare_all()


@pytest.mark.better
@rings
def test_memory_tables_are_replaced_under_load(packed, working, rng):
    guest, load = working(packed=packed, memory=Memory.plain(rng=rng), size=64)
    for _ in range(15):
        steps(load, 5)
        region = grown(guest.memory)
        rng.shuffle(guest.memory.regions)
        guest.wire.set_mem_table(guest.memory)
        assert_used(guest, region, load)
        steps(load, 5)
        guest.memory.regions.remove(region)
        guest.wire.set_mem_table(guest.memory)
        region.close()
    load.compare_all()


def assert_used(guest, region, load):
    """A read into the region."""
    load.finish()
    request = Request(IN, 0, in_bytes=4096)
    request.place(guest.memory, Layout())
    target = region.guest + 8192
    buffers = [one._replace(guest=target) if one.bytes == 4096 else one for one in request.buffers]
    guest.memory.write(target, bytes(4096))
    guest.queues[0].ring.add(request, buffers)
    guest.in_flight.add(request)
    guest.kick(guest.queues[0])
    guest.wait(request)
    assert request.status == OK
    assert guest.memory.read(target, 4096) == load.content[:4096]


def test_the_same_memory_at_other_addresses(working):
    """A region moves in the guest's address space while the queues stand still."""
    guest, load = working(
        memory=Memory([Region(0, 8 * MIB, 0x7F0000000000), Region(1 << 32, MIB, 0x7D0000000000)])
    )
    region = guest.memory.regions[1]
    for guest_address in (1 << 33, 1 << 34, 8 * MIB, 1 << 32):
        region.guest = guest_address
        guest.wire.set_mem_table(guest.memory)
        assert_used(guest, region, load)


@pytest.mark.better
def test_hundreds_of_regions(working, rng):
    regions = [Region(i << 16, 1 << 16, 0x7F0000000000 + (i << 18)) for i in range(64)]
    shared = Region(1 << 32, 1 << 16, 0x7E0000000000)
    more = [
        Region((1 << 32) + (i << 16), 1 << 16, 0x7E0000000000 + (i << 20), i << 16, shared.fd)
        for i in range(1, 445)
    ]
    guest, load = working(memory=Memory([*regions, shared, *more], rng))
    assert len(guest.memory.regions) == 509
    steps(load, 100)
    load.compare_all()


def test_the_end_of_a_file_is_no_end_of_the_region(working):
    """Files may be longer than what is shared of them."""
    guest, load = working(memory=Memory([Region(0, 4 * MIB, 0x7F0000000000, offset=MIB)]))
    os.ftruncate(guest.memory.regions[0].fd, 64 * MIB)
    steps(load, 50)
    load.compare_all()


def test_the_graph_changes_under_load(working, tmp):
    """Another node opens the same image, exports come and go on it."""
    guest, load = working(size=64)
    for i in range(20):
        steps(load, 10)
        guest.served.cmd(
            'block-export-add',
            type='vhost-user-blk',
            id='f',
            node_name='n',
            addr={'type': 'unix', 'path': str(tmp / 't')},
        )
        steps(load, 10)
        guest.served.unexport('f')
    load.compare_all()


@pytest.mark.better
def test_resize_under_load(working):
    guest, load = working(size=64)
    for i in range(20):
        steps(load, 10)
        guest.served.cmd('block_resize', node_name='n', size=MIB * (1 + i % 2))
        assert guest.wire.config()['capacity'] == 2048 * (1 + i % 2)
    guest.served.cmd('block_resize', node_name='n', size=MIB)
    load.compare_all()
