# SPDX-License-Identifier: Apache-2.0
"""The client's side of the reservation helper's protocol, byte by byte, for tests.

Only what a bare Python has: this file also runs inside the test guest. Every wait has a deadline.
"""

import array
import select
import socket
import struct
import time

from lib.program import DEADLINE

CDB_BYTES, SENSE_BYTES, HEADER_BYTES = 16, 96, 104
GOOD, CHECK_CONDITION, BUSY, RESERVATION_CONFLICT = 0x00, 0x02, 0x08, 0x18
READ_KEYS, READ_RESERVATION, REPORT_CAPABILITIES, READ_FULL_STATUS = range(4)
(
    REGISTER,
    RESERVE,
    RELEASE,
    CLEAR,
    PREEMPT,
    PREEMPT_AND_ABORT,
    REGISTER_AND_IGNORE,
    REGISTER_AND_MOVE,
) = range(8)
CLEANUP_CDB = b'\xff' + bytes(15)
FEATURE_CLEANUP = 1


class Closed(Exception):
    """The helper ended the connection."""


class Silent(Exception):
    """The helper said nothing for as long as was given to it."""


def pr_in(action, allocation=512):
    """PERSISTENT RESERVE IN as 16 bytes."""
    return struct.pack('>BB5xH7x', 0x5E, action, allocation)


def pr_out(action, kind=0, length=24, scope=0):
    """PERSISTENT RESERVE OUT as 16 bytes; kind is the reservation type."""
    return struct.pack('>BBB4xH7x', 0x5F, action, scope << 4 | kind, length)


def out_list(key=0, service_key=0, flags=0):
    """The parameter list of PR OUT. Flags: 1 APTPL, 4 ALL_TG_PT, 8 SPEC_I_PT."""
    return struct.pack('>QQ4xB3x', key, service_key, flags)


def move_list(key, service_key, port, transport_id, unregister=False):
    """The parameter list of REGISTER AND MOVE."""
    return struct.pack('>QQxBHI', key, service_key, 2 * unregister, port, len(transport_id)) + transport_id


class Reply:
    """What came back for a command."""

    def __init__(self, status, sense, payload):
        self.status, self.sense, self.payload = status, sense, payload

    def check(self):
        """Sense key, ASC and ASCQ of CHECK CONDITION, or None."""
        if self.status != CHECK_CONDITION:
            return None
        if self.sense[0] & 0x7E == 0x72:  # descriptor format
            return self.sense[1] & 15, self.sense[2], self.sense[3]
        return self.sense[2] & 15, self.sense[12], self.sense[13]

    def keys(self):
        """The keys of READ KEYS data."""
        length = min(struct.unpack_from('>I', self.payload, 4)[0], len(self.payload) - 8)
        return [struct.unpack_from('>Q', self.payload, 8 + i)[0] for i in range(0, length - 7, 8)]

    def __repr__(self):
        sense = '%x/%02x/%02x' % self.check() if self.check() else 'no sense'
        return f'status {self.status:#04x}, {sense}, {len(self.payload)} bytes {self.payload[:32].hex()}'


class Connection:
    """One connection to a helper. hello=False leaves the handshake to the caller."""

    def __init__(self, path, hello=True, features=0, timeout=DEADLINE):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.timeout = timeout
        self.sock.settimeout(timeout)
        self.offered = None
        try:
            self.connect(str(path))
            if hello:
                self.hello(features)
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def connect(self, path):
        """Waits, too, while the helper has not accepted those before us."""
        end = time.monotonic() + self.timeout
        while True:
            try:
                return self.sock.connect(path)
            except BlockingIOError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.001)

    def close(self):
        self.sock.close()

    def receive(self, size, timeout=None):
        """Exactly that many bytes; Closed or Silent when they do not come."""
        data = b''
        end = time.monotonic() + (self.timeout if timeout is None else timeout)
        while len(data) < size:
            self.sock.settimeout(max(end - time.monotonic(), 0.001))
            try:
                more = self.sock.recv(size - len(data))
            except socket.timeout:
                raise Silent(f'{len(data)} of {size} bytes came') from None
            except ConnectionError as error:
                raise Closed(str(error)) from None
            if not more:
                raise Closed(f'{len(data)} of {size} bytes came')
            data += more
        return data

    def hello(self, features=0):
        """The handshake; returns what the helper offers."""
        self.offered = struct.unpack('>I', self.receive(4))[0]
        self.send(struct.pack('>I', features))
        return self.offered

    def send(self, data, fds=()):
        """Sends in one message, with descriptors or without."""
        self.sock.settimeout(self.timeout)
        control = []
        if fds:
            control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [number(fd) for fd in fds]))]
        try:
            sent = self.sock.sendmsg([data], control)
            while sent < len(data):
                sent += self.sock.send(data[sent:])
        except ConnectionError as error:
            raise Closed(str(error)) from None

    def send_bytewise(self, data, fds=None):
        """One message a byte; fds maps the position of a byte to the descriptors that ride on it."""
        for i in range(len(data)):
            self.send(data[i : i + 1], (fds or {}).get(i, ()))

    def reply(self, timeout=None):
        header = self.receive(HEADER_BYTES, timeout)
        status, size = struct.unpack_from('>II', header)
        return Reply(status, header[8:], self.receive(size, timeout))

    def command(self, cdb, fd, data=b'', timeout=None):
        """A whole command in one message."""
        self.send(cdb + data, [fd])
        return self.reply(timeout)

    def end_of_requests(self):
        """Closes the sending side only."""
        self.sock.shutdown(socket.SHUT_WR)

    def closed(self, timeout=None):
        """Whether the helper ends the connection within the time without another word."""
        try:
            self.receive(1, timeout)
        except Closed:
            return True
        except Silent:
            return False
        raise AssertionError('the helper says something instead of closing')

    def ended(self):
        """Whether the helper has ended the connection already."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return bool(poll.poll(0)) and self.closed(0.001)


def number(fd):
    return fd if isinstance(fd, int) else fd.fileno()
