# SPDX-License-Identifier: Apache-2.0
"""A vhost-user-blk front end for tests: what QEMU and a guest's driver do, in plain Python.

From the bottom up:

lib.virtqueue   guest memory and the driver's side of rings
Wire     the connection: every message of docs/interop/vhost-user.rst, legal or not
Layout   how a request is cut into descriptors
Guest    a virtio-blk driver on all of this: requests in flight on several queues, stop, resume, reconnect

Tests that break rules use the lower floors directly.
"""

import enum
import itertools
import mmap
import os
import select
import socket
import struct
import time
from typing import NamedTuple

from lib.program import DEADLINE
from lib.virtqueue import PATTERN, Buffer, Memory, PackedRing, RingFull, SplitRing, Violation

SECTOR = 512


class Msg(enum.IntEnum):
    """Messages of the front end."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    CREATE_CRYPTO_SESSION = 26
    CLOSE_CRYPTO_SESSION = 27
    POSTCOPY_ADVISE = 28
    POSTCOPY_LISTEN = 29
    POSTCOPY_END = 30
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    GET_SHARED_OBJECT = 41
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43


BACKEND_CONFIG_CHANGE = 2  # the one message of the back end that a block device sends


class Proto(enum.IntFlag):
    """Protocol features."""

    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    RARP = 1 << 2
    REPLY_ACK = 1 << 3
    MTU = 1 << 4
    BACKEND_REQ = 1 << 5
    CROSS_ENDIAN = 1 << 6
    CRYPTO_SESSION = 1 << 7
    PAGEFAULT = 1 << 8
    CONFIG = 1 << 9
    BACKEND_SEND_FD = 1 << 10
    HOST_NOTIFIER = 1 << 11
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    INBAND_NOTIFICATIONS = 1 << 14
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16


class F(enum.IntFlag):
    """Feature bits: virtio-blk's, the rings', and vhost's two."""

    SIZE_MAX = 1 << 1
    SEG_MAX = 1 << 2
    GEOMETRY = 1 << 4
    RO = 1 << 5
    BLK_SIZE = 1 << 6
    FLUSH = 1 << 9
    TOPOLOGY = 1 << 10
    CONFIG_WCE = 1 << 11
    MQ = 1 << 12
    DISCARD = 1 << 13
    WRITE_ZEROES = 1 << 14
    LOG_ALL = 1 << 26
    INDIRECT = 1 << 28
    EVENT_IDX = 1 << 29
    PROTOCOL_FEATURES = 1 << 30
    VERSION_1 = 1 << 32
    PACKED = 1 << 34


ALL_FEATURES = F(sum(F))  # without such that nobody should accept, as NOTIFY_ON_EMPTY
VERSION, REPLY, NEED_REPLY = 1, 4, 8  # flags of a message's header
NO_FD = 0x100  # in the payload of SET_VRING_KICK, _CALL and _ERR
IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13
OK, IOERR, UNSUPP = 0, 1, 2
UNMAP = 1  # flag of a write-zeroes segment

# struct virtio_blk_config (virtio 1.2, 5.2.4) up to the write-zeroes fields.
CONFIG = struct.Struct('<QIIHBBIBBHIBxHIIIIIBxxx')
CONFIG_FIELDS = (
    'capacity size_max seg_max cylinders heads sectors blk_size physical_block_exp alignment_offset min_io_size '
    'opt_io_size wce num_queues max_discard_sectors max_discard_seg discard_sector_alignment max_write_zeroes_sectors '
    'max_write_zeroes_seg write_zeroes_may_unmap'
).split()
WCE_OFFSET = 32


def readable(seconds, *files):
    """Those that can be read, after waiting for the first one; unlike select() with any number of descriptors open."""
    poll = select.poll()
    for file in files:
        poll.register(file, select.POLLIN)
    ready = {fd for fd, _ in poll.poll(seconds * 1000)}
    return [file for file in files if (file if isinstance(file, int) else file.fileno()) in ready]


class Closed(Exception):
    """The back end has ended the connection."""


class Refused(Exception):
    """The back end has answered a message with an error."""


# --- the connection


class Message(NamedTuple):
    request: int
    flags: int
    payload: bytes
    fds: list

    def u64(self):
        (value,) = struct.unpack('<Q', self.payload)
        return value


class Inflight:
    """The area in which the back end notes what it works on; a front end keeps it for the next one."""

    def __init__(self, fd, size, offset, queues, queue_size):
        self.fd, self.size, self.offset, self.queues, self.queue_size = fd, size, offset, queues, queue_size
        self.view = memoryview(mmap.mmap(fd, offset + size))[offset:] if offset + size else memoryview(b'')

    @classmethod
    def new(cls, size, queues, queue_size):
        """A zeroed area that no back end has made."""
        fd = os.memfd_create('inflight')
        os.ftruncate(fd, size)
        return cls(fd, size, 0, queues, queue_size)

    def queue(self, index, packed=False):
        """A queue's part: a header and an entry for each descriptor. Parts begin at multiples of 64, as in libvhost-user."""
        share = (self.queue_size + 1) * (32 if packed else 16) + 63 & ~63
        return self.view[index * share : (index + 1) * share]

    def description(self):
        return struct.pack('<QQHH', self.size, self.offset, self.queues, self.queue_size)

    def close(self):
        os.close(self.fd)


class Wire:
    """A connection. Messages are sent as they are asked for; nothing is checked here that the back end has to check."""

    def __init__(self, path, timeout=DEADLINE):
        connected = isinstance(path, socket.socket)
        self.sock = path if connected else socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(timeout)
        if not connected:
            self.sock.connect(str(path))
        self.acks = False  # REPLY_ACK was negotiated: tell() waits for an acknowledgement

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.sock.close()

    def fileno(self):
        return self.sock.fileno()

    def send_raw(self, data, fds=()):
        try:
            sent = socket.send_fds(self.sock, [data], list(fds)) if fds else 0
            self.sock.sendall(data[sent:])
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Closed from error

    def send(self, request, payload=b'', fds=(), flags=VERSION):
        self.send_raw(struct.pack('<III', request, flags, len(payload)) + payload, fds)

    def receive(self):
        data, fds = b'', []
        try:
            while len(data) < 12 or len(data) < 12 + struct.unpack_from('<I', data, 8)[0]:
                want = 12 if len(data) < 12 else 12 + struct.unpack_from('<I', data, 8)[0]
                part, more, _, _ = socket.recv_fds(self.sock, want - len(data), 16)
                fds += more
                if not part:
                    raise Closed
                data += part
        except ConnectionResetError as error:
            raise Closed from error
        request, flags, _ = struct.unpack_from('<III', data)
        return Message(request, flags, data[12:], fds)

    def ask(self, request, payload=b'', fds=(), flags=VERSION):
        """A message that has a reply of its own."""
        self.send(request, payload, fds, flags)
        reply = self.receive()
        if reply.request != request or reply.flags & ~NEED_REPLY != VERSION | REPLY:
            raise Violation(f'{request!r} was answered with request {reply.request}, flags {reply.flags:#x}')
        return reply

    def tell(self, request, payload=b'', fds=(), acked=None):
        """A message without one; it is acknowledged if that was negotiated."""
        if not (self.acks if acked is None else acked):
            self.send(request, payload, fds)
        elif result := self.ask(request, payload, fds, VERSION | NEED_REPLY).u64():
            raise Refused(f'{request!r}: {result}')

    def u64(self, request, value):
        self.tell(request, struct.pack('<Q', value))

    def state(self, request, index, value):
        self.tell(request, struct.pack('<II', index, value))

    def sync(self):
        """Returns after all earlier messages have been processed."""
        return self.ask(Msg.GET_FEATURES).u64()

    def at_eof(self):
        """Waits for the end of the connection; True if no more than replies came before it."""
        try:
            while True:
                self.receive()
        except Closed:
            return True
        except TimeoutError:
            return False

    def negotiate(self, protocol=~0, features=ALL_FEATURES & ~(F.LOG_ALL | F.PACKED)):
        """Features and protocol features, as far as both sides have them; returns both."""
        offered = F(self.ask(Msg.GET_FEATURES).u64())
        protocol = Proto(self.ask(Msg.GET_PROTOCOL_FEATURES).u64() & protocol)
        self.tell(Msg.SET_PROTOCOL_FEATURES, struct.pack('<Q', protocol))
        self.acks = bool(protocol & Proto.REPLY_ACK)
        self.tell(Msg.SET_OWNER)
        features = F(offered & features)
        self.u64(Msg.SET_FEATURES, features)
        return features, protocol

    def set_mem_table(self, memory, acked=None):
        regions = memory.regions
        payload = struct.pack('<II', len(regions), 0) + b''.join(region.description() for region in regions)
        self.tell(Msg.SET_MEM_TABLE, payload, [region.fd for region in regions], acked)

    def add_mem_reg(self, region):
        self.tell(Msg.ADD_MEM_REG, bytes(8) + region.description(), [region.fd])

    def rem_mem_reg(self, region):
        self.tell(Msg.REM_MEM_REG, bytes(8) + region.description())

    def set_vring_addr(self, index, desc, used, avail, flags=0, log=0):
        """Rings are named by the front end's own addresses, the log by a guest address."""
        self.tell(Msg.SET_VRING_ADDR, struct.pack('<IIQQQQ', index, flags, desc, used, avail, log))

    def get_vring_base(self, index):
        reply = self.ask(Msg.GET_VRING_BASE, struct.pack('<II', index, 0))
        answered, base = struct.unpack('<II', reply.payload)
        if answered != index:
            raise Violation(f'GET_VRING_BASE of queue {index} was answered for {answered}')
        return base

    def set_vring_fd(self, request, index, fd=None):
        """SET_VRING_KICK, _CALL or _ERR; without a descriptor the other side polls."""
        if fd is None:
            self.tell(request, struct.pack('<Q', index | NO_FD))
        else:
            self.tell(request, struct.pack('<Q', index), [fd])

    def get_config(self, offset=0, size=CONFIG.size):
        """None if the back end refuses."""
        head = struct.pack('<III', offset, size, 0)
        reply = self.ask(Msg.GET_CONFIG, head + bytes(size))
        if not reply.payload:
            return None
        if len(reply.payload) != 12 + size or struct.unpack_from('<II', reply.payload) != (offset, size):
            raise Violation(f'GET_CONFIG({offset}, {size}) was answered with {reply.payload!r}')
        return reply.payload[12:]

    def config(self):
        return dict(zip(CONFIG_FIELDS, CONFIG.unpack(self.get_config())))

    def set_config(self, offset, data, flags=0):
        self.tell(Msg.SET_CONFIG, struct.pack('<III', offset, len(data), flags) + data)

    def get_inflight(self, queues, queue_size):
        reply = self.ask(Msg.GET_INFLIGHT_FD, struct.pack('<QQHH', 0, 0, queues, queue_size))
        size, offset, _, _ = struct.unpack_from('<QQHH', reply.payload)
        (fd,) = reply.fds
        return Inflight(fd, size, offset, queues, queue_size)

    def set_inflight(self, inflight):
        self.tell(Msg.SET_INFLIGHT_FD, inflight.description(), [inflight.fd])

    def set_log(self, fd, size, offset=0):
        """With LOG_SHMFD the back end answers, whatever was negotiated about that."""
        self.ask(Msg.SET_LOG_BASE, struct.pack('<QQ', size, offset), [fd])


class BackendChannel:
    """The other direction: what the back end says by itself."""

    def __init__(self, wire, timeout=DEADLINE):
        ours, theirs = socket.socketpair()
        with theirs:
            wire.tell(Msg.SET_BACKEND_REQ_FD, b'', [theirs.fileno()])
        self.wire = Wire(ours, timeout)

    def next_message(self):
        message = self.wire.receive()
        if message.flags & NEED_REPLY:
            self.wire.send(message.request, bytes(8), flags=VERSION | REPLY)
        return message

    def close(self):
        self.wire.close()


# --- requests


class Layout(NamedTuple):
    """How a request is cut into pieces of memory and described. Sizes are those of the first pieces; the rest is one more."""

    readable: tuple = (16,)  # header, data
    writable: tuple = (-1,)  # data, status; negative sizes count from the end
    indirect: bool = False
    direct: int = 0  # descriptors in front of the one that names a table (split rings only)
    together: bool = False  # pieces lie without gaps behind each other
    border: bool = False  # over the border of two regions, if that is free

    @classmethod
    def random(cls, rng, readable, writable, indirect=False, most=64):
        """Any legal layout for that many bytes, at most `most` pieces in each direction."""

        def cuts(count):
            wanted = min(count, most, rng.choice((1, 1, 2, 3, 6, rng.randint(1, most))))
            points = sorted(rng.sample(range(1, count), wanted - 1))
            return tuple(b - a for a, b in itertools.pairwise([0, *points]))

        chosen = cls(cuts(readable), cuts(writable), indirect and rng.random() < 0.7, 0, rng.random() < 0.3)
        return chosen._replace(border=rng.random() < 0.3)

    def sizes(self, count, first):
        sizes = []
        for size in first:
            size = size if size >= 0 else count + size
            if 0 < size < count:
                sizes.append(size)
                count -= size
        return [*sizes, count]

    def place(self, memory, count, first):
        """Addresses and sizes of the pieces, and the memory that they take."""
        sizes = self.sizes(count, first)
        if self.together or self.border:
            at = self._at_border(memory, count) if self.border else None
            at = memory.alloc(count) if at is None else at
            starts = itertools.accumulate([at, *sizes])
            return list(zip(starts, sizes)), [(at, count)]
        pieces = [(memory.alloc(size), size) for size in sizes]
        return pieces, pieces

    @staticmethod
    def _at_border(memory, count):
        for border in memory.borders():
            try:
                return memory.alloc(count, at=border - count // 2 - 1)
            except ValueError:
                continue
        return None


class Request:
    """A request of a block device: what it says, and when it is done what came back."""

    def __init__(self, kind, sector=0, out=b'', in_bytes=0, header=None):
        self.kind, self.sector = kind, sector
        self.readable = (struct.pack('<IIQ', kind, 0, sector) if header is None else header) + out
        self.in_bytes = in_bytes
        self.status = self.data = self.written = None
        self.buffers, self.owned, self.queue = [], [], None

    def __repr__(self):
        return f'<request {self.kind} at sector {self.sector}, {len(self.readable)}+{self.in_bytes}+1 bytes>'

    @property
    def done(self):
        return self.status is not None

    def place(self, memory, layout):
        out, out_owned = layout.place(memory, len(self.readable), layout.readable)
        into, in_owned = layout.place(memory, self.in_bytes + 1, layout.writable)
        self.buffers = [Buffer(*piece) for piece in out] + [Buffer(*piece, True) for piece in into]
        self.owned = out_owned + in_owned
        data = self.readable
        for one in self.buffers:
            memory.write(one.guest, bytes([PATTERN]) * one.bytes if one.writable else data[: one.bytes])
            data = data if one.writable else data[one.bytes :]

    def release(self, memory):
        for piece in self.owned:
            memory.free(*piece)
        self.buffers, self.owned = [], []

    def finish(self, memory, written):
        """The device has used it: takes the answer out of guest memory and checks what can be checked."""
        into = b''.join(memory.read(one.guest, one.bytes) for one in self.buffers if one.writable)
        out = b''.join(memory.read(one.guest, one.bytes) for one in self.buffers if not one.writable)
        self.data, self.status, self.written = into[:-1], into[-1], written
        self.release(memory)
        if out != self.readable:
            raise Violation(f'{self}: the device has written into what it may only read')
        if self.status not in (OK, IOERR, UNSUPP):
            raise Violation(f'{self}: status {self.status:#x}')
        if not 1 <= written <= self.in_bytes + 1 or (
            self.status == OK and self.kind == IN and written <= self.in_bytes
        ):
            raise Violation(f'{self}: {written} bytes were written, says the used ring')


def segments(*ranges):
    """The data of a discard or write-zeroes request: (sector, sectors[, flags]) each."""
    return b''.join(struct.pack('<QII', *one[:2], one[2] if len(one) > 2 else 0) for one in ranges)


class Queue:
    """A virtqueue with its descriptors for kicks, calls and errors."""

    def __init__(self, memory, index, size, packed, event_idx):
        self.index = index
        self.ring = (PackedRing if packed else SplitRing)(memory, size, event_idx)
        self.kick_fd, self.call_fd, self.error_fd = (
            os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(3)
        )

    def kick(self):
        os.eventfd_write(self.kick_fd, 1)

    def calls(self):
        """How often the device has called since the last look."""
        return self.take(self.call_fd)

    def unread_kicks(self):
        """Kicks that no device has seen; they are gone then."""
        return self.take(self.kick_fd)

    @staticmethod
    def take(fd):
        try:
            return os.eventfd_read(fd)
        except BlockingIOError:
            return 0

    def close(self):
        for fd in (self.kick_fd, self.call_fd, self.error_fd):
            os.close(fd)


class Guest:
    """A virtio-blk driver. `layout` is how requests are laid out unless submit() is told otherwise: a Layout, or a function
    from the readable and writable bytes to one."""

    def __init__(
        self, path, queues=1, size=128, packed=False, indirect=True, event_idx=True, memory=None, rng=None,
        layout=Layout(), inflight=False, protocol=~0, features=~0, polling=False, share=True, start=True,
    ):  # fmt: skip
        self.path, self.protocol_mask, self.polling, self.layout = path, protocol, polling, layout
        wanted = ALL_FEATURES & ~(F.LOG_ALL | F.PACKED | F.INDIRECT | F.EVENT_IDX)
        wanted |= (
            (F.PACKED if packed else 0) | (F.INDIRECT if indirect else 0) | (F.EVENT_IDX if event_idx else 0)
        )
        self.features_mask = int(wanted) & features | int(F.VERSION_1 | F.PROTOCOL_FEATURES)
        self.packed, self.size, self.event_idx = packed, size, event_idx
        self.memory = memory or Memory.plain(rng=rng)
        self.queues = [Queue(self.memory, i, size, packed, event_idx) for i in range(queues)]
        self.wants_inflight, self.inflight = inflight, None
        self.in_flight = set()
        self.wire = None
        self.connect(share=share, start=start)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.disconnect()
        for one in [*self.queues, self.memory, *([self.inflight] if self.inflight else [])]:
            one.close()

    # the connection

    def connect(self, path=None, share=True, start=True, new=True):
        """Everything up to running queues: negotiates, shares the memory and starts the queues, as far as it is to.
        After a back end was lost, the next one goes on where it was."""
        self.path = path or self.path
        if new:
            self.wire = Wire(self.path)
        self.features, self.protocol = self.wire.negotiate(self.protocol_mask, self.features_mask)
        for name, asked in (('PACKED', self.packed), ('EVENT_IDX', self.event_idx)):
            if asked and not self.features & F[name]:
                raise Violation(f'the back end does not offer {name}')
        if self.inflight:
            self.wire.set_inflight(self.inflight)
        elif self.wants_inflight:
            self.inflight = self.wire.get_inflight(len(self.queues), self.size)
            self.wire.set_inflight(self.inflight)
        if share:
            self.share_memory()
        if start:
            for queue in self.queues:
                self.start(queue)

    def share_memory(self):
        if len(self.memory.regions) <= 8:
            self.wire.set_mem_table(self.memory)
        else:
            for region in self.memory.regions:
                self.wire.add_mem_reg(region)

    def disconnect(self):
        self.wire.close()

    def reconnect(self, path=None, bases=None):
        self.wire.close()
        self.reap()
        self.connect(path, start=False)
        for queue in self.queues:
            self.start(queue, None if bases is None else bases[queue.index])

    def start(self, queue, base=None, log=None, kick=True):
        """Starts a stopped queue; `base` as GET_VRING_BASE said, `log` the used ring's guest address in the log."""
        ring, wire, index = queue.ring, self.wire, queue.index
        wire.state(Msg.SET_VRING_NUM, index, ring.size)
        wire.state(Msg.SET_VRING_BASE, index, ring.base() if base is None else base)
        self.set_addresses(queue, log)
        wire.set_vring_fd(Msg.SET_VRING_ERR, index, queue.error_fd)
        wire.set_vring_fd(Msg.SET_VRING_CALL, index, None if self.polling else queue.call_fd)
        wire.set_vring_fd(Msg.SET_VRING_KICK, index, queue.kick_fd)
        if self.features & F.PROTOCOL_FEATURES:
            wire.state(Msg.SET_VRING_ENABLE, index, 1)
        ring.ask_for_calls(not self.polling)
        if kick:
            queue.kick()

    def set_addresses(self, queue, log=None):
        user, ring = self.memory.user, queue.ring
        self.wire.set_vring_addr(
            queue.index, user(ring.desc), user(ring.used), user(ring.avail), int(log is not None), log or 0
        )

    def stop(self, queue):
        """Stops a queue; returns its base."""
        base = self.wire.get_vring_base(queue.index)
        self.reap()
        return base

    # requests

    def submit(self, request, queue=0, layout=None, kick=True):
        """Puts a request into a ring, waiting for room there."""
        layout = layout or self.layout
        layout = layout if isinstance(layout, Layout) else layout(len(request.readable), request.in_bytes + 1)
        request.queue = self.queues[queue]
        request.place(self.memory, layout)
        ring = request.queue.ring
        while True:
            try:
                ring.add(
                    request,
                    request.buffers,
                    layout.indirect and bool(self.features & F.INDIRECT),
                    layout.direct,
                )
                break
            except RingFull:
                if not ring.outstanding:
                    request.release(self.memory)
                    raise
                self.kick(request.queue)
                self.wait_some()
        self.in_flight.add(request)
        if kick:
            self.kick(request.queue)
        return request

    def kick(self, queue):
        if queue.ring.publish():
            queue.kick()

    def reap(self):
        """Finishes what the device has used; returns those requests."""
        done = []
        for queue in self.queues:
            for request, written in queue.ring.collect():
                self.in_flight.discard(request)
                request.finish(self.memory, written)
                done.append(request)
        return done

    def wait_some(self, deadline=DEADLINE):
        """Waits until at least one request is done, by call or by polling; returns those that are."""
        end = time.monotonic() + deadline
        while True:
            for queue in self.queues:
                queue.ring.ask_for_calls(not self.polling)
            if done := self.reap():
                return done
            if time.monotonic() > end:
                raise TimeoutError(
                    f'{len(self.in_flight)} requests are not answered: {list(self.in_flight)[:8]}'
                )
            ready = readable(
                0.0005 if self.polling else max(0, end - time.monotonic()),
                self.wire,
                *(queue.call_fd for queue in self.queues),
            )
            for queue in self.queues:
                queue.calls()
            if self.wire in ready:
                if done := self.reap():
                    return done
                raise Closed(f'{len(self.in_flight)} requests are not answered')

    def wait(self, *requests):
        """Waits until these requests, or all that are in flight, are done."""
        while any(not one.done for one in requests) if requests else self.in_flight:
            self.wait_some()
        return requests

    def run(self, request, queue=0, layout=None):
        """One request from begin to end; returns it."""
        self.wait(self.submit(request, queue, layout))
        return request

    def must(self, request, queue=0, layout=None):
        """The same for one that has to succeed; returns the data it has brought."""
        self.run(request, queue, layout)
        if request.status != OK:
            raise Violation(f'{request} failed with status {request.status}')
        return request.data

    def read(self, sector, count, **how):
        return self.must(Request(IN, sector, in_bytes=count), **how)

    def write(self, sector, data, **how):
        self.must(Request(OUT, sector, data), **how)

    def flush(self, **how):
        self.must(Request(FLUSH), **how)

    def discard(self, *ranges, **how):
        self.must(Request(DISCARD, 0, segments(*ranges)), **how)

    def write_zeroes(self, *ranges, **how):
        self.must(Request(WRITE_ZEROES, 0, segments(*ranges)), **how)

    def serial(self, **how):
        return self.must(Request(GET_ID, 0, in_bytes=20), **how).split(b'\0')[0]


def export(path, node='n', ident='e', **options):
    """Command line arguments of an export; underscores in names stand for dashes."""
    more = ''.join(f',{key.replace("_", "-")}={value}' for key, value in options.items())
    return '--export', f'vhost-user-blk,id={ident},node-name={node},addr.type=unix,addr.path={path}{more}'
