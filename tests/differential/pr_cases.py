# SPDX-License-Identifier: Apache-2.0
"""What the differential test of the reservation helper sends, and where Granary's answer differs on purpose.

A case is a list of steps on one connection (prdiff.py, class Session, says what each does). Descriptors are
named by what they are of; 'subject' is the LUN where there is one and /dev/null elsewhere. Steps that need a
LUN make the case one for the guest. Only what a bare Python has: this file runs inside the guest.
"""

import re
import struct

from lib import prwire
from lib.prwire import (
    CLEANUP_CDB,
    CLEAR,
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
    RESERVE,
    move_list,
    out_list,
    pr_in,
    pr_out,
)

# What no helper may reserve: Granary refuses them before the device is touched.
REFUSED = (
    'file',
    'directory',
    'fifo',
    'pipe',
    'socket',
    'null',
    'zero',
    'path',
    'device-path',
    'partition',
    'bsg',
    'terminal',
    'file-ro',
    'null-ro',
    'null-wo',
    'eventfd',
    'epoll',
    'memfd',
)
LUN = ('device', 'device-path', 'device-ro', 'device-wo', 'other', 'sg', 'partition', 'bsg', 'offline')
KEY, KEY2, KEY3 = 0x1122334455667788, 0xA1A2A3A4A5A6A7A8, 0x0BADC0DE
WRITE_EXCLUSIVE, EXCLUSIVE, WRITE_EXCLUSIVE_REGISTRANTS, EXCLUSIVE_ALL = 1, 3, 5, 8


class Case:
    def __init__(self, name, *steps, aborts=False):
        self.name, self.steps, self.aborts = name, steps, aborts

    def devices(self):
        """The names of all descriptors that the steps mention."""
        found = set()

        def collect(value):
            if isinstance(value, str):
                found.add(value)
            elif isinstance(value, (list, tuple)):
                for item in value:
                    collect(item)
            elif isinstance(value, dict):
                collect(list(value.values()))

        for step in self.steps:
            collect(step[1:])
        return found

    def needs_lun(self):
        return bool(self.devices() & set(LUN))

    def needs_subject(self):
        """Whether the state of a LUN can matter."""
        return self.needs_lun() or 'subject' in self.devices()

    def last_device(self):
        """The descriptor that the last step with one names."""
        for step in reversed(self.steps):
            if step[0] == 'command':
                return step[2]
        return 'subject'


# ---- The steps, spelled briefly ----


def send(data, *devices):
    return ('send', data, devices)


def dropped(data, *devices):
    """Like send(), for descriptors that ride on what takes none."""
    return ('dropped', data, devices)


def bytewise(data, fds):
    return ('bytewise', data, fds)


def command(cdb, device, data=b''):
    return ('command', cdb, device, data)


def inquire(action, device='subject', allocation=512):
    return command(pr_in(action, allocation), device)


def out(action, device, kind=0, key=0, service_key=0, flags=0, scope=0):
    return command(pr_out(action, kind, 24, scope), device, out_list(key, service_key, flags))


REPLY, WAITING, END, RECONNECT = ('reply',), ('waiting',), ('end',), ('reconnect',)
KEYS_CDB, REGISTER_CDB = pr_in(READ_KEYS), pr_out(REGISTER)
LIST = out_list(0, KEY)
# The state of the LUN behind a case's commands.
STATE = (inquire(READ_KEYS, 'device'), inquire(READ_RESERVATION, 'device'))
JOIN = out(REGISTER, 'device', key=0, service_key=KEY)
JOIN_OTHER = out(REGISTER, 'other', key=0, service_key=KEY2)


def with_bytes(cdb, **changes):
    """A CDB with some bytes changed: b1=0xe0."""
    changed = bytearray(cdb)
    for name, value in changes.items():
        changed[int(name[1:])] = value
    return bytes(changed)


def handshake_cases():
    yield Case('hello', ('raw',), ('hello', 0))
    for features in (1, 2, 3, 0x80000000, 0xFFFFFFFF):
        yield Case(f'hello-asks-{features:#x}', ('raw',), ('hello', features))
    yield Case('hello-bytewise', ('raw',), ('greeting',), bytewise(bytes(4), {}), inquire(READ_KEYS))
    yield Case('hello-half', ('raw',), ('greeting',), send(bytes(2)), WAITING)
    yield Case('hello-half-then-end', ('raw',), ('greeting',), send(bytes(2)), END, REPLY)
    yield Case('hello-none-then-end', ('raw',), ('greeting',), END, REPLY)
    yield Case('hello-with-command', ('raw',), ('greeting',), send(bytes(4) + KEYS_CDB, 'subject'), REPLY)
    yield Case(
        'hello-with-descriptor', ('raw',), ('greeting',), dropped(bytes(4), 'subject'), send(KEYS_CDB), REPLY
    )
    yield Case(
        'hello-and-command-with-descriptors',
        *(('raw',), ('greeting',), dropped(bytes(4), 'null'), send(KEYS_CDB, 'subject'), REPLY),
    )


def descriptor_cases():
    for i in range(16):
        yield Case(f'descriptor-with-byte-{i}', bytewise(KEYS_CDB, {i: ['subject']}), REPLY)
    for i in (1, 8, 15):
        yield Case(f'descriptor-behind-{i}-bytes', send(KEYS_CDB[:i]), send(KEYS_CDB[i:], 'subject'), REPLY)
    yield Case('descriptor-missing', send(KEYS_CDB), REPLY)
    yield Case('descriptor-missing-out', send(REGISTER_CDB + LIST), REPLY)
    yield Case('descriptor-missing-after-good', inquire(READ_KEYS), send(KEYS_CDB), REPLY)
    yield Case('descriptors-two', send(KEYS_CDB, 'subject', 'null'), REPLY)
    yield Case('descriptors-two-same', send(KEYS_CDB, 'subject', 'subject'), REPLY)
    yield Case('descriptors-many', send(KEYS_CDB, *['null'] * 64), REPLY)
    yield Case('descriptors-most', send(KEYS_CDB, *['null'] * 253), REPLY)
    yield Case('descriptors-one-and-one', send(KEYS_CDB[:8], 'subject'), send(KEYS_CDB[8:], 'null'), REPLY)
    yield Case('descriptors-each-byte', bytewise(KEYS_CDB, {i: ['null'] for i in range(16)}), REPLY)
    yield Case(
        'descriptor-on-list', send(REGISTER_CDB, 'subject'), dropped(out_list(KEY3, KEY), 'null'), REPLY
    )
    yield Case('descriptor-only-on-list', send(REGISTER_CDB), dropped(LIST, 'subject'), REPLY)
    yield Case(
        'descriptors-on-list-two',
        send(REGISTER_CDB, 'subject'),
        dropped(out_list(KEY3, 0), 'null', 'zero'),
        REPLY,
    )
    yield Case('descriptor-of-connection', ('connection-as', 'socket'), send(KEYS_CDB, 'socket'), REPLY)


def framing_cases():
    wrong = out_list(KEY3, KEY)
    yield Case('list-in-one-message', send(REGISTER_CDB + wrong, 'subject'), REPLY)
    yield Case('list-bytewise', send(REGISTER_CDB, 'subject'), bytewise(wrong, {}), REPLY)
    yield Case('everything-bytewise', bytewise(REGISTER_CDB + wrong, {7: ['subject']}), REPLY)
    yield Case('list-short', send(REGISTER_CDB + wrong[:20], 'subject'), WAITING)
    yield Case('list-short-then-end', send(REGISTER_CDB + wrong[:20], 'subject'), END, REPLY)
    yield Case('list-missing-then-end', send(REGISTER_CDB, 'subject'), END, REPLY)
    yield Case('list-late', send(REGISTER_CDB + wrong[:20], 'subject'), WAITING, send(wrong[20:]), REPLY)
    yield Case('list-and-more', send(REGISTER_CDB + wrong + KEYS_CDB, 'subject'), REPLY, REPLY)
    yield Case('list-and-one-byte-more', send(REGISTER_CDB + wrong + b'\x5e', 'subject'), REPLY, WAITING)
    yield Case('command-short', send(KEYS_CDB[:15], 'subject'), WAITING)
    yield Case('command-short-then-end', send(KEYS_CDB[:15], 'subject'), END, REPLY)
    yield Case('command-10-bytes-then-end', send(KEYS_CDB[:10], 'subject'), END, REPLY)
    yield Case('command-then-end', send(KEYS_CDB, 'subject'), END, REPLY, REPLY)
    yield Case('end-at-once', END, REPLY)
    yield Case('pipelined', send(KEYS_CDB, 'subject'), send(KEYS_CDB, 'subject'), REPLY, REPLY)
    yield Case('pipelined-kinds', send(KEYS_CDB, 'subject'), send(REGISTER_CDB + wrong, 'null'), REPLY, REPLY)
    yield Case('two-commands-one-descriptor', send(KEYS_CDB + KEYS_CDB, 'subject'), REPLY, REPLY)
    yield Case('in-with-data-behind', send(KEYS_CDB + bytes(24), 'subject'), REPLY, REPLY)
    yield Case('disconnect-mid-command', send(KEYS_CDB[:7], 'subject'), RECONNECT, inquire(READ_KEYS))
    yield Case('disconnect-mid-list', send(REGISTER_CDB + LIST[:7], 'subject'), RECONNECT, inquire(READ_KEYS))
    yield Case('disconnect-before-reply', send(KEYS_CDB, 'subject'), RECONNECT, inquire(READ_KEYS))
    yield Case('twenty-commands', *[inquire(i % 4) for i in range(20)])


def command_cases():
    for opcode in (0x00, 0x12, 0x28, 0x5D, 0x60, 0x7F, 0xA3, 0xFE):
        yield Case(f'opcode-{opcode:02x}', send(bytes([opcode]) + bytes(15), 'subject'), REPLY)
    yield Case('opcode-12-without-descriptor', send(b'\x12' + bytes(15)), REPLY)
    for length in (8193, 16384, 65535):
        yield Case(f'in-allocation-{length}', send(pr_in(READ_KEYS, length), 'subject'), REPLY)
        yield Case(f'out-length-{length}', send(pr_out(REGISTER, 0, length), 'subject'), REPLY)
    yield Case('out-length-8193-with-list', send(pr_out(REGISTER, 0, 8193) + bytes(8193), 'subject'), REPLY)
    for length in (0, 1, 4, 7, 8, 12, 15, 16, 24, 255, 256, 8191, 8192):
        yield Case(f'in-allocation-{length}', inquire(READ_KEYS, allocation=length))
    for length in (0, 1, 8, 23, 25, 32, 255, 4096, 8192):
        data = (out_list(KEY3, KEY) + bytes(8192))[:length]
        yield Case(f'out-length-{length}', command(pr_out(REGISTER, 0, length), 'subject', data))
    for action in (4, 5, 0x10, 0x1F):
        yield Case(f'in-action-{action:#x}', inquire(action))
    for action in (8, 9, 0x10, 0x1F):
        yield Case(f'out-action-{action:#x}', out(action, 'subject', key=KEY3))
    for name, cdb in (
        ('reserved-bits', with_bytes(KEYS_CDB, b1=0xE0)),
        ('reserved-bytes', with_bytes(KEYS_CDB, b2=1, b3=2, b4=3)),
        ('long-length', with_bytes(KEYS_CDB, b5=1, b6=0xFF)),
        ('control', with_bytes(KEYS_CDB, b9=0xFF)),
        ('naca', with_bytes(KEYS_CDB, b9=4)),
        ('padding', with_bytes(KEYS_CDB, b10=0xFF, b15=0xFF)),
    ):
        yield Case(f'in-{name}', command(cdb, 'subject'))
    for name, cdb in (
        ('reserved-bits', with_bytes(REGISTER_CDB, b1=0xE0)),
        ('reserved-bytes', with_bytes(REGISTER_CDB, b3=2, b4=3)),
        ('long-length', with_bytes(REGISTER_CDB, b5=0, b6=1)),
        ('longer-length', with_bytes(REGISTER_CDB, b5=0xFF, b6=0xFF)),
        ('control', with_bytes(REGISTER_CDB, b9=0xFF)),
        ('padding', with_bytes(REGISTER_CDB, b10=0xFF, b15=0xFF)),
    ):
        yield Case(f'out-{name}', command(cdb, 'subject', out_list(KEY3, KEY)))


def device_cases():
    for device in (*REFUSED, 'loop'):
        register = out(REGISTER, device, key=0, service_key=KEY)
        yield Case(f'device-{device}-in', inquire(READ_KEYS, device), inquire(READ_FULL_STATUS, device))
        yield Case(f'device-{device}-out', register, out(RESERVE, device, EXCLUSIVE, KEY))
    yield Case('device-mixed', inquire(READ_KEYS, 'file'), inquire(READ_KEYS), inquire(READ_KEYS, 'pipe'))


def cleanup_cases():
    yield Case('cleanup', command(CLEANUP_CDB, 'subject'))
    yield Case('cleanup-refused', command(CLEANUP_CDB, 'null'))
    yield Case('cleanup-read-only', command(CLEANUP_CDB, 'null-ro'))
    yield Case('cleanup-asked-for', ('raw',), ('hello', 1), command(CLEANUP_CDB, 'subject'))
    yield Case('cleanup-without-descriptor', send(CLEANUP_CDB), REPLY)
    yield Case('cleanup-lun-read-only', command(CLEANUP_CDB, 'device-ro'))
    yield Case('cleanup-lun-keeps-key', JOIN, command(CLEANUP_CDB, 'device'), *STATE)


def lun_in_cases():
    for name, prepare in (('empty', ()), ('one', (JOIN,)), ('two', (JOIN, JOIN_OTHER))):
        for action in range(4):
            yield Case(f'lun-{name}-in-{action}', *prepare, inquire(action, 'device'))
    held = (JOIN, JOIN_OTHER, out(RESERVE, 'device', WRITE_EXCLUSIVE, KEY))
    for action in range(4):
        yield Case(f'lun-held-in-{action}', *held, inquire(action, 'device'), inquire(action, 'other'))
        for length in (8, 9, 16, 23, 24, 31, 33, 56):
            yield Case(f'lun-held-in-{action}-cut-{length}', *held, inquire(action, 'device', length))
    yield Case('lun-read-only-in', JOIN, *[inquire(action, 'device-ro') for action in range(4)])
    yield Case('lun-write-only-in', JOIN, *[inquire(action, 'device-wo') for action in range(4)])
    yield Case('lun-sg', out(REGISTER, 'sg', 0, 0, KEY), inquire(READ_KEYS, 'sg'), *STATE)
    yield Case('lun-offline-in', ('offline',), inquire(READ_KEYS, 'offline'))
    yield Case('lun-offline-out', ('offline',), out(REGISTER, 'offline', 0, 0, KEY))


def lun_out_cases():
    def case(name, *steps, **options):
        return Case(f'lun-{name}', *steps, *STATE, **options)

    yield case('read-only-out', out(REGISTER, 'device-ro', service_key=KEY))
    yield case('write-only-out', out(REGISTER, 'device-wo', service_key=KEY))
    yield case('register', JOIN)
    yield case('register-bytewise', bytewise(REGISTER_CDB + LIST, {3: ['device']}), REPLY)
    yield case('register-wrong-key', out(REGISTER, 'device', key=KEY3, service_key=KEY))
    yield case('register-again', JOIN, JOIN)
    yield case('register-change', JOIN, out(REGISTER, 'device', key=KEY, service_key=KEY3))
    yield case('register-zero', out(REGISTER, 'device'))
    yield case('unregister', JOIN, out(REGISTER, 'device', key=KEY))
    yield case('unregister-wrong-key', JOIN, out(REGISTER, 'device', key=KEY3))
    yield case('register-ignore', out(REGISTER_AND_IGNORE, 'device', key=KEY3, service_key=KEY))
    yield case('register-ignore-again', JOIN, out(REGISTER_AND_IGNORE, 'device', service_key=KEY2))
    yield case('register-ignore-zero', JOIN, out(REGISTER_AND_IGNORE, 'device'))
    yield case('register-two', JOIN, JOIN_OTHER)
    yield case('register-same-key', JOIN, out(REGISTER, 'other', service_key=KEY))
    for name, flags in (('aptpl', 1), ('all-ports', 4), ('spec-i-pt', 8), ('flags', 0xFF)):
        yield case(
            f'register-{name}',
            out(REGISTER, 'device', service_key=KEY, flags=flags),
            inquire(REPORT_CAPABILITIES, 'device'),
            out(REGISTER_AND_IGNORE, 'device', service_key=KEY),
        )
    identifier = struct.pack('>I', 24) + b'\x06\0\0\0' + bytes(20)
    for name, tail in (
        ('unknown', identifier),
        ('empty', bytes(4)),
        ('short', identifier[:-1]),
        ('too-long', struct.pack('>I', 0xFFFFFFFF) + identifier[4:]),
        ('bad-protocol', struct.pack('>I', 24) + b'\x0f' + bytes(23)),
    ):
        data = out_list(0, KEY, 8) + tail
        yield case(f'spec-i-pt-{name}', command(pr_out(REGISTER, 0, len(data)), 'device', data))
    for kind in range(10):
        yield case(f'reserve-type-{kind}', JOIN, out(RESERVE, 'device', kind, KEY))
    yield case('reserve-type-15', JOIN, out(RESERVE, 'device', 15, KEY))
    for scope in (1, 2, 15):
        yield case(f'reserve-scope-{scope}', JOIN, out(RESERVE, 'device', EXCLUSIVE, KEY, scope=scope))
    reserve = out(RESERVE, 'device', EXCLUSIVE, KEY)
    yield case('reserve-unregistered', reserve)
    yield case('reserve-wrong-key', JOIN, out(RESERVE, 'device', EXCLUSIVE, KEY3))
    yield case('reserve-again', JOIN, reserve, reserve)
    yield case('reserve-other-type', JOIN, reserve, out(RESERVE, 'device', WRITE_EXCLUSIVE, KEY))
    yield case('reserve-held', JOIN, JOIN_OTHER, reserve, out(RESERVE, 'other', EXCLUSIVE, KEY2))
    yield case('reserve-held-unregistered', JOIN, reserve, out(RESERVE, 'other', EXCLUSIVE, KEY2))
    yield case('register-while-held', JOIN, reserve, JOIN_OTHER)
    yield case('release', JOIN, reserve, out(RELEASE, 'device', EXCLUSIVE, KEY))
    yield case('release-nothing', JOIN, out(RELEASE, 'device', EXCLUSIVE, KEY))
    yield case('release-wrong-type', JOIN, reserve, out(RELEASE, 'device', WRITE_EXCLUSIVE, KEY))
    yield case('release-wrong-key', JOIN, reserve, out(RELEASE, 'device', EXCLUSIVE, KEY3))
    yield case('release-wrong-scope', JOIN, reserve, out(RELEASE, 'device', EXCLUSIVE, KEY, scope=1))
    yield case('release-not-holder', JOIN, JOIN_OTHER, reserve, out(RELEASE, 'other', EXCLUSIVE, KEY2))
    yield case('release-unregistered', JOIN, reserve, out(RELEASE, 'other', EXCLUSIVE, KEY2))
    shared = out(RESERVE, 'device', WRITE_EXCLUSIVE_REGISTRANTS, KEY)
    release_shared = out(RELEASE, 'device', WRITE_EXCLUSIVE_REGISTRANTS, KEY)
    look = inquire(READ_KEYS, 'other')
    yield case('release-attention', JOIN, JOIN_OTHER, shared, release_shared, look, look)
    yield case('unregister-holder', JOIN, JOIN_OTHER, shared, out(REGISTER, 'device', key=KEY), look, look)
    yield case('all-registrants', JOIN, JOIN_OTHER, out(RESERVE, 'device', EXCLUSIVE_ALL, KEY), look)
    yield case('clear', JOIN, JOIN_OTHER, reserve, out(CLEAR, 'device', key=KEY), look, look)
    yield case('clear-unregistered', JOIN, reserve, out(CLEAR, 'other', key=KEY2))
    yield case('clear-wrong-key', JOIN, reserve, out(CLEAR, 'device', key=KEY3))
    yield case('clear-empty', out(CLEAR, 'device', key=KEY))
    preempt = out(PREEMPT, 'other', EXCLUSIVE, KEY2, KEY)
    again = inquire(READ_KEYS, 'device')
    yield case('preempt-holder', JOIN, JOIN_OTHER, reserve, preempt, again, again)
    yield case(
        'preempt-registrant', JOIN, JOIN_OTHER, reserve, out(PREEMPT, 'device', EXCLUSIVE, KEY, KEY2), look
    )
    yield case('preempt-unregistered', JOIN, reserve, preempt)
    yield case('preempt-unknown-key', JOIN, JOIN_OTHER, reserve, out(PREEMPT, 'other', EXCLUSIVE, KEY2, KEY3))
    yield case('preempt-zero-key', JOIN, JOIN_OTHER, reserve, out(PREEMPT, 'other', EXCLUSIVE, KEY2, 0))
    yield case(
        'preempt-wrong-own-key', JOIN, JOIN_OTHER, reserve, out(PREEMPT, 'other', EXCLUSIVE, KEY3, KEY)
    )
    yield case(
        'preempt-other-type', JOIN, JOIN_OTHER, reserve, out(PREEMPT, 'other', WRITE_EXCLUSIVE, KEY2, KEY)
    )
    yield case('preempt-bad-type', JOIN, JOIN_OTHER, reserve, out(PREEMPT, 'other', 15, KEY2, KEY))
    yield case('preempt-no-reservation', JOIN, JOIN_OTHER, preempt, again)
    yield case('preempt-self', JOIN, reserve, out(PREEMPT, 'device', EXCLUSIVE, KEY, KEY))
    abort = out(PREEMPT_AND_ABORT, 'other', EXCLUSIVE, KEY2, KEY)
    yield case('preempt-and-abort', JOIN, JOIN_OTHER, reserve, abort, again, again, aborts=True)
    yield case('preempt-and-abort-unregistered', JOIN, reserve, abort, aborts=True)
    for name, data in (
        ('unknown', move_list(KEY, KEY2, 2, identifier[4:])),
        ('zero-key', move_list(KEY, 0, 2, identifier[4:])),
        ('no-id', move_list(KEY, KEY2, 2, b'')),
        ('short', move_list(KEY, KEY2, 2, identifier[4:])[:23]),
        ('wrong-key', move_list(KEY3, KEY2, 2, identifier[4:])),
    ):
        move = command(pr_out(REGISTER_AND_MOVE, EXCLUSIVE, len(data)), 'device', data)
        yield case(f'move-{name}', JOIN, reserve, move)
    data = move_list(KEY, KEY2, 2, identifier[4:])
    yield case(
        'move-not-holder', JOIN, command(pr_out(REGISTER_AND_MOVE, EXCLUSIVE, len(data)), 'device', data)
    )


GROUPS = (
    handshake_cases,
    descriptor_cases,
    framing_cases,
    command_cases,
    device_cases,
    cleanup_cases,
    lun_in_cases,
    lun_out_cases,
)
PR_CASES = [case for group in GROUPS for case in group()]

# ---- Wanted differences ----

# CHECK CONDITION in fixed format, trailing zeros cut: ILLEGAL REQUEST, invalid command operation code.
REFUSAL = (prwire.CHECK_CONDITION, '700005000000000a0000000020', '')
DONE = (prwire.GOOD, '', '')


class Allowed:
    """Where the reference answers `theirs`, Granary must answer expect(theirs, subject)."""

    def __init__(self, cases, reason, expect):
        self.cases, self.reason, self.expect = cases, reason, expect

    def concerns(self, case):
        return re.fullmatch(self.cases, case.name) is not None


def refusals(theirs, _):
    """Every reply about a descriptor that must be refused becomes the refusal; nothing else changes."""
    return [('reply', o[1], *REFUSAL) if o[0] == 'reply' and o[1] in REFUSED else o for o in theirs]


def offer(theirs, _):
    return [GREETING if o == ('greeting', 0) else o for o in theirs]


def cleaned(*before):
    """The observations before it and the result of a clean-up."""

    def expect(_, subject):
        return [*before, ('reply', subject, *(REFUSAL if subject in REFUSED else DONE)), USABLE]

    return expect


def key_stays(theirs, _):
    header = '00000001' + '00000008'
    return [
        theirs[0],
        ('reply', 'device', *DONE),
        ('reply', 'device', prwire.GOOD, '', f'{header}{KEY:016x}'),
        ('reply', 'device', prwire.GOOD, '', '00000001' + '00000000'),
        USABLE,
    ]


def sense_of_device(theirs, _):
    """What was taken for a communication failure is the device's invalid field in CDB."""
    failure, answer = '70000b000000000a0000000008', '700005000000000a0000000024'
    return [(*o[:3], answer, o[4]) if o[0] == 'reply' and o[3] == failure else o for o in theirs]


GREETING, USABLE = ('greeting', prwire.FEATURE_CLEANUP), ('usable',)
PR_ALLOWED = [
    Allowed(
        '.*',
        'The reference passes on whatever it gets: the answer to what cannot be reserved is an errno dressed '
        'as ABORTED COMMAND, which guests retry, and the descriptor of a partition reserves the whole LUN. '
        'Granary looks at the device first and refuses for good.',
        refusals,
    ),
    Allowed('hello.*', 'Granary offers the clean-up of a migration source (feature bit 0).', offer),
    Allowed('hello-asks-0x1', 'The same: what is offered may be asked for.', lambda *_: [GREETING, USABLE]),
    Allowed(
        'cleanup',
        'Clean-up is taken from clients that did not ask for it, too, because such clients are released. '
        'Without multipath nothing is to be done.',
        cleaned(),
    ),
    Allowed(
        'cleanup-asked-for',
        'Clean-up after having asked for it. Without multipath nothing is to be done.',
        cleaned(GREETING),
    ),
    Allowed(
        'cleanup-(refused|(lun-)?read-only)',
        'Clean-up, which the reference does not know, needs a writable descriptor of what may be reserved.',
        lambda theirs, device: [('reply', device, *REFUSAL), USABLE],
    ),
    Allowed(
        'out-longer-length',
        'With iSCSI the kernel calls the answer to a length beyond 2 GiB bad although it carries the sense '
        'of the device. The reference reports a communication failure, Granary what the device said.',
        sense_of_device,
    ),
    Allowed('cleanup-lun-keeps-key', 'Without multipath a clean-up does nothing.', key_stays),
]
