# SPDX-License-Identifier: Apache-2.0
"""A driver of virtio-scsi for a QEMU whose processor is parked: the test is the guest.

The machine's firmware only halts. The script finds the controller on the PCI bus, gives it an I/O window
and a ring, and sends SCSI commands, all by lines of the qtest protocol (outl, write, read ...). The
controller is driven as a legacy virtio device (virtio 1.1 section 4.1.4.8 and its "legacy interface"
parts).
"""

import json
import os
import pathlib
import socket
import struct
import subprocess
import time

DEADLINE = 60
# `cli; hlt; jmp -4` at the reset vector, 16 bytes below the end of a 64 KiB firmware.
PARKED = bytes(0x10000 - 16) + bytes.fromhex('faf4ebfc') + bytes(12)

WINDOW = 0xC000  # where the controller's I/O registers are mapped
FEATURES, GUEST_FEATURES, RING, RING_SIZE, RING_SELECT, NOTIFY, STATUS = 0, 4, 8, 12, 14, 16, 18
REQUESTS = 2  # the third ring: the first two are control and events
RING_AT, BUFFERS_AT, BUFFER = 0x100000, 0x200000, 0x8000
RESPONSE = struct.Struct('<IIHBB96s')


class Answer:
    """What the controller has answered: SCSI status, sense, residual and the data that came."""

    def __init__(self, raw, data):
        sense_bytes, self.residual, _, self.status, self.response, sense = RESPONSE.unpack(raw)
        self.sense = sense[:sense_bytes]
        self.data = data

    def codes(self):
        """(key, code, qualifier) of fixed or descriptor sense; None without sense."""
        if len(self.sense) >= 4 and self.sense[0] & 0x7F in (0x72, 0x73):
            return self.sense[1] & 15, self.sense[2], self.sense[3]
        if len(self.sense) >= 14 and self.sense[0] & 0x7F in (0x70, 0x71):
            return self.sense[2] & 15, self.sense[12], self.sense[13]
        return None

    def __str__(self):
        codes = self.codes()
        sense = '/'.join(f'{code:02x}' for code in codes) if codes else 'none'
        return f'response {self.response} status {self.status:#x} sense {sense} residual {self.residual}'


class Lines:
    """A listening unix socket that QEMU connects to, then a conversation in lines."""

    def __init__(self, path, user):
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(path))
        self.listener.listen(1)
        self.listener.settimeout(DEADLINE)
        os.chown(path, user, user)
        self.sock = self.file = None

    def accept(self):
        self.sock = self.listener.accept()[0]
        self.listener.close()
        self.sock.settimeout(DEADLINE)
        self.file = self.sock.makefile('r')

    def send(self, line):
        self.sock.sendall(line.encode() + b'\n')

    def read(self):
        line = self.file.readline()
        if not line:
            raise ConnectionError('QEMU has closed the connection')
        return line.strip()


class Machine:
    """QEMU with disks (paths) behind one controller, as SCSI targets 0, 1, ..., all with the manager
    `pr0`, whose helper listens at `helper`."""

    def __init__(self, program, disks, helper, machine='pc', user=107, directory='/tmp/qemu'):
        self.directory = pathlib.Path(directory)
        self.directory.mkdir(exist_ok=True)
        os.chown(self.directory, user, user)
        for old in self.directory.iterdir():
            old.unlink()
        firmware = self.directory / 'firmware'
        firmware.write_bytes(PARKED)
        self.qtest = Lines(self.directory / 'qtest', user)
        self.qmp = Lines(self.directory / 'qmp', user)
        self.errors = self.directory / 'stderr'
        self.events = []
        self.serial = 0
        command = [program, '-machine', machine, '-accel', 'tcg', '-m', '64', '-nodefaults']
        command += ['-global', 'apic-common.vapic=off', '-no-user-config', '-display', 'none']
        command += ['-bios', firmware]
        command += ['-qtest', f'unix:{self.directory}/qtest', '-qtest-log', 'none']
        command += ['-qmp', f'unix:{self.directory}/qmp']
        command += ['-object', f'pr-manager-helper,id=pr0,path={helper}']
        command += ['-device', 'virtio-scsi-pci,id=scsi0,disable-modern=on,disable-legacy=off']
        for number, disk in enumerate(disks):
            os.chown(disk, user, user)
            command += ['-blockdev', f'host_device,node-name=disk{number},filename={disk},pr-manager=pr0']
            command += ['-device', f'scsi-block,bus=scsi0.0,scsi-id={number},lun=0,drive=disk{number}']
        with open(self.errors, 'wb') as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stderr=errors, user=user, group=user, extra_groups=[]
            )

    def start(self):
        """Waits for QEMU and brings the controller up."""
        try:
            self.qtest.accept()
            self.qmp.accept()
            assert 'QMP' in json.loads(self.qmp.read())
            self.command('qmp_capabilities')
        except OSError as error:
            raise AssertionError(f'QEMU does not start ({error}): {self.errors.read_text()}') from error
        self.slots = list(range(16))
        self.find_controller()
        self.make_ring()
        return self

    # ---- QMP ----

    def command(self, execute, **arguments):
        """Runs a QMP command; events that come in between are kept in `events`."""
        self.qmp.send(json.dumps({'execute': execute, 'arguments': arguments}))
        while True:
            message = json.loads(self.qmp.read())
            if 'event' in message:
                self.events.append((message['event'], message.get('data')))
            else:
                assert 'return' in message, f'{execute}: {message}'
                return message['return']

    def status_changes(self):
        """The `connected` values of the reservation manager's events since the last call."""
        self.command('query-status')  # what was sent before its answer has been read then
        found = [data['connected'] for event, data in self.events if event == 'PR_MANAGER_STATUS_CHANGED']
        assert all(data['id'] == 'pr0' for event, data in self.events if event == 'PR_MANAGER_STATUS_CHANGED')
        self.events.clear()
        return found

    def quit(self):
        """Orderly end; returns what QEMU has said on stderr."""
        self.command('quit')
        code = self.process.wait(DEADLINE)
        assert code == 0, f'QEMU ended with {code}: {self.errors.read_text()}'
        return self.errors.read_text()

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    # ---- qtest ----

    def line(self, *words):
        self.qtest.send(' '.join(word if isinstance(word, str) else f'{word:#x}' for word in words))
        answer = self.qtest.read().split()
        assert answer[0] == 'OK', f'{words}: {answer}'
        return answer[1] if len(answer) > 1 else ''

    def write(self, address, data):
        if data:
            self.line('write', address, len(data), '0x' + data.hex())

    def read(self, address, size):
        return bytes.fromhex(self.line('read', address, size)[2:]) if size else b''

    def config_read(self, slot, register):
        self.line('outl', 0xCF8, 1 << 31 | slot << 11 | register)
        return int(self.line('inl', 0xCFC), 16)

    def config_write(self, slot, register, value):
        self.line('outl', 0xCF8, 1 << 31 | slot << 11 | register)
        self.line('outl', 0xCFC, value)

    def register(self, width, offset):
        return int(self.line('in' + width, WINDOW + offset), 16)

    def set_register(self, width, offset, value):
        self.line('out' + width, WINDOW + offset, value)

    # ---- The controller ----

    def find_controller(self):
        found = [slot for slot in range(32) if self.config_read(slot, 0) == 0x10041AF4]
        assert len(found) == 1, f'virtio-scsi controllers at {found}'
        self.config_write(found[0], 0x10, WINDOW)
        self.config_write(found[0], 0x04, 5)  # I/O space, bus master

    def make_ring(self):
        self.set_register('b', STATUS, 0)
        self.set_register('b', STATUS, 3)  # acknowledge, driver
        self.set_register('l', GUEST_FEATURES, 0)
        self.set_register('w', RING_SELECT, REQUESTS)
        self.size = self.register('w', RING_SIZE)
        assert self.size >= 64, f'ring of {self.size}'
        self.available = RING_AT + 16 * self.size
        self.used = (self.available + 6 + 2 * self.size + 4095) // 4096 * 4096
        self.write(RING_AT, bytes(self.used + 8 * self.size + 8 - RING_AT))
        self.set_register('l', RING, RING_AT // 4096)
        self.set_register('b', STATUS, 7)  # and ready
        self.sent = self.collected = 0
        self.finished = set()

    def submit(self, target, cdb, out=b'', room=0):
        """Sends a command with data out or room for data in; returns its number for collect()."""
        slot = self.slots.pop(0)
        at = BUFFERS_AT + slot * BUFFER
        self.serial += 1
        lun = bytes((1, target, 0x40, 0, 0, 0, 0, 0))
        request = lun + struct.pack('<QBBB', self.serial, 0, 0, 0) + bytes(cdb).ljust(32, b'\0')
        response, data = at + 64, at + 256
        self.write(at, request)
        self.write(data, out)
        chain = [(at, len(request), 0)] + [(data, len(out), 0)] * bool(out)
        chain += [(response, RESPONSE.size, 2)] + [(data, room, 2)] * bool(room)
        first = slot * 4
        for number, (address, size, flags) in enumerate(chain):
            more = number + 1 < len(chain)
            entry = struct.pack('<QIHH', address, size, flags | more, first + number + 1 if more else 0)
            self.write(RING_AT + 16 * (first + number), entry)
        self.write(self.available + 4 + 2 * (self.sent % self.size), struct.pack('<H', first))
        self.sent += 1
        self.write(self.available + 2, struct.pack('<H', self.sent & 0xFFFF))
        self.set_register('w', NOTIFY, REQUESTS)
        return slot, room

    def poll(self):
        """Notes which commands have finished."""
        index = struct.unpack('<H', self.read(self.used + 2, 2))[0]
        while self.collected & 0xFFFF != index:
            entry = self.read(self.used + 4 + 8 * (self.collected % self.size), 8)
            self.finished.add(struct.unpack('<II', entry)[0] // 4)
            self.collected += 1

    def collect(self, number, deadline=DEADLINE):
        """Waits for a command and returns its Answer."""
        slot, room = number
        end = time.monotonic() + deadline
        while slot not in self.finished:
            self.poll()
            assert time.monotonic() < end, f'no answer within {deadline} s'
            time.sleep(0.002)
        self.finished.remove(slot)
        self.slots.append(slot)
        at = BUFFERS_AT + slot * BUFFER
        answer = Answer(self.read(at + 64, RESPONSE.size), b'')
        answer.data = self.read(at + 256, max(0, room - answer.residual))
        return answer

    def execute(self, target, cdb, out=b'', room=0):
        return self.collect(self.submit(target, cdb, out, room))


# ---- Commands ----


def write_10(block, blocks=1):
    return struct.pack('>BBIBHB', 0x2A, 0, block, 0, blocks, 0)


def read_10(block, blocks=1):
    return struct.pack('>BBIBHB', 0x28, 0, block, 0, blocks, 0)


TEST_UNIT_READY = bytes(6)
