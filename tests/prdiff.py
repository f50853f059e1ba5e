#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Sends the same to two reservation helpers and compares what they answer.

    prdiff.py --reference /usr/bin/qemu-pr-helper --ours build/compat/qemu-pr-helper
    prdiff.py ... --device /dev/sdX --other /dev/sdY   (two nexuses of one LUN, whose reservations it clears)

Prints a line for each case and a summary; the exit status is 1 when something differs that may not. Needs
root and nothing but a bare Python with lib/prwire.py, lib/prhelper.py and differential/pr_cases.py. PREEMPT
AND ABORT of another nexus hangs the kernel's own tcm_loop target: --aborts includes it.
"""

import argparse
import array
import fcntl
import os
import pathlib
import re
import select
import signal
import socket
import struct
import sys
import time

from differential import pr_cases
from lib import prwire
from lib.prhelper import PrHelper
from lib.prwire import Closed, Connection, Silent

WAIT_SECONDS = 0.25  # how long a helper must be silent to count as waiting
ACCESS = {'ro': os.O_RDONLY, 'wo': os.O_WRONLY, 'path': os.O_PATH}
BLKPG, BLKPG_ADD_PARTITION, BLKPG_DEL_PARTITION = 0x1269, 1, 2
OWN_KEY = 0xC1EA2  # with which the LUN is cleared
SG_IO, SG_NONE, SG_TO_DEVICE, SG_FROM_DEVICE = 0x2285, -1, -2, -3


class Unavailable(Exception):
    """What a case needs does not exist here."""


# ---- The LUN: looked at and cleared directly, beside both helpers ----


def sg_io(fd, cdb, data=b'', allocation=0):
    """A SCSI command by SG_IO: (status, sense, data in)."""
    command, sense = array.array('B', cdb), array.array('B', bytes(96))
    buffer = array.array('B', data or bytes(allocation or 1))
    direction = SG_TO_DEVICE if data else SG_FROM_DEVICE if allocation else SG_NONE
    layout = '@iiBBHIPPPIIiPBBBBHHiII'
    header = struct.pack(
        layout,
        *(ord('S'), direction, len(command), len(sense), 0, len(data) or allocation),
        *(buffer.buffer_info()[0], command.buffer_info()[0], sense.buffer_info()[0]),
        *(30000, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    )
    done = struct.unpack(layout, fcntl.ioctl(fd, SG_IO, header))
    return done[13], sense.tobytes(), buffer.tobytes()[: max(allocation - done[19], 0)]


def settle(fd):
    """Takes the unit attentions that wait."""
    for _ in range(16):
        if sg_io(fd, bytes(6))[0] != prwire.CHECK_CONDITION:
            return
    raise AssertionError('the LUN is not ready')


class Lun:
    """A LUN through two nexuses."""

    def __init__(self, device, other):
        self.device, self.other = device, other
        self.name = os.path.basename(device)
        self.sys = f'/sys/class/block/{self.name}'
        self.partition = None

    def clear(self):
        """No reservation, no key, no waiting unit attention; returns the generation of that state."""
        fds = [os.open(path, os.O_RDWR | os.O_NONBLOCK) for path in (self.device, self.other)]
        try:
            for fd in fds:
                settle(fd)
            # A registration that was made with ALL_TG_PT can only be changed with it.
            register = prwire.pr_out(prwire.REGISTER_AND_IGNORE)[:10]
            for flags in (0, 4):
                done = sg_io(fds[0], register, prwire.out_list(0, OWN_KEY, flags))
                if done[0] == prwire.GOOD:
                    done = sg_io(fds[0], prwire.pr_out(prwire.CLEAR)[:10], prwire.out_list(OWN_KEY))
                    break
            assert done[0] == prwire.GOOD, f'the LUN cannot be cleared: {done}'
            for fd in fds:
                settle(fd)
            keys = sg_io(fds[0], prwire.pr_in(prwire.READ_KEYS)[:10], allocation=512)[2]
            return struct.unpack_from('>I', keys)[0]
        finally:
            for fd in fds:
                os.close(fd)

    def make_partition(self):
        """A partition that exists only in the kernel's memory."""
        if self.partition is None:
            self.change_partition(BLKPG_ADD_PARTITION)
            self.partition = self.device + ('p1' if self.name[-1].isdigit() else '1')
        if not os.path.exists(self.partition):
            raise Unavailable(f'{self.partition} does not appear')
        return self.partition

    def change_partition(self, operation):
        what = array.array('B', struct.pack('@qqi64s64s', 1 << 20, 1 << 20, 1, b'', b''))
        argument = struct.pack('@iiiP', operation, 0, len(what), what.buffer_info()[0])
        fd = os.open(self.device, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, BLKPG, argument)
        except OSError as error:
            raise Unavailable(f'no partition can be made: {error}') from None
        finally:
            os.close(fd)

    def neighbour(self, kind):
        """The sg or bsg node of the device."""
        folder = {'sg': 'scsi_generic', 'bsg': 'bsg'}[kind]
        names = [path.name for path in pathlib.Path(f'{self.sys}/device/{folder}').glob('*')]
        path = os.path.join('/dev/bsg' if kind == 'bsg' else '/dev', *names[:1])
        if not names or not os.path.exists(path):
            raise Unavailable(f'{self.device} has no {kind} node')
        return path

    def set_state(self, word):
        pathlib.Path(f'{self.sys}/device/state').write_text(f'{word}\n')

    def close(self):
        if self.partition:
            self.change_partition(BLKPG_DEL_PARTITION)


# ---- Descriptors by name ----


class Devices:
    """Opens what a case names; everything is closed with it."""

    def __init__(self, directory, lun=None, loop=None):
        self.directory, self.lun, self.loop = pathlib.Path(directory), lun, loop
        self.opened = {}
        self.hold = []
        (self.directory / 'file').write_bytes(bytes(4096))
        if not (self.directory / 'fifo').exists():
            os.mkfifo(self.directory / 'fifo')

    def subject(self):
        return 'device' if self.lun else 'null'

    def resolve(self, name):
        return self.subject() if name == 'subject' else name

    def get(self, name):
        if name not in self.opened:
            self.opened[name] = self.open(name)
        return self.opened[name]

    def open(self, name):
        base, _, access = name.partition('-')
        flags = ACCESS.get(access, os.O_RDWR) | os.O_NONBLOCK | os.O_NOCTTY
        if name == 'directory':
            flags = os.O_RDONLY
        if name == 'path':
            return os.open('/dev/null', os.O_PATH)
        special = getattr(self, f'open_{base}', None)
        if special:
            return special()
        return os.open(self.find(base), flags)

    def find(self, base):
        """The path behind a name."""
        plain = {
            'file': self.directory / 'file',
            'fifo': self.directory / 'fifo',
            'directory': self.directory,
            'null': '/dev/null',
            'zero': '/dev/zero',
            'terminal': '/dev/ptmx',
            'loop': self.loop,
        }
        if base in plain:
            if plain[base] is None:
                raise Unavailable('no loop device')
            return plain[base]
        if self.lun is None:
            raise Unavailable('no LUN')
        if base in ('sg', 'bsg'):
            return self.lun.neighbour(base)
        if base == 'partition':
            return self.lun.make_partition()
        path = {'device': self.lun.device, 'offline': self.lun.device, 'other': self.lun.other}[base]
        return path

    def open_pipe(self):
        reader, writer = os.pipe()
        self.hold.append(writer)
        return reader

    def open_socket(self):
        ours, theirs = socket.socketpair()
        self.hold.append(theirs.detach())
        return ours.detach()

    def open_eventfd(self):
        return os.eventfd(0)

    def open_epoll(self):
        poller = select.epoll()
        self.hold.append(poller)
        return poller.fileno()

    def open_memfd(self):
        return os.memfd_create('case')

    def close(self):
        kept = {item.fileno() for item in self.hold if not isinstance(item, int)}
        for fd in self.opened.values():
            if fd not in kept:
                os.close(fd)
        for item in self.hold:
            os.close(item) if isinstance(item, int) else item.close()
        self.opened, self.hold = {}, []


# ---- One case with one helper ----


class Session:
    """Carries out the steps of a case and writes down what can be observed."""

    def __init__(self, path, devices, generation, careless):
        self.path, self.devices, self.generation, self.careless = path, devices, generation, careless
        self.seen = []
        self.pending = []  # the devices whose replies have not been read
        self.client = None

    def run(self, steps):
        try:
            if not steps or steps[0] != ('raw',):
                self.client = Connection(self.path)
            for step in steps:
                getattr(self, 'do_' + step[0].replace('-', '_'))(*step[1:])
            if steps[-1] != pr_cases.WAITING:
                self.probe()
        except Closed:
            self.seen.append(('closed',))
        finally:
            if self.client:
                self.client.close()
        return self.seen

    def probe(self):
        """Whether the connection still takes a command."""
        fd = os.open('/dev/null', os.O_RDWR)
        try:
            self.client.command(prwire.pr_in(prwire.READ_KEYS), fd)
            self.seen.append(('usable',))
        finally:
            os.close(fd)

    def do_raw(self):
        self.client = Connection(self.path, hello=False)

    def do_greeting(self):
        self.seen.append(('greeting', struct.unpack('>I', self.client.receive(4))[0]))

    def do_hello(self, features):
        self.do_greeting()
        self.client.send(struct.pack('>I', features))

    def do_reconnect(self):
        self.client.close()
        self.pending = []
        self.client = Connection(self.path)

    def do_connection_as(self, name):
        self.devices.opened[name] = os.dup(self.client.sock.fileno())

    def do_offline(self):
        self.devices.get('offline')
        self.devices.lun.set_state('offline')

    def fds(self, names):
        return [self.devices.get(self.devices.resolve(name)) for name in names]

    def do_send(self, data, names):
        if names:
            self.pending.append(self.devices.resolve(names[0]))
        self.client.send(data, self.fds(names))

    def do_dropped(self, data, names):
        self.client.send(data, self.fds(names))

    def do_bytewise(self, data, names):
        for some in names.values():
            self.pending.append(self.devices.resolve(some[0]))
        self.client.send_bytewise(data, {i: self.fds(some) for i, some in names.items()})

    def do_command(self, cdb, name, data):
        self.do_send(cdb + data, [name])
        self.do_reply()

    def do_reply(self):
        name = self.pending.pop(0) if self.pending else None
        reply = self.client.reply()
        payload = self.relative(reply.payload)
        self.seen.append(('reply', name, reply.status, self.sense(reply.sense), payload.hex()))

    def sense(self, data):
        """As hexadecimal text without trailing zeros. 7.2 pads what it makes with bytes of its stack."""
        length = 8 + data[7] if data[0] & 0x7E in (0x70, 0x72) else 0
        text = data[:length].rstrip(b'\0').hex()
        if self.careless or not data[length:].strip(b'\0'):
            return text
        return f'{text} and {data[length:].hex()}'

    def relative(self, payload):
        """The generation counts on from case to case. (REPORT CAPABILITIES begins with 0x0008.)"""
        if len(payload) < 4:
            return payload
        generation = struct.unpack_from('>I', payload)[0] - self.generation
        return struct.pack('>I', generation) + payload[4:] if 0 <= generation < 64 else payload

    def do_waiting(self):
        try:
            self.client.receive(1, WAIT_SECONDS)
            self.seen.append(('speaks',))
        except Silent:
            self.seen.append(('waits',))

    def do_end(self):
        self.client.end_of_requests()


# ---- All of it ----


class Arena:
    """A directory, the devices, and the two helpers, started when they are needed and again if they died."""

    def __init__(self, directory, reference, ours, lun=None, loop=None, allowed=pr_cases.PR_ALLOWED):
        self.directory, self.lun, self.allowed = pathlib.Path(directory), lun, allowed
        self.programs = {'reference': reference, 'ours': ours}
        self.devices = Devices(directory, lun, loop)
        self.helpers = {}

    def helper(self, which):
        helper = self.helpers.get(which)
        if helper is None or not helper.running():
            helper = self.helpers[which] = PrHelper(self.directory, self.programs[which]).start()
        return helper

    def observe(self, which, case):
        """What one helper does in the case."""
        generation = self.lun.clear() if self.lun and case.needs_subject() else 0
        helper = self.helper(which)
        try:
            for name in sorted(case.devices() - {'offline'}):
                self.devices.get(self.devices.resolve(name))
            session = Session(helper.path, self.devices, generation, which == 'reference')
            seen = session.run(case.steps)
        except Silent as error:
            seen = [('silent', str(error))]
        finally:
            if 'offline' in self.devices.opened:
                self.lun.set_state('running')
            self.devices.close()
        if helper.process.poll() is not None:
            seen.append(('helper ended', helper.process.returncode, helper.stderr()[-400:]))
        return seen

    def compare(self, case):
        """(verdict, text): 'same', 'allowed' with the reason, 'differs' with both sides."""
        theirs, ours = self.observe('reference', case), self.observe('ours', case)
        expected, reasons = theirs, []
        for entry in self.allowed:
            if entry.concerns(case):
                changed = entry.expect(expected, self.devices.resolve(case.last_device()))
                if changed != expected:
                    reasons.append(entry.reason)
                expected = changed
        if ours == expected:
            return ('allowed', reasons[-1]) if reasons else ('same', '')
        lines = [f'reference {theirs}', f'ours      {ours}']
        if expected != theirs:
            lines.append(f'wanted    {expected}')
        return 'differs', '\n    '.join(lines)

    def close(self):
        for helper in self.helpers.values():
            helper.cleanup()
            helper.wait_gone()
        if self.lun:
            self.lun.clear()
            self.lun.close()


def arguments():
    parser = argparse.ArgumentParser(description='Compares two reservation helpers.')
    parser.add_argument('--reference', required=True, metavar='PROGRAM')
    parser.add_argument('--ours', required=True, metavar='PROGRAM')
    parser.add_argument(
        '--device', metavar='PATH', help='a LUN; its reservations are cleared again and again'
    )
    parser.add_argument('--other', metavar='PATH', help='the same LUN through another nexus')
    parser.add_argument('--loop', metavar='PATH', help='a loop device')
    parser.add_argument('--case', metavar='REGEX', default='', help='only cases whose name contains this')
    parser.add_argument('--aborts', action='store_true', help='with PREEMPT AND ABORT')
    parser.add_argument('--strict', action='store_true', help='no difference is allowed: two references')
    parser.add_argument('--only-differences', action='store_true', help='no line for what is as it should be')
    found = parser.parse_args()
    if bool(found.device) != bool(found.other):
        parser.error('--device and --other belong together')
    return found


def run(wanted, directory):
    lun = Lun(wanted.device, wanted.other) if wanted.device else None
    allowed = [] if wanted.strict else pr_cases.PR_ALLOWED
    arena = Arena(directory, wanted.reference, wanted.ours, lun, wanted.loop, allowed)
    counts = {'same': 0, 'allowed': 0, 'differs': 0, 'skipped': 0}
    started = time.monotonic()
    try:
        for case in pr_cases.PR_CASES:
            if not re.search(wanted.case, case.name):
                continue
            try:
                if case.aborts and not wanted.aborts:
                    raise Unavailable('PREEMPT AND ABORT was not asked for')
                verdict, text = arena.compare(case)
            except Unavailable as error:
                verdict, text = 'skipped', str(error)
            counts[verdict] += 1
            if verdict == 'differs' or not wanted.only_differences:
                print(f'{verdict:8}{case.name}{": " if text else ""}{text}', flush=True)
    finally:
        arena.close()
    print(', '.join(f'{n} {word}' for word, n in counts.items()), f'({time.monotonic() - started:.1f} s)')
    return 1 if counts['differs'] or not counts['same'] + counts['allowed'] else 0


def main():
    wanted = arguments()
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    directory = pathlib.Path(f'/tmp/prdiff-{os.getpid()}')
    directory.mkdir(mode=0o700)
    try:
        return run(wanted, directory)
    finally:
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()


if __name__ == '__main__':
    sys.exit(main())
