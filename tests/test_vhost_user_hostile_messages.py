# SPDX-License-Identifier: Apache-2.0
"""Messages that no front end should send: each ends the connection, with a line in the log, and nothing else."""

import contextlib
import fcntl
import os
import select
import socket
import struct

import pytest

from lib.vhostuser import NEED_REPLY, NO_FD, REPLY, VERSION, F, Inflight, Msg, Proto, Refused
from lib.vhostvictim import Victim
from lib.virtqueue import Memory

pytestmark = [pytest.mark.better, pytest.mark.sanitize]
U64 = struct.Struct('<Q')
STATE = struct.Struct('<II')
TOP = 1 << 64
USER = 0x7F0000000000
FILES = [
    'pipe',
    'eventfd',
    'directory',
    'socket',
    'null',
    'epoll',
    'regular',
    'read-only memfd',
    'sealed memfd',
]


@pytest.fixture(scope='module')
def victims():
    yield from Victim.shared(num_queues=2)


@pytest.fixture
def victim(victims):
    victim = victims()
    yield victim
    victim.check()


@pytest.fixture
def resizable(tmp):
    """With an image."""
    (tmp / 'image').write_bytes(bytes(1 << 20))
    victim = Victim(tmp, f'file,node-name=n,filename={tmp}/image')
    yield victim
    victim.check()
    victim.served.cleanup()


@contextlib.contextmanager
def files(*kinds):
    """A descriptor of each kind."""
    found, more = [], []
    for kind in kinds:
        if kind == 'pipe':
            fd, other = os.pipe()
            more.append(other)
        elif kind == 'eventfd':
            fd = os.eventfd(0)
        elif kind == 'directory':
            fd = os.open('/', os.O_RDONLY | os.O_DIRECTORY)
        elif kind == 'socket':
            ours, theirs = socket.socketpair()
            fd = ours.detach()
            more.append(theirs.detach())
        elif kind == 'null':
            fd = os.open('/dev/null', os.O_RDWR)
        elif kind == 'epoll':
            with select.epoll() as epoll:
                fd = os.dup(epoll.fileno())
        elif kind == 'regular':
            fd = os.open(__file__, os.O_RDONLY)
        else:
            fd = os.memfd_create('memory', os.MFD_ALLOW_SEALING)
            if kind != 'empty memfd':
                os.ftruncate(fd, 1 << 20)
            if kind == 'sealed memfd':
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
            if kind == 'read-only memfd':
                more.append(fd)
                fd = os.open(f'/proc/self/fd/{fd}', os.O_RDONLY)
        found.append(fd)
    try:
        yield found
    finally:
        for fd in found + more:
            os.close(fd)


def table(*regions):
    return struct.pack('<II', len(regions), 0) + b''.join(struct.pack('<QQQQ', *region) for region in regions)


# --- headers, sizes, types


@pytest.mark.parametrize('flags', [0, 2, 3, NEED_REPLY])
def test_versions(flags, victim):
    wire = victim.wire()
    victim.attack(wire, wire.send, Msg.GET_FEATURES, b'', (), flags)


@pytest.mark.parametrize('flags', [VERSION | REPLY, VERSION | 0x10, VERSION | 0x80000000])
def test_odd_flags(flags, victim):
    wire = victim.wire()
    victim.attack(wire, wire.send, Msg.SET_OWNER, b'', (), flags, ended=False)


@pytest.mark.parametrize('request_', [0, 44, 255, 256, 0x10001, 0xFFFFFFFF])
@pytest.mark.parametrize('size', [0, 8, 100])
def test_unknown_messages(request_, size, victim):
    wire = victim.wire()
    victim.attack(wire, wire.tell, request_, bytes(size))


@pytest.mark.parametrize('request_', [Msg.SEND_RARP, Msg.NET_SET_MTU, Msg.IOTLB_MSG, Msg.CREATE_CRYPTO_SESSION, Msg.CLOSE_CRYPTO_SESSION, Msg.GPU_SET_SOCKET, Msg.GET_SHARED_OBJECT, Msg.SET_DEVICE_STATE_FD, Msg.CHECK_DEVICE_STATE, Msg.VRING_KICK, Msg.SET_VRING_ENDIAN])  # fmt: skip
def test_messages_of_other_devices(request_, victim):
    """Their protocol features are not offered."""
    wire = victim.wire()
    victim.attack(wire, wire.tell, request_, bytes(8))


@pytest.mark.parametrize('size', [4097, 65536, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF4, 0xFFFFFFFF])
@pytest.mark.parametrize(
    'request_', [Msg.GET_FEATURES, Msg.SET_FEATURES, Msg.SET_MEM_TABLE, Msg.GET_CONFIG, 1000]
)
def test_huge_sizes(request_, size, victim):
    wire = victim.wire()
    victim.attack(wire, wire.send_raw, struct.pack('<III', request_, VERSION, size) + bytes(100))


FIXED = {
    Msg.SET_FEATURES: 8, Msg.SET_PROTOCOL_FEATURES: 8, Msg.SET_VRING_NUM: 8, Msg.SET_VRING_ADDR: 40, Msg.SET_VRING_BASE: 8,
    Msg.GET_VRING_BASE: 8, Msg.SET_VRING_ENABLE: 8, Msg.SET_VRING_KICK: 8, Msg.SET_VRING_CALL: 8, Msg.SET_VRING_ERR: 8,
    Msg.ADD_MEM_REG: 40, Msg.REM_MEM_REG: 40, Msg.SET_LOG_BASE: 16, Msg.GET_INFLIGHT_FD: 20, Msg.SET_INFLIGHT_FD: 20,
    Msg.SET_STATUS: 8,
}  # fmt: skip


@pytest.mark.parametrize('request_', FIXED, ids=lambda one: one.name)
def test_short_payloads(request_, victim):
    for size in (0, 1, FIXED[request_] - 1):
        wire = victim.wire()
        victim.attack(wire, wire.tell, request_, bytes(size))


@pytest.mark.parametrize('request_', FIXED, ids=lambda one: one.name)
def test_long_payloads(request_, victim):
    wire = victim.wire()
    victim.attack(wire, wire.tell, request_, bytes(FIXED[request_] + 400))


@pytest.mark.parametrize(
    'data', [b'\1', struct.pack('<III', 2, 1, 8)[:11], struct.pack('<III', 2, 1, 8) + bytes(7)]
)
def test_half_a_message(data, victim):
    wire = victim.wire()
    wire.send_raw(data)
    wire.close()


def test_half_a_message_with_descriptors(victim):
    with files('eventfd', 'pipe') as fds:
        wire = victim.wire()
        wire.send_raw(struct.pack('<III', Msg.SET_VRING_KICK, 1, 8)[:5], fds)
        wire.close()


def test_garbage(victim, rng):
    for _ in range(60):
        wire = victim.wire() if rng.random() < 0.5 else victim.guest().wire
        victim.attack(wire, wire.send_raw, rng.randbytes(rng.randrange(12, 3000)), ended=False)


def test_random_payloads(victim, rng):
    """Every message with random numbers in it."""
    for request in [*Msg] * 4:
        wire = victim.wire()
        with files('eventfd', 'empty memfd') as fds:
            size = FIXED.get(request, rng.choice((0, 8, 12, 40, 72)))
            action = lambda: wire.send(request, rng.randbytes(size), fds[: rng.randrange(3)])  # noqa: E731
            victim.attack(wire, action, ended=False)


def test_a_flood_that_reads_no_answers(victim):
    wire = victim.wire()
    wire.sock.settimeout(0.3)
    message = struct.pack('<III', Msg.GET_FEATURES, VERSION, 0) * 5000
    with contextlib.suppress(TimeoutError):
        for _ in range(40):
            wire.send_raw(message)
    victim.served.cmd('query-block-exports')
    wire.close()


# --- features


@pytest.mark.parametrize('bits', [1 << 63, 1 << 33, F.GEOMETRY, F.RO, 1 << 38])
def test_features_that_were_not_offered(bits, victim):
    wire = victim.wire()
    victim.attack(wire, wire.u64, Msg.SET_FEATURES, F.VERSION_1 | bits)


@pytest.mark.parametrize(
    'bits', [1 << 63, Proto.INBAND_NOTIFICATIONS, Proto.CRYPTO_SESSION, Proto.MTU, 1 << 20]
)
def test_protocol_features_that_were_not_offered(bits, victim):
    wire = victim.wire()
    victim.attack(wire, wire.u64, Msg.SET_PROTOCOL_FEATURES, bits | Proto.REPLY_ACK)


def test_features_change_under_running_rings(victim):
    guest = victim.guest()
    guest.read(0, 512)
    other = guest.features ^ F.EVENT_IDX ^ F.INDIRECT
    victim.attack(guest.wire, guest.wire.u64, Msg.SET_FEATURES, other, ended=False)


@pytest.mark.parametrize('protocol', [0, Proto.REPLY_ACK, Proto.CONFIG])
def test_messages_that_were_not_negotiated(protocol, victim):
    for request in (Msg.GET_CONFIG, Msg.GET_QUEUE_NUM, Msg.ADD_MEM_REG, Msg.GET_INFLIGHT_FD, Msg.GET_STATUS, Msg.POSTCOPY_ADVISE, Msg.SET_BACKEND_REQ_FD):  # fmt: skip
        wire = victim.wire(protocol=protocol)
        victim.attack(wire, wire.send, request, bytes(FIXED.get(request, 0)), ended=False)


# --- queues


@pytest.mark.parametrize('index', [2, 3, 255, 256, 0x80000000, 0xFFFFFFFF])
@pytest.mark.parametrize(
    'request_', [Msg.SET_VRING_NUM, Msg.SET_VRING_BASE, Msg.GET_VRING_BASE, Msg.SET_VRING_ENABLE]
)
def test_queues_that_do_not_exist(request_, index, victim):
    wire = victim.wire()
    victim.attack(wire, wire.state, request_, index, 0 if request_ == Msg.GET_VRING_BASE else 1)


@pytest.mark.parametrize('index', [2, 3, 255])
@pytest.mark.parametrize('request_', [Msg.SET_VRING_KICK, Msg.SET_VRING_CALL, Msg.SET_VRING_ERR])
def test_descriptors_for_queues_that_do_not_exist(request_, index, victim):
    with files('eventfd') as (fd,):
        wire = victim.wire()
        victim.attack(wire, wire.set_vring_fd, request_, index, fd)
        wire = victim.wire()
        victim.attack(wire, wire.set_vring_fd, request_, index)


@pytest.mark.parametrize('index', [2, 0xFFFFFFFF])
def test_addresses_of_queues_that_do_not_exist(index, victim):
    wire = victim.wire()
    victim.attack(wire, wire.set_vring_addr, index, USER, USER, USER)


@pytest.mark.parametrize('size', [0, 1025, 4096, 32769, 65536, 0xFFFFFFFF])
def test_sizes_of_queues(size, victim):
    """seg_max tells how long requests may be, so sizes beyond what the device takes have no use."""
    wire = victim.wire()
    victim.attack(wire, wire.state, Msg.SET_VRING_NUM, 0, size)


def start_at(guest, desc=None, used=None, avail=None, size=None):
    """Starts the first queue, some of it elsewhere."""
    ring, user = guest.queues[0].ring, guest.memory.user
    guest.wire.state(Msg.SET_VRING_NUM, 0, size or ring.size)
    guest.wire.state(Msg.SET_VRING_BASE, 0, 0)
    ours = (user(ring.desc), user(ring.used), user(ring.avail))
    guest.wire.set_vring_addr(
        0, *(one if one is not None else own for one, own in zip((desc, used, avail), ours))
    )
    guest.wire.set_vring_fd(Msg.SET_VRING_CALL, 0, guest.queues[0].call_fd)
    guest.wire.set_vring_fd(Msg.SET_VRING_KICK, 0, guest.queues[0].kick_fd)
    guest.wire.state(Msg.SET_VRING_ENABLE, 0, 1)
    guest.queues[0].kick()


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('part', ['desc', 'used', 'avail'])
@pytest.mark.parametrize(
    'address', [0, 0x1000, USER - 16, USER + (16 << 20), USER + (16 << 20) - 16, TOP - 16, TOP - 4096]
)
def test_rings_outside_of_memory(packed, part, address, victim):
    """All of a ring lies in one region. A packed ring's event areas have 4 bytes only."""
    if packed and part != 'desc' and address == USER + (16 << 20) - 16:
        address += 14
    with victim.guest(packed=packed, start=False) as guest:
        victim.attack(guest.wire, start_at, guest, address if part == 'desc' else None, address if part == 'used' else None, address if part == 'avail' else None)  # fmt: skip


@pytest.mark.parametrize('part, address', [('desc', 8), ('desc', 1), ('avail', 1), ('used', 1), ('used', 2)])
def test_unaligned_rings(part, address, victim):
    with victim.guest(start=False) as guest:
        victim.attack(guest.wire, lambda: start_at(guest, **{part: USER + (1 << 20) + address}))


@pytest.mark.parametrize('size', [3, 5, 100, 1023])
def test_split_rings_have_a_power_of_two(size, victim):
    with victim.guest(start=False) as guest:
        victim.attack(guest.wire, lambda: start_at(guest, size=size))


def test_a_ring_without_a_memory_table(victim):
    wire = victim.wire()
    memory = Memory.plain(1 << 20)

    def action():
        wire.state(Msg.SET_VRING_NUM, 0, 16)
        wire.set_vring_addr(0, USER, USER + 4096, USER + 8192)
        with files('eventfd') as (fd,):
            wire.set_vring_fd(Msg.SET_VRING_KICK, 0, fd)
            wire.state(Msg.SET_VRING_ENABLE, 0, 1)
            os.eventfd_write(fd, 1)

    victim.attack(wire, action, ended=False)
    memory.close()


def test_a_ring_without_anything(victim):
    wire = victim.wire()

    def action():
        wire.state(Msg.SET_VRING_ENABLE, 0, 1)
        with files('eventfd') as (fd,):
            os.eventfd_write(fd, 1)
            wire.set_vring_fd(Msg.SET_VRING_KICK, 0, fd)

    victim.attack(wire, action, ended=False)


def test_stopping_what_never_ran(victim):
    wire = victim.wire()
    victim.attack(wire, wire.get_vring_base, 1, ended=False)


def test_moving_a_running_ring(victim):
    """ "The back-end must support changing some configuration aspects on the fly": not these."""
    for change in ('num', 'base', 'addr'):
        with victim.guest() as guest:
            guest.read(0, 512)
            action = {
                'num': lambda: guest.wire.state(Msg.SET_VRING_NUM, 0, 4),
                'base': lambda: guest.wire.state(Msg.SET_VRING_BASE, 0, 77),
                'addr': lambda: guest.wire.set_vring_addr(0, USER, USER, USER),
            }[change]
            victim.attack(guest.wire, action, ended=False)


# --- descriptors


TAKES_ONE = [Msg.SET_VRING_KICK, Msg.SET_VRING_CALL, Msg.SET_VRING_ERR, Msg.SET_BACKEND_REQ_FD, Msg.SET_LOG_BASE, Msg.SET_INFLIGHT_FD, Msg.ADD_MEM_REG, Msg.SET_LOG_FD]  # fmt: skip


@pytest.mark.parametrize('request_', TAKES_ONE[:-1], ids=lambda one: one.name)
def test_missing_descriptors(request_, victim):
    wire = victim.wire()
    payload = bytes(FIXED.get(request_, 0))
    if request_ == Msg.ADD_MEM_REG:
        payload = bytes(8) + struct.pack('<QQQQ', 0, 4096, USER, 0)
    victim.attack(wire, wire.tell, request_, payload)


@pytest.mark.parametrize('request_', TAKES_ONE, ids=lambda one: one.name)
def test_too_many_descriptors(request_, victim):
    wire = victim.wire()
    with files('eventfd', 'eventfd', 'empty memfd') as fds:
        victim.attack(wire, wire.tell, request_, bytes(FIXED.get(request_, 0)), fds)


@pytest.mark.parametrize('count', [1, 8, 64, 253])
@pytest.mark.parametrize(
    'request_', [Msg.GET_FEATURES, Msg.SET_OWNER, Msg.SET_VRING_NUM, Msg.SET_MEM_TABLE, 1000]
)
def test_unexpected_descriptors(request_, count, victim):
    """They are closed whatever happens; the kernel passes 253 in one message at most."""
    wire = victim.wire()
    with files(*['eventfd'] * count) as fds:
        victim.attack(wire, wire.send, request_, bytes(FIXED.get(request_, 0)), fds, ended=False)


@pytest.mark.parametrize('request_', [Msg.SET_VRING_KICK, Msg.SET_VRING_CALL, Msg.SET_VRING_ERR])
def test_a_descriptor_that_was_declared_missing(request_, victim):
    wire = victim.wire()
    with files('eventfd') as fds:
        victim.attack(wire, wire.tell, request_, U64.pack(NO_FD), fds, ended=False)


@pytest.mark.parametrize('kind', FILES)
def test_what_is_not_an_eventfd(kind, victim):
    """As the descriptor for kicks, calls and errors of a ring that runs."""
    for request in (Msg.SET_VRING_KICK, Msg.SET_VRING_CALL, Msg.SET_VRING_ERR):
        with files(kind) as (fd,), victim.guest() as guest:

            def action(guest=guest, request=request, fd=fd):
                guest.wire.set_vring_fd(request, 0, fd)
                for _ in range(3):
                    guest.wire.sync()
                guest.queues[0].kick()

            victim.attack(guest.wire, action, ended=False)


def test_calls_that_nobody_takes(victim):
    """A full eventfd and a full pipe may not stop the daemon."""
    full = os.eventfd((1 << 32) - 1)
    os.eventfd_write(full, (1 << 64) - 2 - ((1 << 32) - 1))
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    os.set_blocking(writer, True)
    for fd in (full, writer):
        with victim.guest(queues=2) as guest:
            guest.polling = True

            def action(guest=guest, fd=fd):
                guest.wire.set_vring_fd(Msg.SET_VRING_CALL, 0, fd)
                guest.wire.set_vring_fd(Msg.SET_VRING_CALL, 1, fd)
                guest.wire.set_vring_fd(Msg.SET_VRING_ERR, 1, fd)
                guest.wire.sync()
                os.set_blocking(fd, True)  # the flag is shared
                for i in range(5):
                    guest.read(0, 512, queue=i % 2)
                guest.wire.sync()

            victim.attack(guest.wire, action, ended=False)
    for fd in (full, reader, writer):
        os.close(fd)


def test_a_pipe_without_a_reader_for_calls(victim):
    reader, writer = os.pipe()
    os.close(reader)
    with victim.guest() as guest:
        guest.polling = True

        def action():
            guest.wire.set_vring_fd(Msg.SET_VRING_CALL, 0, writer)
            guest.read(0, 512)

        victim.attack(guest.wire, action, ended=False)
    os.close(writer)


@pytest.mark.parametrize('kind', FILES)
def test_what_is_not_a_back_end_channel(kind, resizable):
    """The device has a message to send as soon as its size changes while a ring runs."""
    with resizable.guest() as guest, files(kind) as fds:
        guest.read(0, 512)

        def action():
            with contextlib.suppress(Refused):
                guest.wire.tell(Msg.SET_BACKEND_REQ_FD, b'', fds)
            for size in (2 << 20, 1 << 20):
                resizable.served.cmd('block_resize', node_name='n', size=size)
            guest.read(0, 512)

        resizable.attack(guest.wire, action, ended=False)


def test_a_back_end_channel_that_nobody_reads(resizable):
    """It is full after a while; then it is closed."""
    with resizable.guest() as guest:
        guest.read(0, 512)
        ours, theirs = socket.socketpair()
        with ours:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            guest.wire.tell(Msg.SET_BACKEND_REQ_FD, b'', [theirs.fileno()])
            theirs.close()
            for i in range(400):
                resizable.served.cmd('block_resize', node_name='n', size=(2 << 20) + 512 * (i % 2))
            guest.read(0, 512)
        resizable.served.cmd('block_resize', node_name='n', size=1 << 20)  # and without a reader
        guest.read(0, 512)


def test_a_back_end_channel_that_sends_garbage(victim, rng):
    wire = victim.wire()
    ours, theirs = socket.socketpair()
    wire.tell(Msg.SET_BACKEND_REQ_FD, b'', [theirs.fileno()])
    theirs.close()
    with ours:
        ours.sendall(rng.randbytes(5000))
        victim.attack(wire, wire.sync, ended=False)


# --- memory tables

REGION = 1 << 16


def region(guest=0, size=REGION, user=USER, offset=0):
    return guest, size, user, offset


BAD_TABLES = {
    'size 0': [region(size=0)],
    'guest addresses wrap': [region(guest=TOP - 4096)],
    'user addresses wrap': [region(user=TOP - 4096)],
    'size wraps': [region(guest=4096, size=TOP - 4096)],
    'all of it': [region(size=TOP - 1)],
    'behind the end of the file': [region(offset=1 << 20)],
    'over the end of the file': [region(offset=(1 << 20) - 4096)],
    'offset wraps': [region(offset=TOP - 4096)],
    'size and offset wrap': [region(size=8192, offset=TOP - 4096)],
    'the same twice': [region(), region()],
    'guest overlap': [region(), region(guest=REGION - 1, user=USER + (1 << 30))],
    'user overlap': [region(), region(guest=1 << 30, user=USER + REGION - 1)],
    'one in the other': [region(), region(guest=4096, size=4096, user=USER + (1 << 30))],
    'overlap with the one after the next': [
        region(),
        region(guest=1 << 30, user=USER + (1 << 30)),
        region(guest=REGION - 4096, user=USER + (1 << 31)),
    ],
}


@pytest.mark.parametrize('name', BAD_TABLES)
def test_memory_tables(name, victim):
    regions = BAD_TABLES[name]
    with files(*['memfd'] * len(regions)) as fds:
        wire = victim.wire()
        victim.attack(wire, wire.tell, Msg.SET_MEM_TABLE, table(*regions), fds)


@pytest.mark.parametrize('name', BAD_TABLES)
def test_single_regions(name, victim):
    regions = BAD_TABLES[name]
    with files(*['memfd'] * len(regions)) as fds:
        wire = victim.wire()

        def action():
            for one, fd in zip(regions, fds):
                wire.tell(Msg.ADD_MEM_REG, bytes(8) + struct.pack('<QQQQ', *one), [fd])

        victim.attack(wire, action)


@pytest.mark.parametrize('kind', [kind for kind in FILES if kind not in ('regular',)] + ['empty memfd'])
@pytest.mark.parametrize('request_', [Msg.SET_MEM_TABLE, Msg.ADD_MEM_REG])
def test_what_is_not_memory(kind, request_, victim):
    with files(kind) as fds:
        wire = victim.wire()
        payload = (
            table(region()) if request_ == Msg.SET_MEM_TABLE else bytes(8) + struct.pack('<QQQQ', *region())
        )
        victim.attack(wire, wire.tell, request_, payload, fds)


@pytest.mark.parametrize(
    'told, passed', [(1, 0), (2, 1), (1, 2), (8, 7), (9, 9), (100, 8), (0xFFFFFFFF, 1), (0x20000000, 8)]
)
def test_counts_of_regions(told, passed, victim):
    """Eight in a table at most, each with a descriptor."""
    regions = [region(guest=i << 20, user=USER + (i << 20)) for i in range(min(told, 9))]
    payload = struct.pack('<II', told, 0) + table(*regions)[8:]
    with files(*['memfd'] * passed) as fds:
        wire = victim.wire()
        victim.attack(wire, wire.tell, Msg.SET_MEM_TABLE, payload, fds)


def test_a_table_that_is_shorter_than_it_says(victim):
    with files('memfd', 'memfd') as fds:
        wire = victim.wire()
        victim.attack(wire, wire.tell, Msg.SET_MEM_TABLE, struct.pack('<II', 2, 0) + table(region())[8:], fds)


def test_an_empty_table(victim):
    wire = victim.wire()
    victim.attack(wire, wire.tell, Msg.SET_MEM_TABLE, table(), ended=False)


def test_more_slots_than_there_are(victim):
    with files('memfd') as (fd,):
        wire = victim.wire()
        slots = wire.ask(Msg.GET_MAX_MEM_SLOTS).u64()
        for i in range(slots):
            wire.tell(
                Msg.ADD_MEM_REG, bytes(8) + struct.pack('<QQQQ', i << 16, 4096, USER + (i << 16), 0), [fd]
            )
        victim.attack(
            wire, wire.tell, Msg.ADD_MEM_REG, bytes(8) + struct.pack('<QQQQ', 1 << 40, 4096, 1 << 40, 0), [fd]
        )


@pytest.mark.parametrize('change', [(4096, 0, 0, 0), (0, 4096, 0, 0), (0, -4096, 0, 0), (0, 0, 4096, 0)])
def test_removing_a_region_that_is_not_there(change, victim):
    with files('memfd') as (fd,):
        wire = victim.wire()
        wire.tell(Msg.ADD_MEM_REG, bytes(8) + struct.pack('<QQQQ', *region()), [fd])
        other = [a + b for a, b in zip(region(), change)]
        victim.attack(wire, wire.tell, Msg.REM_MEM_REG, bytes(8) + struct.pack('<QQQQ', *other))


def test_removing_the_memory_of_a_running_ring(victim):
    with victim.guest() as guest:
        guest.read(0, 512)

        def action():
            guest.wire.rem_mem_reg(guest.memory.regions[0])
            guest.queues[0].kick()
            guest.wire.sync()

        victim.attack(guest.wire, action, ended=False)


def test_another_memory_table_under_a_running_ring(victim):
    """One in which the ring is no more."""
    with victim.guest() as guest, files('memfd') as fds:
        guest.read(0, 512)

        def action():
            guest.wire.tell(Msg.SET_MEM_TABLE, table(region(user=1 << 30)), fds)
            guest.queues[0].kick()

        victim.attack(guest.wire, action)


# --- configuration, log, in-flight area, postcopy


@pytest.mark.parametrize('head, size', [((0, 60, 0), 59), ((0, 60, 0), 61), ((0, 1 << 31, 0), 60), ((0xFFFFFFFF, 60, 0), 60), ((4000, 60, 0), 60), ((0, 0, 0), 0), ((0, 257, 0), 257), ((0, 4000, 0), 4000), ((0, 60, 0xFFFFFFFF), 60)])  # fmt: skip
@pytest.mark.parametrize('request_', [Msg.GET_CONFIG, Msg.SET_CONFIG])
def test_configuration_accesses(request_, head, size, victim):
    """A payload without bytes is the answer to a bad GET_CONFIG; what else there is ends the connection."""
    wire = victim.wire()
    action = wire.ask if request_ == Msg.GET_CONFIG else wire.tell
    victim.attack(wire, action, request_, struct.pack('<III', *head) + bytes(size), ended=False)


def log(wire, fd, size, offset=0):
    wire.set_log(fd, size, offset)
    wire.u64(Msg.SET_FEATURES, F.VERSION_1 | F.PROTOCOL_FEATURES | F.LOG_ALL)


@pytest.mark.parametrize(
    'size, offset', [(0, 0), (2 << 20, 0), (1 << 20, 4096), (TOP - 1, 0), (4096, TOP - 4096), (4096, 1 << 40)]
)
def test_logs(size, offset, victim):
    """Looked at when it is used, with VHOST_F_LOG_ALL, at the latest."""
    with files('memfd') as (fd,):
        wire = victim.wire()
        victim.attack(wire, log, wire, fd, size, offset)


@pytest.mark.parametrize('kind', [kind for kind in FILES if kind != 'regular'])
def test_what_is_not_a_log(kind, victim):
    with files(kind) as (fd,):
        wire = victim.wire()
        victim.attack(wire, log, wire, fd, 4096)


def test_a_log_that_is_too_small(victim):
    """Nothing is written behind it."""
    log = os.memfd_create('log')
    os.ftruncate(log, 8192)
    with victim.guest(features=~0) as guest:
        guest.features |= F.LOG_ALL

        def action():
            guest.wire.set_log(log, 1)
            guest.wire.u64(Msg.SET_FEATURES, guest.features)
            guest.set_addresses(guest.queues[0], log=guest.queues[0].ring.used)
            for i in range(4):
                guest.read(i, 65536)

        victim.attack(guest.wire, action, ended=False)
    assert os.pread(log, 8192, 1) == bytes(8191)
    os.close(log)


@pytest.mark.parametrize(
    'queues, size', [(0, 128), (3, 128), (0xFFFF, 128), (1, 0), (1, 0xFFFF), (0xFFFF, 0xFFFF)]
)
def test_in_flight_areas_nobody_can_have(queues, size, victim):
    wire = victim.wire()
    victim.attack(wire, wire.get_inflight, queues, size)


@pytest.mark.parametrize('size, offset, queues, queue_size', [(0, 0, 1, 16), (1 << 20, 4096, 1, 16), (TOP - 1, 0, 1, 16), (4096, TOP - 4096, 1, 16), (4096, 1 << 40, 1, 16), (65536, 0, 3, 16), (65536, 0, 0, 16), (65536, 0, 1, 0), (65536, 0, 0xFFFF, 0xFFFF)])  # fmt: skip
def test_in_flight_areas(size, offset, queues, queue_size, victim):
    with files('memfd') as fds:
        wire = victim.wire()
        payload = struct.pack('<QQHH', size, offset, queues, queue_size)
        victim.attack(wire, wire.tell, Msg.SET_INFLIGHT_FD, payload, fds)


@pytest.mark.parametrize('kind', [kind for kind in FILES if kind != 'regular'])
def test_what_is_not_an_in_flight_area(kind, victim):
    with files(kind) as fds:
        wire = victim.wire()
        victim.attack(wire, wire.tell, Msg.SET_INFLIGHT_FD, struct.pack('<QQHH', 65536, 0, 1, 16), fds)


def test_an_in_flight_area_under_a_running_ring(victim):
    with victim.guest() as guest, files('memfd') as fds:
        guest.read(0, 512)

        def action():
            guest.wire.tell(Msg.SET_INFLIGHT_FD, struct.pack('<QQHH', 65536, 0, 1, 128), fds)
            guest.read(0, 512)

        victim.attack(guest.wire, action, ended=False)


def test_an_in_flight_area_of_another_queue_size(victim):
    """The queue has 128 entries, the area room for 16."""
    for area in (Inflight.new(1024, 1, 16), Inflight.new(100, 1, 128)):
        with victim.guest(start=False) as guest:

            def action(guest=guest, area=area):
                guest.wire.set_inflight(area)
                guest.start(guest.queues[0])

            victim.attack(guest.wire, action)
        area.close()


@pytest.mark.parametrize('messages', [[Msg.POSTCOPY_LISTEN], [Msg.POSTCOPY_END], [Msg.POSTCOPY_LISTEN, Msg.POSTCOPY_END], [Msg.POSTCOPY_ADVISE, Msg.POSTCOPY_ADVISE], [Msg.POSTCOPY_ADVISE, Msg.POSTCOPY_END]], ids=str)  # fmt: skip
def test_postcopy_in_the_wrong_order(messages, victim):
    wire = victim.wire()

    def action():
        for message in messages:
            wire.send(message)

    victim.attack(wire, action, ended=False)
