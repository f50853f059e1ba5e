# SPDX-License-Identifier: Apache-2.0
"""The NBD protocol by hand, for tests that need to break it or to see every byte of an answer.

Source: the NBD protocol document (doc/proto.md of the nbd project). All numbers are big endian.
"""

import socket
import struct

from lib.qmp import DEADLINE

NBDMAGIC = 0x4E42444D41474943
IHAVEOPT = 0x49484156454F5054
REPLY_MAGIC = 0x3E889045565A9
REQUEST_MAGIC = 0x25609513
EXTENDED_REQUEST_MAGIC = 0x21E41C71
SIMPLE_REPLY = 0x67446698
STRUCTURED_REPLY = 0x668E33EF
EXTENDED_REPLY = 0x6E8A278C

OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_STARTTLS, OPT_INFO, OPT_GO = 1, 2, 3, 5, 6, 7
OPT_STRUCTURED, OPT_LIST_META, OPT_SET_META, OPT_EXTENDED = 8, 9, 10, 11
REP_ACK, REP_SERVER, REP_INFO, REP_META = 1, 2, 3, 4
REP_ERROR = 1 << 31
REP_NAMES = {
    1: 'ACK',
    2: 'SERVER',
    3: 'INFO',
    4: 'META_CONTEXT',
    REP_ERROR + 1: 'ERR_UNSUP',
    REP_ERROR + 2: 'ERR_POLICY',
    REP_ERROR + 3: 'ERR_INVALID',
    REP_ERROR + 4: 'ERR_PLATFORM',
    REP_ERROR + 5: 'ERR_TLS_REQD',
    REP_ERROR + 6: 'ERR_UNKNOWN',
    REP_ERROR + 7: 'ERR_SHUTDOWN',
    REP_ERROR + 8: 'ERR_BLOCK_SIZE_REQD',
    REP_ERROR + 9: 'ERR_TOO_BIG',
    REP_ERROR + 10: 'ERR_EXT_HEADER_REQD',
}
CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH, CMD_TRIM, CMD_CACHE, CMD_ZEROES, CMD_STATUS = 0, 1, 2, 3, 4, 5, 6, 7
FLAG_FUA, FLAG_NO_HOLE, FLAG_DF, FLAG_REQ_ONE, FLAG_FAST_ZERO, FLAG_PAYLOAD = 1, 2, 4, 8, 16, 32
CHUNK_NONE, CHUNK_DATA, CHUNK_HOLE, CHUNK_STATUS, CHUNK_STATUS_EXT = 0, 1, 2, 5, 6
CHUNK_ERROR, CHUNK_ERROR_OFFSET = 32769, 32770


class Closed(Exception):
    """The server closed the connection."""


def text(value):
    """A 32-bit length and the bytes, as strings inside options are written."""
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack('>I', len(data)) + data


def info_payload(name, *requests):
    """The payload of OPT_INFO and OPT_GO."""
    return text(name) + struct.pack('>H', len(requests)) + b''.join(struct.pack('>H', r) for r in requests)


def meta_payload(name, *queries):
    """The payload of OPT_LIST_META_CONTEXT and OPT_SET_META_CONTEXT."""
    return text(name) + struct.pack('>I', len(queries)) + b''.join(text(q) for q in queries)


class Wire:
    """A connection to an NBD server; nothing is sent that a test did not ask for."""

    def __init__(self, address, timeout=DEADLINE):
        family = socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        self.sock.settimeout(timeout)
        self.sock.connect(address if isinstance(address, tuple) else str(address))
        self.extended = False
        self.cookie = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()

    def close(self):
        self.sock.close()

    def send(self, data):
        try:
            self.sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            raise Closed from None

    def recv(self, count):
        data = b''
        while len(data) < count:
            try:
                more = self.sock.recv(count - len(data))
            except ConnectionResetError:
                more = b''
            if not more:
                raise Closed(f'{len(data)} of {count} bytes')
            data += more
        return data

    def recv_fields(self, layout):
        return struct.unpack(layout, self.recv(struct.calcsize(layout)))

    def greeting(self, client_flags=3):
        """Reads the server's greeting, answers with these flags (None: nothing), returns the server's flags."""
        magic, opt_magic, flags = self.recv_fields('>QQH')
        assert (magic, opt_magic) == (NBDMAGIC, IHAVEOPT)
        if client_flags is not None:
            self.send(struct.pack('>I', client_flags))
        return flags

    def send_option(self, option, payload=b'', length=None, magic=IHAVEOPT):
        self.send(struct.pack('>QII', magic, option, len(payload) if length is None else length) + payload)

    def option_reply(self):
        magic, option, kind, length = self.recv_fields('>QIII')
        assert magic == REPLY_MAGIC, hex(magic)
        return option, kind, self.recv(length)

    def option(self, option, payload=b'', **fields):
        """Sends an option, returns its replies [(kind, payload)] up to the final one."""
        self.send_option(option, payload, **fields)
        replies = []
        while True:
            _, kind, data = self.option_reply()
            replies.append((kind, data))
            if kind == REP_ACK or kind & REP_ERROR:
                return replies

    def go(self, name, *requests):
        """OPT_GO; returns (size, transmission flags)."""
        replies = self.option(OPT_GO, info_payload(name, *requests))
        assert replies[-1][0] == REP_ACK, replies
        for kind, data in replies:
            if kind == REP_INFO and data[:2] == b'\0\0':
                return struct.unpack('>QH', data[2:])
        raise AssertionError('no export information')

    def structured(self):
        assert self.option(OPT_STRUCTURED) == [(REP_ACK, b'')]

    def extended_headers(self):
        assert self.option(OPT_EXTENDED) == [(REP_ACK, b'')]
        self.extended = True

    def set_meta(self, name, *queries):
        """OPT_SET_META_CONTEXT; returns {context name: id}."""
        replies = self.option(OPT_SET_META, meta_payload(name, *queries))
        assert replies[-1][0] == REP_ACK, replies
        return {data[4:].decode(): struct.unpack('>I', data[:4])[0] for _, data in replies[:-1]}

    def send_request(self, command, offset=0, length=0, flags=0, payload=b'', cookie=None, magic=None):
        if cookie is None:
            self.cookie += 1
            cookie = self.cookie
        if self.extended:
            self.send(
                struct.pack(
                    '>IHHQQQ', magic or EXTENDED_REQUEST_MAGIC, flags, command, cookie, offset, length
                )
                + payload
            )
        else:
            self.send(
                struct.pack('>IHHQQI', magic or REQUEST_MAGIC, flags, command, cookie, offset, length)
                + payload
            )
        return cookie

    def reply_piece(self):
        """One simple reply header or one chunk: ('simple', error, cookie) or ('chunk', flags, kind, cookie, data)."""
        (magic,) = self.recv_fields('>I')
        if magic == SIMPLE_REPLY:
            error, cookie = self.recv_fields('>IQ')
            return 'simple', error, cookie
        if magic == STRUCTURED_REPLY:
            flags, kind, cookie, length = self.recv_fields('>HHQI')
        else:
            assert magic == EXTENDED_REPLY, hex(magic)
            flags, kind, cookie, _, length = self.recv_fields('>HHQQQ')
        return 'chunk', flags, kind, cookie, self.recv(length)

    def reply(self, read_length=0):
        """A whole answer as a list of pieces; a successful simple reply is followed by read_length bytes of data."""
        pieces = []
        while True:
            piece = self.reply_piece()
            pieces.append(piece)
            if piece[0] == 'simple':
                if piece[1] == 0 and read_length:
                    pieces.append(('data', self.recv(read_length)))
                return pieces
            if piece[1] & 1:
                return pieces

    def request(self, command, offset=0, length=0, flags=0, payload=b''):
        """A request and its whole answer."""
        self.send_request(command, offset, length, flags, payload)
        return self.reply(length if command == CMD_READ else 0)

    def error_of(self, pieces):
        """The error number of an answer, 0 for success."""
        for piece in pieces:
            if piece[0] == 'simple':
                return piece[1]
            if piece[0] == 'chunk' and piece[2] & 0x8000:
                return struct.unpack('>I', piece[4][:4])[0]
        return 0

    def at_eof(self):
        """True when the server has closed; reads and drops what it still had sent."""
        try:
            while self.sock.recv(65536):
                pass
        except ConnectionResetError:
            pass
        return True


def connect(path, name, structured=True, contexts=()):
    """A connection in transmission phase."""
    wire = Wire(path)
    wire.greeting()
    if structured:
        wire.structured()
    if contexts:
        wire.set_meta(name, *contexts)
    wire.size, wire.flags = wire.go(name)
    return wire
