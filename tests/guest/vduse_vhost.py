# SPDX-License-Identifier: Apache-2.0
"""VDUSE with a driver outside of the kernel: vhost-vdpa, as a virtual machine has it. The driver is this script, so that rings
of its choice, memory that comes and goes, and broken rules can be tried.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import select
import struct
import subprocess

from lab import check, main, modprobe, read, run, wait
from lib.qmp import Qmp

NAME = 'granary0'
IMAGE = '/run/disk.raw'
DISK_BYTES = 1 << 20
LOG = '/run/daemon.log'

# Linux include/uapi/linux/vhost.h
WRITE, READ = 1, 2
SET_OWNER, SET_FEATURES, GET_FEATURES = (0, 0x01, 0), (WRITE, 0x00, 8), (READ, 0x00, 8)
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE = (WRITE, 0x10, 8), (WRITE, 0x11, 40), (WRITE, 0x12, 8)
GET_VRING_BASE = (READ | WRITE, 0x12, 8)
SET_VRING_KICK, SET_VRING_CALL = (WRITE, 0x20, 8), (WRITE, 0x21, 8)
SET_BACKEND_FEATURES, GET_STATUS, SET_STATUS = (WRITE, 0x25, 8), (READ, 0x71, 1), (WRITE, 0x72, 1)
SET_VRING_ENABLE = (WRITE, 0x75, 8)
IOTLB_MSG_V2, IOTLB_UPDATE, IOTLB_INVALIDATE = 2, 2, 3

VERSION_1, ACCESS_PLATFORM, FLUSH, EVENT_IDX, INDIRECT, PACKED = 32, 33, 9, 29, 28, 34
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK = 1, 2, 4, 8
IN, OUT, T_FLUSH = 0, 1, 4
NEXT, WRITABLE, IS_INDIRECT = 1, 2, 4

RING_ENTRIES = 64
RINGS = 0x100000  # guest addresses
AVAILABLE, USED = RINGS + 0x1000, RINGS + 0x2000
SLOTS = 0x200000  # of requests: header, status byte, table, data
SLOT_BYTES = 0x2000
SLOT_COUNT = 16
EXTRA = 0x40000000  # memory that comes later


class Daemon:
    def __init__(self):
        pid = '/run/daemon.pid'
        if os.path.exists(pid):
            os.unlink(pid)
        with open(LOG, 'ab') as log:
            self.process = subprocess.Popen(
                ['/usr/bin/qemu-storage-daemon', '--pidfile', pid, '--chardev', 'socket,id=qmp,path=/run/qmp,server=on,wait=off',
                 '--monitor', 'chardev=qmp', '--blockdev', f'file,node-name=disk,filename={IMAGE}',
                 '--export', f'vduse-blk,id=export,node-name=disk,name={NAME},writable=on,queue-size={RING_ENTRIES}'],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # fmt: skip
        wait(lambda: os.path.exists(pid) or self.process.poll() is not None, 'the pid file', 60)
        assert self.process.poll() is None, read(LOG)
        self.qmp = Qmp.connect('/run/qmp')

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.qmp.close()


class Memory:
    """Shared pages that the device sees at a guest address."""

    def __init__(self, guest, size):
        self.guest, self.size = guest, size
        fd = os.memfd_create('memory')
        os.ftruncate(fd, size)
        self.map = mmap.mmap(fd, size)
        os.close(fd)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.map))

    def put(self, guest, data):
        self.map[guest - self.guest : guest - self.guest + len(data)] = data

    def get(self, guest, size):
        return self.map[guest - self.guest : guest - self.guest + size]


class Device:
    def __init__(self, *features):
        self.fd = os.open('/dev/vhost-vdpa-0', os.O_RDWR)
        self.features = {VERSION_1, ACCESS_PLATFORM, FLUSH, *features}
        self.memory = Memory(RINGS, SLOTS - RINGS + SLOT_COUNT * SLOT_BYTES)
        self.call, self.kick = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0)
        self.submitted = 0
        self.ioctl(SET_OWNER)
        self.ioctl(SET_BACKEND_FEATURES, struct.pack('Q', 1 << 1))
        self.add_memory(self.memory)  # a reset takes nothing away
        self.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for fd in (self.fd, self.call, self.kick):
            os.close(fd)

    def ioctl(self, request, data=b''):
        direction, number, size = request
        assert len(data) == size
        code = direction << 30 | size << 16 | 0xAF << 8 | number
        return fcntl.ioctl(self.fd, code, data) if size else fcntl.ioctl(self.fd, code)

    def start(self):
        self.set_status(0)
        self.submitted = 0
        self.memory.put(RINGS, bytes(USED + 0x1000 - RINGS))
        for status in (ACKNOWLEDGE, DRIVER):
            self.set_status(status)
        self.ioctl(SET_FEATURES, struct.pack('Q', sum(1 << bit for bit in self.features)))
        self.set_status(FEATURES_OK)
        assert self.status() & FEATURES_OK
        self.ioctl(SET_VRING_NUM, struct.pack('II', 0, RING_ENTRIES))
        self.ioctl(SET_VRING_ADDR, struct.pack('IIQQQQ', 0, 0, RINGS, USED, AVAILABLE, 0))
        self.ioctl(SET_VRING_BASE, struct.pack('II', 0, 0))
        self.ioctl(SET_VRING_KICK, struct.pack('Ii', 0, self.kick))
        self.ioctl(SET_VRING_CALL, struct.pack('Ii', 0, self.call))
        self.ioctl(SET_VRING_ENABLE, struct.pack('II', 0, 1))
        self.set_status(DRIVER_OK)

    def status(self):
        return self.ioctl(GET_STATUS, b'\0')[0]

    def set_status(self, bit):
        self.ioctl(SET_STATUS, bytes([self.status() | bit if bit else 0]))

    def tell_iotlb(self, kind, guest, size, address):
        os.write(
            self.fd, struct.pack('IIQQQBB6x', IOTLB_MSG_V2, 0, guest, size, address, 3, kind).ljust(72, b'\0')
        )

    def add_memory(self, memory):
        self.tell_iotlb(IOTLB_UPDATE, memory.guest, memory.size, memory.address)

    def remove_memory(self, memory):
        self.tell_iotlb(IOTLB_INVALIDATE, memory.guest, memory.size, 0)

    def base(self):
        return struct.unpack('II', self.ioctl(GET_VRING_BASE, bytes(8)))[1]

    def used(self):
        return struct.unpack('<H', self.memory.get(USED + 2, 2))[0]

    def submit(self, kind, sector, data_at=None, size=512):
        """A request in the next slot; the data lie in the slot unless told."""
        slot = self.submitted % SLOT_COUNT
        at = SLOTS + slot * SLOT_BYTES
        put = self.memory.put
        put(at, struct.pack('<IIQ', kind, 0, sector))
        put(at + 16, b'\xff')
        pieces = [(at, 16, 0)]
        if kind != T_FLUSH:
            pieces.append((data_at or at + 0x1000, size, WRITABLE if kind == IN else 0))
        pieces.append((at + 16, 1, WRITABLE))
        head, indirect = slot * 4, INDIRECT in self.features
        table, first = (at + 0x100, 0) if indirect else (RINGS, head)
        for i, (guest, length, flags) in enumerate(pieces):
            flags |= NEXT if i + 1 < len(pieces) else 0
            put(table + 16 * (first + i), struct.pack('<QIHH', guest, length, flags, first + i + 1))
        if indirect:
            put(RINGS + 16 * head, struct.pack('<QIHH', table, 16 * len(pieces), IS_INDIRECT, 0))
        put(AVAILABLE + 4 + 2 * (self.submitted % RING_ENTRIES), struct.pack('<H', head))
        self.submitted = self.submitted + 1 & 0xFFFF
        put(
            AVAILABLE + 4 + 2 * RING_ENTRIES, struct.pack('<H', self.submitted - 1 & 0xFFFF)
        )  # call for this one
        put(AVAILABLE + 2, struct.pack('<H', self.submitted))
        os.eventfd_write(self.kick, 1)
        return at

    def wait(self):
        """Until everything is done; looks only when called."""
        while self.used() != self.submitted:
            assert select.select([self.call], [], [], 60)[
                0
            ], f'{self.used()} of {self.submitted} requests, no call'
            os.eventfd_read(self.call)

    def finish(self, slots):
        self.wait()
        for at in slots:
            assert self.memory.get(at + 16, 1) == b'\0', self.memory.get(at + 16, 1)

    def write(self, sector, data):
        at = SLOTS + self.submitted % SLOT_COUNT * SLOT_BYTES
        self.memory.put(at + 0x1000, data)
        return self.submit(OUT, sector, size=len(data))


def block(number):
    return struct.pack('<I', number) * 128


def check_disk(expected):
    with open(IMAGE, 'rb') as file:
        for sector, number in expected.items():
            file.seek(512 * sector)
            assert file.read(512) == block(number), f'sector {sector}'


def said(text):
    return text in read(LOG)


daemon = None
written = {}


def write_some(device, count, number):
    for first in range(0, count, SLOT_COUNT // 2):
        slots = []
        for i in range(first, min(first + SLOT_COUNT // 2, count)):
            sector = (number + i) * 7 % (DISK_BYTES // 512)
            slots.append(device.write(sector, block(number + i)))
            written[sector] = number + i
        device.finish(slots)
    device.finish([device.submit(T_FLUSH, 0)])
    check_disk(written)


@check(deadline=100)
def device_is_there():
    global daemon
    modprobe('vduse', 'vhost_vdpa')
    with open(IMAGE, 'wb') as file:
        file.truncate(DISK_BYTES)
    daemon = Daemon()
    run('vdpa', 'dev', 'add', 'name', NAME, 'mgmtdev', 'vduse', timeout=60)
    wait(lambda: os.path.exists('/dev/vhost-vdpa-0'), 'no /dev/vhost-vdpa-0', 30)


@check(deadline=100)
def split_rings():
    for features in ((), (EVENT_IDX,), (INDIRECT,), (INDIRECT, EVENT_IDX)):
        with Device(*features) as device:
            write_some(device, 150, 1000 * len(written))
            assert device.base() == device.submitted
            write_some(device, 20, 5)


@check(deadline=100)
def memory_comes_and_goes():
    with Device() as device:
        for i in range(10):
            extra = Memory(EXTRA, 65536)
            device.add_memory(extra)
            extra.put(EXTRA, block(i) * 16)
            slots = [device.submit(OUT, 100, EXTRA, 8192), device.submit(T_FLUSH, 0)]
            device.finish(slots)
            device.finish([device.submit(IN, 100, EXTRA + 32768, 8192)])
            assert extra.get(EXTRA + 32768, 8192) == block(i) * 16
            device.remove_memory(extra)
        written.update({100 + sector: 9 for sector in range(16)})
        write_some(device, 20, 77)


@check(deadline=100)
def broken_rules_stop_the_device_until_it_is_reset():
    with Device() as device:
        write_some(device, 5, 600)
        device.submit(OUT, 0, EXTRA)
        wait(lambda: said('has stopped until its driver resets it'), 'nothing was said', 30)
        try:
            daemon.qmp.cmd('block-export-del', id='export')
        except Exception as error:
            assert 'still in use' in str(error), error
        else:
            raise AssertionError('an export in use was removed')
        device.start()
        write_some(device, 5, 700)


@check(deadline=100)
def features_that_were_not_offered():
    with Device() as device:
        device.set_status(0)
        device.set_status(ACKNOWLEDGE)
        device.set_status(DRIVER)
        try:
            device.ioctl(SET_FEATURES, struct.pack('Q', 1 << VERSION_1 | 1 << ACCESS_PLATFORM | 1 << 11))
            device.set_status(FEATURES_OK)
        except OSError as error:
            assert error.errno in (errno.EINVAL, errno.EIO), error
        assert not device.status() & FEATURES_OK
        device.start()
        write_some(device, 5, 800)


@check(deadline=200)
def daemon_is_killed():
    """Requests are there while nobody serves, and in flight when the daemon dies."""
    global daemon
    for features in ((), (INDIRECT, EVENT_IDX)):
        with Device(*features) as device:
            for number in range(0, 60, 10):
                slots = []
                for i in range(number, number + 10):
                    slots.append(device.write(i, block(9000 + i)))
                    written[i] = 9000 + i
                    if i == number + 5:
                        daemon.kill()
                daemon = Daemon()
                device.finish(slots)
                device.finish([device.submit(T_FLUSH, 0)])
                check_disk(written)
            assert device.base() == device.submitted


@check(deadline=100)
def device_goes_away():
    run('vdpa', 'dev', 'del', NAME, timeout=60)
    daemon.qmp.cmd('block-export-del', id='export')
    daemon.qmp.wait_event('BLOCK_EXPORT_DELETED', id='export')
    assert not os.path.exists(f'/dev/vduse/{NAME}')
    assert not os.path.exists(f'/run/vduse-blk-{NAME}')
    daemon.qmp.cmd('quit')
    assert daemon.process.wait(60) == 0


main()
