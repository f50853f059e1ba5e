# SPDX-License-Identifier: Apache-2.0
"""A reservation helper in a thread, for tests of its clients: a good one over a simulated disk, or a bad one.

    with FakeHelper(path, script) as helper: ...

`script(peer)` is the conversation on one connection; when it returns or its peer leaves, the connection is
closed. Conversations are `behave(target)` for a good helper and the smaller functions below, or made of the
methods of Peer. Every wait ends when the helper is stopped. What clients have sent is in `helper.requests`,
counted connections in `helper.accepted`.
"""

import array
import fcntl
import os
import select
import socket
import struct
import threading

from lib.prwire import (
    CDB_BYTES,
    CHECK_CONDITION,
    GOOD,
    READ_FULL_STATUS,
    READ_KEYS,
    READ_RESERVATION,
    REGISTER,
    REGISTER_AND_IGNORE,
    REGISTER_AND_MOVE,
    REPORT_CAPABILITIES,
    RESERVATION_CONFLICT,
    SENSE_BYTES,
)
from lib.qmp import DEADLINE
from lib.tools import wait_until

IN, OUT, CLEANUP = 0x5E, 0x5F, 0xFF


class PeerGone(Exception):
    """The client has closed the connection, or the test is over."""


def sense(key, asc, ascq):
    """Fixed-format sense data."""
    return bytes([0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, asc, ascq, 0, 0, 0, 0])


def reply_bytes(status=GOOD, payload=b'', sense_data=b'', size=None):
    """A reply; `size` lies about the payload's length."""
    return (
        struct.pack('>II', status, len(payload) if size is None else size)
        + sense_data.ljust(SENSE_BYTES, b'\0')
        + payload
    )


class Request:
    """A command as it came. `disk` is (device, inode) behind its descriptor, `flags` how that is open."""

    def __init__(self, cdb, data, fd):
        status = os.fstat(fd)
        self.cdb, self.data, self.disk = cdb, data, (status.st_dev, status.st_ino)
        self.flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        self.opcode, self.action, self.type = cdb[0], cdb[1] & 0x1F, cdb[2] & 0x0F
        self.length = struct.unpack('>H', cdb[7:9])[0]

    def keys(self):
        """Reservation key and service action reservation key of a parameter list."""
        return struct.unpack('>QQ', self.data[:16])


class Peer:
    """One connection, seen from the helper."""

    def __init__(self, helper, sock):
        self.helper, self.sock = helper, sock
        self.features = None  # what the client has asked for
        self.fds = []

    def wait_readable(self):
        ready = select.select([self.sock, self.helper.stop_fd], [], [], DEADLINE)[0]
        if self.sock not in ready:
            raise PeerGone('the test is over' if ready else 'silent client')

    def read(self, count):
        """Exactly that many bytes; descriptors that come along are kept."""
        data = b''
        while len(data) < count:
            self.wait_readable()
            room = socket.CMSG_SPACE(8 * array.array('i').itemsize)
            part, control, _, _ = self.sock.recvmsg(count - len(data), room)
            for level, kind, value in control:
                assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
                self.fds += array.array('i', value[: len(value) - len(value) % 4])
            if not part:
                raise PeerGone('closed')
            data += part
        return data

    def send(self, data, piece=None):
        """All of it, on request in pieces of so many bytes, each in a packet of its own."""
        for at in range(0, len(data), piece or max(len(data), 1)):
            self.sock.sendall(data[at : at + piece] if piece else data)

    def hello(self, features=0, piece=None):
        """Shakes hands; the client must not ask for more than is offered."""
        self.send(struct.pack('>I', features), piece)
        self.features = struct.unpack('>I', self.read(4))[0]
        assert self.features & ~features == 0, f'client asks for {self.features:#x}'

    def request(self):
        """The next command, with its parameter list; exactly one descriptor must have come with it."""
        cdb = self.read(CDB_BYTES)
        length = struct.unpack('>H', cdb[7:9])[0]
        data = self.read(length) if cdb[0] == OUT else b''
        assert len(self.fds) == 1, f'{len(self.fds)} descriptors'
        fd = self.fds.pop()
        request = Request(cdb, data, fd)
        os.close(fd)
        self.helper.requests.append(request)
        return request

    def reply(self, status=GOOD, payload=b'', sense_data=b'', size=None, piece=None):
        self.send(reply_bytes(status, payload, sense_data, size), piece)

    def hang(self):
        """Until the client leaves or the test is over."""
        while True:
            self.wait_readable()
            if not self.sock.recv(4096):
                raise PeerGone('closed')

    def close(self):
        for fd in self.fds:
            os.close(fd)
        self.fds = []
        self.sock.close()


class FakeHelper:
    """Listens at a path and serves each connection in a thread with script(peer)."""

    def __init__(self, path, script, backlog=16):
        self.path, self.script = str(path), script
        self.requests, self.accepted, self.failures = [], 0, []
        self.peers = []
        self.threads = []
        self.lock = threading.Lock()
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(self.path)
        self.listener.listen(backlog)
        self.stop_fd = os.eventfd(0)
        self.accepting = None

    def start(self):
        self.accepting = threading.Thread(target=self.accept, daemon=True)
        self.accepting.start()
        return self

    __enter__ = start

    def accept(self):
        while True:
            ready = select.select([self.listener, self.stop_fd], [], [])[0]
            if self.stop_fd in ready:
                return
            peer = Peer(self, self.listener.accept()[0])
            thread = threading.Thread(target=self.serve, args=(peer,), daemon=True)
            with self.lock:
                self.accepted += 1
                self.peers.append(peer)
                self.threads.append(thread)
            thread.start()

    def serve(self, peer):
        try:
            self.script(peer)
        except (PeerGone, ConnectionError):
            pass
        except Exception as error:  # reported by stop()
            self.failures.append(repr(error))
        finally:
            with self.lock:
                self.peers.remove(peer)
                peer.close()

    def disconnect(self):
        """Ends all connections, as a helper that dies; it still listens."""
        with self.lock:
            for peer in self.peers:
                peer.sock.shutdown(socket.SHUT_RDWR)
        self.wait_connections(0)

    def wait_connections(self, count):
        wait_until(lambda: len(self.peers) == count, f'{count} connections')

    def wait_requests(self, count):
        wait_until(lambda: len(self.requests) >= count, f'{count} requests')
        return self.requests

    def stop(self):
        """Ends the helper and its socket. Fails when a conversation has."""
        os.eventfd_write(self.stop_fd, 1)
        if self.accepting:
            self.accepting.join(DEADLINE)
        for thread in self.threads:
            thread.join(DEADLINE)
            assert not thread.is_alive(), 'a conversation hangs'
        self.listener.close()
        if os.path.exists(self.path):
            os.unlink(self.path)
        os.close(self.stop_fd)
        assert not self.failures, '\n'.join(self.failures)

    def __exit__(self, kind, value, trace):
        self.stop()


class Target:
    """A logical unit's reservations as SPC-4 wants them, for any number of nexuses. Threads may share it."""

    ALL_REGISTRANTS = (7, 8)
    REGISTRANTS_ONLY = (5, 6)

    def __init__(self):
        self.lock = threading.Lock()
        self.generation = 0
        self.keys = {}  # nexus -> key
        self.holder, self.type = None, 0
        self.attentions = {}  # nexus -> list of (asc, ascq)
        self.full_status = True
        self.aptpl = False

    def attention(self, nexus, asc, ascq):
        self.attentions.setdefault(nexus, []).append((asc, ascq))

    def execute(self, nexus, request):
        """(status, payload, sense data) of a command over that nexus."""
        with self.lock:
            waiting = self.attentions.get(nexus)
            if waiting:
                return CHECK_CONDITION, b'', sense(6, *waiting.pop(0))
            if request.opcode == IN:
                return self.read(request)
            return self.change(nexus, request)

    def illegal(self, asc):
        return CHECK_CONDITION, b'', sense(5, asc, 0)

    def holds(self, nexus):
        return self.type in self.ALL_REGISTRANTS or nexus == self.holder

    def transport_id(self, nexus):
        name = f'iqn.2026-01.org.example:{nexus}'.encode() + b'\0'
        name = name.ljust(-(-len(name) // 4) * 4, b'\0')
        return struct.pack('>BBH', 0x05, 0, len(name)) + name

    def read(self, request):
        if request.action == READ_KEYS:
            data = b''.join(struct.pack('>Q', key) for key in self.keys.values())
        elif request.action == READ_RESERVATION:
            key = 0 if self.type in self.ALL_REGISTRANTS else self.keys.get(self.holder, 0)
            data = struct.pack('>QIBBH', key, 0, 0, self.type, 0) if self.type else b''
        elif request.action == REPORT_CAPABILITIES:
            capabilities = struct.pack('>HBBHH', 8, 0x1D, 0x80 | self.aptpl, 0xEA01, 0)
            return GOOD, capabilities[: request.length], b''
        elif request.action == READ_FULL_STATUS and self.full_status:
            data = b''
            for nexus, key in self.keys.items():
                ident = self.transport_id(nexus)
                held = self.type and self.holds(nexus)
                data += struct.pack(
                    '>QIBBIHI', key, 0, 1 if held else 0, self.type if held else 0, 0, 1, len(ident)
                )
                data += ident
        elif request.action == READ_FULL_STATUS:
            return self.illegal(0x20)
        else:
            return self.illegal(0x24)
        if request.length < 8:
            return self.illegal(0x24)
        data = struct.pack('>II', self.generation, len(data)) + data
        return GOOD, data[: request.length], b''

    def change(self, nexus, request):
        if len(request.data) < 24:
            return self.illegal(0x1A)
        key, service_key = request.keys()
        if request.action in (REGISTER, REGISTER_AND_IGNORE):
            if request.action == REGISTER and key != self.keys.get(nexus, 0):
                return RESERVATION_CONFLICT, b'', b''
            self.aptpl = bool(request.data[20] & 1)
            self.set_key(nexus, service_key)
            return GOOD, b'', b''
        if key != self.keys.get(nexus) or request.action > REGISTER_AND_MOVE:
            return RESERVATION_CONFLICT, b'', b''
        return getattr(self, f'change_{request.action}')(nexus, request, service_key)

    def set_key(self, nexus, key):
        self.generation += 1
        if key:
            self.keys[nexus] = key
            return
        self.keys.pop(nexus, None)
        if self.holder == nexus:
            self.free()
        if not self.keys:
            self.free()

    def free(self):
        self.holder, self.type = None, 0

    def change_1(self, nexus, request, service_key):
        if not 1 <= request.type <= 8 or request.type in (2, 4):
            return self.illegal(0x24)
        if self.type and not (self.holds(nexus) and self.type == request.type):
            return RESERVATION_CONFLICT, b'', b''
        self.holder, self.type = nexus, request.type
        return GOOD, b'', b''

    def change_2(self, nexus, request, service_key):
        if self.type and self.holds(nexus):
            if request.type != self.type:
                return CHECK_CONDITION, b'', sense(5, 0x26, 0x04)
            kind = self.type
            self.free()
            if kind in self.REGISTRANTS_ONLY + self.ALL_REGISTRANTS:
                for other in self.keys:
                    if other != nexus:
                        self.attention(other, 0x2A, 0x04)
        return GOOD, b'', b''

    def change_3(self, nexus, request, service_key):
        for other in self.keys:
            if other != nexus:
                self.attention(other, 0x2A, 0x03)
        self.keys = {}
        self.free()
        self.generation += 1
        return GOOD, b'', b''

    def change_4(self, nexus, request, service_key):
        victims = [n for n, key in self.keys.items() if key == service_key]
        if not victims:
            return RESERVATION_CONFLICT, b'', b''
        takes = self.type and self.holder in victims
        for victim in victims:
            if victim != nexus:
                del self.keys[victim]
                self.attention(victim, 0x2A, 0x05)
        if takes:
            self.holder, self.type = nexus, request.type
        self.generation += 1
        return GOOD, b'', b''

    change_5 = change_4

    def change_7(self, nexus, request, service_key):
        if self.holder != nexus:
            return RESERVATION_CONFLICT, b'', b''
        length = struct.unpack('>I', request.data[20:24])[0]
        wanted = request.data[24 : 24 + length]
        for other in list(self.keys):
            if self.transport_id(other) == wanted:
                self.holder = other
                self.keys[other] = service_key
                if request.data[17] & 2:
                    self.keys.pop(nexus)
                self.generation += 1
                return GOOD, b'', b''
        return self.illegal(0x26)


# ---- Conversations ----


def behave(target, nexus='a', features=0, piece=None, before=None):
    """A helper as it should be. `before(peer, request)` may answer in its place by returning True."""

    def script(peer):
        peer.hello(features, piece)
        while True:
            request = peer.request()
            if before and before(peer, request):
                continue
            if request.opcode == CLEANUP:
                peer.reply(piece=piece)
                continue
            status, payload, sense_data = target.execute(nexus, request)
            peer.reply(status, payload, sense_data, piece=piece)

    return script


def never_hello(peer):
    """Accepts and says nothing."""
    peer.hang()


def half_hello(peer):
    """Two bytes of the features, then nothing."""
    peer.send(b'\0\0')
    peer.hang()


def refuse(peer):
    """Closes without a hello."""


def answer(data, features=0, then=None, piece=None):
    """Whatever is asked, these bytes come back; then closes, or does `then(peer)`."""

    def script(peer):
        peer.hello(features)
        peer.request()
        peer.send(data, piece)
        if then:
            then(peer)

    return script


def never_answer(peer):
    """Takes a command and does not answer."""
    peer.hello()
    peer.request()
    peer.hang()


def close_after(what):
    """Closes after 'hello', 'features', so many bytes of the CDB, or 'cdb', 'list' (complete)."""

    def script(peer):
        peer.send(b'\0\0\0\0')
        if what == 'hello':
            return
        peer.read(4)
        if what == 'features':
            return
        if isinstance(what, int):
            peer.read(what)
            return
        cdb = peer.read(CDB_BYTES)
        if what == 'list' and cdb[0] == OUT:
            peer.read(struct.unpack('>H', cdb[7:9])[0])

    return script


def wait_for(event, script):
    """The conversation begins when the event is set: a late hello."""

    def late(peer):
        while not event.wait(0.05):
            if select.select([peer.helper.stop_fd], [], [], 0)[0]:
                raise PeerGone('the test is over')
        script(peer)

    return late
