#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""QEMU's reservation manager and a helper, in the guest: qemu_consumer.py NAME:QEMU:MACHINE:HELPER...

QEMU runs as an ordinary user with the disk of a nexus behind scsi-block. The commands come from this script
(qtest_scsi.py) and go through QEMU's pr-manager-helper object and HELPER to the disk. The other nexus shows
what has really happened. The checks of one combination build on each other.
"""

import os
import signal
import struct
import sys

from chain import chain
from lab import lab, main, run
from lib.prwire import out_list, pr_in, pr_out
from pr import (
    CLEAR,
    PREEMPT,
    READ_FULL_STATUS,
    READ_KEYS,
    READ_RESERVATION,
    REGISTER,
    REGISTER_AND_IGNORE,
    RELEASE,
    REPORT_CAPABILITIES,
    RESERVE,
    Helper,
    can_write,
    quiet,
    reset,
    scsi,
    sg_keys,
)
from qtest_scsi import TEST_UNIT_READY, Machine, read_10, write_10

LUN = lab.luns[0]
X, Y = LUN.x.disk, LUN.y.disk
OURS, OTHER = 0xA11CE, 0xB0B
USER = 107
SOCKET = '/run/helper.sock'
GOOD, CHECK, CONFLICT = 0x00, 0x02, 0x18
EXCLUSIVE_ACCESS = 3
INVALID_FIELD, LIST_LENGTH = (5, 0x24, 0x00), (5, 0x1A, 0x00)
IO_TERMINATED = (0xB, 0x00, 0x06)


def expect(answer, status, codes=None, residual=None):
    assert answer.response == 0 and answer.status == status and answer.codes() == codes, (
        f'{answer}, expected status {status:#x} sense {codes}'
    )
    assert residual is None or answer.residual == residual, f'{answer}, expected residual {residual}'
    return answer


class Consumer:
    """A QEMU with a helper; SCSI target 0 is the disk of the first nexus, target 1 that of the other one."""

    def __init__(self, name, qemu, model, program):
        self.name, self.qemu, self.model, self.program = name, qemu, model, program
        self.machine = self.helper = None

    def start_helper(self):
        """A helper whose socket QEMU's user may use."""
        self.helper = Helper(program=self.program, path=SOCKET)
        os.chown(SOCKET, USER, USER)

    def kill_helper(self):
        self.helper.process.kill()
        self.helper.process.wait(10)

    def start(self):
        reset(LUN)
        self.start_helper()
        self.machine = Machine(self.qemu, [X, Y], SOCKET, self.model, USER).start()
        for target in (0, 1):
            self.become_ready(target)

    def become_ready(self, target=0):
        """Takes the unit attentions away that wait for this initiator."""
        for _ in range(8):
            if self.machine.execute(target, TEST_UNIT_READY).status == GOOD:
                return
        raise AssertionError('the unit attentions do not end')

    def input(self, action, allocation=8192):
        answer = expect(self.machine.execute(0, pr_in(action, allocation), room=allocation), GOOD)
        assert len(answer.data) + answer.residual == allocation
        return answer.data

    def output(self, action, key=0, service_key=0, kind=0, target=0):
        return self.machine.execute(target, pr_out(action, kind), out_list(key, service_key))

    def keys(self):
        data = self.input(READ_KEYS)
        generation, size = struct.unpack_from('>II', data)
        assert size == len(data) - 8, data.hex()
        return generation, list(struct.unpack_from(f'>{size // 8}Q', data, 8))

    def end(self):
        if self.machine:
            self.machine.kill()
        if self.helper and self.helper.process.poll() is None:
            self.kill_helper()


def other_output(action, key=0, service_key=0, kind=0):
    """PR OUT by the other nexus."""
    quiet(Y)
    return scsi(Y, pr_out(action, kind)[:10], out_list(key, service_key))[0]


def other_reservation():
    """What sg_persist says on the other nexus."""
    quiet(Y)
    return run('sg_persist', '--in', '--read-reservation', Y).stdout


# ---- The checks, in the order in which they run ----


def starts(on):
    on.start()
    assert on.machine.command('query-pr-managers') == [{'connected': True, 'id': 'pr0'}]
    assert on.keys()[1] == []


def registers(on):
    generation, _ = on.keys()
    expect(on.output(REGISTER, service_key=OURS), GOOD, residual=0)
    assert on.keys() == (generation + 1, [OURS])
    assert sg_keys(Y) == [OURS]


def returns_what_was_asked_for(on):
    whole = on.input(READ_KEYS)
    for allocation in (8, 12, 16):
        answer = on.machine.execute(0, pr_in(READ_KEYS, allocation), room=allocation)
        expect(answer, GOOD, residual=0)
        assert answer.data == whole[:allocation], answer.data.hex()
    expect(on.machine.execute(0, pr_in(READ_KEYS, 17), room=17), GOOD, residual=1)


def a_wrong_key_is_a_conflict(on):
    answer = expect(on.output(RESERVE, key=OURS + 1, kind=EXCLUSIVE_ACCESS), CONFLICT)
    assert answer.sense == b'', answer.sense.hex()
    assert 'there is NO reservation' in other_reservation()


def reserves(on):
    assert can_write(Y)
    expect(on.output(RESERVE, key=OURS, kind=EXCLUSIVE_ACCESS), GOOD, residual=0)
    data = on.input(READ_RESERVATION)
    assert len(data) == 24 and struct.unpack_from('>Q5xB', data, 8) == (OURS, EXCLUSIVE_ACCESS), data.hex()
    text = other_reservation()
    assert f'Key={OURS:#x}' in text and 'type: Exclusive Access\n' in text, text
    assert not can_write(Y)
    expect(on.machine.execute(0, write_10(1), b'x' * 512), GOOD)
    assert expect(on.machine.execute(0, read_10(1), room=512), GOOD).data == b'x' * 512


def tells_capabilities_and_full_status(on):
    data = on.input(REPORT_CAPABILITIES)
    assert len(data) == 8 and data[:2] == b'\0\x08', data.hex()
    data = on.input(READ_FULL_STATUS)
    assert struct.unpack_from('>Q4xB', data, 8) == (OURS, 1), data.hex()


def another_nexus_cannot_reserve(on):
    assert other_output(REGISTER, service_key=OTHER) == GOOD
    assert other_output(RESERVE, key=OTHER, kind=EXCLUSIVE_ACCESS) == CONFLICT
    assert set(on.keys()[1]) == {OURS, OTHER}


def bad_requests(on):
    """The disk refuses a reserved action and a short list; QEMU itself refuses no data and too much data."""
    expect(on.machine.execute(0, pr_in(0x1F, 64), room=64), CHECK, INVALID_FIELD)
    expect(on.machine.execute(0, pr_out(REGISTER, length=8), bytes(8)), CHECK, LIST_LENGTH)
    expect(on.machine.execute(0, pr_in(READ_KEYS, 0)), CHECK, INVALID_FIELD)
    expect(on.machine.execute(0, pr_in(READ_KEYS, 8193), room=8193), CHECK, INVALID_FIELD)
    assert set(on.keys()[1]) == {OURS, OTHER}


def two_disks_at_once(on):
    """Commands for both disks of the manager are in flight together."""
    on.become_ready(1)
    commands = [on.machine.submit(target, pr_in(READ_KEYS, 64), room=64) for target in (0, 1) * 4]
    answers = {expect(on.machine.collect(command), GOOD).data for command in commands}
    assert len(answers) == 1, [data.hex() for data in answers]
    expect(on.output(RESERVE, key=OTHER, kind=EXCLUSIVE_ACCESS, target=1), CONFLICT)


def preempted_and_back(on):
    """The other nexus takes the reservation away: a unit attention, then conflicts until we are back."""
    assert other_output(PREEMPT, OTHER, OURS, EXCLUSIVE_ACCESS) == GOOD
    answers = [on.output(RELEASE, key=OURS, kind=EXCLUSIVE_ACCESS) for _ in range(4)]
    attentions = [answer.codes()[:2] for answer in answers if answer.status == CHECK]
    assert set(attentions) == {(6, 0x2A)}, list(map(str, answers))
    expect(answers[-1], CONFLICT)
    expect(on.machine.execute(0, write_10(1), b'y' * 512), CONFLICT)
    expect(on.output(REGISTER_AND_IGNORE, service_key=OURS), GOOD)
    expect(on.output(PREEMPT, OURS, OTHER, EXCLUSIVE_ACCESS), GOOD)
    assert f'Key={OURS:#x}' in other_reservation()
    expect(on.machine.execute(0, write_10(1), b'z' * 512), GOOD)


def helper_replaced_while_idle(on):
    """Another helper is there when the next command comes: it works, and both changes are events."""
    assert on.machine.status_changes() == []
    on.kill_helper()
    on.start_helper()
    assert on.keys()[1] == [OURS]
    assert on.machine.status_changes() == [False, True]


def helper_gone_for_a_while(on):
    """Commands fail with a sense that says "again", the disk itself works, and a new helper is found."""
    on.kill_helper()
    expect(on.machine.execute(0, pr_in(READ_KEYS, 64), room=64), CHECK, IO_TERMINATED)
    assert on.machine.status_changes() == [False]
    assert on.machine.command('query-pr-managers') == [{'connected': False, 'id': 'pr0'}]
    expect(on.machine.execute(0, read_10(1), room=512), GOOD)
    on.start_helper()
    assert on.keys()[1] == [OURS]
    assert on.machine.status_changes() == [True]
    assert on.machine.command('query-pr-managers') == [{'connected': True, 'id': 'pr0'}]


def helper_killed_in_a_command(on):
    """QEMU waits for an answer that does not come: the command fails, the next one finds the new helper."""
    on.helper.process.send_signal(signal.SIGSTOP)
    command = on.machine.submit(0, pr_in(READ_KEYS, 64), room=64)
    expect(on.machine.execute(0, read_10(1), room=512), GOOD)  # QEMU has taken the other command before it
    on.kill_helper()
    answer = on.machine.collect(command)
    # QEMU calls it invalid, unless the command had not left yet.
    assert answer.status == CHECK and answer.codes() in (INVALID_FIELD, IO_TERMINATED), answer
    assert on.machine.status_changes() == [False]
    on.start_helper()
    assert on.keys()[1] == [OURS]
    assert on.machine.status_changes() == [True]


def releases(on):
    expect(on.output(RELEASE, key=OURS, kind=EXCLUSIVE_ACCESS), GOOD)
    assert 'there is NO reservation' in other_reservation()
    assert can_write(Y)
    expect(on.output(CLEAR, key=OURS), GOOD)
    assert on.keys()[1] == [] == sg_keys(Y)


def both_end_well(on):
    assert on.machine.quit() == ''
    on.helper.stop()
    assert not os.path.exists(SOCKET)


CASES = [
    starts, registers, returns_what_was_asked_for, a_wrong_key_is_a_conflict, reserves,
    tells_capabilities_and_full_status, another_nexus_cannot_reserve, bad_requests, two_disks_at_once,
    preempted_and_back, helper_replaced_while_idle, helper_gone_for_a_while, helper_killed_in_a_command,
    releases, both_end_well,
]  # fmt: skip


for combination in sys.argv[1:]:
    chain(Consumer(*combination.split(':')), CASES)
del sys.argv[1:]  # else main() takes them for names of checks
main()
