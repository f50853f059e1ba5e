# SPDX-License-Identifier: Apache-2.0
"""Reservations in the guest: clients of the helper, and observers that do not use it."""

import ctypes
import fcntl
import itertools
import mmap
import os
import signal
import struct
import subprocess
import time

from lab import check, patience, run, wait
from lib import prwire
from lib.prhelper import sanitized
from lib.prwire import (  # noqa: F401 (scenarios have them from here)
    CLEAR,
    GOOD,
    PREEMPT,
    PREEMPT_AND_ABORT,
    READ_FULL_STATUS,
    READ_KEYS,
    READ_RESERVATION,
    REGISTER,
    REGISTER_AND_IGNORE,
    REGISTER_AND_MOVE,
    RELEASE,
    REPORT_CAPABILITIES,
    RESERVATION_CONFLICT,
    RESERVE,
    Connection,
)

HELPER = '/usr/bin/pr-helper'
EBADE = 52
NOBODY = 65534
# SPC-4 table 213.
TYPES = {
    1: 'write exclusive',
    3: 'exclusive access',
    5: 'write exclusive, registrants only',
    6: 'exclusive access, registrants only',
    7: 'write exclusive, all registrants',
    8: 'exclusive access, all registrants',
}


# ---- The helper under test ----


class Helper:
    """The program under test with a socket of its own; use it in `with`."""

    _numbers = itertools.count(1)

    def __init__(self, *options, program=HELPER, environment=None, prefix=(), ready=True, path=None):
        self.path = path or f'/run/helper{next(Helper._numbers)}.sock'
        self.log_path = self.path + '.log'
        self._log = open(self.log_path, 'ab')
        unfiltered = ['--no-sandbox'] if sanitized(program) else []
        self.process = subprocess.Popen(
            [*prefix, program, *unfiltered, '-k', self.path, *options],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env=dict(os.environ, **(environment or {})),
        )
        if ready:
            wait(self._answers, f'{program} does not answer: {self.log()}')

    def _answers(self):
        assert (
            self.process.poll() is None
        ), f'the helper has ended with {self.process.returncode}: {self.log()}'
        try:
            Connection(self.path, timeout=5).close()
            return True
        except (OSError, prwire.Closed):
            return False

    def log(self):
        with open(self.log_path, errors='replace') as file:
            return file.read()

    def client(self, disk, mode=os.O_RDWR, **options):
        return Client(self.path, disk, mode, **options)

    def stop(self, deadline=15):
        """SIGTERM; returns the seconds until it has ended, with status 0."""
        begin = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(patience(deadline))
        assert status == 0, f'the helper ended with {status}: {self.log()}'
        return time.monotonic() - begin

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if self.process.poll() is None:
            if kind:
                self.process.kill()
            else:
                self.stop()
        self._log.close()
        if kind:
            print('--- the helper said:\n' + self.log()[-3000:], flush=True)


class Client:
    """A connection and an open disk: each method is a command and returns its Reply."""

    def __init__(self, path, disk, mode=os.O_RDWR, timeout=60):
        self.connection = Connection(path, timeout=patience(timeout))
        self.fd = (
            os.open(disk, mode | os.O_NONBLOCK | os.O_CLOEXEC) if isinstance(disk, str) else os.dup(disk)
        )
        self.disk = disk

    def close(self):
        self.connection.close()
        os.close(self.fd)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def input(self, action, allocation=8192, timeout=None):
        return self.connection.command(prwire.pr_in(action, allocation), self.fd, timeout=timeout)

    def output(self, action, key=0, service_key=0, kind=0, flags=0, parameters=None, timeout=None):
        data = prwire.out_list(key, service_key, flags) if parameters is None else parameters
        return self.connection.command(prwire.pr_out(action, kind, len(data)), self.fd, data, timeout=timeout)

    def keys(self):
        """(generation, keys)"""
        payload = good(self.input(READ_KEYS)).payload
        generation, length = struct.unpack_from('>II', payload)
        assert len(payload) == 8 + length, payload.hex()
        return generation, sorted(struct.unpack(f'>{length // 8}Q', payload[8:]))

    def reservation(self):
        """(key, type) or None"""
        payload = good(self.input(READ_RESERVATION)).payload
        _, length = struct.unpack_from('>II', payload)
        assert len(payload) == 8 + length and length in (0, 16), payload.hex()
        if not length:
            return None
        key, scope_type = struct.unpack_from('>Q5xB', payload, 8)
        assert scope_type >> 4 == 0 and payload[22:] == b'\0\0', payload.hex()
        return key, scope_type & 15

    def full_status(self):
        """[(key, holds, type, relative target port, TransportID)]"""
        payload = good(self.input(READ_FULL_STATUS)).payload
        _, length = struct.unpack_from('>II', payload)
        assert len(payload) == 8 + length, payload.hex()
        found, at = [], 8
        while at < len(payload):
            key, flags, kind, port, size = struct.unpack_from('>Q4xBB4xHI', payload, at)
            found.append((key, bool(flags & 1), kind & 15, port, payload[at + 24 : at + 24 + size]))
            at += 24 + size
        assert at == len(payload), payload.hex()
        return found

    def register(self, service_key, key=0, **more):
        return self.output(REGISTER, key, service_key, **more)

    def register_and_ignore(self, service_key, **more):
        return self.output(REGISTER_AND_IGNORE, 0, service_key, **more)

    def reserve(self, key, kind):
        return self.output(RESERVE, key, 0, kind)

    def release(self, key, kind):
        return self.output(RELEASE, key, 0, kind)

    def clear(self, key):
        return self.output(CLEAR, key)

    def preempt(self, key, victim, kind, abort=False, **more):
        return self.output(PREEMPT_AND_ABORT if abort else PREEMPT, key, victim, kind, **more)


def good(reply):
    assert reply.status == GOOD, reply
    assert reply.sense == bytes(96), reply.sense.hex()
    return reply


def conflict(reply):
    """RESERVATION CONFLICT: no sense, no payload."""
    assert reply.status == RESERVATION_CONFLICT, reply
    assert reply.sense == bytes(96) and reply.payload == b'', reply
    return reply


def sense(reply, key, asc, ascq):
    assert reply.check() == (key, asc, ascq), f'{reply}, not {key:x}/{asc:02x}/{ascq:02x}'
    assert reply.payload == b'', reply
    return reply


def attention(client, ascq):
    """The next command of this nexus reports the unit attention 2a/ascq, the one behind it does not."""
    sense(client.input(READ_KEYS), 6, 0x2A, ascq)
    good(client.input(READ_KEYS))


# ---- Observers without the helper ----


class _SgIo(ctypes.Structure):
    _fields_ = [
        ('interface', ctypes.c_int), ('direction', ctypes.c_int), ('cdb_len', ctypes.c_ubyte),
        ('sense_len', ctypes.c_ubyte), ('iovec_count', ctypes.c_ushort), ('data_len', ctypes.c_uint),
        ('data', ctypes.c_void_p), ('cdb', ctypes.c_void_p), ('sense', ctypes.c_void_p),
        ('timeout', ctypes.c_uint), ('flags', ctypes.c_uint), ('pack_id', ctypes.c_int),
        ('user', ctypes.c_void_p), ('status', ctypes.c_ubyte), ('masked', ctypes.c_ubyte),
        ('message', ctypes.c_ubyte),
        ('sense_written', ctypes.c_ubyte), ('host_status', ctypes.c_ushort),
        ('driver_status', ctypes.c_ushort), ('residual', ctypes.c_int), ('duration', ctypes.c_uint),
        ('info', ctypes.c_uint),
    ]  # fmt: skip


def scsi(disk, cdb, data=b'', read=0, timeout_ms=20000):
    """A SCSI command straight to the device: (status, sense, data)."""
    buffer = ctypes.create_string_buffer(bytes(data) if data else bytes(read), max(len(data) or read, 1))
    command, sense_buffer = ctypes.create_string_buffer(bytes(cdb), len(cdb)), ctypes.create_string_buffer(64)
    header = _SgIo(
        interface=ord('S'),
        direction=-2 if data else -3 if read else -1,
        cdb_len=len(cdb),
        sense_len=64,
        data_len=len(data) or read,
        data=ctypes.addressof(buffer),
        cdb=ctypes.addressof(command),
        sense=ctypes.addressof(sense_buffer),
        timeout=timeout_ms,
    )
    fd = os.open(disk, os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.ioctl(fd, 0x2285, header)
    finally:
        os.close(fd)
    assert header.host_status == 0, f'host status {header.host_status}'
    return (
        header.status,
        sense_buffer.raw[: header.sense_written],
        buffer.raw[: read - header.residual] if read else b'',
    )


def keys_of(disk):
    """Keys as the device itself says."""
    status, _, payload = scsi(disk, prwire.pr_in(READ_KEYS, 8192)[:10], read=8192)
    assert status == 0, f'READ KEYS: status {status}'
    return sorted(struct.unpack_from(f'>{(len(payload) - 8) // 8}Q', payload, 8))


def sg_keys(disk):
    """Keys as sg_persist prints them."""
    lines = run('sg_persist', '--in', '--read-keys', disk).stdout.splitlines()
    return sorted(int(line.strip(), 16) for line in lines if line.strip().startswith('0x'))


def quiet(disk):
    """Takes the unit attentions of a nexus away."""
    for _ in range(10):
        if scsi(disk, bytes(6))[0] == 0:
            return
    raise AssertionError(f'{disk} does not become ready')


def reset(*luns):
    """No keys, no reservation, no unit attentions on these LUNs."""
    for lun in luns:
        quiet(lun.x.disk)
        quiet(lun.y.disk)
        if keys_of(lun.x.disk):
            register, clear = prwire.pr_out(REGISTER_AND_IGNORE)[:10], prwire.pr_out(CLEAR)[:10]
            # The target insists on the flag ALL_TG_PT where the key was registered with it.
            any(scsi(lun.x.disk, register, prwire.out_list(0, 0xC1EA, flags))[0] == 0 for flags in (0, 4))
            status, said, _ = scsi(lun.x.disk, clear, prwire.out_list(0xC1EA))
            assert status == 0, f'cannot clear {lun.name}: status {status} {said.hex()}'
            quiet(lun.x.disk)
            quiet(lun.y.disk)
        assert keys_of(lun.y.disk) == []


def _direct(disk, flags, function):
    """0 or the errno of a direct transfer of one block of 4 KiB."""
    fd = os.open(disk, flags | os.O_DIRECT)
    try:
        with mmap.mmap(-1, 4096) as buffer:
            function(fd, buffer)
        return 0
    except OSError as error:
        return error.errno
    finally:
        os.close(fd)


def can_read(disk, at=8192):
    error = _direct(disk, os.O_RDONLY, lambda fd, buffer: os.preadv(fd, [buffer], at))
    assert error in (0, EBADE), os.strerror(error)
    return error == 0


def can_write(disk, at=8192):
    error = _direct(disk, os.O_WRONLY, lambda fd, buffer: os.pwritev(fd, [buffer], at))
    assert error in (0, EBADE), os.strerror(error)
    return error == 0


def fenced(disk):
    """(can read, can write)"""
    return can_read(disk), can_write(disk)


def dd_writes(disk):
    done = run(
        'dd', 'if=/dev/zero', f'of={disk}', 'bs=4096', 'count=1', 'oflag=direct', 'conv=notrunc', ok=None
    )
    return done.returncode == 0


def check_each_type(scenario):
    """A check for each type of reservation: scenario(type)."""
    for kind, name in TYPES.items():

        def one(kind=kind):
            scenario(kind)

        one.__name__ = 'reserve_' + name.replace(',', '').replace(' ', '_')
        check(one)
